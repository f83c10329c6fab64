"""The agent against the wall clock: a policy like the simulated one, whose planner runs beside it and is never waited for.

Within a tick: wait for the deadline; take in the observation, show it to the planner; look for a newer plan; decode the action.
Towards the end of the wait the last tick may be rehearsed: what a tick reads and runs is then in the processor's caches, out of
which a pause drives it.

What was acted on is kept, so that the run can be replayed: `timeline_of` is its timeline.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import haiku as hk
import jax
import numpy as np
from dm_env import specs
from jax.flatten_util import ravel_pytree

from hierarchy.control.acting import Acting, ahead_of_time, lay_out
from hierarchy.control.agent import AgentState, act, begin
from hierarchy.control.clock import Clock
from hierarchy.control.link import NOBODY, WARM_UP, Arrived, Link, Orders, Refusal
from hierarchy.control.monitor import Monitor
from hierarchy.corpus.reading import Pieces
from hierarchy.model.network import Reading
from hierarchy.timeline import NO_PLAN, Timeline, recorded

POLL_S, FIRST_S = 0.0005, 60
SPARE = 2.0
"""How long before a deadline a rehearsal begins, by how long the last tick took to decode."""


@dataclasses.dataclass(frozen=True)
class Late:
    """What is done while the plan is older than `max_age` ticks, or there has been none for as long.

    then: "hold" goes on with it; "no_plan" acts as before the first plan; "stop" executes the safe action, and goes on with the
    controller's own when a fresh plan comes.
    """

    then: Literal["hold", "no_plan", "stop"] = "hold"
    max_age: int = 0

    def __post_init__(self) -> None:
        if self.then not in ("hold", "no_plan", "stop"):
            raise ValueError(f"then is {self.then!r}: hold, no_plan or stop")
        if self.max_age < 0 or (self.then == "hold") != (self.max_age == 0):
            raise ValueError(f"max_age {self.max_age} with {self.then!r}: hold has none, no_plan and stop at least 1 tick")


class Update(NamedTuple):
    """One plan that was taken. observed, taken: ticks. began, ended: of the update, ns. held_back: ns of that on purpose."""

    observed: int
    taken: int
    began: int
    ended: int
    held_back: int


class Held(NamedTuple):
    """A plan that the controller took. tick: that it observed. read: bool [horizon], what its planner had read. reading: as the
    controller's layers read it, entries [1, ...]."""

    tick: int
    read: np.ndarray
    reading: Reading


class RunningState(NamedTuple):
    """agent: the controller's part of an agent's state. plan: the newest one taken."""

    agent: AgentState
    plan: Held | None


@dataclasses.dataclass
class Flight:
    """What one episode acted on, tick by tick, beside its observations and executed actions.

    taken: (tick, bool [horizon]) of every plan taken: when, and what its planner had read. updates: of the same. decoded: [A]
    each, the controller's own actions, which differ from those executed where it was stopped. logits: [A, classes] each. without:
    ticks at which a plan was there and not used. stopped: ticks at which the safe action was executed.
    """

    taken: list[tuple[int, np.ndarray]] = dataclasses.field(default_factory=list)
    updates: list[Update] = dataclasses.field(default_factory=list)
    decoded: list[np.ndarray] = dataclasses.field(default_factory=list)
    logits: list[np.ndarray] = dataclasses.field(default_factory=list)
    without: list[int] = dataclasses.field(default_factory=list)
    stopped: list[int] = dataclasses.field(default_factory=list)


def timeline_of(taken: Sequence[tuple[int, np.ndarray]]) -> Timeline:
    """Returns the timeline of an episode that took these plans. An update whose plan was overtaken before anybody saw it is ready
    with the one that overtook it, which is newer, so no tick sees it."""
    observed = np.flatnonzero(taken[-1][1]) if taken else np.zeros(0, int)
    ready = [next(tick for tick, read in taken if read[update]) for update in observed]
    return recorded(observed, ready)


class Within(Protocol):
    """A planner that is called in the controller's own loop."""

    def begin(self, episode: int) -> None:
        """Starts on an episode, before its tick 0."""

    def plan(self) -> None:
        """Publishes a plan of the newest tick, if one is due."""


class RealTimeAgent:
    """A policy of one episode at a time: `begin([seed])`, then `step(state, observations)`, which waits for its tick.

    link: to the planner beside it; None for a model without one. safe: the action [A] (discrete: a number) that is executed when
    stopped, in the action spec. horizon: ticks of the longest episode. monitor: room for all episodes' ticks.
    wait_for_first: tick 0 waits for its plan, and the clock starts then. stamp: returns when the newest observation was made
    (ns), where the world knows. due: returns when a tick on it is due (ns), where the world has a clock of its own.
    within: the planner, where it is called in this loop and waited for: after every observation, before a plan is looked for.
    rehearse: whether the last tick is gone through once more, to no effect, before a deadline that leaves the time for it.
    """

    def __init__(
        self,
        acting: Acting,
        params: hk.Params,
        action_spec: specs.Array,
        *,
        clock: Clock,
        monitor: Monitor,
        horizon: int,
        link: Link | None = None,
        late: Late = Late(),
        safe: np.ndarray | float = 0.0,
        tokenizer: Pieces | None = None,
        wait_for_first: bool = False,
        stamp: Callable[[], int] | None = None,
        due: Callable[[], int] | None = None,
        within: Within | None = None,
        rehearse: bool = False,
    ):
        if acting.layout.chunk > 1 or acting.layout.late:
            raise ValueError(
                "a layout whose actions are chunks or come late looks ahead of its ticks: real time takes one that does not"
            )
        if acting.layout.above:
            raise ValueError(
                f"layout {acting.layout.name!r} has {len(acting.layout.above)} planners above the planner: real time runs one"
            )
        has_planner = acting.network.config.planner is not None
        if has_planner != (link is not None):
            raise ValueError("a model with a planner needs a link to it, and a model without one has none")
        self.clock, self.monitor, self.flights = clock, monitor, []
        self._acting, self._weights = acting, lay_out(acting, params)
        self._spec, self._link, self._late = action_spec, link, late
        self._horizon, self._tokenizer = horizon, tokenizer
        self._stamp, self._due, self._within = stamp, due, within
        self._wait = wait_for_first and has_planner
        self.plans_taken = 0
        self._safe = np.asarray(safe, action_spec.dtype)
        self._row, self._sequence, self._refused, self._generation = -1, 0, NOBODY, NOBODY
        # For rehearsals: a cache of no consequence; the last tick's state before it, the plan used, and how long ahead to begin.
        self._rehearses, self._scratch, self._last = rehearse, None, None
        self._no_plan = self._unpacked = None
        if has_planner:
            self._no_plan = jax.tree.map(lambda leaf: leaf[None], acting.no_plan(params).reading)
            self._unpacked = jax.jit(ravel_pytree(self._no_plan)[1])

    def warm_up(self, observations: Mapping[str, np.ndarray]) -> None:
        """Compiles: ticks on this observation, with a plan and without; nothing stays. The planner warms up on it too."""
        if self._link is not None:
            self._link.show(WARM_UP, 0, observations, self._safe)
        self._acting = ahead_of_time(self._acting, self._weights)
        state = begin(self._acting, self._weights.update, [0], self._tokenizer)
        plan = None if self._link is None else self._unpacked(packed(self._no_plan))
        for tick, reading in enumerate((self._no_plan, plan, self._no_plan)):
            state.history.append(observations, self._safe[None] if tick else None)
            _, state = act(self._acting, self._weights.tick, state, reading, tick - 1)
            np.asarray(state.decoded.logits)
        self._scratch = state.controller

    def begin(self, seeds: Sequence[int]) -> RunningState:
        """Returns the state before tick 0; ValueError for other than one seed."""
        if len(seeds) != 1:
            raise ValueError(f"{len(seeds)} episodes at once: in real time there is one")
        self.flights.append(Flight())
        self._last = None
        if self._link is not None:
            self._link.order(Orders(len(self.flights), False, self._refused))
        if self._within is not None:
            self._within.begin(len(self.flights))
        return RunningState(begin(self._acting, self._weights.update, seeds, self._tokenizer), None)

    def step(self, state: RunningState, observations: Mapping[str, np.ndarray]) -> tuple[np.ndarray, RunningState]:
        """Returns the action [1, A] (discrete: int [1]) to execute at this tick, once it is time, and the state after it."""
        now = state.agent.tick
        if now >= self._horizon:
            raise ValueError(f"tick {now} is past the agent's horizon of {self._horizon} ticks: give it a longer one")
        if now:
            self._close(time.monotonic_ns())
            if self._due is not None:
                self.clock.rephase(now, self._due())
        else:
            self.clock.start()
        self._rehearse(now)
        woken, plan = self.clock.wait(now), state.plan
        self._observe(state.agent, observations)
        observed = time.monotonic_ns()
        if self._within is not None:
            self._within.plan()
        if now == 0 and self._wait:
            plan = self._first()
            self.clock.start()
            woken = observed = self.clock.deadline(0)
        plan = self._newest(plan, now)
        planned = time.monotonic_ns()
        stale = self._stale(plan, now)
        used = None if stale and self._late.then == "no_plan" else plan
        action, agent = self._act(state.agent, used)
        computed = time.monotonic_ns()
        self._last = state.agent, used, round(SPARE * (computed - planned))
        self._keep(now, plan, used, agent, action)
        if stale and self._late.then == "stop":
            self._flight.stopped.append(now)
            action = self._safe[None]
        stamped = woken if self._stamp is None else self._stamp()
        moments = (self.clock.deadline(now), woken, observed, planned, computed, 0, stamped)
        self._row += 1
        ticks = (now, *(NO_PLAN if each is None else each.tick for each in (used, plan)))
        self.monitor.rows[self._row] = (*moments, len(self.flights), *ticks)
        return action, RunningState(agent._replace(previous_action=action), plan)

    def finish(self) -> None:
        """Notes that the last action has been executed; call it when an episode has ended."""
        self._close(time.monotonic_ns())

    @property
    def row(self) -> int:
        """The monitor's row of the newest tick."""
        return self._row

    @property
    def _flight(self) -> Flight:
        return self.flights[-1]

    def _close(self, acted: int) -> None:
        self.monitor.rows["acted"][self._row] = acted

    def _observe(self, agent: AgentState, observations: Mapping[str, np.ndarray]) -> None:
        agent.history.append(observations, agent.previous_action)
        if self._link is not None:
            before = self._safe if agent.previous_action is None else agent.previous_action[0]
            self._link.show(len(self.flights), agent.tick, observations, before)

    def _rehearse(self, now: int) -> None:
        """Goes through the last tick once more, if there is time for it before this one."""
        if not self._rehearses or self._scratch is None or self._last is None:
            return
        before, used, lead_ns = self._last
        if self.clock.approach(now, lead_ns):
            _, after = self._act(before._replace(controller=self._scratch), used)
            self._scratch = after.controller

    def _act(self, agent: AgentState, used: Held | None) -> tuple[np.ndarray, AgentState]:
        reading, since = (self._no_plan, -1) if used is None else (used.reading, agent.tick - used.tick)
        action, agent = act(self._acting, self._weights.tick, agent, reading, since)
        return action.astype(self._spec.dtype), agent

    def _keep(self, now: int, plan: Held | None, used: Held | None, agent: AgentState, action: np.ndarray) -> None:
        self._flight.decoded.append(action[0])
        self._flight.logits.append(np.asarray(agent.decoded.logits)[0])
        if used is not plan:
            self._flight.without.append(now)

    def _stale(self, plan: Held | None, now: int) -> bool:
        return bool(self._late.max_age) and (now + 1 if plan is None else now - plan.tick) > self._late.max_age

    def _newest(self, plan: Held | None, now: int) -> Held | None:
        """Returns the plan that is to be acted on from this tick: one that has just been found, if sound, or the old one."""
        found = None if self._link is None else self._link.found(self._sequence)
        if found is None:
            return plan
        self._sequence, arrived = found
        older, self._generation = arrived.generation < self._generation, max(self._generation, arrived.generation)
        if arrived.episode != len(self.flights) or arrived.generation <= self._refused or older:
            return plan
        refusal = _refusal(arrived, plan, now)
        if refusal is not None:
            self._refused = arrived.generation
            self._link.order(Orders(len(self.flights), False, self._refused))
            detail = f"tick {now}: a plan of tick {arrived.tick}, generation {arrived.generation}, is {refusal}"
            self.monitor.happened(time.monotonic_ns(), self._row + 1, "plan refused", detail)
            return plan
        self._link.accept(arrived)
        self._flight.taken.append((now, arrived.read))
        self._flight.updates.append(Update(arrived.tick, now, arrived.began, arrived.ended, arrived.held_back))
        self.plans_taken += 1
        return Held(arrived.tick, arrived.read, self._unpacked(arrived.reading))

    def _first(self) -> Held:
        until = time.monotonic() + FIRST_S
        while (plan := self._newest(None, 0)) is None:
            if time.monotonic() > until:
                raise RuntimeError(f"no first plan after {FIRST_S} s: do not wait for it, or see what became of the planner")
            time.sleep(POLL_S)
        return plan


def _refusal(arrived: Arrived, plan: Held | None, now: int) -> Refusal | None:
    """Returns what is wrong with a plan. It is sound if it is finite and its planner read what that of the plan before had read,
    and later ticks up to the plan's own."""
    if not np.isfinite(arrived.reading).all():
        return "not finite"
    since = 0 if plan is None else plan.tick + 1
    if not since <= arrived.tick <= now:
        return "of another history"
    continues = plan is None or np.array_equal(arrived.read[:since], plan.read[:since])
    own = arrived.read[arrived.tick] and not arrived.read[arrived.tick + 1 :].any()
    return None if continues and own else "of another history"


def packed(reading: Reading) -> np.ndarray:
    """Returns float32 [N]: all that the controller's layers read of one plan, in the order of the tree."""
    return np.concatenate([np.ravel(np.asarray(leaf, np.float32)) for leaf in jax.tree.leaves(reading)])


def reading_size(acting: Acting, params: hk.Params) -> int:
    """Returns how many floats the controller's layers read of one plan."""
    reading = jax.eval_shape(acting.no_plan, params).reading
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(reading))
