"""Harm is done as often as it is asked for, to the planner alone, and never twice before a plan was taken."""

import collections
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from envs.patrol import Patrol
from experiments.layouts import PATROL
from hierarchy.control.harm import KINDS, LONGEST_WAIT, Harm
from hierarchy.control.link import Arrived, Link, Orders
from hierarchy.control.monitor import Monitor
from hierarchy.control.records import record_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the state of a process is read from /proc")


class Sleeper:
    """A planner that only sleeps, and whose signs of life and plans the test writes."""

    def __init__(self):
        world = Patrol()
        self.link = Link(PATROL, world.observation_spec(), world.action_spec(), 8, 5)
        self.link.order(Orders(1, False, -1))
        self.generation, self.taken, self.process = -1, 0, None

    def start(self) -> None:
        self.end()
        self.process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        self.generation += 1
        beat = {"generation": self.generation, "at": time.monotonic_ns(), "process": self.process.pid}
        self.link.beat.write(record_of(self.link.beat.dtype, beat))

    def take(self) -> None:
        """Its plan is taken."""
        plan = Arrived(1, self.generation, 0, 0, 0, 0, np.arange(8) == 0, np.ones(5, np.float32))
        self.link.publish(plan)
        self.link.accept(plan)
        self.taken += 1

    def state(self) -> str:
        """R or S, T where it is stopped, Z where it is dead."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def sleeper():
    made = Sleeper()
    yield made
    made.end()


def until(reached) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


def test_every_kind_of_harm_does_what_it_says(sleeper):
    monitor, times = Monitor(1, 0.0), 40
    harm, done = Harm(sleeper.link, monitor, times, seed=3), collections.Counter()
    sleeper.start()
    for number in range(times):
        sleeper.take()
        sequence, _ = sleeper.link.found(0)
        for row in range(LONGEST_WAIT + 1):
            harm.after_tick(row, sleeper.taken)
            if len(monitor.incidents) > number:
                break
        kind = monitor.incidents[-1].kind.removeprefix("harm: ")
        assert len(monitor.incidents) == number + 1
        done[kind] += 1
        if kind == "scribble":
            assert sleeper.link.found(0) is None
            # At work, asleep, or waiting for memory: not stopped, nor dead.
            assert sleeper.state() in "RSD"
        elif kind == "kill":
            until(lambda: sleeper.state() == "Z")
        else:
            until(lambda: sleeper.state() == "T")
        if kind == "corrupt":
            forged = sleeper.link.found(sequence)[1]
            assert forged.generation == sleeper.generation
            assert not (np.isfinite(forged.reading).all() and forged.read[forged.tick])
        # Nothing more until a plan is taken; a paused one goes on by itself.
        for row in range(2 * LONGEST_WAIT):
            harm.after_tick(row, sleeper.taken)
        assert len(monitor.incidents) == number + 1
        assert not harm.over
        if kind == "pause":
            until(lambda: harm.after_tick(0, sleeper.taken) or sleeper.state() in "RS")
        elif kind != "scribble":
            sleeper.start()
            # Until the new one's plan is taken, it is left alone.
            for row in range(2 * LONGEST_WAIT):
                harm.after_tick(row, sleeper.taken + 1)
            assert len(monitor.incidents) == number + 1
    assert set(done) == set(KINDS)
    sleeper.take()
    harm.after_tick(0, sleeper.taken)
    assert harm.over
    for row in range(2 * LONGEST_WAIT):
        sleeper.take()
        harm.after_tick(row, sleeper.taken)
    assert len(monitor.incidents) == times


def test_it_harms_nobody_while_there_is_no_planner(sleeper):
    harm = Harm(sleeper.link, monitor := Monitor(1, 0.0), 3)
    for row in range(5 * LONGEST_WAIT):
        harm.after_tick(row, row)
    assert not monitor.incidents
