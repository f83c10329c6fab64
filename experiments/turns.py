"""How long calls take: several ways in turns, so that what disturbs the machine disturbs all; one after another, or paced."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from rich.progress import Progress, TimeRemainingColumn

from hierarchy.control.clock import Clock
from hierarchy.control.real_time import SPARE

Timed = dict[str, np.ndarray]
"""Milliseconds of every call, by way."""
TIMED_FROM = 2000
"""Number of the first call: what a tick's caches hold of those before, which warmed it up, is out of its window."""


class Rehearsed(Protocol):
    """A tick that can be gone through to no effect."""

    def __call__(self, tick: int) -> Any:
        """Executes a tick."""

    def rehearse(self, tick: int) -> None:
        """Goes through one."""


def interleave(ways: Mapping[str, Callable[[int], Any]], seconds: float, what: str, rounds: int = 20) -> Timed:
    """Returns how long calls took, `seconds` of them a way, in turns, so that what disturbs the machine disturbs all ways."""
    return {name: np.concatenate(turns) for name, turns in in_turns(ways, seconds, what, rounds).items()}


def in_turns(ways: Mapping[str, Callable[[int], Any]], seconds: float, what: str, rounds: int) -> dict[str, list[np.ndarray]]:
    """Returns the same, turn by turn; a way whose calls are longer than its turns has turns without one.

    The first two calls of a turn are left out where it has more than ten: another way's data fills the processor's caches.
    """
    taken: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    ticks, spent = dict.fromkeys(ways, TIMED_FROM), dict.fromkeys(ways, 0.0)
    with Progress(*Progress.get_default_columns()[:-1], TimeRemainingColumn(), transient=True) as progress:
        task = progress.add_task(what, total=rounds)
        for turn in range(rounds):
            for name, way in ways.items():
                own = []
                while spent[name] < seconds * (turn + 1) / rounds:
                    began = time.perf_counter()
                    way(ticks[name])
                    own.append(time.perf_counter() - began)
                    ticks[name], spent[name] = ticks[name] + 1, spent[name] + own[-1]
                taken[name].append(1e3 * np.array(own[2:] if len(own) > 10 else own))
            progress.advance(task)
    return taken


def paced(ways: Mapping[str, Rehearsed], hz: float, seconds: float, rehearsed: bool = False) -> Timed:
    """Returns how long ticks took that came `hz` times a second, a second of each way in turn. rehearsed: the last tick is gone
    through once more before each, where there is time for it, as an agent in real time may do."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    clock, each = Clock(1 / hz), max(int(hz), 1)
    for turn in range(max(round(seconds), 1)):
        for name, way in ways.items():
            clock.start(time.monotonic_ns() + round(1e9 / hz))
            for n in range(each):
                if rehearsed and taken[name] and clock.approach(n, round(SPARE * 1e9 * taken[name][-1])):
                    way.rehearse(each * turn + n)
                clock.wait(n)
                began = time.perf_counter()
                way(each * turn + n)
                taken[name].append(time.perf_counter() - began)
    return {name: 1e3 * np.array(times) for name, times in taken.items()}


def p50(times: np.ndarray) -> float:
    """Returns the median."""
    return float(np.percentile(times, 50))


def p99(times: np.ndarray) -> float:
    """Returns the 99th percentile."""
    return float(np.percentile(times, 99))


def quickest(way: Callable[[int], Any]) -> float:
    """Returns the least time of a few calls, s."""
    times = []
    for _ in range(20):
        began = time.perf_counter()
        way(0)
        times.append(time.perf_counter() - began)
    return min(times)
