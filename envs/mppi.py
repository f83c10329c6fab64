"""Planning by sampling: model-predictive path integral control (Williams et al. 2017, arXiv 1509.01149) on spline knots.

    plan      knots of a piecewise linear control, [knots, actuators], over a horizon of whole ticks
    improve   samples around it, rolled out in MuJoCo on one thread; the plan becomes their mean, weighted by exp(return)
    advance   the same control, seen one tick later

Every tick takes one round of improvement and executes the control that the plan begins with.
"""

import dataclasses
from collections.abc import Callable, Mapping

import mujoco
import numpy as np
from mujoco.rollout import Rollout

Sensors = Mapping[str, np.ndarray]
Reward = Callable[[mujoco.MjModel, Sensors, np.ndarray], np.ndarray]
"""(model, name to [samples, ticks, n], controls [samples, ticks, actuators]) to rewards [samples, ticks]."""

DRAWN = ("geom_pos", "geom_size", "site_pos", "site_size")
"""Where the suite's tasks put what they draw at a reset: targets and their sizes."""


@dataclasses.dataclass(frozen=True)
class Search:
    """horizon: in ticks. steps: of the planning model's physics, a tick; fewer than the world's own make planning cheaper.

    knots: of the spline. samples: rollouts a round. spread: standard deviation of the widest samples' knots; each further sample
    of four has half of the one before, so that one round both explores and refines. temperature: of the weights, in standard
    deviations of the samples' returns. first: rounds before the first tick.
    """

    horizon: int
    steps: int
    knots: int = 5
    samples: int = 32
    spread: float = 0.8
    temperature: float = 0.2
    first: int = 8


class Planner:
    """Plans for one model of physics; everything drawn comes from the generator given to `begin`."""

    def __init__(self, model: mujoco.MjModel, reward: Reward, search: Search, tick_s: float):
        model.opt.timestep = tick_s / search.steps
        self._model, self._reward, self._search = model, reward, search
        self._data, self._rollout = mujoco.MjData(model), Rollout(nthread=0)
        self._columns = {sensor.name: sensor_columns(sensor) for sensor in map(model.sensor, range(model.nsensor))}
        times = np.linspace(0.0, search.horizon - 1.0, search.knots)
        hats = np.eye(search.knots)
        self._spline = np.stack([np.interp(np.arange(search.horizon), times, hat) for hat in hats], axis=1)
        self._later = np.stack([np.interp(times + 1.0, times, hat) for hat in hats], axis=1)
        self._scales = search.spread * 0.5 ** (np.arange(search.samples) % 4)

    def begin(self, world: mujoco.MjModel, state: np.ndarray, rng: np.random.Generator) -> None:
        """Takes over what the world drew at its reset, and plans from scratch."""
        for name in DRAWN:
            getattr(self._model, name)[:] = getattr(world, name)
        self._rng, self._plan = rng, np.zeros((self._search.knots, self._model.nu))
        for _ in range(self._search.first):
            self._improve(state)

    def act(self, state: np.ndarray) -> np.ndarray:
        """Returns the action [actuators] in [-1, 1] of this tick; the next call is for the tick that follows."""
        self._improve(state)
        action = self._plan[0].copy()
        self._plan = self._later @ self._plan
        return action

    def _improve(self, state: np.ndarray) -> None:
        noise = self._rng.standard_normal((self._search.samples, *self._plan.shape)) * self._scales[:, None, None]
        noise[0] = 0.0
        knots = np.clip(self._plan + noise, -1.0, 1.0)
        returns = self._returns(state, self._spline @ knots)
        sound = np.isfinite(returns)
        if not sound.any():
            return
        scale = self._search.temperature * returns[sound].std() + 1e-9
        weights = np.exp((np.where(sound, returns, -np.inf) - returns[sound].max()) / scale)
        self._plan = np.tensordot(weights / weights.sum(), knots, 1)

    def _returns(self, state: np.ndarray, controls: np.ndarray) -> np.ndarray:
        """Returns the mean reward [samples] of controls [samples, horizon, actuators], each held for its tick."""
        held = np.repeat(controls, self._search.steps, axis=1)
        _, readings = self._rollout.rollout(self._model, self._data, state[None], held)
        # Sensors are of the state that a step starts from: those of a tick's last step, of nearly its end.
        at_ends = readings[:, self._search.steps - 1 :: self._search.steps]
        sensors = {name: at_ends[..., columns] for name, columns in self._columns.items()}
        return self._reward(self._model, sensors, controls).mean(axis=1)


def sensor_columns(sensor) -> slice:
    """Returns where a sensor's numbers stand in MuJoCo's sensordata."""
    return slice(int(sensor.adr[0]), int(sensor.adr[0] + sensor.dim[0]))
