"""The planner beside the controller: in a process of its own under a watcher, or in a thread where processes cannot be had. Or in
the controller's own loop, which then waits for it: `PlannerWithin`, to compare with.

    controller's process          watcher                                planner's process
    writes what it sees     |     starts the planner; again when it   |  reads what comes, thinks every `ratio` ticks
    finds the newest plan   |     died, fell silent or was refused    |  or as often as it can, leaves its plan to be found

A planner that starts again in the middle of an episode **reads again** exactly the ticks that the plans taken so far rest on, and
then goes on: its cache is what it would have been had it thought at those ticks alone, so the run's timeline has a gap there and
nothing else. The controller refuses a plan that rests on any other history.
"""

import dataclasses
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from typing import Literal

import haiku as hk
import numpy as np

from hierarchy.control.acting import Acting
from hierarchy.control.agent import AgentState, begin, think
from hierarchy.control.link import WARM_UP, Arrived, Event, Link, Orders
from hierarchy.control.monitor import Line, Monitor
from hierarchy.control.priority import lower_priority, pin
from hierarchy.control.real_time import packed
from hierarchy.corpus.reading import Pieces

Parts = tuple[Acting, hk.Params, Pieces | None]
"""What acts: compiled functions, weights, tokenizer."""
POLL_S, WATCH_S = 0.0005, 0.02
FAILURES = 3


@dataclasses.dataclass(frozen=True)
class Pace:
    """ratio: ticks from one observation to the next at least; 1 for as often as it can. least_s: seconds that an update takes at
    least, in place of a larger planner or one far away. yielding: gives way to all other programs once it is warm.

    duty: share of the time that it computes, to measure what that does to the controller: between its updates it makes others
    that nobody gets, and rests for the remainder; 0 for a planner that does nothing, None for one that computes when it has to.
    late_share, late_s: so large a share of plans, drawn at random, is held back by up to so many seconds.
    """

    ratio: int = 8
    least_s: float = 0.0
    yielding: bool = False
    duty: float | None = None
    late_share: float = 0.0
    late_s: float = 0.0

    def __post_init__(self) -> None:
        if self.ratio < 1 or self.least_s < 0:
            raise ValueError(f"ratio {self.ratio} is at least 1, and least_s {self.least_s} at least 0")
        if self.duty is not None and not 0 <= self.duty <= 1:
            raise ValueError(f"a duty of {self.duty:g}: it is a share of the time, from 0 to 1")
        if not 0 <= self.late_share <= 1 or self.late_s < 0 or (self.late_share > 0) != (self.late_s > 0):
            raise ValueError(
                f"a share of {self.late_share:g} of plans held back by up to {self.late_s:g} s: a share from 0 to 1, and seconds "
                "where it is not 0"
            )

    def due(self, newest: int, last: int) -> bool:
        """Returns whether there is to be an update of the newest tick, after one of tick `last` (below 0: none yet)."""
        return newest > last and (last < 0 or newest - last >= self.ratio)


@dataclasses.dataclass(frozen=True)
class Patience:
    """Seconds without a sign of life before a planner is started anew: while it starts, and afterwards (longer than an update
    computes)."""

    start_s: float = 300.0
    silent_s: float = 2.0


def serve(make: Callable[[], Parts], link: Link, pace: Pace, generation: int, alive: Callable[[], bool]) -> None:
    """Plans until it is told to stop, or nobody is `alive` to plan for."""
    acting, params, tokenizer = make()
    _warm_up(acting, params, tokenizer, link, alive)
    if pace.yielding:
        lower_priority()
    link.live(generation)
    thinker, late = Thinker(acting, params, tokenizer, link, generation), np.random.default_rng(generation)
    while alive():
        link.live(generation)
        orders = link.ordered()
        if orders.stop:
            return
        if pace.duty == 0:
            time.sleep(WATCH_S)
            continue
        if orders.episode != thinker.episode:
            thinker.begin(orders.episode)
        newest, began = thinker.absorb(), time.monotonic()
        if pace.due(newest, thinker.last):
            plan = thinker.plan(pace.least_s, late.uniform(0, pace.late_s) if late.random() < pace.late_share else 0.0)
            # One that was given up on while it thought leaves nothing behind.
            if alive():
                link.publish(plan)
        elif pace.duty:
            thinker.rehearse()
        else:
            thinker.prepare()
            time.sleep(POLL_S)
        if pace.duty:
            rest(link, generation, (time.monotonic() - began) * (1 / pace.duty - 1))


def rest(link: Link, generation: int, seconds: float) -> None:
    """Does nothing for so long, and gives signs of life."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        link.live(generation)
        time.sleep(min(left, WATCH_S))


class Thinker:
    """One planner in one episode: what it has been shown, and what of that it has read."""

    def __init__(self, acting: Acting, params: hk.Params, tokenizer: Pieces | None, link: Link, generation: int):
        self._acting, self._params, self._tokenizer = acting, params, tokenizer
        self._link, self._generation = link, generation
        self._fresh: AgentState | None = None
        self._spare: tuple[AgentState, tuple[dict[str, np.ndarray], np.ndarray]] | None = None
        self._start(WARM_UP, np.zeros(link.horizon, bool))

    def prepare(self) -> None:
        """Makes the state that the next episode begins with, which takes some ms, unless it is there already."""
        if self._fresh is None:
            self._fresh = begin(self._acting, self._params, [0], self._tokenizer)

    def begin(self, episode: int) -> None:
        """Starts on an episode, unless the controller is writing just now what is to be read again: then ask again."""
        again = self._link.to_read_again(episode)
        if again is not None:
            self._start(episode, again)

    def _start(self, episode: int, again: np.ndarray) -> None:
        self.prepare()
        self.episode, self.last = episode, -1
        self._read, self._again = np.zeros(self._link.horizon, bool), again
        self._state, self._fresh = self._fresh, None

    def absorb(self) -> int:
        """Takes in what has come, reads again what has to be, and returns the newest tick."""
        history = self._state.history
        while self.episode != WARM_UP and (row := self._link.seen(history.ticks, self.episode)) is not None:
            tick = history.ticks
            history.append(row[0], row[1] if tick else None)
            self._state = self._state._replace(tick=tick)
            if self._again[tick]:
                self._think()
                self._link.live(self._generation)
        return history.ticks - 1

    def plan(self, least_s: float = 0.0, late_s: float = 0.0) -> Arrived:
        """Returns the plan of the newest tick, as it is to be published: after so long at least, and late by so much."""
        began = time.monotonic_ns()
        reading = self._think()
        rest(self._link, self._generation, least_s - (time.monotonic_ns() - began) / 1e9 + late_s)
        ended, held_back = time.monotonic_ns(), round(late_s * 1e9)
        return Arrived(self.episode, self._generation, self.last, began, ended, held_back, self._read.copy(), reading)

    def rehearse(self) -> None:
        """Computes what an update computes, on one first observation over and over: the plan is nobody's."""
        if self._spare is None or self._spare[0].history.ticks == self._link.horizon:
            row = self._link.seen(0)
            if row is None:
                return
            self._spare = begin(self._acting, self._params, [0], self._tokenizer), row
        # That of a later episode would be told beside it, and words of many episodes have no room.
        state, (seen, action) = self._spare
        state.history.append(seen, action if state.history.ticks else None)
        plan, state = think(self._acting, self._params, state._replace(tick=state.history.ticks - 1))
        self._spare = state, (seen, action)
        packed(plan.reading)

    def _think(self) -> np.ndarray:
        plan, self._state = think(self._acting, self._params, self._state)
        self.last = self._state.tick
        self._read[self.last] = True
        return packed(plan.reading)


def _warm_up(acting: Acting, params: hk.Params, tokenizer: Pieces | None, link: Link, alive: Callable[[], bool]) -> None:
    """Compiles: two updates on the observation that is there, with a tick between them to catch up on; nothing of it stays."""
    while (row := link.seen(0)) is None:
        if not alive():
            return
        time.sleep(POLL_S)
    state = begin(acting, params, [0], tokenizer)
    for tick in range(3):
        state.history.append(row[0], row[1] if tick else None)
        state = state._replace(tick=tick)
        if tick != 1:
            plan, state = think(acting, params, state)
            packed(plan.reading)


def _serve_in_process(make: Callable[[], Parts], link: Link, pace: Pace, generation: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watcher = multiprocessing.parent_process()
    serve(make, link, pace, generation, watcher.is_alive)


class _Watch:
    """The watcher's own loop. start: from the number of the start to a planner that runs."""

    def __init__(self, link: Link, patience: Patience, start: Callable[[int], "_Running"], monitor: Monitor | None):
        self._link, self._patience, self._start, self._monitor = link, patience, start, monitor
        self._noted, self._generation, self._failures = 0, 0, 0

    def run(self, alive: Callable[[], bool]) -> None:
        planner, ready, line = None, False, None if self._monitor is None else Line(self._monitor)
        while alive() and not (orders := self._link.ordered()).stop:
            if planner is None and self._failures < FAILURES:
                began, lived, ready = time.monotonic_ns(), None, False
                planner = self._started()
            if planner is not None:
                # A sign of life that is being written, or was left half-written, is no reason to forget the one before.
                lived = self._link.lived(self._generation) or lived
                if lived is not None and not ready:
                    ready = True
                    self._note("ready", f"generation {self._generation} after {(lived - began) / 1e9:.1f} s")
                if self._link.taken_of() == self._generation:
                    self._failures = 0
                wrong = self._wrong(planner, began, lived, orders)
                if wrong is not None:
                    planner.end()
                    planner = None
                    self._failed(*wrong)
            time.sleep(WATCH_S)
            if line is not None:
                line.renew()
        if planner is not None:
            planner.end()

    def _started(self) -> "_Running | None":
        try:
            planner = self._start(self._generation)
        except OSError as error:
            self._failed("died", f"generation {self._generation} could not be started: {error}")
            return None
        self._note("started", f"generation {self._generation} as {planner.name()}")
        return planner

    def _failed(self, kind: str, detail: str) -> None:
        self._note(kind, detail)
        self._generation, self._failures = self._generation + 1, self._failures + 1
        if self._failures == FAILURES:
            self._note("gave up", f"{FAILURES} planners in a row left no plan that was taken: their errors are above")

    def _wrong(self, planner: "_Running", began: int, lived: int | None, orders: Orders) -> tuple[str, str] | None:
        who = f"generation {self._generation}"
        if not planner.is_alive():
            return "died", f"{who}: {planner.why()}"
        if orders.refused == self._generation:
            return "refused", f"{who}: the controller refused its plan"
        silent_s = (time.monotonic_ns() - (began if lived is None else lived)) / 1e9
        patience = self._patience.start_s if lived is None else self._patience.silent_s
        return ("hung", f"{who}: silent for {silent_s:.1f} s") if silent_s > patience else None

    def _note(self, kind: str, detail: str) -> None:
        self._link.note(self._noted, kind, detail)
        self._noted += 1


class _Running:
    """A planner's process."""

    def __init__(self, make: Callable[[], Parts], link: Link, pace: Pace, generation: int):
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve_in_process, args=(make, link, pace, generation), daemon=True)
        self._process.start()

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def name(self) -> str:
        return f"process {self._process.pid}"

    def end(self) -> None:
        # Not terminate: a stopped process would not hear it.
        self._process.kill()
        self._process.join()

    def why(self) -> str:
        return f"exit code {self._process.exitcode}"


class _RunningThread(_Running):
    """A planner's thread. It cannot be ended from outside: one that hangs is left behind, and leaves no plan if it wakes up; were
    it just about to, the controller takes none of an older start than it has seen one of."""

    def __init__(self, make: Callable[[], Parts], link: Link, pace: Pace, generation: int):
        self._wanted, self._error = True, "it left"
        self._thread = threading.Thread(target=self._serve, args=(make, link, pace, generation), daemon=True)
        self._thread.start()

    def _serve(self, make: Callable[[], Parts], link: Link, pace: Pace, generation: int) -> None:
        try:
            serve(make, link, pace, generation, lambda: self._wanted)
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def name(self) -> str:
        return "a thread"

    def end(self) -> None:
        self._wanted = False
        self._thread.join(WATCH_S)

    def why(self) -> str:
        return self._error


def _watch_process(
    make: Callable[[], Parts], link: Link, pace: Pace, patience: Patience, where: list[int], monitor: Monitor | None
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pin(where)
    controller = multiprocessing.parent_process()
    _Watch(link, patience, lambda generation: _Running(make, link, pace, generation), monitor).run(controller.is_alive)


class PlannerWithin:
    """A planner in the controller's own loop, whose ticks wait for it. It is begun before an episode's tick 0."""

    def __init__(self, make: Callable[[], Parts], link: Link, pace: Pace):
        self._acting, self._params, self._tokenizer = make()
        self._link, self._pace = link, pace
        self._thinker: Thinker | None = None

    def warm_up(self) -> None:
        """Compiles, on the observation that is there."""
        _warm_up(self._acting, self._params, self._tokenizer, self._link, lambda: True)
        self._thinker = Thinker(self._acting, self._params, self._tokenizer, self._link, 0)

    def begin(self, episode: int) -> None:
        """Starts on an episode."""
        self._thinker.begin(episode)

    def plan(self) -> None:
        """Publishes the plan of the newest tick, if an update is due."""
        if self._pace.due(self._thinker.absorb(), self._thinker.last):
            self._link.publish(self._thinker.plan(self._pace.least_s))


class PlannerBeside:
    """A planner beside this process while it is entered, watched over.

    make: returns what acts, called where the planner runs; for a process it must be a function of a module, or a partial of one.
    where: the planner's cores. place: "process", or "thread" as the portable fallback, which shares this process' interpreter.
    monitor: shows its line in the terminal once a second.
    """

    def __init__(
        self,
        make: Callable[[], Parts],
        link: Link,
        *,
        pace: Pace = Pace(),
        patience: Patience = Patience(),
        where: list[int] = (),
        place: Literal["process", "thread"] = "process",
        monitor: Monitor | None = None,
    ):
        self._link, self._gone = link, None
        if place == "process":
            self._watcher = multiprocessing.get_context("spawn").Process(
                target=_watch_process, args=(make, link, pace, patience, list(where), monitor)
            )
        else:
            watch = _Watch(link, patience, lambda generation: _RunningThread(make, link, pace, generation), monitor)
            self._watcher = threading.Thread(target=watch.run, args=(lambda: True,), daemon=True)

    def __enter__(self) -> "PlannerBeside":
        self._watcher.start()
        return self

    def __exit__(self, *_) -> None:
        self._link.order(self._link.ordered()._replace(stop=True))
        self._watcher.join(5)
        if isinstance(self._watcher, multiprocessing.process.BaseProcess) and self._watcher.is_alive():
            self._watcher.kill()
            self._watcher.join()

    def wait_ready(self, timeout_s: float = 300.0) -> None:
        """Returns once the planner is warm; RuntimeError if it gave up, its watcher is gone, or it takes too long."""
        until = time.monotonic() + timeout_s
        while "ready" not in (kinds := {event.kind for event in self.events()}):
            if "gave up" in kinds or not self._watcher.is_alive():
                raise RuntimeError(f"the planner did not start: {self.events()[-1].detail if self.events() else 'no watcher'}")
            if time.monotonic() > until:
                raise RuntimeError(f"the planner is not ready after {timeout_s:g} s: give it more time or a smaller preset")
            time.sleep(WATCH_S)

    def events(self) -> list[Event]:
        """Returns what became of the planner so far, and of its watcher if that left before it was told to."""
        if self._gone is None and not self._watcher.is_alive() and not self._link.ordered().stop:
            self._gone = Event(time.monotonic_ns(), "watcher gone", "nobody starts the planner again: its own error is above")
        return self._link.events() + ([] if self._gone is None else [self._gone])
