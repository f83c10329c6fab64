"""Bursty goal: the switching goal whose switches come in bursts; its controller feels that it is wrong, not what is right.

    goal      2 2 2 2 2 2 2 2 2 2 5 5 5 5 5 5 5 5 0 0 0 0 0 0 0 7 7 7 7 7 7 7 7 7 3 3 3 3 3 3 3 3 3 3 3 3 3 3
                |  quiet stretch  |          burst, a switch every few ticks      |  quiet stretch

The goal is one of G. A quiet stretch lasts for a geometric number of ticks; then come some switches, a few ticks apart, each to
another goal; then it is quiet again. An action equal to the goal pays 1.

For a layout: the planner alone reads `goal`, at its updates; the controller reads `reward`, what its last action was paid. So
an update is needed when a tick was not paid and hardly ever else, and a period that never looks at the reward wastes its updates
on the quiet stretches. `scripted` says what each way of asking for updates is worth, without any model.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import dm_env
import numpy as np
from dm_env import specs

from envs.switching_goal import goal_named
from hierarchy.timeline import NO_PLAN, PLAN_READY, draw_irregular, marks, visible


@dataclasses.dataclass(frozen=True)
class Rules:
    """goals: G. quiet: mean ticks of a quiet stretch. switches: fewest and most of a burst. spacing: fewest and most ticks from a
    switch to the next one. ticks: length of an episode. tick_s: s a tick."""

    goals: int = 8
    quiet: float = 40.0
    switches: tuple[int, int] = (3, 7)
    spacing: tuple[int, int] = (6, 10)
    ticks: int = 128
    tick_s: float = 0.04

    def __post_init__(self) -> None:
        ordered = all(1 <= low <= high for low, high in (self.switches, self.spacing))
        if self.goals < 2 or self.quiet < 1 or self.ticks < 1 or not ordered:
            raise ValueError(f"{self}: it takes 2 goals, ranges from 1 up, and a quiet stretch and an episode of 1 tick at least")

    @property
    def best(self) -> float:
        """The highest return."""
        return float(self.ticks)


def draw_goals(rng: np.random.Generator, rules: Rules) -> np.ndarray:
    """Returns int32 [ticks + 1], the goals of an episode, which begins anywhere in a quiet stretch or a burst."""
    ticks, switches = rules.ticks + 1, []
    # Long before tick 0, so that the episode does not always begin alike.
    tick = -int(rng.integers(8 * rules.quiet))
    while tick < ticks:
        tick += int(rng.geometric(1.0 / rules.quiet))
        count = int(rng.integers(rules.switches[0], rules.switches[1] + 1))
        gaps = rng.integers(rules.spacing[0], rules.spacing[1] + 1, size=count - 1)
        burst = tick + np.concatenate([[0], np.cumsum(gaps)])
        switches += burst.tolist()
        tick = int(burst[-1])
    steps = np.zeros(ticks, np.int64)
    within = [at for at in switches if 0 < at < ticks]
    steps[within] = rng.integers(1, rules.goals, size=len(within))
    return ((rng.integers(rules.goals) + np.cumsum(steps)) % rules.goals).astype(np.int32)


class BurstyGoal(dm_env.Environment):
    """The task; returns lie in [0, rules.ticks]."""

    def __init__(self, rules: Rules = Rules()):
        self.rules, self.tick_s = rules, rules.tick_s
        self._rng, self._tick = np.random.default_rng(), rules.ticks

    def reseed(self, seed: int) -> None:
        """Makes the next reset a function of `seed` alone."""
        self._rng, self._tick = np.random.default_rng(seed), self.rules.ticks

    def reset(self) -> dm_env.TimeStep:
        """Returns the first time step of an episode whose goals are all drawn now; nothing has failed yet, so its reward is 1."""
        self._goals, self._tick = draw_goals(self._rng, self.rules)[:, None], 0
        return dm_env.restart(self._observation(1))

    def step(self, action: int | np.ndarray) -> dm_env.TimeStep:
        """Returns the time step after `action`, a goal's number; as in dm_env, the one after the last resets.

        Raises:
            ValueError: there is no such goal.
        """
        if self._tick >= self.rules.ticks:
            return self.reset()
        paid = int(goal_named(action, self.rules.goals, self._tick) == self.goal)
        self._tick += 1
        last = self._tick == self.rules.ticks
        return (dm_env.truncation if last else dm_env.transition)(float(paid), self._observation(paid))

    @property
    def goal(self) -> int:
        """The goal of this tick."""
        return int(self._goals[self._tick, 0])

    def observation_spec(self) -> dict[str, specs.Array]:
        """Returns the specs of `goal`, int32 [1] in [0, goals), and `reward`, int32 [1] in {0, 1}, that of the last tick."""
        return {
            "goal": specs.BoundedArray((1,), np.int32, 0, self.rules.goals - 1, name="goal"),
            "reward": specs.BoundedArray((1,), np.int32, 0, 1, name="reward"),
        }

    def action_spec(self) -> specs.DiscreteArray:
        """Returns the spec of an action, a goal's number."""
        return specs.DiscreteArray(self.rules.goals, name="action")

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns `sub_goal`, int32 [1]: this tick's goal."""
        return {"sub_goal": self._goals[self._tick]}

    def _observation(self, paid: int) -> dict[str, np.ndarray]:
        return {"goal": self._goals[self._tick], "reward": np.array((paid,), np.int32)}


class Reader:
    """Executes what a planner's reader would and says what is right: so that an episode's rewards are those of stale plans.

    It sees the goal at the updates of a timeline drawn for each episode, with a ratio as the mean gap and a latency, and does as
    the newest plan says; once it has failed under that, it tries another goal at random. The label is always the goal. With the
    defaults it sees every tick and is never wrong.
    """

    def __init__(self, ratios: Sequence[int] = (1,), latencies: Sequence[int] = (0,)):
        self._ratios, self._latencies = ratios, latencies

    def begin(self, environment: BurstyGoal, rng: np.random.Generator) -> None:
        """Draws the timeline of the episode."""
        ticks = environment.rules.ticks
        timeline = draw_irregular(rng, ticks, self._ratios, self._latencies)
        plan = visible(timeline, np.arange(ticks))
        self._marks, self._observed = marks(timeline, ticks), np.append(timeline.observed, NO_PLAN)[plan]
        self._rng, self._seen, self._failed_at = rng, [], -1

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns `plan_ready`, int32 []: the first tick that may use the plan of an update at the tick to come, -1 for none."""
        return {PLAN_READY: self._marks[len(self._seen)]}

    def step(self, environment: BurstyGoal, time_step: dm_env.TimeStep) -> tuple[np.ndarray, np.ndarray]:
        """Returns (executed action, label), int32 [] and the same."""
        goal, tick, goals = time_step.observation["goal"][0], len(self._seen), environment.rules.goals
        self._seen.append(goal)
        observed = self._observed[tick]
        if tick and not time_step.observation["reward"][0] and observed == self._observed[tick - 1]:
            self._failed_at = observed
        if observed == NO_PLAN:
            return np.int32(self._rng.integers(goals)), goal
        planned = self._seen[observed]
        if self._failed_at == observed:
            return np.int32((planned + self._rng.integers(1, goals)) % goals), goal
        return planned, goal


class Outcome(NamedTuple):
    """What a scripted reader did in B episodes: right, bool [B, T], and updates, int [B], how many it had."""

    right: np.ndarray
    updates: np.ndarray


Asks = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""From the tick, the age of the newest plan [B] and whether the last tick failed under it [B] to whether to update now [B]."""


def scripted(goals: np.ndarray, asks: Asks, rng: np.random.Generator, rules: Rules = Rules(), latency: int = 0) -> Outcome:
    """Returns what a reader as `Reader` does that sees goals [B, T] when it asks; one update at a time, the first at tick 0.

    As in `hierarchy.control.trigger`, nothing is asked before a tick has been acted under the newest plan.
    """
    batch, ticks = goals.shape
    right = np.zeros(goals.shape, bool)
    observed, updates = np.zeros(batch, int), np.ones(batch, int)
    newest, plan = goals[:, 0], np.full(batch, NO_PLAN)
    failed, wrong = np.zeros(batch, bool), np.zeros(batch, bool)
    for tick in range(ticks):
        acted = tick > observed + latency
        due = acted & asks(tick, tick - observed, wrong & acted)
        observed, newest, updates = np.where(due, tick, observed), np.where(due, goals[:, tick], newest), updates + due
        arrived = observed + latency == tick
        plan, failed = np.where(arrived, newest, plan), (failed | wrong) & ~arrived
        guess = rng.integers(1, rules.goals, size=batch)
        action = np.where(failed | (plan == NO_PLAN), (plan + guess) % rules.goals, plan)
        right[:, tick] = action == goals[:, tick]
        wrong = ~right[:, tick]
    return Outcome(right, updates)


def periodically(ratio: int) -> Asks:
    """Returns the fixed period of `ratio` ticks."""
    return lambda tick, age, failed: age >= ratio


def on_failure(gap: int = 1) -> Asks:
    """Returns the oracle on the reward: an update at the first tick after a failure, `gap` ticks after the one before at least.

    A failure within the gap is asked about once it has passed, if the reader still fails.
    """
    return lambda tick, age, failed: failed & (age >= gap)


def at_random(chance: float, rng: np.random.Generator) -> Asks:
    """Returns updates with this chance at each tick, whatever happens."""
    return lambda tick, age, failed: rng.random(len(age)) < chance
