"""Train one agent with plans of each kind, on the same data for the same steps, and close the loop with all of them.

    python -m experiments.plan_kinds --corpus runs/demo/corpus --out runs/plan_kinds

A kind is how the controller reads the plan (cross_attention, film, prefix), or `quantised`: the preset's own way of reading, of
vectors that take a few values. Interrupted, the same command goes on. experiments/plan_kinds.md says what to expect.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import tyro
from rich.console import Console
from rich.table import Table

from experiments.compare_ratios import CompareConfig, compare
from experiments.evaluate import Trained, load
from experiments.rows import Row, pick
from experiments.rows import load as load_rows
from experiments.train import Mix, TrainConfig, cache_compilations, train_run
from hierarchy.model.config import PRESETS, PlanRead
from hierarchy.training.checkpoint import CheckpointError
from hierarchy.training.learner import LearnerConfig
from hierarchy.training.trainer import Interrupted, NotFinite

KindName = Literal["cross_attention", "film", "prefix", "quantised"]


@dataclasses.dataclass(frozen=True)
class PlanKindsConfig:
    """corpus: folder of sources. out: folder; each kind's run in a folder of its name, rows.jsonl beside them. levels: values of
    a quantised plan's channels, in turn. steps, planner_steps, seed: of every training. ratios, latencies: every pair is a cell,
    and at `CompareConfig.control_ratio` also with another episode's plan. episodes: a cell."""

    corpus: Path
    out: Path
    task: str = "patrol"
    preset: str = "demo"
    kinds: tuple[KindName, ...] = get_args(KindName)
    levels: tuple[int, ...] = (8, 5, 5, 5)
    steps: int = 1200
    planner_steps: int = 400
    seed: int = 0
    ratios: tuple[int, ...] = (1, 8, 32)
    latencies: tuple[int, ...] = (0, 8)
    episodes: int = 128


def training(config: PlanKindsConfig, kind: KindName) -> TrainConfig:
    """Returns how the agent with plans of one kind is trained; nothing else differs between kinds."""
    return TrainConfig(
        corpus=config.corpus,
        out=config.out / kind,
        preset=config.preset,
        plan_read=kind if kind in get_args(PlanRead) else None,
        plan_levels=config.levels if kind == "quantised" else (),
        mix=Mix(tasks=(config.task,)),
        learner=LearnerConfig(steps=config.steps, planner_steps=config.planner_steps, seed=config.seed),
    )


def closed_loops(config: PlanKindsConfig, folder: Path, trained: Trained) -> list[Row]:
    """Returns the rows of one kind's agent, after measuring those that are not there yet."""
    table = config.out / "rows.jsonl"
    cells = CompareConfig(folder, table, config.task, config.episodes, config.ratios, config.latencies, controls=("shuffled",))
    compare(cells, trained, {})
    return [row for row in load_rows(table) if row.task == config.task and row.variant == trained.variant]


def plan_bits(trained: Trained) -> float:
    """Returns how many bits a plan has: those of its levels, or 32 a number."""
    model = trained.network.config
    each = [math.log2(levels) for levels in model.plan_levels] or [32.0]
    return model.plan_vectors * model.plan_width * sum(each) / len(each)


def tabulated(config: PlanKindsConfig, found: dict[str, tuple[Trained, Sequence[Row]]]) -> Table:
    """Returns the returns of all kinds (0 random, 100 expert), with 95% intervals over the episodes of one training each."""
    ratio = CompareConfig.control_ratio
    cells = [(ratio, latency, "none") for latency in config.latencies for ratio in config.ratios] + [(ratio, 0, "shuffled")]
    table = Table("plan", "bits", "MFLOP a tick", *(f"ratio {r}, latency {d}" for r, d, _ in cells[:-1]), "shuffled")
    for kind, (trained, rows) in found.items():
        shown = []
        for ratio, latency, control in cells:
            (row,) = pick(rows, config.task, trained.name, control=control, ratio=ratio, latency=latency)[-1:] or [None]
            shown.append(f"{row.normalised_return:.1f} [{row.ci_low:.1f}, {row.ci_high:.1f}]" if row else "")
        costs = {row.ratio: row.flops_per_tick for row in rows}
        table.add_row(kind, f"{plan_bits(trained):.0f}", f"{costs[max(costs)] / 1e6:.2f}", *shown)
    return table


def plan_kinds(config: PlanKindsConfig) -> Table:
    """Returns the table of all kinds, after doing whatever is not finished."""
    found = {}
    for kind in config.kinds:
        train_run(training(config, kind))
        trained = load(config.out / kind)
        found[kind] = trained, closed_loops(config, config.out / kind, trained)
    return tabulated(config, found)


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(PlanKindsConfig, description=__doc__)
    cache_compilations(Path("runs/.jax_cache"))
    try:
        if config.preset not in PRESETS:
            raise ValueError(f"no preset {config.preset!r}: there are {', '.join(PRESETS)}")
        table = plan_kinds(config)
    except (ValueError, OSError, CheckpointError, NotFinite) as error:
        print(f"plan_kinds: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"plan_kinds: {error or 'stopped'}; the same command goes on from here", file=sys.stderr)
        return 130
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
