"""Cores and priorities of the threads of this process, which come and go."""

import os
import threading

import pytest

from hierarchy.control import priority

linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes to cores")


def churn(stop: threading.Event) -> None:
    while not stop.is_set():
        threading.Thread(target=int).start()


@linux
def test_threads_that_end_meanwhile_are_no_error_and_all_is_as_before_afterwards():
    stop, before, policy = threading.Event(), priority.cores(), os.sched_getscheduler(0)
    other = threading.Thread(target=churn, args=(stop,))
    other.start()
    try:
        for _ in range(20):
            assert priority.pin(before) == ""
            refused = priority.raise_priority()
            assert (os.sched_getscheduler(0) & os.SCHED_FIFO == os.SCHED_FIFO) == (refused == "")
            priority.usual_priority()
            assert os.sched_getscheduler(0) == policy
    finally:
        stop.set()
        other.join()
    assert priority.cores() == before


def test_the_controller_has_a_core_of_its_own_where_there_are_two():
    assert priority.share([0, 1, 2]) == ([2], [0, 1])
    assert priority.share([3]) == ([3], [3])
