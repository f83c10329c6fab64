"""A core that does not halt between ticks: waking one takes time, and a virtual one is woken when its host gets round to it."""

import os
import subprocess
import sys
from collections.abc import Sequence

from hierarchy.control.usage import process_s

SPIN = """
import os, sys
core, parent = map(int, sys.argv[1:])
os.sched_setaffinity(0, [core])
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


class Awake:
    """Keeps cores busy while it is entered, by a process each that gives way to every other (SCHED_IDLE) and ends with this one.

    note: what was done, or why nothing was.
    """

    def __init__(self, where: Sequence[int]):
        self._where = list(where) if hasattr(os, "SCHED_IDLE") else []
        self._spinning: list[subprocess.Popen] = []
        self.note = f"core {', '.join(map(str, self._where))} kept awake" if self._where else "cores may halt between ticks"

    def __enter__(self) -> "Awake":
        for core in self._where:
            command = [sys.executable, "-I", "-S", "-c", SPIN, str(core), str(os.getpid())]
            self._spinning.append(subprocess.Popen(command))
        return self

    def __exit__(self, *_) -> None:
        for each in self._spinning:
            each.kill()
            each.wait()
        self._spinning = []

    def used_s(self) -> float:
        """Returns the CPU seconds that this took so far: time that nobody else wanted."""
        return sum(process_s(each.pid) or 0.0 for each in self._spinning)
