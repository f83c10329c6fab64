"""Ask for a plan when it is needed: a trigger against the fixed period and against chance, at equal numbers of updates.

    python -m experiments.updates_by_need --out runs/updates_by_need

Trains one small model on the bursty goal (the controller sees what its last action was paid, never the goal), calibrates every
trigger on held-out episodes to the updates that a fixed period spends, and closes the loop with each of them in the same
episodes. Writes rows.jsonl and a picture a latency to the folder and prints the table. `experiments/updates_by_need.md` says how
long it takes and what to expect. Interrupted, the same command goes on where it stopped.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from envs import bursty_goal
from envs.loop import run
from experiments.evaluate import FIRST_SEED, Trained, environments, load, seeds_of
from experiments.need_rows import NAMES, RULES, TASK, NeedRow, draw, load_rows, table, updates_of, write_rows
from experiments.record import RecordConfig, record_source
from experiments.statistics import mean_interval, paired_difference
from experiments.train import Mix, TrainConfig, assemble, cache_compilations, train_run
from hierarchy.control.trigger import (
    Evidence,
    Score,
    Trigger,
    TriggeredAgent,
    TriggeredState,
    action_entropy,
    at_random,
    calibrate,
    lifetime_spent,
    plan_age,
    prediction_error,
)
from hierarchy.model.parallel import forward
from hierarchy.training.checkpoint import CheckpointError
from hierarchy.training.learner import LearnerConfig
from hierarchy.training.losses import LossWeights, following_loss, lifetime_loss
from hierarchy.training.trainer import Interrupted, NotFinite

HELD_OUT_SEED = FIRST_SEED + 500_000
"""Episodes that triggers are calibrated on start here, far from those of any recording or evaluation."""
MIX = Mix(rows=4, controller_tokens=256, planner_tokens=256, plans=160, recorded_timelines=1.0)
WEIGHTS = LossWeights(following=0.5, lifetime=0.3)
GAPS = (1, 6)
"""Fewest ticks between two updates; which of these is better for a budget, held-out episodes say."""


def unpaid(evidence: Evidence) -> np.ndarray:
    """Returns 1 where the last tick was not paid: the oracle on what the controller sees."""
    return 1.0 - evidence.observations["reward"][:, 0]


class Watched(NamedTuple):
    """A score to ask for updates by, the thresholds that may be, and how finely to search them."""

    score: Score
    low: float
    high: float
    halvings: int = 6


WATCHED = {
    "entropy": Watched(action_entropy, 0.0, float(np.log(RULES.goals)) + 0.1),
    "prediction": Watched(prediction_error, 0.0, 8.0),
    "lifetime": Watched(lifetime_spent, 0.0, 1.0),
    "oracle": Watched(unpaid, -0.5, 1.5, halvings=1),
}


@dataclasses.dataclass(frozen=True)
class NeedConfig:
    """out: folder of the corpus, the run and what is measured. periods: fixed periods in ticks; every other way is held to the
    updates that they spend. latencies: ticks that a plan takes. episodes: closed together in every cell, the same ones. held_out:
    episodes to calibrate on. recorded, steps, planner_steps: of the training. seed: of the training."""

    out: Path
    periods: tuple[int, ...] = (8, 13, 26)
    latencies: tuple[int, ...] = (0, 2)
    episodes: int = 512
    held_out: int = 128
    recorded: int = 800
    steps: int = 1200
    planner_steps: int = 200
    seed: int = 0


class Closed(NamedTuple):
    """What a trigger did: right, percent of ticks [B], and updates, how many an episode had [B]."""

    right: np.ndarray
    updates: np.ndarray


class Kept:
    """A policy that keeps its newest state."""

    def __init__(self, policy: TriggeredAgent):
        self._policy, self.begin = policy, policy.begin

    def step(self, state: TriggeredState, observations: Mapping[str, np.ndarray]) -> tuple[np.ndarray, TriggeredState]:
        """Returns what the policy does."""
        action, self.state = self._policy.step(state, observations)
        return action, self.state


def training(config: NeedConfig) -> TrainConfig:
    """Returns the run that trains the model."""
    learner = LearnerConfig(
        steps=config.steps, planner_steps=config.planner_steps, rate_warm_up=50, weights=WEIGHTS, seed=config.seed
    )
    return TrainConfig(config.out / "corpus", config.out / "two_rate", "two_rate", preset="bench", mix=MIX, learner=learner)


def prepare(config: NeedConfig) -> Trained:
    """Returns the model, trained on the recorded expert; what is done already is taken up as it is."""
    asked = training(config)
    record_source(RecordConfig(TASK, asked.corpus / TASK, config.recorded, clean=0.0))
    train_run(asked)
    return load(asked.out)


def close(trained: Trained, trigger: Trigger, latency: int, seeds: Sequence[int]) -> Closed:
    """Returns what a trigger does in the episodes of these seeds, stepped together, each with updates of its own."""
    policy = Kept(trained.triggered(TASK, trigger, latency))
    rewards = np.stack([moment.rewards for moment in run(environments(TASK, len(seeds)), policy, seeds)])
    return Closed(100 * rewards.mean(axis=0), np.sum([due for _, due in policy.state.updates], axis=0))


Close = Callable[[Trigger, int], Closed]
"""From a trigger and a latency to what it does in some episodes."""


def held_out(trained: Trained, episodes: int) -> Close:
    """Returns what closes the loop in the episodes to calibrate on, each trigger once: budgets share what they try."""
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + episodes)
    return functools.cache(lambda trigger, latency: close(trained, trigger, latency, seeds))


def calibrated(tried: Close, way: str, period: int, latency: int) -> Trigger:
    """Returns the trigger of a way that spends no more than the fixed period: of a score, in the episodes of `held_out`, and
    there the one that is right most often."""
    if way == "fixed":
        return Trigger(plan_age, period)
    if way == "random":
        return Trigger(at_random, 1 - chance(period, latency))
    watched, budget, found = WATCHED[way], updates_of(period), []

    def spend(trigger: Trigger) -> float:
        return float(tried(trigger, latency).updates.mean())

    for gap in GAPS:
        asked = Trigger(watched.score, watched.high, gap)
        found.append(calibrate(asked, spend, budget, watched.low, watched.high, RULES.ticks, watched.halvings))
    return max(found, key=lambda trigger: tried(trigger, latency).right.mean())


def chance(period: int, latency: int) -> float:
    """Returns the chance of an update, at each tick that may have one, that spends a fixed period's updates on average."""
    more = updates_of(period) - 1
    return min(1.0, more / (RULES.ticks - 1 - more * latency))


def period_of(updates: float) -> int:
    """Returns the fixed period that spends no fewer updates in an episode, as few as it can and as evenly."""
    longest = next(period for period in range(RULES.ticks, 0, -1) if updates_of(period) >= updates)
    return -(-RULES.ticks // updates_of(longest))


def row_of(
    agent: str,
    way: str,
    period: int,
    latency: int,
    trigger: Trigger | None,
    seed: int,
    own: Closed,
    fixed: Callable[[int], Closed],
) -> NeedRow:
    """Returns the row of one way. fixed: from a period to what it does in the same episodes."""
    beside = period_of(float(own.updates.mean()))
    right, gain = mean_interval(own.right), paired_difference(own.right, fixed(beside).right)
    return NeedRow(
        agent=agent,
        way=way,
        period=period,
        latency=latency,
        threshold=trigger and float(trigger.threshold),
        minimum_gap=trigger.minimum_gap if trigger else 1,
        maximum_age=trigger and trigger.maximum_age,
        train_seed=seed,
        episodes=len(own.right),
        updates=float(own.updates.mean()),
        right=right.mean,
        low=right.low,
        high=right.high,
        beside=beside,
        gain=gain.mean,
        gain_low=gain.low,
        gain_high=gain.high,
    )


def measure(
    config: NeedConfig, trained: Trained, tried: Close, period: int, latency: int, done: Sequence[NeedRow]
) -> list[NeedRow]:
    """Returns the rows of every way at one budget; those that are done are taken up. tried: see `held_out`."""
    seeds, rows = seeds_of(config.episodes), []
    known = {row.way: row for row in done if (row.agent, row.period, row.latency) == ("learned", period, latency)}
    if set(known) == set(NAMES):
        return [known[way] for way in NAMES]
    fixed = functools.cache(lambda ticks: close(trained, Trigger(plan_age, ticks), latency, seeds))
    for way in NAMES:
        trigger = calibrated(tried, way, period, latency)
        own = fixed(period) if way == "fixed" else close(trained, trigger, latency, seeds)
        rows.append(row_of("learned", way, period, latency, trigger, config.seed, own, fixed))
    return rows


def reference(period: int, latency: int, episodes: int, seed: int = 0) -> list[NeedRow]:
    """Returns the rows of scripted readers, whose updates no model asks for: fixed, random and the oracle on the reward."""
    goals = np.stack([bursty_goal.draw_goals(np.random.default_rng((seed, i)), RULES)[:-1] for i in range(episodes)])

    def outcome(asks: bursty_goal.Asks) -> Closed:
        right, updates = bursty_goal.scripted(goals, asks, np.random.default_rng(seed), RULES, latency)
        return Closed(100.0 * right.mean(axis=1), updates)

    budget, rng = updates_of(period), np.random.default_rng((seed, 1))
    fixed = functools.cache(lambda ticks: outcome(bursty_goal.periodically(ticks)))
    random = outcome(bursty_goal.at_random(chance(period, latency), rng))
    oracles = [outcome(bursty_goal.on_failure(gap)) for gap in range(1, 4 * period)]
    oracle = next((one for one in oracles if one.updates.mean() <= budget), oracles[-1])
    named = {"fixed": fixed(period), "random": random, "oracle": oracle}
    return [row_of("scripted", way, period, latency, None, seed, own, fixed) for way, own in named.items()]


def need(config: NeedConfig) -> list[NeedRow]:
    """Returns all rows, and writes them to `rows.jsonl` as they come."""
    cells = [(period, latency) for latency in config.latencies for period in config.periods]
    rows = [row for cell in cells for row in reference(*cell, config.episodes)]
    path = config.out / "rows.jsonl"
    done = [row for row in load_rows(path) if (row.episodes, row.train_seed) == (config.episodes, config.seed)]
    others = [row for row in done if (row.period, row.latency) not in cells]
    trained = prepare(config)
    tried = held_out(trained, config.held_out)
    for cell in track(cells, description="calibrating triggers and closing loops"):
        rows += measure(config, trained, tried, *cell, done)
        write_rows(path, others + rows)
    return rows


def heads(config: NeedConfig, trained: Trained) -> dict[str, float]:
    """Returns what the two heads that triggers go by know of held-out episodes, in nats, each beside the base rate: what
    predicts as well who only knows how often each outcome is."""
    batches = assemble(training(config)).held_out
    both = jax.jit(functools.partial(forward, trained.network))
    found = []
    for batch in batches:
        logits = both(trained.params, batch)
        found.append((following_loss(logits.following, batch.following)[0], lifetime_loss(logits.lifetime, batch.lifetime)))
    labels = {
        name: np.concatenate([each.label[each.weight > 0] for each in (getattr(batch, name) for batch in batches)])
        for name in ("following", "lifetime")
    }
    following, lifetime = np.mean(found, axis=0)
    return {
        "reward": float(following),
        "reward_base": base_rate(labels["following"], sum(trained.network.table.predictions)),
        "lifetime": float(lifetime),
        "lifetime_base": base_rate(labels["lifetime"], trained.network.table.lives),
    }


def base_rate(label: np.ndarray, bins: int) -> float:
    """Returns the lowest mean negative log-likelihood in nats that one distribution over bins has of labels, of which those from
    `bins` on are censored (Turnbull 1976)."""
    own, ended = label % bins, label < bins
    at_least = np.arange(bins) >= own[:, None]
    possible = np.where(ended[:, None], np.arange(bins) == own[:, None], at_least)
    rates = np.full(bins, 1 / bins)
    for _ in range(200):
        share = possible * rates
        rates = (share / share.sum(axis=1, keepdims=True)).mean(axis=0)
    return float(-np.log((possible * rates).sum(axis=1)).mean())


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(NeedConfig, description=__doc__)
    cache_compilations(Path("runs/.jax_cache"))
    try:
        rows = need(config)
    except (ValueError, OSError, CheckpointError, NotFinite) as error:
        print(f"updates_by_need: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"updates_by_need: {error or 'stopped; the same command goes on from there'}", file=sys.stderr)
        return 130
    console = Console(width=max(140, Console().width))
    console.print(table(rows))
    for latency in config.latencies:
        draw(rows, latency).savefig(config.out / f"need_{latency}.png", dpi=150)
    known = heads(config, load(config.out / "two_rate"))
    for name, what in (("reward", "next reward"), ("lifetime", "lifetime")):
        console.print(f"{what}: {known[name]:.3f} nats on held-out episodes, base rate {known[f'{name}_base']:.3f}")
    console.print(f"rows: {config.out / 'rows.jsonl'}; pictures: need_*.png beside them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
