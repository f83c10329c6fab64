"""Train a model of three rates on the relayed goal, close the loop at pairs of ratios, and set what it does beside the answer.

    python -m experiments.three_rates --out runs/three_rates

The slowest planner alone sees the course, the planner below it alone the turn, and the action that pays is their sum: nobody is
right more often than by chance unless both links carry what they should. `experiments/three_rates.md` says how long it takes and
what to expect. Interrupted, the same command goes on: recording and training from where they stopped, the loops, a minute, anew.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from envs import relayed_goal
from envs.loop import run
from experiments.evaluate import Cell, Trained, environments, load, policy_of, seeds_of, trained_on
from experiments.record import RecordConfig, record_source
from experiments.statistics import mean_interval
from experiments.train import Mix, TrainConfig, cache_compilations, train_run
from hierarchy.model.flops import flops_per_tick
from hierarchy.timeline import Timeline, periodic, recorded
from hierarchy.training.checkpoint import CheckpointError
from hierarchy.training.learner import LearnerConfig
from hierarchy.training.trainer import Interrupted, NotFinite

TASK = "relayed_goal"
LOWER = ((1, 0), (4, 0), (8, 0), (8, 4), (16, 0), (16, 8))
"""Ratio and latency of the planner's plans; 8 is never trained on."""
UPPER = ((16, 0), (32, 0), (64, 0), (64, 8))
"""Those of the plans of the planner above it; 32 is never trained on."""
CONTROLLED = Cell(4, 0, above_ratio=16)
EPISODES = 600
MIX = Mix(
    rows=4,
    controller_tokens=256,
    planner_tokens=256,
    plans=160,
    ratios=(1, 4, 16, 32),
    # Of whole episodes, as `experiments.train` has them without a lead-in.
    above_tokens=128,
    above_plans=128,
    above_ratios=(1, 16, 64),
)


@dataclasses.dataclass(frozen=True)
class ThreeRatesConfig:
    """out: folder of the corpus, the run and the answers. steps: of training, of which `planner_steps` are without the
    controller. episodes: of a cell, stepped together, the same seeds in every cell. seed: of the training."""

    out: Path
    steps: int = 1200
    planner_steps: int = 500
    episodes: int = 512
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one cell does: percent of ticks whose action is the goal, its 95% bootstrap interval over the episodes of one
    training, and what is derived for it.

    ratio, latency: of the planner's plans. above_ratio, above_latency: of the plans of the planner above it. control, control_at:
    what is done to plans, and whose, 2 being those of the planner above. mflop_per_tick: operations a control tick, in millions.
    """

    ratio: int
    latency: int
    above_ratio: int
    above_latency: int
    control: str
    control_at: int
    train_seed: int
    episodes: int
    measured: float
    low: float
    high: float
    known: float
    seen_in_training: bool
    mflop_per_tick: float


def prepare(config: ThreeRatesConfig) -> Trained:
    """Returns the agent, trained on the recorded expert; what is done already is taken up as it is."""
    corpus, out = config.out / "corpus", config.out / "three_rate"
    record_source(RecordConfig(TASK, corpus / TASK, EPISODES))
    learner = LearnerConfig(steps=config.steps, planner_steps=config.planner_steps, rate_warm_up=50, seed=config.seed)
    train_run(TrainConfig(corpus, out, "three_rate", preset="bench", mix=MIX, learner=learner))
    return load(out)


def cells() -> list[Cell]:
    """Returns every pair of links, and what becomes of it with plans that say nothing of the episode at either link."""
    pairs = [Cell(*lower, above_ratio=k, above_latency=d) for lower in LOWER for k, d in UPPER]
    blind: list[Literal["shuffled", "random"]] = ["shuffled", "random"]
    return pairs + [dataclasses.replace(CONTROLLED, control=control, control_at=at) for at in (1, 2) for control in blind]


def known(cell: Cell) -> float:
    """Returns the percentage that is derived for a cell: no policy is right more often."""
    rules = relayed_goal.Rules()
    lower, upper = periodic(rules.ticks, cell.ratio, cell.latency), periodic(rules.ticks, cell.above_ratio, cell.above_latency)
    never = recorded([], [])
    links: list[Timeline] = [lower, upper]
    if cell.control != "none":
        links[cell.control_at - 1] = never
    return 100 * relayed_goal.expected_return(rules, *links) / rules.ticks


def answer(trained: Trained, cell: Cell, episodes: int) -> Answer:
    """Returns what a cell does beside what is known of it; all its episodes are stepped together."""
    moments = run(environments(TASK, episodes), policy_of(trained, trained.name, TASK, cell), seeds_of(episodes))
    interval = mean_interval(100 * np.stack([moment.rewards for moment in moments]).mean(axis=0))
    network = trained.network
    cost = flops_per_tick(network.config, trained.schema, trained.schema[TASK], cell.ratio, (cell.above_ratio,))
    links = {name: getattr(cell, name) for name in ("ratio", "latency", "above_ratio", "above_latency", "control", "control_at")}
    return Answer(
        **links,
        train_seed=trained.facts["learner"]["seed"],
        episodes=episodes,
        measured=interval.mean,
        low=interval.low,
        high=interval.high,
        known=known(cell),
        seen_in_training=trained_on(trained, cell)[1],
        mflop_per_tick=cost / 1e6,
    )


def three_rates(config: ThreeRatesConfig) -> list[Answer]:
    """Returns the answers of all cells, and writes them to `answers.jsonl`."""
    trained = prepare(config)
    answers = [answer(trained, cell, config.episodes) for cell in track(cells(), description="closing loops")]
    draft = config.out / "answers.draft"
    draft.write_text("".join(json.dumps(dataclasses.asdict(each)) + "\n" for each in answers))
    draft.rename(config.out / "answers.jsonl")
    return answers


def table(answers: Sequence[Answer]) -> Table:
    """Returns the answers as a table, each beside the known one."""
    shown = Table(title=f"{TASK}, {answers[0].episodes} episodes a row: percent of ticks that are right")
    for name in (
        "plan every",
        "late",
        "above every",
        "late",
        "plans",
        "measured",
        "95% interval",
        "known",
        "difference",
        "MFLOP a tick",
    ):
        shown.add_column(name, justify="left" if name == "plans" else "right", no_wrap=True)
    for each in answers:
        whose = {1: "the planner's", 2: "those above"}[each.control_at]
        shown.add_row(
            *(str(value) for value in (each.ratio, each.latency, each.above_ratio, each.above_latency)),
            "its own" if each.control == "none" else f"{each.control}, {whose}",
            f"{each.measured:.1f}",
            f"{each.low:.1f} to {each.high:.1f}",
            f"{each.known:.1f}",
            f"{each.measured - each.known:+.1f}",
            f"{each.mflop_per_tick:.3f}",
        )
    return shown


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(ThreeRatesConfig, description=__doc__)
    cache_compilations(Path("runs/.jax_cache"))
    try:
        answers = three_rates(config)
    except (ValueError, OSError, CheckpointError, NotFinite) as error:
        print(f"three_rates: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"three_rates: {error or 'stopped; the same command goes on from there'}", file=sys.stderr)
        return 130
    console = Console(width=max(130, Console().width))
    console.print(table(answers))
    console.print(f"rows: {config.out / 'answers.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
