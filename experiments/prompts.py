"""What a prompt is worth: two agents, one trained with prompts and one without, each shown its task's, none, and another task's.

    python -m experiments.prompts --out runs/prompts

Records the tasks' experts, trains both agents (small ones, on both tasks at once), closes the loops on the same episodes, and
prints returns and what a prompt changed. About 6 minutes on a quiet core; interrupted, the same command goes on.
`experiments/prompts.md` says what was found.
"""

import dataclasses
import sys
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.evaluate import Cell, Trained, load, measure, scale, seeds_of, variant_in_rows
from experiments.record import RecordConfig, record_source
from experiments.rows import Row, append
from experiments.rows import load as load_rows
from experiments.statistics import Interval, paired_difference
from experiments.train import Mix, TrainConfig, cache_compilations, train_run
from hierarchy.corpus.prompts import Prompts
from hierarchy.training.checkpoint import CheckpointError
from hierarchy.training.learner import LearnerConfig
from hierarchy.training.trainer import Interrupted, NotFinite

MIX = Mix(rows=4, controller_tokens=288, planner_tokens=288, plans=160, ratios=(1, 4, 16, 32))


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """out: folder of corpus, runs and rows.jsonl. tasks: two; their layouts need caches of one size. share: of the episodes that
    begin with a prompt, for the one agent. ticks: of a prompt. recorded: episodes a task. steps, planner_steps, preset, seed: of
    each training. ratio, latency, episodes: of each closed loop."""

    out: Path
    tasks: tuple[str, str] = ("switching_goal", "cue_recall")
    share: float = 0.25
    ticks: int = Prompts.ticks
    recorded: int = 600
    preset: str = "bench"
    steps: int = 1200
    planner_steps: int = 300
    seed: int = 0
    ratio: int = 8
    latency: int = 0
    episodes: int = 512


def training(config: PromptsConfig, share: float) -> TrainConfig:
    """Returns how an agent is trained; nothing but its prompts differs between the two."""
    return TrainConfig(
        corpus=config.out / "corpus",
        out=config.out / ("with_prompts" if share else "without_prompts"),
        preset=config.preset,
        mix=dataclasses.replace(MIX, tasks=config.tasks, prompts=share, prompt_ticks=config.ticks),
        learner=LearnerConfig(steps=config.steps, planner_steps=config.planner_steps, rate_warm_up=50, seed=config.seed),
    )


def cells_of(config: PromptsConfig, task: str) -> dict[str, Cell]:
    """Returns the cells of a task by what the agent is shown."""
    (other,) = set(config.tasks) - {task}
    plain = Cell(config.ratio, config.latency, prompt_ticks=config.ticks)
    shown = {"nothing": "", "its own task": task, "the other task": other}
    return {name: dataclasses.replace(plain, prompt=prompt) for name, prompt in shown.items()}


def measured(config: PromptsConfig, trained: Trained, task: str) -> dict[str, Row]:
    """Returns a task's rows by what the agent is shown, after measuring those that are not there yet."""
    table, found = config.out / "rows.jsonl", {}
    for name, cell in track(
        cells_of(config, task).items(), f"{trained.variant or 'plain'} on {task}", console=Console(stderr=True)
    ):
        variant, count = variant_in_rows(trained, cell), config.episodes
        there = [row for row in load_rows(table) if (row.task, row.variant, row.episodes) == (task, variant, count)]
        if not there:
            append(table, measure(trained, task, cell, count))
            there = load_rows(table)
        found[name] = there[-1]
    return found


def gain(row: Row, plain: Row) -> Interval:
    """Returns how much more a row's episodes are worth than the same episodes without a prompt, 100 from random to expert."""
    random, expert = scale(row.task, seeds_of(row.episodes))
    return Interval(*(100 * part / (expert.mean() - random.mean()) for part in paired_difference(row.returns, plain.returns)))


def prompts(config: PromptsConfig) -> Table:
    """Returns the table of both agents on both tasks, after doing whatever is not finished."""
    for task in config.tasks:
        record_source(RecordConfig(task, config.out / "corpus" / task, config.recorded))
    title = f"ratio {config.ratio}, latency {config.latency}, {config.episodes} episodes a cell, prompts of {config.ticks} ticks"
    table = Table("task", "trained", "shown", "return", "more than shown nothing", title=title)
    for share in (config.share, 0.0):
        wanted = training(config, share)
        train_run(wanted)
        trained = load(wanted.out)
        for task in config.tasks:
            rows = measured(config, trained, task)
            for shown, row in rows.items():
                more = gain(row, rows["nothing"])
                change = "" if shown == "nothing" else f"{more.mean:+.2f} [{more.low:+.2f}, {more.high:+.2f}]"
                worth = f"{row.normalised_return:.1f} [{row.ci_low:.1f}, {row.ci_high:.1f}]"
                table.add_row(task, "with prompts" if share else "without", shown, worth, change)
    return table


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(PromptsConfig, description=__doc__)
    cache_compilations(Path("runs/.jax_cache"))
    try:
        if len({*config.tasks}) != 2:
            raise ValueError(f"tasks {config.tasks}: give two different ones")
        table = prompts(config)
    except (ValueError, OSError, CheckpointError, NotFinite) as error:
        print(f"prompts: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"prompts: {error or 'stopped'}; the same command goes on from here", file=sys.stderr)
        return 130
    Console(width=110).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
