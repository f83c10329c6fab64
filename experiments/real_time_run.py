"""A real-time run, composed from its config and flown in this process: what `experiments.real_time` and others report on."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import dm_env
import jax
import numpy as np
import tyro
from dm_env import specs

from envs.loop import episodes, first_step, flat_spec, run, stack
from experiments.evaluate import FIRST_SEED, load
from experiments.tasks import find, schema_of
from experiments.train import cache_compilations
from hierarchy.control import priority, usage
from hierarchy.control.acting import compile_acting
from hierarchy.control.awake import Awake
from hierarchy.control.clock import Clock
from hierarchy.control.driver import Driven
from hierarchy.control.harm import Harm
from hierarchy.control.link import Event, Link
from hierarchy.control.monitor import Monitor, misses, shown, summary
from hierarchy.control.planner_process import Pace, Parts, Patience, PlannerBeside, PlannerWithin
from hierarchy.control.real_time import Late, RealTimeAgent, reading_size
from hierarchy.corpus import text
from hierarchy.episode import Episode
from hierarchy.model.config import PRESETS
from hierarchy.model.network import build

WORDINGS = 300
"""Resets whose words a tokenizer for random weights is trained on."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """run: folder of a training run; without one the weights are random, of a `preset`."""

    run: Path | None = None
    preset: str = "demo"


@dataclasses.dataclass(frozen=True)
class RealTimeConfig:
    """out: folder of what is written, new or empty. hz: ticks a second; 0 for as fast as possible. episodes: one after another,
    from `seed` on. seconds: of ticks, in place of a number of episodes; the last is cut off. ticks: at which an episode is cut
    off; none for its own end. ratio: ticks between the planner's observations, at least; 1 for as often as it can. think_s: what
    an update takes at least, in place of a larger planner or one far away.

    planner: beside in a process, or in a thread where there can be none; or in the controller's own loop, which waits for it, to
    compare with. world: here, or in a process that goes on by its own clock as a robot does. wait_for_first: tick 0 waits for the
    first plan. priority: of the controller, where real-time priority is permitted. awake: whether its core, where it has one to
    itself, is kept from halting between ticks. rehearse: whether it goes through the last tick once more before each deadline, so
    that its caches are warm: a shorter tick for twice the computing.

    duty: share of the time that the planner computes, needed or not; 0 for one that does nothing. late_share, late_s: share of
    plans, drawn at random, that are held back by up to so many seconds. harm: how often the planner is killed, stopped, paused,
    corrupted or written over at random; the run ends with the episode in which the last of it is over.
    """

    out: Path
    weights: tyro.conf.OmitArgPrefixes[Weights] = Weights()
    task: str = "patrol"
    hz: float = 25.0
    episodes: int = 1
    seconds: float | None = None
    ticks: int | None = None
    seed: int = FIRST_SEED
    ratio: int = 8
    think_s: float = 0.0
    late: Late = Late()
    patience: Patience = Patience()
    planner: Literal["process", "thread", "loop"] = "process"
    world: Literal["here", "process"] = "here"
    wait_for_first: bool = False
    priority: Literal["real_time", "usual"] = "real_time"
    awake: bool = True
    rehearse: bool = False
    duty: float | None = None
    late_share: float = 0.0
    late_s: float = 0.0
    harm: int = 0

    @property
    def pace(self) -> Pace:
        """Of the planner."""
        return Pace(self.ratio, self.think_s, self.planner != "loop", self.duty, self.late_share, self.late_s)

    @property
    def limit(self) -> int | None:
        """Ticks of the whole run, where that is not a number of episodes."""
        return None if self.seconds is None else round(self.seconds * self.hz)


def check(config: RealTimeConfig) -> None:
    """Raises ValueError for what cannot be."""
    if config.hz < 0:
        raise ValueError(f"hz {config.hz:g}: ticks a second, or 0 to go as fast as possible")
    if config.seconds is not None and not (config.hz and config.seconds * config.hz >= 2):
        raise ValueError(f"seconds {config.seconds:g} at hz {config.hz:g}: ticks of a known length, and at least two of them")
    if config.ticks is not None and config.ticks < 1:
        raise ValueError(f"ticks {config.ticks}: of an episode, at least 1, or leave it out for the task's own")
    if config.harm < 0:
        raise ValueError(f"harm {config.harm}: how often, 0 or more")
    if config.harm and config.seconds is None:
        raise ValueError(f"harm {config.harm} needs seconds: the most that it may take, about ten each")
    if config.planner != "process" and config.harm:
        raise ValueError(f"harm {config.harm} with planner {config.planner!r}: it is for one in a process of its own")
    if config.planner == "loop" and (config.duty is not None or config.late_share):
        raise ValueError("planner 'loop' is waited for: a duty and late plans are for one beside the controller")
    if config.rehearse and config.planner != "process":
        raise ValueError(f"rehearse with planner {config.planner!r}: the two would wait for each other")
    _ = config.pace


def parts(weights: Weights, task: str, tokenizer: Path | None, cache: Path | None) -> Parts:
    """Returns what acts, loaded in the process that calls; the same one everywhere."""
    if cache is not None:
        cache_compilations(cache)
    if weights.run is not None:
        trained = load(weights.run)
        if trained.lookahead:
            raise ValueError(f"{weights.run} looks ahead of its ticks ({trained.name}): real time takes a run that does not")
        if task not in trained.facts["tasks"]:
            raise ValueError(f"{weights.run} was trained on {', '.join(trained.facts['tasks'])}, and not on {task!r}")
        return trained.acting(find(task).layout.name, "mean"), trained.params, trained.tokenizer
    if weights.preset not in PRESETS:
        raise ValueError(f"no preset {weights.preset!r}: there are {', '.join(PRESETS)}")
    words = text.Tokenizer.load(tokenizer) if tokenizer else None
    schema = schema_of((task,), words.pieces if words else 0, "two_rate")
    network = build(PRESETS[weights.preset], schema)
    return compile_acting(network, schema, find(task).layout.name, "mean"), network.init(jax.random.key(0)), words


def tokenizer_for(environment: dm_env.Environment, path: Path) -> Path | None:
    """Returns the file of a tokenizer trained on what the environment says at its resets; None if it says nothing."""
    spoken = [name for name, spec in flat_spec(environment).items() if isinstance(spec, specs.StringArray)]
    if not spoken:
        return None
    said = {str(first_step(environment, seed).observation[name]) for seed in range(WORDINGS) for name in spoken}
    path.parent.mkdir(parents=True, exist_ok=True)
    text.train(sorted(said), 400, path)
    return path


def safe_action(environment: dm_env.Environment) -> np.ndarray:
    """Returns the environment's own `safe_action()` where it has one; else the action nearest to nothing that its spec allows."""
    if hasattr(environment, "safe_action"):
        return np.asarray(environment.safe_action())
    spec = environment.action_spec()
    zero = np.zeros(spec.shape, spec.dtype)
    return np.clip(zero, spec.minimum, spec.maximum) if isinstance(spec, specs.BoundedArray) else zero


class Run:
    """A real-time run: what was composed for it, and after `fly` what happened.

    events: what became of the planner. planner_s, elsewhere_s: CPU seconds of the flight that the planner used (None where it is
    not one process throughout), and that went to neither the controller nor the planner. stolen_s: see `usage.stolen_s`. failed:
    what ended it, if something did.
    """

    def __init__(
        self,
        config: RealTimeConfig,
        make: Callable[[], Parts],
        environment: dm_env.Environment,
        tell: Callable[[str], None] = lambda line: None,
        awake: Awake | None = None,
    ):
        period_s = 1 / config.hz if config.hz else 0.0
        horizon = config.ticks or find(config.task).ticks
        self.config, self.environment, self._tell, self._awake = config, environment, tell, awake or Awake([])
        acting, params, tokenizer = make()
        self.network, self.safe = acting.network, safe_action(environment)
        self.monitor, self.clock = Monitor(config.limit or horizon * config.episodes, period_s), Clock(period_s)
        self.link = self.within = self.harm = None
        spec = environment.action_spec()
        if acting.network.config.planner is not None:
            size = reading_size(acting, params)
            self.link = Link(acting.layout, flat_spec(environment), spec, horizon, size)
            if config.planner == "loop":
                self.within = PlannerWithin(lambda: (acting, params, tokenizer), self.link, config.pace)
            if config.harm:
                self.harm = Harm(self.link, self.monitor, config.harm, config.seed)
        elif config.harm:
            raise ValueError(f"harm {config.harm} to a model that has no planner")
        self.agent = RealTimeAgent(
            acting,
            params,
            spec,
            clock=self.clock,
            monitor=self.monitor,
            horizon=horizon,
            link=self.link,
            late=config.late,
            safe=self.safe,
            tokenizer=tokenizer,
            wait_for_first=config.wait_for_first,
            stamp=(lambda: environment.stamped) if isinstance(environment, Driven) else None,
            due=(lambda: environment.due) if isinstance(environment, Driven) and self.clock.paced else None,
            within=self.within,
            rehearse=config.rehearse,
        )
        self.horizon = horizon
        self.episodes: list[Episode] = []
        self.notes: list[str] = []
        self.pauses: list[tuple[int, int]] = []
        self.events: list[Event] = []
        self.planner_s: float | None = None
        self.elsewhere_s: float | None = None
        self.stolen_s: float | None = None
        self.lasted_s = 0.0
        self.failed: Exception | None = None

    @contextlib.contextmanager
    def beside(self, make: Callable[[], Parts], where: list[int]) -> Iterator[PlannerBeside | None]:
        """Warms the controller and the planner beside it, which goes on until this is left."""
        first = stack(flat_spec(self.environment), [first_step(self.environment, self.config.seed)], 0)
        if self.link is None or self.within is not None:
            self.agent.warm_up(first)
            if self.within is not None:
                self.within.warm_up()
            with shown(self.monitor):
                yield None
            return
        facts = {"pace": self.config.pace, "patience": self.config.patience, "place": self.config.planner}
        with PlannerBeside(make, self.link, where=where, monitor=self.monitor, **facts) as planner:
            self.agent.warm_up(first)
            planner.wait_ready()
            yield planner

    def _refused_priority(self) -> str:
        """Returns why the controller is not to have real-time priority; "" where it is."""
        if self.config.priority == "usual":
            return "no real-time priority: not asked for"
        # It must pause, or others would starve, and its threads must be its own.
        free = self.clock.paced and self.config.planner != "thread"
        return "" if free else "no real-time priority: a run without pauses, or threads that share"

    def fly(self) -> None:
        """Runs the episodes; an error or `KeyboardInterrupt`, which is none, ends the run, and those that were whole are kept."""
        with _quiet(self._refused_priority(), self.notes), priority.CollectorPauses() as collector, self._measured():
            self.pauses = collector.pauses
            with contextlib.suppress(KeyboardInterrupt):
                for seed in itertools.count(self.config.seed):
                    if self._enough():
                        break
                    self._episode(seed)

    def _enough(self) -> bool:
        done, limit = len(self.agent.flights), self.config.limit
        if self.harm is not None and self.harm.over:
            return True
        return done == self.config.episodes if limit is None else len(self.monitor.done()) == limit

    def _episode(self, seed: int) -> None:
        ticks, left = self.config.ticks or self.horizon, len(self.monitor.rows) - len(self.monitor.done())
        moments = []
        for moment in run([self.environment], self.agent, [seed], min(ticks, left)):
            moments.append(moment)
            if self.harm is not None:
                self.harm.after_tick(self.agent.row, self.agent.plans_taken)
        self.agent.finish()
        tick_s = getattr(self.environment, "tick_s", self.clock.period_s or None)
        (episode,) = episodes(moments, [self.environment], [seed], self.config.task, tick_s)
        self.episodes.append(dataclasses.replace(episode, label=np.stack(self.agent.flights[-1].decoded)))
        # Between episodes nothing is due.
        self._tell(f"{self._progress()}: {self.monitor.line().strip()}")

    def _progress(self) -> str:
        done, limit = len(self.episodes), self.config.limit
        if limit is None:
            return f"episode {done} of {self.config.episodes}"
        return f"episode {done}, {(limit - len(self.monitor.done())) / self.config.hz:.0f} s left"

    @contextlib.contextmanager
    def _measured(self) -> Iterator[None]:
        """Notes what the planner and others use of the processors meanwhile."""
        living = None if self.link is None else self.link.living()
        before, kept, stolen, began = _used(living), self._awake.used_s(), usage.stolen_s(), time.monotonic()
        try:
            yield
        finally:
            after, same = _used(living), living is not None and living == (self.link.living() or living)
            own, planner, machine = (b - a if a is not None and b is not None else None for a, b in zip(before, after))
            self.planner_s = planner if same and self.config.planner == "process" else None
            if machine is not None:
                self.elsewhere_s = max(0.0, machine - own - (self.planner_s or 0.0) - (self._awake.used_s() - kept))
                self.stolen_s = usage.stolen_s() - stolen
            self.lasted_s = time.monotonic() - began


def _used(living: tuple[int, int] | None) -> tuple[float | None, ...]:
    """Returns the CPU seconds so far of this process, of the planner's and of all."""
    return usage.process_s(os.getpid()), None if living is None else usage.process_s(living[1]), usage.machine_s()


@contextlib.contextmanager
def _quiet(refused: str, notes: list[str]) -> Iterator[None]:
    """Keeps the garbage collector away, and other programs unless that is refused already or not permitted."""
    priority.settle_collector()
    refused = refused or priority.raise_priority()
    notes.append(refused or f"real-time priority {priority.PRIORITY} (SCHED_FIFO) on all threads of the controller")
    try:
        yield
    finally:
        if not refused:
            priority.usual_priority()
        priority.wake_collector()


def world_of(task: str) -> dm_env.Environment:
    """Returns an environment of a task, in whichever process."""
    return find(task).make()


def _pinned(place: str, own: list[int], others: list[int]) -> str:
    if place == "thread":
        return "planner in a thread of the controller's process: neither has a core to itself"
    if place == "loop":
        return priority.pin(own) or f"controller and planner in one loop on core {own[0]}"
    where = "the same one" if own == others else f"cores {others}"
    return priority.pin(own) or f"controller on core {own[0]}, planner on {where}"


def execute(config: RealTimeConfig, tokenizer: Path | None, tell: Callable[[str], None] = lambda line: None) -> Run:
    """Returns a run that was flown, in this process, which has not computed anything yet. tokenizer: for random weights. tell: is
    told a line after every episode."""
    check(config)
    available = priority.cores()
    own, others = priority.share(available)
    pinned = _pinned(config.planner, own, others)
    # A tick is one call after another: handing each to another thread only costs.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
    make = functools.partial(parts, config.weights, config.task, tokenizer, Path("runs/.jax_cache").absolute())
    world = functools.partial(world_of, config.task)
    environment = Driven(world, 1 / config.hz if config.hz else 0.0, others) if config.world == "process" else world()
    # A core that others share is theirs to keep busy.
    alone = own if config.awake and config.hz and config.planner != "thread" and own != others else []
    try:
        with Awake(alone) as awake, (flown := Run(config, make, environment, tell, awake)).beside(make, others) as planner:
            flown.notes += [pinned, awake.note]
            try:
                flown.fly()
            except Exception as error:
                flown.failed = error
            flown.events = planner.events() if planner is not None else []
    finally:
        priority.pin(available)
        if isinstance(environment, Driven):
            environment.close()
    return flown


def figures(flown: Run) -> dict[str, Any]:
    """Returns a run's summary: its ticks', and what became of the planner."""
    updates = [update for flight in flown.agent.flights for update in flight.updates]
    late = [update.held_back / 1e6 for update in updates if update.held_back]
    cores = len(priority.cores()) or 1
    return summary(flown.monitor.done(), flown.monitor.period_s, flown.pauses) | {
        "returns": [float(np.sum(episode.reward)) for episode in flown.episodes],
        "stopped_ticks": sum(len(flight.stopped) for flight in flown.agent.flights),
        "plans_taken": len(updates),
        "plans_held_back": len(late),
        "plans_held_back_ms": [min(late), max(late)] if late else None,
        "planner_events": dict(collections.Counter(kind for _, kind, _ in happenings(flown))),
        "harm": harm_done(flown) if flown.harm is not None else None,
        "planner_duty": None if flown.planner_s is None else flown.planner_s / flown.lasted_s,
        "elsewhere": None if flown.elsewhere_s is None else flown.elsewhere_s / flown.lasted_s / cores,
        "stolen": None if flown.stolen_s is None else flown.stolen_s / flown.lasted_s / cores,
        "world_held": getattr(flown.environment, "held", None),
        "notes": flown.notes,
    }


def happenings(flown: Run) -> list[tuple[int, str, str]]:
    """Returns (at, kind, detail) of all that happened to the planner and the controller, in order."""
    return sorted((each.at, each.kind, each.detail) for each in (*flown.events, *flown.monitor.incidents))


AFTERMATH_S = 1.0


def harm_done(flown: Run) -> dict[str, Any]:
    """Returns how much harm was done, by kind, and the share of ticks that missed their deadline within a second of one, and
    elsewhere."""
    rows = flown.monitor.done()
    done = [incident for incident in flown.monitor.incidents if incident.kind.startswith("harm: ")]
    since = np.array([incident.at for incident in done], np.int64)
    near = np.zeros(len(rows), bool)
    for at in since:
        near |= (rows["computed"] > at) & (rows["woken"] < at + round(AFTERMATH_S * 1e9))
    missed = misses(rows, flown.monitor.period_s)
    return {
        "wanted": flown.config.harm,
        "done": len(done),
        "over": flown.harm.over,
        "by_kind": dict(collections.Counter(incident.kind.removeprefix("harm: ") for incident in done)),
        "ticks_near": int(near.sum()),
        "missed_near": int(missed[near].sum()),
        "ticks_elsewhere": int((~near).sum()),
        "missed_elsewhere": int(missed[~near].sum()),
    }
