"""The timeline against its closed form, a brute-force event queue, and its own picture."""

import heapq
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hierarchy.timeline as module
from hierarchy.timeline import (
    NO_PLAN,
    Timeline,
    age,
    draw,
    draw_irregular,
    draw_timeline,
    from_marks,
    marks,
    on_time,
    periodic,
    recorded,
    ticks_from_seconds,
    visible,
)

TICKS = 200


def by_events(timeline: Timeline, ticks: int) -> tuple[list[int], list[int]]:
    """The visible plan and its age at every tick, from a queue of arrivals; the newest observation wins."""
    queue = [(int(ready), j) for j, ready in enumerate(timeline.ready)]
    heapq.heapify(queue)
    newest, plans, ages = NO_PLAN, [], []
    for tick in range(ticks):
        while queue and queue[0][0] <= tick:
            newest = max(newest, heapq.heappop(queue)[1])
        plans.append(newest)
        ages.append(-1 if newest == NO_PLAN else tick - int(timeline.observed[newest]))
    return plans, ages


@st.composite
def runs(draw_from) -> Timeline:
    """What a real run may have recorded: any gaps, any delays, plans that overtake each other."""
    gaps = draw_from(st.lists(st.integers(1, 30), max_size=25))
    observed = np.cumsum([draw_from(st.integers(0, 9)), *gaps]) if gaps else np.zeros(0, int)
    delays = draw_from(st.lists(st.integers(0, 60), min_size=len(observed), max_size=len(observed)))
    return recorded(observed, observed + np.array(delays, int))


@given(st.integers(1, 40), st.integers(0, 90))
def test_closed_form(ratio, latency):
    ticks = np.arange(TICKS)
    timeline = periodic(TICKS, ratio, latency)
    expected = np.where(ticks < latency, NO_PLAN, (ticks - latency) // ratio)
    np.testing.assert_array_equal(visible(timeline, ticks), expected)
    np.testing.assert_array_equal(age(timeline, ticks), np.where(expected == NO_PLAN, -1, ticks - ratio * expected))


@given(st.integers(1, 40), st.integers(0, 90), st.data())
def test_updates_are_where_ratio_and_phase_put_them(ratio, latency, data):
    phase = data.draw(st.integers(0, ratio - 1))
    timeline = periodic(TICKS, ratio, latency, phase)
    expected = [0] + [j * ratio - phase for j in range(1, TICKS + 1) if j * ratio - phase < TICKS]
    assert timeline.observed.tolist() == expected
    assert (timeline.ready - timeline.observed == latency).all()


@given(st.integers(1, 40), st.integers(0, 90), st.booleans(), st.data())
def test_periodic_equals_events(ratio, latency, wait, data):
    timeline = periodic(TICKS, ratio, latency, data.draw(st.integers(0, ratio - 1)), wait_for_first=wait)
    plans, ages = by_events(timeline, TICKS)
    assert visible(timeline, np.arange(TICKS)).tolist() == plans
    assert age(timeline, np.arange(TICKS)).tolist() == ages
    assert (plans[0] == 0) == (wait or latency == 0)


@given(runs())
def test_recorded_equals_events(timeline):
    plans, ages = by_events(timeline, TICKS)
    assert visible(timeline, np.arange(TICKS)).tolist() == plans
    assert age(timeline, np.arange(TICKS)).tolist() == ages


@given(runs(), st.lists(st.integers(0, TICKS), max_size=20))
def test_any_ticks_may_be_asked_in_any_order(timeline, ticks):
    plans, ages = by_events(timeline, TICKS + 1)
    assert visible(timeline, np.array(ticks, int)).tolist() == [plans[tick] for tick in ticks]
    assert age(timeline, np.array(ticks, int)).tolist() == [ages[tick] for tick in ticks]


def test_an_overtaken_plan_is_never_gone_back_to():
    timeline = recorded([0, 4, 8], [20, 15, 10])
    assert visible(timeline, np.arange(9, 22)).tolist() == [-1] + [2] * 12


def test_a_later_observation_is_never_seen_and_plans_never_go_back():
    rng = np.random.default_rng(0)
    for _ in range(50):
        timeline = draw(rng, TICKS, (1, 3, 8, 40), (0, 1, 7, 50))
        plans = visible(timeline, np.arange(TICKS))
        assert (np.diff(plans) >= 0).all()
        seen = plans >= 0
        assert (timeline.observed[plans[seen]] <= np.arange(TICKS)[seen]).all()


def test_draw_covers_everything_it_may_draw():
    rng, seen = np.random.default_rng(1), set()
    for _ in range(600):
        timeline = draw(rng, 50, (2, 5), (0, 3))
        ratio, latency = int(timeline.observed[2] - timeline.observed[1]), int(timeline.ready[0])
        seen.add((ratio, latency, ratio - int(timeline.observed[1])))
    assert seen == {(ratio, latency, phase) for ratio in (2, 5) for latency in (0, 3) for phase in range(ratio)}


@given(st.integers(0, 10_000), st.sampled_from([0.001, 0.002, 0.01, 0.02, 0.04, 0.05, 0.1, 1 / 3, 1.0]))
def test_seconds_come_back_as_ticks(ticks, tick_s):
    assert ticks_from_seconds(ticks * tick_s, tick_s) == ticks


@pytest.mark.parametrize(("seconds", "tick_s"), [(0.03, 0.02), (0.1, 0.03), (-0.02, 0.02), (0.02001, 0.02), (1, 0), (1, -0.1)])
def test_seconds_that_are_no_whole_ticks_are_refused(seconds, tick_s):
    with pytest.raises(ValueError, match=r"whole multiple|more than 0 s"):
        ticks_from_seconds(seconds, tick_s)


def cells(line: str) -> dict[int, str]:
    """What stands in each column of four letters after the row's name."""
    return {(found.start() - 9) // 4: found[0] for found in re.finditer(r"\S+", line.split("(")[0])}


def test_the_picture_is_the_docstrings():
    picture = re.search(r"^    tick .*?^    age [^\n]*", module.__doc__, re.DOTALL | re.MULTILINE)[0]
    expected = [cells(line[4:]) for line in picture.splitlines()]
    assert [cells(line) for line in draw_timeline(periodic(12, 4, 2), 12).splitlines()] == expected
    assert len(expected) == 4
    assert [len(row) for row in expected] == [13, 4, 13, 13]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(ticks=0, ratio=1), "at least 1 tick"),
        (dict(ticks=9, ratio=0), "ratio is 0"),
        (dict(ticks=9, ratio=4, latency=-1), "latency is -1"),
        (dict(ticks=9, ratio=4, phase=4), "phase is 4"),
        (dict(ticks=9, ratio=4, phase=-1), "phase is -1"),
        (dict(ticks=9, ratio=4, latency=9, workers=2), "3 updates in flight"),
    ],
)
def test_periodic_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        periodic(**arguments)


def test_workers_carry_a_latency_up_to_their_number_of_ratios():
    assert periodic(40, 4, 8, workers=2).ready.tolist() == (periodic(40, 4).observed + 8).tolist()


@pytest.mark.parametrize(
    ("observed", "ready", "message"),
    [
        ([0, 4], [0], "one length"),
        ([0, 4, 4], [0, 4, 5], "increase strictly"),
        ([-1, 4], [0, 4], "increase strictly"),
        ([0, 4], [0, 3], "plan 1 is ready at tick 3, before tick 4"),
        ([2, 4], [1, 4], "plan 0 is ready at tick 1"),
    ],
)
def test_recorded_refuses(observed, ready, message):
    with pytest.raises(ValueError, match=message):
        recorded(observed, ready)


def test_irregular_gaps_have_the_ratio_as_their_mean_and_no_period():
    rng, gaps = np.random.default_rng(0), {4: [], 16: []}
    for ratio, found in gaps.items():
        for _ in range(200):
            timeline = draw_irregular(rng, TICKS, (ratio,), (3,))
            assert timeline.observed[0] == 0
            assert timeline.observed[-1] < TICKS
            assert (timeline.ready - timeline.observed == 3).all()
            found += np.diff(timeline.observed).tolist()
    # Gaps that reach past the end are not seen, so that the mean is a little short of the ratio.
    assert np.mean(gaps[4]) == pytest.approx(4, rel=0.05)
    assert np.mean(gaps[16]) == pytest.approx(15, rel=0.1)
    assert np.std(gaps[4]) == pytest.approx(np.sqrt(12), rel=0.1)


def test_irregular_timelines_draw_every_ratio_and_latency():
    rng = np.random.default_rng(1)
    drawn = [draw_irregular(rng, TICKS, (2, 32), (0, 5), wait_for_first=True) for _ in range(60)]
    assert {int(timeline.ready[-1] - timeline.observed[-1]) for timeline in drawn} == {0, 5}
    counts = np.array([len(timeline.observed) for timeline in drawn])
    assert (counts > 60).any()
    assert (counts < 20).any()
    assert all(timeline.ready[0] == 0 for timeline in drawn)


@given(runs())
def test_marks_tell_a_timeline(timeline):
    ticks = int(timeline.observed[-1]) + 1 if len(timeline.observed) else 5
    again = from_marks(marks(timeline, ticks))
    np.testing.assert_array_equal(again.observed, timeline.observed)
    np.testing.assert_array_equal(again.ready, timeline.ready)


def test_marks_of_an_episode_that_ended_first():
    assert marks(periodic(20, 4, 2), 6).tolist() == [2, -1, -1, -1, 6, -1]


def test_what_is_read_on_time_has_the_same_updates_and_no_latency():
    timeline = periodic(40, 4, 9, 1)
    assert on_time(timeline, 12).observed.tolist() == on_time(timeline, 12).ready.tolist() == [0, 3, 7, 11]
    assert age(on_time(timeline, 12), np.arange(12)).tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert on_time(recorded([], []), 12).observed.tolist() == []
