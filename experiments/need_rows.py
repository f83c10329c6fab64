"""The rows of `experiments.updates_by_need`: what they hold, their file, their table and their picture."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from rich.table import Table

from envs import bursty_goal
from experiments.figures import BLUE, GREY, INK, ORANGE, SAND, STYLE, TEAL

TASK = "bursty_goal"
RULES = bursty_goal.Rules()
NAMES = ("fixed", "random", "entropy", "prediction", "lifetime", "oracle")
"""Ways of asking for updates."""
COLOURS = {"fixed": INK, "random": GREY, "entropy": BLUE, "prediction": ORANGE, "lifetime": SAND, "oracle": TEAL}


@dataclasses.dataclass(frozen=True)
class NeedRow:
    """One way of asking for updates at one budget.

    agent: "learned", or "scripted" for a reader without any model. way: see `NAMES`. period: the fixed period whose updates it
    may spend. threshold, minimum_gap, maximum_age: of its trigger, as calibrated. updates: mean of an episode, measured in these
    episodes. right: percent of ticks at which the action is the goal; low, high: its 95% bootstrap interval over episodes. gain:
    points above the fixed period in the same episodes, with its paired interval; beside: that period in ticks, which spends no
    fewer updates than were measured.
    """

    agent: str
    way: str
    period: int
    latency: int
    threshold: float | None
    minimum_gap: int
    maximum_age: int | None
    train_seed: int
    episodes: int
    updates: float
    right: float
    low: float
    high: float
    beside: int
    gain: float
    gain_low: float
    gain_high: float


def updates_of(period: int) -> int:
    """Returns how many updates an episode has at a fixed period."""
    return -(-RULES.ticks // period)


def load_rows(path: Path) -> list[NeedRow]:
    """Returns the rows of a file, none if there is no file."""
    return [NeedRow(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def write_rows(path: Path, rows: Sequence[NeedRow]) -> None:
    """Writes the rows, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))
    draft.rename(path)


def draw(rows: Sequence[NeedRow], latency: int) -> Figure:
    """Returns the picture of one latency: how often the action is right against the updates spent; scripted readers dashed."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        for agent, dashes in (("scripted", "--"), ("learned", "-")):
            for way in NAMES:
                own = [row for row in rows if (row.agent, row.way, row.latency) == (agent, way, latency)]
                own.sort(key=lambda row: row.updates)
                if not own:
                    continue
                x, y = [row.updates for row in own], [row.right for row in own]
                look = {"lw": 1.6, "marker": "o", "ms": 4, "label": way} if agent == "learned" else {"lw": 0.9}
                axes.plot(x, y, dashes, color=COLOURS[way], **look)
                axes.fill_between(x, [row.low for row in own], [row.high for row in own], color=COLOURS[way], alpha=0.12, lw=0)
        axes.set_xlabel(f"updates in an episode of {RULES.ticks} ticks")
        axes.set_ylabel("percent of ticks that are right")
        axes.set_title(f"plans {latency} ticks late; dashed: scripted readers", loc="left", fontsize=10)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9)
    return figure


def table(rows: Sequence[NeedRow]) -> Table:
    """Returns the rows as a table."""
    shown = Table(title=f"{TASK}, {rows[0].episodes} episodes a row, percent of ticks that are right")
    numbers = (
        "latency",
        "budget",
        "agent",
        "asks by",
        "threshold",
        "gap",
        "oldest",
        "updates",
        "right",
        "95%",
        "beside",
        "gain",
        "95% ",
    )
    for name in numbers:
        shown.add_column(name, justify="left" if name in ("agent", "asks by") else "right", no_wrap=True)
    for row in sorted(rows, key=lambda row: (row.latency, -row.period)):
        shown.add_row(
            f"{row.latency}",
            f"{updates_of(row.period)}",
            row.agent,
            row.way,
            "-" if row.threshold is None else f"{row.threshold:.3g}",
            f"{row.minimum_gap}",
            "-" if row.maximum_age is None else f"{row.maximum_age}",
            f"{row.updates:.2f}",
            f"{row.right:.1f}",
            f"{row.low:.1f} to {row.high:.1f}",
            f"{row.beside}",
            f"{row.gain:+.1f}",
            f"{row.gain_low:+.1f} to {row.gain_high:+.1f}",
        )
    return shown
