"""Rows with the shape of a demo's, their figures invented: what the report is tested on."""

import functools
import json
from pathlib import Path

import numpy as np

from experiments.rows import Row, append
from experiments.statistics import mean_interval, normalise

EPISODES = 128


def invent(mean: float, seed: int = 0, **fields: object) -> Row:
    """Returns a row with this normalised return and episodes spread about it, on a task where the expert makes 4 and random 0."""
    rng = np.random.default_rng(seed + 1000 * (fields.get("ratio") or 0) + (fields.get("latency") or 0))
    returns = 4 * mean / 100 + 0.8 * (rng.normal(size=EPISODES) if 0 < mean < 100 else np.zeros(EPISODES))
    interval = mean_interval(normalise(returns - returns.mean() + 4 * mean / 100, 0, 4))
    values = dict(task="patrol", trained_at="random", train_seed=0, ratio=None, latency=None, wall_s=1.2) | fields
    return Row(
        episodes=EPISODES,
        normalised_return=interval.mean,
        ci_low=interval.low,
        ci_high=interval.high,
        returns=tuple(returns - returns.mean() + 4 * mean / 100),
        **values,
    )


def scripted(variant: str, mean: float, **cell: object) -> Row:
    """Returns a row of a scripted reference."""
    return invent(mean, agent="scripted", variant=variant, trained_at="none", train_seed=None, **cell)


@functools.cache
def patrol_rows() -> tuple[Row, ...]:
    """Returns rows in which every claim of the report holds."""
    rows = [scripted("random", 0), scripted("expert", 100)]
    for ratio in (1, 2, 4, 8, 16, 32):
        for latency in (0, 2, 4, 8):
            mean = 97 - 0.4 * ratio**0.8 - 0.9 * latency
            cost = {"flops_per_tick": 2e6 + 12e6 / ratio, "tick_ms_p50": 0.6, "tick_ms_p99": 2.8, "params": 480_000}
            rates = {"slow_hz": 25 / ratio, "fast_hz": 25.0, "observation_to_action_ticks": 0.0}
            age = {"plan_age_ticks": latency + (ratio - 1) / 2, "seen_in_training": ratio not in (2, 8)}
            rows.append(invent(mean, agent="two_rate", ratio=ratio, latency=latency, **cost, **rates, **age))
            rows.append(scripted("hierarchy", 99 - 0.5 * ratio - 1.2 * latency, ratio=ratio, latency=latency))
    for ratio, held, exact, chunk in ((2, 60, 97, 98), (4, 8, 79, 89), (8, 2, 48, 58), (16, 1, 15, 25)):
        for weights in ("single_rate", "two_rate"):
            mean = held * (1.0 if weights == "single_rate" else 0.8)
            rows.append(invent(mean, agent="held_action", variant=weights, ratio=ratio, flops_per_tick=15e6 / ratio))
        rows += [scripted("held", exact, ratio=ratio), scripted("chunks", chunk, ratio=ratio)]
    for latency, ours, exact, predicted in ((1, 30, 62, 94), (2, 4, 5, 85), (4, 1, 1, 65), (8, 1, 0, 26)):
        rows.append(invent(ours, agent="late_action", variant="single_rate", ratio=1, latency=latency))
        rows += [scripted("late", exact, ratio=1, latency=latency), scripted("compensated", predicted, ratio=1, latency=latency)]
    for control, mean in (("stale", 84), ("frozen", 33), ("random", 19), ("shuffled", 11), ("zeroed", 17)):
        rows.append(invent(mean, agent="two_rate", control=control, ratio=8, latency=0, seen_in_training=False))
    rows.append(invent(95, agent="single_rate", ratio=1, latency=0, flops_per_tick=15e6, tick_ms_p50=2.1, tick_ms_p99=2.9))
    rows.append(invent(12, agent="controller_only", flops_per_tick=1.9e6, tick_ms_p50=0.5, tick_ms_p99=0.7))
    for task, mean in (("cartpole_balance", 96), ("pendulum_swingup", 71), ("reacher_easy", 88), ("point_mass_easy", 45)):
        rows += [invent(mean, task=task, agent="two_rate", ratio=8, latency=0), invent(mean + 3, task=task, agent="single_rate")]
        rows += [scripted("random", 0, task=task), scripted("expert", 100, task=task)]
    return tuple(rows)


def write_run(folder: Path) -> Path:
    """Returns the folder of an invented run: rows, facts, training metrics."""
    for row in patrol_rows():
        append(folder / "rows.jsonl", row)
    commands = ["python -m experiments.demo", "python -m experiments.report runs/demo"]
    facts = {
        "versions": {"jax": "0.10.2", "numpy": "2.4.6"},
        "commands": commands,
        "seeds": {"training": [0], "episodes": "1000000 to 1000127"},
        "config": {"preset": "demo", "learner": {"peak": 2e-3, "steps": 4000}},
        "durations_s": {"record": 31.0, "train": 820.5, "evaluate": 240.0},
        "machine": {"cores": 2, "processor": "<unknown & old>"},
    }
    (folder / "run.json").write_text(json.dumps(facts))
    for agent in ("two_rate", "single_rate"):
        (folder / agent).mkdir()
        with open(folder / agent / "metrics.jsonl", "w") as file:
            for step in range(0, 4000, 50):
                loss = 2 + 4 * np.exp(-step / 900)
                line = {"step": step, "group": "train", "action_loss": loss, "sub_goal_accuracy": 1 - np.exp(-step / 700)}
                if agent == "two_rate":
                    line |= {
                        "action_loss_wrong_plan": 3 + 3 * np.exp(-step / 900),
                        "action_loss_no_plan": 2.8 + 3 * np.exp(-step / 900),
                    }
                file.write(json.dumps(line) + "\n")
            file.write('{"step": 4000, "ac')
    return folder
