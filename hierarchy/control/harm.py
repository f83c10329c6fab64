"""Harm done to a planner beside the controller, on purpose and at random, to see that the controller goes on.

    kill        its process is killed, wherever it is
    stop        its process is stopped for good, and hangs until its watcher sees it
    pause       its process is stopped and goes on a moment later
    corrupt     a plan that is not a number, or of a history that never was, is left in its name
    scribble    its plan in shared memory is written over, behind the lock's back

After each, the next waits for a plan to be taken again, and then for a random number of ticks.
"""

import contextlib
import os
import signal
import time

import numpy as np

from hierarchy.control.link import Arrived, Link
from hierarchy.control.monitor import Monitor

KINDS = ("kill", "stop", "pause", "corrupt", "scribble")
LONGEST_WAIT = 25
PAUSE_S = (0.02, 0.5)


class Harm:
    """Harms the planner of a link so many times in all. Call `after_tick` after every tick; each harm is one of the monitor's
    incidents. over: all is done, and a plan was taken after the last. The planner must be in a process of its own."""

    def __init__(self, link: Link, monitor: Monitor, times: int, seed: int = 0):
        self._link, self._monitor, self._left = link, monitor, times
        self._rng = np.random.default_rng(seed)
        self._taken, self._wait, self._paused = 0, self._drawn_wait(), (0, 0.0)
        self.over = False

    def after_tick(self, row: int, taken: int) -> None:
        """Does what is due after the tick of this row of the monitor, when so many plans have been taken in all."""
        self._go_on()
        if taken <= self._taken or self._paused[0]:
            return
        self.over = not self._left
        if self._wait:
            self._wait -= 1
            return
        living = self._link.living()
        # While a planner starts, the newest sign of life is that of the one before.
        if self.over or living is None or living[0] != self._link.taken_of():
            return
        kind = str(self._rng.choice(KINDS))
        detail = self._do(kind, *living)
        if detail is not None:
            self._monitor.happened(time.monotonic_ns(), row, f"harm: {kind}", detail)
            self._left, self._taken, self._wait = self._left - 1, taken, self._drawn_wait()

    def _drawn_wait(self) -> int:
        return int(self._rng.integers(LONGEST_WAIT)) + 1

    def _go_on(self) -> None:
        process, until = self._paused
        if process and time.monotonic() >= until:
            self._paused = (0, 0.0)
            _signal(process, signal.SIGCONT)

    def _do(self, kind: str, generation: int, process: int) -> str | None:
        """Returns what was done, in words; None where the planner was gone already."""
        if kind == "scribble":
            self._link.plans.damage(self._rng.bytes(int(self._rng.integers(1, self._link.plans.dtype.itemsize + 1))))
            return f"over the plan of generation {generation}"
        if not _signal(process, signal.SIGKILL if kind == "kill" else signal.SIGSTOP):
            return None
        who = f"generation {generation}, process {process}"
        if kind == "pause":
            seconds = self._rng.uniform(*PAUSE_S)
            self._paused = (process, time.monotonic() + seconds)
            return f"{who}, for {seconds:.2f} s"
        if kind == "corrupt":
            # It is stopped, so that what is found is this and not its own next plan.
            self._link.publish(forged := self._forged(generation))
            return f"{who}: {'another history' if np.isfinite(forged.reading).all() else 'not a number'}"
        return who

    def _forged(self, generation: int) -> Arrived:
        horizon, size, now = self._link.horizon, self._link.reading_size, time.monotonic_ns()
        reading = np.full(size, np.nan if self._rng.random() < 0.5 else 0.5, np.float32)
        # It says of tick 0 that nobody read it: no sound plan does.
        return Arrived(self._link.ordered().episode, generation, 0, now, now, 0, np.zeros(horizon, bool), reading)


def _signal(process: int, number: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
        return True
    return False
