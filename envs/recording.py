"""Recording episodes of an expert, and playing a recorded episode again."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import dm_env
import numpy as np

from envs.loop import Moment, Observations, assemble, first_step, flat_spec, legal, privileged, run, stack
from hierarchy.episode import Episode

BOTH = np.ones(2, bool)


class Expert(Protocol):
    """What is imitated. It may look at the environment. What it alone knows of the tick to come it may tell by `privileged`, as
    an environment does."""

    def begin(self, environment: dm_env.Environment, rng: np.random.Generator) -> None:
        """Prepares for the episode that has just been reset."""

    def step(self, environment: dm_env.Environment, time_step: dm_env.TimeStep) -> tuple[np.ndarray, np.ndarray]:
        """Returns the action to execute and the clean action to imitate, which differ under noise and detours."""


def record(
    environment: dm_env.Environment,
    expert: Expert,
    seed: int,
    source: str,
    tick_s: float | None = None,
    max_ticks: int | None = None,
) -> Episode:
    """Returns the episode of this seed, run by the expert to its end or to `max_ticks`.

    `tick_s` is needed where the environment does not state it. The expert's own randomness is a function of the seed too.

    Raises:
        ValueError: an action or a label is outside its spec, or an observation is missing or not finite.
    """
    step = first_step(environment, seed)
    expert.begin(environment, np.random.default_rng((seed, 1)))
    frames, steps, known, actions, labels = [step.observation], [], [], [], []
    while not step.last() and (max_ticks is None or len(steps) < max_ticks):
        known.append(privileged(environment) | privileged(expert))
        action, label = ask(expert, environment, step, len(steps))
        step = environment.step(action)
        steps.append(step)
        frames.append(step.observation)
        actions.append(action)
        labels.append(label)
    outcome = [step.reward for step in steps], [step.discount for step in steps]
    return assemble(environment, seed, source, tick_s, frames, known, np.stack(actions), np.stack(labels), *outcome)


def ask(expert: Expert, environment: dm_env.Environment, step: dm_env.TimeStep, tick: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the expert's action and label in the dtype of the action spec, or raises ValueError where one is outside it."""
    spec = environment.action_spec()
    action, label = expert.step(environment, step)
    try:
        action, label = legal(spec, np.array((action, label)), BOTH, tick, ("the expert's action", "the expert's label"))
        return action, label
    except ValueError:
        # An observation that is not finite explains more than the action that it led to.
        stack(flat_spec(environment), [step], tick)
        raise


class Tape:
    """A policy that plays given actions [T, ...] to one environment, whatever it sees."""

    def __init__(self, actions: np.ndarray) -> None:
        self._actions = actions

    def begin(self, seeds: Sequence[int]) -> int:
        return 0

    def step(self, state: int, observations: Observations) -> tuple[np.ndarray, Any]:
        return self._actions[state][None], state + 1


def replay(environment: dm_env.Environment, episode: Episode) -> Iterator[Moment]:
    """Yields the moments of the episode's executed actions, fed again to an environment of the same seed.

    An environment whose resets follow their seed shows the recorded observations again, to the bit.
    """
    return run([environment], Tape(episode.action), [episode.seed], max_ticks=episode.ticks)
