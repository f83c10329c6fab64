"""The agent at its edges: what it refuses, what an intervention changes, and what its actions are a function of."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from envs.loop import run
from experiments.interventions import HeldAction, LateAction, intervention
from hierarchy.control.agent import Agent
from hierarchy.timeline import periodic, recorded, visible
from tests.envs.counter import Counter
from tests.hierarchy.corpus.corpus_toys import Letters
from tests.hierarchy.model.two_rate_toys import agent_of, live, observations, toy, world

TICKS = 24
RATIO, LATENCY = 4, 2


def shown(made, count=TICKS):
    episodes = world(made)
    return [observations(episodes, tick) for tick in range(count)]


def intervened(made, change, timeline=None):
    timeline = periodic(made.ticks, RATIO, LATENCY) if timeline is None else timeline
    return Agent(made.acting, made.params, timeline, horizon=made.ticks, tokenizer=Letters(), intervention=change)


def drive(agent, seen, seeds=(0, 1, 2)):
    """Actions and logits of every tick."""
    state, actions, logits = agent.begin(seeds), [], []
    for now in seen:
        action, state = agent.step(state, now)
        actions.append(action)
        logits.append(np.asarray(state.decoded.logits))
    return np.stack(actions), np.stack(logits)


def test_past_its_horizon_an_agent_says_so():
    made = toy("pooled")
    agent = Agent(made.acting, made.params, periodic(2, 1), horizon=2, tokenizer=Letters())
    seen = shown(made, 3)
    with pytest.raises(ValueError, match="tick 2 is past the agent's horizon of 2 ticks: give it a longer one"):
        drive(agent, seen)


def test_more_words_than_a_cache_holds_are_refused():
    made = toy("pooled")
    seen = shown(made, 2)
    seen[1] = seen[1] | {"say": np.array(["go", "a" * (made.network.config.text_slots + 1), "go"], object)}
    with pytest.raises(
        ValueError, match=r"the planner would hold \d+ words and patches in its window of 12 ticks, and text_slots is 36: raise"
    ):
        drive(intervened(made, None, periodic(made.ticks, 1)), seen)


@pytest.mark.parametrize("name", ["state", "counter", "say"])
def test_a_missing_field_is_named(name):
    made = toy("pooled")
    (seen,) = shown(made, 1)
    with pytest.raises(ValueError, match=f"'{name}'"):
        drive(agent_of(made, periodic(made.ticks, 1)), [{key: value for key, value in seen.items() if key != name}])


def test_an_observation_that_is_not_finite_is_named():
    made = toy("pooled")
    (seen,) = shown(made, 1)
    broken = seen["state"].copy()
    broken[1, 0] = np.nan
    with pytest.raises(ValueError, match=r"'state'.*finite|finite.*'state'"):
        drive(agent_of(made, periodic(made.ticks, 1)), [seen | {"state": broken}])


def test_the_loop_names_a_broken_observation_before_any_policy_sees_it():
    policy = HeldAction(Alphabet(), 1)
    with pytest.raises(ValueError, match="observation 'tick' is not finite at tick 3 of environment 1"):
        list(run([Counter(), Counter(broken=3)], policy, [0, 1]))


def test_actions_are_a_function_of_the_seed():
    made = toy("pooled")
    seen = shown(made, 12)
    agent = agent_of(made, periodic(made.ticks, RATIO))
    (one, _), (again, _), (other, _) = drive(agent, seen), drive(agent, seen), drive(agent, seen, (0, 9, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one[:, 1], other[:, 1])
    np.testing.assert_array_equal(one[:, [0, 2]], other[:, [0, 2]])


def test_episodes_of_a_batch_do_not_touch_each_other():
    made = toy("pooled", "argmax")
    seen = shown(made)
    other = [{name: np.stack([rows[0], rows[2], rows[0]]) for name, rows in now.items()} for now in seen]
    agent = agent_of(made, periodic(made.ticks, RATIO, LATENCY))
    (_, logits), (_, beside) = drive(agent, seen), drive(agent, other)
    np.testing.assert_allclose(logits[:, 0], beside[:, 0], atol=1e-5)
    np.testing.assert_allclose(logits[:, 2], beside[:, 1], atol=1e-5)
    assert np.abs(logits[:, 1] - beside[:, 1])[logits[:, 1] > -1e29].max() > 1e-3


class Kept:
    """An intervention that keeps what it was given and what it gave."""

    def __init__(self, change):
        self.change, self.given, self.made = change, [], []

    def __call__(self, j, plan):
        assert j == len(self.given)
        self.given.append(np.asarray(plan))
        self.made.append(np.asarray(self.change(j, plan) if self.change else plan))
        return jnp.asarray(self.made[-1])


def expected(control, given):
    """What each update's plan becomes, by the words of the docstring."""
    match control:
        case "zeroed":
            return [np.zeros_like(plan) for plan in given]
        case "frozen":
            return [given[0] for _ in given]
        case "shuffled":
            return [np.stack([plan[-1], *plan[:-1]]) for plan in given]
        case "stale":
            return [given[max(j - 1, 0)] for j in range(len(given))]


@pytest.mark.parametrize("control", ["zeroed", "frozen", "shuffled", "stale"])
def test_a_control_changes_plans_as_it_says_and_nothing_else(control):
    made = toy("pooled", "argmax")
    seen, timeline = shown(made), periodic(made.ticks, RATIO, LATENCY)
    plain, kept = Kept(None), Kept(intervention(control))
    _, logits = drive(intervened(made, plain), seen)
    _, changed = drive(intervened(made, kept), seen)
    for one, other in zip(plain.given, kept.given, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for found, wanted in zip(kept.made, expected(control, kept.given), strict=True):
        np.testing.assert_array_equal(found, wanted)
    # The controller differs at exactly those ticks whose visible plan differs, or whose window holds such a tick.
    different = [not np.allclose(a, b, atol=1e-6) for a, b in zip(kept.made, kept.given)]
    sees = visible(timeline, np.arange(TICKS))
    first = next(tick for tick in range(TICKS) if sees[tick] >= 0 and different[sees[tick]])
    legal = logits > -1e29
    np.testing.assert_allclose(logits[:first], changed[:first], atol=1e-6)
    assert np.abs(logits - changed)[first][legal[first]].max() > 1e-4


def test_an_untouched_plan_passes_through_an_intervention():
    made = toy("pooled", "argmax")
    seen = shown(made)
    (_, without), (_, through) = drive(intervened(made, None), seen), drive(intervened(made, lambda j, plan: plan), seen)
    np.testing.assert_allclose(without, through, atol=1e-5)


def test_random_plans_are_of_a_plans_size_and_stand_for_ever():
    plan = jnp.ones((5, 3, 16))
    change, again, other = intervention("random"), intervention("random"), intervention("random", seed=1)
    first = np.asarray(change(0, plan))
    np.testing.assert_allclose(np.mean(first**2, axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(first, change(1, plan * 2))
    np.testing.assert_array_equal(first, again(0, plan))
    assert not np.allclose(first, other(0, plan))
    assert len({row.tobytes() for row in first}) == 5


def test_controls_that_cannot_be_are_refused():
    assert intervention("none") is None
    with pytest.raises(ValueError, match="no control 'wrong': there are none, zeroed"):
        intervention("wrong")
    with pytest.raises(ValueError, match="step at least 2 together"):
        intervention("shuffled")(0, jnp.ones((1, 2, 3)))


class Alphabet:
    """A policy of one element that decides tick + 1 at every tick, and notes at which ticks it was asked."""

    def begin(self, seeds):
        self.asked = []
        return 0, len(seeds)

    def step(self, state, observations):
        tick, batch = state
        self.asked.append(tick)
        return np.full((batch, 2), (tick + 1) / 100, np.float32), (tick + 1, batch)


@pytest.mark.parametrize("ticks", [1, 2, 3, 7, 20])
def test_held_and_late_actions_tick_by_tick(ticks):
    total, decided = 12, [(tick + 1) / 100 for tick in range(12)]
    held = [decided[ticks * (tick // ticks)] for tick in range(total)]
    late = [decided[tick - ticks] if tick >= ticks else 0.0 for tick in range(total)]
    for policy, wanted in ((HeldAction, held), (LateAction, late)):
        inner = Alphabet()
        moments = list(run([Counter(total), Counter(total)], policy(inner, ticks), [0, 1]))
        np.testing.assert_allclose([moment.actions[0, 0] for moment in moments], wanted, rtol=1e-6)
        np.testing.assert_allclose([moment.actions[1, 1] for moment in moments], wanted, rtol=1e-6)
        # The policy sees every tick: what is held or late is its action alone.
        assert inner.asked == list(range(total))


def test_an_action_that_is_late_by_nothing_is_on_time():
    moments = list(run([Counter(5)], LateAction(Alphabet(), 0), [0]))
    np.testing.assert_allclose([moment.actions[0, 0] for moment in moments], [0.01, 0.02, 0.03, 0.04, 0.05], rtol=1e-6)


def test_before_any_plan_arrives_the_plans_do_not_matter():
    made = toy("pooled", "argmax")
    seen, late = shown(made, 12), recorded([0, 4], [9, 30])
    _, own = drive(intervened(made, None, late), seen)
    _, zeroed = drive(intervened(made, intervention("zeroed"), late), seen)
    np.testing.assert_allclose(own[:9], zeroed[:9], atol=1e-6)
    legal = own[9] > -1e29
    assert np.abs(own[9] - zeroed[9])[legal].max() > 1e-4


def test_an_agent_keeps_no_plan_that_no_tick_can_see():
    made = toy("pooled")
    episodes = [dataclasses.replace(episode) for episode in world(made)]
    _, _, state = live(agent_of(made, periodic(made.ticks, 1, 5)), episodes)
    assert sorted(state.plans) == [-1, *range(made.ticks - 6, made.ticks)]


def test_what_was_executed_is_what_the_next_tick_reads():
    """Told that another action was executed, the agent reads that one, in its history and in its logits."""
    made = toy("text", "argmax")
    seen, agent = shown(made, 4), agent_of(made, periodic(made.ticks, 2))

    def drive_executing(change):
        state, logits, action = agent.begin([0, 1, 2]), [], None
        for tick, now in enumerate(seen):
            action, state = agent.step(state, now, change(action) if tick == 3 else None)
            logits.append(np.asarray(state.decoded.logits))
        return np.stack(logits)

    changes = np.copy, lambda action: (action + 1) % 128, lambda action: np.full_like(action, -1)
    same, other, nothing = (drive_executing(change) for change in changes)
    np.testing.assert_array_equal(same[:3], other[:3])
    assert np.abs(same[3] - other[3]).max() > 1e-3
    assert np.abs(nothing[3] - other[3]).max() > 1e-3
    np.testing.assert_array_equal(same, drive(agent, seen)[1])
