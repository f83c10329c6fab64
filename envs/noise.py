"""Noise on an expert's actions, so that imitation also sees the states beside the expert's path and the way back."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Noise:
    """What is added to the clean action before it is executed, in units of an action range of [-1, 1].

    clean: share of episodes without noise. most: each other episode draws its standard deviation from U(0, most).
    persistence: correlation of one tick's noise with the next one's; it carries the body further from the clean path.
    bursts: chance, at each tick of a noisy episode, that a burst begins: one action drawn from U(-1, 1), executed for
        `burst_ticks` (least, most) ticks. An expert that is at rest most of the time shows its way there again and again.
    pauses: share of bursts whose action is 0. An expert is at rest at its goal alone: whoever imitates it would learn that to be
        slow is to be there, and stop wherever it once is slow.
    """

    clean: float = 0.25
    most: float = 0.4
    persistence: float = 0.8
    bursts: float = 0.0
    burst_ticks: tuple[int, int] = (10, 50)
    pauses: float = 0.0

    def __post_init__(self) -> None:
        shares = self.clean, self.bursts, self.pauses
        if not (all(0 <= share <= 1 for share in shares) and self.most >= 0 and 0 <= self.persistence < 1):
            raise ValueError(f"{self}: clean, bursts and pauses lie in [0, 1], most is at least 0, persistence lies in [0, 1)")
        if not 1 <= self.burst_ticks[0] <= self.burst_ticks[1]:
            raise ValueError(f"{self}: a burst lasts at least 1 tick, and burst_ticks is (least, most)")


class Disturbance:
    """The noise of one episode; `noise` None for none at all."""

    def __init__(self, noise: Noise | None, rng: np.random.Generator, shape: tuple[int, ...]):
        self._rng, self._value, self.level, self._noise = rng, np.zeros(shape), 0.0, None
        self._burst, self._left = np.zeros(shape), 0
        if noise is not None and rng.random() >= noise.clean:
            self.level, self._noise = rng.uniform(0.0, noise.most), noise

    def disturb(self, label: np.ndarray) -> np.ndarray:
        """Returns the action to execute for this tick's label, float32 in [-1, 1]; the label itself in a clean episode."""
        noise = self._noise
        if noise is None:
            return label
        if noise.bursts and not self._left and self._rng.random() < noise.bursts:
            self._burst = self._rng.uniform(-1.0, 1.0, label.shape) * (self._rng.random() >= noise.pauses)
            self._left = int(self._rng.integers(noise.burst_ticks[0], noise.burst_ticks[1] + 1))
        if self._left:
            self._left -= 1
            return self._burst.astype(np.float32)
        keep = noise.persistence
        fresh = self._rng.standard_normal(label.shape) * (self.level * math.sqrt(1.0 - keep * keep))
        self._value = keep * self._value + fresh
        return np.clip(label + self._value, -1.0, 1.0).astype(np.float32)
