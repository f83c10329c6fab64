"""Cartpole go-to: one instruction at a time, replaced at random moments by one for another pad.

The reward is 1 at every tick that ends on the target pad with the pole up, so the return counts ticks. Nothing but the words says
where to go, and they stand from their change to the next.
"""

import dataclasses
from typing import NamedTuple

import dm_env
import numpy as np
from dm_env import specs

from envs import cartpole, drawing, pads, track


@dataclasses.dataclass(frozen=True)
class Rules(track.Rules):
    """change_chance: chance a tick of a new instruction; the mean time between two is its inverse."""

    change_chance: float = 1 / 60


class Scene(NamedTuple):
    """All that is drawn at a reset: an episode is a function of it and of the actions.

    targets: the colour to be on, and words: its instruction, for each tick from 0 to the last.
    """

    track: track.Scene
    targets: tuple[int, ...]
    words: tuple[str, ...]


def draw_scene(rng: np.random.Generator, rules: Rules) -> Scene:
    """Returns a fresh scene; every new instruction is for another colour than the one before."""
    colour, said = int(rng.integers(len(pads.COLOURS))), ""
    targets, words = [], []
    for tick in range(rules.ticks + 1):
        changed = tick > 0 and rng.random() < rules.change_chance
        if changed:
            colour = (colour + int(rng.integers(1, len(pads.COLOURS)))) % len(pads.COLOURS)
        if changed or tick == 0:
            said = pads.say(pads.VISITS[rng.integers(len(pads.VISITS))], (colour,))
        targets.append(colour)
        words.append(said)
    return Scene(track.draw_scene(rng, rules), tuple(targets), tuple(words))


class GoTo(dm_env.Environment):
    """The task. It observes the track's fields and the instruction of the tick."""

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
        return dm_env.restart(self._observation())

    @property
    def target(self) -> int:
        """The colour to go to."""
        return self.scene.targets[self.track.tick]

    @property
    def goal(self) -> float:
        """Where its pad lies, in m."""
        return self.track.places[self.target]

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        if self.track.ended:
            return self.reset()
        target = self.target
        self.track.advance(float(action[0]))
        reward = float(self.track.pad == target)
        if self.track.fallen:
            return dm_env.termination(reward, self._observation())
        if self.track.ended:
            return dm_env.truncation(reward, self._observation())
        return dm_env.transition(reward, self._observation())

    def _observation(self) -> dict[str, np.ndarray]:
        return self.track.observation() | {"instruction": np.array(self.scene.words[self.track.tick], dtype=object)}

    def observation_spec(self) -> dict[str, specs.Array]:
        return track.observation_spec() | {"instruction": specs.StringArray((), name="instruction")}

    def action_spec(self) -> specs.BoundedArray:
        return track.ACTION_SPEC

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns {"sub_goal": float32 [1], "target": int32 [1]}: where the current target lies, and its colour."""
        return {"sub_goal": np.array((self.goal,), np.float32), "target": np.array((self.target,), np.int32)}

    def picture(self, height: int, width: int) -> np.ndarray:
        """Returns uint8 [height, width, 3]: the track now."""
        on = float(self.track.pad == self.target)
        return drawing.scene(height, width, self.track, self.target, on, self.scene.words[self.track.tick])
