"""Every task's layout is what its environment shows and takes, for each world that is installed."""

import importlib.util

import numpy as np
import pytest
from dm_env import specs

from envs.recording import record
from envs.suite_experts import RandomExpert
from experiments import layouts
from experiments.tasks import TASKS, find, schema_of
from hierarchy.corpus.codecs import encode
from hierarchy.corpus.segment import encode_episode
from hierarchy.layout import BINS, CONTINUOUS_START, PREVIOUS_ACTION, Discrete, Image, Schema, Text
from tests.hierarchy.corpus.corpus_toys import Letters

NEEDS = {"metaworld": "metaworld", "babyai": "minigrid"}


def made(name):
    """Returns the task's environment, or skips where its package is missing, saying so."""
    package = NEEDS.get(name.split("_")[0])
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (requirements-extras.txt)")
    return find(name).make()


@pytest.mark.parametrize("name", TASKS)
def test_a_layout_is_what_the_environment_shows_and_takes(name):
    environment, layout = made(name), find(name).layout
    shown, taken = environment.observation_spec(), environment.action_spec()
    for field in layout.planner + layout.controller:
        if field.name == PREVIOUS_ACTION:
            continue
        spec = shown[field.name]
        assert isinstance(spec, specs.StringArray) == isinstance(field.codec, Text), field.name
        if isinstance(field.codec, Image):
            assert spec.shape == (field.codec.height, field.codec.width, field.codec.channels), field.name
            continue
        assert isinstance(field.codec, Text) or int(np.prod(spec.shape)) == field.size, field.name
        if isinstance(field.codec, Discrete) and isinstance(spec, specs.BoundedArray) and not field.summed:
            assert np.max(spec.maximum) < field.codec.values, field.name
    assert isinstance(taken, specs.DiscreteArray) == isinstance(layout.action.codec, Discrete)
    assert layout.action.size == int(np.prod(taken.shape))
    if isinstance(taken, specs.DiscreteArray):
        assert taken.num_values == layout.action.codec.values
    else:
        np.testing.assert_array_equal(np.broadcast_to(taken.minimum, taken.shape), layout.action.codec.low)
        np.testing.assert_array_equal(np.broadcast_to(taken.maximum, taken.shape), layout.action.codec.high)
    # A layout that several tasks share is named after what they have in common.
    shared = [task for task, other in TASKS.items() if other.layout == layout]
    assert layout.name == name if shared == [name] else all(task.startswith(layout.name) for task in shared)


@pytest.mark.parametrize("name", TASKS)
def test_random_episodes_become_tokens(name):
    environment, task = made(name), find(name)
    episode = record(environment, RandomExpert(), 3, name, max_ticks=20)
    encoded = encode_episode(Schema((task.layout,), 300), task.layout.name, episode, Letters())
    assert encoded.label.shape == (episode.ticks, task.layout.action.size)
    assert episode.ticks <= task.ticks


@pytest.mark.parametrize("name", layouts.SUITE)
def test_what_a_recorded_body_shows_is_told_apart_by_its_codecs(name):
    """A codec clips what lies beyond its bound. A reacher's shoulder turns on and on, and was clipped in a fifth of all ticks."""
    environment, layout = made(name), find(name).layout
    episodes = [record(environment, find(name).expert(True), seed, name) for seed in range(6)]
    for field in layout.controller:
        shown = np.concatenate([episode.observation[field.name] for episode in episodes])
        bins = encode(field.codec, shown) - CONTINUOUS_START
        at_an_end = ((bins == 0) | (bins == BINS - 1)).mean(axis=0)
        # Cosines are at their end where a body rests.
        most = 1.0 if field.name in ("position", "orientation") and name.startswith(("cartpole", "pendulum")) else 0.01
        assert at_an_end.max() <= most, field.name


def test_tasks_of_one_body_that_ask_the_same_of_it_share_what_is_learnt():
    """A schema of both has the parameters of one. Standing and walking would not be told apart."""
    pairs = (
        ("reacher_easy", "reacher_hard"),
        ("finger_turn_easy", "finger_turn_hard"),
        ("cartpole_balance", "cartpole_swingup"),
        ("cartpole_balance_sparse", "cartpole_swingup_sparse"),
    )
    for one, other in pairs:
        for agent in ("two_rate", "single_rate", "controller_only"):
            assert schema_of((one, other), 0, agent) == schema_of((one,), 0, agent) == schema_of((other,), 0, agent)
    assert len(schema_of(("walker_stand", "walker_walk"), 0, "two_rate").layouts) == 2


def test_what_a_burst_did_to_the_return_drops_no_episode():
    """Labels are right in any state; only an expert that can fail has a bar."""
    assert all(TASKS[name].kept == -np.inf for name in layouts.SUITE)
    assert all(TASKS[name].kept > 0 for name in layouts.PLANNED)
