"""A tick is the suite's own steps under one action, and an episode is a function of its seed."""

import numpy as np
import pytest
from dm_control import suite

from envs.suite_tasks import SETTINGS, make


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_same_as_the_suite(name):
    """Observations after each tick are dm_control's own, and its reward is the mean of theirs."""
    setting, ours = SETTINGS[name], make(name, 6)
    theirs = suite.load(setting.domain, setting.task, task_kwargs={"random": 3})
    assert ours.tick_s == pytest.approx(setting.repeat * theirs.control_timestep())
    ours.reseed(3)
    rng = np.random.default_rng(0)
    for _ in range(2):  # the second episode shows that a reset leaves nothing behind
        expected, found = theirs.reset(), ours.reset()
        for tick in range(6):
            for field, value in expected.observation.items():
                np.testing.assert_array_equal(found.observation[field], np.asarray(value, np.float32).reshape(-1))
            action = rng.uniform(-1, 1, ours.action_spec().shape)
            steps = [theirs.step(action) for _ in range(setting.repeat)]
            expected, found = steps[-1], ours.step(action)
            assert found.reward == pytest.approx(np.mean([step.reward for step in steps]), abs=1e-9)
            assert (found.last(), found.discount) == (tick == 5, 1.0)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_specs_hold_and_a_seed_fixes_the_episode_and_not_the_history(name):
    def start(environment, seed):
        environment.reseed(seed)
        time_step = environment.reset()
        assert time_step.observation.keys() == environment.observation_spec().keys()
        for field, spec in environment.observation_spec().items():
            spec.validate(time_step.observation[field])
        return np.concatenate([*time_step.observation.values(), environment.physics_state()])

    fresh, used = make(name, 5), make(name, 5)
    for seed in (9, 8):
        start(used, seed)
        for _ in range(3):
            used.step(np.ones(used.action_spec().shape))
    np.testing.assert_array_equal(start(fresh, 4), start(used, 4))
    assert np.any(start(used, 5) != start(used, 4))


def test_after_the_last_step_comes_a_first_one():
    environment = make("fish_upright", 1)
    environment.reset()
    assert environment.step(np.zeros(5)).last()
    assert environment.step(np.zeros(5)).first()


def test_refusals_name_the_value():
    with pytest.raises(ValueError, match="humanoid_run"):
        make("humanoid_run")
    with pytest.raises(ValueError, match="251"):
        make("walker_walk", 251)
    environment = make("walker_walk")
    environment.reset()
    with pytest.raises(ValueError, match="not finite"):
        environment.step(np.full(6, np.nan))
