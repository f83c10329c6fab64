"""Cartpole patrol: go where you are told, again and again, without dropping the pole.

The instruction names a cyclic order of three of the four colours. Staying on the target pad with the pole up for `dwell` ticks on
end is a visit: it is worth a reward of 1, the chime sounds at the next observation, and the next colour is the target, which no
observation shows. Staying that long on another pad is a miss and costs `miss`, once a stay; the pad just visited counts as stayed
on until the cart leaves it. Without that price a search of the pads that ignores the
instruction is worth .45 of an expert; with it, less than nothing.

Balancing takes every tick, and where to go changes every few seconds.
"""

import dataclasses
from typing import NamedTuple

import dm_env
import numpy as np
from dm_env import specs

from envs import cartpole, drawing, pads, track


@dataclasses.dataclass(frozen=True)
class Rules(track.Rules):
    """dwell: ticks on end that make a visit. miss: what a stay on a wrong pad costs; at 0 the return is the number of visits."""

    dwell: int = 15
    miss: float = 1.0


class Scene(NamedTuple):
    """All that is drawn at a reset: an episode is a function of it and of the actions.

    order: the colours to visit, in turn. instruction: the words for it.
    """

    track: track.Scene
    order: tuple[int, ...]
    instruction: str


def draw_scene(rng: np.random.Generator, rules: Rules) -> Scene:
    """Returns a fresh scene, with three different colours in order and one of the templates."""
    order = tuple(rng.permutation(len(pads.COLOURS))[:3].tolist())
    instruction = pads.say(pads.PATROLS[rng.integers(len(pads.PATROLS))], order)
    return Scene(track.draw_scene(rng, rules), order, instruction)


class Patrol(dm_env.Environment):
    """The task. It observes the track's fields, chime [1] = 1 where the tick before completed a visit, and the instruction."""

    tick_s = cartpole.TICK_S

    def __init__(self, rules: Rules | None = None, seed: int = 0) -> None:
        self.rules = rules or Rules()
        self.track = track.Track(self.rules)
        self.reseed(seed)
        self.reset()

    def reseed(self, seed: int) -> None:
        """Makes the next reset a function of `seed` alone."""
        self._rng = np.random.default_rng(seed)

    def reset(self) -> dm_env.TimeStep:
        return self.reset_to(draw_scene(self._rng, self.rules))

    def reset_to(self, scene: Scene) -> dm_env.TimeStep:
        """Returns the first time step of an episode in this very scene."""
        self.scene = scene
        self.track.reset(scene.track)
        self.visits, self.misses, self._chimes = 0, 0, False
        self._words = np.array(scene.instruction, dtype=object)
        return dm_env.restart(self._observation())

    @property
    def target(self) -> int:
        """The colour to go to."""
        return self.scene.order[self.visits % len(self.scene.order)]

    @property
    def goal(self) -> float:
        """Where its pad lies, in m."""
        return self.track.places[self.target]

    def advance(self, action: float) -> float:
        """Returns the reward of a tick. It is `step` without its arrays, for controllers that look at the state."""
        self.track.advance(action)
        stayed = self.track.stayed == self.rules.dwell
        self._chimes = stayed and self.track.pad == self.target
        missed = stayed and not self._chimes
        self.visits += self._chimes
        self.misses += missed
        return float(self._chimes) - self.rules.miss * missed

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        if self.track.ended:
            return self.reset()
        reward = self.advance(float(action[0]))
        if self.track.fallen:
            return dm_env.termination(reward, self._observation())
        if self.track.ended:
            return dm_env.truncation(reward, self._observation())
        return dm_env.transition(reward, self._observation())

    def _observation(self) -> dict[str, np.ndarray]:
        return self.track.observation() | {"chime": np.array((self._chimes,), np.float32), "instruction": self._words}

    def observation_spec(self) -> dict[str, specs.Array]:
        chime, instruction = specs.Array((1,), np.float32, name="chime"), specs.StringArray((), name="instruction")
        return track.observation_spec() | {"chime": chime, "instruction": instruction}

    def action_spec(self) -> specs.BoundedArray:
        return track.ACTION_SPEC

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns {"sub_goal": float32 [1], "target": int32 [1]}: where the current target lies, and its colour."""
        return {"sub_goal": np.array((self.goal,), np.float32), "target": np.array((self.target,), np.int32)}

    def picture(self, height: int, width: int) -> np.ndarray:
        """Returns uint8 [height, width, 3]: the track now, the dwell so far as a bar over the pad."""
        dwelt = min(1.0, self.track.stayed / self.rules.dwell)
        return drawing.scene(height, width, self.track, self.target, dwelt, self.scene.instruction)
