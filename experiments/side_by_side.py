"""Jobs at the same time, each in a process with its own share of the cores.

A training step of a small model uses one core well and a second one badly: two trainings side by side, a core each, take less
time than one after the other with both (1.3 times on 2 cores). A job that is told to stop saves and leaves; so do all of them
when this process is told to, or is gone.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from hierarchy.control.priority import cores, pin
from hierarchy.training.trainer import Interrupted, stop_signals

Job = tuple[Callable[..., object], tuple]
"""A function of some module, and its arguments."""

HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""glibc's word for memory in pages of 2 MiB, where the kernel has them. A training step gives back and asks again for a hundred
megabytes or more, and the kernel clears every page of them anew: a third of a step in pages of 4 KiB."""


def shares(available: list[int], jobs: int) -> list[list[int]]:
    """Returns the cores of each job: apart, as even as they come; all of them for every job where there are fewer than jobs."""
    count = len(available)
    return [available] * jobs if count < jobs else [available[i * count // jobs : (i + 1) * count // jobs] for i in range(jobs)]


def side_by_side(jobs: Mapping[str, Job], folder: Path, watch: Callable[[], None] = lambda: None) -> None:
    """Returns when all jobs have returned. What they print goes to `folder`/NAME.log. `watch` is called about once a second.

    Raises:
        Interrupted: SIGINT or SIGTERM came, once every job has saved and left.
        ChildProcessError: a job failed; names it, its last line and its log. The others are told to stop first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    apart = shares(cores(), len(jobs))
    # As the Makefile has it, for who starts without make. Read when a process starts: too late for this one, in time for its
    # children. Whoever has set something knows better.
    os.environ.setdefault("GLIBC_TUNABLES", HUGE_PAGES)
    running = {
        name: spawn.Process(target=_run, args=(*job, own, folder / f"{name}.log"), name=name)
        for (name, job), own in zip(jobs.items(), apart, strict=True)
    }
    with stop_signals() as stop:
        for process in running.values():
            process.start()
        failed: list[str] = []
        try:
            while any(process.is_alive() for process in running.values()) and not stop.is_set and not failed:
                watch()
                time.sleep(1.0)
                failed = [name for name, process in running.items() if process.exitcode]
        finally:
            for process in running.values():
                if process.is_alive():
                    process.terminate()
            for process in running.values():
                process.join()
        if stop.is_set:
            raise Interrupted(f"stopped by {stop.name}")
    for name in failed or [name for name, process in running.items() if process.exitcode]:
        log = folder / f"{name}.log"
        last = (log.read_text().strip().splitlines() or ["it left no word"])[-1]
        raise ChildProcessError(f"{name} stopped: {last} (all of it is in {log})")
    watch()


def _run(function: Callable[..., object], arguments: tuple, own: list[int], log: Path) -> None:
    """The child: on its own cores (where the system pins; before JAX counts them), out of the terminal's reach, its output in the
    log."""
    os.setsid()
    pin(own)
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    try:
        function(*arguments)
    except Interrupted as told:
        # Told by whoever it was, it is not done: only the parent that told all of them knows better.
        print(told, flush=True)
        sys.exit(130)
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(1)


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
