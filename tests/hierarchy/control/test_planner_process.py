"""A planner in a process of its own is killed, stopped and corrupted, and the controller goes on; then the run is replayed.

Nothing here depends on how fast this machine is: only on what was recorded.
"""

import os
import re
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest

from experiments.replay import TOLERANCE
from hierarchy.control.planner_process import Pace, Patience, PlannerBeside
from tests.hierarchy.control.real_time_toys import Bench
from tests.hierarchy.control.test_real_time import plan_of
from tests.hierarchy.control.toy_parts import make

RATIO, PERIOD_S, HORIZON, LONGEST_S = 4, 0.1, 4900, 480


def kill(bench: Bench, process: int) -> None:
    os.kill(process, signal.SIGKILL)


def stop(bench: Bench, process: int) -> None:
    os.kill(process, signal.SIGSTOP)


def corrupt(bench: Bench, process: int) -> None:
    """Leaves a plan in the planner's name that is not a number."""
    plan = bench.state.plan
    now = bench.state.agent.tick - 1
    read = [*np.flatnonzero(plan.read), now]
    bench.link.publish(plan_of(bench, now, read, np.nan, generation=bench.generation))


def scribble(bench: Bench, process: int) -> None:
    """Writes over the plan in shared memory, in the middle of which its planner then dies."""
    bench.link.plans._bytes[16:400] = os.urandom(384)
    kill(bench, process)


HARM = {"died": kill, "hung": stop, "refused": corrupt, "died again": scribble}


def tick_until(bench: Bench, reached: Callable[[], bool], until: float) -> None:
    while not reached():
        assert time.monotonic() < until, "it did not come to pass"
        bench.tick()


def test_the_controller_misses_no_tick_for_its_planner():
    bench = Bench(HORIZON, PERIOD_S)
    until, harmed = time.monotonic() + LONGEST_S, []
    patience = Patience(silent_s=4.0)
    with PlannerBeside(make, bench.link, pace=Pace(RATIO), patience=patience) as beside:
        beside.wait_ready()
        bench.begin()
        for bench.generation, harm in enumerate(HARM.values()):

            def back(generation: int = bench.generation) -> bool:
                found = bench.link.found(0)
                return bench.state.plan is not None and found is not None and found[1].generation == generation

            tick_until(bench, back, until)
            # A plan of this start of the planner has been taken, not only left to be found.
            taken = len(bench.flight.taken)
            tick_until(bench, lambda taken=taken: len(bench.flight.taken) > taken, until)
            (process,) = re.findall(r"process (\d+)", [e.detail for e in beside.events() if e.kind == "started"][-1])
            harmed.append(bench.state.agent.tick)
            harm(bench, int(process))
        taken = len(bench.flight.taken)
        tick_until(bench, lambda: len(bench.flight.taken) > taken + 2, until)
        kinds = [event.kind for event in beside.events()]
    ticks = len(bench.executed)
    rows = bench.monitor.rows[:ticks]
    assert [kind for kind in kinds if kind in ("died", "hung", "refused")] == ["died", "hung", "refused", "died"]
    assert kinds.count("ready") == len(HARM) + 1
    np.testing.assert_array_equal(rows["tick"], np.arange(ticks))
    np.testing.assert_array_equal(rows["deadline"], [bench.agent.clock.deadline(tick) for tick in range(ticks)])
    assert np.isfinite(bench.executed).all()
    for tick in harmed:
        # Nothing new came for a while, the old plan was held, and ticks went on at their deadlines.
        held = rows["plan"][tick + 1 : tick + 6]
        assert len(set(held.tolist())) <= 2
    old = rows["tick"] - rows["plan"]
    assert (np.diff(old[harmed[0] :]) <= 1).all()
    assert bench.disagreement() <= TOLERANCE
    timeline = bench.timeline()
    assert np.diff(timeline.observed).min() >= RATIO
    # The gaps of the outages are there; a planner that had not read again would have been refused.
    assert np.sort(np.diff(timeline.observed))[-len(HARM) :].min() > RATIO
    assert bench.disagreement(timeline._replace(ready=timeline.ready + 1)) > 10 * TOLERANCE


def test_a_thread_will_do_where_there_are_no_processes():
    bench = Bench(400, 0.02)
    with PlannerBeside(make, bench.link, pace=Pace(1), place="thread") as beside:
        beside.wait_ready()
        bench.begin()
        tick_until(bench, lambda: len(bench.flight.taken) > 4, time.monotonic() + 60)
    assert bench.disagreement() <= TOLERANCE


def broken():
    raise RuntimeError("no weights")


def test_a_planner_that_never_comes_up_is_given_up_on():
    bench = Bench(4)
    with PlannerBeside(broken, bench.link, place="thread") as beside:
        with pytest.raises(RuntimeError, match="the planner did not start: 3 planners in a row did not come up"):
            beside.wait_ready(60)
        died = [event.detail for event in beside.events() if event.kind == "died"]
    assert len(died) == 3
    assert died[0].endswith("RuntimeError: no weights")


def test_a_slow_planner_is_no_hung_one():
    """An update that takes longer than the watcher's patience gives signs of life."""
    bench = Bench(400, 0.02)
    with PlannerBeside(make, bench.link, pace=Pace(1, least_s=1.5), patience=Patience(silent_s=1.0), place="thread") as beside:
        beside.wait_ready()
        bench.begin()
        tick_until(bench, lambda: len(bench.flight.taken) > 0, time.monotonic() + 60)
        assert "hung" not in [event.kind for event in beside.events()]
    assert bench.timeline().ready[0] - bench.timeline().observed[0] >= 70
