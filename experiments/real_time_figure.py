"""The plot of a real-time run: which plan each tick acted on, when it was made, how old it was, and which deadlines were met.

    python -m experiments.real_time_figure runs/real_time --out experiments/pictures/cadence.png --from-s 2 --seconds 2

A second. `experiments.real_time` draws the same of every run, as figure.png.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures import BLUE, GREY, INK, MUTED, ORANGE, SAND, SKY, STYLE, TEAL, WIDTH
from hierarchy.control.monitor import PHASES, ages, misses
from hierarchy.control.real_time import Update

PLANS = (BLUE, SAND, TEAL, "#8667a8")
"""Of one plan after the other."""
PHASE_COLOURS = (SKY, SAND, BLUE, TEAL)


class Drawn(NamedTuple):
    """What is drawn of a run. rows: the monitor's. updates: (episode, update) of every plan taken. incidents: (s since the first
    deadline, kind). summary: as written."""

    rows: np.ndarray
    period_s: float
    updates: list[tuple[int, Update]]
    incidents: list[tuple[float, str]]
    summary: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "Drawn":
        """Returns what `experiments.real_time` wrote to a folder; OSError where it did not."""
        summary = json.loads((folder / "summary.json").read_text())
        updates = []
        for number, path in enumerate(sorted(folder.glob("acted-*.npz"))):
            with np.load(path, allow_pickle=False) as arrays:
                updates += [(number + 1, Update(*row)) for row in arrays["updates"].tolist()]
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        period_s = 1 / summary["wanted_hz"] if summary["wanted_hz"] else 0.0
        rows = np.load(folder / "ticks.npy", allow_pickle=False)
        return cls(rows, period_s, updates, [(event["at_ms"] / 1e3, event["kind"]) for event in events], summary)

    def seconds(self, at: np.ndarray | int) -> np.ndarray:
        """Returns moments in s since the first deadline."""
        return (np.asarray(at, np.int64) - int(self.rows["deadline"][0])) / 1e9


def draw(drawn: Drawn, path: Path, from_s: float = 0.0, seconds: float = 2.0) -> None:
    """Writes the figure: `seconds` of it in detail, from `from_s` on, above the whole run."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 7.4), layout="constrained")
        words, detail, below = figure.subfigures(3, 1, height_ratios=(0.65, 3.6, 2.2))
        _rates(words, drawn.summary)
        window = (from_s, min(from_s + seconds, float(drawn.seconds(drawn.rows["acted"][-1]))))
        lanes, age = detail.subplots(2, 1, sharex=True, height_ratios=(2.1, 1.3))
        _lanes(lanes, drawn, window)
        _ages(age, drawn, window)
        times, tail = below.subplots(1, 2, width_ratios=(2, 1))
        _times(times, drawn)
        _tail(tail, drawn)
        figure.savefig(path, dpi=110)


def _rates(part: Figure, found: dict[str, Any]) -> None:
    """The three rates, each with what it is."""
    action, old, hz = found["observation_to_action_ms"], found["plan_age_ticks"], found["fast_hz"]
    aged = f"; its plan's observation {old['mean']:.1f} ticks, {1e3 * old['mean'] / hz:.0f} ms" if old and hz else ""
    columns = {
        f"fast {hz:.2f} Hz": "closed loop: ticks, each with its own\nobservation and action, over wall time",
        f"slow {found['slow_hz']:.2f} Hz": "plans that the controller took,\nover the same time",
        f"observation to action {action['p50']:.1f} ms": f"median; {action['p99']:.1f} ms p99{aged}",
    }
    for x, (title, meaning) in zip((0.012, 0.33, 0.6), columns.items()):
        part.text(x, 0.85, title, va="top", fontsize=13, fontweight="bold", color=INK)
        part.text(x, 0.42, meaning, va="top", fontsize=8.5, color=MUTED, linespacing=1.35)


def _colour(number: int) -> str:
    return PLANS[number % len(PLANS)]


def _lanes(axes: Axes, drawn: Drawn, window: tuple[float, float]) -> None:
    """Updates, from the observation that they read until their plan is there; below them the ticks, in their plan's colour."""
    rows = drawn.rows
    tick_of = {(int(row["episode"]), int(row["tick"])): row for row in rows}
    number = {(episode, update.observed): i for i, (episode, update) in enumerate(drawn.updates)}
    for i, (episode, update) in enumerate(drawn.updates):
        saw, used = tick_of[episode, update.observed], tick_of[episode, update.taken]
        seen, began, ended, taken = map(float, map(drawn.seconds, (saw["observed"], update.began, update.ended, used["planned"])))
        if taken < window[0] or seen > window[1]:
            continue
        free, colour = ended - update.held_back / 1e9, _colour(i)
        axes.plot([seen, seen, began], [0.42, 1.0, 1.0], color=colour, lw=1, zorder=2)
        axes.barh(1.0, free - began, 0.42, began, color=colour, zorder=3)
        axes.barh(1.0, ended - free, 0.42, free, color="white", edgecolor=colour, hatch="////", lw=0.8, zorder=3)
        axes.annotate("", (taken, 0.36), (ended, 0.82), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1}, zorder=4)
    missed = misses(rows, drawn.period_s)
    for row, late in zip(rows, missed):
        woken, computed = float(drawn.seconds(row["woken"])), float(drawn.seconds(row["computed"]))
        if not window[0] <= woken <= window[1]:
            continue
        plan = number.get((int(row["episode"]), int(row["plan"])))
        axes.vlines(float(drawn.seconds(row["deadline"])), -0.32, 0.32, color="#d5dae0", lw=0.8, zorder=1)
        # With an edge, so that a tick that is shorter than a dot of the picture is there.
        colour = GREY if plan is None else _colour(plan)
        axes.barh(0.0, computed - woken, 0.56, woken, color=colour, edgecolor=colour, lw=1.2, zorder=3)
        if late:
            axes.plot(computed, -0.42, "^", color=ORANGE, ms=6, zorder=5, clip_on=False)
    axes.set(xlim=window, ylim=(-0.6, 1.35))
    axes.set_yticks([0, 1], ["controller:\neach tick's decoding", "planner:\neach update"], color=INK, fontsize=9)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    notes = ["thin line: the observation read", "arrow: the first tick to use the plan"]
    if any(update.held_back for _, update in drawn.updates):
        notes.insert(1, "hatched: held back on purpose")
    if missed.any():
        notes.append("▲ missed its deadline")
    axes.set_title("    ".join(notes), fontsize=8.5, loc="right", color=MUTED)


def _ages(axes: Axes, drawn: Drawn, window: tuple[float, float]) -> None:
    """How old the observation was on which each tick's plan rests."""
    old = ages(drawn.rows).astype(float)
    old[old < 0] = np.nan
    at = drawn.seconds(drawn.rows["woken"])
    inside = (at >= window[0]) & (at <= window[1])
    axes.step(at[inside], old[inside], where="post", color=INK, lw=1.4)
    axes.set(ylabel="plan age, ticks", xlabel="s since the first tick", ylim=(0, None))
    if drawn.period_s:
        tick_ms = drawn.period_s * 1e3
        to_ms = axes.secondary_yaxis("right", functions=(lambda ticks: ticks * tick_ms, lambda ms: ms / tick_ms))
        to_ms.set_ylabel("ms")
        to_ms.spines["right"].set_visible(False)


def _times(axes: Axes, drawn: Drawn) -> None:
    """Every tick of the run: when its action was there, and what happened meanwhile."""
    rows, period_s = drawn.rows, drawn.period_s
    at, missed = drawn.seconds(rows["woken"]), misses(rows, period_s)
    action = (rows["computed"] - rows["deadline" if period_s else "woken"]) / 1e6
    axes.plot(at, action, ".", color=BLUE, ms=3, label="deadline to action" if period_s else "tick")
    if period_s:
        axes.axhline(1e3 * period_s, color=GREY, lw=1, ls="--", label="next deadline")
        axes.plot(at[missed], action[missed], ".", color=ORANGE, ms=6, label=f"missed: {missed.sum()} of {len(rows)}")
    for seconds, kind in drawn.incidents:
        if 0 <= seconds <= at[-1]:
            axes.axvline(seconds, color=ORANGE, lw=0.6, alpha=0.6)
            if len(drawn.incidents) < 20:
                place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
                axes.annotate(kind, (seconds, 0), (2, 4), fontsize=8, rotation=90, **place)
    top = max(action.max(), 1e3 * period_s)
    axes.set(ylabel="ms", yscale="log", xlabel="s since the first tick, the whole run", ylim=(None, 3 * top))
    axes.set_title("every tick", fontsize=10, loc="left", color=INK)
    axes.legend(frameon=False, ncols=3, loc="upper right", fontsize=8.5, handletextpad=0.4, columnspacing=1.2)


def _tail(axes: Axes, drawn: Drawn) -> None:
    """The share of ticks that took longer, for the whole and for each phase."""
    rows = drawn.rows
    share = 1 - np.arange(len(rows)) / len(rows)
    for colour, (name, (start, end)) in zip(PHASE_COLOURS, PHASES.items()):
        if name != "act":
            axes.plot(np.sort(rows[end] - rows[start]) / 1e6, share, color=colour, lw=1.2, label=name)
    axes.plot(np.sort(rows["computed"] - rows["woken"]) / 1e6, share, color=INK, lw=1.8, label="tick")
    if drawn.period_s:
        axes.axvline(1e3 * drawn.period_s, color=GREY, lw=1, ls="--")
    axes.set(xlabel="ms", ylabel="share of ticks above", xscale="log", yscale="log")
    axes.set_title("where its time goes", fontsize=10, loc="left", color=INK)
    axes.legend(frameon=False, fontsize=8.5, loc="lower left")


@dataclasses.dataclass(frozen=True)
class FigureConfig:
    """run: folder that `experiments.real_time` wrote. out: the picture. from_s, seconds: what is shown in detail."""

    run: tyro.conf.Positional[Path]
    out: Path
    from_s: float = 0.0
    seconds: float = 2.0


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(FigureConfig, description=f"{__doc__}\n{FigureConfig.__doc__}")
    try:
        draw(Drawn.of(config.run), config.out, config.from_s, config.seconds)
    except (OSError, ValueError, KeyError) as error:
        print(f"real_time_figure: {config.run} is no whole run of experiments.real_time: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
