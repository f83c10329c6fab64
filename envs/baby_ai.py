"""BabyAI's levels (Chevalier-Boisvert et al. 2019, arXiv 1810.08272; minigrid 3.2.0) as environments of ours, with its bot.

    make("babyai_go_to_local")    "go to the red ball", in a room of a grid world

What the agent sees are the 7 x 7 cells before it, three symbols each, the direction it looks in, and the mission in words. It has
7 actions. An episode ends with the mission done, which pays 1, with the mission spoilt, or with time. The world has no rate of
its own: a tick is a step, and `tick_s` says 1 s for want of any other.
"""

import contextlib
import io

import dm_env
import numpy as np
from dm_env import specs

from envs.extras import need

CELLS = 49
SYMBOLS = {"things": 11, "colours": 6, "states": 4}
"""How many values each of the three symbols of a cell has in MiniGrid."""
MOVES = (0, 1, 2)
"""Left, right, forward: what cannot spoil a mission."""
DONE = 6
"""The action that does nothing."""

LEVELS: dict[str, tuple[str, int]] = {
    "babyai_go_to_red_ball": ("BabyAI-GoToRedBall-v0", 64),
    "babyai_go_to_local": ("BabyAI-GoToLocal-v0", 64),
    "babyai_pickup_loc": ("BabyAI-PickupLoc-v0", 64),
    "babyai_put_next_local": ("BabyAI-PutNextLocal-v0", 128),
    "babyai_open_door": ("BabyAI-OpenDoor-v0", 128),
    "babyai_unlock_local": ("BabyAI-UnlockLocal-v0", 128),
    "babyai_go_to": ("BabyAI-GoTo-v0", 256),
}
"""Name to MiniGrid's own and to the most ticks of an episode."""


class BabyAI(dm_env.Environment):
    """One level; `make` builds it. grid: MiniGrid's own world, for its bot."""

    tick_s = 1.0

    def __init__(self, name: str):
        need("minigrid")
        level, self.ticks = LEVELS[name]
        self.name = name
        self.grid = need("gymnasium").make(level, max_episode_steps=None).unwrapped
        self.grid.max_steps = self.ticks
        self._seed, self._ended = None, True

    def reseed(self, seed: int) -> None:
        """Makes the next reset a function of `seed` alone."""
        self._seed, self._ended = seed, True

    def reset(self) -> dm_env.TimeStep:
        """Returns the first time step of a fresh episode."""
        with contextlib.redirect_stdout(io.StringIO()):
            seen, _ = self.grid.reset(seed=self._seed)
        self._seed, self._ended = None, False
        # Levels set their own limit as they draw a mission.
        self.grid.max_steps = self.ticks
        return dm_env.restart(_observation(seen))

    def step(self, action: int | np.ndarray) -> dm_env.TimeStep:
        """Returns the time step after `action`, one of 7; as in dm_env, the one after the last resets."""
        if self._ended:
            return self.reset()
        seen, reward, terminated, truncated, _ = self.grid.step(int(action))
        self._ended, done = terminated or truncated, float(reward > 0)
        if terminated:
            return dm_env.termination(done, _observation(seen))
        if truncated:
            return dm_env.truncation(done, _observation(seen))
        return dm_env.transition(done, _observation(seen))

    def observation_spec(self) -> dict[str, specs.Array]:
        """Returns the specs of the three symbols, int32 [49] each, row by row, of `direction`, int32 [1], and of the mission."""
        cells = {name: specs.BoundedArray((CELLS,), np.int32, 0, values - 1, name) for name, values in SYMBOLS.items()}
        direction = specs.BoundedArray((1,), np.int32, 0, 3, "direction")
        return cells | {"direction": direction, "mission": specs.StringArray((), name="mission")}

    def action_spec(self) -> specs.DiscreteArray:
        """Returns the spec of an action: left, right, forward, pick up, drop, toggle, done."""
        return specs.DiscreteArray(7, name="action")

    def privileged(self) -> dict[str, np.ndarray]:
        """Returns {}."""
        return {}


def _observation(seen: dict) -> dict[str, np.ndarray]:
    cells = {name: seen["image"][..., i].reshape(-1).astype(np.int32) for i, name in enumerate(SYMBOLS)}
    direction = np.array((seen["direction"],), np.int32)
    return cells | {"direction": direction, "mission": np.array(seen["mission"], dtype=object)}


class Bot:
    """BabyAI's bot; noisy executes a random move instead of its label at some ticks, which it then makes good.

    On some missions it loses its way and says so by an assertion; from there on it waits, and the episode fails.
    """

    def __init__(self, noisy: bool = False, astray: float = 0.15):
        self._astray = astray if noisy else 0.0

    def begin(self, environment: BabyAI, rng: np.random.Generator) -> None:
        """Starts an episode: draws its share of random moves."""
        self._bot, self._taken = need("minigrid.utils.baby_ai_bot").BabyAIBot(environment.grid), None
        self._lost = False
        self._rng, self._level = rng, rng.uniform(0.0, self._astray)

    def step(self, environment: BabyAI, time_step: dm_env.TimeStep) -> tuple[np.ndarray, np.ndarray]:
        """Returns (executed action, label), int32 [] each."""
        label = np.int32(self._advice())
        astray = self._rng.random() < self._level
        action = np.int32(self._rng.choice(MOVES)) if astray else label
        self._taken = int(action)
        return action, label

    def _advice(self) -> int:
        if self._lost:
            return DONE
        try:
            # It prints what it thinks.
            with contextlib.redirect_stdout(io.StringIO()):
                return int(self._bot.replan(self._taken))
        except AssertionError:
            self._lost = True
            return DONE


def make(name: str) -> BabyAI:
    """Returns one level.

    Raises:
        ValueError: no such level here.
        ModuleNotFoundError: MiniGrid is not installed; says how to install it.
    """
    if name not in LEVELS:
        raise ValueError(f"no BabyAI level {name!r} here; there are {sorted(LEVELS)}")
    return BabyAI(name)
