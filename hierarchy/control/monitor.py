"""What happened when: the times of every tick, in memory that the watcher reads during the run, and what they add up to."""

import contextlib
import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from hierarchy.timeline import NO_PLAN

MOMENTS = ("deadline", "woken", "observed", "planned", "computed", "acted")
"""Of one tick, ns: it was due; it began; its observation was taken in; a plan was looked for; the action was there; the world had
moved, and shown what followed (so "act" is the world's own time, its waiting for its clock with it)."""
PHASES = {"observe": ("woken", "observed"), "read plan": ("observed", "planned"), "compute": ("planned", "computed")}
PHASES |= {"act": ("computed", "acted")}
TICKS = ("episode", "tick", "plan", "newest")
ROW = np.dtype([(name, np.int64) for name in (*MOMENTS, "stamped")] + [(name, np.int32) for name in TICKS])
RECENT, LINE_S = 256, 1.0


class Incident(NamedTuple):
    """Something that happened to the controller. at: ns. row: the monitor's. kind and detail in words."""

    at: int
    row: int
    kind: str
    detail: str


class Monitor:
    """The times of a run's ticks, one row a tick in the order of running; a row is there once its `acted` is not 0.

    rows: ticks of all episodes together. period_s: of a tick, 0 where there are no deadlines. A row's `stamped` is when its
    observation was made (ns), `plan` the tick that the plan acted on observed (-1: none), `newest` the same of the newest plan
    that was there, acted on or not.
    """

    def __init__(self, rows: int, period_s: float):
        self.period_s = period_s
        self._memory = multiprocessing.get_context("spawn").RawArray("b", rows * ROW.itemsize)
        self._open()
        self.incidents: list[Incident] = []

    def _open(self) -> None:
        self.rows = np.frombuffer(self._memory, ROW)

    def __getstate__(self) -> tuple:
        return self.period_s, self._memory

    def __setstate__(self, state: tuple) -> None:
        self.period_s, self._memory = state
        self._open()
        self.incidents = []

    def happened(self, at: int, row: int, kind: str, detail: str) -> None:
        """Notes an incident."""
        self.incidents.append(Incident(at, row, kind, detail))

    def done(self) -> np.ndarray:
        """Returns the rows that are there."""
        return self.rows[: np.searchsorted(self.rows["acted"] == 0, True)]

    def line(self) -> str:
        """Returns one line on how the run goes: over the last ticks, misses over all."""
        rows = self.done()
        if len(rows) < 2:
            return "waiting for tick 0"
        recent = summary(rows[-RECENT:], self.period_s)
        age = recent["plan_age_ticks"]
        plan = "no plan" if age is None else f"plan age {age['mean']:.1f} (max {age['max']:.0f})"
        missed = f", {int(misses(rows, self.period_s).sum())} missed" if self.period_s else ""
        tick = recent["tick_ms"]
        return (
            f"tick {len(rows)}: {recent['fast_hz']:.1f} Hz, {tick['p50']:.2f} ms p50, {tick['p99']:.2f} p99{missed}, {plan}    "
        )


class Line:
    """A monitor's line in the terminal, renewed once a second at most; nothing without a terminal."""

    def __init__(self, monitor: Monitor):
        self._monitor, self._shown = monitor, time.monotonic()

    def renew(self) -> None:
        """Shows how the run goes, if it is time to."""
        if not sys.stderr.isatty() or time.monotonic() - self._shown < LINE_S:
            return
        self._shown = time.monotonic()
        # A terminal that has gone away is no reason to end anything.
        with contextlib.suppress(OSError):
            print("\r" + self._monitor.line(), end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def shown(monitor: Monitor) -> Iterator[None]:
    """Shows the monitor's line while it is entered, from a process of its own: for a run that has no watcher to do it."""
    if not sys.stderr.isatty():
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=_show, args=(monitor,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _show(monitor: Monitor) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line, controller = Line(monitor), multiprocessing.parent_process()
    while controller.is_alive():
        line.renew()
        time.sleep(LINE_S / 4)


def misses(rows: np.ndarray, period_s: float) -> np.ndarray:
    """Returns bool [N]: whether the action was not there before the next tick was due; never, without deadlines."""
    return late_ns(rows, period_s) > 0


def late_ns(rows: np.ndarray, period_s: float) -> np.ndarray:
    """Returns int64 [N]: ns from the next tick's deadline to the action, below 0 where it was in time; 0 without deadlines."""
    if not period_s:
        return np.zeros(len(rows), np.int64)
    return rows["computed"] - rows["deadline"] - round(period_s * 1e9)


def ages(rows: np.ndarray) -> np.ndarray:
    """Returns int [N]: ticks since the observation of the plan acted on, -1 for none."""
    return np.where(rows["plan"] < 0, NO_PLAN, rows["tick"] - rows["plan"])


def summary(rows: np.ndarray, period_s: float, pauses: Sequence[tuple[int, int]] = ()) -> dict[str, Any]:
    """Returns the figures of a run, at least two ticks: three rates and the observation's age; tick times; misses; plan age.

    fast_hz: closed loop, ticks over wall time within episodes. slow_hz: plans that were taken, acted on or not, over the same
    time.
    observation_to_action_ms: from the making of the observation. deadline_to_action_ms: None without deadlines. pauses: of the
    garbage collector, ns.
    """
    same = rows["episode"][1:] == rows["episode"][:-1]
    gaps = np.diff(rows["woken"])[same] / 1e9
    wall_s = float(gaps.sum())
    fresh = np.diff(rows["newest"], prepend=NO_PLAN) > 0
    old, late = ages(rows), late_ns(rows, period_s)
    missed = late > 0
    return {
        "ticks": len(rows),
        "episodes": len(np.unique(rows["episode"])),
        "wall_s": wall_s,
        "wanted_hz": 1 / period_s if period_s else None,
        "fast_hz": len(gaps) / wall_s if wall_s else 0.0,
        "slow_hz": float(fresh[1:][same].sum()) / wall_s if wall_s else 0.0,
        "observation_to_action_ms": _spread((rows["computed"] - rows["stamped"]) / 1e6),
        "tick_ms": _spread((rows["computed"] - rows["woken"]) / 1e6),
        "wake_late_ms": _spread((rows["woken"] - rows["deadline"]) / 1e6) if period_s else None,
        "deadline_to_action_ms": _spread((rows["computed"] - rows["deadline"]) / 1e6) if period_s else None,
        "missed": int(missed.sum()),
        "missed_share": float(missed.mean()),
        "missed_by_ms": _spread(late[missed] / 1e6) if missed.any() else None,
        "plan_age_ticks": _spread(old[old >= 0]) if (old >= 0).any() else None,
        "ticks_without_plan": int((old < 0).sum()),
        "phases_ms": {name: _spread((rows[end] - rows[start]) / 1e6) for name, (start, end) in PHASES.items()},
        "gc_pauses": len(pauses),
        "gc_pause_max_ms": max(((end - start) / 1e6 for start, end in pauses), default=0.0),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    p50, p99, p999 = np.percentile(values, [50, 99, 99.9])
    return {
        "mean": float(np.mean(values)),
        "p50": float(p50),
        "p99": float(p99),
        "p99.9": float(p999),
        "max": float(np.max(values)),
    }


def tick_lines(rows: np.ndarray, period_s: float) -> str:
    """Returns one line of JSON a tick: episode, tick, plan age, lateness, and its moments in ms since the run's first."""
    first, late = int(rows["deadline"][0]), late_ns(rows, period_s)
    lines = []
    for row, old, by in zip(rows, ages(rows), late):
        facts = {"episode": int(row["episode"]), "tick": int(row["tick"]), "plan_age": int(old), "missed_by_ms": max(by, 0) / 1e6}
        facts |= {f"{name}_ms": (int(row[name]) - first) / 1e6 for name in (*MOMENTS, "stamped")}
        lines.append(json.dumps(facts))
    return "\n".join(lines) + "\n"


CONTROLLER, PLANNER = 1, 2


def trace(
    rows: np.ndarray,
    period_s: float,
    updates: Sequence[tuple[int, int, int]],
    incidents: Sequence[tuple[int, str, str]],
    pauses: Sequence[tuple[int, int]] = (),
) -> dict[str, Any]:
    """Returns a run as Chrome trace events, which Perfetto and chrome://tracing open: the phases of every tick, the planner's
    updates, plan age, missed deadlines and incidents.

    updates: (tick observed, began, ended) of every plan that was found. incidents: (at, kind, detail). Times in ns.
    """
    events = [
        {"ph": "M", "name": "process_name", "pid": CONTROLLER, "args": {"name": "controller"}},
        {"ph": "M", "name": "process_name", "pid": PLANNER, "args": {"name": "planner"}},
    ]

    def span(pid: int, name: str, began: int, ended: int, **args) -> None:
        events.append(
            {"ph": "X", "pid": pid, "tid": 0, "name": name, "ts": began / 1e3, "dur": (ended - began) / 1e3, "args": args}
        )

    def instant(pid: int, name: str, at: int, **args) -> None:
        events.append({"ph": "i", "s": "p", "pid": pid, "tid": 0, "name": name, "ts": at / 1e3, "args": args})

    for row, old, by in zip(rows, ages(rows), late_ns(rows, period_s)):
        span(CONTROLLER, f"tick {row['tick']}", int(row["woken"]), int(row["acted"]), episode=int(row["episode"]))
        for name, (start, end) in PHASES.items():
            span(CONTROLLER, name, int(row[start]), int(row[end]))
        events.append(
            {"ph": "C", "pid": CONTROLLER, "name": "plan age", "ts": int(row["planned"]) / 1e3, "args": {"ticks": int(old)}}
        )
        if by > 0:
            instant(CONTROLLER, "deadline missed", int(row["computed"]), by_ms=by / 1e6)
    for tick, began, ended in updates:
        span(PLANNER, f"update of tick {tick}", int(began), int(ended))
    for began, ended in pauses:
        span(CONTROLLER, "garbage collection", began, ended)
    for at, kind, detail in incidents:
        instant(PLANNER, kind, at, detail=detail)
    return {"traceEvents": events, "displayTimeUnit": "ms"}
