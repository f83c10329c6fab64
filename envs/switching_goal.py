"""Switching goal, the task whose loss by stale plans is known: the right action is the goal, and the goal is redrawn at random.

At tick 0 the goal is one of G; at every later tick it is redrawn uniformly with probability 1 / tau and may stay the same.
`goal` at tick t is the goal at tick t, and an action equal to it pays 1.

For a layout: the planner alone reads `goal`; the controller reads `clock`, which says nothing about it. `previous_action` is not
for the controller here: the expert's last action is the last goal.

With q = 1 - 1 / tau, a goal seen i ticks ago was not redrawn with probability q^i and is right with probability
q^i + (1 - q^i) / G. The ages i of a period come from the timeline.
"""

import dataclasses

import dm_env
import numpy as np
from dm_env import specs

from hierarchy.timeline import NO_PLAN, age, periodic


@dataclasses.dataclass(frozen=True)
class Rules:
    """goals: G. tau: mean ticks between redraws. ticks: length of an episode. tick_s: s a tick."""

    goals: int = 4
    tau: float = 20.0
    ticks: int = 128
    tick_s: float = 0.04

    def __post_init__(self) -> None:
        if self.goals < 2 or self.tau < 1 or self.ticks < 1:
            raise ValueError(f"{self}: it takes 2 goals, a tau of 1 tick and 1 tick at least")

    @property
    def best(self) -> float:
        """The highest return."""
        return float(self.ticks)


class SwitchingGoal(dm_env.Environment):
    """The task; returns lie in [0, rules.ticks]."""

    def __init__(self, rules: Rules = Rules()):
        self.rules, self.tick_s = rules, rules.tick_s
        self._clock = (np.arange(rules.ticks + 1, dtype=np.float32) / rules.ticks)[:, None]
        self._rng, self._tick = np.random.default_rng(), rules.ticks

    def reseed(self, seed: int) -> None:
        """Makes the next reset a function of `seed` alone."""
        self._rng, self._tick = np.random.default_rng(seed), self.rules.ticks

    def reset(self) -> dm_env.TimeStep:
        """Returns the first time step of an episode whose goals are all drawn now."""
        drawn = self._rng.integers(self.rules.goals, size=self.rules.ticks + 1)
        goals = drawn[last_redraw(self._rng, self.rules.ticks + 1, self.rules.tau)]
        self._goals, self._right, self._tick = goals.astype(np.int32)[:, None], goals.tolist(), 0
        return dm_env.restart(self._observation())

    def step(self, action: int | np.ndarray) -> dm_env.TimeStep:
        """Returns the time step after `action`, a goal's number; as in dm_env, the one after the last resets.

        Raises:
            ValueError: there is no such goal.
        """
        if self._tick >= self.rules.ticks:
            return self.reset()
        reward = float(goal_named(action, self.rules.goals, self._tick) == self.goal)
        self._tick += 1
        if self._tick == self.rules.ticks:
            return dm_env.truncation(reward, self._observation())
        return dm_env.transition(reward, self._observation())

    @property
    def goal(self) -> int:
        """The goal of this tick."""
        return self._right[self._tick]

    def observation_spec(self) -> dict[str, specs.Array]:
        """Returns the specs of `goal`, int32 [1] in [0, goals), and `clock`, float32 [1], the episode's share so far."""
        return {
            "clock": specs.BoundedArray((1,), np.float32, 0.0, 1.0, name="clock"),
            "goal": specs.BoundedArray((1,), np.int32, 0, self.rules.goals - 1, name="goal"),
        }

    def action_spec(self) -> specs.DiscreteArray:
        """Returns the spec of an action, a goal's number."""
        return specs.DiscreteArray(self.rules.goals, name="action")

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns `sub_goal`, int32 [1]: this tick's goal."""
        return {"sub_goal": self._goals[self._tick]}

    def _observation(self) -> dict[str, np.ndarray]:
        return {"clock": self._clock[self._tick], "goal": self._goals[self._tick]}


class Expert:
    """Acts as the goal of the tick says."""

    def begin(self, environment: SwitchingGoal, rng: np.random.Generator) -> None:
        """Needs nothing."""

    def step(self, environment: SwitchingGoal, time_step: dm_env.TimeStep) -> tuple[np.ndarray, np.ndarray]:
        """Returns (executed action, label), int32 [] and the same."""
        action = time_step.observation["goal"][0]
        return action, action


def goal_named(action: int | np.ndarray, goals: int, tick: int) -> int:
    """Returns the goal that an action names at a tick. Raises ValueError where there is no such goal."""
    chosen = int(action)
    if not 0 <= chosen < goals:
        raise ValueError(f"action {chosen} at tick {tick}: goals are numbered 0 to {goals - 1}")
    return chosen


def last_redraw(rng: np.random.Generator, ticks: int, tau: float) -> np.ndarray:
    """Returns int [ticks]: the newest tick at or before each at which a goal was drawn; tick 0 always draws."""
    redrawn = rng.random(ticks) < 1.0 / tau
    return np.maximum.accumulate(np.where(redrawn, np.arange(ticks), 0))


def settled_ages(ratio: int, latency: int) -> np.ndarray:
    """Returns int32 [ratio]: the ages of the plans of one period, from the first tick that has a plan."""
    ticks = np.arange(latency, latency + ratio)
    return age(periodic(latency + ratio, ratio, latency), ticks)


def stale_probability(ratio: int, latency: int, tau: float) -> float:
    """Returns the share of ticks with at least one redraw after the tick of their plan, without no-plan ticks."""
    return float(1.0 - np.mean((1.0 - 1.0 / tau) ** settled_ages(ratio, latency)))


def correct_probability(ratio: int, latency: int, tau: float, goals: int) -> float:
    """Returns the share of ticks at which the plan's goal is the goal, without no-plan ticks; no policy does better."""
    stale = stale_probability(ratio, latency, tau)
    return 1.0 - stale + stale / goals


def chance(rules: Rules) -> float:
    """Returns the expected return of any policy that does not see the goal."""
    return rules.ticks / rules.goals


def expected_return(rules: Rules, ratio: int, latency: int) -> float:
    """Returns the best expected return of an episode, its first ticks without a plan included at chance."""
    ages = age(periodic(rules.ticks, ratio, latency), np.arange(rules.ticks))
    kept = np.where(ages == NO_PLAN, 0.0, (1.0 - 1.0 / rules.tau) ** np.maximum(ages, 0))
    return float(np.sum(kept + (1.0 - kept) / rules.goals))
