"""Small bodies of the DeepMind Control Suite (arXiv 1801.00690), stepped fast: the suite's physics, starts and rewards.

    make("cartpole_balance")              1000 ticks of 0.01 s, as in the suite
    make("reacher_easy", ticks=250)       the same task cut off after 250 ticks of 0.02 s; at most 250 of return

An episode ends by time alone (its last discount is 1), and the reward of a tick lies in [0, 1]. The model and the start of an
episode come from the suite itself; observations and rewards are written out here in plain arithmetic, because the suite's
named access costs several times the physics. Nothing is rendered, and no GL is needed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import dm_env
import mujoco
import numpy as np
from dm_control import suite
from dm_env import specs

SUITE_TICKS = 1000


class Views(NamedTuple):
    """MuJoCo's own arrays, which each step overwrites.

    position: [joints]. velocity: [joints]. control: [actuators]. last_body: [9], orientation of the last body, by rows.
    effector, target: [3], centres of the geoms that are to meet (of no use to the two poles). radii: their sizes, m.
    """

    position: np.ndarray
    velocity: np.ndarray
    control: np.ndarray
    last_body: np.ndarray
    effector: np.ndarray
    target: np.ndarray
    radii: tuple[float, float]


class Body(NamedTuple):
    """One task of the suite: where it is there, and what it shows and pays.

    geoms: names of the effector and of its target, or None.
    """

    domain: str
    task: str
    geoms: tuple[str, str] | None
    observe: Callable[[Views], dict[str, np.ndarray]]
    reward: Callable[[Views], float]


def _observe_pole_on_cart(views: Views) -> dict[str, np.ndarray]:
    position = (views.position[0], views.last_body[8], views.last_body[2])
    return {"position": np.array(position, np.float32), "velocity": views.velocity.astype(np.float32)}


def _reward_pole_on_cart(views: Views) -> float:
    upright = (1.0 + float(views.last_body[8])) / 2.0
    centred = (1.0 + _bell(float(views.position[0]) / 2.0)) / 2.0
    still = (1.0 + _bell(float(views.velocity[1]) / 5.0)) / 2.0
    return upright * _small(float(views.control[0])) * still * centred


def _reward_pole_in_bounds(views: Views) -> float:
    return float(abs(views.position[0]) <= 0.25 and views.last_body[8] >= 0.995)


def _observe_pendulum(views: Views) -> dict[str, np.ndarray]:
    orientation = (views.last_body[8], views.last_body[2])
    return {"orientation": np.array(orientation, np.float32), "velocity": views.velocity.astype(np.float32)}


def _reward_pendulum(views: Views) -> float:
    return float(views.last_body[8] >= math.cos(math.radians(8.0)))


def _observe_reacher(views: Views) -> dict[str, np.ndarray]:
    return {
        "position": views.position.astype(np.float32),
        "to_target": (views.target - views.effector)[:2].astype(np.float32),
        "velocity": views.velocity.astype(np.float32),
    }


def _reward_reacher(views: Views) -> float:
    away = views.target - views.effector
    return float(math.hypot(away[0], away[1]) <= sum(views.radii))


def _observe_point_mass(views: Views) -> dict[str, np.ndarray]:
    return {"position": views.position.astype(np.float32), "velocity": views.velocity.astype(np.float32)}


def _reward_point_mass(views: Views) -> float:
    away = views.target - views.effector
    size = views.radii[1]
    outside = max(0.0, math.hypot(away[0], away[1], away[2]) / size - 1.0)
    effort = (_small(float(views.control[0])) + _small(float(views.control[1]))) / 2.0
    return _bell(outside) * effort


def _bell(x: float) -> float:
    """Returns the suite's gaussian tolerance: 1 at x = 0 and 0.1 at x = 1."""
    return math.exp(math.log(0.1) * x * x)


def _small(control: float) -> float:
    """Returns the suite's discount for effort: 1 without any, 0.8 at full control or beyond."""
    return (4.0 + max(0.0, 1.0 - control * control)) / 5.0


BODIES: dict[str, Body] = {
    "cartpole_balance": Body("cartpole", "balance", None, _observe_pole_on_cart, _reward_pole_on_cart),
    "cartpole_balance_sparse": Body("cartpole", "balance_sparse", None, _observe_pole_on_cart, _reward_pole_in_bounds),
    "cartpole_swingup": Body("cartpole", "swingup", None, _observe_pole_on_cart, _reward_pole_on_cart),
    "cartpole_swingup_sparse": Body("cartpole", "swingup_sparse", None, _observe_pole_on_cart, _reward_pole_in_bounds),
    "pendulum_swingup": Body("pendulum", "swingup", None, _observe_pendulum, _reward_pendulum),
    "reacher_easy": Body("reacher", "easy", ("finger", "target"), _observe_reacher, _reward_reacher),
    "reacher_hard": Body("reacher", "hard", ("finger", "target"), _observe_reacher, _reward_reacher),
    "point_mass_easy": Body("point_mass", "easy", ("pointmass", "target"), _observe_point_mass, _reward_point_mass),
}


class SuiteEnvironment(dm_env.Environment):
    """A body of the suite as an environment of ours; `make` builds it."""

    def __init__(self, name: str, ticks: int):
        body = BODIES[name]
        self.name, self.ticks = name, ticks
        self._suite = suite.load(body.domain, body.task)
        self.tick_s = float(self._suite.control_timestep())
        self._model, self._data = self._suite.physics.model.ptr, self._suite.physics.data.ptr
        self._runge_kutta = self._model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
        self._observe, self._reward, self._geoms = body.observe, body.reward, body.geoms
        self._views, self._tick = self._view(), None

    def reseed(self, seed: int) -> None:
        """Makes the next reset a function of `seed` alone."""
        self._suite.task.random.seed(seed)
        self._tick = None

    def reset(self) -> dm_env.TimeStep:
        """Returns the first time step of a fresh episode, drawn as the suite draws it."""
        self._suite.reset()
        # A task may change sizes at a reset, so the radii are read again.
        self._views, self._tick = self._view(), 0
        return dm_env.restart(self._observe(self._views))

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        """Returns the time step after `action` [actuators]; as in dm_env, the one after the last resets.

        Raises:
            ValueError: the action is not finite.
        """
        if self._tick is None or self._tick >= self.ticks:
            return self.reset()
        self._views.control[:] = action
        if not np.isfinite(self._views.control).all():
            raise ValueError(f"{self.name}: action {action} at tick {self._tick} is not finite")
        self._advance()
        self._tick += 1
        reward, observation = self._reward(self._views), self._observe(self._views)
        if self._tick == self.ticks:
            return dm_env.truncation(reward, observation)
        return dm_env.transition(reward, observation)

    def observation_spec(self) -> dict[str, specs.Array]:
        """Returns name to float32 spec; the suite's own fields."""
        values = self._observe(self._views)
        return {name: specs.Array(value.shape, value.dtype, name) for name, value in values.items()}

    def action_spec(self) -> specs.BoundedArray:
        """Returns the spec of an action: float32 [actuators] in [-1, 1]."""
        return specs.BoundedArray(self._views.control.shape, np.float32, minimum=-1.0, maximum=1.0, name="action")

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns {}: everything is observed."""
        return {}

    def _advance(self) -> None:
        # As the suite does: the state is left with the fields that depend on position and velocity up to date.
        if self._runge_kutta:
            mujoco.mj_step(self._model, self._data)
        else:
            mujoco.mj_step2(self._model, self._data)
        mujoco.mj_step1(self._model, self._data)

    def _view(self) -> Views:
        model, data = self._model, self._data
        effector, target = (model.geom(name).id for name in self._geoms or (0, 0))
        radii = float(model.geom_size[effector, 0]), float(model.geom_size[target, 0])
        return Views(data.qpos, data.qvel, data.ctrl, data.xmat[-1], data.geom_xpos[effector], data.geom_xpos[target], radii)


def make(name: str, ticks: int = SUITE_TICKS) -> SuiteEnvironment:
    """Returns one task of the suite, cut off after `ticks` ticks; drawn from entropy until `reseed`.

    Raises:
        ValueError: no such task here, or not 1 to 1000 ticks.
    """
    if name not in BODIES:
        raise ValueError(f"no suite task {name!r}; there are {sorted(BODIES)}")
    if not 1 <= ticks <= SUITE_TICKS:
        raise ValueError(f"{name}: {ticks} ticks; an episode of the suite has 1 to {SUITE_TICKS}")
    return SuiteEnvironment(name, ticks)
