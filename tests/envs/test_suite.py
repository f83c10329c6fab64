"""The fast bodies are the suite's, and their experts are worth imitating."""

import numpy as np
import pytest
from dm_control import suite

from envs.suite import BODIES, make


@pytest.mark.parametrize("name", sorted(BODIES))
def test_same_as_the_suite(name):
    """Every observation and reward of a random episode is what dm_control's own environment gives."""
    body = BODIES[name]
    theirs = suite.load(body.domain, body.task, task_kwargs={"random": 3})
    ours = make(name)
    ours.reseed(3)
    rng = np.random.default_rng(0)
    for _ in range(2):  # the second episode shows that a reset leaves nothing behind
        expected, found = theirs.reset(), ours.reset()
        while not expected.last():
            for field, value in expected.observation.items():
                np.testing.assert_array_equal(found.observation[field], value.astype(np.float32))
            action = rng.uniform(-1, 1, ours.action_spec().shape)
            expected, found = theirs.step(action), ours.step(action)
            assert found.reward == pytest.approx(float(expected.reward), abs=1e-9)
            assert (found.last(), found.discount) == (expected.last(), expected.discount)


@pytest.mark.parametrize("name", sorted(BODIES))
def test_reseed_fixes_the_episode_and_not_the_history(name):
    def start(environment, seed):
        environment.reseed(seed)
        return np.concatenate(list(environment.reset().observation.values()))

    fresh, used = make(name, ticks=5), make(name, ticks=5)
    for seed in (9, 8):
        start(used, seed)
        for _ in range(3):
            used.step(np.ones(used.action_spec().shape))
    np.testing.assert_array_equal(start(fresh, 4), start(used, 4))
    assert np.any(start(used, 5) != start(used, 4))


def test_specs_hold_and_time_ends_an_episode():
    environment = make("reacher_easy", ticks=3)
    time_step = environment.reset()
    for tick in range(3):
        assert not time_step.last()
        for field, spec in environment.observation_spec().items():
            spec.validate(time_step.observation[field])
        time_step = environment.step(np.zeros(2, np.float32))
        assert time_step.last() == (tick == 2)
    assert time_step.discount == 1.0
    assert environment.step(np.zeros(2, np.float32)).first()


def test_refusals_name_the_value():
    with pytest.raises(ValueError, match="humanoid"):
        make("humanoid")
    with pytest.raises(ValueError, match="1001"):
        make("pendulum_swingup", ticks=1001)
    environment = make("pendulum_swingup")
    environment.reset()
    with pytest.raises(ValueError, match="not finite"):
        environment.step(np.array([np.nan]))
