import numpy as np
import pytest

from envs import lqr, pads
from envs.patrol import Patrol, Scene
from envs.patrol_experts import CLEAN, NOISY, Noise, Regulator, augment, mirrored, recoloured
from envs.recording import record
from envs.track import mirror_scene
from hierarchy.episode import check


@pytest.fixture(scope="module")
def noisy():
    return [record(Patrol(), Regulator(NOISY), seed, "patrol") for seed in range(6)]


def regulated(episode) -> np.ndarray:
    """The clean action at every recorded state, from the observations alone."""
    position, velocity = episode.observation["position"][:-1], episode.observation["velocity"][:-1]
    states = np.column_stack([position[:, 0], np.arctan2(position[:, 2], position[:, 1]), velocity])
    return lqr.act(states, episode.privileged["sub_goal"][:, 0])[:, None]


def test_a_clean_expert_does_what_it_means():
    episode = record(Patrol(), Regulator(CLEAN), 0, "patrol")
    assert np.array_equal(episode.action, episode.label)


def test_labels_stay_clean_under_noise_and_detours(noisy):
    for episode in noisy:
        np.testing.assert_allclose(episode.label, regulated(episode), atol=1e-5)
        assert not np.array_equal(episode.action, episode.label)


def test_a_detour_pursues_a_wrong_pad_for_a_while():
    episode = record(Patrol(), Regulator(Noise(detour_chance=0.05, detour_ticks=(10, 20))), 1, "patrol")
    astray = (episode.action != episode.label)[:, 0]
    assert 0.1 < astray.mean() < 0.9
    position, velocity = episode.observation["position"], episode.observation["velocity"]
    states = np.column_stack([position[:, 0], np.arctan2(position[:, 2], position[:, 1]), velocity])[:-1]
    towards = [lqr.act(states, place)[:, None] for place in episode.observation["pads"][0]]
    nearest = np.min([np.abs(episode.action - action) for action in towards], axis=0)
    assert nearest.max() < 1e-5


def test_the_expert_scores_and_noise_costs():
    def mean(noise):
        return np.mean([record(Patrol(), Regulator(noise), seed, "patrol").info["return"] for seed in range(12)])

    assert mean(CLEAN) > 3.0 > mean(NOISY) > 0.5


def target_colours(episode) -> list[int]:
    pads_seen, goals = episode.observation["pads"], episode.privileged["sub_goal"]
    return [int(np.flatnonzero(pads_seen[tick] == goals[tick, 0])[0]) for tick in range(episode.ticks)]


@pytest.mark.parametrize("seed", range(4))
def test_an_augmented_episode_agrees_with_its_words(noisy, seed):
    for episode in noisy:
        changed = check(augment(episode, np.random.default_rng(seed)))
        (_, words), *_ = changed.text["instruction"]
        named = sorted((name for name in pads.COLOURS if name in words), key=words.index)
        if "after" in words:
            named.reverse()
        colours = target_colours(changed)
        visited = [c for i, c in enumerate(colours) if i == 0 or c != colours[i - 1]]
        assert [pads.COLOURS[colour] for colour in visited] == [named[i % 3] for i in range(len(visited))]
        np.testing.assert_allclose(changed.label, regulated(changed), atol=1e-5)


def test_recolouring_and_mirroring_undo_themselves(noisy):
    episode, names = noisy[0], np.array([2, 0, 3, 1])
    for there_and_back in (mirrored(mirrored(episode)), recoloured(recoloured(episode, names), np.argsort(names))):
        assert there_and_back.text == episode.text
        for name, values in episode.observation.items():
            assert np.array_equal(there_and_back.observation[name], values)
        assert np.array_equal(there_and_back.action, episode.action)
        assert np.array_equal(there_and_back.privileged["sub_goal"], episode.privileged["sub_goal"])


def test_a_mirrored_episode_replays_in_a_mirrored_scene(noisy):
    episode = noisy[1]
    image, task = mirrored(episode), Patrol(seed=episode.seed)
    step = task.reset_to(Scene(mirror_scene(task.scene.track), task.scene.order, task.scene.instruction))
    for t in range(image.ticks):
        for name, values in image.observation.items():
            np.testing.assert_allclose(step.observation[name], values[t], atol=1e-6)
        assert task.privileged()["sub_goal"] == image.privileged["sub_goal"][t]
        step = task.step(image.action[t])
        assert step.reward == image.reward[t]


@pytest.mark.parametrize("hold", [1, 4, 8])
def test_no_small_change_of_the_gain_is_better_at_its_hold(hold):
    """On the linear model, with the cost of every tick and not only of those at which it acts."""
    start = np.random.default_rng(0).normal(size=(64, 4)) * (0.3, 0.05, 0.2, 0.2)

    def cost(gain):
        states, total = start, 0.0
        for _ in range(600 // hold):
            actions = -states @ gain
            for _ in range(hold):
                total += np.einsum("bi,ij,bj", states, lqr.STATE_COST, states) + lqr.ACTION_COST[0, 0] * np.sum(actions**2)
                states = lqr.predict(states, actions)
        return total

    best = cost(lqr.gain(hold))
    for change in np.vstack([np.eye(4), -np.eye(4)]) * 0.02:
        assert cost(lqr.gain(hold) + change) > best


def test_holding_for_one_tick_is_the_every_tick_design():
    a, b = lqr.hold_model(3)
    state, action = np.array([0.1, 0.02, -0.1, 0.3]), 0.4
    after = state
    for _ in range(3):
        after = lqr.predict(after, np.array(action))
    np.testing.assert_allclose(a @ state + b[:, 0] * action, after)
    slow = np.abs(np.linalg.eigvals(a - b @ lqr.gain(3)[None]))
    assert slow.max() < 1
