"""Trajectory needle, the task of long memory: something was shown once, long ago, among much that looks alike, and is asked for.

    stretch   0     1     2     3     4     5     6     7        each stands for `hold` ticks
    mark      -     M     -     -     M     -     -     -        a marked pair of key and value is a needle
    key       k9    k4    k4    k11   k7    k2    -     -
    value     v3    v6    v1    v8    v2    v5    -     -        in a pair without a mark they are hay: drawn anew every time
    asked     -     -     -     -     -     -     k7    k4       after `ticks` of hay each needle's key is asked for, in any order
    right     -     -     -     -     -     -     v2    v6       and pays 1 a tick; before that nothing pays

All symbols are of one alphabet: 0 is nothing, then come values, keys and the mark. A key that is asked for is the same symbol as
the key that was shown; hay may have it too. No two fields share any other symbol, so that a sum of them tells which is which. For
a layout: the planner alone reads mark, key, value and asked, in one token; the controller reads a clock. Where `hold` is the
planner's period, every stretch is read.
"""

import dataclasses

import dm_env
import numpy as np
from dm_env import specs

from hierarchy.episode import Episode, check

NOTHING = 0


@dataclasses.dataclass(frozen=True)
class Rules:
    """ticks: of hay with needles in it, before the first question. needles: how many, each in a stretch and with a key of its
    own. hold: ticks that a stretch stands. keys, values: how many there are. tick_s: s a tick."""

    ticks: int = 1024
    needles: int = 4
    hold: int = 16
    keys: int = 32
    values: int = 8
    tick_s: float = 0.04

    def __post_init__(self) -> None:
        if min(self.hold, self.needles) < 1 or self.values < 2 or self.ticks % self.hold:
            raise ValueError(f"{self}: it takes 1 needle and 2 values at least, and whole stretches of {self.hold} ticks")
        if self.needles > min(self.stretches, self.keys):
            raise ValueError(f"{self.needles} needles in {self.stretches} stretches with {self.keys} keys: leave some out")

    @property
    def stretches(self) -> int:
        """How many there are before the first question."""
        return self.ticks // self.hold

    @property
    def whole(self) -> int:
        """Ticks of an episode, its questions counted."""
        return self.ticks + self.needles * self.hold

    @property
    def mark(self) -> int:
        """The symbol that marks a needle; also the largest one."""
        return self.values + self.keys + 1

    @property
    def best(self) -> float:
        """The highest return."""
        return float(self.needles * self.hold)


@dataclasses.dataclass(frozen=True)
class Course:
    """What happens in an episode. mark, key, value, asked, right: int32 [stretches + needles], symbols, a stretch each. where:
    int [needles], the stretch of the needle that each question, in order, asks for."""

    mark: np.ndarray
    key: np.ndarray
    value: np.ndarray
    asked: np.ndarray
    right: np.ndarray
    where: np.ndarray


def course(rules: Rules, rng: np.random.Generator) -> Course:
    """Returns what happens in an episode: stretches of needles are drawn without replacement, and so are their keys."""
    count, first_key = rules.needles, 1 + rules.values
    key = first_key + rng.integers(rules.keys, size=rules.stretches)
    value = 1 + rng.integers(rules.values, size=rules.stretches)
    where = rng.choice(rules.stretches, count, replace=False)
    key[where] = first_key + rng.choice(rules.keys, count, replace=False)
    mark = np.zeros_like(key)
    mark[where] = rules.mark

    def then(hay: np.ndarray | int, questions: np.ndarray | int) -> np.ndarray:
        parts = np.broadcast_to(hay, rules.stretches), np.broadcast_to(questions, count)
        return np.concatenate(parts).astype(np.int32)

    asked, right = then(NOTHING, key[where]), then(NOTHING, value[where])
    return Course(then(mark, NOTHING), then(key, NOTHING), then(value, NOTHING), asked, right, where)


class Needle(dm_env.Environment):
    """The task; returns lie in [0, rules.best]."""

    def __init__(self, rules: Rules = Rules()):
        self.rules, self.tick_s = rules, rules.tick_s
        self._rng, self._tick = np.random.default_rng(), rules.whole

    def reseed(self, seed: int) -> None:
        """Makes the next reset a function of `seed` alone."""
        self._rng, self._tick = np.random.default_rng(seed), self.rules.whole

    def reset(self) -> dm_env.TimeStep:
        """Returns the first time step of an episode with needles of its own."""
        self.course, self._tick = course(self.rules, self._rng), 0
        return dm_env.restart(self._observation())

    @property
    def right(self) -> int:
        """The value that is asked for at this tick, 0 for none."""
        return int(self.course.right[self._tick // self.rules.hold])

    def step(self, action: int | np.ndarray) -> dm_env.TimeStep:
        """Returns the time step after `action`, a value's symbol or 0 for none; as in dm_env, the one after the last resets.

        Raises:
            ValueError: there is no such value.
        """
        if self._tick >= self.rules.whole:
            return self.reset()
        said = int(action)
        if not 0 <= said <= self.rules.values:
            raise ValueError(f"action {said} at tick {self._tick}: values are 1 to {self.rules.values}, and 0 is none")
        reward = float(self._tick >= self.rules.ticks and said == self.right)
        self._tick += 1
        if self._tick == self.rules.whole:
            return dm_env.truncation(reward, self._observation())
        return dm_env.transition(reward, self._observation())

    def observation_spec(self) -> dict[str, specs.Array]:
        """Returns the specs of `mark`, `key`, `value` and `asked`, symbols, int32 [1], and of `clock`, float32 [1]: where in its
        stretch a tick stands."""
        rules = self.rules
        last = {"mark": rules.mark, "key": rules.values + rules.keys, "value": rules.values, "asked": rules.values + rules.keys}
        symbols = {name: specs.BoundedArray((1,), np.int32, 0, most, name=name) for name, most in last.items()}
        return symbols | {"clock": specs.BoundedArray((1,), np.float32, 0, 1, name="clock")}

    def action_spec(self) -> specs.DiscreteArray:
        """Returns the spec of an action, a value's symbol or 0."""
        return specs.DiscreteArray(1 + self.rules.values, name="action")

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns `sub_goal`, int32 [1]: the value that is asked for, -1 while none is."""
        return {"sub_goal": np.array((self.right or -1,), np.int32)}

    def _observation(self) -> dict[str, np.ndarray]:
        # After the last tick the last stretch goes on.
        tick, hold = min(self._tick, self.rules.whole - 1), self.rules.hold
        seen = {name: getattr(self.course, name)[[tick // hold]] for name in ("mark", "key", "value", "asked")}
        return seen | {"clock": np.array((tick % hold / hold,), np.float32)}


class Expert:
    """Remembers everything: rests at 0, and gives the value that is asked for."""

    def begin(self, environment: Needle, rng: np.random.Generator) -> None:
        """Needs nothing."""

    def step(self, environment: Needle, time_step: dm_env.TimeStep) -> tuple[np.ndarray, np.ndarray]:
        """Returns (executed action, label), int32 [] and the same."""
        action = np.int32(environment.right)
        return action, action


def episode(rules: Rules, seed: int, source: str = "needle") -> Episode:
    """Returns the episode that recording the expert in `Needle(rules)` gives, made at once: a long one takes no longer than a
    short one to step through."""
    happens, ticks = course(rules, np.random.default_rng(seed)), np.arange(rules.whole)
    shown = np.minimum(np.arange(rules.whole + 1), rules.whole - 1)
    right = happens.right[ticks // rules.hold]
    symbols = {name: getattr(happens, name)[shown // rules.hold, None] for name in ("mark", "key", "value", "asked")}
    return check(
        Episode(
            source=source,
            tick_s=rules.tick_s,
            observation=symbols | {"clock": (shown % rules.hold / rules.hold).astype(np.float32)[:, None]},
            text={},
            action=right,
            label=right,
            reward=(ticks >= rules.ticks).astype(np.float32),
            discount=np.ones(rules.whole, np.float32),
            privileged={"sub_goal": np.where(right == NOTHING, -1, right).astype(np.int32)[:, None]},
            terminated=False,
            truncated=True,
            seed=seed,
            info={"return": rules.best},
        )
    )
