"""The cart and pole of the dm_control suite, stepped at a control tick of 0.04 s without the suite's overhead.

The compiled model is the suite's own `cartpole.xml` (RK4, 0.01 s). It is built once and shared; each `Cartpole` has its own data.
"""

import functools
import importlib.resources
from typing import NamedTuple

import mujoco
import numpy as np

TICK_S = 0.04
SLIDER_M = 1.8


class State(NamedTuple):
    """Cart position in m, pole angle from upright in rad, and their speeds in m/s and rad/s."""

    x: float
    theta: float
    x_speed: float
    theta_speed: float


@functools.cache
def model() -> mujoco.MjModel:
    """Returns the suite's compiled cartpole, one object for all."""
    with importlib.resources.as_file(importlib.resources.files("dm_control") / "suite") as suite:
        return mujoco.MjModel.from_xml_path(str(suite / "cartpole.xml"))


class Cartpole:
    """One cart with its pole."""

    def __init__(self) -> None:
        self._model = model()
        self._data = mujoco.MjData(self._model)
        self._substeps = round(TICK_S / self._model.opt.timestep)
        # Views into the data: looking them up through the bindings costs more than a physics step.
        self._ctrl, self._qpos, self._qvel = self._data.ctrl, self._data.qpos, self._data.qvel

    def reset(self, state: State) -> None:
        """Puts cart and pole in `state`, with nothing left of what was before."""
        mujoco.mj_resetData(self._model, self._data)
        self._qpos[:] = state.x, state.theta
        self._qvel[:] = state.x_speed, state.theta_speed

    def advance(self, action: float, push_rad_s: float = 0.0) -> State:
        """Returns the state one tick later: the hinge speed jumps by the push, then the motor holds `action` in [-1, 1]."""
        if push_rad_s:
            self._qvel[1] += push_rad_s
        self._ctrl[0] = action
        mujoco.mj_step(self._model, self._data, self._substeps)
        return self.state()

    def state(self) -> State:
        """Returns where cart and pole are now."""
        return State(*self._qpos.tolist(), *self._qvel.tolist())


@functools.cache
def linear_model(step: float = 1e-4) -> tuple[np.ndarray, np.ndarray]:
    """Returns (A [4, 4], B [4, 1]) of one control tick around the upright pole, by central differences."""
    cart = Cartpole()

    def after(perturbation: np.ndarray) -> np.ndarray:
        cart.reset(State(*perturbation[:4]))
        return np.array(cart.advance(perturbation[4]))

    columns = [(after(row) - after(-row)) / (2 * step) for row in step * np.eye(5)]
    jacobian = np.stack(columns, axis=1)
    return jacobian[:, :4], jacobian[:, 4:]
