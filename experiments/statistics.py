"""Means and their intervals over the episodes of one training. They say nothing about another training seed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

CONFIDENCE = 0.95
RESAMPLES = 4000


class Interval(NamedTuple):
    """A mean and the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float


def normalise(returns: Sequence[float], random: float, expert: float) -> np.ndarray:
    """Returns [N] the returns on the scale where the mean of the random policy is 0 and that of the expert 100.

    Raises:
        ValueError: the expert is not above the random policy.
    """
    if not expert > random:
        raise ValueError(f"the expert's return {expert:g} is not above random's {random:g}: there is no scale between them")
    return 100.0 * (np.asarray(returns, np.float64) - random) / (expert - random)


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Returns the mean over episodes and its 95% percentile bootstrap interval (Efron and Tibshirani 1993, section 13.3).

    Raises:
        ValueError: fewer than two episodes, or one that is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs at least 2 episodes, not {values.shape}")
    if not np.all(np.isfinite(values)):
        raise ValueError(f"the return of episode {int(np.argmin(np.isfinite(values)))} is not finite")
    mean = float(np.mean(values))
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    bounds = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, min(float(bounds.low), mean), max(float(bounds.high), mean))


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Interval:
    """Returns the mean of first - second, episode by episode on the same seeds, and its interval.

    Raises:
        ValueError: the two do not have the same number of episodes.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} episodes cannot be paired: run both on the same seeds")
    return mean_interval(first - second, seed)
