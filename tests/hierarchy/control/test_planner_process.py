"""A planner in a process of its own is killed, stopped and corrupted, and the controller goes on; then the run is replayed.

Nothing here depends on how fast this machine is: only on what was recorded.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.replay import TOLERANCE
from hierarchy.control.link import Link
from hierarchy.control.planner_process import FAILURES, Pace, Patience, PlannerBeside, _Watch
from hierarchy.control.usage import machine_s, process_s
from tests.hierarchy.control.real_time_toys import SAFE, Bench, seen_at
from tests.hierarchy.control.test_real_time import plan_of
from tests.hierarchy.control.toy_parts import make

# Processes that compile are started: minutes on a busy machine.
pytestmark = pytest.mark.long

RATIO, PERIOD_S, HORIZON, LONGEST_S = 4, 0.1, 4900, 480
NEVER_S = 10_000.0


def kill(bench: Bench, process: int, generation: int) -> None:
    os.kill(process, signal.SIGKILL)


def stop(bench: Bench, process: int, generation: int) -> None:
    os.kill(process, signal.SIGSTOP)


def corrupt(bench: Bench, process: int, generation: int) -> None:
    """Leaves a plan in the planner's name that is not a number; the planner is stopped, so that it is the one found."""
    os.kill(process, signal.SIGSTOP)
    now = bench.state.agent.tick - 1
    bench.link.publish(plan_of(bench, now, [*np.flatnonzero(bench.state.plan.read), now], np.nan, generation=generation))


def scribble(bench: Bench, process: int, generation: int) -> None:
    """Writes over the plan in shared memory, in the middle of which its planner then dies."""
    bench.link.plans.damage(os.urandom(384))
    os.kill(process, signal.SIGKILL)


def tick_until(bench: Bench, reached: Callable[[], bool], until: float) -> None:
    while not reached():
        assert time.monotonic() < until, "it did not come to pass"
        bench.tick()


def newest(beside: PlannerBeside) -> tuple[int, int]:
    """Returns the generation and the process of the planner that was started last."""
    started = [event.detail for event in beside.events() if event.kind == "started"][-1]
    return tuple(map(int, re.fullmatch(r"generation (\d+) as process (\d+)", started).groups()))


def count(beside: PlannerBeside, kind: str) -> int:
    return [event.kind for event in beside.events()].count(kind)


def check(bench: Bench) -> None:
    """No tick was missed, each has its own deadline, all were acted on, and the parallel pass agrees."""
    ticks = len(bench.executed)
    rows = bench.monitor.rows[:ticks]
    np.testing.assert_array_equal(rows["tick"], np.arange(ticks))
    np.testing.assert_array_equal(rows["deadline"], [bench.agent.clock.deadline(tick) for tick in range(ticks)])
    assert np.isfinite(bench.executed).all()
    assert bench.disagreement() <= TOLERANCE


def test_a_stopped_planner_is_not_waited_for():
    """The planner can do nothing at all, and nobody starts another: ticks go on, on the plan that was there."""
    bench, until = Bench(HORIZON, 0.02), time.monotonic() + LONGEST_S
    with PlannerBeside(make, bench.link, pace=Pace(RATIO), patience=Patience(silent_s=NEVER_S)) as beside:
        beside.wait_ready(LONGEST_S)
        bench.begin()
        tick_until(bench, lambda: len(bench.flight.taken) > 1, until)
        _, process = newest(beside)
        os.kill(process, signal.SIGSTOP)
        state = Path(f"/proc/{process}/stat")
        tick_until(bench, lambda: state.read_text().rpartition(")")[2].split()[0] == "T", until)
        first = bench.tick()
        for _ in range(20):
            bench.tick()
        assert state.read_text().rpartition(")")[2].split()[0] == "T"
        assert len(set(bench.monitor.rows["plan"][first + 1 : first + 21].tolist())) == 1
        os.kill(process, signal.SIGCONT)
        taken = len(bench.flight.taken)
        tick_until(bench, lambda: len(bench.flight.taken) > taken, until)
        assert count(beside, "started") == 1
    check(bench)


def test_the_controller_misses_no_tick_for_its_planner():
    bench = Bench(HORIZON, PERIOD_S)
    until, harmed = time.monotonic() + LONGEST_S, []
    with PlannerBeside(make, bench.link, pace=Pace(RATIO), patience=Patience(silent_s=10.0)) as beside:
        beside.wait_ready(LONGEST_S)
        bench.begin()
        for kind, harm in [("died", kill), ("hung", stop), ("refused", corrupt), ("died", scribble)]:
            # A plan of this start of the planner has been taken, not only left to be found.
            tick_until(bench, lambda: bench.link.taken_of() == newest(beside)[0], until)
            generation, process = newest(beside)
            noted = count(beside, kind)
            harmed.append(bench.state.agent.tick)
            harm(bench, process, generation)
            tick_until(bench, lambda kind=kind, noted=noted: count(beside, kind) > noted, until)
        tick_until(bench, lambda: bench.link.taken_of() == newest(beside)[0], until)
        taken = len(bench.flight.taken)
        tick_until(bench, lambda: len(bench.flight.taken) > taken + 2, until)
        assert count(beside, "ready") >= len(harmed) + 1
    rows = bench.monitor.rows[: len(bench.executed)]
    for tick in harmed:
        # Nothing new came for a while, the old plan was held, and ticks went on at their deadlines.
        assert len(set(rows["plan"][tick + 1 : tick + 6].tolist())) <= 2
    check(bench)
    timeline = bench.timeline()
    assert np.diff(timeline.observed).min() >= RATIO
    # The gaps of the outages are there; a planner that had not read again would have been refused.
    assert np.sort(np.diff(timeline.observed))[-len(harmed) :].min() > RATIO
    assert bench.disagreement(timeline._replace(ready=timeline.ready + 1)) > 10 * TOLERANCE


def test_plans_are_held_back_as_asked_for_and_the_parallel_pass_agrees():
    bench, pace = Bench(HORIZON, 0.02), Pace(RATIO, late_share=0.5, late_s=0.3)
    with PlannerBeside(make, bench.link, pace=pace, patience=Patience(silent_s=NEVER_S)) as beside:
        beside.wait_ready(LONGEST_S)
        bench.begin()
        tick_until(bench, lambda: len(bench.flight.taken) >= 24, time.monotonic() + LONGEST_S)
    updates = bench.flight.updates
    late = np.array([update.held_back for update in updates])
    assert 4 <= (late > 0).sum() <= len(late) - 4
    assert late.max() <= 0.3e9
    assert all(update.ended - update.began >= update.held_back for update in updates)
    assert [update.observed for update in updates] == [int(np.flatnonzero(read)[-1]) for _, read in bench.flight.taken]
    check(bench)


@pytest.mark.skipif(machine_s() is None, reason="this system does not tell what its processors do")
def test_a_planner_computes_the_share_of_the_time_that_it_is_told_to():
    """Whatever else runs here, it uses no more, and more where it is told to do more."""
    used = {}
    for duty in (0.0, 0.3, 1.0):
        bench = Bench(HORIZON, 0.02)
        with PlannerBeside(make, bench.link, pace=Pace(50, duty=duty), patience=Patience(silent_s=NEVER_S)) as beside:
            beside.wait_ready(LONGEST_S)
            bench.begin()
            _, process = newest(beside)
            before, began = process_s(process), time.monotonic()
            while bench.state.agent.tick < 150:
                bench.tick()
            used[duty] = (process_s(process) - before) / (time.monotonic() - began)
        check(bench)
        # What it computes beside its updates is nobody's.
        timeline = bench.timeline()
        assert np.diff(timeline.observed).min(initial=50) >= 50
        assert (len(timeline.observed) > 0) == (duty > 0)
    assert used[0.0] < 0.1
    assert used[0.0] < used[0.3] < 0.45
    assert used[0.3] < used[1.0]


def test_a_thread_will_do_where_there_are_no_processes():
    bench = Bench(HORIZON, 0.02)
    with PlannerBeside(make, bench.link, pace=Pace(1), patience=Patience(silent_s=NEVER_S), place="thread") as beside:
        beside.wait_ready(LONGEST_S)
        bench.begin()
        tick_until(bench, lambda: len(bench.flight.taken) > 4, time.monotonic() + LONGEST_S)
    assert bench.disagreement() <= TOLERANCE


def broken():
    raise RuntimeError("no weights")


def test_a_planner_that_never_comes_up_is_given_up_on():
    bench = Bench(4)
    with PlannerBeside(broken, bench.link, place="thread") as beside:
        with pytest.raises(RuntimeError, match="the planner did not start: 3 planners in a row left no plan that was taken"):
            beside.wait_ready(LONGEST_S)
        died = [event.detail for event in beside.events() if event.kind == "died"]
    assert len(died) == FAILURES
    assert died[0].endswith("RuntimeError: no weights")


def test_a_watcher_that_is_gone_is_noticed():
    bench = Bench(4)
    with PlannerBeside(broken, bench.link) as beside:
        beside._watcher.kill()
        with pytest.raises(RuntimeError, match="the planner did not start: nobody starts the planner again"):
            beside.wait_ready(LONGEST_S)
        assert [event.kind for event in beside.events()][-1] == "watcher gone"
    assert count(beside, "watcher gone") == 1


def test_a_slow_planner_gives_signs_of_life():
    bench = Bench(12)
    bench.begin()
    bench.tick()
    thinker = bench.thinker()
    thinker.begin(1)
    thinker.absorb()
    plan = thinker.plan(least_s=0.2)
    assert plan.ended - plan.began >= 200_000_000
    assert plan.began < bench.link.lived(0) < plan.ended


class ByHand:
    """A planner that does what the test does in its name."""

    def __init__(self, alive: bool):
        self.alive = alive

    def is_alive(self) -> bool:
        return self.alive

    def name(self) -> str:
        return "a test"

    def end(self) -> None:
        self.alive = False

    def why(self) -> str:
        return "as it was told to"


def watched(link: Link, patience: Patience, start: Callable[[int], ByHand]) -> Callable[[], list[str]]:
    """Starts a watcher; returns what waits until so many events are there, and returns the kinds of all."""
    threading.Thread(target=_Watch(link, patience, start, None).run, args=(lambda: True,), daemon=True).start()

    def kinds(at_least: int) -> list[str]:
        until = time.monotonic() + LONGEST_S
        while len(events := link.events()) < at_least:
            assert time.monotonic() < until, "it did not come to pass"
            time.sleep(0.01)
        return [event.kind for event in events]

    return kinds


@pytest.mark.parametrize(("start_s", "silent_s", "ends"), [(NEVER_S, 0.1, True), (0.1, NEVER_S, False)])
def test_a_half_written_sign_of_life_is_silence_after_the_last_whole_one(start_s, silent_s, ends):
    """A planner stopped while it wrote one is silent from the one before on, and not one that is still starting."""
    link = Bench(4).link
    link.live(0)
    kinds = watched(link, Patience(start_s, silent_s), lambda generation: ByHand(True))
    assert kinds(2)[:2] == ["started", "ready"]
    if ends:
        link.beat._sequence[0] |= 1
        assert kinds(3)[2] == "hung"
    else:
        link.live(0)
        link.beat._sequence[0] |= 1
        time.sleep(0.5)
        assert kinds(2) == ["started", "ready"]
    link.order(link.ordered()._replace(stop=True))


def test_planners_that_come_up_and_leave_no_plan_are_given_up_on():
    """A plan that was taken counts, and being warm does not."""
    bench = Bench(4)

    def start(generation: int) -> ByHand:
        bench.link.live(generation)
        if generation == 1:
            bench.link.accept(plan_of(bench, 0, [0], generation=1))
        return ByHand(False)

    kinds = watched(bench.link, Patience(), start)
    # One is forgotten for the plan of the second; that and the two after it are three.
    assert kinds(13) == ["started", "ready", "died"] * 4 + ["gave up"]
    bench.link.order(bench.link.ordered()._replace(stop=True))


def test_orders_and_what_to_read_again_while_they_are_written():
    """What is half-written is not taken for nothing."""
    bench = Bench(6)
    bench.begin()
    bench.link.show(1, 0, seen_at(0), SAFE)
    bench.link.accept(plan_of(bench, 2, [0, 2], generation=3))
    assert bench.link.taken_of() == 3
    orders, thinker = bench.link.ordered(), bench.thinker()
    bench.link.orders._sequence[0] |= 1
    assert bench.link.ordered() == orders
    bench.link.accepted._sequence[0] |= 1
    assert bench.link.to_read_again(1) is None
    thinker.begin(1)
    assert thinker.episode == 0
    bench.link.accept(plan_of(bench, 2, [0, 2], generation=3))
    np.testing.assert_array_equal(np.flatnonzero(bench.link.to_read_again(1)), [0, 2])
    assert not bench.link.to_read_again(2).any()
    thinker.begin(1)
    assert thinker.episode == 1
