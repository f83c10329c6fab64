"""Measure what the experts reach, and what they cost.

    python -m experiments.experts --tasks walker_walk fish_swim --episodes 4

Prints, for each task, mean return and standard deviation over the episodes of the clean expert, of the expert as it is recorded
with noise in every episode that draws some, and of uniformly random actions; how many of the noisy episodes are worth imitating;
and the CPU seconds of an episode. A task whose expert plans takes minutes; the tables so far stand in experiments/bodies.md
and, for the small bodies under noise without bursts, in `envs/suite_experts.py`.
"""

import dataclasses
import sys
import time

import numpy as np
import tyro

from envs.suite_experts import RandomExpert, episode_return
from experiments.tasks import find


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """tasks: by name. episodes: of each of the three. seed: of the first episode."""

    tasks: tuple[str, ...]
    episodes: int = 4
    seed: int = 0


HEADER = f"{'task':<30}{'tick s':>7}{'ticks':>6}{'expert':>14}{'noisy':>14}{'random':>14}{'kept':>6}{'CPU s':>7}"


def measure(name: str, config: ExpertsConfig) -> str:
    """Returns one line of the table."""
    task = find(name)
    environment, seeds = task.make(), range(config.seed, config.seed + config.episodes)

    def returns(expert) -> np.ndarray:
        return np.array([episode_return(environment, expert, seed) for seed in seeds])

    random, start = returns(RandomExpert()), time.process_time()
    clean, noisy = returns(task.expert(False)), returns(task.expert(True))
    cost_s = (time.process_time() - start) / (2 * config.episodes)
    cells = "".join(f"{np.mean(each):8.1f} {np.std(each):5.1f}" for each in (clean, noisy, random))
    kept = np.mean(noisy >= task.kept)
    return f"{name:<30}{environment.tick_s:7.2f}{task.ticks:6}{cells}{kept:6.0%}{cost_s:7.2f}"


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(ExpertsConfig, description=__doc__)
    try:
        print(HEADER, flush=True)
        for name in config.tasks:
            print(measure(name, config), flush=True)
    except (ValueError, ImportError) as error:
        print(f"experts: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
