"""I3, I4, I6 and I8: the planner runs once an update, nothing is compiled twice, no action is illegal, ticks agree."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from hierarchy.batch import Batch
from hierarchy.control.acting import compile_acting
from hierarchy.control.agent import Agent
from hierarchy.corpus.codecs import decode, encode
from hierarchy.corpus.packing import pack
from hierarchy.corpus.segment import encode_episode
from hierarchy.episode import Episode
from hierarchy.layout import CONTINUOUS_START, Bounded, Continuous, Discrete, Field, Layout, Piece, Schema
from hierarchy.model import stepwise
from hierarchy.model.network import build
from hierarchy.timeline import Timeline, periodic, recorded
from hierarchy.training.learner import LearnerConfig, initial_state, make_step
from hierarchy.training.losses import LossWeights
from tests.hierarchy.corpus.corpus_toys import Letters
from tests.hierarchy.model.two_rate_toys import ALONE, Toy, agent_of, live, observations, packed, segments, toy, windows, world

TIMELINES = [
    periodic(64, 1),
    periodic(64, 4, 2, 3),
    periodic(64, 4, 11),
    periodic(64, 16, wait_for_first=True),
    recorded([], []),
    recorded([0, 5, 6, 20], [9, 30, 7, 21]),
]


class Spy:
    """Counts and keeps the arguments of every call."""

    def __init__(self, function):
        self.function, self.calls = function, []

    def __call__(self, *arguments):
        self.calls.append(arguments)
        return self.function(*arguments)


class Told(NamedTuple):
    """What a call of the tick was told, as its batch sees it: tokens [B, M, K], and the tick."""

    value: np.ndarray
    field: np.ndarray
    now: int


def told(made: Toy, call: tuple) -> Told:
    rows = [stepwise.unpack_tick(row, made.schema.controller_atoms) for row in call[2]]
    assert len({int(row[2]) for row in rows}) == 1
    return Told(np.stack([row[0].value for row in rows]), np.stack([row[0].field for row in rows]), int(rows[0][2]))


def spied(made: Toy) -> tuple[Toy, Spy, Spy]:
    update, tick = Spy(made.acting.update), Spy(made.acting.tick)
    return made._replace(acting=made.acting._replace(update=update, tick=tick)), update, tick


@pytest.mark.parametrize("kind", ["pooled", "pictures"])
@pytest.mark.parametrize("timeline", TIMELINES)
def test_the_planner_runs_once_an_update(timeline, kind):
    made, update, tick = spied(toy(kind))
    _, _, state = live(agent_of(made, timeline), world(made))
    assert [int(call[-1]) for call in update.calls] == timeline.observed.tolist()
    assert [int(told(made, call).now) for call in tick.calls] == list(range(64))
    assert state.updates == len(timeline.observed)


def test_a_planner_run_at_every_tick_is_seen():
    """A clock that plans at each tick and shows every fourth plan acts alike; only the count betrays it."""
    made, update, _ = spied(toy("pooled"))
    wanted = periodic(64, 4)
    every = recorded(np.arange(64), np.where(np.arange(64) % 4 == 0, np.arange(64), 10_000))
    live(agent_of(made, every), world(made))
    assert len(update.calls) > len(wanted.observed)


@pytest.mark.parametrize("timeline", TIMELINES)
def test_what_the_planner_follows_it_reads_once_a_tick_and_only_at_its_updates(timeline):
    made, update, _ = spied(toy("pictures"))
    follow = Spy(made.acting.follow)
    made = made._replace(acting=made.acting._replace(follow=follow))
    _, _, state = live(agent_of(made, timeline), world(made))
    read = [int(call[3]) + i for call in follow.calls for i in range(int(call[4]))]
    updates = timeline.observed[timeline.observed < made.ticks].tolist()
    assert sorted(read + updates) == list(range(updates[-1] + 1 if updates else 0))
    assert len(update.calls) == state.updates == len(updates)


def test_a_tick_is_given_its_own_weights_and_needs_them_all():
    made, _, tick = spied(toy("pooled"))
    agent = agent_of(made, TIMELINES[1])
    fresh = agent.begin([0, 1, 2])
    agent.step(agent.begin([0, 1, 2]), observations(world(made), 0))
    params, _, *rest = tick.calls[0]
    assert 0 < len(params) < len(made.params)
    jax.eval_shape(made.acting.tick.function, params, fresh.controller, *rest)
    for module in params:
        lacking = {name: leaves for name, leaves in params.items() if name != module}
        with pytest.raises(ValueError, match="parameter"):
            jax.eval_shape(made.acting.tick.function, lacking, fresh.controller, *rest)


@pytest.mark.parametrize("kind", ["pooled", "pictures"])
def test_one_compiled_program_for_every_timeline_and_episode(kind):
    made = toy(kind)
    for number, timeline in enumerate(TIMELINES):
        live(agent_of(made, timeline), world(made, 10 * number))
    used = ("update", "tick", "no_plan") + (("follow", "look") if kind == "pictures" else ())
    assert {name: getattr(made.acting, name)._cache_size() for name in used} == dict.fromkeys(used, 1)


def test_a_second_program_is_seen():
    """What the count of programs is for: another batch size compiles again."""
    made = toy("film")
    agent = agent_of(made, TIMELINES[1])
    before = made.acting.tick._cache_size()
    agent.step(agent.begin([0]), {name: each[:1] for name, each in observations(world(made), 0).items()})
    assert made.acting.tick._cache_size() == before + 1


def test_one_compiled_step_for_every_batch():
    made = toy("pooled")
    config = LearnerConfig(steps=4, planner_steps=0)
    step, state = make_step(made.network, config, LossWeights()), initial_state(made.network, config)
    encoded = [encode_episode(made.schema, made.layout.name, episode, Letters()) for episode in world(made)]
    rng, figures = np.random.default_rng(0), []
    for ratios in ((1,), (4, 16), (3, 32)):
        packing = dataclasses.replace(made.packing, ratios=ratios, latencies=(0, 9), segment_ticks=20)
        batch, drawn = pack(rng, lambda rng: encoded[rng.integers(3)], made.schema, packing)
        state, metrics = step(state, batch)
        figures.append((drawn["episodes"], float(metrics["loss"])))
        assert bool(metrics["finite"])
    assert len(set(figures)) == 3
    assert step._cache_size() == 1


def few() -> Schema:
    """Actions of fewer ids than their heads have classes, beside others that use them all."""
    state = (Field("state", Continuous(), 2),)
    bounded = Field("action", Bounded((-0.5, 2.0), (0.25, 7.0), bins=40), 2)
    return Schema(
        (
            Layout("five", (), state, Field("action", Discrete(5), 2)),
            Layout("bounded", (), state, bounded),
            Layout("many", (), state, Field("action", Discrete(60))),
        )
    )


def test_ten_thousand_pieces_are_the_tokenizers_own():
    said = Field("previous_action", Piece(), 4)
    layout = Layout("text", (), (said,), Field("words", Piece(), 4), pooled=False)
    schema, batch, ticks = Schema((layout, few()["many"]), text_pieces=30), 320, 8
    network = build(ALONE, schema)
    acting = compile_acting(network, schema, "text", "sample")
    agent = Agent(acting, network.init(jax.random.key(3)), recorded([], []), horizon=ticks)
    state, pieces = agent.begin(range(batch)), []
    for _ in range(ticks):
        action, state = agent.step(state, {})
        pieces.append(action)
    pieces = np.concatenate(pieces)
    assert pieces.size > 10_000
    assert np.array_equal(np.unique(pieces), np.arange(30))


@functools.cache
def few_network():
    return build(ALONE, few())


def sampled(name: str) -> tuple[np.ndarray, np.ndarray]:
    """More than ten thousand ids and actions [N, 2] of random weights."""
    schema, batch, ticks = few(), 320, 32
    network = few_network()
    # Compiled anew: a mutant must not act with what was compiled before it.
    acting = compile_acting.__wrapped__(network, schema, name, "sample")
    agent = Agent(acting, network.init(jax.random.key(3)), recorded([], []), horizon=ticks)
    state, rng = agent.begin(range(batch)), np.random.default_rng(0)
    ids, actions = [], []
    for _ in range(ticks):
        action, state = agent.step(state, {"state": rng.normal(size=(batch, 2)) * 10})
        ids.append(np.asarray(state.decoded.ids))
        actions.append(action)
    return np.concatenate(ids), np.concatenate(actions)


def legal(name: str, ids: np.ndarray, actions: np.ndarray) -> bool:
    """Whether every id is one of the action's own and every action inside its spec."""
    codec = few()[name].action.codec
    first, count = (0, 5) if name == "five" else (CONTINUOUS_START, 40)
    low, high = (0, 4) if name == "five" else (np.array(codec.low), np.array(codec.high))
    return bool(((ids >= first) & (ids < first + count)).all() and ((actions >= low) & (actions <= high)).all())


@pytest.mark.parametrize("name", ["five", "bounded"])
def test_ten_thousand_samples_are_legal(name):
    ids, actions = sampled(name)
    codec = few()[name].action.codec
    assert len(ids) > 10_000
    assert legal(name, ids, actions)
    assert len(np.unique(ids)) == (5 if name == "five" else 40)
    np.testing.assert_array_equal(encode(codec, actions), ids)
    np.testing.assert_allclose(decode(codec, ids), actions, atol=1e-6)


@pytest.mark.parametrize("name", ["five", "bounded"])
def test_a_head_without_restriction_is_seen(name, monkeypatch):
    monkeypatch.setattr(stepwise, "MASKED", 0.0)
    assert not legal(name, *sampled(name))


def test_the_mean_is_an_action_inside_its_spec():
    schema, network = few(), few_network()
    agent = Agent(
        compile_acting(network, schema, "bounded", "mean"), network.init(jax.random.key(3)), recorded([], []), horizon=9
    )
    state, codec = agent.begin(range(16)), schema["bounded"].action.codec
    for _ in range(9):
        action, state = agent.step(state, {"state": np.ones((16, 2))})
        logits = np.asarray(state.decoded.logits, np.float64)
        share = np.exp(logits - logits.max(axis=-1, keepdims=True))
        share /= share.sum(axis=-1, keepdims=True)
        centres = decode(codec, np.repeat(CONTINUOUS_START + np.arange(40)[:, None], 2, axis=1))
        np.testing.assert_allclose(action, np.einsum("bac,ca->ba", share[:, :, :40], centres), atol=1e-5)
        assert (share[:, :, 40:] == 0).all()


def counted(made: Toy, reader: str, value: np.ndarray, field: np.ndarray) -> np.ndarray:
    """The tick that each token's counter says, for tokens that have one; -1 for the rest."""
    mine = field == made.schema.field_ids(made.layout.name)[reader, "counter"]
    return np.where(mine.any(axis=-1), np.where(mine, value, -1).max(axis=-1), -1)


def agrees(said: np.ndarray, tick: np.ndarray | int) -> bool:
    """Whether every row has a counter, and every counter says its token's tick."""
    return bool((said >= 0).any(axis=-1).all() and np.where(said >= 0, said == tick, True).all())


def acted_in_step(made: Toy, timeline: Timeline, episodes: list) -> bool:
    """Whether both readers' counters agree with the agent's tick, in every call."""
    made, update, tick = spied(made)
    live(agent_of(made, timeline), episodes)
    calls = [("planner", Told(np.asarray(call[2].value), np.asarray(call[2].field), call[4])) for call in update.calls]
    calls += [("controller", told(made, call)) for call in tick.calls]
    return all(agrees(counted(made, reader, call.value, call.field), call.now) for reader, call in calls)


@pytest.mark.parametrize("kind", ["pooled", "scalars", "text", "captions"])
def test_the_tick_counter_agrees_in_the_agent(kind):
    made = toy(kind)
    assert acted_in_step(made, periodic(made.ticks, 4, 2, 1), world(made))


def test_an_observation_out_of_step_is_seen():
    made = toy("pooled")
    late = [a_tick_back(episode) for episode in world(made)]
    assert not acted_in_step(made, periodic(made.ticks, 4, 2, 1), late)


def a_tick_back(episode: Episode) -> Episode:
    """The episode with the first observation given twice."""
    late = {name: np.concatenate([each[:1], each[:-1]]) for name, each in episode.observation.items()}
    return dataclasses.replace(episode, observation=late)


def packed_in_step(made: Toy, batch: Batch) -> bool:
    """Whether counters and ticks agree in both streams, and each plan observed `age` ticks before its reader's counter."""
    streams = {"planner": batch.planner, "controller": batch.controller}
    said = {reader: counted(made, reader, stream.value, stream.field) for reader, stream in streams.items()}
    seeing = np.argwhere((said["controller"] >= 0) & (batch.plan >= 0))
    slots = [(b, n, batch.plan_slot[b, batch.plan[b, n]]) for b, n in seeing]
    return (
        all(agrees(said[reader], stream.tick) for reader, stream in streams.items())
        and all(batch.planner.tick[b, slot] == said["controller"][b, n] - batch.age[b, n] for b, n, slot in slots)
        and all(batch.planner.segment[b, slot] == batch.controller.segment[b, n] for b, n, slot in slots)
    )


def in_batch(made: Toy) -> Batch:
    timeline = periodic(made.ticks, 4, 2, 1)
    return packed(made, segments(made, world(made), timeline, windows(made.ticks)))


@pytest.mark.parametrize("kind", ["pooled", "scalars", "text", "captions", "pictures"])
def test_the_tick_counter_agrees_in_the_batch(kind):
    made = toy(kind)
    assert packed_in_step(made, in_batch(made))


def planner_a_tick_later(batch: Batch) -> Batch:
    return batch._replace(planner=batch.planner._replace(tick=batch.planner.tick + 1))


def controller_a_tick_later(batch: Batch) -> Batch:
    return batch._replace(controller=batch.controller._replace(tick=batch.controller.tick + 1))


def a_plan_too_new(batch: Batch) -> Batch:
    return batch._replace(plan=np.where(batch.plan >= 0, np.minimum(batch.plan + 1, batch.plan.max()), -1))


def a_plan_too_old_by_its_age(batch: Batch) -> Batch:
    return batch._replace(age=np.where(batch.age >= 0, batch.age + 1, -1))


@pytest.mark.parametrize("mutant", [planner_a_tick_later, controller_a_tick_later, a_plan_too_new, a_plan_too_old_by_its_age])
def test_a_batch_out_of_step_is_seen(mutant):
    made = toy("pooled")
    assert not packed_in_step(made, mutant(in_batch(made)))


def test_after_a_roll_over_the_caches_hold_the_newest_ticks():
    made = toy("pooled")
    _, _, state = live(agent_of(made, periodic(64, 1)), world(made))
    fast, slow = np.asarray(state.controller.place.time), np.asarray(state.planner.place.time)
    for times, window in ((fast, 5), (slow, 12)):
        for row in times:
            assert set(range(64 - window, 64)) <= set(row.tolist())
