"""Relayed goal: two goals in one, of which one changes slowly and one quickly, and the right action needs both.

The course and the turn are each one of G, at tick 0 and at every later tick redrawn uniformly with a probability of their own,
1 / course_tau and 1 / turn_tau. The goal is (course + turn) mod G, and an action equal to it pays 1. Whoever lacks either knows
nothing: given one, the goal is uniform.

For a layout of three rates: the slowest planner alone reads `course`, the planner below it alone `turn`, and the controller
`clock`, which says nothing about them; what is known of the course must come down through both links.

A plan whose turn was seen i ticks ago, and its course k ticks ago, is right with probability q + (1 - q) / G, where
q = (1 - 1 / turn_tau)^i (1 - 1 / course_tau)^k: a redraw of either makes the sum uniform. Both ages come from the timelines.
"""

import dataclasses

import dm_env
import numpy as np
from dm_env import specs

from envs.switching_goal import goal_named, last_redraw
from hierarchy.timeline import NO_PLAN, Timeline, visible


@dataclasses.dataclass(frozen=True)
class Rules:
    """goals: G. course_tau, turn_tau: mean ticks between redraws. ticks: length of an episode. tick_s: s a tick."""

    goals: int = 4
    course_tau: float = 80.0
    turn_tau: float = 20.0
    ticks: int = 128
    tick_s: float = 0.04

    def __post_init__(self) -> None:
        if self.goals < 2 or min(self.course_tau, self.turn_tau) < 1 or self.ticks < 1:
            raise ValueError(f"{self}: it takes 2 goals, taus of 1 tick and 1 tick at least")


class RelayedGoal(dm_env.Environment):
    """The task; returns lie in [0, rules.ticks]."""

    def __init__(self, rules: Rules = Rules()):
        self.rules, self.tick_s = rules, rules.tick_s
        self._clock = (np.arange(rules.ticks + 1, dtype=np.float32) / rules.ticks)[:, None]
        self._rng, self._tick = np.random.default_rng(), rules.ticks

    def reseed(self, seed: int) -> None:
        """Makes the next reset a function of `seed` alone."""
        self._rng, self._tick = np.random.default_rng(seed), self.rules.ticks

    def reset(self) -> dm_env.TimeStep:
        """Returns the first time step of an episode whose courses and turns are all drawn now."""
        self._course, self._turn = (self._drawn(tau) for tau in (self.rules.course_tau, self.rules.turn_tau))
        self._tick = 0
        return dm_env.restart(self._observation())

    def _drawn(self, tau: float) -> np.ndarray:
        count = self.rules.ticks + 1
        values = self._rng.integers(self.rules.goals, size=count)[last_redraw(self._rng, count, tau)]
        return values.astype(np.int32)[:, None]

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
        return int(self._course[self._tick, 0] + self._turn[self._tick, 0]) % self.rules.goals

    def observation_spec(self) -> dict[str, specs.Array]:
        """Returns the specs of `course` and `turn`, int32 [1] in [0, goals), and `clock`, float32 [1], the share so far."""
        numbers = (specs.BoundedArray((1,), np.int32, 0, self.rules.goals - 1, name=name) for name in ("course", "turn"))
        return {spec.name: spec for spec in (specs.BoundedArray((1,), np.float32, 0.0, 1.0, name="clock"), *numbers)}

    def action_spec(self) -> specs.DiscreteArray:
        """Returns the spec of an action, a goal's number."""
        return specs.DiscreteArray(self.rules.goals, name="action")

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns `sub_goal`, int32 [1]: this tick's goal."""
        return {"sub_goal": np.array((self.goal,), np.int32)}

    def _observation(self) -> dict[str, np.ndarray]:
        return {"clock": self._clock[self._tick], "course": self._course[self._tick], "turn": self._turn[self._tick]}


class Expert:
    """Acts as the goal of the tick says."""

    def begin(self, environment: RelayedGoal, rng: np.random.Generator) -> None:
        """Needs nothing."""

    def step(self, environment: RelayedGoal, time_step: dm_env.TimeStep) -> tuple[np.ndarray, np.ndarray]:
        """Returns (executed action, label), int32 [] and the same."""
        action = np.int32(environment.goal)
        return action, action


def expected_return(rules: Rules, planner: Timeline, above: Timeline) -> float:
    """Returns the highest expected return where the planner sees turns, and the one above it courses, on these timelines."""
    ticks = np.arange(rules.ticks)
    turn = _seen(planner, ticks)
    course = np.where(turn == NO_PLAN, NO_PLAN, _seen(above, np.maximum(turn, 0)))
    kept = (1 - 1 / rules.turn_tau) ** (ticks - turn) * (1 - 1 / rules.course_tau) ** (ticks - course)
    kept = np.where(course == NO_PLAN, 0.0, kept)
    return float(np.sum(kept + (1 - kept) / rules.goals))


def _seen(timeline: Timeline, ticks: np.ndarray) -> np.ndarray:
    """The tick that the plan visible at each of `ticks` observed, `NO_PLAN` where there is none."""
    return np.append(timeline.observed, NO_PLAN)[visible(timeline, ticks)]
