"""Train one small model on a task whose answer is known, close the loop, and set what it does beside the known answer.

    python -m experiments.bench --task switching_goal --out runs/bench/switching_goal

The tasks are cue_recall, switching_goal and disturbance_rejection; `experiments/bench.md` says how long each takes and what to
expect. Interrupted, the same command goes on where it stopped.
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

from envs import cue_recall, disturbance_rejection, switching_goal
from envs.loop import Moment, run
from experiments.evaluate import Cell, Trained, environments, load, policy_of, seeds_of, trained_on
from experiments.record import RecordConfig, record_source
from experiments.statistics import mean_interval
from experiments.train import Mix, TrainConfig, cache_compilations, train_run
from hierarchy.timeline import NO_PLAN, age, periodic, visible
from hierarchy.training.checkpoint import CheckpointError
from hierarchy.training.learner import LearnerConfig
from hierarchy.training.trainer import Interrupted, NotFinite, read_metrics

TaskName = Literal["cue_recall", "switching_goal", "disturbance_rejection"]
RATIOS = (1, 2, 4, 8, 16, 32)
LATENCIES = (0, 4)
CONTROLS = ("zeroed", "frozen", "shuffled", "stale", "random")
BLIND = ("zeroed", "shuffled", "random")
"""Plans that say nothing about the episode."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """episodes: recorded. steps: of training, of which `planner_steps` teach the planner its sub-goal alone. alone: steps of the
    controller without a planner, 0 where it is not trained. Ratios 2 and 8 are never trained on."""

    episodes: int
    steps: int
    planner_steps: int
    alone: int = 0
    mix: Mix = Mix(rows=4, controller_tokens=256, planner_tokens=256, plans=160, ratios=(1, 4, 16, 32), latencies=tuple(range(9)))


RECIPES: dict[TaskName, Recipe] = {
    "cue_recall": Recipe(episodes=600, steps=800, planner_steps=200, alone=300),
    "switching_goal": Recipe(episodes=600, steps=800, planner_steps=200),
    "disturbance_rejection": Recipe(episodes=1000, steps=2000, planner_steps=200),
}


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """task: which one. out: folder of its corpus, runs and answers. episodes: of a cell, stepped together, the same seeds in
    every cell. seed: of the training."""

    task: TaskName
    out: Path
    episodes: int = 512
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one cell does, in percent: of answers (cue recall) or settled ticks (switching goal) that are right, or of the highest
    expected return (disturbance rejection).

    known: what is derived for it, None where nothing is; `known_is` says whether as an equality or an upper bound. low, high: 95%
    bootstrap interval over the episodes of one training. followed: percent of ticks whose action is the goal that the visible
    plan's update saw (switching goal, plans untouched). ticks: how many ticks it rests on, in all episodes.
    """

    task: str
    agent: str
    control: str
    trained_at: str
    ratio: int | None
    latency: int | None
    train_seed: int
    episodes: int
    ticks: int
    measured: float
    low: float
    high: float
    known: float | None
    known_is: Literal["equal", "at_most", "none"]
    followed: float | None
    seen_in_training: bool


def prepare(config: BenchConfig, agent: Literal["two_rate", "controller_only"] = "two_rate") -> Trained:
    """Returns the agent, trained on the recorded expert; what is done already is taken up as it is."""
    recipe, corpus = RECIPES[config.task], config.out / "corpus"
    record_source(RecordConfig(config.task, corpus / config.task, recipe.episodes))
    two_rate = agent == "two_rate"
    steps, planner_steps = (recipe.steps, recipe.planner_steps) if two_rate else (recipe.alone, 0)
    learner = LearnerConfig(steps=steps, planner_steps=planner_steps, rate_warm_up=50, seed=config.seed)
    out = config.out / agent
    train_run(TrainConfig(corpus, out, agent, preset="bench", mix=recipe.mix, learner=learner))
    return load(out)


def cells_of(task: TaskName) -> list[Cell]:
    """Returns the cells of a two-rate agent."""
    cells = [Cell(ratio, latency) for latency in LATENCIES for ratio in RATIOS]
    cells += [Cell(8, 0, control=control) for control in CONTROLS]
    if task == "disturbance_rejection":
        cells += [Cell(ratio, 0, agent="held_action") for ratio in (2, 4, 8)]
    return cells


def settled(rules: switching_goal.Rules, cell: Cell) -> slice:
    """Returns the ticks of a whole number of the plan's periods, from the first tick that has a plan."""
    return slice(cell.latency, cell.latency + (rules.ticks - cell.latency) // cell.ratio * cell.ratio)


def scores(task: TaskName, cell: Cell, rewards: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns the percentages [B] that rewards [T, B] amount to, and how many ticks of an episode they rest on."""
    if task == "disturbance_rejection":
        return 100 * rewards.sum(axis=0) / disturbance_rejection.Rules().best, len(rewards)
    rules = switching_goal.Rules()
    rested = rewards[settled(rules, cell)] if task == "switching_goal" else rewards[cue_recall.Rules().delay :]
    return 100 * rested.mean(axis=0), len(rested)


def known(task: TaskName, cell: Cell, plans: bool = True) -> tuple[float | None, Literal["equal", "at_most", "none"]]:
    """Returns the percentage that is derived for a cell, and whether as an equality or a bound. plans: whether there are any."""
    if task == "cue_recall":
        rules = cue_recall.Rules()
        told = plans and cell.control not in BLIND
        return 100 * (
            cue_recall.expected_return(rules, cell.ratio, cell.latency) if told else cue_recall.chance(rules)
        ) / rules.best, "equal"
    if task == "switching_goal":
        return 100 * _right(switching_goal.Rules(), cell), "equal"
    rules = disturbance_rejection.Rules()
    if cell.agent == "held_action":
        return 100 * disturbance_rejection.seldom_bound(rules, cell.ratio) / disturbance_rejection.goal_value(rules), "at_most"
    if cell.control != "none":
        return None, "none"
    return 100 * disturbance_rejection.expected_return(rules, cell.ratio, cell.latency) / rules.best, "equal"


def _right(rules: switching_goal.Rules, cell: Cell) -> float:
    """The probability that the goal in the controller's plan is the tick's, over settled ticks."""
    if cell.control in BLIND:
        return 1 / rules.goals
    if cell.control == "none":
        return switching_goal.correct_probability(cell.ratio, cell.latency, rules.tau, rules.goals)
    ticks, timeline = np.arange(rules.ticks)[settled(rules, cell)], periodic(rules.ticks, cell.ratio, cell.latency)
    seen = 0 if cell.control == "frozen" else timeline.observed[np.maximum(visible(timeline, ticks) - 1, 0)]
    kept = (1 - 1 / rules.tau) ** (ticks - seen)
    return float(np.mean(kept + (1 - kept) / rules.goals))


def followed(cell: Cell, moments: Sequence[Moment]) -> float:
    """Returns the percentage of ticks with a plan at which the action is the goal that the plan's update saw."""
    goals = np.stack([moment.observations["goal"][:, 0] for moment in moments])
    actions = np.stack([moment.actions for moment in moments])
    ticks = np.arange(len(moments))
    ages = age(periodic(len(moments), cell.ratio, cell.latency), ticks)
    ticks, ages = ticks[ages != NO_PLAN], ages[ages != NO_PLAN]
    return float(100 * np.mean(actions[ticks] == goals[ticks - ages]))


def answer(trained: Trained, task: TaskName, cell: Cell, episodes: int) -> Answer:
    """Returns what a cell does beside what is known of it; all its episodes are stepped together."""
    agent, plans = cell.agent or trained.name, trained.network.config.planner is not None
    moments = list(run(environments(task, episodes), policy_of(trained, agent, task, cell), seeds_of(episodes)))
    percent, ticks = scores(task, cell, np.stack([moment.rewards for moment in moments]))
    interval = mean_interval(percent)
    trained_at, seen = trained_on(trained, trained.facts["mix"], cell)
    expected, known_is = known(task, cell, plans)
    follows = plans and task == "switching_goal" and cell.control == "none"
    return Answer(
        task=task,
        agent=agent,
        control=cell.control,
        trained_at=trained_at,
        ratio=cell.ratio if plans else None,
        latency=cell.latency if plans else None,
        train_seed=trained.facts["learner"]["seed"],
        episodes=episodes,
        ticks=ticks * episodes,
        measured=interval.mean,
        low=interval.low,
        high=interval.high,
        known=expected,
        known_is=known_is,
        followed=followed(cell, moments) if follows else None,
        seen_in_training=seen,
    )


def sub_goal_accuracy(run_folder: Path) -> float:
    """Returns the percentage of held-out updates at which the planner names the sub-goal, at the end of the training."""
    return 100 * [line for line in read_metrics(run_folder) if line["group"] == "held_out"][-1]["sub_goal_accuracy"]


def bench(config: BenchConfig) -> list[Answer]:
    """Returns the answers of all cells, and writes them to `answers.jsonl`."""
    trained = prepare(config)
    cells = track(cells_of(config.task), description="closing loops")
    answers = [answer(trained, config.task, cell, config.episodes) for cell in cells]
    if RECIPES[config.task].alone:
        answers.append(answer(prepare(config, "controller_only"), config.task, Cell(1, 0), config.episodes))
    lines = "".join(json.dumps(dataclasses.asdict(each)) + "\n" for each in answers)
    draft = config.out / "answers.draft"
    draft.write_text(lines)
    draft.rename(config.out / "answers.jsonl")
    return answers


def table(answers: Sequence[Answer]) -> Table:
    """Returns the answers as a table, each beside the known one."""
    shown = Table(title=f"{answers[0].task}, {answers[0].episodes} episodes a row, percent")
    for name in ("agent", "control", "ratio", "latency", "measured", "95% interval", "known", "difference", "follows plan"):
        shown.add_column(name, justify="left" if name in ("agent", "control") else "right", no_wrap=True)
    for each in answers:
        sign = {"equal": "", "at_most": "≤ ", "none": ""}[each.known_is]
        shown.add_row(
            each.agent,
            each.control,
            *("-" if value is None else f"{value}" for value in (each.ratio, each.latency)),
            f"{each.measured:.1f}",
            f"{each.low:.1f} to {each.high:.1f}",
            "-" if each.known is None else f"{sign}{each.known:.1f}",
            f"{each.measured - each.known:+.1f}" if each.known_is == "equal" else "-",
            "-" if each.followed is None else f"{each.followed:.2f}",
        )
    return shown


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(BenchConfig, description=__doc__)
    cache_compilations(Path("runs/.jax_cache"))
    try:
        answers = bench(config)
    except (ValueError, OSError, CheckpointError, NotFinite) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"bench: {error or 'stopped; the same command goes on from there'}", file=sys.stderr)
        return 130
    console = Console(width=max(120, Console().width))
    console.print(table(answers))
    console.print(f"the planner names the sub-goal at {sub_goal_accuracy(config.out / 'two_rate'):.1f}% of held-out updates")
    console.print(f"rows: {config.out / 'answers.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
