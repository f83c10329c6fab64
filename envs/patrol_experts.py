"""The expert of the cartpole tasks, its noise and detours, and the symmetries of what it records.

A planner trained on clean data reads the target off the expert's own motion and fails as soon as the motion is its own. Detours
break that link: for a while the expert goes somewhere else, while every label still says what is right from where the cart is.
"""

import dataclasses

import dm_env
import numpy as np

from envs import lqr, pads
from hierarchy.episode import Episode


@dataclasses.dataclass(frozen=True)
class Noise:
    """How much an expert's execution strays from its labels.

    action: each episode draws a standard deviation of action noise uniformly from [0, action].
    detour_chance: chance a tick of setting off for a random wrong pad, while on none. detour_ticks: its shortest and longest.
    """

    action: float = 0.0
    detour_chance: float = 0.0
    detour_ticks: tuple[int, int] = (10, 50)


CLEAN = Noise()
NOISY = Noise(action=0.2, detour_chance=0.01)
"""A default mixture: a fifth of the ticks lie on a detour, and one episode in five falls before its time."""


class Regulator:
    """The linear-quadratic regulator that drives to the target pad of a `Patrol` or a `GoTo`."""

    def __init__(self, noise: Noise = CLEAN) -> None:
        self._noise = noise

    def begin(self, environment: dm_env.Environment, rng: np.random.Generator) -> None:
        ticks, noise = environment.rules.ticks, self._noise
        self._noises = rng.normal(0.0, rng.uniform(0.0, noise.action), ticks).tolist()
        self._setting_off = (rng.random(ticks) < noise.detour_chance).tolist()
        self._lengths = rng.integers(*noise.detour_ticks, size=ticks, endpoint=True).tolist()
        self._shifts = rng.integers(1, len(pads.COLOURS), ticks).tolist()
        self._gain = lqr.gain().tolist()
        self._away_until, self._away = 0, 0.0

    def step(self, environment: dm_env.Environment, time_step: dm_env.TimeStep) -> tuple[np.ndarray, np.ndarray]:
        world = environment.track
        tick, label = world.tick, self._act(world.state, environment.goal)
        if tick >= self._away_until and self._setting_off[tick]:
            wrong = (environment.target + self._shifts[tick]) % len(pads.COLOURS)
            self._away_until, self._away = tick + self._lengths[tick], world.places[wrong]
        aim = self._act(world.state, self._away) if tick < self._away_until else label
        action = min(1.0, max(-1.0, aim + self._noises[tick]))
        return np.array((action,), np.float32), np.array((label,), np.float32)

    def _act(self, state: tuple[float, ...], goal: float) -> float:
        # One state in plain floats: `lqr.act` does the same on arrays and is several times slower for one.
        x, theta, x_speed, theta_speed = state
        error = min(lqr.REACH_M, max(-lqr.REACH_M, x - goal))
        gain = self._gain
        action = -(gain[0] * error + gain[1] * theta + gain[2] * x_speed + gain[3] * theta_speed)
        return min(1.0, max(-1.0, action))


def recoloured(episode: Episode, names: np.ndarray) -> Episode:
    """Returns the episode with colour c called names[c] (int [4], a permutation) in words, pads and target."""
    columns = np.empty_like(episode.observation["pads"])
    columns[:, names] = episode.observation["pads"]
    text = {name: tuple((tick, pads.recolour(words, names)) for tick, words in said) for name, said in episode.text.items()}
    privileged = {**episode.privileged, "target": names[episode.privileged["target"]].astype(np.int32)}
    return dataclasses.replace(episode, observation={**episode.observation, "pads": columns}, text=text, privileged=privileged)


def mirrored(episode: Episode) -> Episode:
    """Returns the episode as a mirror at the middle of the track shows it."""
    seen = episode.observation
    return dataclasses.replace(
        episode,
        observation={
            **seen,
            "position": seen["position"] * np.array((-1, 1, -1), np.float32),
            "velocity": -seen["velocity"],
            "pads": -seen["pads"],
        },
        action=-episode.action,
        label=-episode.label,
        privileged={**episode.privileged, "sub_goal": -episode.privileged["sub_goal"]},
    )


def augment(episode: Episode, rng: np.random.Generator) -> Episode:
    """Returns the episode under a random renaming of the colours and, every other time, mirrored.

    It is an episode that the task could have produced, though its seed no longer leads to it.
    """
    episode = recoloured(episode, rng.permutation(len(pads.COLOURS)))
    return mirrored(episode) if rng.random() < 0.5 else episode
