"""An episode: what every document, captioned image and robot trajectory is here."""

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Episode:
    """T ticks of one task, as they happened. Arrays are numpy and are not written to.

    source: name of the task and of the data source.
    tick_s: seconds a control tick.
    observation: name to array [T + 1, ...]; entry t is what is seen at tick t, before its action; T is the last one.
    text: name to ((tick, words), ...); the words stand from their tick until the next entry.
    action: [T, ...], the action that was executed.
    label: [T, ...], the action to imitate. Equal to `action` unless noise, a detour, relabelling or a safe stop parted them.
        Where there is nothing to imitate it is NaN, or -1 among whole numbers; so are privileged fields with nothing to tell.
    reward, discount: float [T], those that followed the action of tick t.
    privileged: name to array [T, ...]; known to the recorder (a sub-goal), never to an agent.
    terminated: the task ended the episode (its last discount is 0). truncated: time, or somebody, did.
    seed: of the environment, so that the episode can be made again.
    info: plain facts (success, mean score, which expert).
    """

    source: str
    tick_s: float
    observation: Mapping[str, np.ndarray]
    text: Mapping[str, tuple[tuple[int, str], ...]]
    action: np.ndarray
    label: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    privileged: Mapping[str, np.ndarray]
    terminated: bool
    truncated: bool
    seed: int
    info: Mapping[str, float | int | str | bool]

    @property
    def ticks(self) -> int:
        """T, the number of actions."""
        return len(self.action)


def check(episode: Episode) -> Episode:
    """Returns the episode, or raises ValueError that names the first field that is not what `Episode` says."""
    ticks = episode.ticks
    where = f"episode of {episode.source!r} with {ticks} ticks"
    if ticks < 1:
        raise ValueError(f"{where}: it needs at least one action")
    if not episode.tick_s > 0:
        raise ValueError(f"{where}: tick_s is {episode.tick_s}, and a tick lasts more than 0 s")
    lengths = {"label": episode.label, "reward": episode.reward, "discount": episode.discount}
    lengths |= {f"privileged {name!r}": value for name, value in episode.privileged.items()}
    for name, value in lengths.items():
        if len(value) != ticks:
            raise ValueError(f"{where}: {name} has {len(value)} entries; it has one an action")
    for name, value in episode.observation.items():
        if len(value) != ticks + 1:
            raise ValueError(f"{where}: observation {name!r} has {len(value)} entries; it has one more than actions")
    if episode.label.shape != episode.action.shape:
        raise ValueError(f"{where}: label {episode.label.shape} and action {episode.action.shape} differ in shape")
    numbers = lengths | {"action": episode.action} | {f"observation {k!r}": v for k, v in episode.observation.items()}
    for name, value in numbers.items():
        if value.dtype.kind != "f":
            continue
        target = name == "label" or name.startswith("privileged")
        wrong = np.isinf(value) if target else ~np.isfinite(value)
        if np.any(wrong):
            tick = int(np.argwhere(wrong)[0][0])
            raise ValueError(f"{where}: {name} is not finite at tick {tick}: mend the recording or drop the episode")
    for name, changes in episode.text.items():
        starts = [tick for tick, _ in changes]
        if starts != sorted(set(starts)) or (starts and not 0 <= starts[0] <= starts[-1] <= ticks):
            raise ValueError(f"{where}: text {name!r} changes at ticks {starts}; they must increase within the episode")
    if episode.terminated and episode.truncated:
        raise ValueError(f"{where}: both terminated and truncated; the task ended it, or something else did")
    return episode
