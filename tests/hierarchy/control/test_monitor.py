"""The monitor's figures from ticks whose times are known, and the forms that they are written in."""

import gc
import json
import multiprocessing
import os
import select
import time
from multiprocessing.connection import Connection

import numpy as np
import pytest

from hierarchy.control.monitor import MOMENTS, Monitor, ages, misses, shown, summary, tick_lines, trace
from hierarchy.control.priority import CollectorPauses, settle_collector, wake_collector

PERIOD_S = 0.02
MS = 1_000_000


def filled(ticks: int = 100, late: dict[int, int] | None = None) -> Monitor:
    """A monitor of ticks that take 3 ms and wake on time; `late` maps ticks to how long they took instead, in ms. Plans come
    every 10 ticks and are 4 ticks old then."""
    monitor = Monitor(ticks + 5, PERIOD_S)
    for tick in range(ticks):
        deadline = 7 * 10**9 + tick * 20 * MS
        took = (late or {}).get(tick, 3) * MS
        computed = deadline + took
        plan = tick - 4 - tick % 10 if tick >= 10 else -1
        moments = (deadline, deadline, deadline + MS // 2, deadline + MS, computed, computed + MS, deadline - MS)
        monitor.rows[tick] = (*moments, 1, tick, plan, plan)
    return monitor


def test_rates_times_misses_and_ages_are_those_of_the_ticks():
    monitor = filled(late={30: 25, 60: 60, 61: 45})
    found = summary(monitor.done(), PERIOD_S)
    assert found["ticks"] == 100
    assert found["fast_hz"] == pytest.approx(50)
    assert found["slow_hz"] == pytest.approx(9 / (99 * PERIOD_S))
    assert found["tick_ms"]["p50"] == pytest.approx(3)
    assert found["tick_ms"]["max"] == pytest.approx(60)
    assert found["observation_to_action_ms"]["p50"] == pytest.approx(4)
    assert found["missed"] == 3
    np.testing.assert_array_equal(np.flatnonzero(misses(monitor.done(), PERIOD_S)), [30, 60, 61])
    assert found["missed_by_ms"]["max"] == pytest.approx(40)
    assert found["missed_by_ms"]["p50"] == pytest.approx(25)
    assert found["plan_age_ticks"]["max"] == 13
    assert found["ticks_without_plan"] == 10
    assert [found["phases_ms"][name]["p50"] for name in ("observe", "read plan", "compute", "act")] == pytest.approx(
        [0.5, 0.5, 2, 1]
    )
    np.testing.assert_array_equal(ages(monitor.done())[8:12], [-1, -1, 4, 5])


def test_exactly_at_the_next_deadline_is_in_time():
    assert not misses(filled(late={5: 20}).done(), PERIOD_S).any()


def test_without_deadlines_nothing_is_missed():
    found = summary(filled(late={30: 25}).done(), 0.0)
    assert found["missed"] == 0
    assert found["wanted_hz"] is None
    assert found["deadline_to_action_ms"] is None


def test_plans_that_were_taken_and_too_old_to_be_acted_on_count_as_plans():
    monitor = filled()
    monitor.rows["plan"][40:] = -1
    found = summary(monitor.done(), PERIOD_S)
    assert found["slow_hz"] == pytest.approx(9 / (99 * PERIOD_S))
    assert found["ticks_without_plan"] == 70
    # A plan that is taken up again is not another plan.
    monitor = filled()
    monitor.rows["plan"][43:46] = -1
    assert summary(monitor.done(), PERIOD_S)["slow_hz"] == pytest.approx(9 / (99 * PERIOD_S))


def test_the_time_between_episodes_is_no_tick():
    monitor = filled(20)
    for name in (*MOMENTS, "stamped"):
        monitor.rows[name][10:20] += 5 * 10**9
    monitor.rows["episode"][10:20] = 2
    assert summary(monitor.done(), PERIOD_S)["fast_hz"] == pytest.approx(50)


def say_lines(monitor: Monitor, pipe: Connection) -> None:
    while pipe.recv():
        pipe.send(monitor.line())


def test_another_process_sees_the_rows_while_they_are_written():
    monitor, (here, there) = Monitor(8, PERIOD_S), multiprocessing.Pipe()
    other = multiprocessing.get_context("spawn").Process(target=say_lines, args=(monitor, there), daemon=True)
    other.start()

    def line() -> str:
        here.send(True)
        assert here.poll(120)
        return here.recv()

    assert line() == "waiting for tick 0"
    monitor.rows[:3] = filled(3).rows[:3]
    assert line().startswith("tick 3: 50.0 Hz, 3.00 ms p50")
    here.send(False)
    other.join(120)
    assert other.exitcode == 0


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no terminals of its own")
def test_a_run_without_a_watcher_has_its_line_in_the_terminal(monkeypatch):
    monitor, (reading, terminal) = filled(3), os.openpty()
    before = os.dup(2)
    os.dup2(terminal, 2)
    try:
        with open(2, "w", closefd=False) as stderr:
            monkeypatch.setattr("sys.stderr", stderr)
            with shown(monitor):
                assert select.select([reading], [], [], 120)[0]
                assert b"tick 3: 50.0 Hz" in os.read(reading, 1000)
    finally:
        os.dup2(before, 2)
        for each in (before, reading, terminal):
            os.close(each)
    assert not multiprocessing.active_children()


def test_without_a_terminal_nothing_is_started(monkeypatch):
    with open(os.devnull, "w") as nowhere:
        monkeypatch.setattr("sys.stderr", nowhere)
        with shown(filled(3)):
            assert not multiprocessing.active_children()


def test_one_line_of_json_a_tick():
    lines = [json.loads(line) for line in tick_lines(filled(late={30: 25}).done(), PERIOD_S).splitlines()]
    assert len(lines) == 100
    assert lines[30]["missed_by_ms"] == pytest.approx(5)
    assert lines[31]["deadline_ms"] == pytest.approx(620)
    assert lines[31]["plan_age"] == 5


def test_the_trace_is_chromes():
    """Events have the fields that the trace-event format asks for, and the phases lie within their ticks."""
    monitor = filled(late={30: 25})
    made = trace(monitor.done(), PERIOD_S, [(0, 7 * 10**9, 7 * 10**9 + 90 * MS)], [(7 * 10**9 + 5, "died", "exit code -9")])
    events = json.loads(json.dumps(made))["traceEvents"]
    wanted = {
        "X": {"ts", "dur", "pid", "tid", "name"},
        "i": {"ts", "pid", "s", "name"},
        "C": {"ts", "pid", "args"},
        "M": {"pid", "args"},
    }
    assert all(wanted[event["ph"]] <= event.keys() for event in events)
    assert {event["name"] for event in events if event["ph"] == "i"} == {"deadline missed", "died"}
    spans = [event for event in events if event["ph"] == "X" and event["pid"] == 1]
    assert len([event for event in spans if event["name"].startswith("tick")]) == 100
    for tick in range(100):
        (whole,) = [event for event in spans if event["name"] == f"tick {tick}"]
        within = [event for event in spans if whole["ts"] <= event["ts"] < whole["ts"] + 2000 and event is not whole]
        assert {event["name"] for event in within} >= {"observe", "read plan", "compute"}


def test_pauses_of_the_collector_are_noted_and_can_be_kept_away():
    with CollectorPauses() as collector:
        began = time.monotonic_ns()
        gc.collect()
    assert len(collector.pauses) == 1
    start, end = collector.pauses[0]
    assert began <= start <= end <= time.monotonic_ns()
    settle_collector()
    try:
        with CollectorPauses() as quiet:
            junk = [[i] for i in range(50_000)]
            for each in junk:
                each.append(each)
        assert quiet.pauses == []
    finally:
        wake_collector()
    assert gc.isenabled()
