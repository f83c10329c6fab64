"""Run an agent against the wall clock: its planner in a process beside it, deadlines watched, everything kept for a replay.

    python -m experiments.real_time --run runs/demo/two_rate --task patrol --hz 25 --out runs/real_time
    python -m experiments.real_time --preset demo --task patrol --hz 50 --episodes 8 --think-s 0.2 --out runs/real_time

Without --run the weights are random, of a preset: the times are as good, the actions are not. Takes as long as the episodes do
(10 s each for the patrol at 25 Hz), after some seconds of compilation. Writes to --out: episodes (a source, as of a recording),
summary.json, ticks.jsonl, events.jsonl, trace.json (open it in ui.perfetto.dev), figure.png and what `experiments.replay` reads.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import os
import sys
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
from experiments.real_time_figure import draw
from experiments.tasks import find, schema_of
from experiments.train import TOKENIZER, cache_compilations
from hierarchy.control import priority
from hierarchy.control.agent import compile_acting
from hierarchy.control.clock import Clock
from hierarchy.control.driver import Driven
from hierarchy.control.link import Link
from hierarchy.control.monitor import Monitor, summary, tick_lines, trace
from hierarchy.control.planner_process import Pace, Parts, Patience, PlannerBeside
from hierarchy.control.real_time import Late, RealTimeAgent, reading_size, timeline_of
from hierarchy.corpus import text
from hierarchy.corpus.store import write_source
from hierarchy.episode import Episode
from hierarchy.model.config import PRESETS
from hierarchy.model.network import build
from hierarchy.training.checkpoint import CheckpointError, open_manager

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
    from `seed` on. ticks: at which an episode is cut off; none for its own end. ratio: ticks between the planner's observations,
    at least; 1 for as often as it can. think_s: what an update takes at least, in place of a larger planner or one far away.

    planner: beside in a process, or in a thread where there can be none. world: here, or in a process that goes on by its own
    clock as a robot does. wait_for_first: tick 0 waits for the first plan.
    """

    out: Path
    weights: tyro.conf.OmitArgPrefixes[Weights] = Weights()
    task: str = "patrol"
    hz: float = 25.0
    episodes: int = 1
    ticks: int | None = None
    seed: int = FIRST_SEED
    ratio: int = 8
    think_s: float = 0.0
    late: Late = Late()
    patience: Patience = Patience()
    planner: Literal["process", "thread"] = "process"
    world: Literal["here", "process"] = "here"
    wait_for_first: bool = False


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
        return trained.acting(task, "mean"), trained.params, trained.tokenizer
    if weights.preset not in PRESETS:
        raise ValueError(f"no preset {weights.preset!r}: there are {', '.join(PRESETS)}")
    words = text.Tokenizer.load(tokenizer) if tokenizer else None
    schema = schema_of((task,), words.pieces if words else 0, "two_rate")
    network = build(PRESETS[weights.preset], schema)
    return compile_acting(network, schema, task, "mean"), network.init(jax.random.key(0)), words


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
    """A real-time run: what was composed for it, and after `fly` what happened."""

    def __init__(self, config: RealTimeConfig, make: Callable[[], Parts], environment: dm_env.Environment):
        period_s = 1 / config.hz if config.hz else 0.0
        horizon = config.ticks or find(config.task).ticks
        self.config, self.environment = config, environment
        acting, params, tokenizer = make()
        self.monitor, self.clock = Monitor(horizon * config.episodes, period_s), Clock(period_s)
        self.link = None
        spec = environment.action_spec()
        if acting.network.config.planner is not None:
            size = reading_size(acting, params)
            self.link = Link(acting.layout, flat_spec(environment), spec, horizon, size)
        self.agent = RealTimeAgent(
            acting,
            params,
            spec,
            clock=self.clock,
            monitor=self.monitor,
            horizon=horizon,
            link=self.link,
            late=config.late,
            safe=safe_action(environment),
            tokenizer=tokenizer,
            wait_for_first=config.wait_for_first,
            stamp=(lambda: environment.stamped) if isinstance(environment, Driven) else None,
            due=(lambda: environment.due) if isinstance(environment, Driven) and self.clock.paced else None,
        )
        self.episodes: list[Episode] = []
        self.notes: list[str] = []
        self.pauses: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def beside(self, make: Callable[[], Parts], where: list[int]) -> Iterator[PlannerBeside | None]:
        """Warms the controller and the planner beside it, which goes on until this is left."""
        first = stack(flat_spec(self.environment), [first_step(self.environment, self.config.seed)], 0)
        if self.link is None:
            self.agent.warm_up(first)
            yield None
            return
        pace = Pace(self.config.ratio, self.config.think_s, yielding=True)
        facts = {"pace": pace, "patience": self.config.patience, "place": self.config.planner}
        with PlannerBeside(make, self.link, where=where, monitor=self.monitor, **facts) as planner:
            self.agent.warm_up(first)
            planner.wait_ready()
            yield planner

    @property
    def _first_of_all(self) -> bool:
        """Whether the controller is to have real-time priority: it pauses, and its threads are its own."""
        return self.clock.paced and self.config.planner == "process"

    def fly(self) -> None:
        """Runs the episodes; an error or `KeyboardInterrupt`, which is none, ends the run, and those that were whole are kept."""
        tick_s = getattr(self.environment, "tick_s", self.clock.period_s or None)
        with _quiet(self._first_of_all, self.notes), priority.CollectorPauses() as collector:
            self.pauses = collector.pauses
            with contextlib.suppress(KeyboardInterrupt):
                for seed in range(self.config.seed, self.config.seed + self.config.episodes):
                    moments = list(run([self.environment], self.agent, [seed], self.config.ticks))
                    self.agent.finish()
                    (episode,) = episodes(moments, [self.environment], [seed], self.config.task, tick_s)
                    label = np.stack(self.agent.flights[-1].decoded)
                    self.episodes.append(dataclasses.replace(episode, label=label))


@contextlib.contextmanager
def _quiet(first_of_all: bool, notes: list[str]) -> Iterator[None]:
    """Keeps the garbage collector away, and other programs if asked to and permitted."""
    priority.settle_collector()
    refused = priority.raise_priority() if first_of_all else "no real-time priority: a run without pauses, or threads that share"
    notes.append(refused or f"real-time priority {priority.PRIORITY} (SCHED_FIFO) on all threads of the controller")
    try:
        yield
    finally:
        if not refused:
            priority.usual_priority()
        priority.wake_collector()


def facts_of(config: RealTimeConfig, tokenizer: Path | None) -> dict[str, Any]:
    """Returns what a replay needs to act as the run did: config, step of the weights, and the tokenizer in the run's folder."""
    weights = config.weights.run
    return {
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
        "step": newest_step(weights) if weights else None,
        "tokenizer": {"file": tokenizer.name, "hash": text.Tokenizer.load(tokenizer).hash} if tokenizer else None,
    }


def newest_step(weights: Path) -> int | None:
    """Returns the step of a training run's newest checkpoint."""
    return open_manager(weights / "checkpoints").latest_step()


def write(config: RealTimeConfig, flown: Run, events: list, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes everything about a run, and returns its summary."""
    out, rows, period_s = config.out, flown.monitor.done(), flown.monitor.period_s
    happened = [(event.at, event.kind, event.detail) for event in events]
    happened = sorted(happened + [(each.at, each.kind, each.detail) for each in flown.monitor.incidents])
    found = summary(rows, period_s, flown.pauses) | {
        "returns": [float(np.sum(episode.reward)) for episode in flown.episodes],
        "stopped_ticks": sum(len(flight.stopped) for flight in flown.agent.flights),
        "planner_events": dict(collections.Counter(kind for _, kind, _ in happened)),
        "world_held": getattr(flown.environment, "held", None),
        "notes": flown.notes,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "ticks.jsonl").write_text(tick_lines(rows, period_s))
    first = int(rows["deadline"][0])
    lines = [json.dumps({"at_ms": (at - first) / 1e6, "kind": kind, "detail": detail}) for at, kind, detail in happened]
    (out / "events.jsonl").write_text("".join(line + "\n" for line in lines))
    updates = [update for flight in flown.agent.flights for update in flight.updates]
    (out / "trace.json").write_text(json.dumps(trace(rows, period_s, updates, happened, flown.pauses)))
    draw(rows, period_s, happened, out / "figure.png")
    for number, (flight, _) in enumerate(zip(flown.agent.flights, flown.episodes)):
        timeline = timeline_of(flight.taken)
        seen = rows["plan"][rows["episode"] == number + 1]
        np.savez(
            out / f"acted-{number:04d}.npz",
            observed=timeline.observed,
            ready=timeline.ready,
            plan=seen,
            without=np.array(flight.without, np.int32),
            stopped=np.array(flight.stopped, np.int32),
            logits=np.stack(flight.logits),
        )
    if flown.episodes:
        tick_s = flown.episodes[0].tick_s
        write_source(
            out / "episodes", flown.episodes, name=config.task, tick_s=tick_s, licence="Apache-2.0", expert="none: an agent acted"
        )
    return found


def describe(found: dict[str, Any]) -> str:
    """Returns a summary in words."""
    tick, age, action, by = (found[name] for name in ("tick_ms", "plan_age_ticks", "deadline_to_action_ms", "missed_by_ms"))
    wanted = f" of {found['wanted_hz']:g}" if found["wanted_hz"] else ""
    phases = (f"{name} {each['p50']:.3f} p50 {each['p99']:.3f} p99" for name, each in found["phases_ms"].items())
    lines = [
        f"{found['ticks']} ticks, {found['episodes']} episodes: fast {found['fast_hz']:.2f} Hz{wanted}, "
        f"slow {found['slow_hz']:.2f} Hz, observation to action {found['observation_to_action_ms']['p50']:.2f} ms p50",
        f"tick: {tick['p50']:.2f} ms p50, {tick['p99']:.2f} p99, {tick['p99.9']:.2f} p99.9, {tick['max']:.2f} max",
        f"  {', '.join(phases)}",
    ]
    if action:
        late = f", by {by['p50']:.1f} ms p50, {by['max']:.1f} max" if by else ""
        lines.append(f"deadline to action {action['p99']:.2f} ms p99, {action['max']:.2f} max: {found['missed']} missed{late}")
    plan = f"plan age {age['mean']:.1f} ticks mean, {age['p99']:.0f} p99, {age['max']:.0f} max" if age else "no plan ever"
    lines.append(f"{plan}; {found['ticks_without_plan']} ticks without a plan, {found['stopped_ticks']} stopped")
    lines.append(f"garbage collector: {found['gc_pauses']} pauses; {'; '.join(found['notes'])}")
    lines.append(f"planner: {', '.join(f'{kind} {count}' for kind, count in found['planner_events'].items()) or 'none'}")
    return "\n".join(lines)


def world_of(task: str) -> dm_env.Environment:
    """Returns an environment of a task, in whichever process."""
    return find(task).make()


def _pinned(place: str, own: list[int], others: list[int]) -> str:
    if place == "thread":
        return "planner in a thread of the controller's process: neither has a core to itself"
    where = "the same one" if own == others else f"cores {others}"
    return priority.pin(own) or f"controller on core {own[0]}, planner on {where}"


def fly(config: RealTimeConfig) -> dict[str, Any]:
    """Runs and writes, an error or not; returns the summary."""
    if config.hz < 0:
        raise ValueError(f"hz {config.hz:g}: ticks a second, or 0 to go as fast as possible")
    # A tokenizer alone is what a run leaves that never began.
    if config.out.exists() and any(path.name != TOKENIZER for path in config.out.iterdir()):
        raise ValueError(f"{config.out} holds something already: give --out a folder that is new or empty")
    available = priority.cores()
    own, others = priority.share(available)
    pinned = _pinned(config.planner, own, others)
    # A tick is one call after another: handing each to another thread only costs.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
    tokenizer = None if config.weights.run else tokenizer_for(world_of(config.task), config.out / TOKENIZER)
    make = functools.partial(parts, config.weights, config.task, tokenizer, Path("runs/.jax_cache").absolute())
    period_s = 1 / config.hz if config.hz else 0.0
    world = functools.partial(world_of, config.task)
    facts, events, failed = facts_of(config, tokenizer), [], None
    environment = Driven(world, period_s, others) if config.world == "process" else world()
    try:
        flown = Run(config, make, environment)
        flown.notes.append(pinned)
        with flown.beside(make, others) as planner:
            try:
                flown.fly()
            except Exception as error:
                failed = error
            events = planner.events() if planner is not None else []
    finally:
        priority.pin(available)
        if isinstance(environment, Driven):
            environment.close()
    if len(flown.monitor.done()) > 1:
        found = write(config, flown, events, facts)
    elif failed is None:
        raise ValueError("fewer than two ticks were run: there is nothing to write")
    if failed is not None:
        raise failed
    return found


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(RealTimeConfig, description=f"{__doc__}\n{RealTimeConfig.__doc__}")
    cache_compilations(Path("runs/.jax_cache"))
    try:
        found = fly(config)
    except (ValueError, OSError, RuntimeError, CheckpointError) as error:
        print(f"real_time: {error}", file=sys.stderr)
        return 1
    print("\n" + describe(found))
    print(f"{config.out}: summary.json, ticks.jsonl, events.jsonl, trace.json, figure.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
