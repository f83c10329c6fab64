"""What is in a plan of the patrol: what a linear probe reads off it, how far it moves, and whether the cart goes where it says.

    python -m experiments.plan_contents --run runs/demo/two_rate

Prints three tables; with --json writes their numbers. About 90 s on a quiet core. `experiments/plan_contents.md` says what was
found, and `experiments/notebooks/what_is_in_a_plan.ipynb` draws it.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from envs import pads
from envs.loop import Moment, run
from envs.patrol import Rules
from experiments.evaluate import Trained, environments, load, seeds_of
from experiments.statistics import Interval, mean_interval
from experiments.tasks import find
from experiments.train import cache_compilations
from hierarchy.control.agent import Agent, Intervention
from hierarchy.timeline import periodic
from hierarchy.training.checkpoint import CheckpointError

TASK = "patrol"
RATIOS = (1, 2, 4, 8, 16, 32)
RULES = Rules()
PENALTY = 1.0
"""Of a probe, against N plans whose numbers have a variance of 1."""


class Plans(NamedTuple):
    """N plans of planner updates, each with what was true at the tick that it was made of.

    vectors: float [N, F]. episode, tick: int [N]. target: int [N], the colour to go to. slots: int [N, 4], which of the places
    from left to right each colour's pad has. stage: int [N], visits so far, modulo the three of the order.
    """

    vectors: np.ndarray
    episode: np.ndarray
    tick: np.ndarray
    target: np.ndarray
    slots: np.ndarray
    stage: np.ndarray


class Travels(NamedTuple):
    """B carts, 2i and 2i + 1 a pair: x in m [T, B], whether the episode was live [T, B], and where the pad to go to first lies,
    in m [B]."""

    x: np.ndarray
    live: np.ndarray
    goal: np.ndarray


def agent(trained: Trained, ratio: int, latency: int, change: Intervention) -> Agent:
    """Returns the run's agent, `change` done to its plans."""
    horizon = find(TASK).ticks
    timeline = periodic(horizon, ratio, latency)
    acting = trained.acting(TASK, "mean")
    return Agent(acting, trained.params, timeline, horizon=horizon, tokenizer=trained.tokenizer, intervention=change)


def collect(trained: Trained, ratio: int, latency: int, episodes: int) -> Plans:
    """Returns the plans of closed loops, all updates of all episodes while they last."""
    kept: list[np.ndarray] = []

    def keep(j: int, plan: jax.Array) -> jax.Array:
        kept.append(np.asarray(plan).reshape(len(plan), -1))
        return plan

    policy = agent(trained, ratio, latency, keep)
    moments = list(run(environments(TASK, episodes), policy, seeds_of(episodes)))
    stage = stages(np.stack([moment.observations["chime"][:, 0] for moment in moments]))
    parts = []
    for tick, vectors in zip(policy.timeline.observed.tolist(), kept):
        moment, live = moments[tick], np.flatnonzero(moments[tick].live)
        slots = np.argsort(np.argsort(moment.observations["pads"], axis=1), axis=1)
        known = moment.privileged["target"][:, 0], slots, stage[tick]
        parts.append((vectors[live], live, np.full(len(live), tick), *(each[live] for each in known)))
    return Plans(*(np.concatenate(part) for part in zip(*parts)))


def stages(chimes: np.ndarray) -> np.ndarray:
    """Returns int [T, ...]: visits up to each tick, modulo the three of the order, from what the chime did."""
    return np.cumsum(chimes, axis=0).astype(int) % 3


def shuffled(plans: Plans, seed: int = 0) -> Plans:
    """Returns the plans with their vectors dealt out again: what a probe makes of those is chance."""
    return plans._replace(vectors=np.random.default_rng(seed).permutation(plans.vectors))


def ridge(x: np.ndarray, y: np.ndarray, penalty: float = PENALTY) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function [M, F] to [M, K] that ridge regression fits to x [N, F] and y [N, K], in closed form."""
    centre, scale, offset = x.mean(axis=0), x.std(axis=0) + 1e-6, y.mean(axis=0)
    unit = (x - centre) / scale
    weights = np.linalg.solve(unit.T @ unit + penalty * np.eye(x.shape[1]), unit.T @ (y - offset))
    return lambda other: (other - centre) / scale @ weights + offset


def read_off(plans: Plans, label: np.ndarray) -> np.ndarray:
    """Returns [E]: in which share of each held-out episode's plans a linear probe, fitted to the plans of the other half of the
    episodes, reads the right label, int [N]."""
    fitted = plans.episode % 2 == 0
    classes = np.arange(label.max() + 1)
    probe = ridge(plans.vectors[fitted], (label[fitted, None] == classes).astype(float))
    right = probe(plans.vectors[~fitted]).argmax(axis=1) == label[~fitted]
    return by_episode(right, plans.episode[~fitted])


def by_episode(values: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """Returns [E], the mean of each episode's values."""
    return np.array([values[episode == each].mean() for each in np.unique(episode)])


def probes(plans: Plans) -> dict[str, np.ndarray]:
    """Returns what is read off plans, each as the shares [E] of `read_off`. Four equally likely colours, four places and three
    stages are there to choose from."""
    goal = np.take_along_axis(plans.slots, plans.target[:, None], axis=1)[:, 0]
    layout = [read_off(plans, plans.slots[:, colour]) for colour in range(len(pads.COLOURS))]
    return {
        "the next pad's place": read_off(plans, goal),
        "the next pad's colour": read_off(plans, plans.target),
        "each colour's place": np.mean(layout, axis=0),
        "the stage of the order": read_off(plans, plans.stage),
    }


def drift(plans: Plans) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cosine distances of plans to the one before, in an episode: those with the same pad to go to before and after,
    and those with another; each as the means of the episodes that have any."""
    order = np.lexsort((plans.tick, plans.episode))
    unit = plans.vectors[order] / np.linalg.norm(plans.vectors[order], axis=1, keepdims=True)
    episode, target = plans.episode[order], plans.target[order]
    follows, same = episode[1:] == episode[:-1], target[1:] == target[:-1]
    distance = 1 - (unit[1:] * unit[:-1]).sum(axis=1)
    stay, go = (by_episode(distance[which], episode[1:][which]) for which in (follows & same, follows & ~same))
    return stay, go


def swap(j: int, plan: jax.Array) -> jax.Array:
    """Returns the plans with those of episodes 2i and 2i + 1 in each other's place."""
    return plan[jnp.arange(len(plan)) ^ 1]


def leave(j: int, plan: jax.Array) -> jax.Array:
    """Returns the plans as they are."""
    return plan


def travel(trained: Trained, ratio: int, latency: int, pairs: int, change: Intervention, ticks: int = 128) -> Travels:
    """Returns how the carts of 2 * pairs episodes move under changed plans, for so many ticks."""
    policy, count = agent(trained, ratio, latency, change), 2 * pairs
    moments: list[Moment] = list(run(environments(TASK, count), policy, seeds_of(count), ticks))
    x = np.stack([moment.observations["position"][:, 0] for moment in moments])
    return Travels(x, np.stack([moment.live for moment in moments]), moments[0].privileged["sub_goal"][:, 0])


def arrived(travels: Travels, rules: Rules = RULES) -> tuple[np.ndarray, np.ndarray]:
    """Returns bool [B], bool [B]: whether the first pad that a cart stays on, of its own goal and the other cart's of its pair,
    is its own, and whether it is the other's. A stay is the task's; a cart may do neither."""
    places = np.stack([travels.goal, travels.goal[np.arange(len(travels.goal)) ^ 1]])
    on = (np.abs(travels.x[:, None] - places) < rules.zone) & travels.live[:, None]
    run_ = np.zeros(places.shape, int)
    first = np.full(places.shape, len(on))
    for tick, here in enumerate(on):
        run_ = np.where(here, run_ + 1, 0)
        first = np.where((run_ >= rules.dwell) & (first == len(on)), tick, first)
    own, other = first
    return own < other, other < own


def apart(travels: Travels, rules: Rules = RULES) -> np.ndarray:
    """Returns bool [pairs]: whether the two goals of a pair lie so far apart that no cart can be on both."""
    return np.abs(travels.goal[::2] - travels.goal[1::2]) > 2 * rules.zone


def both(each: np.ndarray) -> np.ndarray:
    """Returns [pairs]: whether it is so of both carts of a pair."""
    return each[::2] & each[1::2]


@dataclasses.dataclass(frozen=True)
class PlanContentsConfig:
    """run: folder of a training run that knows the patrol. ratio, latency: of the probes and the swap. ratios: of the drift.
    episodes: of each closed loop; half of them are for fitting the probes, half for reading off. pairs: of episodes that swap
    plans. json: file for the numbers."""

    run: Path
    ratio: int = 8
    latency: int = 0
    ratios: tuple[int, ...] = RATIOS
    episodes: int = 128
    pairs: int = 64
    json: Path | None = None


def measure(config: PlanContentsConfig, trained: Trained) -> dict:
    """Returns all that is measured, by name, in plain form: [mean, low, high] of 95% intervals over episodes or pairs."""
    if TASK not in trained.facts["tasks"] or trained.network.config.planner is None:
        raise ValueError(f"{config.run} has no plans of the {TASK}: train two_rate on it")
    wanted = [("plans", config.ratio), *(("drift", ratio) for ratio in config.ratios), ("swap", 0), ("leave", 0)]
    found: dict = {"ratio": config.ratio, "latency": config.latency, "episodes": config.episodes, "drift": {}, "pairs": {}}
    for what, ratio in track(wanted, "closing loops", console=Console(stderr=True), transient=True):
        if what == "plans":
            plans = collect(trained, config.ratio, config.latency, config.episodes)
            of = {"own": probes(plans), "shuffled": probes(shuffled(plans))}
            found["probes"] = {name: {kind: interval(of[kind][name]) for kind in of} for name in of["own"]}
        elif what == "drift":
            stay, go = drift(collect(trained, ratio, config.latency, config.episodes))
            found["drift"][ratio] = {"same pad": interval(stay), "another pad": interval(go)}
        else:
            travels = travel(trained, config.ratio, config.latency, config.pairs, swap if what == "swap" else leave)
            own, other = (both(each)[apart(travels)] for each in arrived(travels))
            found["pairs"][what] = {"each to its own": interval(own), "each to the other's": interval(other), "of": len(own)}
    return found


def interval(values: np.ndarray) -> Interval | None:
    """Returns the mean and its 95% bootstrap interval; None of fewer than two values."""
    return mean_interval(values) if len(values) > 1 else None


def tables(found: dict) -> list[Table]:
    """Returns what was measured as tables."""

    def cell(value: Interval | None, scale: float = 100.0) -> str:
        return "-" if value is None else f"{scale * value[0]:.3g} [{scale * value[1]:.3g}, {scale * value[2]:.3g}]"

    where = f"ratio {found['ratio']}, latency {found['latency']}"
    read = Table("read off a plan, % right", "its own", "shuffled plans", title=f"linear probes, {where}")
    for name, each in found["probes"].items():
        read.add_row(name, cell(each["own"]), cell(each["shuffled"]))
    moved = Table("ratio", "same pad as before", "another pad", title="cosine distance to the plan before")
    for ratio, each in found["drift"].items():
        moved.add_row(str(ratio), cell(each["same pad"], 1), cell(each["another pad"], 1))
    went = Table("plans of a pair", "each cart to its own pad, %", "each to the other's, %", "pairs", title=f"swap, {where}")
    for name, each in found["pairs"].items():
        row = cell(each["each to its own"]), cell(each["each to the other's"]), str(each["of"])
        went.add_row({"swap": "swapped", "leave": "their own"}[name], *row)
    return [read, moved, went]


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(PlanContentsConfig, description=__doc__)
    cache_compilations(Path("runs/.jax_cache"))
    try:
        found = measure(config, load(config.run))
        if config.json:
            config.json.parent.mkdir(parents=True, exist_ok=True)
            config.json.write_text(json.dumps(found, indent=1))
    except (ValueError, OSError, CheckpointError) as error:
        print(f"plan_contents: {error}", file=sys.stderr)
        return 1
    console = Console(width=110)
    for table in tables(found):
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
