"""What an episode refuses, one field at a time."""

import dataclasses

import numpy as np
import pytest

from hierarchy.episode import Episode, check

TICKS = 5


def good() -> Episode:
    return Episode(
        source="toy",
        tick_s=0.04,
        observation={"state": np.zeros((TICKS + 1, 2)), "count": np.arange(TICKS + 1)},
        text={"say": ((0, "go"), (TICKS, "stop")), "hint": ()},
        action=np.zeros((TICKS, 1)),
        label=np.zeros((TICKS, 1)),
        reward=np.zeros(TICKS),
        discount=np.ones(TICKS),
        privileged={"goal": np.zeros((TICKS, 1))},
        terminated=False,
        truncated=True,
        seed=0,
        info={},
    )


def not_finite(shape: tuple[int, ...], tick: int) -> np.ndarray:
    values = np.zeros(shape)
    values[tick] = np.nan
    return values


def test_a_good_episode_comes_back_as_it_is():
    episode = good()
    assert check(episode) is episode
    assert episode.ticks == TICKS


def test_an_episode_is_not_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        good().seed = 1


def test_a_target_may_be_absent():
    absent = dataclasses.replace(good(), label=not_finite((TICKS, 1), 2), privileged={"goal": not_finite((TICKS, 1), 0)})
    assert check(absent) is absent
    with pytest.raises(ValueError, match="action is not finite"):
        check(dataclasses.replace(absent, action=absent.label))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(action=np.zeros((0, 1)), label=np.zeros((0, 1))), "at least one action"),
        (dict(tick_s=0.0), "tick_s is 0.0"),
        (dict(label=np.zeros((TICKS + 1, 1))), "label has 6 entries"),
        (dict(label=np.zeros((TICKS, 2))), "differ in shape"),
        (dict(reward=np.zeros(TICKS - 1)), "reward has 4 entries"),
        (dict(discount=np.zeros(TICKS + 1)), "discount has 6 entries"),
        (dict(privileged={"goal": np.zeros(TICKS + 1)}), "privileged 'goal' has 6 entries"),
        (dict(observation={"state": np.zeros((TICKS, 2))}), "observation 'state' has 5 entries"),
        (dict(observation={"state": not_finite((TICKS + 1, 2), 3)}), "observation 'state' is not finite at tick 3"),
        (dict(action=not_finite((TICKS, 1), 2)), "action is not finite at tick 2"),
        (dict(reward=not_finite((TICKS,), 2)), "reward is not finite at tick 2"),
        (dict(label=np.full((TICKS, 1), np.inf)), "label is not finite at tick 0"),
        (dict(text={"say": ((3, "a"), (3, "b"))}), r"text 'say' changes at ticks \[3, 3\]"),
        (dict(text={"say": ((-1, "a"),)}), "text 'say'"),
        (dict(text={"say": ((TICKS + 1, "a"),)}), "text 'say'"),
        (dict(terminated=True), "both terminated and truncated"),
    ],
)
def test_refusals_name_the_field(wrong, message):
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(good(), **wrong))
