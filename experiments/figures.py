"""The report's plots: rows in, matplotlib figures out. Solid is learnt, dashed is scripted; hollow was never trained on."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import checks
from experiments.checks import LATE, PATROL, RATIO, scripted, two_rate
from experiments.rows import Row, pick

INK, MUTED, GRID = "#1d2733", "#67727e", "#e5e9ee"
BLUE, SKY, GREY, ORANGE, SAND, TEAL = "#1d5fa6", "#74a9dc", "#98a2ad", "#cf5c36", "#c0923f", "#2b8a7e"
WIDTH = 9.3

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Segoe UI", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#b9c1ca",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
}


class Line(NamedTuple):
    """One curve: the cells it goes through, by the value on the horizontal axis."""

    label: str
    cells: Mapping[int, Row]
    colour: str
    dashed: bool = False
    width: float = 1.6


def svg(figure: Figure) -> str:
    """Returns the figure as a data URI that a page can show without any file beside it."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def along(rows: Sequence[Row | None], axis: str) -> dict[int, Row]:
    """Returns the rows by their ratio or latency, the better where two share one; those without it are left out."""
    found = {}
    for row in sorted((row for row in rows if row is not None), key=lambda row: row.normalised_return):
        if (at := getattr(row, axis)) is not None:
            found[at] = row
    return dict(sorted(found.items()))


def draw_line(axes: Axes, line: Line) -> None:
    """Draws a curve with its band; cells that were never trained on are hollow."""
    x = np.array(list(line.cells))
    mean, low, high = (
        np.array([getattr(row, n) for row in line.cells.values()]) for n in ("normalised_return", "ci_low", "ci_high")
    )
    axes.plot(x, mean, "--" if line.dashed else "-", color=line.colour, lw=line.width, zorder=3, solid_capstyle="round")
    axes.fill_between(x, low, high, color=line.colour, alpha=0.13, lw=0, zorder=1)
    if not line.dashed:
        seen = [row.seen_in_training for row in line.cells.values()]
        faces = [line.colour if one else "white" for one in seen]
        axes.scatter(x, mean, s=26 * line.width / 1.6, c=faces, edgecolors=line.colour, linewidths=1.4, zorder=4)


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Returns the values moved apart to at least `gap`, in their order and as near to where they were as one pass gives."""
    order = np.argsort(values, kind="stable")
    placed = np.array([values[i] for i in order], np.float64)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    if len(placed):
        placed[-1] = min(placed[-1], high)
    for i in range(len(placed) - 2, -1, -1):
        placed[i] = max(min(placed[i], placed[i + 1] - gap), low)
    result = np.empty(len(placed))
    result[order] = placed
    return result.tolist()


def label_ends(axes: Axes, lines: Sequence[Line], gap: float) -> None:
    """Writes each curve's name at its right end, so that no legend needs to be looked up."""
    ends = [(next(reversed(line.cells)), next(reversed(line.cells.values())).normalised_return) for line in lines]
    low, high = axes.get_ylim()
    for line, (x, y), at in zip(lines, ends, spread([y for _, y in ends], gap, low, high)):
        axes.annotate(
            line.label,
            (x, y),
            (1.045, (at - low) / (high - low)),
            textcoords="axes fraction",
            color=line.colour if line.colour != GREY else MUTED,
            va="center",
            fontsize=9.5,
            fontweight="bold" if line.width > 2 else "normal",
            arrowprops={
                "relpos": (0, 0.5),
                "arrowstyle": "-",
                "color": line.colour,
                "lw": 0.6,
                "alpha": 0.55,
                "shrinkA": 2,
                "shrinkB": 4,
            },
        )


def curves(lines: Sequence[Line], axis: str, height: float = 4.6) -> Figure | None:
    """Returns return against ratio or latency, on an axis where a doubling is a step; None where no curve has a cell."""
    lines = [line for line in lines if line.cells]
    if not lines:
        return None
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.065, 0.55 / height, 0.635, 1 - 0.65 / height))
    ticks = sorted({x for line in lines for x in line.cells})
    if axis == "ratio":
        axes.set_xscale("log", base=2)
    else:
        axes.set_xscale("symlog", base=2, linthresh=1, linscale=0.7)
    axes.set_xticks(ticks, [str(x) for x in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", visible=False)
    for line in lines:
        draw_line(axes, line)
    lowest = min(row.ci_low for line in lines for row in line.cells.values())
    highest = max(row.ci_high for line in lines for row in line.cells.values())
    axes.set_ylim(min(-3.0, lowest - 2), max(103.0, highest + 2))
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("normalised return  (random 0, expert 100)")
    label_ends(axes, lines, gap=0.058 * np.ptp(axes.get_ylim()) * 4.6 / height)
    return figure


def by_ratio(rows: Sequence[Row]) -> Figure | None:
    """Returns the headline: what is lost as the planner, or else the action, is renewed less often."""
    ours = pick(rows, PATROL, "two_rate", variant="")
    reference = pick(rows, PATROL, "scripted", variant="hierarchy")
    at = {late: [row for row in ours if row.latency == late] for late in (0, LATE)}
    goal = {late: [row for row in reference if row.latency == late] for late in (0, LATE)}
    lines = [
        Line("scripted hierarchy", along(goal[0], "ratio"), GREY, True),
        Line(f"scripted hierarchy, goal {LATE} ticks late", along(goal[LATE], "ratio"), GREY, True, 1.0),
        Line("scripted: action held", along(pick(rows, PATROL, "scripted", variant="held"), "ratio"), ORANGE, True, 1.2),
        Line(
            "scripted: chunks by a linear model",
            along(pick(rows, PATROL, "scripted", variant="chunks"), "ratio"),
            SAND,
            True,
            1.2,
        ),
        Line("learnt: chunks", along(pick(rows, PATROL, "chunked"), "ratio"), SAND),
        Line("learnt: action held", along(pick(rows, PATROL, "held_action"), "ratio"), ORANGE, False, 2.0),
        Line(f"two rates, plan {LATE} ticks late", along(at[LATE], "ratio"), SKY, False, 2.4),
        Line("two rates, plan at once", along(at[0], "ratio"), BLUE, False, 2.4),
    ]
    with matplotlib.rc_context(STYLE):
        figure = curves(lines, "ratio")
        if figure is not None:
            figure.axes[0].set_xlabel("ratio: control ticks from one plan, or one held action or chunk, to the next")
    return figure


def by_latency(rows: Sequence[Row]) -> Figure | None:
    """Returns what a delay costs when it is the plan's, and when it is the action's."""
    hierarchy = [scripted(rows, "hierarchy", ratio=RATIO, latency=late) for late in (0, 2, 4, 8)]
    lines = [
        Line(f"scripted hierarchy, ratio {RATIO}", along(hierarchy, "latency"), GREY, True),
        Line("scripted: late action", along(pick(rows, PATROL, "scripted", variant="late"), "latency"), ORANGE, True, 1.2),
        Line(
            "scripted: late, perfect predictor",
            along(pick(rows, PATROL, "scripted", variant="compensated"), "latency"),
            SAND,
            True,
            1.2,
        ),
        Line("learnt: late action", along(pick(rows, PATROL, "late_action"), "latency"), ORANGE, False, 2.0),
        Line(
            f"two rates, late plan, ratio {RATIO}",
            along(pick(rows, PATROL, "two_rate", variant="", ratio=RATIO), "latency"),
            BLUE,
            False,
            2.4,
        ),
    ]
    with matplotlib.rc_context(STYLE):
        figure = curves(lines, "latency", 4.0)
        if figure is not None:
            figure.axes[0].set_xlabel("latency in control ticks: of the plan (blue), of the action (orange)")
    return figure


def plan_controls(rows: Sequence[Row]) -> Figure | None:
    """Returns the return at ratio 8 as the plan is tampered with: an agent that ignores its plan loses nothing here."""
    names = {
        "none": "plan as it is",
        "stale": "one update stale",
        "frozen": "frozen at the first",
        "random": "random constant",
        "shuffled": "of another episode",
        "zeroed": "zeroed",
    }
    bars = [(label, two_rate(rows, RATIO, 0, control)) for control, label in names.items()]
    bars = [(label, row) for label, row in [*bars, ("controller trained alone", checks.controller_only(rows))] if row is not None]
    if not bars:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.4 * len(bars) + 0.75), layout="constrained")
        axes = figure.add_subplot()
        for y, (_, row) in enumerate(bars):
            colour = (
                BLUE if row.control == "none" and row.agent == "two_rate" else GREY if row.agent == "controller_only" else SKY
            )
            axes.barh(y, row.normalised_return, height=0.62, color=colour, zorder=2)
            axes.plot([row.ci_low, row.ci_high], [y, y], color=INK, lw=1.1, zorder=3)
            axes.text(max(row.ci_high, 0) + 1.5, y, f"{row.normalised_return:.1f}", va="center", fontsize=9.5)
        axes.set_yticks(range(len(bars)), [label for label, _ in bars], color=INK)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(min(0.0, *(row.ci_low for _, row in bars)), 108)
        axes.set_xlabel("normalised return  (random 0, expert 100)")
        axes.spines["left"].set_visible(False)
    return figure


def draw_costs(axes: Axes, found: Sequence[Row], colour: str, label: str, name_ratios: bool) -> None:
    """Draws one agent's points with their intervals, each with its ratio beside it if asked for."""
    x, y = [row.flops_per_tick for row in found], [row.normalised_return for row in found]
    whiskers = [[row.normalised_return - row.ci_low for row in found], [row.ci_high - row.normalised_return for row in found]]
    axes.errorbar(x, y, whiskers, color=colour, lw=1.8, elinewidth=1, marker="o", ms=5, label=label)
    for row in found if name_ratios else ():
        at = (row.flops_per_tick, row.normalised_return)
        axes.annotate(str(row.ratio), at, (0, 9), textcoords="offset points", ha="center", fontsize=8.5, color=colour)


def cost(rows: Sequence[Row]) -> Figure | None:
    """Returns return against the FLOPs of a control tick."""
    groups = [
        ("held", pick(rows, PATROL, "held_action"), ORANGE, "action held"),
        ("single", [checks.single_rate(rows)], TEAL, "single rate"),
        ("alone", [checks.controller_only(rows)], GREY, "controller alone"),
        ("two", pick(rows, PATROL, "two_rate", variant="", latency=0), BLUE, "two rates"),
    ]
    groups = [(kind, [row for row in found if row and row.flops_per_tick], *rest) for kind, found, *rest in groups]
    if not any(found for _, found, *_ in groups):
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for kind, found, colour, label in groups:
            found = sorted(
                along(found, "ratio").values() if kind in ("held", "two") else found, key=lambda row: row.flops_per_tick
            )
            if not found:
                continue
            draw_costs(axes, found, colour, label, kind in ("held", "two"))
        axes.set_ylim(min(-3.0, axes.get_ylim()[0]), 112)
        axes.set_yticks(range(0, 101, 20))
        axes.set_xlabel("FLOPs a control tick, the planner's shared over its ratio (log scale; numbers are ratios)")
        axes.set_ylabel("normalised return")
        figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9.5)
    return figure


def series(lines: Sequence[Mapping[str, Any]], name: str, beside: str | None = None) -> tuple[list[float], list[float]]:
    """Returns (steps, values) of one metric, from the lines that have it and, where asked for, another beside it.

    Lines of one group alone: those on held-out episodes where the metric is there, else those of training.
    """
    found = [line for line in lines if name in line and (beside is None or beside in line)]
    held_out = [line for line in found if line.get("group", "train") != "train"]
    return [line["step"] for line in held_out or found], [line[name] for line in held_out or found]


def training(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
    """Returns each agent's action loss, that of the two-rate agent under wrong plans, and sub-goal accuracy, by step."""
    colours = dict(zip(sorted(metrics, key=lambda agent: agent != "two_rate"), (BLUE, TEAL, GREY, SAND, ORANGE)))
    wrong = "action_loss_wrong_plan"
    tampered = [
        ("own plan", "action_loss", BLUE),
        ("another episode's plan", wrong, ORANGE),
        ("no plan", "action_loss_no_plan", GREY),
    ]
    panels = {
        "Action loss": [(a, series(lines, "action_loss"), colours.get(a, GREY)) for a, lines in metrics.items()],
        "Two rates: action loss by plan": [(a, series(metrics.get("two_rate", []), n, wrong), c) for a, n, c in tampered],
        "Sub-goal accuracy": [(a, series(lines, "sub_goal_accuracy"), colours.get(a, GREY)) for a, lines in metrics.items()],
    }
    panels = {title: [curve for curve in drawn if curve[1][0]] for title, drawn in panels.items()}
    panels = {title: drawn for title, drawn in panels.items() if drawn}
    if not panels:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        for axes, (title, drawn) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items()):
            for label, (x, y), colour in drawn:
                axes.plot(x, y, color=colour, lw=1.5, label=label.replace("_", " "))
            axes.set_title(title, fontsize=10, loc="left", color=INK)
            axes.set_xlabel("training step")
            axes.legend(frameon=False, fontsize=8.5)
            axes.set_ylim(bottom=0)
    return figure
