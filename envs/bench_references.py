"""Scripted policies for the bench tasks, in the loop's contract: perfect control on late plans, and actions decided seldom.

moments = run(environments, plan_reader(act_on_goal, "goal", ticks=128, ratio=8, latency=4), seeds)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from envs import disturbance_rejection
from hierarchy.timeline import NO_PLAN, Timeline, periodic, visible

Observations = Mapping[str, np.ndarray]
Act = Callable[[Observations, np.ndarray | None], np.ndarray]
"""Actions [B, ...] from what is seen now and from what the updates up to the visible plan saw of a field, [J, B, ...] or None."""


class PlanReader:
    """Acts at every tick on what it sees and on what the visible plan's update, and the earlier ones, saw of one field."""

    def __init__(self, act: Act, field: str, timeline: Timeline, ticks: int):
        self._act, self._field, self._observed = act, field, timeline.observed
        self._plans = visible(timeline, np.arange(ticks))

    def begin(self, seeds: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Returns the state of a fresh batch: nothing read so far."""
        return ()

    def step(self, state: tuple[np.ndarray, ...], observations: Observations) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Returns actions [B, ...] and the state, all that has been read so far."""
        seen = (*state, observations[self._field])
        plan = self._plans[len(state)]
        reads = None if plan == NO_PLAN else np.stack([seen[tick] for tick in self._observed[: plan + 1]])
        return self._act(observations, reads), seen


def plan_reader(act: Act, field: str, ticks: int, ratio: int, latency: int) -> PlanReader:
    """Returns the policy that acts with `act` on plans made every `ratio` ticks and `latency` ticks late."""
    return PlanReader(act, field, periodic(ticks, ratio, latency), ticks)


def recall_cue(observations: Observations, reads: np.ndarray | None) -> np.ndarray:
    """Returns int32 [B]: the one cue that an update has seen; 0 before any plan."""
    batch = len(observations["go"])
    return np.zeros(batch, np.int32) if reads is None else np.maximum(reads[..., 0].max(axis=0) - 1, 0)


def act_on_goal(observations: Observations, reads: np.ndarray | None) -> np.ndarray:
    """Returns int32 [B]: the goal that the visible plan's update saw; 0 before any plan."""
    return np.zeros(len(observations["clock"]), np.int32) if reads is None else reads[-1, :, 0]


def reach_goal(rules: disturbance_rejection.Rules) -> Act:
    """Returns exact control towards the goal that the visible plan's update saw, or towards 0 before any plan."""

    def act(observations: Observations, reads: np.ndarray | None) -> np.ndarray:
        position = observations["position"]
        return disturbance_rejection.reach(rules, position, np.zeros_like(position) if reads is None else reads[-1])

    return act


class Decided(NamedTuple):
    """What a seldom controller holds between decisions.

    tick: of the next step. position, goal: [B, 1], the position expected now and the goal. action: [B, 1].
    """

    tick: int
    position: np.ndarray
    goal: np.ndarray
    action: np.ndarray


class Seldom:
    """Sees position and goal of disturbance rejection every k ticks: `open_loop` plans k actions, else one action is held.

    The held action is the one with the least mean square distance from the goal over the hold, so it is made for its k.
    """

    def __init__(self, rules: disturbance_rejection.Rules, k: int, open_loop: bool = False):
        self._rules, self._k, self._open_loop = rules, k, open_loop

    def begin(self, seeds: Sequence[int]) -> Decided:
        """Returns the state of a fresh batch: nothing decided."""
        nothing = np.zeros((len(seeds), 1))
        return Decided(0, nothing, nothing, nothing)

    def step(self, state: Decided, observations: Observations) -> tuple[np.ndarray, Decided]:
        """Returns actions float32 [B, 1] and the state."""
        looks = state.tick % self._k == 0
        position, goal = (observations["position"], observations["goal"]) if looks else (state.position, state.goal)
        action = state.action
        if self._open_loop:
            action = disturbance_rejection.reach(self._rules, position, goal)
        elif looks:
            action = self._held(position, goal)
        expected = self._rules.growth * position + self._rules.push * action
        return action, Decided(state.tick + 1, expected, goal, action)

    def _held(self, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        powers = self._rules.growth ** np.arange(self._k + 1.0)
        # After i ticks of one action u the position is powers[i] x + sums[i - 1] push u.
        sums = np.cumsum(powers[:-1])
        wanted = ((goal - powers[1:] * position) * sums).sum(axis=1, keepdims=True) / (sums**2).sum()
        return np.clip(wanted / self._rules.push, -1.0, 1.0).astype(np.float32)
