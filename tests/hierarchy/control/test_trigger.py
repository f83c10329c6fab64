"""Updates by need: what was triggered replays in the parallel pass, and a trigger asks when its score says so, and only then."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from hierarchy.control.acting import compile_acting
from hierarchy.control.agent import Agent
from hierarchy.control.trigger import (
    Evidence,
    Trigger,
    TriggeredAgent,
    action_entropy,
    at_random,
    calibrate,
    lifetime_spent,
    plan_age,
    prediction_error,
    timelines,
)
from hierarchy.corpus.segment import cut, encode_episode
from hierarchy.episode import Episode
from hierarchy.layout import LIVES, Bounded, Continuous, Discrete, Field, Layout
from hierarchy.model.network import build
from hierarchy.model.parallel import forward
from hierarchy.model.stepwise import Action
from hierarchy.timeline import Timeline, periodic
from tests.hierarchy.corpus.corpus_toys import Letters, toy_schema
from tests.hierarchy.model.two_rate_toys import (
    MODEL,
    Toy,
    agent_of,
    bearing,
    budgets,
    disagreement,
    live,
    observations,
    packed,
    toy,
    windows,
    world,
)

TICKS, LATENCY, TOLERANCE = 48, 2, 1e-5
READ = Field("counter", Discrete(1024)), Field("number", Discrete(64)), Field("state", Continuous(), 2, frames=3, stride=4)
ACTION = Field("action", Bounded((-2.0, -2.0), (3.0, 3.0), 512), 2)
LAYOUT = Layout(
    "toy",
    planner=READ,
    controller=(*READ[:2], dataclasses.replace(ACTION, name="previous_action")),
    action=ACTION,
    sub_goal=Field("goal", Discrete(1024)),
    predicted=(Field("chime", Discrete(3)), Field("state", Bounded((-9.0, -9.0), (9.0, 9.0), bins=16), 2)),
    lifetime=True,
)
SCORES = {"entropy": action_entropy, "prediction": prediction_error, "lifetime": lifetime_spent, "random": at_random}


@functools.cache
def needy() -> Toy:
    schema = toy_schema(LAYOUT)
    network = build(MODEL, schema)
    # The action's head starts near zero, and every tick would have the same entropy.
    params = network.init(jax.random.key(1))
    params = {
        name: jax.tree.map(lambda x: 40.0 * x, leaves) if "continuous" in name else leaves for name, leaves in params.items()
    }
    acting = compile_acting(network, schema, LAYOUT.name, "sample")
    return Toy(
        schema, TICKS, network, params, acting, jax.jit(functools.partial(forward, network)), budgets(schema, MODEL, TICKS)
    )


@functools.cache
def episodes() -> list[Episode]:
    """Three episodes whose sub-goals stand for a while."""
    held = [np.arange(TICKS) // (5 + 3 * i) for i in range(3)]
    return [dataclasses.replace(each, privileged={"goal": goal}) for each, goal in zip(world(needy()), held)]


class Lived(NamedTuple):
    """What a triggered agent did: episodes with its actions, logits [B, T, A, classes], predictions [B, T, classes], each tick's
    newest lifetime [B, T, bins], and the timelines."""

    episodes: list[Episode]
    logits: np.ndarray
    following: np.ndarray
    lifetime: np.ndarray
    lines: list[Timeline]


def lived(trigger: Trigger, latency: int = LATENCY, made: Toy | None = None, among: slice = slice(None)) -> Lived:
    made = needy() if made is None else made
    own = (episodes() if made is needy() else world(made))[among]
    agent = TriggeredAgent(made.acting, made.params, trigger, latency=latency, tokenizer=Letters())
    state, kept = agent.begin([episode.seed for episode in own]), []
    for tick in range(made.ticks):
        action, state = agent.step(state, observations(own, tick))
        newest = np.zeros(0) if state.newest.lifetime is None else state.newest.lifetime
        following = np.zeros(0) if state.agent.decoded.following is None else state.agent.decoded.following
        kept.append([np.asarray(each) for each in (action, state.agent.decoded.logits, following, newest)])
    actions, logits, following, newest = (np.stack(each, axis=1) if each[0].size else None for each in zip(*kept))
    acted = [dataclasses.replace(e, action=a.copy(), label=a.copy()) for e, a in zip(own, actions)]
    return Lived(acted, logits, following, newest, timelines(state, latency))


@functools.cache
def lived_by(name: str) -> Lived:
    """A run whose updates are asked for at the highest fifth of the scores that ticks have where nothing asks."""
    seen = []

    def watched(evidence: Evidence) -> np.ndarray:
        seen.append(SCORES[name](evidence))
        return seen[-1]

    lived(Trigger(watched, np.inf, maximum_age=12))
    return lived(Trigger(SCORES[name], float(np.quantile(seen, 0.8)), minimum_gap=2, maximum_age=20))


def parts_of(run: Lived, lines: list[Timeline]):
    made, rng = needy(), np.random.default_rng(0)
    encoded = [encode_episode(made.schema, "toy", episode, Letters()) for episode in run.episodes]
    return [[cut(rng, encoded[e], lines[e], window, made.packing) for e, window in row] for row in windows(TICKS)]


def parted(run: Lived, lines: list[Timeline]) -> float:
    parts = parts_of(run, lines)
    return disagreement(needy(), run.logits, windows(TICKS), parts, packed(needy(), parts))


@pytest.mark.parametrize("score", SCORES)
def test_what_was_triggered_replays_in_the_parallel_pass(score):
    run = lived_by(score)
    counts = [len(line.observed) for line in run.lines]
    assert len({tuple(line.observed.tolist()) for line in run.lines}) > 1
    assert min(counts) >= 3
    assert max(counts) < TICKS // 2
    assert parted(run, run.lines) <= TOLERANCE


def test_another_episodes_updates_are_seen():
    run = lived_by("random")
    assert parted(run, [run.lines[i] for i in (1, 2, 0)]) > 10 * TOLERANCE
    late = [line._replace(ready=line.ready + 1) for line in run.lines]
    assert parted(run, late) > 10 * TOLERANCE


def test_both_executions_predict_the_same_of_the_next_tick_and_of_lifetimes():
    run, made = lived_by("random"), needy()
    parts = parts_of(run, run.lines)
    logits = made.forward(made.params, packed(made, parts))
    classes = np.split(np.arange(3 + 16 + 16), [3, 19])
    compared = 0
    for b, (places, row) in enumerate(zip(windows(TICKS), parts)):
        following, lifetime = np.asarray(logits.following[b]), np.asarray(logits.lifetime[b])
        for (episode, _), segment in zip(places, row):
            ticks, count = bearing(made, segment), len(segment.following.slot)
            assert count == 3 * len(ticks)
            found, following = following[:count].reshape(-1, 3, 35), following[count:]
            for scalar, own in enumerate(classes):
                expected = run.following[episode, ticks][:, own]
                np.testing.assert_allclose(found[:, scalar, own], expected, atol=TOLERANCE * max(1, np.abs(expected).max()))
                assert (np.delete(found[:, scalar], own, axis=1) < -1e29).all()
            count = len(segment.lifetime.slot)
            observed = segment.planner.tick[segment.lifetime.slot]
            np.testing.assert_allclose(lifetime[:count], run.lifetime[episode, observed], atol=1e-4)
            lifetime, compared = lifetime[count:], compared + count
    assert compared > 10


@pytest.mark.parametrize(("ratio", "latency"), [(3, 2), (7, 0)])
def test_an_age_is_the_fixed_period(ratio, latency):
    run = lived(Trigger(plan_age, ratio), latency)
    _, logits, _ = live(agent_of(needy(), periodic(TICKS, ratio, latency)), episodes())
    np.testing.assert_array_equal(run.logits, logits)
    for line in run.lines:
        assert line.observed.tolist() == list(range(0, TICKS, ratio))
        assert (line.ready - line.observed == latency).all()


@pytest.mark.long
def test_words_are_heard_one_episode_at_a_time():
    made = toy("film")
    trigger = Trigger(at_random, 0.7)
    with pytest.raises(ValueError, match=r"hint, say, chime depends on its last update, and 3 episodes .* step one"):
        lived(trigger, made=made)
    run = lived(trigger, made=made, among=slice(0, 1))
    encoded = encode_episode(made.schema, "toy", run.episodes[0], Letters())
    rows = [[(0, (0, made.ticks))]]
    parts = [[cut(np.random.default_rng(0), encoded, run.lines[0], (0, made.ticks), made.packing)]]
    batch = packed(made, parts + [[]] * (made.packing.rows - 1))
    assert disagreement(made, run.logits, rows, parts, batch) <= TOLERANCE


def scripted_score(wanted):
    """A score of 1 at the wanted ticks, the same for all episodes."""
    return lambda evidence: np.full(len(evidence.seeds), float(evidence.tick in wanted))


@pytest.mark.parametrize(
    ("gap", "oldest", "latency", "wanted", "expected"),
    [
        (1, None, 0, {5, 6, 20}, [0, 5, 6, 20]),
        (4, None, 0, {5, 6, 20}, [0, 5, 9, 20]),
        (1, 10, 0, {5}, [0, 5, 15, 25, 35, 45]),
        # What is said under the old plan, while the new one is on its way, is not held against the new one.
        (1, None, 3, {4, 6, 7, 8, 30}, [0, 4, 8, 30]),
        (1, None, 0, set(), [0]),
    ],
)
def test_a_trigger_asks_when_its_score_says_so(gap, oldest, latency, wanted, expected):
    run = lived(Trigger(scripted_score(wanted), 0.5, gap, oldest), latency)
    assert all(line.observed.tolist() == expected for line in run.lines)


def evidence(logits=None, following=None, lifetime=None, since=None, chime=0, state=(0.0, 0.0)) -> Evidence:
    observed = {"chime": np.array([chime]), "state": np.array([state])}
    decoded = Action(None, None, logits, following)
    return Evidence(needy().acting, 7, np.array([3]), np.array([since or 0]), observed, decoded, lifetime)


def test_entropy_is_that_of_the_legal_actions():
    logits = np.array([[[0.0] * 4 + [-1e30] * 4, [50.0] + [0.0] * 7]])
    assert action_entropy(evidence(logits)) == pytest.approx(np.log(4), abs=1e-6)


def test_the_error_of_a_prediction_is_the_surprise_of_what_came():
    following = np.zeros((1, 35))
    following[0, 2] = 9.0
    flat = 2 * np.log(16)
    assert prediction_error(evidence(following=following, chime=2)) == pytest.approx(flat, abs=1e-3)
    assert prediction_error(evidence(following=following, chime=1)) == pytest.approx(flat + 9.0, abs=1e-3)


def test_a_lifetime_is_spent_bin_by_bin():
    certain = np.full((1, len(LIVES)), -40.0)
    certain[0, LIVES.index(12)] = 0.0
    spent = [float(lifetime_spent(evidence(lifetime=certain, since=since))[0]) for since in (3, 11, 12, 13, 15, 40)]
    np.testing.assert_allclose(spent, [0, 0, 0.25, 0.5, 1, 1], atol=1e-6)
    never = np.full((1, len(LIVES)), -40.0)
    never[0, -1] = 0.0
    assert lifetime_spent(evidence(lifetime=never, since=500))[0] < 1e-6


def test_chance_follows_from_seed_and_tick_alone():
    run, again = lived(Trigger(at_random, 0.9), 0), lived(Trigger(at_random, 0.9), 0)
    assert [line.observed.tolist() for line in run.lines] == [line.observed.tolist() for line in again.lines]


def test_calibration_spends_the_budget_and_no_more():
    rng = np.random.default_rng(0)
    scores = rng.random((40, 100))

    def spend(trigger: Trigger) -> float:
        asked = scores >= trigger.threshold
        if trigger.maximum_age is not None:
            asked |= np.arange(100) % trigger.maximum_age == 0
        return float(asked.sum(axis=1).mean())

    found = calibrate(Trigger(at_random, 0.0), spend, 12.0, 0.0, 1.0, 100)
    assert found.maximum_age is None
    assert 0.95 * 12 < spend(found) <= 12
    scores = np.round(scores)
    filled = calibrate(Trigger(at_random, 0.0), spend, 12.0, -0.5, 1.5, 100)
    assert filled.threshold > 1
    assert filled.maximum_age == 9
    assert spend(filled) == 12
    with pytest.raises(ValueError, match="the budget is 12"):
        calibrate(Trigger(at_random, 0.0), spend, 12.0, 0.0, 0.4, 100)


def test_what_cannot_be_is_refused():
    network = needy().network._replace(config=dataclasses.replace(MODEL, planner=None))
    without = needy().acting._replace(network=network)
    with pytest.raises(ValueError, match="minimum_gap 5 and maximum_age 3"):
        Trigger(plan_age, 1, 5, 3)
    with pytest.raises(ValueError, match="no planner"):
        TriggeredAgent(without, {}, Trigger(plan_age, 1))
    with pytest.raises(ValueError, match="predicts nothing of the next tick"):
        prediction_error(evidence())
    with pytest.raises(ValueError, match="predicts no lifetimes"):
        lifetime_spent(evidence())


def test_a_triggered_tick_is_the_program_of_any_other():
    """I4: who asks for updates does not change what is compiled."""
    made = needy()
    agent = Agent(made.acting, made.params, periodic(made.ticks, 4), horizon=made.ticks, tokenizer=Letters())
    agent.step(agent.begin([0, 1, 2]), observations(episodes(), 0))
    before = made.acting.tick._cache_size()
    lived(Trigger(SCORES["entropy"], 4.0))
    assert made.acting.tick._cache_size() == before
