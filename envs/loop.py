"""The control loop: policy and environments take turns, and nothing else happens. Trackers watch its moments.

    for moment in run(environments, policy, seeds): ...

A policy drives B environments in lockstep: `state = policy.begin(seeds)`, then at every tick
`actions, state = policy.step(state, observations)`, with observations stacked to [B, ...] (words to object arrays [B]).
Environments are `dm_env.Environment`s with flat observations; `reseed` and `privileged` are used where they exist.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import dm_env
import numpy as np
from dm_env import specs

from hierarchy.episode import Episode, check

Observations = Mapping[str, np.ndarray]


class Policy(Protocol):
    """What acts. Its state is a value that only it looks into."""

    def begin(self, seeds: Sequence[int]) -> Any:
        """Returns the state at tick 0 of one fresh episode a seed."""

    def step(self, state: Any, observations: Observations) -> tuple[np.ndarray, Any]:
        """Returns actions [B, ...] inside the action spec, and the next state."""


class Moment(NamedTuple):
    """One tick of B environments, from seeing to what followed.

    observations: name to [B, ...], seen before the action. privileged: the same for what only a recorder may know.
    actions: [B, ...] as executed. rewards, discounts: float32 [B], those that followed.
    live: bool [B], whether the episode was still running when the action was taken. Where it was not, nothing was executed, the
        reward and the discount are 0 and the observation is the episode's last.
    following: name to [B, ...], seen after the action.
    """

    tick: int
    observations: Observations
    privileged: Observations
    actions: np.ndarray
    rewards: np.ndarray
    discounts: np.ndarray
    live: np.ndarray
    following: Observations


def run(
    environments: Sequence[dm_env.Environment], policy: Policy, seeds: Sequence[int], max_ticks: int | None = None
) -> Iterator[Moment]:
    """Yields one moment a tick until every episode has ended or `max_ticks` have passed.

    Raises:
        ValueError: seeds and environments differ in number, an observation is missing or not finite, or an action is outside
            its spec; the message names the field, the environment and the tick.
    """
    if not environments or len(environments) != len(seeds):
        raise ValueError(f"{len(environments)} environments and {len(seeds)} seeds: give one seed an environment, at least one")
    fields, spec = flat_spec(environments[0]), environments[0].action_spec()
    steps = [first_step(environment, seed) for environment, seed in zip(environments, seeds)]
    state, live = policy.begin(seeds), np.ones(len(environments), bool)
    observations, tick = stack(fields, steps, 0), 0
    while live.any() and (max_ticks is None or tick < max_ticks):
        privileged = stack_privileged(environments)
        proposed, state = policy.step(state, observations)
        actions = legal(spec, proposed, live, tick)
        rewards, discounts, running = np.zeros(len(steps), np.float32), np.zeros(len(steps), np.float32), live.copy()
        for i in np.flatnonzero(live):
            steps[i] = environments[i].step(actions[i])
            rewards[i], discounts[i], running[i] = steps[i].reward, steps[i].discount, not steps[i].last()
        following = stack(fields, steps, tick + 1)
        yield Moment(tick, observations, privileged, actions, rewards, discounts, live, following)
        observations, live, tick = following, running, tick + 1


def flat_spec(environment: dm_env.Environment) -> dict[str, specs.Array]:
    """Returns the observation spec, or raises ValueError where it is not a flat mapping of names to arrays."""
    spec = environment.observation_spec()
    if not isinstance(spec, Mapping) or not all(isinstance(field, specs.Array) for field in spec.values()):
        raise ValueError(f"observation_spec of {type(environment).__name__} must be a flat dict of specs.Array; flatten it")
    return dict(spec)


def first_step(environment: dm_env.Environment, seed: int) -> dm_env.TimeStep:
    """Returns the first time step of the episode of this seed; an environment without `reseed` goes on by itself."""
    if hasattr(environment, "reseed"):
        environment.reseed(seed)
    return environment.reset()


def privileged(source: Any) -> dict[str, np.ndarray]:
    """Returns what an environment or an expert tells a recorder alone; {} where it has no such thing."""
    return source.privileged() if hasattr(source, "privileged") else {}


def stack_privileged(environments: Sequence[dm_env.Environment]) -> dict[str, np.ndarray]:
    """Returns name to [B, ...] of what all environments tell a recorder alone."""
    rows = [privileged(environment) for environment in environments]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def stack(fields: Mapping[str, specs.Array], steps: Sequence[dm_env.TimeStep], tick: int) -> dict[str, np.ndarray]:
    """Returns name to [B, ...] of the fields in the spec, or raises ValueError naming the one that is missing or not finite."""
    stacked = {}
    for name, spec in fields.items():
        if any(name not in step.observation for step in steps):
            raise ValueError(f"observation {name!r} is in the spec and missing at tick {tick}")
        if isinstance(spec, specs.StringArray):
            stacked[name] = np.array([str(step.observation[name]) for step in steps], dtype=object)
            continue
        stacked[name] = rows = np.array([step.observation[name] for step in steps], spec.dtype)
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            i = int(np.argwhere(~np.isfinite(rows))[0][0])
            raise ValueError(f"observation {name!r} is not finite at tick {tick} of environment {i}: {rows[i]}")
    return stacked


def legal(spec: specs.Array, proposed: np.ndarray, live: np.ndarray, tick: int, rows: Sequence[str] | None = None) -> np.ndarray:
    """Returns the actions [B, ...] in the spec's dtype, or raises ValueError naming the first live one outside the spec.

    `rows` says what each row is; one environment's action, unless told.
    """
    proposed = np.asarray(proposed)
    if proposed.shape != (len(live), *spec.shape):
        raise ValueError(f"actions at tick {tick} have shape {proposed.shape}; {(len(live), *spec.shape)} is expected")
    if spec.dtype.kind in "iu" and proposed.dtype.kind not in "iu":
        raise ValueError(f"actions at tick {tick} are {proposed.dtype}; action {spec.name!r} takes whole numbers, {spec.dtype}")
    actions = proposed.astype(spec.dtype)
    if isinstance(spec, specs.BoundedArray):
        # Compared so that a NaN is outside too.
        inside = ((actions >= spec.minimum) & (actions <= spec.maximum)).reshape(len(live), -1).all(axis=1)
        if not inside[live].all():
            i = int(np.argmin(inside | ~live))
            row = f"action of environment {i}" if rows is None else rows[i]
            raise ValueError(f"{row} at tick {tick} is {actions[i]}, not in {spec.name!r}, [{spec.minimum}, {spec.maximum}]")
    return actions


def returns(moments: Iterable[Moment]) -> np.ndarray:
    """Returns float64 [B]: the undiscounted sum of each episode's rewards; [0] where there were no moments."""
    return np.sum([moment.rewards.astype(np.float64) for moment in moments], axis=0)


def episodes(
    moments: Iterable[Moment],
    environments: Sequence[dm_env.Environment],
    seeds: Sequence[int],
    source: str,
    tick_s: float | None = None,
) -> list[Episode]:
    """Returns the B episodes that these moments tell, each action its own label.

    An episode whose last discount is 0 was terminated; any other was truncated, by its environment or by `max_ticks`.
    """
    moments = list(moments)
    made = []
    for i, (environment, seed) in enumerate(zip(environments, seeds)):
        own = [moment for moment in moments if moment.live[i]]
        if not own:
            raise ValueError(f"environment {i} has no moment: an episode needs at least one tick")
        frames = [{name: value[i] for name, value in moment.observations.items()} for moment in own]
        frames.append({name: value[i] for name, value in own[-1].following.items()})
        known = [{name: value[i] for name, value in moment.privileged.items()} for moment in own]
        actions = np.stack([moment.actions[i] for moment in own])
        rewards, discounts = ([float(getattr(moment, key)[i]) for moment in own] for key in ("rewards", "discounts"))
        made.append(assemble(environment, seed, source, tick_s, frames, known, actions, actions, rewards, discounts))
    return made


def assemble(
    environment: dm_env.Environment,
    seed: int,
    source: str,
    tick_s: float | None,
    frames: Sequence[Observations],
    known: Sequence[Observations],
    actions: np.ndarray,
    labels: np.ndarray,
    rewards: Sequence[float],
    discounts: Sequence[float],
) -> Episode:
    """Returns the checked episode of T actions, T + 1 frames of observations and T frames of privileged fields."""
    fields = flat_spec(environment)
    for name in fields:
        if any(name not in frame for frame in frames):
            raise ValueError(f"observation {name!r} is in the spec of {type(environment).__name__} and missing from a time step")
    texts = [name for name, spec in fields.items() if isinstance(spec, specs.StringArray)]
    numbers = {name: np.array([f[name] for f in frames], spec.dtype) for name, spec in fields.items() if name not in texts}
    tick_s = getattr(environment, "tick_s", None) if tick_s is None else tick_s
    if tick_s is None:
        raise ValueError(f"{type(environment).__name__} does not say how long a tick is: pass tick_s")
    ended = discounts[-1] == 0.0
    return check(
        Episode(
            source=source,
            tick_s=tick_s,
            observation=numbers,
            text={name: changes([str(frame[name]) for frame in frames]) for name in texts},
            action=actions,
            label=labels,
            reward=np.array(rewards, np.float32),
            discount=np.array(discounts, np.float32),
            privileged={name: np.array([row[name] for row in known]) for name in known[0]},
            terminated=ended,
            truncated=not ended,
            seed=seed,
            info={"return": float(np.sum(rewards))},
        )
    )


def changes(words: Sequence[str]) -> tuple[tuple[int, str], ...]:
    """Returns ((tick, words), ...) for tick 0 and every tick whose words differ from those before."""
    return tuple((tick, now) for tick, now in enumerate(words) if tick == 0 or now != words[tick - 1])
