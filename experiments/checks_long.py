"""What the long demo claims, each claim computed from what it left and shown with its verdict."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.checks import (
    FAILS,
    HOLDS,
    LATE,
    PATROL,
    RATIO,
    UNMEASURED,
    Check,
    above,
    ahead,
    on_task,
    suite_tasks,
    two_rate,
)
from experiments.rows import Row, best, pick

CHUNK = 16
TASKS = 8
PADDING, WAITING = 0.15, 0.02

Figures = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Of one agent: collection to figure to its mean, low and high (`experiments.evaluate_text`)."""


class Filling(NamedTuple):
    """How full the batches of one training were, and how long it waited for them: shares, None where there is no such stream."""

    controller_padding: float
    planner_padding: float | None
    waiting: float


def filling(lines: Sequence[Mapping[str, Any]]) -> Filling | None:
    """Returns the means over the later half of a training's metric lines, when batches are no longer made ahead of a compilation;
    None where there are none."""
    steps = [line for line in lines if "loader_wait_share" in line]
    later = steps[len(steps) // 2 :]
    if not later:
        return None
    controller, planner, waiting = (
        float(np.mean([line[name] for line in later])) for name in ("controller_padding", "planner_padding", "loader_wait_share")
    )
    return Filling(controller, planner if planner < 1 else None, waiting)


def checks(
    rows: Sequence[Row], alone: Sequence[Row], text: Mapping[str, Figures], metrics: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Check]:
    """Returns every claim with its verdict.

    rows: of the agents that were trained on the whole corpus, and the references. alone: of those trained on the patrol alone.
    text: by agent. metrics: training lines by run.
    """
    scaled = [*(row for row in rows if row.agent == "scripted"), *alone]
    chunked = best(pick(alone, PATROL, "chunked", variant="", ratio=CHUNK))
    late = best(pick(alone, PATROL, "late_action", variant="", latency=LATE))
    return [
        above(f"With a plan every {RATIO} ticks the return is above 85", two_rate(rows, RATIO, 0), 85),
        above(f"With a plan every {RATIO} ticks and {LATE} ticks late it is above 75", two_rate(rows, RATIO, LATE), 75),
        ahead(scaled, f"Plans at least 30 points above chunks, both every {CHUNK} ticks", two_rate(alone, CHUNK, 0), chunked),
        ahead(
            scaled,
            f"Late plans at least 30 points above actions trained to be late, both {LATE} ticks late",
            two_rate(alone, RATIO, LATE),
            late,
        ),
        *said(text.get("two_rate", {})),
        tasks(rows),
        *filled(metrics),
    ]


def said(figures: Figures) -> list[Check]:
    """Returns whether plans are worth something for what is said, at ratio 8 with the first plan waited for."""
    documents, captions = figures.get("text", {}), figures.get("captions", {})

    def claim(words: str, found: Mapping, needed: Sequence[str], holds, measured) -> Check:
        if any(name not in found for name in needed):
            return Check(words, "", UNMEASURED)
        values = [found[name] for name in needed]
        return Check(words, measured(*values), HOLDS if holds(*values) else FAILS)

    def both(own, other) -> str:
        return f"{shown(own)} against {shown(other)}"

    return [
        claim(
            "Held-out documents: fewer nats a piece than a smoothed trigram",
            documents,
            ("nats_own", "nats_trigram", "nats_below_trigram"),
            lambda own, other, below: below["low"] > 0,
            lambda own, other, below: f"{both(own, other)}: {shown(below)} fewer",
        ),
        claim(
            "Held-out documents: fewer nats with its own plan than with a shuffled one",
            documents,
            ("nats_saved",),
            lambda saved: saved["low"] > 0,
            lambda saved: f"{shown(saved)} saved",
        ),
        claim(
            "Held-out captions: at least 90% of the attributes right",
            captions,
            ("attributes_own",),
            lambda own: own["mean"] >= 0.9,
            shown,
        ),
        claim(
            "Held-out captions: with a shuffled plan no more than chance",
            captions,
            ("attributes_shuffled", "attributes_chance"),
            lambda other, chance: other["low"] <= chance["high"],
            both,
        ),
    ]


def shown(figure: Mapping[str, float]) -> str:
    """Returns a mean with its interval."""
    return f"{figure['mean']:.2f} [{figure['low']:.2f},\u00a0{figure['high']:.2f}]"


def tasks(rows: Sequence[Row]) -> Check:
    """Returns whether the same weights also drive many bodies."""
    claim = f"The same weights reach at least half of the expert on at least {TASKS} of the suite's tasks"
    measured = {task: row for task in suite_tasks(rows) if (row := on_task(rows, "two_rate", task))}
    if not measured:
        return Check(claim, "", UNMEASURED)
    reached = [task for task, row in measured.items() if row.normalised_return >= 50]
    return Check(claim, f"{len(reached)} of {len(measured)}", HOLDS if len(reached) >= TASKS else FAILS)


def filled(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Check]:
    """Returns whether batches are full and at hand, in every training."""
    claims = (
        f"Padding below {PADDING:.0%} in every stream of every training",
        f"Every training waits for its batches less than {WAITING:.0%} of the time",
    )
    found = {name: filling(lines) for name, lines in metrics.items()}
    found = {name: each for name, each in found.items() if each is not None}
    if not found:
        return [Check(claim, "", UNMEASURED) for claim in claims]
    padding = {name: max(each.controller_padding, each.planner_padding or 0.0) for name, each in found.items()}
    waiting = {name: each.waiting for name, each in found.items()}
    verdicts = []
    for claim, measured, limit in zip(claims, (padding, waiting), (PADDING, WAITING)):
        worst = max(measured, key=measured.get)
        verdicts.append(Check(claim, f"most {measured[worst]:.1%}, {worst}", HOLDS if measured[worst] < limit else FAILS))
    return verdicts


def trained_alone(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of the table of baselines, of the first seed of each: agents in their own order, variants together, plans
    as they are first."""
    own = [row for row in rows if row.task == PATROL and row.agent != "scripted"]
    first = min((row.train_seed for row in own if row.train_seed is not None), default=None)
    own = [row for row in own if row.train_seed in (None, first)]
    order = list(dict.fromkeys(row.agent for row in own))
    return sorted(
        own, key=lambda row: (order.index(row.agent), row.variant, row.control != "none", row.latency or 0, row.ratio or 0)
    )


def seeds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns a line an agent and cell that was measured with several seeds: the returns in the order of the seeds."""
    lines = []
    for agent, where in (("two_rate", (RATIO, 0)), ("two_rate", (RATIO, LATE)), ("single_rate", (1, 0))):
        found = [row for row in rows if (row.task, row.agent, row.variant, row.control) == (PATROL, agent, "", "none")]
        found = [row for row in found if (row.ratio, row.latency) == where]
        by_seed = {row.train_seed: row.normalised_return for row in found}
        if len(by_seed) > 1:
            returns = [by_seed[seed] for seed in sorted(by_seed)]
            lines.append({"agent": agent, "ratio": where[0], "latency": where[1], "returns": returns})
    return lines
