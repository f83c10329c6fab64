"""Rows: one line of JSON a measured cell. What every table and plot of the report is made from."""

import dataclasses
import fcntl
import json
import math
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

AGENTS = ("two_rate", "single_rate", "controller_only", "held_action", "late_action", "chunked", "detached", "frozen", "scripted")
CONTROLS = ("none", "zeroed", "frozen", "shuffled", "stale", "random")
TRAINED_AT = re.compile(r"random|none|k[1-9]\d*d\d+")
KEY = ("task", "agent", "variant", "control", "trained_at", "ratio", "latency", "train_seed")

Key = tuple[str | int | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One cell: one agent on one task at one ratio and latency, over the same episode seeds as every other cell of the task.

    variant: "" for the plain agent, else how it differs: "no_sub_goal", "fixed" (trained at one ratio and latency), "prefix" or
        another way of reading plans, "quantised"; several joined by "+". `held_action` and `late_action` made from an agent that
        was not trained for it name its weights ("single_rate", "two_rate+fixed"); `scripted` names the reference ("expert",
        "random", "hierarchy", "held", "chunks", "late", "compensated").
    control: what was done to the plan, "none" for nothing.
    trained_at: "random", or like "k1d0" for one ratio and latency; "none" where nothing was trained.
    ratio: ticks from one update to the next; k where actions are held or come in chunks of k, 1 where they are late, None where
        there is no planner and nothing is held. latency: ticks; None where there is nothing to be late.
    normalised_return: mean over episodes, 0 is the random policy and 100 the expert. ci_low, ci_high: its 95% interval, a
        bootstrap over the episodes of one training.
    flops_per_tick: floating-point operations a control tick, the planner's shared over its ratio.
    tick_ms_p50, tick_ms_p99: milliseconds of a closed-loop tick at batch 1.
    params: non-embedding parameters. wall_s: seconds that the cell took.
    slow_hz, fast_hz: planner updates and closed-loop control ticks a second of the task's time.
    observation_to_action_ticks: mean age of the newest observation behind an action. plan_age_ticks: the same of its plan.
    seen_in_training: whether this ratio and latency were among those drawn in training.
    returns: the task's own return of every episode, in the order of the seeds.
    """

    task: str
    agent: str
    variant: str = ""
    control: str = "none"
    trained_at: str
    ratio: int | None
    latency: int | None
    train_seed: int | None
    episodes: int
    normalised_return: float
    ci_low: float
    ci_high: float
    flops_per_tick: float | None = None
    tick_ms_p50: float | None = None
    tick_ms_p99: float | None = None
    params: int | None = None
    wall_s: float
    slow_hz: float | None = None
    fast_hz: float | None = None
    observation_to_action_ticks: float | None = None
    plan_age_ticks: float | None = None
    seen_in_training: bool = True
    returns: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "returns", tuple(float(value) for value in self.returns))
        if fault := _fault(self):
            raise ValueError(f"row {self.task!r} {self.agent!r} ratio {self.ratio} latency {self.latency}: {fault}")

    @property
    def key(self) -> Key:
        """What tells this cell from every other."""
        return tuple(getattr(self, name) for name in KEY)


def _fault(row: Row) -> str | None:
    if not row.task:
        return "it names no task"
    if row.agent not in AGENTS:
        return f"agent is none of {', '.join(AGENTS)}"
    if row.control not in CONTROLS:
        return f"control {row.control!r} is none of {', '.join(CONTROLS)}"
    if not TRAINED_AT.fullmatch(row.trained_at):
        return f"trained_at {row.trained_at!r} is neither 'random', 'none' nor like 'k1d0'"
    if row.ratio is not None and row.ratio < 1:
        return "the ratio counts ticks and is at least 1, or None"
    if row.latency is not None and row.latency < 0:
        return "the latency counts ticks and is at least 0, or None"
    if row.episodes < 1 or (row.returns and len(row.returns) != row.episodes):
        return f"{row.episodes} episodes and {len(row.returns)} returns: one return an episode, or none kept"
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if any(isinstance(x, float) and not math.isfinite(x) for x in (value if isinstance(value, tuple) else (value,))):
            return f"{field.name} is not finite"
    if not row.ci_low <= row.normalised_return <= row.ci_high:
        return f"the interval [{row.ci_low:g}, {row.ci_high:g}] does not hold the mean {row.normalised_return:g}"
    return None


def from_json(values: dict[str, Any]) -> Row:
    """Returns the row, or raises ValueError that names a key which is missing, unknown or out of its range."""
    names = {field.name for field in dataclasses.fields(Row)}
    if unknown := sorted(set(values) - names):
        raise ValueError(f"a row has no field {', '.join(unknown)}")
    try:
        return Row(**values)
    except TypeError as error:
        raise ValueError(f"a row is incomplete or of the wrong kind: {error}") from None


def load(path: Path) -> list[Row]:
    """Returns the rows of a file in order, none if there is no file; a last line cut short by a crash is left out, and said so.

    Raises:
        ValueError: a whole line is not a row.
    """
    whole, torn = _lines_at_rest(path)
    if torn:
        print(f"{path}: the last line was cut short and is left out; its cell runs again", file=sys.stderr)
    rows = []
    for number, line in enumerate(whole, 1):
        try:
            rows.append(from_json(json.loads(line)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}: mend or delete that line") from None
    return rows


def append(path: Path, row: Row) -> None:
    """Adds one row, on the disk when this returns; a line that a crash cut short is removed first. Processes may append at once.

    Raises:
        OSError: the disk refused (it is full, say); the file is as it was.
    """
    line = (json.dumps(dataclasses.asdict(row), allow_nan=False, default=lambda scalar: scalar.item()) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        # Held until the file is closed: what looks like a torn line may be another process's, half way.
        fcntl.flock(file, fcntl.LOCK_EX)
        size = sum(len(whole) + 1 for whole in _lines(path)[0])
        try:
            file.truncate(size)
            if file.write(line) != len(line):
                raise OSError("only part of the line was written")
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(size)
            raise OSError(
                f"{path}: the row was not saved ({error}); rows before it are safe: free some space and resume"
            ) from None


def _lines_at_rest(path: Path) -> tuple[list[bytes], bytes]:
    """Returns `_lines`, while nobody appends."""
    if not path.exists():
        return [], b""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return _lines(path)


def _lines(path: Path) -> tuple[list[bytes], bytes]:
    """Returns the whole lines of a file, and what follows the last of them."""
    *whole, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return whole, torn


def by_key(rows: Iterable[Row]) -> dict[Key, Row]:
    """Returns the newest row of every cell: a cell whose key is here has been measured and need not run again."""
    return {row.key: row for row in rows}


def pick(rows: Iterable[Row], task: str, agent: str, **wanted: Any) -> list[Row]:
    """Returns the rows of an agent on a task whose other fields are as wanted; the plan is untouched unless `control` says so.

    Of an agent that was trained more than once the first training seed alone counts: a curve is that of one set of weights.
    """
    wanted = {"control": "none"} | wanted
    found = [row for row in rows if row.task == task and row.agent == agent]
    found = [row for row in found if all(getattr(row, name) == value for name, value in wanted.items())]
    seeds = [row.train_seed for row in found if row.train_seed is not None]
    return [row for row in found if row.train_seed is None or row.train_seed == min(seeds)]


def best(rows: Iterable[Row]) -> Row | None:
    """Returns the row with the highest return, None of none."""
    return max(rows, key=lambda row: row.normalised_return, default=None)
