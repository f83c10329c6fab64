"""What a controller and a planner beside it tell each other, in shared memory.

observations    a row a tick, by the controller: what it saw, and the action that it executed before
plans           the newest, by the planner: as the controller's layers read it, with the tick that it observed
accepted        by the controller: the newest plan that it took, whose it was and which ticks had been read for it
orders          by the controller: which episode runs, whose plan was refused, when to stop
beat            by the planner: a sign of life, and which process gives it
log             by the watcher: what became of the planner
"""

import os
import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from dm_env import specs

from hierarchy.control.records import Records, fields_of, record_of, values_of
from hierarchy.layout import Layout

LOG_ROWS = 1024
NOBODY = -1
WARM_UP = 0
"""The episode of an observation that is there to warm up with; those that are run count from 1."""


class Arrived(NamedTuple):
    """One plan as found by the controller.

    episode, generation: for which it was made, and by which start of the planner. tick: that it observed. began, ended: of the
    update, ns. held_back: ns of that on purpose. read: bool [horizon], every tick that the planner had read for it, its own with
    them. reading: float32 [N].
    """

    episode: int
    generation: int
    tick: int
    began: int
    ended: int
    held_back: int
    read: np.ndarray
    reading: np.ndarray


class Orders(NamedTuple):
    """episode: that runs, `WARM_UP` before the first. stop: the planner is to leave. refused: generation of a refused plan."""

    episode: int
    stop: bool
    refused: int


class Event(NamedTuple):
    """at: ns. kind: "started", "ready", "died", "hung", "refused", "gave up", "watcher gone". detail: in words."""

    at: int
    kind: str
    detail: str


class Link:
    """The shared memory of one controller and its planner.

    horizon: ticks of the longest episode. reading_size: N, floats of a plan as the controller's layers read it.
    """

    def __init__(
        self,
        layout: Layout,
        observation_spec: Mapping[str, specs.Array],
        action_spec: specs.Array,
        horizon: int,
        reading_size: int,
    ):
        wanted = {field.name for field in layout.planner + layout.controller}
        self.horizon, self.reading_size = horizon, reading_size
        self.names = [name for name in observation_spec if name in wanted]
        self._seen = np.dtype(fields_of({name: observation_spec[name] for name in self.names}))
        row = [("episode", np.int64), ("action", action_spec.dtype, action_spec.shape), ("seen", self._seen)]
        plan = [(name, np.int64) for name in ("episode", "generation", "tick", "began", "ended", "held_back")]
        plan += [("reading", np.float32, (reading_size,)), ("read", bool, (horizon,))]
        self.observations = Records(np.dtype(row), horizon)
        self.plans = Records(np.dtype(plan))
        self.accepted = Records(np.dtype([("episode", np.int64), ("generation", np.int64), ("read", bool, (horizon,))]))
        self.orders = Records(np.dtype([("episode", np.int64), ("stop", bool), ("refused", np.int64)]))
        self.beat = Records(np.dtype([("generation", np.int64), ("at", np.int64), ("process", np.int64)]))
        self.log = Records(np.dtype([("at", np.int64), ("kind", "S16"), ("detail", "S240")]), LOG_ROWS)
        # So that a record which cannot be read is one that is being written, and not one that never was.
        self.accepted.write(record_of(self.accepted.dtype, {"episode": WARM_UP, "generation": NOBODY}))
        self.order(Orders(WARM_UP, False, NOBODY))

    def order(self, orders: Orders) -> None:
        """Tells the planner and its watcher."""
        self._orders = orders
        self.orders.write(record_of(self.orders.dtype, orders._asdict()))

    def ordered(self) -> Orders:
        """Returns the orders; the last that this process knows of while newer ones are being written."""
        found = self.orders.read()
        if found is not None:
            self._orders = Orders(*(value.item() for value in found[1]))
        return self._orders

    def show(self, episode: int, tick: int, observations: Mapping[str, np.ndarray], action: np.ndarray) -> None:
        """Shows the planner what was seen at a tick, name to [1, ...], and the action executed before it."""
        record = np.zeros((), self.observations.dtype)
        record["episode"], record["action"] = episode, action
        record["seen"] = record_of(self._seen, {name: observations[name][0] for name in self.names})
        self.observations.write(record, tick)

    def seen(self, tick: int, episode: int | None = None) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
        """Returns what `show` was given for a tick, action [1, ...]; None if it was not yet, or in another episode."""
        found = self.observations.read(tick) if tick < self.horizon else None
        if found is None or (episode is not None and found[1]["episode"] != episode):
            return None
        values = values_of(found[1]["seen"], self.names)
        held = {name: np.array([value], object if isinstance(value, str) else None) for name, value in values.items()}
        return held, np.array(found[1]["action"])[None]

    def publish(self, plan: Arrived) -> None:
        """Leaves a plan to be found."""
        self.plans.write(record_of(self.plans.dtype, plan._asdict()))

    def found(self, after: int) -> tuple[int, Arrived] | None:
        """Returns the newest plan with its sequence, if that is above `after`."""
        found = self.plans.read(after=after)
        return None if found is None else (found[0], Arrived(**{name: _plain(found[1][name]) for name in Arrived._fields}))

    def accept(self, plan: Arrived) -> None:
        """Notes that the controller took a plan: what a planner that starts again has to read again."""
        taken = {"episode": plan.episode, "generation": plan.generation, "read": plan.read}
        self.accepted.write(record_of(self.accepted.dtype, taken))

    def taken_of(self) -> int | None:
        """Returns which start of the planner made the newest plan taken, `NOBODY` before the first; None while it is written."""
        found = self.accepted.read()
        return None if found is None else int(found[1]["generation"])

    def to_read_again(self, episode: int) -> np.ndarray | None:
        """Returns bool [horizon]: the ticks that the plans taken in this episode rest on; None while that is being written."""
        found = self.accepted.read()
        if found is None:
            return None
        return found[1]["read"].copy() if found[1]["episode"] == episode else np.zeros(self.horizon, bool)

    def live(self, generation: int) -> None:
        """Gives a sign of life."""
        living = {"generation": generation, "at": time.monotonic_ns(), "process": os.getpid()}
        self.beat.write(record_of(self.beat.dtype, living))

    def lived(self, generation: int) -> int | None:
        """Returns when this start of the planner last gave a sign of life, ns; None if it never did, or is
        giving one just now."""
        found = self.beat.read()
        return int(found[1]["at"]) if found is not None and found[1]["generation"] == generation else None

    def living(self) -> tuple[int, int] | None:
        """Returns (generation, process) of the newest sign of life; None before the first, and while one is being written."""
        found = self.beat.read()
        return None if found is None else (int(found[1]["generation"]), int(found[1]["process"]))

    def note(self, row: int, kind: str, detail: str) -> None:
        """Logs an event; those beyond the log's rows are lost."""
        if row < LOG_ROWS:
            detail = detail.encode()[:240].decode(errors="ignore")
            self.log.write(record_of(self.log.dtype, {"at": time.monotonic_ns(), "kind": kind, "detail": detail}), row)

    def events(self) -> list[Event]:
        """Returns what has been logged."""
        found = [self.log.read(row) for row in range(LOG_ROWS)]
        return [Event(*values_of(each[1], ["at", "kind", "detail"]).values()) for each in found if each is not None]


Refusal = Literal["not finite", "of another history"]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
