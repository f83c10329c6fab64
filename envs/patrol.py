"""Cartpole patrol: go where you are told, again and again, without dropping the pole.

Four coloured pads lie on the track. The instruction names a cyclic order of three of them. Staying on the target pad with the
pole up for `dwell` ticks on end is a visit: it is worth a reward of 1, the chime sounds at the next observation, and the next
colour is the target, which no observation shows. Now and then the pole is pushed. Balancing needs every tick; where to go
changes every few seconds.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import dm_env
import numpy as np
from dm_env import specs

from envs import cartpole, pads


@dataclasses.dataclass(frozen=True)
class Rules:
    """What one episode is. Lengths in m, angles in rad.

    ticks: time limit, which truncates. fall: beyond this angle the task ends the episode. up: within it the pole counts as up.
    dwell: ticks on end that make a visit. zone: half-width of a pad. jitter: how far a pad may lie from its slot.
    push_chance, push_speed: chance a tick of a push, and the standard deviation of the speed in rad/s that it adds to the hinge.
    start, lean, drift: half-widths of the uniform draws of cart position, pole angle and both speeds at reset.
    """

    ticks: int = 256
    fall: float = 1.2
    up: float = 0.4
    dwell: int = 15
    zone: float = 0.15
    jitter: float = 0.08
    push_chance: float = 0.05
    push_speed: float = 0.4
    start: float = 0.2
    lean: float = 0.05
    drift: float = 0.05


class Scene(NamedTuple):
    """All that is drawn at a reset, so that an episode is a function of it and of the actions.

    start: state of cart and pole. pads: float64 [4] m, in the order of COLOURS. order: the colours to visit, in turn.
    instruction: the words. pushes: float64 [ticks] rad/s, 0 where there is none; they do not depend on the actions.
    """

    start: cartpole.State
    pads: np.ndarray
    order: tuple[int, ...]
    instruction: str
    pushes: np.ndarray


def draw_start(rng: np.random.Generator, rules: Any) -> cartpole.State:
    """Returns a state near upright in the middle of the track: uniform within `start`, `lean` and `drift` of zero."""
    return cartpole.State(*rng.uniform(-1, 1, 4) * (rules.start, rules.lean, rules.drift, rules.drift))


def draw_pushes(rng: np.random.Generator, rules: Any) -> np.ndarray:
    """Returns float64 [ticks] of hinge speeds to add, 0 at most ticks."""
    pushed = rng.random(rules.ticks) < rules.push_chance
    return np.where(pushed, rng.normal(0.0, rules.push_speed, rules.ticks), 0.0)


def draw_scene(rng: np.random.Generator, rules: Rules) -> Scene:
    """Returns a fresh scene: start, pads, three colours in order, one of the templates and all pushes."""
    order = tuple(rng.permutation(len(pads.COLOURS))[:3].tolist())
    instruction = pads.say(pads.PATROLS[rng.integers(len(pads.PATROLS))], order)
    return Scene(draw_start(rng, rules), pads.draw_pads(rng, rules.jitter), order, instruction, draw_pushes(rng, rules))


class Patrol(dm_env.Environment):
    """The task. Observations are flat: position [3] = x, cos and sin of the angle; velocity [2]; pads [4] = x of each colour;
    chime [1] = 1 where the previous tick completed a visit; instruction, words."""

    tick_s = cartpole.TICK_S

    def __init__(self, rules: Rules | None = None, seed: int = 0) -> None:
        self.rules = rules or Rules()
        self._cart = cartpole.Cartpole()
        self._action_spec = specs.BoundedArray((1,), np.float32, -1.0, 1.0, name="motor")
        self.reseed(seed)
        self._ended = True

    def reseed(self, seed: int) -> None:
        """Makes the next reset a function of `seed` alone."""
        self._rng = np.random.default_rng(seed)

    def reset(self) -> dm_env.TimeStep:
        return self.reset_to(draw_scene(self._rng, self.rules))

    def reset_to(self, scene: Scene) -> dm_env.TimeStep:
        """Returns the first time step of an episode in this very scene."""
        self.scene = scene
        self._cart.reset(scene.start)
        self.state = scene.start
        self.tick = self.visits = self.dwelt = 0
        self.chimes = self._ended = False
        self._pads = scene.pads.astype(np.float32)
        self._words = np.array(scene.instruction, dtype=object)
        self._pushes = scene.pushes.tolist()
        self._targets = [float(scene.pads[colour]) for colour in scene.order]
        return dm_env.restart(self._observation())

    @property
    def goal(self) -> float:
        """Where the target pad lies, in m."""
        return self._targets[self.visits % len(self._targets)]

    @property
    def target(self) -> int:
        """The target's colour."""
        return self.scene.order[self.visits % len(self.scene.order)]

    @property
    def ended(self) -> bool:
        """Whether the episode is over."""
        return self._ended

    @property
    def fallen(self) -> bool:
        """Whether the pole fell."""
        return abs(self.state.theta) > self.rules.fall

    def advance(self, action: float) -> bool:
        """Returns whether this tick completed a visit. It is `step` without its arrays, for controllers that see the state."""
        rules = self.rules
        self.state = state = self._cart.advance(action, self._pushes[self.tick])
        self.tick += 1
        standing = abs(state.theta) < rules.up and abs(state.x - self.goal) < rules.zone
        self.dwelt = self.dwelt + 1 if standing else 0
        self.chimes = self.dwelt == rules.dwell
        if self.chimes:
            self.visits, self.dwelt = self.visits + 1, 0
        self._ended = self.tick == rules.ticks or self.fallen
        return self.chimes

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        if self._ended:
            return self.reset()
        reward = float(self.advance(float(action[0])))
        if not self._ended:
            return dm_env.transition(reward, self._observation())
        if self.fallen:
            return dm_env.termination(reward, self._observation())
        return dm_env.truncation(reward, self._observation())

    def _observation(self) -> dict[str, np.ndarray]:
        x, theta, x_speed, theta_speed = self.state
        return {
            "position": np.array((x, math.cos(theta), math.sin(theta)), np.float32),
            "velocity": np.array((x_speed, theta_speed), np.float32),
            "pads": self._pads,
            "chime": np.array((self.chimes,), np.float32),
            "instruction": self._words,
        }

    def observation_spec(self) -> dict[str, specs.Array]:
        return {
            "position": specs.Array((3,), np.float32, name="position"),
            "velocity": specs.Array((2,), np.float32, name="velocity"),
            "pads": specs.Array((len(pads.COLOURS),), np.float32, name="pads"),
            "chime": specs.BoundedArray((1,), np.float32, 0.0, 1.0, name="chime"),
            "instruction": specs.StringArray((), name="instruction"),
        }

    def action_spec(self) -> specs.BoundedArray:
        return self._action_spec

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns {"sub_goal": float32 [1]}, where the current target lies."""
        return {"sub_goal": np.array((self.goal,), np.float32)}
