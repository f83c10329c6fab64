"""Close the loop at many ratios and latencies with one set of weights, and write a row a cell.

    python -m experiments.compare_ratios --run runs/demo/two_rate --rows runs/demo/rows.jsonl

Cells that stand in the file already are skipped, so an interrupted comparison goes on where it stopped. Every cell has the same
episodes; intervals are over episodes of one training.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.evaluate import Cell, Trained, describe_row, load, measure, time_ticks, trained_on, variant_in_rows
from experiments.rows import KEY, append, by_key
from experiments.rows import load as load_rows
from experiments.train import cache_compilations
from hierarchy.training.checkpoint import CheckpointError

CONTROLS = ("zeroed", "frozen", "shuffled", "stale", "random")


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """run: folder of a training run. rows: file of rows. ratios, latencies: every pair of them is a cell; of an agent that looks
    ahead, those ratios that are its chunks and latencies that are its delays. controls: at `control_ratio` and latency 0, what
    is done to the plan. held, late: ticks for which actions are held, or come late, with these weights at (1, 0). above_ratio,
    above_latency: of the planner above the planner, in every cell of an agent that has one."""

    run: Path
    rows: Path
    task: str = "patrol"
    episodes: int = 128
    ratios: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    latencies: tuple[int, ...] = (0, 2, 4, 8)
    controls: tuple[Literal["zeroed", "frozen", "shuffled", "stale", "random"], ...] = CONTROLS
    control_ratio: int = 8
    held: tuple[int, ...] = ()
    late: tuple[int, ...] = ()
    above_ratio: int | None = None
    above_latency: int = 0


def cells_of(config: CompareConfig, trained: Trained) -> list[Cell]:
    """Returns the cells of a comparison; for a model without plans those that it was trained for."""
    if trained.name == "chunked":
        return [Cell(ratio, 0) for ratio in config.ratios if ratio in trained.lookahead]
    if trained.name == "late_action":
        return [Cell(1, latency) for latency in config.latencies if latency in trained.lookahead]
    if trained.network.config.planner is not None:
        above = {"above_ratio": config.above_ratio, "above_latency": config.above_latency}
        cells = [Cell(ratio, latency, **above) for latency in config.latencies for ratio in config.ratios]
        cells += [Cell(config.control_ratio, 0, control=control, **above) for control in config.controls]
    else:
        cells = [Cell(1, 0)]
    cells += [Cell(ratio, 0, agent="held_action") for ratio in config.held]
    return cells + [Cell(1, latency, agent="late_action") for latency in config.late]


def tick_times(config: CompareConfig, trained: Trained) -> dict[int, tuple[float, float]]:
    """Returns ratio to milliseconds (p50, p99) of a tick at batch 1, for the ratios of the comparison; measured once and kept
    beside the rows, so that rows of an interrupted comparison share them."""
    above = f"above_k{config.above_ratio}" if config.above_ratio else ""
    path = config.rows.with_name(f"tick_ms_{'_'.join(filter(None, (trained.name, trained.variant, above, config.task)))}.json")
    known = {int(ratio): tuple(ms) for ratio, ms in json.loads(path.read_text()).items()} if path.exists() else {}
    cells = cells_of(config, trained)
    wanted = sorted({1 if cell.agent else cell.ratio for cell in cells} - known.keys())
    if wanted:
        known |= {ratio: time_ticks(trained, config.task, Cell(ratio, above_ratio=config.above_ratio)) for ratio in wanted}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known))
    return known


def compare(config: CompareConfig, trained: Trained, tick_ms: Mapping[int, tuple[float, float]]) -> None:
    """Appends the rows of all cells that are not there yet. tick_ms: by ratio, see `tick_times`; a row without one has none."""
    cells = cells_of(config, trained)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{trained.name} on {config.task}", total=len(cells))
        for cell in cells:
            done = by_key(load_rows(config.rows))
            if not any(is_of(key, trained, config.task, cell) for key in done):
                row = measure(trained, config.task, cell, config.episodes, tick_ms.get(1 if cell.agent else cell.ratio))
                append(config.rows, row)
                bar.console.print(describe_row(row), highlight=False)
            bar.advance(task)


def is_of(key: Sequence, trained: Trained, task: str, cell: Cell) -> bool:
    """Returns whether a row's key is this cell's, of this run."""
    named = dict(zip(KEY, key, strict=True))
    same = named["task"] == task and named["train_seed"] == trained.facts["learner"]["seed"] and named["control"] == cell.control
    same = same and named["trained_at"] == trained_on(trained, cell)[0]
    if cell.agent:
        own = named["agent"] == cell.agent and named["variant"] == variant_in_rows(trained, cell)
        return same and own and named["ratio"] == cell.ratio and named["latency"] == cell.latency
    same = same and named["agent"] == trained.name and named["variant"] == variant_in_rows(trained, cell)
    if trained.network.config.planner is None and not trained.lookahead:
        return same
    return same and named["ratio"] == cell.ratio and named["latency"] == cell.latency


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(CompareConfig, description=__doc__)
    cache_compilations(Path("runs/.jax_cache"))
    try:
        trained = load(config.run)
        compare(config, trained, tick_times(config, trained))
    except (ValueError, OSError, CheckpointError) as error:
        print(f"compare_ratios: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("compare_ratios: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
