"""Jobs for the tests of `side_by_side`: a process of its own imports them from here."""

import ctypes
import os
import resource
import signal
import time
from pathlib import Path

from hierarchy.training.trainer import Interrupted, stop_signals


def note_cores(path: Path) -> None:
    """Writes which cores it may use."""
    path.write_text(" ".join(map(str, sorted(os.sched_getaffinity(0)))))
    print("noted")


def note_faults(path: Path) -> None:
    """Writes how many pages the kernel had to give for a block of 64 MiB, asked for and given back ten times, a time."""
    libc, size = ctypes.CDLL(None), ctypes.c_size_t(2**26)
    libc.malloc.restype = ctypes.c_void_p
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        block = ctypes.c_void_p(libc.malloc(size))
        libc.memset(block, 1, size)
        libc.free(block)
    path.write_text(str((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10))


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
