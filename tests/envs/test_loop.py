import numpy as np
import pytest
from dm_env import specs

from envs import loop
from tests.envs.counter import Counter, Counting

LENGTHS, SEEDS = (3, 7, 5), (1, 2, 3)


def counters() -> list[Counter]:
    return [Counter(ticks, falls=ticks == 5) for ticks in LENGTHS]


class Constant:
    def __init__(self, actions) -> None:
        self.actions = actions

    def begin(self, seeds):
        return None

    def step(self, state, observations):
        return self.actions, state


def test_each_moment_shows_its_own_tick_and_the_one_that_follows():
    for expected, moment in enumerate(loop.run(counters(), Counting(), SEEDS)):
        assert moment.tick == expected
        seen, following = moment.observations["tick"][:, 0], moment.following["tick"][:, 0]
        assert seen.tolist() == np.minimum(expected, LENGTHS).tolist()
        assert following.tolist() == np.minimum(expected + 1, LENGTHS).tolist()
        assert moment.privileged["before"][:, 0].tolist() == seen.tolist()
        assert moment.live.tolist() == [expected < ticks for ticks in LENGTHS]
    assert expected == max(LENGTHS) - 1


def test_an_ended_environment_is_not_stepped_again():
    environments = counters()
    moments = list(loop.run(environments, Counting(), SEEDS))
    assert [environment.stepped for environment in environments] == list(LENGTHS)
    for moment in moments:
        assert np.all(moment.rewards[~moment.live] == 0)
        assert np.all(moment.discounts[~moment.live] == 0)


def test_returns_sum_the_rewards_of_each_episode():
    total = loop.returns(loop.run(counters(), Counting(), SEEDS))
    np.testing.assert_allclose(total, np.multiply(LENGTHS, SEEDS) / 10, rtol=1e-6)


@pytest.mark.parametrize(("max_ticks", "ticks", "terminated"), [(None, (3, 7, 5), (0, 0, 1)), (4, (3, 4, 4), (0, 0, 0))])
def test_episodes_tell_terminated_from_truncated(max_ticks, ticks, terminated):
    environments = counters()
    made = loop.episodes(loop.run(environments, Counting(), SEEDS, max_ticks), environments, SEEDS, "counter")
    assert tuple(episode.ticks for episode in made) == ticks
    assert tuple(episode.terminated for episode in made) == terminated
    assert all(episode.truncated != episode.terminated for episode in made)
    for episode, seed in zip(made, SEEDS):
        assert episode.seed == seed
        assert episode.tick_s == 0.1
        assert episode.observation["tick"][:, 0].tolist() == list(range(episode.ticks + 1))
        assert episode.privileged["before"][:, 0].tolist() == list(range(episode.ticks))
        assert episode.info["return"] == pytest.approx(episode.ticks * seed / 10)


def test_text_is_kept_as_its_changes():
    environments = [Counter(7)]
    (episode,) = loop.episodes(loop.run(environments, Counting(), [0]), environments, [0], "counter")
    assert episode.text == {"words": ((0, "leg 0"), (3, "leg 1"), (6, "leg 2"))}


def test_words_reach_the_policy_as_an_object_array():
    moment = next(loop.run([Counter(), Counter()], Counting(), (0, 0)))
    assert moment.observations["words"].dtype == object
    assert moment.observations["words"].tolist() == ["leg 0", "leg 0"]


@pytest.mark.parametrize(
    ("actions", "complaint"),
    [
        (np.array([[0.0, 0.0], [0.0, 1.5]]), "of environment 1 at tick 0 .* not in 'arm'"),
        (np.array([[0.0, np.nan], [0.0, 0.0]]), "of environment 0 at tick 0 .* not in 'arm'"),
        (np.zeros((2, 3)), r"shape \(2, 3\); \(2, 2\) is expected"),
    ],
)
def test_an_illegal_action_is_refused(actions, complaint):
    environments = [Counter(), Counter()]
    with pytest.raises(ValueError, match=complaint):
        list(loop.run(environments, Constant(actions), (0, 0)))
    assert environments[0].stepped == environments[1].stepped == 0


def test_what_a_policy_says_for_an_ended_episode_does_not_matter():
    class Careless(Constant):
        def step(self, state, observations):
            ended = observations["tick"][:, :1] == np.array([[3], [7]])
            return np.where(ended, np.nan, np.zeros((2, 2))), state

    assert sum(1 for _ in loop.run([Counter(3), Counter(7)], Careless(None), (0, 0))) == 7


def test_a_discrete_action_must_be_a_whole_number():
    spec, live = specs.DiscreteArray(3, name="key"), np.ones(1, bool)
    assert loop.legal(spec, np.array([2]), live, 0).tolist() == [2]
    with pytest.raises(ValueError, match="whole numbers"):
        loop.legal(spec, np.array([1.0]), live, 0)
    with pytest.raises(ValueError, match="not in 'key'"):
        loop.legal(spec, np.array([3]), live, 0)


def test_an_observation_that_is_not_finite_is_refused_by_name():
    with pytest.raises(ValueError, match="observation 'tick' is not finite at tick 4 of environment 1"):
        list(loop.run([Counter(), Counter(broken=4)], Constant(np.zeros((2, 2))), (0, 0)))


def test_seeds_and_environments_pair_up():
    with pytest.raises(ValueError, match="one seed an environment"):
        next(loop.run([Counter()], Counting(), (1, 2)))


def test_a_nested_observation_is_refused():
    class Nested(Counter):
        def observation_spec(self):
            return {"arm": super().observation_spec()}

    with pytest.raises(ValueError, match="flat"):
        next(loop.run([Nested()], Counting(), (1,)))


def test_an_environment_of_others_needs_only_dm_env():
    class Bare(Counter):
        seed = 0
        reseed = privileged = tick_s = property(lambda self: (_ for _ in ()).throw(AttributeError()))

    environments = [Bare()]
    moments = list(loop.run(environments, Constant(np.zeros((1, 2))), [0]))
    with pytest.raises(ValueError, match="pass tick_s"):
        loop.episodes(moments, environments, [0], "bare")
    (episode,) = loop.episodes(moments, environments, [0], "bare", tick_s=0.5)
    assert episode.tick_s == 0.5
    assert episode.privileged == {}
