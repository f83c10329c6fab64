"""The world of the cartpole tasks: a cart with a pole on a track with four coloured pads, and pushes to the pole."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from dm_env import specs

from envs import cartpole, pads


@dataclasses.dataclass(frozen=True)
class Rules:
    """What every cartpole task has. Lengths in m, angles in rad.

    ticks: time limit, which truncates. fall: beyond this angle the task ends the episode. up: within it the pole counts as up.
    zone: half-width of a pad. jitter: how far a pad may lie from its slot.
    push_chance, push_speed: chance a tick of a push, and the standard deviation of the speed in rad/s that it adds to the hinge.
    start, lean, drift: half-widths of the uniform draws of cart position, pole angle and both speeds (m/s, rad/s) at reset.
    """

    ticks: int = 256
    fall: float = 1.2
    up: float = 0.4
    zone: float = 0.15
    jitter: float = 0.08
    push_chance: float = 0.05
    push_speed: float = 0.4
    start: float = 0.2
    lean: float = 0.05
    drift: float = 0.05


class Scene(NamedTuple):
    """What the world draws at a reset.

    start: of cart and pole. pads: float64 [4] m, in the order of COLOURS. pushes: float64 [ticks] rad/s, 0 where there is none;
    they are drawn ahead, so that two policies in the same scene are pushed alike.
    """

    start: cartpole.State
    pads: np.ndarray
    pushes: np.ndarray


def draw_scene(rng: np.random.Generator, rules: Rules) -> Scene:
    """Returns a scene: start near upright in the middle of the track, pads, and all the pushes of the episode."""
    start = cartpole.State(*rng.uniform(-1, 1, 4) * (rules.start, rules.lean, rules.drift, rules.drift))
    places = pads.draw_pads(rng, rules.jitter)
    pushed = rng.random(rules.ticks) < rules.push_chance
    return Scene(start, places, np.where(pushed, rng.normal(0.0, rules.push_speed, rules.ticks), 0.0))


def mirror_scene(scene: Scene) -> Scene:
    """Returns the scene as a mirror at the middle of the track shows it."""
    return Scene(cartpole.State(*(-value for value in scene.start)), -scene.pads, -scene.pushes)


class Track:
    """The world's state: `state` of cart and pole, `tick`, and `pad`, the colour that the cart is on with its pole up, or None;
    `stayed` counts the ticks that it has been there on end."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._cart = cartpole.Cartpole()

    def reset(self, scene: Scene) -> None:
        """Begins an episode in this scene."""
        self.scene, self.state, self.tick = scene, scene.start, 0
        self.places = scene.pads.tolist()
        self.pad, self.stayed = None, 0
        self._cart.reset(scene.start)
        self._pads, self._pushes = scene.pads.astype(np.float32), scene.pushes.tolist()

    def advance(self, action: float) -> None:
        """Moves the world on by one tick under a motor command in [-1, 1]."""
        self.state = self._cart.advance(action, self._pushes[self.tick])
        self.tick += 1
        pad = self._pad_below()
        self.stayed = 0 if pad is None else self.stayed + 1 if pad == self.pad else 1
        self.pad = pad

    @property
    def fallen(self) -> bool:
        """Whether the pole fell."""
        return abs(self.state.theta) > self.rules.fall

    @property
    def ended(self) -> bool:
        """Whether the pole fell or time is up."""
        return self.tick >= self.rules.ticks or self.fallen

    def _pad_below(self) -> int | None:
        x, zone = self.state.x, self.rules.zone
        if abs(self.state.theta) < self.rules.up:
            for colour, place in enumerate(self.places):
                if abs(x - place) < zone:
                    return colour
        return None

    def observation(self) -> dict[str, np.ndarray]:
        """Returns position [3] = x, cos and sin of the angle; velocity [2] in m/s and rad/s; pads [4] = x of each colour."""
        x, theta, x_speed, theta_speed = self.state
        return {
            "position": np.array((x, math.cos(theta), math.sin(theta)), np.float32),
            "velocity": np.array((x_speed, theta_speed), np.float32),
            "pads": self._pads,
        }


def observation_spec() -> dict[str, specs.Array]:
    """Returns the specs of `Track.observation`."""
    sizes = {"position": 3, "velocity": 2, "pads": len(pads.COLOURS)}
    return {name: specs.Array((size,), np.float32, name=name) for name, size in sizes.items()}


ACTION_SPEC = specs.BoundedArray((1,), np.float32, -1.0, 1.0, name="motor")
