"""The planning copies are the suite's worlds, their rewards order states as the suite's do, and the experts do the tasks."""

import mujoco
import numpy as np
import pytest

from envs.recording import record
from envs.suite_experts import episode_return
from envs.suite_planning import PLANNED, PlanningExpert, planning_model
from envs.suite_tasks import SETTINGS, make


@pytest.mark.parametrize("name", sorted(PLANNED))
def test_the_planning_copy_is_the_suites_world_with_sensors(name):
    """At the world's own step, the copy goes through the very states of the suite."""
    world = make(name)
    world.reseed(1)
    world.reset()
    copy = planning_model(SETTINGS[name].domain, PLANNED[name].sensors)
    data = mujoco.MjData(copy)
    mujoco.mj_setState(copy, data, world.physics_state(), mujoco.mjtState.mjSTATE_FULLPHYSICS)
    mujoco.mj_forward(copy, data)
    assert copy.nsensor == world.model.nsensor + len(PLANNED[name].sensors)
    action = np.random.default_rng(0).uniform(-1, 1, copy.nu)
    data.ctrl[:] = action
    for _ in range(round(world.tick_s / copy.opt.timestep)):
        mujoco.mj_step(copy, data)
    world.step(action)
    np.testing.assert_allclose(data.qpos, world.data.qpos, atol=1e-6)
    np.testing.assert_allclose(data.qvel, world.data.qvel, atol=1e-4)


@pytest.mark.parametrize("name", ["finger_turn_hard", "fish_swim", "walker_walk"])
def test_recorded_actions_lie_in_the_spec_and_follow_the_seed(name):
    environment = make(name, 2)
    episode, again, other = (record(environment, PlanningExpert(noisy=True), seed, name) for seed in (4, 4, 5))
    for action in (*episode.action, *episode.label):
        environment.action_spec().validate(action)
    np.testing.assert_array_equal(episode.action, again.action)
    np.testing.assert_array_equal(episode.label, again.label)
    assert np.any(episode.action != other.action)


def test_noise_moves_the_action_and_an_expert_is_used_again():
    environment, expert = make("fish_upright", 10), PlanningExpert(noisy=True)
    noisy = [record(environment, expert, seed, "fish") for seed in (1, 2)]
    assert max(np.abs(episode.action - episode.label).max() for episode in noisy) > 0.05
    clean = record(environment, PlanningExpert(), 1, "fish")
    np.testing.assert_array_equal(clean.action, clean.label)


SHORT = {"fish_upright": (40, 20.0), "finger_turn_easy": (80, 40.0)}
"""Task to ticks and a return that no random action comes near."""


@pytest.mark.parametrize("name", sorted(SHORT))
def test_the_expert_does_the_task(name):
    ticks, floor = SHORT[name]
    assert episode_return(make(name, ticks), PlanningExpert(), 100) > floor


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(PLANNED))
def test_the_expert_reaches_what_its_table_says(name):
    returns = [episode_return(make(name), PlanningExpert(), seed) for seed in (100, 101)]
    assert np.mean(returns) > 0.7 * PLANNED[name].mean_return
