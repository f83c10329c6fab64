"""More rounds: what is wanted of them is judged over all hops, and a run that is there is not made again."""

import dataclasses

import numpy as np
import pytest

from experiments import recursion
from experiments.evaluate import load
from experiments.recursion import RULES, RecursionConfig, measured, right, training, verdicts


def found(at: dict[tuple[int, int], float], config: RecursionConfig) -> dict:
    """Percentages by rounds trained and used with: the means over hops are these."""
    return {
        (trained, seed, used, hops): [at.get((trained, used), 50.0) + 2 * hops - RULES.hops] * 4
        for trained in config.trained
        for seed in config.seeds
        for used in config.used
        for hops in range(RULES.hops + 1)
    }


@pytest.mark.parametrize(
    ("once", "eight", "sixteen", "holds"),
    [
        (30.0, 71.0, 70.0, [True, True, True]),
        (30.0, 69.0, 70.0, [True, False, True]),
        (55.0, 74.0, 73.0, [False, True, True]),
        (30.0, 90.0, 80.0, [True, True, False]),
    ],
)
def test_more_rounds_are_to_be_better_and_more_than_were_trained_with_no_worse(once, eight, sixteen, holds):
    """once: of weights trained with eight rounds, used with one."""
    config = RecursionConfig()
    judged = verdicts(found({(1, 1): 50.0, (8, 1): once, (8, 8): eight, (8, 16): sixteen}, config), config)
    assert [held for _, _, held in judged.values()] == holds


def test_rounds_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"used \(1, 2\) lacks \[8\], which planners are trained with"):
        RecursionConfig(used=(1, 2))
    with pytest.raises(ValueError, match="fewer and then more rounds"):
        RecursionConfig(trained=(8, 1))


@pytest.mark.long
def test_a_try_runs_to_its_end_and_is_not_made_again(tmp_path, monkeypatch):
    config = RecursionConfig(tmp_path, (1, 2), (1, 2, 3), (0,), recorded=40, steps=3, planner_steps=2, episodes=4)
    monkeypatch.setattr(
        recursion, "training", lambda *asked: dataclasses.replace(short := training(*asked), mix=small(short.mix))
    )
    figures, times = recursion.recursion(config)
    assert {*times} == {1, 2, 3}
    trained = load(config.out / "rounds_2_seed_0")
    assert trained.network.config.planner.rounds == 2
    np.testing.assert_array_equal(figures[2, 0, 3, 5], right(trained, 3, 5, 4))
    monkeypatch.setattr(recursion, "right", None)
    assert measured(config) == figures


def small(mix):
    return dataclasses.replace(mix, rows=2)
