"""The invariants once more, where planners stand above the planner: the same through every link, at every level."""

import dataclasses
import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hierarchy.batch import Batch
from hierarchy.layout import planner_name
from hierarchy.timeline import Timeline, periodic, recorded, visible
from hierarchy.training.losses import LossWeights, joint_loss
from modules.embedding import TokenEmbedding
from modules.transformer import Transformer
from tests.hierarchy.model.two_rate_toys import (
    ABOVE,
    CONTROLLER,
    PLANNER,
    Toy,
    agent_of,
    disagreement,
    head,
    live,
    packed,
    segments,
    toy,
    windows,
    world,
)
from tests.test_invariants_acting import Spy, agrees, counted, told
from tests.test_invariants_agreement import LONG, TOLERANCE, runs, within
from tests.test_invariants_causality import reached, watched

Pair = tuple[Timeline, ...]
"""The timelines of the links, that of the controller's plans first."""
ACTED = (periodic(LONG, 3, 2), periodic(LONG, 8, 4))
PAIRS = {
    "as drawn": ACTED,
    "all at every tick": (periodic(LONG, 1), periodic(LONG, 1)),
    "slower above": (periodic(LONG, 4, 2, 1), periodic(LONG, 20, 7, 13)),
    "quicker above": (periodic(LONG, 16, 8, 5), periodic(LONG, 3, 1)),
    "later than the next": (periodic(LONG, 4, 11, 3), periodic(LONG, 8, 19, 5)),
    "first waited for": (periodic(LONG, 7, 3, 2, wait_for_first=True), periodic(LONG, 16, 6, wait_for_first=True)),
    "never above": (periodic(LONG, 4, 2), recorded([], [])),
    "never at all": (recorded([], []), periodic(LONG, 16)),
    "missed deadlines": (
        recorded([0, 4, 8, 12, 20, 30, 31, 40], [3, 5, 17, 14, 20, 90, 35, 50]),
        recorded([0, 7, 12, 13, 40], [5, 60, 21, 14, 40]),
    ),
    "late to start": (recorded([3, 10, 25], [9, 10, 43]), recorded([5, 24], [11, 24])),
}


def lived_through(made: Toy, acted: Pair, first: int = 0):
    """What the agent did under a timeline a link, and its last state."""
    return live(agent_of(made, acted[0], above=acted[1:]), world(made, first))


def parted(made: Toy, acted: Pair, packed_as: Pair | None = None, change=lambda batch: batch, first: int = 0, **budgets) -> float:
    """How far the agent under timelines is from the parallel pass under (by default) the same ones."""
    acted = tuple(within(timeline, made.ticks) for timeline in acted)
    lived, stepped, _ = lived_through(made, acted, first)
    rows, (timeline, *above) = windows(made.ticks), acted if packed_as is None else packed_as
    parts = segments(made, lived, timeline, rows, above, **budgets)
    return disagreement(made, stepped, rows, parts, change(packed(made, parts)))


@pytest.mark.parametrize("name", PAIRS)
def test_parallel_equals_tick_by_tick(name):
    assert parted(toy("three_rates"), PAIRS[name]) <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("kind", ["three_rates_film", "three_rates_scalars"])
@pytest.mark.parametrize("name", PAIRS)
def test_however_a_plan_is_read(kind, name):
    assert parted(toy(kind), PAIRS[name]) <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("third", [periodic(LONG, 1), periodic(LONG, 25, 9, 4), recorded([], [])])
@pytest.mark.parametrize("name", PAIRS)
def test_four_rates_too(name, third):
    assert parted(toy("four_rates"), (*PAIRS[name], third)) <= TOLERANCE


@given(lower=runs(), upper=runs(), first=st.integers(0, 50))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_two_runs_that_may_have_happened(lower, upper, first):
    assert parted(toy("three_rates"), (lower, upper), first=first) <= TOLERANCE


def test_all_caches_have_rolled_over():
    """In the first of the pairs above; twice but for the planner's, which is told little."""
    made = toy("three_rates")
    _, _, state = lived_through(made, PAIRS["all at every tick"])
    for cache, times in ((state.above[0].cache, 2), (state.planner, 1), (state.controller, 2)):
        assert np.asarray(cache.written).min() > times * cache.place.time.shape[1]


LATE = [[(0, (57, 64))], [(1, (58, 64))], [(2, (57, 64))]]
"""Rows of windows at the episodes' ends, before which both planners may start late."""


@pytest.mark.parametrize(
    ("name", "rows", "tokens", "planner_tokens"),
    [
        ("all at every tick", windows(LONG), 150, 268),
        ("as drawn", windows(LONG), 70, 268),
        ("later than the next", windows(LONG), 40, 268),
        ("all at every tick", LATE, 140, 40),
    ],
)
def test_planners_that_start_late_have_their_lead_in(name, rows, tokens, planner_tokens):
    made = toy("three_rates")
    above = (dataclasses.replace(made.packing.above[0], tokens=tokens),)
    lived, stepped, _ = lived_through(made, PAIRS[name])
    parts = segments(made, lived, PAIRS[name][0], rows, PAIRS[name][1:], above=above, planner_tokens=planner_tokens)
    assert parts[0][0].above[0].stream.tick[0] > 0
    assert (parts[0][0].planner.tick[0] > 0) == (planner_tokens == 40)
    assert all(len(part.above[0].stream.tick) <= tokens for row in parts for part in row)
    assert disagreement(made, stepped, rows, parts, packed(made, parts)) <= TOLERANCE


LOWER, UPPER = ACTED
WRONG = {
    "plan one tick early above": (LOWER, UPPER._replace(ready=UPPER.ready - 1)),
    "plan one tick late above": (LOWER, UPPER._replace(ready=UPPER.ready + 1)),
    "phase not reset above": (LOWER, periodic(LONG, 8, 4, 1)),
    "first waited for above": (LOWER, periodic(LONG, 8, 4, wait_for_first=True)),
    "another ratio above": (LOWER, periodic(LONG, 9, 4)),
    "one timeline for both links": (LOWER, LOWER),
    "plan one tick early below": (LOWER._replace(ready=LOWER.ready - 1), UPPER),
}


@pytest.mark.parametrize("mutant", WRONG)
def test_a_wrong_timeline_is_seen(mutant):
    assert parted(toy("three_rates"), ACTED, WRONG[mutant]) > 10 * TOLERANCE


def changed_above(batch: Batch, **parts) -> Batch:
    return batch._replace(above=(batch.above[0]._replace(**parts),))


def one_older_above(batch):
    age = batch.above[0].age
    return changed_above(batch, age=np.where(age >= 0, age + 1, -1))


def plans_one_back_above(batch):
    return changed_above(batch, plan=np.maximum(batch.above[0].plan - 1, -1))


def plan_of_the_controllers_tick(batch):
    """The planner's tokens see the newest plan above that the row has, as if they were of its last tick."""
    plan, segment = batch.above[0].plan, batch.planner.segment
    newest = [np.array([plan[b][segment[b] == own].max(initial=-1) for own in segment[b]]) for b in range(len(plan))]
    return changed_above(batch, plan=np.where(plan >= 0, newest, -1))


def a_tick_later_above(batch):
    stream = batch.above[0].stream
    return changed_above(batch, stream=stream._replace(tick=np.where(stream.segment > 0, stream.tick + 1, 0)))


def rows_not_parted_above(batch):
    stream = batch.above[0].stream
    return changed_above(batch, stream=stream._replace(segment=np.minimum(stream.segment, 1)))


@pytest.mark.parametrize(
    "mutant", [one_older_above, plans_one_back_above, plan_of_the_controllers_tick, a_tick_later_above, rows_not_parted_above]
)
def test_a_wrong_batch_is_seen(mutant):
    assert parted(toy("three_rates"), ACTED, change=mutant) > 10 * TOLERANCE


def test_a_lead_in_too_short_above_is_seen():
    made, seldom = toy("three_rates"), (recorded([20, 45], [20, 45]), periodic(LONG, 1))
    room = dataclasses.replace(made.packing.above[0], tokens=110)
    assert parted(made, seldom, above=(room,)) <= TOLERANCE
    assert parted(made, seldom, above=(dataclasses.replace(room, lead_in=0),)) > 10 * TOLERANCE


def test_a_planner_needs_its_lead_in_after_plans_that_were_cut_off_above():
    made = toy("three_rates")
    room = dataclasses.replace(made.packing.above[0], tokens=150)
    assert parted(made, PAIRS["all at every tick"], above=(room,), planner_lead_in=0) > TOLERANCE


@functools.cache
def one_row() -> tuple[Toy, Batch]:
    """A row of two segments of what the agent did."""
    made = toy("three_rates")
    lived, _, _ = lived_through(made, ACTED)
    return made, packed(made, segments(made, lived, ACTED[0], [[(2, (20, 34)), (1, (0, 12))]], ACTED[1:]))


def zeros(batch: Batch) -> dict[str, jax.Array]:
    streams = {"controller": (batch.controller, CONTROLLER), "planner": (batch.planner, PLANNER)}
    streams |= {"planner_2": (batch.above[0].stream, ABOVE)}
    return {name: jnp.zeros((stream.tick.shape[1], config.width)) for name, (stream, config) in streams.items()}


@functools.cache
def jacobian():
    """The compiled gradients of action targets' logits to embedded tokens, from zeros to add to them and a batch."""
    made, mixed = toy("three_rates"), np.random.default_rng(0).normal(size=2048).astype(np.float32)

    def logits(added, batch):
        with hk.intercept_methods(watched(TokenEmbedding, added)):
            logits = getattr(made.forward.__wrapped__(made.params, batch), head(made))
        return jnp.where(logits[0] > -1e29, logits[0] * mixed[: logits.shape[-1]], 0.0).sum(axis=-1)

    return jax.jit(jax.jacrev(logits))


def influence(batch: Batch) -> dict[str, np.ndarray]:
    """For each stream bool [M, N]: whether the gradient from action target m's logits to embedded token n is not exactly zero."""
    return {model: np.any(np.asarray(each) != 0, axis=-1) for model, each in jacobian()(zeros(batch), batch).items()}


@functools.cache
def found_in_one_row() -> dict[str, np.ndarray]:
    return influence(one_row()[1])


def behind(reaches: np.ndarray, index: np.ndarray, plan_slot: np.ndarray) -> np.ndarray:
    """bool [N]: the tokens of a stream behind the plans with these indices."""
    return np.any([reaches[plan_slot[j]] for j in set(index.tolist()) - {-1}] or [np.zeros(reaches.shape[1], bool)], axis=0)


@pytest.mark.long
def test_logits_depend_on_what_they_may_and_on_all_of_it():
    (made, batch), found = one_row(), found_in_one_row()
    targets, above = getattr(batch, head(made)), batch.above[0]
    slots = targets.slot[0][targets.weight[0] > 0]
    controller, seen = reached(batch.controller, CONTROLLER), reached(batch.controller, CONTROLLER, CONTROLLER.layers - 1)
    planner, seen_by_planner = reached(batch.planner, PLANNER), reached(batch.planner, PLANNER, PLANNER.layers - 1)
    upper = reached(above.stream, ABOVE)
    used = targets.weight[0] > 0
    np.testing.assert_array_equal(found["controller"][used], controller[slots])
    through = np.array([behind(planner, batch.plan[0][seen[slot]], batch.plan_slot[0]) for slot in slots])
    np.testing.assert_array_equal(found["planner"][used], through)
    # A plan rests on the plans above that its own token, and those that its layers but the last reach, read.
    under = np.array([behind(upper, above.plan[0][tokens], above.plan_slot[0]) for tokens in seen_by_planner])
    twice = np.array([behind(under, batch.plan[0][seen[slot]], batch.plan_slot[0]) for slot in slots])
    np.testing.assert_array_equal(found["planner_2"][used], twice)
    assert twice.any()


def sees_the_future(made: Toy, batch: Batch, found: dict[str, np.ndarray]) -> bool:
    """Whether any action target's logits depend, through plans, on what came after the observation of the plan that its tick may
    see, or above that on what came after the observation of the plan that may have been seen then."""
    targets, stream = getattr(batch, head(made)), batch.controller
    for m in np.flatnonzero(targets.weight[0] > 0):
        tick, own = stream.tick[0, targets.slot[0, m]], stream.segment[0, targets.slot[0, m]]
        for name, slow, timeline in (("planner", batch.planner, LOWER), ("planner_2", batch.above[0].stream, UPPER)):
            newest = visible(timeline, np.array([tick]))[0] if tick >= 0 else -1
            tick = timeline.observed[newest] if newest >= 0 else -1
            if found[name][m, (slow.tick[0] > tick) | (slow.segment[0] != own)].any():
                return True
    return False


def a_plan_early_above(batch: Batch) -> Batch:
    above = batch.above[0]
    following = np.minimum(above.plan + 1, (above.plan_slot >= 0).sum(axis=1, keepdims=True) - 1)
    owner = np.take_along_axis(above.stream.segment, np.take_along_axis(above.plan_slot, following, axis=1), axis=1)
    plan = np.where((above.plan >= 0) & (owner == batch.planner.segment), following, above.plan)
    return batch._replace(above=(above._replace(plan=plan),))


def test_no_future_through_two_links():
    assert not sees_the_future(*one_row(), found_in_one_row())


@pytest.mark.long
def test_a_plan_from_the_future_above_is_seen():
    made, batch = one_row()
    assert sees_the_future(made, a_plan_early_above(batch), influence(a_plan_early_above(batch)))


@pytest.mark.long
def test_the_action_loss_trains_the_planner_above_through_its_plans_alone():
    made, batch = one_row()

    def loss(added):
        with hk.intercept_methods(watched(Transformer, added)):
            return joint_loss(made.network, made.params, batch, LossWeights(sub_goal=0.0))[0]

    found = np.any(np.asarray(jax.jit(jax.grad(loss))(zeros(batch))["planner_2"]) != 0, axis=-1)
    expected = np.isin(np.arange(len(found)), batch.above[0].plan_slot[0])
    assert found.any()
    assert not found[~expected].any()


def spied(made: Toy) -> tuple[Toy, dict[str, Spy]]:
    """The toy whose calls are kept, by reader."""
    above = tuple(thinking._replace(update=Spy(thinking.update)) for thinking in made.acting.above)
    acting = made.acting._replace(update=Spy(made.acting.update), tick=Spy(made.acting.tick), above=above)
    spies = {planner_name(level): thinking.update for level, thinking in enumerate(above, start=2)}
    return made._replace(acting=acting), spies | {"planner": acting.update, "controller": acting.tick}


@pytest.mark.parametrize("name", PAIRS)
def test_every_level_runs_once_an_update(name):
    made, spies = spied(toy("three_rates"))
    _, _, state = lived_through(made, PAIRS[name])
    lower, upper = PAIRS[name]
    assert [int(call[4]) for call in spies["planner_2"].calls] == upper.observed.tolist()
    assert [int(call[4]) for call in spies["planner"].calls] == lower.observed.tolist()
    assert [told(made, call).now for call in spies["controller"].calls] == list(range(LONG))
    assert (state.updates, state.above[0].updates) == (len(lower.observed), len(upper.observed))


def test_one_compiled_program_a_level():
    made = toy("three_rates")
    for number, pair in enumerate(PAIRS.values()):
        lived_through(made, pair, 5 * number)
    upper = made.acting.above[0]
    assert [f._cache_size() for f in (made.acting.update, made.acting.tick, upper.update, upper.no_plan)] == [1] * 4


def test_no_level_needs_the_weights_of_another():
    made, spies = spied(toy("three_rates"))
    lived_through(made, ACTED)
    fresh = agent_of(made, LOWER, above=[UPPER]).begin([0, 1, 2])
    caches = {"planner_2": fresh.above[0].cache, "planner": fresh.planner, "controller": fresh.controller}
    # A plan is read for the level below by that level's own weights: for a planner there are two sets of them.
    needs = {"planner_2": ("planner_2", "planner"), "planner": ("planner", "controller"), "controller": ("controller",)}
    for reader, spy in spies.items():
        params, _, *rest = spy.calls[-1]
        own = {name: leaves for name, leaves in params.items() if name.split("/")[0] in needs[reader]}
        # A tick is given what it reads, and nothing else.
        assert 0 < len(own) < len(params) if reader != "controller" else own == params
        jax.eval_shape(spy.function, own, caches[reader], *rest)


def test_the_tick_counter_agrees_in_the_agent():
    made, spies = spied(toy("three_rates"))
    lived_through(made, ACTED)
    for reader, spy in spies.items():
        assert spy.calls
        for call in spy.calls:
            value, field, now = told(made, call) if reader == "controller" else (call[2].value, call[2].field, call[4])
            assert agrees(counted(made, reader, np.asarray(value), np.asarray(field)), now)


def links_in_step(made: Toy, batch: Batch) -> bool:
    """Whether the plan above that a planner's token sees observed `age` ticks before its counter, in its own segment."""
    above = batch.above[0]
    said = counted(made, "planner", batch.planner.value, batch.planner.field)
    upper = counted(made, "planner_2", above.stream.value, above.stream.field)
    if not (agrees(upper, above.stream.tick) and agrees(said, batch.planner.tick)):
        return False
    seeing = [(b, n, above.plan_slot[b, above.plan[b, n]]) for b, n in np.argwhere((said >= 0) & (above.plan >= 0))]
    assert len(seeing)
    return all(
        upper[b, slot] == said[b, n] - above.age[b, n] and above.stream.segment[b, slot] == batch.planner.segment[b, n]
        for b, n, slot in seeing
    )


def test_the_tick_counter_agrees_in_the_batch():
    made = toy("three_rates")
    batch = packed(made, segments(made, world(made), ACTED[0], windows(LONG), ACTED[1:]))
    assert links_in_step(made, batch)
    assert not links_in_step(made, a_tick_later_above(batch))
    assert not links_in_step(made, one_older_above(batch))
    assert not links_in_step(made, plans_one_back_above(batch))
