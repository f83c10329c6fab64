"""A world in a process of its own shows what it would show here, and goes on by its own clock when nobody answers."""

import functools
import time

import dm_env
import numpy as np
import pytest

from hierarchy.control.driver import Driven
from tests.envs.counter import Counter


class Adding(Counter):
    """A counter whose reward is its action's first element, and whose resets follow their seed."""

    seed = 0

    def safe_action(self) -> np.ndarray:
        return np.array([0.5, -0.5], np.float32)


def make(ticks: int = 9) -> dm_env.Environment:
    environment = Adding(ticks, falls=True)
    environment.reset()
    return environment


@pytest.fixture
def driven():
    made = []

    def start(period_s: float, ticks: int = 9) -> Driven:
        made.append(Driven(functools.partial(make, ticks), period_s))
        return made[-1]

    yield start
    for each in made:
        each.close()


def same(one: dm_env.TimeStep, other: dm_env.TimeStep) -> None:
    assert one.step_type == other.step_type
    assert (one.reward, one.discount) == pytest.approx((other.reward, other.discount)) or one.reward is other.reward is None
    for name, value in one.observation.items():
        np.testing.assert_array_equal(value, other.observation[name])


def test_a_world_that_waits_for_its_actions_is_the_world_itself(driven):
    there, here = driven(0.0), make()
    assert there.tick_s == here.tick_s
    assert there.observation_spec() == here.observation_spec()
    for seed in (3, 4):
        for environment in (there, here):
            environment.reseed(seed)
        same(there.reset(), here.reset())
        assert there.privileged() == here.privileged() == {"before": [0]}
        for tick in range(9):
            action = np.array([tick / 10, -1], np.float32)
            same(there.step(action), here.step(action))
            assert there.privileged() == here.privileged()
        # After the last step the next is a reset, whatever the action.
        assert there.step(action).first()
    assert there.held == 0
    np.testing.assert_array_equal(there.safe_action(), [0.5, -0.5])


def test_a_world_with_a_clock_holds_the_action_and_goes_on(driven):
    period_s, action = 0.02, np.array([0.25, 0], np.float32)
    there = driven(period_s, ticks=100_000)
    there.reseed(0)
    there.reset()
    step = there.step(action)
    ticks, due, at = [int(step.observation["tick"][0])], [there.due], [there.stamped]
    assert step.reward == pytest.approx(0.25 * ticks[0])
    while there._seen.read()[1]["number"] < ticks[0] + 10:
        time.sleep(period_s)
    for _ in range(4):
        step = there.step(action)
        ticks.append(int(step.observation["tick"][0]))
        due.append(there.due)
        at.append(there.stamped)
        # The world moved on the old action while nobody answered, and the rewards of that are here.
        assert step.reward == pytest.approx(0.25 * (ticks[-1] - ticks[-2]))
    assert ticks[1] >= ticks[0] + 10
    assert there.held >= ticks[-1] - len(ticks)
    assert (np.diff(at) > 0).all()
    # Deadlines go with the world's clock: one that was slept through makes none of the later ones late.
    np.testing.assert_allclose(np.diff(due), np.diff(ticks) * period_s * 1e9, atol=2)
    assert all(made >= when - 0.1 * period_s * 1e9 - 2 for made, when in zip(at, due))


def test_an_episode_can_be_left_in_the_middle(driven):
    there = driven(0.01, ticks=1000)
    there.reseed(1)
    there.reset()
    there.step(np.zeros(2, np.float32))
    there.reseed(2)
    step = there.reset()
    assert step.first()
    np.testing.assert_array_equal(step.observation["tick"], [0, 2])


def test_it_ends_with_its_world(driven):
    there = driven(0.002, ticks=5)
    there.reset()
    step = there.step(np.ones(2, np.float32))
    while not step.last():
        step = there.step(np.ones(2, np.float32))
    assert step.discount == 0.0
    assert there.reset().first()
