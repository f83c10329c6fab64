"""The plot of a real-time run: when actions were there, how old plans were, and where a tick's time went."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures import BLUE, GREY, ORANGE, SAND, SKY, STYLE, TEAL, WIDTH
from hierarchy.control.monitor import PHASES, ages, misses

COLOURS = (SKY, SAND, BLUE, TEAL)


def draw(rows: np.ndarray, period_s: float, incidents: Sequence[tuple[int, str, str]], path: Path) -> None:
    """Writes the figure of these rows. incidents: (at in ns, kind, detail), marked with their kind."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 7.2), layout="constrained")
        time_, age, tail = figure.subplots(3, 1)
        at = (rows["woken"] - rows["woken"][0]) / 1e9
        _times(time_, rows, period_s, at)
        _ages(age, rows, at)
        for when, kind, _ in incidents:
            seconds = (when - int(rows["woken"][0])) / 1e9
            if 0 <= seconds <= at[-1]:
                age.axvline(seconds, color=ORANGE, lw=0.8)
                age.annotate(
                    kind, (seconds, 1), (2, -8), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8
                )
        _tail(tail, rows, period_s)
        figure.savefig(path, dpi=110)


def _times(axes: Axes, rows: np.ndarray, period_s: float, at: np.ndarray) -> None:
    since = rows["deadline"] if period_s else rows["woken"]
    action = (rows["computed"] - since) / 1e6
    axes.plot(at, action, ".", color=BLUE, ms=3, label="deadline to action" if period_s else "tick")
    missed = misses(rows, period_s)
    if period_s:
        axes.axhline(1e3 * period_s, color=GREY, lw=0.8, ls="--", label="period")
    if missed.any():
        axes.plot(at[missed], action[missed], ".", color=ORANGE, ms=6, label=f"missed ({missed.sum()})")
    axes.set(ylabel="ms", yscale="log", xlabel="s")
    axes.legend(frameon=False, ncols=3, loc="upper right")


def _ages(axes: Axes, rows: np.ndarray, at: np.ndarray) -> None:
    old = ages(rows).astype(float)
    old[old < 0] = np.nan
    axes.step(at, old, where="post", color=TEAL, lw=1)
    axes.set(ylabel="plan age, ticks", xlabel="s", ylim=(0, None))


def _tail(axes: Axes, rows: np.ndarray, period_s: float) -> None:
    """The share of ticks that took longer, for the whole and for each phase."""
    share = 1 - np.arange(len(rows)) / len(rows)
    for colour, (name, (start, end)) in zip(COLOURS, PHASES.items()):
        axes.plot(np.sort(rows[end] - rows[start]) / 1e6, share, color=colour, lw=1, label=name)
    axes.plot(np.sort(rows["computed"] - rows["woken"]) / 1e6, share, color=ORANGE, lw=1.6, label="tick")
    if period_s:
        axes.axvline(1e3 * period_s, color=GREY, lw=0.8, ls="--")
    axes.set(xlabel="ms", ylabel="share of ticks above", xscale="log", yscale="log")
    axes.legend(frameon=False, ncols=5, loc="lower left")
