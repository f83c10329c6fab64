"""I1: the parallel pass and the agent, tick by tick, give the same logits; and what would part them is seen to part them."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hierarchy.corpus import segment
from hierarchy.layout import tokens_per_update, words
from hierarchy.model.network import build
from hierarchy.model.stepwise import planner_room
from hierarchy.timeline import Timeline, periodic, recorded
from tests.hierarchy.corpus.corpus_toys import toy_schema
from tests.hierarchy.model.two_rate_toys import (
    CHUNK,
    KINDS,
    SELDOM,
    Toy,
    agent_of,
    disagreement,
    live,
    packed,
    segments,
    toy,
    windows,
    world,
)

TOLERANCE = 1e-5
TWO_RATE = [name for name, kind in KINDS.items() if kind.model.planner is not None]
SINGLE_RATE = [name for name in KINDS if name not in TWO_RATE and name != "chunked"]
LONG = 64
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


def within(timeline: Timeline, ticks: int) -> Timeline:
    """The timeline without updates past the end of a shorter episode."""
    kept = timeline.observed < ticks
    return recorded(timeline.observed[kept], timeline.ready[kept])


def parted(made: Toy, acted: Timeline, packed_as: Timeline | None = None, change=lambda batch: batch, **budgets) -> float:
    """How far the agent under one timeline is from the parallel pass under (by default) the same one."""
    lived, stepped, _ = live(agent_of(made, acted), world(made))
    rows = windows(made.ticks)
    parts = segments(made, lived, acted if packed_as is None else packed_as, rows, **budgets)
    return disagreement(made, stepped, rows, parts, change(packed(made, parts)))


# Kinds that differ from another one in a single part: one timeline always, the others in `make test-all`.
VARIANTS = ("relative", "windows", "experts", "rounds", "quantised", "prefix", "pictures", "at_once", "at_once_scalars")
CASES = [
    pytest.param(kind, name, marks=[pytest.mark.long] if kind in VARIANTS and name != "as drawn" else [])
    for kind in TWO_RATE
    for name in TIMELINES
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_parallel_equals_tick_by_tick(kind, name):
    made = toy(kind)
    assert parted(made, within(TIMELINES[name], made.ticks)) <= TOLERANCE


@pytest.mark.parametrize("kind", SINGLE_RATE)
def test_a_model_without_a_planner_too(kind):
    assert parted(toy(kind), recorded([], [])) <= TOLERANCE


def test_chunks_too():
    assert parted(toy("chunked"), periodic(LONG, CHUNK)) <= TOLERANCE


def test_a_chunk_of_other_actions_is_seen():
    assert parted(toy("chunked"), periodic(LONG, CHUNK), change=elements_turned) > 10 * TOLERANCE


def test_with_mean_actions_too():
    assert parted(toy("film", "mean"), TIMELINES["as drawn"]) <= TOLERANCE


@st.composite
def runs(draw) -> Timeline:
    """Any run that may have happened: gaps, deadlines missed, plans overtaken."""
    observed = np.cumsum(draw(st.lists(st.integers(1, 15), min_size=1, max_size=12))) - 1
    observed = observed[observed < LONG]
    delays = draw(st.lists(st.integers(0, 25), min_size=len(observed), max_size=len(observed)))
    return recorded(observed, observed + np.array(delays, int))


@pytest.mark.parametrize("kind", ["pooled", "pictures"])
@given(timeline=runs(), first=st.integers(0, 1000))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_run_that_may_have_happened(kind, timeline, first):
    made = toy(kind)
    lived, stepped, _ = live(agent_of(made, timeline), world(made, first % 50))
    rows = windows(LONG)
    parts = segments(made, lived, timeline, rows)
    assert disagreement(made, stepped, rows, parts, packed(made, parts)) <= TOLERANCE


@pytest.mark.parametrize(
    ("kind", "name"),
    [("pooled", "every tick"), ("pooled", "every tick, late"), ("pictures", "every tick"), ("pictures", "as drawn")],
)
def test_a_planner_that_starts_late_has_its_lead_in(kind, name):
    made = toy(kind)
    lived, stepped, _ = live(agent_of(made, TIMELINES[name]), world(made))
    rows = windows(LONG)
    parts = segments(made, lived, TIMELINES[name], rows, planner_tokens=90)
    assert parts[2][0].planner.tick[0] > 0
    assert all(len(part.planner.tick) <= 90 for row in parts for part in row)
    assert disagreement(made, stepped, rows, parts, packed(made, parts)) <= TOLERANCE


@pytest.mark.parametrize("kind", ["pooled", "scalars", "relative", "text", "pictures"])
def test_both_caches_roll_over_twice(kind):
    made = toy(kind)
    timeline = periodic(made.ticks, 1)
    lived, stepped, state = live(agent_of(made, timeline), world(made))
    for cache in (state.planner, state.controller):
        assert np.asarray(cache.written).min() > 2 * cache.place.time.shape[1]
    rows = windows(made.ticks)
    parts = segments(made, lived, timeline, rows)
    assert disagreement(made, stepped, rows, parts, packed(made, parts)) <= TOLERANCE


@pytest.mark.parametrize("timeline", [periodic(LONG, 5, 2), periodic(LONG, 9, 0, 2), recorded([3, 9, 30, 41], [9, 12, 31, 41])])
@pytest.mark.parametrize("kind", SELDOM)
def test_caches_with_room_for_the_updates_of_a_window_alone(kind, timeline):
    made = toy(kind)
    timeline = within(timeline, made.ticks)
    lived, stepped, state = live(agent_of(made, timeline), world(made))
    rows = windows(made.ticks)
    parts = segments(made, lived, timeline, rows)
    assert disagreement(made, stepped, rows, parts, packed(made, parts)) <= TOLERANCE
    each, model = tokens_per_update(made.layout), made.network.config
    words_kept = model.text_slots if words(made.layout.planner) else 0
    updates = 1 + math.ceil((model.planner.window - 1) / model.least_ratio)
    assert state.planner.place.time.shape[1] == each * updates + words_kept


def test_updates_closer_than_a_cache_has_room_for_are_refused():
    made = toy("seldom")
    with pytest.raises(ValueError, match=r"updates of the planner at ticks 0 and 3, and its cache has room for one in 4"):
        live(agent_of(made, periodic(LONG, 4, 0, 1)), world(made))
    follows = build(dataclasses.replace(KINDS["text"].model, least_ratio=2), toy_schema(KINDS["text"].layout))
    with pytest.raises(ValueError, match="follows fields at every tick, and its cache has room for one reading in 2"):
        planner_room(follows, KINDS["text"].layout)


def test_a_second_episode_remembers_nothing_of_the_first():
    made = toy("film")
    agent = agent_of(made, TIMELINES["later than the next"])
    live(agent, world(made, 5))
    lived, after, _ = live(agent, world(made))
    _, fresh, _ = live(agent_of(made, TIMELINES["later than the next"]), world(made))
    np.testing.assert_array_equal(after, fresh)
    rows = windows(made.ticks)
    parts = segments(made, lived, agent.timeline, rows)
    assert disagreement(made, after, rows, parts, packed(made, parts)) <= TOLERANCE


ACTED = TIMELINES["as drawn"]
WRONG = {
    "plan one tick early": Timeline(ACTED.observed, ACTED.ready - 1),
    "plan one tick late": Timeline(ACTED.observed, ACTED.ready + 1),
    "phase not reset": periodic(LONG, 4, 2, 1),
    "first plan waited for": periodic(LONG, 4, 2, wait_for_first=True),
    "another ratio": periodic(LONG, 5, 2),
    "overtaken plans gone back to": ACTED._replace(ready=np.where(np.arange(16) % 5 == 2, ACTED.ready + 9, ACTED.ready)),
}


@pytest.mark.parametrize("kind", ["pooled", "film", "prefix"])
@pytest.mark.parametrize("mutant", WRONG)
def test_a_wrong_timeline_is_seen(kind, mutant):
    assert parted(toy(kind), ACTED, WRONG[mutant]) > 10 * TOLERANCE


def elements_turned(batch):
    """Every chunk as if its elements had been decoded in another order."""
    stream = batch.controller
    own = ~stream.lasting & (stream.segment > 0)
    value = stream.value.copy()
    value[own] = np.roll(value[own], 1, axis=0)
    return batch._replace(controller=stream._replace(value=value))


def one_older(batch):
    return batch._replace(age=np.where(batch.age >= 0, batch.age + 1, -1))


def plans_one_back(batch):
    return batch._replace(plan=np.maximum(batch.plan - 1, -1))


def a_tick_later(batch):
    stream = batch.planner
    return batch._replace(planner=stream._replace(tick=np.where(stream.segment > 0, stream.tick + 1, 0)))


def actions_last(batch):
    return batch._replace(controller=batch.controller._replace(lasting=batch.controller.segment > 0))


def rows_not_parted(batch):
    together = [stream._replace(segment=np.minimum(stream.segment, 1)) for stream in (batch.controller, batch.planner)]
    return batch._replace(controller=together[0], planner=together[1])


def actions_executed_late(batch):
    own = batch.controller.value[:, :, 0]
    late = np.where(batch.controller.lasting | (batch.controller.segment == 0), own, np.roll(own, 1, axis=1))
    value = batch.controller.value.copy()
    value[:, :, 0] = late
    return batch._replace(controller=batch.controller._replace(value=value))


def images_elsewhere(batch):
    return batch._replace(patches=batch.patches._replace(row=np.minimum(batch.patches.row + 40, 127)))


def images_of_another(batch):
    return batch._replace(patches=batch.patches._replace(pixels=np.roll(batch.patches.pixels, 2, axis=1)))


def pieces_at_their_updates(batch):
    """Every token of the planner's at the tick of the update that read it, as if it had no tick of its own."""
    stream, tick = batch.planner, batch.planner.tick.copy()
    for b, slots in enumerate(batch.plan_slot):
        ends = np.sort(slots[slots >= 0])
        for n in np.flatnonzero(stream.segment[b] > 0):
            later = ends[ends >= n]
            if len(later) and stream.segment[b, later[0]] == stream.segment[b, n]:
                tick[b, n] = stream.tick[b, later[0]]
    return batch._replace(planner=stream._replace(tick=tick))


def pieces_one_update_late(batch):
    """The planner's pieces shifted by one token."""
    value = batch.planner.value.copy()
    said = value[:, :, 0] < 128
    value[:, 1:, 0] = np.where(said[:, 1:] & said[:, :-1], value[:, :-1, 0], value[:, 1:, 0])
    return batch._replace(planner=batch.planner._replace(value=value))


@pytest.mark.parametrize("mutant", [images_elsewhere, images_of_another, pieces_at_their_updates, pieces_one_update_late])
def test_text_or_images_read_wrongly_are_seen(mutant):
    made = toy("captions")
    assert parted(made, within(ACTED, made.ticks), change=mutant) > 10 * TOLERANCE


@pytest.mark.parametrize(
    "mutant", [one_older, plans_one_back, a_tick_later, actions_last, rows_not_parted, actions_executed_late]
)
def test_a_wrong_batch_is_seen(mutant):
    made = toy("film")
    assert parted(made, ACTED, change=mutant) > 10 * TOLERANCE


def test_sums_over_the_wrong_ticks_are_seen(monkeypatch):
    right = segment.planner_tokens
    monkeypatch.setattr(
        segment, "planner_tokens", lambda history, ticks, before, who: right(history, ticks, np.maximum(before - 1, -1), who)
    )
    assert parted(toy("pooled"), ACTED) > 10 * TOLERANCE


def test_words_read_at_other_times_are_seen():
    assert parted(toy("pooled"), ACTED, planner_reread=9) > 10 * TOLERANCE


def test_a_lead_in_too_short_is_seen():
    made = toy("pooled")
    assert parted(made, ACTED, lead_in=made.packing.lead_in - 1) > TOLERANCE
    assert parted(made, TIMELINES["every tick"], planner_tokens=90, planner_lead_in=10) > TOLERANCE


def test_other_weights_change_the_plan_and_the_logits():
    """The toys' random plans matter: without this, none of the mutants of plans would mean anything."""
    made = toy("pooled")
    lived, stepped, _ = live(agent_of(made, ACTED), world(made))
    rows = windows(LONG)
    parts = segments(made, lived, ACTED, rows)
    blind = packed(made, parts)
    blind = blind._replace(plan=np.full_like(blind.plan, -1), age=np.full_like(blind.age, -1))
    assert disagreement(made, stepped, rows, parts, blind) > 1e-2
