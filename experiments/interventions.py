"""What is done to plans, to actions, and before the first tick, to see what they are worth."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.loop import Policy

Control = Literal["none", "zeroed", "frozen", "shuffled", "stale", "random"]
Vectors = jax.Array


def intervention(control: Control, seed: int = 0) -> Callable[[int, Vectors], Vectors] | None:
    """Returns what turns update j's plan vectors [B, P, D] into those that the controller gets; fresh for each run of B episodes.

    zeroed: all zeros. frozen: the first plan for ever. shuffled: the same update's plan of the next episode of the batch.
    stale: the plan of one update earlier. random: one random plan for ever, another for each episode, of a plan's size.

    Raises:
        ValueError: no such control; or plans to be shuffled in a batch of one.
    """
    kept: dict[str, Vectors] = {}

    def frozen(j: int, plan: Vectors) -> Vectors:
        return kept.setdefault("first", plan)

    def stale(j: int, plan: Vectors) -> Vectors:
        before = kept.get("last", plan)
        kept["last"] = plan
        return before

    def shuffled(j: int, plan: Vectors) -> Vectors:
        if len(plan) < 2:
            raise ValueError("plans are shuffled across the episodes of a batch: step at least 2 together")
        return jnp.roll(plan, 1, axis=0)

    def random(j: int, plan: Vectors) -> Vectors:
        if "random" not in kept:
            drawn = np.random.default_rng(seed).standard_normal(plan.shape).astype(np.float32)
            kept["random"] = jnp.asarray(drawn / np.sqrt(np.mean(drawn**2, axis=-1, keepdims=True)))
        return kept["random"]

    known = {"none": None, "zeroed": lambda j, plan: jnp.zeros_like(plan)}
    known |= {"frozen": frozen, "stale": stale, "shuffled": shuffled, "random": random}
    if control not in known:
        raise ValueError(f"no control {control!r}: there are {', '.join(known)}")
    return known[control]


class Prompted:
    """A policy whose state has read something before tick 0: `read` is from its fresh state to that one."""

    def __init__(self, policy: Policy, read: Callable[[Any], Any]):
        self._policy, self._read = policy, read
        self.step = policy.step

    def begin(self, seeds: Sequence[int]) -> Any:
        """Returns the state before tick 0, what is to be read before it read."""
        return self._read(self._policy.begin(seeds))


class Acted(NamedTuple):
    """State of a policy whose actions are held or late. recent: actions as they were decided, newest last."""

    inner: Any
    tick: int
    recent: tuple[np.ndarray, ...]


class HeldAction:
    """A policy that decides at every k-th tick and repeats its action in between."""

    def __init__(self, policy: Policy, ticks: int):
        self._policy, self._ticks = policy, ticks

    def begin(self, seeds: Sequence[int]) -> Acted:
        """Returns the state before tick 0."""
        return Acted(self._policy.begin(seeds), 0, ())

    def step(self, state: Acted, observations: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Acted]:
        """Returns the action decided at the last multiple of k."""
        decided, inner = self._policy.step(state.inner, observations)
        recent = (decided,) if state.tick % self._ticks == 0 else state.recent
        return recent[0], Acted(inner, state.tick + 1, recent)


class LateAction:
    """A policy whose actions take effect `ticks` later; until the first does, nothing is done (an action of zeros)."""

    def __init__(self, policy: Policy, ticks: int):
        self._policy, self._ticks = policy, ticks

    def begin(self, seeds: Sequence[int]) -> Acted:
        """Returns the state before tick 0."""
        return Acted(self._policy.begin(seeds), 0, ())

    def step(self, state: Acted, observations: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Acted]:
        """Returns the action decided `ticks` ago."""
        decided, inner = self._policy.step(state.inner, observations)
        recent = (*state.recent, decided)
        action = recent[0] if len(recent) > self._ticks else np.zeros_like(decided)
        return action, Acted(inner, state.tick + 1, recent[-self._ticks :] if self._ticks else ())
