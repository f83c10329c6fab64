"""I1, I2, I7 and I8 for episodes that are read after a prompt: the agent's caches and the row agree, and no future is seen."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments.interventions import Prompted
from hierarchy.control.prompt import read_prompt
from hierarchy.corpus.prompts import excerpt, is_prompted, lay_before
from hierarchy.corpus.segment import encode_episode
from hierarchy.timeline import Timeline, periodic, recorded
from hierarchy.training.losses import LossWeights
from tests.hierarchy.corpus.corpus_toys import Letters
from tests.hierarchy.model.two_rate_toys import (
    CHUNK,
    CONTROLLER,
    KINDS,
    PLANNER,
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
from tests.test_invariants_causality import influence, reached, trained

TOLERANCE = 1e-5
TICKS = 11
LATE = periodic(64, 4, 2)
TIMELINES = {
    "every tick": periodic(64, 1),
    "as drawn": LATE,
    "later than the next": periodic(64, 4, 11, 3),
    "once": periodic(64, 64),
    "never": recorded([], []),
    "missed deadlines": recorded([0, 4, 8, 12, 20, 30, 31, 40], [3, 5, 17, 14, 20, 90, 35, 50]),
}


def timeline_of(kind: str, name: str) -> Timeline:
    """The timeline, without updates past the end of a kind's episodes; of a model without plans what it has."""
    model, ticks = KINDS[kind].model, KINDS[kind].ticks
    if model.planner is None:
        return periodic(ticks, CHUNK) if kind == "chunked" else recorded([], [])
    kept = TIMELINES[name].observed < ticks
    return recorded(TIMELINES[name].observed[kept], TIMELINES[name].ready[kept])


def prompts_of(made: Toy, first: int = 7):
    """The ends of three other episodes."""
    return [excerpt(episode, made.ticks - TICKS, made.ticks) for episode in world(made, first)]


def acted(made: Toy, timeline: Timeline, prompts):
    """The episodes that the agent lives through after prompts, and its logits."""
    read = functools.partial(read_prompt, made.acting, made.params, prompts=prompts, timeline=timeline, tokenizer=Letters())
    return live(Prompted(agent_of(made, timeline), read), world(made))


def rows_of(made: Toy, lived, timeline: Timeline, prompts, rows):
    """The segments of the rows, each after the prompt of its episode."""
    parts, rng = segments(made, lived, timeline, rows), np.random.default_rng(0)
    before = [encode_episode(made.schema, made.layout.name, prompt, Letters()) for prompt in prompts]
    return [
        [lay_before(rng, before[episode], part, timeline, made.packing) for (episode, _), part in zip(places, cuts)]
        for places, cuts in zip(rows, parts)
    ]


def parted(kind: str, name: str, shown=lambda prompts: prompts, change=lambda batch: batch) -> float:
    """How far the agent after its prompts is from the parallel pass over the rows with (by default) the same prompts."""
    made, timeline = toy(kind), timeline_of(kind, name)
    prompts, rows = prompts_of(made), windows(made.ticks)
    if made.network.config.planner is None:
        # Its rows hold a whole episode and no more: the prompt takes the place of the last ticks.
        rows[0] = [(0, (0, made.ticks - 20))]
    lived, stepped, _ = acted(made, timeline, prompts)
    parts = rows_of(made, lived, timeline, shown(prompts), rows)
    assert any(is_prompted(part) for row in parts for part in row)
    return disagreement(made, stepped, rows, parts, change(packed(made, parts)))


USUAL = [("film", name) for name in TIMELINES] + [("pooled", "as drawn"), ("single_rate", "never")]
RARE = [(kind, name) for kind in KINDS if not kind.endswith(("text", "captions")) for name in ("every tick", "missed deadlines")]
CASES = USUAL + [pytest.param(*case, marks=pytest.mark.long) for case in RARE if case not in USUAL]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_parallel_equals_tick_by_tick_after_a_prompt(kind, name):
    assert parted(kind, name) <= TOLERANCE


def test_a_prompt_is_read_by_the_program_that_acts():
    """I4: of its layout there is one tick, whatever it reads."""
    made = toy("film")
    live(agent_of(made, LATE), world(made))
    before = made.acting.tick._cache_size()
    acted(made, LATE, prompts_of(made))
    assert made.acting.tick._cache_size() == before


def others(prompts):
    return prompts[1:] + prompts[:1]


def shorter(prompts):
    return [excerpt(prompt, 1, prompt.ticks) for prompt in prompts]


@pytest.mark.parametrize("mutant", [others, shorter])
def test_another_prompt_is_seen(mutant):
    assert parted("film", "as drawn", shown=mutant) > 10 * TOLERANCE


def a_tick_early(batch):
    streams = {
        name: stream._replace(tick=np.where(stream.tick < 0, stream.tick - 1, stream.tick))
        for name, stream in (("planner", batch.planner), ("controller", batch.controller))
    }
    return batch._replace(**streams)


def at_tick_0(batch):
    return batch._replace(planner=batch.planner._replace(tick=np.maximum(batch.planner.tick, 0)))


def apart(batch):
    """As if the prompt were a segment of its own."""
    streams = {
        name: stream._replace(segment=np.where(stream.tick < 0, stream.segment + 100, stream.segment))
        for name, stream in (("planner", batch.planner), ("controller", batch.controller))
    }
    return batch._replace(**streams)


def its_plans_live_on(batch):
    """The first ticks of an episode, which have no plan yet, see the prompt's last."""
    plan, age = batch.plan.copy(), batch.age.copy()
    for b, segment in enumerate(batch.controller.segment):
        for number in range(1, segment.max() + 1):
            own = segment == number
            before, none = own & (batch.controller.tick[b] < 0), own & (batch.controller.tick[b] >= 0) & (plan[b] < 0)
            if before.any():
                plan[b, none], age[b, none] = plan[b, before][-1], 3
    return batch._replace(plan=plan, age=age)


@pytest.mark.parametrize("mutant", [a_tick_early, at_tick_0, apart, its_plans_live_on])
def test_a_prompt_read_otherwise_is_seen(mutant):
    assert parted("film", "as drawn", change=mutant) > 10 * TOLERANCE


@functools.cache
def one_row():
    """A row of two segments, each after a prompt."""
    made = toy("film")
    timeline, prompts = timeline_of("film", "as drawn"), prompts_of(made)
    lived, _, _ = acted(made, timeline, prompts)
    return made, packed(made, rows_of(made, lived, timeline, prompts, [[(2, (6, 20)), (1, (0, 12))]]))


def test_a_logit_depends_on_the_prompt_as_on_any_past_and_on_no_future():
    made, batch = one_row()
    found, used = influence(made, batch), batch.continuous.weight[0] > 0
    slots, plan = batch.continuous.slot[0][used], batch.plan[0]
    controller, planner = reached(batch.controller, CONTROLLER), reached(batch.planner, PLANNER)
    np.testing.assert_array_equal(found["controller"][used], controller[slots])
    seen = reached(batch.controller, CONTROLLER, CONTROLLER.layers - 1)
    through = [
        np.any([planner[batch.plan_slot[0, j]] for j in {*plan[seen[slot]].tolist()} - {-1}] or [np.zeros(len(planner))], axis=0)
        for slot in slots
    ]
    np.testing.assert_array_equal(found["planner"][used], np.array(through, bool))
    for name, stream in (("controller", batch.controller), ("planner", batch.planner)):
        before = stream.tick[0] < 0
        assert found[name][used][:, before].any()
        ticks, own = batch.controller.tick[0][slots][:, None], batch.controller.segment[0][slots][:, None]
        hidden = (stream.tick[0] > ticks) | (stream.segment[0] != own)
        assert not found[name][used][hidden].any()


def test_no_loss_trains_a_token_of_a_prompt():
    """But for the last token of its updates, whose plans the controller's lead-in reads."""
    made, batch = one_row()
    found = trained(made, batch, LossWeights())
    used = batch.continuous.weight[0] > 0
    np.testing.assert_array_equal(np.flatnonzero(found["controller"]), np.sort(batch.continuous.slot[0][used]))
    goals = batch.sub_goal.slot[0][batch.sub_goal.weight[0] > 0]
    assert (batch.controller.tick[0][batch.continuous.slot[0][used]] >= 0).all()
    assert (batch.planner.tick[0][goals] >= 0).all()
    assert np.isin(np.flatnonzero(found["planner"]), [*goals, *batch.plan_slot[0]]).all()
    assert found["planner"][goals].all()


def test_the_counter_agrees_with_the_tick_in_the_agent_and_in_the_row():
    """An episode's counter is its tick whatever was read before it, and a prompt's runs up to it."""
    made, batch = one_row()
    ids = made.schema.field_ids(made.layout.name)
    for reader in ("planner", "controller"):
        stream = getattr(batch, reader)
        at = stream.field[0] == ids[reader, "counter"]
        counter, tick = stream.value[0][at], stream.tick[0][at.any(axis=-1)]
        np.testing.assert_array_equal(counter, np.where(tick < 0, tick + made.ticks, tick))
        assert (tick < 0).any()
    _, _, state = acted(made, LATE, prompts_of(made))
    assert (state.tick, state.origin, state.history.ticks) == (made.ticks, 0, made.ticks)
    for cache, config in ((state.planner, PLANNER), (state.controller, CONTROLLER)):
        time, there = np.asarray(cache.place.time), np.asarray(cache.place.segment) > 0
        assert time[there].max() == (made.ticks - 1 if config is CONTROLLER else LATE.observed[-1])


def test_the_caches_hold_the_prompt_before_tick_0():
    made = toy("film")
    agent, prompts = agent_of(made, LATE), prompts_of(made)
    state = read_prompt(made.acting, made.params, agent.begin([0, 1, 2]), prompts, LATE, Letters())
    assert (state.tick, state.history.ticks, state.updates, list(state.plans)) == (0, 0, 0, [-1])
    time = np.asarray(state.planner.place.time)[np.asarray(state.planner.place.segment) > 0]
    assert sorted(set(time)) == [tick - TICKS for tick in LATE.observed if tick < TICKS]
    fresh = jax.tree.map(np.shape, agent.begin([0, 1, 2]).planner)
    assert jax.tree.map(np.shape, state.planner) == fresh


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda prompts, state: (prompts[:2], state), "2 prompts of"),
        (lambda prompts, state: ([*prompts[:2], excerpt(prompts[2], 0, 4)], state), r"of \[4, 11\] ticks"),
        (lambda prompts, state: (prompts, state._replace(tick=3)), "at tick 3"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(wrong, said):
    made = toy("film")
    prompts, state = wrong(prompts_of(made), agent_of(made, LATE).begin([0, 1, 2]))
    with pytest.raises(ValueError, match=said):
        read_prompt(made.acting, made.params, state, prompts, LATE, Letters())


def test_a_prompt_of_a_layout_with_other_caches_is_refused():
    made = toy("film")
    smaller = dataclasses.replace(made.network.config, text_slots=2)
    acting = made.acting._replace(network=made.network._replace(config=smaller))
    with pytest.raises(ValueError, match="a prompt of layout 'toy' before an episode of 'toy': their caches differ in size"):
        read_prompt(acting, made.params, agent_of(made, LATE).begin([0, 1, 2]), prompts_of(made), LATE, Letters())
