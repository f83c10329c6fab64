"""Jobs for the tests of `side_by_side`: a process of its own imports them from here."""

import os
import signal
import time
from pathlib import Path

from hierarchy.training.trainer import Interrupted, stop_signals


def note_cores(path: Path) -> None:
    """Writes which cores it may use."""
    path.write_text(" ".join(map(str, sorted(os.sched_getaffinity(0)))))
    print("noted")


def fail(word: str) -> None:
    """Fails with a word."""
    raise ValueError(word)


def work_until_told(path: Path) -> None:
    """Works until it is told to stop, then saves."""
    with stop_signals() as stop:
        path.with_suffix(".began").touch()
        while not stop.is_set:
            time.sleep(0.05)
        path.write_text(f"saved at {stop.name}")
        raise Interrupted("told to stop")


def told_by_somebody_else() -> None:
    """Is told to stop by another than its parent."""
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set
        raise Interrupted("told to stop")
