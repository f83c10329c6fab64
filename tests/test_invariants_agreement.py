"""I1: the parallel pass and the agent, tick by tick, give the same logits."""

import pytest

from hierarchy.timeline import periodic, recorded
from tests.hierarchy.model.two_rate_toys import KINDS, agent_of, disagreement, live, packed, segments, toy, windows, world

TOLERANCE = 1e-5
TWO_RATE = [name for name, kind in KINDS.items() if kind.model.planner is not None]
LONG = 96
TIMELINES = {
    "every tick": periodic(LONG, 1),
    "every tick, late": periodic(LONG, 1, 5),
    "as drawn": periodic(LONG, 4, 2),
    "later than the next": periodic(LONG, 4, 11, 3),
    "first waited for": periodic(LONG, 7, 3, 2, wait_for_first=True),
    "seldom": periodic(LONG, 16, 8, 5),
    "once": periodic(LONG, LONG),
    "never": recorded([], []),
    "missed deadlines": recorded([0, 4, 8, 12, 20, 30, 31, 40], [3, 5, 17, 14, 20, 90, 35, 50]),
    "late to start": recorded([3, 10, 25], [9, 10, 43]),
}


def shortened(timeline, ticks):
    """The timeline without updates past the end of a shorter episode."""
    kept = timeline.observed < ticks
    return recorded(timeline.observed[kept], timeline.ready[kept])


@pytest.mark.parametrize("name", TIMELINES)
@pytest.mark.parametrize("kind", TWO_RATE)
def test_parallel_equals_tick_by_tick(kind, name):
    made = toy(kind)
    timeline = shortened(TIMELINES[name], made.ticks)
    lived, stepped, _ = live(agent_of(made, timeline), world(made))
    rows = windows(made.ticks)
    parts = segments(made, lived, timeline, rows)
    assert disagreement(made, stepped, rows, parts, packed(made, parts)) <= TOLERANCE
