import numpy as np
import pytest

from envs.go_to import GoTo
from envs.patrol import Patrol
from envs.patrol_experts import CLEAN, NOISY, Regulator
from envs.recording import record, replay
from tests.envs.counter import Counter


class Wavering:
    """Executes one thing and means another, and checks that it is asked at the right tick."""

    def begin(self, environment, rng):
        self.tick, self.draw = 0, rng.random()

    def step(self, environment, time_step):
        assert time_step.observation["tick"][0] == self.tick == environment.tick
        self.tick += 1
        return np.array([0.5, self.draw]), np.array([-0.5, 0.0])


def test_a_recording_keeps_ticks_labels_and_text():
    episode = record(Counter(7, falls=True), Wavering(), 5, "counter")
    assert episode.observation["tick"][:, 0].tolist() == list(range(8))
    assert episode.privileged["before"][:, 0].tolist() == list(range(7))
    assert np.all(episode.action[:, 0] == 0.5)
    assert np.all(episode.label[:, 0] == -0.5)
    assert episode.text["words"] == ((0, "leg 0"), (3, "leg 1"), (6, "leg 2"))
    assert episode.terminated
    assert not episode.truncated
    assert episode.info["return"] == 3.5
    assert episode.discount.tolist() == [1] * 6 + [0]


def test_the_experts_chance_follows_the_seed():
    one, same, other = (record(Counter(), Wavering(), seed, "counter").action for seed in (5, 5, 6))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_recording_can_be_cut_short():
    episode = record(Counter(7, falls=True), Wavering(), 5, "counter", max_ticks=4)
    assert episode.ticks == 4
    assert episode.truncated
    assert not episode.terminated


def test_an_illegal_label_is_refused_and_so_is_a_broken_observation():
    class Wild(Wavering):
        def step(self, environment, time_step):
            return np.zeros(2), np.array([0.0, 2.0])

    class Follower(Wavering):
        def step(self, environment, time_step):
            return (np.tanh(time_step.observation["tick"]),) * 2

    with pytest.raises(ValueError, match=r"the expert's label at tick 0 .* not in 'arm'"):
        record(Counter(), Wild(), 0, "counter")
    for expert in (Follower(), Wavering()):
        with pytest.raises(ValueError, match="observation 'tick' is not finite at tick 7"):
            record(Counter(7, broken=7), expert, 0, "counter")
    with pytest.raises(ValueError, match="observation 'tick' is not finite at tick 4"):
        record(Counter(7, broken=4), Follower(), 0, "counter")


@pytest.mark.parametrize("task", [Patrol, GoTo])
@pytest.mark.parametrize("noise", [CLEAN, NOISY])
def test_a_replay_shows_the_same_again_to_the_bit(task, noise):
    episode = record(task(), Regulator(noise), 11, "cart")
    fresh = task(seed=99)
    moments = list(replay(fresh, episode))
    assert len(moments) == episode.ticks
    for t, moment in enumerate(moments):
        for name, values in episode.observation.items():
            assert np.array_equal(moment.observations[name][0], values[t])
            assert np.array_equal(moment.following[name][0], values[t + 1])
        assert np.array_equal(moment.privileged["sub_goal"][0], episode.privileged["sub_goal"][t])
        assert moment.rewards[0] == episode.reward[t]
        assert moment.discounts[0] == episode.discount[t]


def test_another_seed_does_not_replay():
    episode = record(Patrol(), Regulator(), 11, "cart")
    (first, *_) = replay(Patrol(), type(episode)(**{**vars(episode), "seed": 12}))
    assert not np.array_equal(first.observations["pads"][0], episode.observation["pads"][0])
