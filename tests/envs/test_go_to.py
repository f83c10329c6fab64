import numpy as np

from envs import pads
from envs.go_to import GoTo, Rules, draw_scene
from envs.patrol_experts import Regulator, augment
from envs.recording import record


def test_observations_are_what_the_specs_say():
    task = GoTo(seed=3)
    step = task.reset()
    assert "chime" not in step.observation
    while not step.last():
        for name, spec in task.observation_spec().items():
            spec.validate(step.observation[name])
        step = task.step(np.zeros(1, np.float32))


def test_instructions_change_at_random_and_always_to_another_pad():
    rules = Rules()
    scenes = [draw_scene(np.random.default_rng(seed), rules) for seed in range(200)]
    changes = 0
    for scene in scenes:
        for tick in range(1, rules.ticks + 1):
            same_target = scene.targets[tick] == scene.targets[tick - 1]
            assert same_target == (scene.words[tick] == scene.words[tick - 1])
            changes += not same_target
        assert all(pads.COLOURS[colour] in words for colour, words in zip(scene.targets, scene.words))
    assert abs(changes / (200 * rules.ticks) - 1 / 60) < 0.0015


def test_text_changes_are_recorded_with_the_sub_goal():
    episode = next(e for e in (record(GoTo(), Regulator(), seed, "go_to") for seed in range(9)) if len(e.text["instruction"]) > 2)
    for tick, words in episode.text["instruction"]:
        if tick < episode.ticks:
            colour = next(i for i, name in enumerate(pads.COLOURS) if name in words)
            assert episode.privileged["sub_goal"][tick, 0] == episode.observation["pads"][tick, colour]


def test_the_reward_counts_ticks_on_the_target_of_the_tick():
    episode = record(GoTo(), Regulator(), 0, "go_to")
    position, goal = episode.observation["position"][1:], episode.privileged["sub_goal"]
    on = (np.abs(position[:, 0] - goal[:, 0]) < 0.15) & (np.abs(np.arctan2(position[:, 2], position[:, 1])) < 0.4)
    assert np.array_equal(on, episode.reward == 1)
    assert on.sum() > 50


def test_an_augmented_episode_still_says_where_to_go():
    episode = augment(record(GoTo(), Regulator(), 3, "go_to"), np.random.default_rng(0))
    for tick, words in episode.text["instruction"]:
        if tick < episode.ticks:
            colour = next(i for i, name in enumerate(pads.COLOURS) if name in words)
            assert episode.privileged["sub_goal"][tick, 0] == episode.observation["pads"][tick, colour]
