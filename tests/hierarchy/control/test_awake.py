"""A core is kept awake by who gives way to all, for as long as it is asked for, and by nobody after that."""

import os
import subprocess
import sys
import time

import pytest

from hierarchy.control.awake import Awake
from hierarchy.control.priority import cores
from hierarchy.control.usage import process_s

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_IDLE") or not cores(), reason="this system has no idle priority")

KILLED = """
import time
from hierarchy.control.awake import Awake
from hierarchy.control.priority import cores

awake = Awake(cores()[:1]).__enter__()
print(awake._spinning[0].pid, flush=True)
time.sleep(60)
"""


def until(holds, longest_s: float = 20.0) -> bool:
    """Whether something came to hold in time."""
    ends = time.monotonic() + longest_s
    while not holds() and time.monotonic() < ends:
        time.sleep(0.01)
    return holds()


def test_its_process_computes_on_its_core_below_all_others_and_is_gone_afterwards():
    core = cores()[-1]
    with Awake([core]) as awake:
        assert awake.note == f"core {core} kept awake"
        (spinning,) = awake._spinning
        assert until(lambda: os.sched_getscheduler(spinning.pid) == os.SCHED_IDLE)
        assert os.sched_getaffinity(spinning.pid) == {core}
        before = awake.used_s()
        assert until(lambda: awake.used_s() > before)
    assert process_s(spinning.pid) is None
    assert awake.used_s() == 0


def test_without_a_core_of_ones_own_nothing_is_done():
    with Awake([]) as awake:
        assert awake.note == "cores may halt between ticks"
        assert awake.used_s() == 0


def test_it_does_not_outlive_a_process_that_was_killed():
    keeper = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    process = int(keeper.stdout.readline())
    assert process_s(process) is not None
    keeper.kill()
    keeper.wait()
    assert until(lambda: process_s(process) is None)
