"""Deadlines are reckoned from tick 0, and nothing that happens in a tick moves those after it."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierarchy.control.clock import Clock


@given(st.floats(0.5, 2000), st.integers(0, 10**6), st.integers(0, 10**18))
def test_a_deadline_is_t0_plus_n_periods_within_half_a_microsecond(hz, tick, start):
    clock = Clock(1 / hz)
    clock.start(start)
    exact = start + tick * 10**9 / hz
    assert abs(clock.deadline(tick) - exact) <= max(500, exact * 1e-15)


def test_no_tick_begins_before_its_deadline_and_a_late_one_moves_no_other():
    clock = Clock(0.004)
    clock.start()
    start, woken = clock.deadline(0), []
    for tick in range(40):
        woken.append(clock.wait(tick))
        if tick == 10:
            time.sleep(0.03)
    assert all(at >= start + tick * 4_000_000 for tick, at in enumerate(woken))
    assert [clock.deadline(tick) for tick in range(40)] == [start + tick * 4_000_000 for tick in range(40)]
    # The ticks after a late one are late in turn until they have caught up: they are not put off by a period each.
    gaps = np.diff(woken)
    assert gaps[10] >= 30_000_000
    assert gaps[11:16].min() < 4_000_000


def test_a_deadline_is_approached_only_if_it_is_far_enough_away():
    clock = Clock(0.02)
    clock.start()
    assert clock.approach(1, 10_000_000)
    assert clock.deadline(1) - 10_000_000 <= time.monotonic_ns()
    assert not clock.approach(1, 10_500_000)
    assert not clock.approach(0, 0)
    assert not Clock(0.0).approach(1, 0)


def test_a_clock_goes_on_from_the_deadline_that_it_is_given():
    clock = Clock(0.004)
    clock.start(10**9)
    clock.rephase(7, 2 * 10**9)
    assert [clock.deadline(tick) for tick in (7, 8, 107)] == [2 * 10**9, 2 * 10**9 + 4_000_000, 2 * 10**9 + 400_000_000]


def test_without_a_period_there_is_no_waiting_and_no_drift_to_speak_of():
    clock = Clock(0.0)
    clock.start()
    assert not clock.paced
    assert clock.wait(10**6) < clock.deadline(0) + 10**10


def test_a_negative_period_is_refused():
    with pytest.raises(ValueError, match=r"a period of -0\.1 s"):
        Clock(-0.1)
