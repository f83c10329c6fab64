"""Pointer chain, the task whose difficulty is depth: where does following links from a start end?

    links     0 1 0 1 2 4      node 2 points to 0, node 3 to 1, node 4 to 2, ...; nodes 0 and 1 to themselves: there a chain ends
    start     5                5 -> 4 -> 2 -> 0: the right action is node 0, and pays 1; at the next tick there is another start

A link points to an earlier node, because in a stream a token sees those before it. One layer looks one link up: the next hop
cannot begin before the last one is known. Who follows no link can see which nodes are ends, and guess among as many as there are
chains. For a layout: the planner alone reads links, once, and starts; the controller reads a clock.
"""

import dataclasses

import dm_env
import numpy as np
from dm_env import specs


@dataclasses.dataclass(frozen=True)
class Rules:
    """chains: how many there are. length: nodes of each, its end counted. ticks: starts of an episode. tick_s: s a tick."""

    chains: int = 3
    length: int = 6
    ticks: int = 8
    tick_s: float = 0.04

    def __post_init__(self) -> None:
        if self.chains < 2 or self.length < 2 or self.ticks < 1:
            raise ValueError(f"{self}: it takes 2 chains of 2 nodes and 1 tick at least")

    @property
    def nodes(self) -> int:
        """How many there are in all chains."""
        return self.chains * self.length

    @property
    def hops(self) -> int:
        """The most that an end is away; a start is 0 to so many away, each as likely."""
        return self.length - 1

    @property
    def best(self) -> float:
        """The highest return."""
        return float(self.ticks)


def follow(links: np.ndarray, start: int, hops: int) -> int:
    """Returns the end that is reached."""
    node = start
    for _ in range(hops):
        node = int(links[node])
    return node


class PointerChain(dm_env.Environment):
    """The task; returns lie in [0, rules.ticks]. hops: from every start to its end, drawn where it is None."""

    def __init__(self, rules: Rules = Rules(), hops: int | None = None):
        if hops is not None and not 0 <= hops <= rules.hops:
            raise ValueError(f"hops {hops}: 0 to {rules.hops}")
        self.rules, self.tick_s, self._always = rules, rules.tick_s, hops
        self._rng, self._tick = np.random.default_rng(), rules.ticks

    def reseed(self, seed: int) -> None:
        """Makes the next reset a function of `seed` alone."""
        self._rng, self._tick = np.random.default_rng(seed), self.rules.ticks

    def reset(self) -> dm_env.TimeStep:
        """Returns the first time step of an episode with links of its own."""
        rules, self._tick = self.rules, 0
        chains = -np.sort(-self._rng.permutation(rules.nodes).reshape(rules.chains, rules.length))
        self.links = np.empty(rules.nodes, np.int32)
        self.links[chains[:, :-1]], self.links[chains[:, -1]] = chains[:, 1:], chains[:, -1]
        own = chains[self._rng.integers(rules.chains, size=rules.ticks)]
        drawn = self._rng.integers(rules.length, size=rules.ticks)
        self.hops = drawn if self._always is None else np.full(rules.ticks, self._always)
        self._starts, self._goals = own[np.arange(rules.ticks), rules.hops - self.hops], own[:, -1]
        return dm_env.restart(self._observation())

    @property
    def goal(self) -> int:
        """The end that this tick's start leads to."""
        return int(self._goals[self._tick])

    def step(self, action: int | np.ndarray) -> dm_env.TimeStep:
        """Returns the time step after `action`, a node's number; as in dm_env, the one after the last resets.

        Raises:
            ValueError: there is no such node.
        """
        if self._tick >= self.rules.ticks:
            return self.reset()
        node = int(action)
        if not 0 <= node < self.rules.nodes:
            raise ValueError(f"action {node} at tick {self._tick}: nodes are numbered 0 to {self.rules.nodes - 1}")
        reward = float(node == self.goal)
        self._tick += 1
        if self._tick == self.rules.ticks:
            return dm_env.truncation(reward, self._observation())
        return dm_env.transition(reward, self._observation())

    def observation_spec(self) -> dict[str, specs.Array]:
        """Returns the specs of `links`, int32 [nodes], of `start`, int32 [1], and of `clock`, float32 [1]."""
        nodes = self.rules.nodes
        return {
            "links": specs.BoundedArray((nodes,), np.int32, 0, nodes - 1, name="links"),
            "start": specs.BoundedArray((1,), np.int32, 0, nodes - 1, name="start"),
            "clock": specs.BoundedArray((1,), np.float32, 0, 1, name="clock"),
        }

    def action_spec(self) -> specs.DiscreteArray:
        """Returns the spec of an action, a node's number."""
        return specs.DiscreteArray(self.rules.nodes, name="action")

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns `sub_goal`, int32 [1]: the end that this tick's start leads to."""
        return {"sub_goal": np.array((self.goal,), np.int32)}

    def _observation(self) -> dict[str, np.ndarray]:
        return {
            "links": self.links.copy(),
            # After the last tick there is no other start.
            "start": self._starts[[min(self._tick, self.rules.ticks - 1)]].astype(np.int32),
            "clock": np.array((self._tick / self.rules.ticks,), np.float32),
        }


class Expert:
    """Goes to the end that is reached."""

    def begin(self, environment: PointerChain, rng: np.random.Generator) -> None:
        """Needs nothing."""

    def step(self, environment: PointerChain, time_step: dm_env.TimeStep) -> tuple[np.ndarray, np.ndarray]:
        """Returns (executed action, label), int32 [] and the same."""
        action = np.int32(environment.goal)
        return action, action
