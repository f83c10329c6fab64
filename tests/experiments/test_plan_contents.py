"""What is read off plans, on plans whose contents are known, and on a run's."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from envs.patrol import Patrol, Rules
from envs.patrol_experts import Regulator
from envs.recording import record
from experiments import plan_contents
from experiments.evaluate import environments, load
from experiments.plan_contents import (
    Plans,
    Travels,
    apart,
    arrived,
    both,
    collect,
    drift,
    probes,
    read_off,
    ridge,
    shuffled,
    stages,
    swap,
)
from tests.experiments.debug_run import command

EPISODES, UPDATES = 40, 25


def planted(noise: float = 0.1) -> Plans:
    """Plans that hold the colour to go to and the places of all pads, and nothing of the stage."""
    rng, count = np.random.default_rng(0), EPISODES * UPDATES
    episode = np.repeat(np.arange(EPISODES), UPDATES)
    target, stage = rng.integers(4, size=count), rng.integers(3, size=count)
    slots = np.stack([rng.permutation(4) for _ in range(EPISODES)])[episode]
    said = np.concatenate([np.eye(4)[target], *(np.eye(4)[slots[:, colour]] for colour in range(4))], axis=1)
    vectors = said @ rng.normal(size=(20, 48)) + noise * rng.normal(size=(count, 48))
    return Plans(vectors, episode, np.tile(np.arange(UPDATES), EPISODES), target, slots, stage)


def test_a_probe_reads_what_is_there_and_nothing_else():
    plans = planted()
    found = {name: values.mean() for name, values in probes(plans).items()}
    assert found["the next pad's colour"] > 0.99
    assert found["each colour's place"] > 0.99
    assert found["the stage of the order"] == pytest.approx(1 / 3, abs=0.08)
    chance = {name: values.mean() for name, values in probes(shuffled(plans)).items()}
    assert all(values.mean() == pytest.approx(1 / 4, abs=0.08) for values in (chance["the next pad's colour"],))
    assert chance["each colour's place"] == pytest.approx(1 / 4, abs=0.08)
    assert len(read_off(plans, plans.target)) == EPISODES // 2


def test_a_probe_is_not_asked_about_an_episode_that_it_was_fitted_to():
    """Plans that hold their episode's name alone would give away whatever stays the same in it."""
    plans = planted()
    names = np.eye(EPISODES)[plans.episode]
    assert read_off(plans._replace(vectors=names), plans.slots[:, 0]).mean() < 0.5


def test_ridge_is_least_squares_without_a_penalty_and_the_mean_with_much():
    rng = np.random.default_rng(0)
    x, y = rng.normal(2, 3, (60, 4)), rng.normal(size=(60, 2))
    expected = np.linalg.lstsq(np.c_[x, np.ones(60)], y, rcond=None)[0]
    np.testing.assert_allclose(ridge(x, y, 1e-9)(x), np.c_[x, np.ones(60)] @ expected, atol=1e-5)
    np.testing.assert_allclose(ridge(x, y, 1e12)(x), np.broadcast_to(y.mean(axis=0), y.shape), atol=1e-6)


def test_drift_is_between_an_episodes_own_plans_in_order():
    vectors = np.array([[1.0, 0], [0, 1], [1, 0], [-1, 0], [1, 1], [1, 0]])
    episode, tick = np.array([0, 0, 1, 1, 0, 1]), np.array([0, 4, 0, 4, 8, 8])
    target = np.array([2, 2, 1, 3, 0, 3])
    stay, go = drift(Plans(vectors, episode, tick, target, np.zeros((6, 4), int), np.zeros(6, int)))
    np.testing.assert_allclose(stay, [1, 2])
    np.testing.assert_allclose(go, [1 - np.sqrt(0.5), 2])


def test_swapping_is_within_pairs_and_twice_is_nothing():
    plan = jnp.arange(12.0).reshape(6, 2)
    assert np.asarray(swap(0, plan))[:, 0].tolist() == [2, 0, 6, 4, 10, 8]
    np.testing.assert_array_equal(swap(1, swap(0, plan)), plan)


def test_a_cart_has_arrived_where_it_stays_first():
    rules = Rules(dwell=3)
    goal = np.array([0.3, -0.3, 0.9, -0.9, 0.3, 0.35])
    still = np.zeros(8)
    x = np.stack(
        [
            np.array([0, -0.3, -0.3, -0.3, 0.3, 0.3, 0.3, 0.3]),  # the other's for a stay, then its own
            np.array([0.3, 0.3, 0, 0.3, 0.3, 0.3, -0.3, -0.3]),  # passes twice, stays the third time
            still,  # nowhere
            np.array([-0.9, -0.9, -0.9, 0.9, 0.9, 0.9, 0.9, 0.9]),  # its own
            still,
            still,
        ],
        axis=1,
    )
    live = np.ones(x.shape, bool)
    own, other = arrived(Travels(x, live, goal), rules)
    assert own.tolist() == [False, False, False, True, False, False]
    assert other.tolist() == [True, True, False, False, False, False]
    assert both(other).tolist() == [True, False, False]
    assert apart(Travels(x, live, goal), rules).tolist() == [True, True, False]
    live[3:, 1] = False
    assert arrived(Travels(x, live, goal), rules)[1].tolist() == [True, False, False, False, False, False]


def test_what_was_true_at_an_update_is_what_the_world_says(debug_run):
    trained = load(debug_run / "two_rate")
    plans = collect(trained, 4, 2, 4)
    assert plans.vectors.shape == (len(plans.tick), 2 * 16)
    for number, environment in enumerate(environments("patrol", 4)):
        own = plans.episode == number
        assert plans.tick[own].tolist() == list(range(0, environment.track.tick, 4))
        np.testing.assert_array_equal(plans.target[own], np.array(environment.scene.order)[plans.stage[own]])
        places = np.argsort(np.argsort(environment.scene.track.pads))
        np.testing.assert_array_equal(plans.slots[own], np.broadcast_to(places, (own.sum(), 4)))
        assert plans.stage[own][0] == 0


def test_a_stage_is_a_place_in_the_order():
    environment = Patrol()
    episode = record(environment, Regulator(), 3, "patrol")
    assert environment.visits >= 3
    stage = stages(episode.observation["chime"][:-1, 0])
    np.testing.assert_array_equal(episode.privileged["target"][:, 0], np.array(environment.scene.order)[stage])


def test_the_command_prints_tables_and_writes_numbers(debug_run, tmp_path, capsys, monkeypatch):
    given = [
        "--run",
        debug_run / "two_rate",
        "--episodes",
        "4",
        "--pairs",
        "2",
        "--ratios",
        "8",
        "--json",
        tmp_path / "a" / "b.json",
    ]
    assert command("plan_contents", *given) == 0
    said, found = capsys.readouterr().out, json.loads((tmp_path / "a" / "b.json").read_text())
    assert "linear probes, ratio 8, latency 0" in said
    assert set(found["probes"]) == set(probes(planted()))
    assert found["drift"]["8"]["same pad"][0] >= 0
    assert set(found["pairs"]) == {"swap", "leave"}
    monkeypatch.setattr(plan_contents, "TASK", "go_to")
    assert command("plan_contents", *given) == 1
    assert "has no plans of the go_to: train two_rate on it" in capsys.readouterr().err
