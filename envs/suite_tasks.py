"""Further bodies of the DeepMind Control Suite (arXiv 1801.00690) as environments of ours, through their specs alone.

    make("walker_walk")        250 ticks of 0.05 s: two of the suite's steps under one action
    make("walker_walk", 40)    the same task, cut off after 40 ticks

A tick is `repeat` steps of the suite and its reward their mean, so it lies in [0, 1]; time alone ends an episode (its last
discount is 1). Two steps a tick halve what an expert that plans costs, and `envs/suite_planning.py` says what it then reaches;
250 ticks hold the catch or the way to the target many times over. The bodies of `envs/suite.py` are stepped without the suite's
overhead; these pay it, since planning costs hundreds of times more.
"""

from typing import NamedTuple

import dm_env
import mujoco
import numpy as np
from dm_control import suite
from dm_env import specs

TICKS = 250


class Setting(NamedTuple):
    """One task of the suite. repeat: of its steps, a tick. ticks: an episode."""

    domain: str
    task: str
    repeat: int = 2
    ticks: int = TICKS


SETTINGS: dict[str, Setting] = {
    "ball_in_cup_catch": Setting("ball_in_cup", "catch"),
    "finger_turn_easy": Setting("finger", "turn_easy"),
    "finger_turn_hard": Setting("finger", "turn_hard"),
    "fish_upright": Setting("fish", "upright"),
    "fish_swim": Setting("fish", "swim"),
    "walker_stand": Setting("walker", "stand"),
    "walker_walk": Setting("walker", "walk"),
}


class SuiteTask(dm_env.Environment):
    """A task of the suite; `make` builds it. Observations are the suite's own fields, flat and in float32."""

    def __init__(self, name: str, ticks: int):
        setting = SETTINGS[name]
        self.name, self.ticks, self._repeat = name, ticks, setting.repeat
        self._suite = suite.load(setting.domain, setting.task)
        self.tick_s = setting.repeat * float(self._suite.control_timestep())
        self.model, self.data = self._suite.physics.model.ptr, self._suite.physics.data.ptr
        self._tick = None

    def reseed(self, seed: int) -> None:
        """Makes the next reset a function of `seed` alone."""
        self._suite.task.random.seed(seed)
        self._tick = None

    def reset(self) -> dm_env.TimeStep:
        """Returns the first time step of a fresh episode, drawn as the suite draws it."""
        self._tick = 0
        return dm_env.restart(_flat(self._suite.reset().observation))

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        """Returns the time step after `action` [actuators]; as in dm_env, the one after the last resets.

        Raises:
            ValueError: the action is not finite.
        """
        if self._tick is None or self._tick >= self.ticks:
            return self.reset()
        if not np.isfinite(action).all():
            raise ValueError(f"{self.name}: action {action} at tick {self._tick} is not finite")
        steps = [self._suite.step(action) for _ in range(self._repeat)]
        self._tick += 1
        reward, observation = float(np.mean([step.reward for step in steps])), _flat(steps[-1].observation)
        if self._tick == self.ticks:
            return dm_env.truncation(reward, observation)
        return dm_env.transition(reward, observation)

    def observation_spec(self) -> dict[str, specs.Array]:
        """Returns name to float32 spec [n]; the suite's own fields."""
        theirs = self._suite.observation_spec()
        return {name: specs.Array((int(np.prod(spec.shape)),), np.float32, name) for name, spec in theirs.items()}

    def action_spec(self) -> specs.BoundedArray:
        """Returns the spec of an action: float32 [actuators] in [-1, 1]."""
        return specs.BoundedArray(self._suite.action_spec().shape, np.float32, minimum=-1.0, maximum=1.0, name="action")

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns {}: everything is observed."""
        return {}

    def physics_state(self) -> np.ndarray:
        """Returns float64 [n]: what MuJoCo needs to go on from here, for experts that plan."""
        whole = mujoco.mjtState.mjSTATE_FULLPHYSICS
        state = np.empty(mujoco.mj_stateSize(self.model, whole))
        mujoco.mj_getState(self.model, self.data, state, whole)
        return state


def _flat(observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float32).reshape(-1) for name, value in observation.items()}


def make(name: str, ticks: int | None = None) -> SuiteTask:
    """Returns one task, cut off after `ticks` ticks; drawn from entropy until `reseed`.

    Raises:
        ValueError: no such task here, or not 1 to its own number of ticks.
    """
    if name not in SETTINGS:
        raise ValueError(f"no suite task {name!r} here; there are {sorted(SETTINGS)}")
    most = SETTINGS[name].ticks
    if ticks is not None and not 1 <= ticks <= most:
        raise ValueError(f"{name}: {ticks} ticks; an episode has 1 to {most}")
    return SuiteTask(name, ticks or most)
