"""A toy that counts: its observation is its tick, its words change every third tick, and its reward is its action."""

import dm_env
import numpy as np
from dm_env import specs


class Counter(dm_env.Environment):
    """`ticks` long; ends with discount 0 where `falls`, else with 1. `broken` is the tick whose observation is not finite."""

    tick_s = 0.1

    def __init__(self, ticks: int = 7, falls: bool = False, broken: int | None = None) -> None:
        self.ticks, self.falls, self.broken = ticks, falls, broken
        self.stepped = 0

    def reseed(self, seed: int) -> None:
        self.seed = seed

    def reset(self) -> dm_env.TimeStep:
        self.tick = 0
        return dm_env.restart(self._observation())

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        self.tick += 1
        self.stepped += 1
        reward = float(action[0])
        if self.tick < self.ticks:
            return dm_env.transition(reward, self._observation())
        return (dm_env.termination if self.falls else dm_env.truncation)(reward, self._observation())

    def _observation(self) -> dict[str, np.ndarray]:
        tick = np.nan if self.tick == self.broken else self.tick
        return {"tick": np.array([tick, self.seed], np.float32), "words": np.array(f"leg {self.tick // 3}", dtype=object)}

    def observation_spec(self) -> dict[str, specs.Array]:
        return {"tick": specs.Array((2,), np.float32, name="tick"), "words": specs.StringArray((), name="words")}

    def action_spec(self) -> specs.BoundedArray:
        return specs.BoundedArray((2,), np.float32, -1.0, 1.0, name="arm")

    def privileged(self) -> dict[str, np.ndarray]:
        return {"before": np.array([self.tick], np.float32)}


class Counting:
    """A policy that asserts that it sees the tick it has counted itself, and acts by the seed."""

    def begin(self, seeds):
        return 0, np.asarray(seeds)

    def step(self, state, observations):
        tick, seeds = state
        assert observations["tick"][:, 0].max() == tick
        assert observations["tick"][:, 1].tolist() == seeds.tolist()
        return np.stack([seeds / 10, np.full(len(seeds), tick / 100)], axis=1), (tick + 1, seeds)
