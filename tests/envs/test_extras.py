"""Meta-World and BabyAI where they are installed; where they are not, one line says how to install them."""

import subprocess
import sys

import numpy as np
import pytest

from envs import baby_ai, meta_world
from envs.recording import record, replay
from envs.suite_experts import RandomExpert

BLOCKED = """
import sys
sys.modules[{package!r}] = None
from experiments.record import main
sys.argv = ["record", "--task", {task!r}, "--out", {out!r}]
sys.exit(main())
"""


@pytest.mark.parametrize(("package", "task"), [("metaworld", "metaworld_reach"), ("minigrid", "babyai_go_to_local")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(package, task, tmp_path):
    code = BLOCKED.format(package=package, task=task, out=str(tmp_path / "source"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"record: {package} is not installed: pip install -r requirements.txt -r requirements-extras.txt"
    )


@pytest.fixture
def arm():
    pytest.importorskip("metaworld", reason="metaworld is not installed (requirements-extras.txt)")
    return meta_world.make("metaworld_drawer_close")


@pytest.fixture
def grid():
    pytest.importorskip("minigrid", reason="minigrid is not installed (requirements-extras.txt)")
    return baby_ai.make("babyai_pickup_loc")


def holds(environment, episode) -> None:
    """Specs hold all along, and a fresh world of the same seed shows the same again."""
    for field, spec in environment.observation_spec().items():
        for value in episode.observation.get(field, ()):
            spec.validate(value)
    for action in (*episode.action, *episode.label):
        environment.action_spec().validate(action)
    for t, moment in enumerate(replay(environment, episode)):
        for name, values in episode.observation.items():
            np.testing.assert_array_equal(moment.following[name][0], values[t + 1])
    assert t + 1 == episode.ticks


def test_the_arm_is_recorded_and_replayed(arm):
    episode = record(arm, meta_world.ScriptedPolicy(noisy=True), 5, arm.name)
    assert episode.terminated
    assert episode.info["return"] == 1.0
    holds(arm, episode)
    again, other = (record(arm, meta_world.ScriptedPolicy(noisy=True), seed, arm.name) for seed in (5, 6))
    np.testing.assert_array_equal(episode.action, again.action)
    assert not np.array_equal(episode.observation["objects"][0], other.observation["objects"][0])


def test_the_arms_goal_is_seen_and_drawn():
    pytest.importorskip("metaworld", reason="metaworld is not installed (requirements-extras.txt)")
    arm, goals = meta_world.make("metaworld_reach"), []
    for seed in (1, 2):
        arm.reseed(seed)
        goals.append(arm.reset().observation["goal"])
    assert np.abs(goals[0]).max() > 0.05
    assert not np.array_equal(*goals)


def test_an_arm_that_does_nothing_does_not_succeed_and_time_ends_it(arm):
    arm = meta_world.make("metaworld_window_open", 10)
    episode = record(arm, RandomExpert(), 0, arm.name)
    assert (episode.ticks, episode.truncated, episode.info["return"]) == (10, True, 0.0)


@pytest.mark.parametrize("name", meta_world.NAMES)
def test_the_scripted_policies_succeed(name):
    pytest.importorskip("metaworld", reason="metaworld is not installed (requirements-extras.txt)")
    arm = meta_world.make(name)
    done = [record(arm, meta_world.ScriptedPolicy(), seed, name).info["return"] for seed in (100, 101)]
    assert max(done) == 1.0


def test_the_grid_is_recorded_and_replayed(grid):
    episode = record(grid, baby_ai.Bot(noisy=True), 5, grid.name)
    assert episode.terminated
    assert episode.info["return"] == 1.0
    holds(grid, episode)
    ((tick, words),) = episode.text["mission"]
    assert tick == 0
    assert words.startswith("pick up")


def test_going_astray_moves_the_action_and_the_bot_makes_it_good(grid):
    bots = [record(grid, baby_ai.Bot(noisy=True, astray=0.5), seed, grid.name) for seed in range(10)]
    assert any(np.any(episode.action != episode.label) for episode in bots)
    strayed = [episode.action[episode.action != episode.label] for episode in bots]
    assert set(np.concatenate(strayed)) <= set(baby_ai.MOVES)
    assert np.mean([episode.info["return"] for episode in bots]) >= 0.9


@pytest.mark.parametrize("name", sorted(baby_ai.LEVELS))
def test_the_bot_does_its_missions(name, capsys):
    pytest.importorskip("minigrid", reason="minigrid is not installed (requirements-extras.txt)")
    grid = baby_ai.make(name)
    done = [record(grid, baby_ai.Bot(), seed, name) for seed in range(100, 104)]
    assert np.mean([episode.info["return"] for episode in done]) >= 0.75
    assert max(episode.ticks for episode in done) <= grid.ticks
    assert capsys.readouterr().out == ""
