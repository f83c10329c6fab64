"""The fast bodies are the suite's, and their experts are worth imitating."""

import numpy as np
import pytest
from dm_control import suite

from envs import suite_experts
from envs.noise import Noise
from envs.suite import BODIES, make
from envs.suite_experts import LABELS, RandomExpert, SuiteExpert, episode_return


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


# Full episodes of the worse of two seeds; the means over 20 are in `envs/suite_experts.py`.
FLOORS = {
    "cartpole_balance": 995,
    "cartpole_balance_sparse": 995,
    "cartpole_swingup": 850,
    "cartpole_swingup_sparse": 760,
    "pendulum_swingup": 600,
    "reacher_easy": 960,
    "reacher_hard": 960,
    "point_mass_easy": 820,
    "ball_in_cup_catch": 200,
}


@pytest.mark.parametrize("name", sorted(LABELS))
def test_expert_does_the_task_and_random_actions_do_not(name):
    environment = suite_experts.make(name)
    assert min(episode_return(environment, SuiteExpert(), seed) for seed in (100, 101)) > FLOORS[name]
    assert episode_return(environment, RandomExpert(), 100) < 0.6 * FLOORS[name]


@pytest.mark.parametrize("name", sorted(LABELS))
def test_noise_moves_the_action_and_never_the_label(name):
    """The label is a function of the observation alone, whatever the noise did before; both lie in the spec."""
    environment, expert = suite_experts.make(name, 100), SuiteExpert(Noise(clean=0.0, most=0.5))
    environment.reseed(1)
    time_step, spec = environment.reset(), environment.action_spec()
    expert.begin(environment, np.random.default_rng(1))
    apart = 0.0
    while not time_step.last():
        action, label = expert.step(environment, time_step)
        spec.validate(action)
        spec.validate(label)
        clean = np.clip(LABELS[name](time_step.observation), -1, 1)
        np.testing.assert_array_equal(label, clean.astype(np.float32))
        apart = max(apart, float(np.abs(action - label).max()))
        time_step = environment.step(action)
    assert apart > 0.05


def test_share_of_clean_episodes_is_the_one_asked_for():
    environment, expert = make("pendulum_swingup"), SuiteExpert(Noise(clean=0.25, most=0.5))
    time_step, rng, clean = environment.reset(), np.random.default_rng(0), 0
    for _ in range(400):
        expert.begin(environment, rng)
        action, label = expert.step(environment, time_step)
        clean += action is label
    assert abs(clean / 400 - 0.25) < 0.07


def test_a_burst_is_one_action_for_a_while_and_its_labels_stay_clean():
    environment, expert = make("point_mass_easy", ticks=400), SuiteExpert(Noise(clean=0.0, most=0.0, bursts=0.02))
    environment.reseed(3)
    time_step = environment.reset()
    expert.begin(environment, np.random.default_rng(3))
    executed, labels, clean = [], [], []
    while not time_step.last():
        action, label = expert.step(environment, time_step)
        executed.append(action)
        labels.append(label)
        clean.append(np.clip(LABELS["point_mass_easy"](time_step.observation), -1, 1))
        time_step = environment.step(action)
    np.testing.assert_allclose(labels, clean, atol=1e-6)
    parted = (np.array(executed) != np.array(labels)).any(axis=1)
    starts = np.flatnonzero(np.diff(parted.astype(int), prepend=0) == 1)
    assert len(starts) >= 2
    for start in starts[:-1]:
        same = (np.array(executed)[start : start + 10] == executed[start]).all(axis=1)
        assert same.all(), "a burst lasts 10 ticks or more"


def test_a_pause_leaves_the_arm_slow_where_its_expert_never_is():
    """The label then says how to go on from there, which is otherwise seen at the target alone."""

    def slow_and_asked_to_move(pauses):
        environment, expert = make("reacher_easy", ticks=600), SuiteExpert(Noise(clean=0.0, most=0.0, bursts=0.05, pauses=pauses))
        environment.reseed(0)
        time_step = environment.reset()
        expert.begin(environment, np.random.default_rng(0))
        found = 0
        while not time_step.last():
            action, label = expert.step(environment, time_step)
            slow = np.abs(time_step.observation["velocity"]).max() < 0.5
            found += slow and np.abs(label).max() == 1.0
            time_step = environment.step(action)
        return found

    assert slow_and_asked_to_move(1.0) > 3 * slow_and_asked_to_move(0.0) + 10


@pytest.mark.parametrize("wrong", [{"bursts": 1.5}, {"pauses": -0.1}, {"burst_ticks": (0, 5)}, {"burst_ticks": (9, 5)}])
def test_a_burst_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="burst"):
        Noise(**wrong)


def test_a_ball_that_noise_threw_out_is_caught_again():
    """The expert starts from wherever a burst has left the ball."""
    environment, expert = suite_experts.make("ball_in_cup_catch"), SuiteExpert(Noise(clean=0.0, most=0.3, bursts=0.06))
    again = 0
    for seed in range(4):
        environment.reseed(seed)
        time_step = environment.reset()
        expert.begin(environment, np.random.default_rng(seed))
        caught = []
        while not time_step.last():
            time_step = environment.step(expert.step(environment, time_step)[0])
            caught.append(time_step.reward == 1.0)
        again += int((np.diff(np.array(caught, int)) == 1).sum()) - 1
    assert again > 0
