"""Noise on an expert's actions, so that imitation also sees the states beside the expert's path and the way back."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Noise:
    """What is added to the clean action before it is executed, in units of an action range of [-1, 1].

    clean: share of episodes without noise. most: each other episode draws its standard deviation from U(0, most).
    persistence: correlation of one tick's noise with the next one's; it carries the body further from the clean path.
    """

    clean: float = 0.25
    most: float = 0.4
    persistence: float = 0.8

    def __post_init__(self) -> None:
        if not (0 <= self.clean <= 1 and self.most >= 0 and 0 <= self.persistence < 1):
            raise ValueError(f"{self}: clean lies in [0, 1], most is at least 0, persistence lies in [0, 1)")


class Disturbance:
    """The noise of one episode; `noise` None for none at all."""

    def __init__(self, noise: Noise | None, rng: np.random.Generator, shape: tuple[int, ...]):
        self._rng, self._value, self.level, self._keep = rng, np.zeros(shape), 0.0, 0.0
        if noise is not None and rng.random() >= noise.clean:
            self.level, self._keep = rng.uniform(0.0, noise.most), noise.persistence

    def disturb(self, label: np.ndarray) -> np.ndarray:
        """Returns the action to execute for this tick's label, float32 in [-1, 1]; the label itself in a clean episode."""
        if self.level == 0.0:
            return label
        fresh = self._rng.standard_normal(label.shape) * (self.level * math.sqrt(1.0 - self._keep * self._keep))
        self._value = self._keep * self._value + fresh
        return np.clip(label + self._value, -1.0, 1.0).astype(np.float32)
