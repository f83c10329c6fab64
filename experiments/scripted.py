"""The scripted references of the patrol, and random policy and expert of any task, as rows.

    python -m experiments.scripted --rows runs/demo/rows.jsonl

Cells that stand in the file are skipped.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tyro

from envs.patrol_references import scripted_returns
from experiments.evaluate import scale, seeds_of
from experiments.rows import Row, append, by_key, load
from experiments.statistics import mean_interval, normalise
from experiments.tasks import find


@dataclasses.dataclass(frozen=True)
class ScriptedConfig:
    """rows: file of rows. ratios, latencies: of the hierarchy; held actions and chunks take the ratios, late actions the
    latencies. suite: tasks of which random policy and expert alone are shown."""

    rows: Path
    episodes: int = 128
    suite_episodes: int = 32
    ratios: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    latencies: tuple[int, ...] = (0, 2, 4, 8)
    suite: tuple[str, ...] = ()


def references(config: ScriptedConfig) -> Iterator[tuple[str, int, int]]:
    """Yields (name, ratio, latency) of the patrol's references."""
    yield from (("hierarchy", ratio, latency) for latency in config.latencies for ratio in config.ratios)
    yield from ((name, ratio, 0) for name in ("held", "chunks") for ratio in config.ratios)
    yield from ((name, 1, latency) for name in ("late", "compensated") for latency in (*config.latencies, 1))


def rows_of(config: ScriptedConfig) -> Iterator[tuple[str, str, int | None, int | None, int, Callable[[], np.ndarray]]]:
    """Yields task, variant, ratio, latency, episodes and the function that plays them."""
    for task, episodes in [("patrol", config.episodes)] + [(name, config.suite_episodes) for name in config.suite]:
        for which, name in enumerate(("random", "expert")):
            yield task, name, None, None, episodes, functools.partial(end_of_scale, task, episodes, which)
    for name, ratio, latency in references(config):
        played = functools.partial(scripted_returns, name, ratio, latency, seeds_of(config.episodes))
        yield "patrol", name, ratio, latency, config.episodes, played


def end_of_scale(task: str, episodes: int, which: int) -> np.ndarray:
    """Returns the returns of the random policy (0) or of the expert (1)."""
    return scale(task, seeds_of(episodes))[which]


def play(config: ScriptedConfig) -> None:
    """Appends the rows that are not there yet."""
    done = by_key(load(config.rows))
    for task, variant, ratio, latency, episodes, played in rows_of(config):
        began = time.perf_counter()
        key = (task, "scripted", variant, "none", "none", ratio, latency, None)
        if key in done:
            continue
        random, expert = scale(task, seeds_of(episodes))
        totals = played()
        interval = mean_interval(normalise(totals, random.mean(), expert.mean()))
        append(
            config.rows,
            Row(
                task=task,
                agent="scripted",
                variant=variant,
                trained_at="none",
                ratio=ratio,
                latency=latency,
                train_seed=None,
                episodes=episodes,
                normalised_return=interval.mean,
                ci_low=interval.low,
                ci_high=interval.high,
                wall_s=time.perf_counter() - began,
                fast_hz=1 / find(task).make().tick_s,
                returns=tuple(totals),
            ),
        )


def main() -> int:
    """Runs the command line; returns the exit code."""
    try:
        play(tyro.cli(ScriptedConfig, description=__doc__))
    except (ValueError, OSError) as error:
        print(f"scripted: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
