import numpy as np
import pytest

from experiments.statistics import mean_interval, normalise, paired_difference


def test_random_is_0_and_the_expert_100():
    np.testing.assert_allclose(normalise([0.5, 4.5, 2.5], random=0.5, expert=4.5), [0, 100, 50])
    np.testing.assert_allclose(normalise([-200, -100], random=-200, expert=-100), [0, 100])
    with pytest.raises(ValueError, match="no scale"):
        normalise([1.0], random=2.0, expert=2.0)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        interval = mean_interval(rng.exponential(1.0, 60), seed=trial)
        assert interval.low <= interval.mean <= interval.high
        covered += interval.low <= 1.0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_interval_is_that_of_the_mean_and_not_of_the_values():
    values = np.random.default_rng(1).normal(0, 1, 400)
    interval = mean_interval(values)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(2)
    difficulty = rng.normal(0, 10, 128)
    first, second = difficulty + 1 + rng.normal(0, 0.1, 128), difficulty + rng.normal(0, 0.1, 128)
    difference = paired_difference(first, second)
    assert 0.9 < difference.low <= difference.mean <= difference.high < 1.1
    assert mean_interval(first).high - mean_interval(first).low > 10 * (difference.high - difference.low)


def test_equal_values_have_an_interval_of_no_width():
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.nan]])
def test_too_few_or_unfinite_episodes_are_refused(values):
    with pytest.raises(ValueError, match="episode"):
        mean_interval(values)


def test_episodes_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match="paired"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])
