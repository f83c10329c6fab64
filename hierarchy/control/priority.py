"""Which cores and which priority a process has, and when its garbage collector runs. Each function says what it could not do."""

import contextlib
import gc
import os
import time

PRIORITY = 50


def cores() -> list[int]:
    """Returns the cores that this process may use; [] where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def share(available: list[int]) -> tuple[list[int], list[int]]:
    """Returns the controller's core and the planner's: the last one, and all others. A lone core is shared."""
    return available[-1:], available[:-1] or available


def pin(where: list[int]) -> str:
    """Keeps every thread of this process on these cores; "" or why it was not done.

    Before JAX computes anything: it makes a pool of as many threads as there are cores to run on.
    """
    if not where or not hasattr(os, "sched_setaffinity"):
        return "this system does not pin processes to cores"
    for thread in _threads():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, where)
    return ""


def raise_priority() -> str:
    """Gives every thread of this process real-time priority (SCHED_FIFO; children do not inherit it), or none; "" or why not."""
    if not hasattr(os, "sched_setscheduler"):
        return "this system has no real-time scheduling"
    try:
        for thread in _threads():
            # A thread may end between being listed and being asked for.
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(thread, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    except OSError as error:
        usual_priority()
        return f"no real-time priority ({error.strerror}): raise RLIMIT_RTPRIO or grant CAP_SYS_NICE"
    return ""


def usual_priority() -> None:
    """Undoes `raise_priority`."""
    if hasattr(os, "sched_setscheduler"):
        for thread in _threads():
            with contextlib.suppress(OSError):
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def lower_priority() -> None:
    """Makes this process give way to all others."""
    if hasattr(os, "nice"):
        os.nice(19)


def settle_collector() -> None:
    """Collects garbage once, exempts all that is left, and turns the collector off: a full collection takes tens of ms."""
    gc.collect()
    gc.freeze()
    gc.disable()


def wake_collector() -> None:
    """Undoes `settle_collector`."""
    gc.enable()
    gc.unfreeze()


class CollectorPauses:
    """The garbage collections while it is entered, as (start, end) in ns."""

    def __enter__(self) -> "CollectorPauses":
        self.pauses: list[tuple[int, int]] = []
        gc.callbacks.append(self._note)
        return self

    def __exit__(self, *_) -> None:
        gc.callbacks.remove(self._note)

    def _note(self, phase: str, _: dict) -> None:
        now = time.monotonic_ns()
        if phase == "start":
            self.pauses.append((now, now))
        elif self.pauses:
            self.pauses[-1] = (self.pauses[-1][0], now)


def _threads() -> list[int]:
    try:
        return [int(thread) for thread in os.listdir("/proc/self/task")]
    except OSError:
        return [0]
