"""Cue recall, the task that cannot be done without memory: a cue is shown at tick 0 and asked for much later.

    tick      0     1 ...  delay - 1   delay ... delay + answers - 1
    cue       c+1   0 ...  0           0     ...
    go        0     0 ...  0           1     ...                       a right answer, action == c, pays 1

For a layout: the planner reads `cue` (and may read `go`); the controller reads `go`. A controller that reads `cue` too gains
nothing while `delay` is above its reach. The expert rests at action 0 until it is asked, so that the cue cannot be carried along
in its own actions.
"""

import dataclasses

import dm_env
import numpy as np
from dm_env import specs

from hierarchy.timeline import NO_PLAN, periodic, visible


@dataclasses.dataclass(frozen=True)
class Rules:
    """cues: how many there are. delay: ticks from the cue to the first answer. answers: ticks that ask. tick_s: s a tick."""

    cues: int = 4
    delay: int = 40
    answers: int = 4
    tick_s: float = 0.04

    def __post_init__(self) -> None:
        if self.cues < 2 or self.delay < 1 or self.answers < 1:
            raise ValueError(f"{self}: it takes 2 cues, 1 tick of delay and 1 answer at least")

    @property
    def ticks(self) -> int:
        """Ticks an episode."""
        return self.delay + self.answers

    @property
    def best(self) -> float:
        """The highest return."""
        return float(self.answers)


class CueRecall(dm_env.Environment):
    """The task; returns lie in [0, rules.answers]."""

    def __init__(self, rules: Rules = Rules()):
        self.rules, self.tick_s = rules, rules.tick_s
        self._go = np.zeros((rules.ticks + 1, 1), np.int32)
        self._go[rules.delay : rules.ticks] = 1
        self._rng, self._tick = np.random.default_rng(), rules.ticks

    def reseed(self, seed: int) -> None:
        """Makes the next reset a function of `seed` alone."""
        self._rng, self._tick = np.random.default_rng(seed), self.rules.ticks

    def reset(self) -> dm_env.TimeStep:
        """Returns the first time step, which shows the cue."""
        self.cue, self._tick = int(self._rng.integers(self.rules.cues)), 0
        return dm_env.restart(self._observation())

    def step(self, action: int | np.ndarray) -> dm_env.TimeStep:
        """Returns the time step after `action`, a cue's number; as in dm_env, the one after the last resets.

        Raises:
            ValueError: there is no such cue.
        """
        if self._tick >= self.rules.ticks:
            return self.reset()
        answer = int(action)
        if not 0 <= answer < self.rules.cues:
            raise ValueError(f"action {answer} at tick {self._tick}: cues are numbered 0 to {self.rules.cues - 1}")
        reward = float(self._tick >= self.rules.delay and answer == self.cue)
        self._tick += 1
        if self._tick == self.rules.ticks:
            return dm_env.truncation(reward, self._observation())
        return dm_env.transition(reward, self._observation())

    def observation_spec(self) -> dict[str, specs.Array]:
        """Returns the specs of `cue`, int32 [1] in [0, cues] with 0 for none, and `go`, int32 [1] in {0, 1}."""
        return {
            "cue": specs.BoundedArray((1,), np.int32, 0, self.rules.cues, name="cue"),
            "go": specs.BoundedArray((1,), np.int32, 0, 1, name="go"),
        }

    def action_spec(self) -> specs.DiscreteArray:
        """Returns the spec of an action, a cue's number."""
        return specs.DiscreteArray(self.rules.cues, name="action")

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns `sub_goal`, int32 [1]: the cue's number."""
        return {"sub_goal": np.array((self.cue,), np.int32)}

    def _observation(self) -> dict[str, np.ndarray]:
        shown = self.cue + 1 if self._tick == 0 else 0
        return {"cue": np.array((shown,), np.int32), "go": self._go[self._tick]}


class Expert:
    """Rests at action 0, and gives the cue when asked."""

    def begin(self, environment: CueRecall, rng: np.random.Generator) -> None:
        """Needs nothing."""

    def step(self, environment: CueRecall, time_step: dm_env.TimeStep) -> tuple[np.ndarray, np.ndarray]:
        """Returns (executed action, label), int32 [] and the same."""
        action = np.int32(environment.cue if time_step.observation["go"][0] else 0)
        return action, action


def chance(rules: Rules) -> float:
    """Returns the expected return of any policy that has not seen the cue, or no longer remembers it."""
    return rules.answers / rules.cues


def expected_return(rules: Rules, ratio: int, latency: int) -> float:
    """Returns the expected return where every plan holds the cue and the controller knows the plan alone.

    Update 0 sees the cue at tick 0; ticks before its plan arrives have the return of chance.
    """
    asked = np.arange(rules.delay, rules.ticks)
    known = visible(periodic(rules.ticks, ratio, latency), asked) != NO_PLAN
    return float(np.where(known, 1.0, 1.0 / rules.cues).sum())
