"""What a process uses of the processors is what it computed, and not what it slept."""

import os
import subprocess
import time

import pytest

from hierarchy.control.usage import machine_s, process_s, stolen_s

pytestmark = pytest.mark.skipif(machine_s() is None, reason="this system does not tell what its processors do")


def test_computing_counts_and_sleeping_does_not():
    before, everything = process_s(os.getpid()), machine_s()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    used, of_all = process_s(os.getpid()) - before, machine_s() - everything
    assert 0.25 <= used <= 0.4
    assert of_all >= used - 0.05
    before = process_s(os.getpid())
    time.sleep(0.3)
    assert process_s(os.getpid()) - before <= 0.05


def test_what_is_stolen_never_comes_back():
    first = stolen_s()
    assert 0 <= first <= stolen_s()


def test_a_process_that_is_gone_has_none():
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert process_s(gone.pid) is None
