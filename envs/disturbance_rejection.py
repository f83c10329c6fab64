"""Disturbance rejection, the task that cannot be done slowly: an unstable point is pushed at random at every tick.

    x[t + 1] = growth x[t] + push a[t] + w[t],    w ~ N(0, noise),    a in [-1, 1]
    reward[t] = exp(-(x[t + 1] - goal[t])^2 / (2 width^2)),    and the episode fails once |x| > limit

The goal is redrawn from U(-1, 1) with probability 1 / tau a tick, so a plan is needed as well, if not often.

For a layout: the planner alone reads `goal`; the controller reads `position`. `previous_action` is not for the controller here:
with the position it tells the last goal.

With the defaults, over seeds 0 to 399: the mean reward a tick of control that sees position and goal every k ticks (`Seldom` in
`envs/bench_references.py`), of which none exceeds `seldom_bound`, and of exact control at every tick towards 0 (`blind_value`):

    k                    1     2     3     4     6     8
    action held        .89   .69   .40   .10   .01   .01
    open-loop chunk    .89   .78   .61   .24   .03   .02
    bound              .89   .78   .65   .54   .39   .30
    goal 0 every tick  .25
"""

import dataclasses
import math

import dm_env
import numpy as np
from dm_env import specs

from envs.noise import Disturbance, Noise
from envs.switching_goal import last_redraw
from hierarchy.timeline import NO_PLAN, age, periodic


@dataclasses.dataclass(frozen=True)
class Rules:
    """growth, push, noise, width, limit, tau: as at the top of this file. ticks: length of an episode. tick_s: s a tick."""

    growth: float = 2.0
    push: float = 3.5
    noise: float = 0.1
    width: float = 0.2
    limit: float = 2.0
    tau: float = 50.0
    ticks: int = 128
    tick_s: float = 0.04

    def __post_init__(self) -> None:
        if min(self.growth, self.push, self.width) <= 0 or self.noise < 0 or self.limit <= 1 or self.tau < 1 or self.ticks < 1:
            raise ValueError(
                f"{self}: growth, push and width are above 0, limit above 1, tau and ticks at least 1, noise at least 0"
            )
        if self.push < self.growth + 1:
            raise ValueError(
                f"{self}: a push of {self.growth + 1} at least carries the point from any goal to any other in a tick"
            )

    @property
    def best(self) -> float:
        """The highest expected return, to which a controller that sees the goal at every tick comes."""
        return self.ticks * goal_value(self)


class DisturbanceRejection(dm_env.Environment):
    """The task; returns lie in [0, rules.ticks]."""

    def __init__(self, rules: Rules = Rules()):
        self.rules, self.tick_s = rules, rules.tick_s
        self._rng, self._tick, self._over = np.random.default_rng(), 0, True

    def reseed(self, seed: int) -> None:
        """Makes the next reset a function of `seed` alone."""
        self._rng, self._over = np.random.default_rng(seed), True

    def reset(self) -> dm_env.TimeStep:
        """Returns the first time step of an episode whose goals and pushes are all drawn now."""
        rules, rng = self.rules, self._rng
        goals = rng.uniform(-1.0, 1.0, rules.ticks + 1)[last_redraw(rng, rules.ticks + 1, rules.tau)]
        self._goals, self._places = goals.astype(np.float32)[:, None], goals.tolist()
        self._pushes = (rules.noise * rng.standard_normal(rules.ticks)).tolist()
        self.position, self._tick, self._over = float(rng.uniform(-1.0, 1.0)), 0, False
        return dm_env.restart(self._observation())

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        """Returns the time step after `action` [1], held to [-1, 1]; as in dm_env, the one after the last resets.

        Raises:
            ValueError: the action is not a number.
        """
        if self._over:
            return self.reset()
        pushed = float(action[0])
        if math.isnan(pushed):
            raise ValueError(f"action {action} at tick {self._tick} is not a number")
        rules = self.rules
        self.position = rules.growth * self.position + rules.push * _clip(pushed) + self._pushes[self._tick]
        away = (self.position - self._places[self._tick]) / rules.width
        self._tick += 1
        failed = abs(self.position) > rules.limit
        self._over = failed or self._tick == rules.ticks
        reward = 0.0 if failed else math.exp(-0.5 * away * away)
        ending = dm_env.termination if failed else dm_env.truncation if self._over else dm_env.transition
        return ending(reward, self._observation())

    @property
    def goal(self) -> float:
        """The goal of this tick."""
        return self._places[self._tick]

    def observation_spec(self) -> dict[str, specs.Array]:
        """Returns the specs of `goal`, float32 [1] in [-1, 1], and `position`, float32 [1]."""
        return {
            "goal": specs.BoundedArray((1,), np.float32, -1.0, 1.0, name="goal"),
            "position": specs.Array((1,), np.float32, name="position"),
        }

    def action_spec(self) -> specs.BoundedArray:
        """Returns the spec of an action, float32 [1] in [-1, 1]."""
        return specs.BoundedArray((1,), np.float32, -1.0, 1.0, name="action")

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns `sub_goal`, float32 [1]: this tick's goal."""
        return {"sub_goal": self._goals[self._tick]}

    def _observation(self) -> dict[str, np.ndarray]:
        return {"goal": self._goals[self._tick], "position": np.array((self.position,), np.float32)}


class Expert:
    """Carries the point to the goal in one tick; `noise` None executes the label itself."""

    def __init__(self, noise: Noise | None = None):
        self._noise = noise

    def begin(self, environment: DisturbanceRejection, rng: np.random.Generator) -> None:
        """Draws the episode's noise level."""
        self._disturbance = Disturbance(self._noise, rng, (1,))

    def step(self, environment: DisturbanceRejection, time_step: dm_env.TimeStep) -> tuple[np.ndarray, np.ndarray]:
        """Returns (executed action, label), float32 [1] in [-1, 1]."""
        observation = time_step.observation
        label = reach(environment.rules, observation["position"], observation["goal"])
        return self._disturbance.disturb(label), label


def reach(rules: Rules, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Returns the action, in the positions' shape, after which the expected position is the goal, as near as a push can."""
    return np.clip((goal - rules.growth * position) / rules.push, -1.0, 1.0).astype(np.float32)


def goal_value(rules: Rules) -> float:
    """Returns the expected reward of a tick whose expected position is the goal: 1 / sqrt(1 + noise^2 / width^2)."""
    return rules.width / math.hypot(rules.width, rules.noise)


def other_value(rules: Rules) -> float:
    """Returns the expected reward of a tick whose expected position is another goal, drawn independently.

    The distance d of two draws from U(-1, 1) has density (1 - d / 2) on [0, 2], and at a distance d the expected reward is
    `goal_value` times exp(-d^2 / (2 v)) with v = width^2 + noise^2.
    """
    v = rules.width**2 + rules.noise**2
    inside = math.sqrt(math.pi * v / 2.0) * math.erf(math.sqrt(2.0 / v))
    return goal_value(rules) * (inside - 0.5 * v * (1.0 - math.exp(-2.0 / v)))


def blind_value(rules: Rules) -> float:
    """Returns the expected reward of a tick whose expected position is 0, the best that is known of a goal never seen."""
    v = rules.width**2 + rules.noise**2
    return goal_value(rules) * math.sqrt(math.pi * v / 2.0) * math.erf(math.sqrt(0.5 / v))


def expected_return(rules: Rules, ratio: int, latency: int) -> float:
    """Returns the expected return of exact control at every tick, on goals that come by plans; 0 is the goal until the first.

    A goal seen i ticks ago still stands with probability (1 - 1 / tau)^i, and is otherwise a draw of its own. Pushes beyond
    the action's bounds and failures are left out; with the defaults they cost nothing that 2000 episodes show.
    """
    ages = age(periodic(rules.ticks, ratio, latency), np.arange(rules.ticks))
    kept = (1.0 - 1.0 / rules.tau) ** np.maximum(ages, 0)
    planned = kept * goal_value(rules) + (1.0 - kept) * other_value(rules)
    return float(np.where(ages == NO_PLAN, blind_value(rules), planned).sum())


def seldom_bound(rules: Rules, k: int) -> float:
    """Returns a bound on the expected reward a tick of anything that sees the state every k ticks only, held or open loop.

    i ticks after it was seen, the position has variance noise^2 (1 + growth^2 + ... + growth^(2i - 2)) given all that is known,
    and no reward is above the one with its mean at the goal. Failures, which this leaves out, cost more.
    """
    variance = rules.noise**2 * np.cumsum(rules.growth ** (2.0 * np.arange(k)))
    return float(np.mean(1.0 / np.sqrt(1.0 + variance / rules.width**2)))


def _clip(u: float) -> float:
    return max(-1.0, min(1.0, u))
