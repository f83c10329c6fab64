"""Film a trained agent: the world above, the plan's updates and age below.

    python -m experiments.film --run runs/demo/two_rate --out runs/demo/patrol.mp4

Works for every task whose environment can draw itself (`picture`).
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro

from envs.drawing import strip
from envs.loop import run
from experiments.evaluate import FIRST_SEED, Trained, load
from experiments.tasks import find
from experiments.train import cache_compilations
from experiments.video import write_video
from hierarchy.timeline import Timeline, age, periodic, visible
from hierarchy.training.checkpoint import CheckpointError

WIDTH, HEIGHT, STRIP = 480, 210, 60


@dataclasses.dataclass(frozen=True)
class FilmConfig:
    """run: folder of a training run. out: the video's path. seed: of the episode."""

    run: Path
    out: Path
    task: str = "patrol"
    ratio: int = 8
    latency: int = 4
    seed: int = FIRST_SEED


def film_episode(trained: Trained, task: str, path: Path, *, ratio: int, latency: int, seed: int) -> None:
    """Writes the video of one episode at its own speed. Raises ValueError where the environment cannot draw itself."""
    environment, ticks = find(task).make(), find(task).ticks
    if not hasattr(environment, "picture"):
        raise ValueError(f"task {task!r} cannot be filmed: its environment has no `picture(height, width)`")
    timeline = periodic(ticks, ratio, latency)
    agent = trained.agent(find(task).layout.name, timeline, ticks)

    def frames() -> Iterator[np.ndarray]:
        for moment in run([environment], agent, [seed]):
            yield np.concatenate([environment.picture(HEIGHT, WIDTH), plan_strip(timeline, moment.tick)])

    write_video(frames(), path, 1 / environment.tick_s)


def plan_strip(timeline: Timeline, tick: int) -> np.ndarray:
    """Returns uint8 [60, 480, 3]: updates, and the plan's age at every tick up to this one."""
    ticks = np.arange(tick + 1)
    return strip(STRIP, WIDTH, visible(timeline, ticks), age(timeline, ticks), timeline.observed.tolist())


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(FilmConfig, description=__doc__)
    cache_compilations(Path("runs/.jax_cache"))
    try:
        trained = load(config.run)
        film_episode(trained, config.task, config.out, ratio=config.ratio, latency=config.latency, seed=config.seed)
    except (ValueError, OSError, CheckpointError) as error:
        print(f"film: {error}", file=sys.stderr)
        return 1
    print(config.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
