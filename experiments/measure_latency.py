"""How long a tick takes, beside the least that this machine could take for it and beside other ways to execute it.

    python -m experiments.measure_latency --json runs/latency.json
    python -m experiments.measure_latency --parts single
    python -m experiments.measure_latency --parts soak --soak 360000

Weights are random, and an operating point stands for a task: 20 observation and 6 action tokens, a window of 16 ticks, a plan of
8 keys and values a layer. See experiments/measure_latency.md for what the columns mean and what to expect. About 6 minutes; every
part alone takes less than 3, but for `soak`, which is as long as it is asked to be.
"""

import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

from experiments import ways_to_tick
from experiments.latency_tables import show
from experiments.train import cache_compilations
from experiments.turns import in_turns, interleave, p50, p99, paced, quickest
from experiments.ways_to_tick import SHAPES, Model, Point, Way, of_parameters, sized
from hierarchy.control import priority
from hierarchy.control.acting import Precision
from hierarchy.control.agent import Agent
from hierarchy.control.awake import Awake
from hierarchy.model.flops import Pass, flops_per_tick, parameters, tick_passes
from hierarchy.timeline import periodic

Part = Literal["ways", "paced", "precision", "fit", "single", "soak"]
OURS, AT_ONCE = "one call a tick", "one pass for all action tokens"
SINGLE, FAR = "one model of the same size", "read as much as one model"
TOTALS = ("20M", "100M")
AGREE_FROM = 1000
"""First tick of what is compared: what caches hold of earlier ones is out of their windows."""
COMPILED = "/jax/core/compile/backend_compile_duration"
RESIDENT = Path("/proc/self/statm")
TURNS = 60
SAME = 1e-3
"""Most that two ways of one tick may differ by, in units of an action's half range."""
MAY_GROW_MIB = 8.0
"""What a soaked agent may hold more at the end than after two episodes: the allocator's own noise."""


@dataclasses.dataclass(frozen=True)
class LatencyConfig:
    """parts: what to measure. `ways`: one tick in every way, beside the floor. `paced`: ticks at `hz`. `precision`: products
        in bfloat16. `fit`: the largest controller and planner that keep up with `hz`. `single`: against one model of equal size
        at every tick. `soak`: many ticks of a whole agent, which may neither compile nor grow.
    json: where the figures are written, if anywhere. controller, planner: sizes, by their parameters. ratio: ticks an update.
    seconds: of calls that each way gets. cores: that this process keeps to, the last ones; a controller has one. soak: ticks of
        that part.
    """

    parts: tuple[Part, ...] = ("ways", "paced", "precision", "fit", "single")
    json: Path | None = None
    point: tyro.conf.OmitArgPrefixes[Point] = Point()
    controller: str = "1M"
    planner: str = "16M"
    ratio: int = 8
    hz: float = 50.0
    seconds: float = 5.0
    cores: int = 1
    soak: int = 36_000

    def __post_init__(self) -> None:
        if self.hz <= 0 or self.seconds <= 0 or min(self.ratio, self.cores, self.soak) < 1:
            raise ValueError(
                f"hz {self.hz:g} and seconds {self.seconds:g} are above 0; ratio {self.ratio}, cores {self.cores} and soak "
                f"{self.soak} at least 1"
            )
        if "soak" in self.parts and not RESIDENT.exists():
            raise ValueError(f"soak reads {RESIDENT}, which this system has not: leave it out of the parts")
        for size in (self.controller, self.planner):
            sized(size, self.point.window)


FLOPS = 2 * 512**3
"""Of one call of `multiplying`."""


def multiplying() -> Callable[[int], Any]:
    """Returns the quickest way here to multiply two matrices: a call is `FLOPS` operations."""
    a, b = np.random.default_rng(0).standard_normal((2, 512, 512), np.float32)
    place = jax.device_put(a)
    product = jax.jit(lambda x: x @ x).lower(place).compile()
    return min([lambda _: a @ b, lambda _: np.asarray(product(place))], key=quickest)


def reading(size: int) -> Callable[[int], Any]:
    """Returns the quickest way here to read `size` bytes, again and again: as much as that fits into some cache, or does not."""
    data = np.random.default_rng(0).standard_normal(size // 4, np.float32)
    return min([lambda _: data.max(), lambda _: data.sum(), lambda _: data @ data], key=quickest)


def floor_ms(passes: Sequence[Pass], rate: float, bandwidth: float) -> float:
    """Returns the least time of a tick: for each pass that of its operations or of its bytes, whichever is longer.

    rate: operations a second. bandwidth: bytes a second.
    """
    return 1e3 * sum(max(each.flops / rate, each.bytes / bandwidth) for each in passes)


def passes_of(model: Model, whole: bool = True) -> list[Pass]:
    """Returns the passes of a model's tick; whole: of every token through every layer, whether its output is asked for or not."""
    return tick_passes(model.network.config, model.schema, model.layout, whole)


def torch_ways(model: Model, at_once: Model, notes: list[str]) -> dict[str, Way]:
    """Returns PyTorch's ways; a note instead of those that cannot be had."""
    try:
        import torch
    except ImportError:
        notes.append("PyTorch is not installed, so it is not compared with: pip install -r requirements-extras.txt")
        return {}
    torch.set_num_threads(len(priority.cores()) or 1)
    ways = {}
    for name, of in ((OURS, model), (AT_ONCE, at_once)):
        for kind in ("eager", "compiled"):
            way = ways_to_tick.in_torch(of, kind == "compiled")
            try:
                for tick in range(3):
                    way(tick)
            except Exception as error:
                notes.append(f"PyTorch {kind} does not run here ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
                continue
            ways[f"PyTorch {kind}, {name}"] = way
    return ways


def agree(ways: dict[str, Way], ours: str, ticks: int = 40) -> dict[str, float]:
    """Returns the largest difference of each way's actions from ours, in [-1, 1], over ticks that no warm-up reaches. As many
    ticks before them fill the windows: a way without a cache sees what was before its first tick, and others do not."""

    def actions(way: Way) -> np.ndarray:
        return np.stack([way(tick) for tick in range(AGREE_FROM - ticks, AGREE_FROM + ticks)][ticks:])

    expected = actions(ways[ours])
    return {name: float(np.abs(actions(way) - expected).max()) for name, way in ways.items() if name != ours}


def measure_ways(config: LatencyConfig, models: tuple[Model, Model], notes: list[str]) -> dict[str, Any]:
    """Returns the tick of every way beside the floor. Ratios are medians over turns, each of what was measured in that turn: a
    virtual core has one pace now and another in the next second."""
    model, at_once = models
    total = parameters(model.network)
    alone = ways_to_tick.single(config.point, of_parameters(total, config.point.window))
    notes.append(f"the single-rate model has {parameters(alone.network):,} parameters, planner and controller {total:,}")
    same = {
        "one call a token": ways_to_tick.call_by_call(model, True),
        "one call an action token": ways_to_tick.call_by_call(model, False),
        OURS: ways_to_tick.one_call_a_tick(model),
    }
    in_torch = torch_ways(model, at_once, notes)
    once = {AT_ONCE: ways_to_tick.one_call_a_tick(at_once)}
    same |= {name: way for name, way in in_torch.items() if name.endswith(OURS)}
    once |= {name: way for name, way in in_torch.items() if name.endswith(AT_ONCE)}
    apart = agree(same, OURS) | agree(once, AT_ONCE)
    others = {
        "recomputing the window": ways_to_tick.recomputing(model),
        SINGLE: ways_to_tick.one_call_a_tick(alone),
    }
    for way in others.values():
        way(0)
    notes += [f"{name} is not the same tick: {far:.0e} from ours" for name, far in apart.items() if far > SAME]
    own, large = (passes_of(of)[0].bytes for of in (model, alone))
    probes = {"multiply": multiplying(), "read": reading(own), FAR: reading(large)}
    turns = in_turns(probes | same | once | others, config.seconds, "a tick in every way", TURNS)
    timed = {name: np.concatenate(each) for name, each in turns.items()}
    passes = {name: passes_of(at_once if name in once else model) for name in (*same, *once, *others)}
    passes[SINGLE] = passes_of(alone)
    needed = {OURS: passes_of(model, False), AT_ONCE: passes_of(at_once, False), SINGLE: passes_of(alone, False)}

    def least(name: str, passes: list[Pass], multiply: np.ndarray, read: np.ndarray) -> float:
        size = large if name == SINGLE else own
        return floor_ms(passes, 1e3 * FLOPS / p50(multiply), 1e3 * size / p50(read))

    def over_floor(name: str, passes: list[Pass]) -> float:
        probed = zip(turns[name], turns["multiply"], turns[FAR if name == SINGLE else "read"])
        found = [p50(times) / least(name, passes, *probes) for times, *probes in probed if all(map(len, (times, *probes)))]
        return float(np.median(found))

    def over_ours(name: str) -> float:
        both = zip(turns[name], turns[AT_ONCE if name in once else OURS])
        return float(np.median([p50(times) / p50(ours) for times, ours in both if len(times) and len(ours)]))

    rows = [
        {
            "way": name,
            "p50_ms": p50(timed[name]),
            "p99_ms": p99(timed[name]),
            "floor_ms": least(name, passes[name], timed["multiply"], timed[FAR if name == SINGLE else "read"]),
            "over_floor": over_floor(name, passes[name]),
            "over_needed": over_floor(name, needed[name]) if name in needed else None,
            "over_ours": over_ours(name),
            "calls": len(timed[name]),
            "difference": apart.get(name),
        }
        for name in passes
    ]
    bandwidths = {size: 1e3 * size / p50(timed[name]) for size, name in ((own, "read"), (large, FAR))}
    measured = {"flop_per_s": 1e3 * FLOPS / p50(timed["multiply"]), "bytes_per_s": bandwidths}
    told = {name: [each._asdict() for each in passes[name]] for name in (OURS, AT_ONCE)}
    return measured | {"passes": told, "rows": rows, "same": max(apart.values()) <= SAME}


def measure_paced(config: LatencyConfig, models: tuple[Model, Model], notes: list[str]) -> list[dict[str, Any]]:
    """Returns ticks at the rate at which they are wanted, the core kept awake as in real time, with rehearsals and without them,
    where caches have gone cold in between."""
    ways = {name: ways_to_tick.one_call_a_tick(model) for name, model in zip((OURS, AT_ONCE), models)}
    for way in ways.values():
        quickest(way)
    with Awake(priority.cores()[-1:]) as awake:
        # In short turns, so that what disturbs the machine disturbs both.
        turns = [(how, paced(ways, config.hz, 1.0, how)) for _ in range(round(2 * config.seconds)) for how in (True, False)]
    notes.append(f"paced: {awake.note}")
    timed = {
        (name, how): np.concatenate([part[name] for which, part in turns if which == how])
        for how in (True, False)
        for name in ways
    }
    return [
        {"way": name, "rehearsed": how, "p50_ms": p50(times), "p99_ms": p99(times), "ticks": len(times)}
        for (name, how), times in timed.items()
    ]


def measure_precision(config: LatencyConfig, models: tuple[Model, Model]) -> list[dict[str, Any]]:
    """Returns the tick in either precision, and how far the actions of bfloat16 are from those of float32."""
    rows = []
    for name, model in zip((OURS, AT_ONCE), models):
        ways = {precision: ways_to_tick.one_call_a_tick(model, precision) for precision in get_args(Precision)}
        apart = agree(ways, "float32")
        timed = interleave(ways, config.seconds, f"precision, {name}")
        for precision, times in timed.items():
            over, far = p50(times) / p50(timed["float32"]), apart.get(precision)
            rows.append({"way": name, "precision": precision, "p50_ms": p50(times), "over_float32": over, "difference": far})
    return rows


def measure_fit(config: LatencyConfig) -> dict[str, Any]:
    """Returns the largest controller whose paced ticks, and the largest planner whose updates, keep up at the 99th percentile."""
    period = 1e3 / config.hz

    def controller(size: str) -> np.ndarray:
        planner = sized("0.5M", config.point.window)
        way = ways_to_tick.one_call_a_tick(ways_to_tick.two_rate(config.point, planner, sized(size, config.point.window)))
        if (least := 1e3 * quickest(way)) > period:
            return np.array([least])
        return paced({size: way}, config.hz, 3)[size]

    def planner(size: str) -> np.ndarray:
        small = sized("0.5M", config.point.window)
        way = ways_to_tick.update(ways_to_tick.two_rate(config.point, sized(size, config.point.window), small))
        way(0)
        return interleave({size: way}, 3, f"updates of a {size} planner", 1)[size]

    tried = {"controller": _largest(controller, period), "planner": _largest(planner, config.ratio * period)}
    return {"hz": config.hz, "ratio": config.ratio} | tried


def _largest(measure: Callable[[str], np.ndarray], limit_ms: float) -> list[dict[str, Any]]:
    """Returns what was tried: sizes from a small one up, each about as much larger as the time allows, until one does not fit."""
    sizes, tried, at = list(SHAPES), [], 1
    counts = np.array([layers * width * (4 * width + 3 * wide // 2) for width, layers, wide in SHAPES.values()])
    while at < len(sizes) and (not tried or tried[-1]["fits"]):
        times = measure(sizes[at])
        fits = p99(times) <= limit_ms
        tried.append({"size": sizes[at], "p50_ms": p50(times), "p99_ms": p99(times), "fits": fits})
        # Time grows no faster than size: a size that would fit by that is not tried on the way to a larger one.
        reach = int(np.searchsorted(counts, counts[at] * limit_ms / p99(times) / 1.5, side="right")) - 1
        at = max(at + 1, min(reach, len(sizes) - 1))
    while at > 1 and not tried[-1]["fits"] and sizes[at := sizes.index(tried[-1]["size"]) - 1] not in {t["size"] for t in tried}:
        times = measure(sizes[at])
        tried.append({"size": sizes[at], "p50_ms": p50(times), "p99_ms": p99(times), "fits": p99(times) <= limit_ms})
    return tried


def measure_single(config: LatencyConfig) -> list[dict[str, Any]]:
    """Returns planner and 5M controller against one model of their size, which reads everything at every tick."""
    rows, window = [], config.point.window
    controller = sized("5M", window)
    for total, planner in zip(TOTALS, ("16M", "96M")):
        both = ways_to_tick.two_rate(config.point, sized(planner, window), controller)
        alone = ways_to_tick.single(config.point, of_parameters(parameters(both.network), window))
        tick, update, every = "tick", "update", "one model"
        ways = {
            tick: ways_to_tick.one_call_a_tick(both),
            update: ways_to_tick.update(both),
            every: ways_to_tick.one_call_a_tick(alone),
        }
        for way in ways.values():
            way(0)
        timed = interleave(ways, 2 * config.seconds, f"against one model of {total}", 10)
        amortised = p50(timed[tick]) + p50(timed[update]) / config.ratio
        flops = [flops_per_tick(of.network.config, of.schema, of.layout, config.ratio) for of in (both, alone)]
        rows.append(
            {
                "total": total,
                "parameters": [parameters(both.network), parameters(alone.network)],
                "flops": flops,
                "fewer_flops": flops[1] / flops[0],
                "tick_ms": p50(timed[tick]),
                "update_ms": p50(timed[update]),
                "amortised_ms": amortised,
                "single_ms": p50(timed[every]),
                "faster": p50(timed[every]) / amortised,
            }
        )
    return rows


def measure_soak(config: LatencyConfig, episode: int = 3000) -> dict[str, Any]:
    """Returns what a whole agent (a small planner, in lockstep) compiled and kept over many ticks, since its second episode.

    Raises:
        ValueError: there is no third episode to compare with.
    """
    if config.soak < 3 * episode:
        raise ValueError(f"soak {config.soak}: at least {3 * episode} ticks, three episodes of {episode}")
    model = ways_to_tick.two_rate(config.point, sized("0.5M", config.point.window), sized(config.controller, config.point.window))
    agent = Agent(ways_to_tick.compiled(model), model.params, periodic(episode, config.ratio), horizon=episode)
    rng, compiled = np.random.default_rng(0), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(seconds) if name == COMPILED else None
    )
    seen = {
        "seen": rng.standard_normal((episode, 1, config.point.planner_tokens)),
        "state": rng.standard_normal((episode, 1, config.point.observation - 1)),
    }
    began, marks = time.monotonic(), []
    with Progress(*Progress.get_default_columns()[:-1], TimeRemainingColumn(), transient=True) as progress:
        task = progress.add_task("soak", total=config.soak)
        for first in range(0, config.soak, episode):
            state = agent.begin([first])
            for tick in range(min(episode, config.soak - first)):
                _, state = agent.step(state, {name: values[tick] for name, values in seen.items()})
            progress.update(task, completed=min(first + episode, config.soak))
            marks.append((len(compiled), len(jax.live_arrays()), resident_mib()))
    settled = marks[1]
    grown = tuple(last - first for first, last in zip(settled, marks[-1]))
    return {
        "ticks": config.soak,
        "episode": episode,
        "ms_a_tick": 1e3 * (time.monotonic() - began) / config.soak,
        "compiled_since": grown[0],
        "arrays_since": grown[1],
        "mib": [settled[2], marks[-1][2]],
        "mib_since": grown[2],
        "holds": grown[0] == 0 and grown[1] <= 0 and grown[2] <= MAY_GROW_MIB,
    }


def resident_mib() -> float:
    """Returns how much memory this process holds, MiB."""
    pages = int(RESIDENT.read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(config: LatencyConfig) -> dict[str, Any]:
    """Returns all figures that were asked for, and notes on them."""
    notes = [f"one process on {len(priority.cores())} of {os.cpu_count()} cores; medians over calls in turns"]
    window = config.point.window
    found: dict[str, Any] = {
        "command": dataclasses.asdict(config) | {"json": None},
        "machine": {"processor": processor(), "cores": len(priority.cores()), "jax": jax.__version__},
    }
    if {"ways", "paced", "precision"} & {*config.parts}:
        sizes = sized(config.planner, window), sized(config.controller, window)
        models = tuple(ways_to_tick.two_rate(config.point, *sizes, at_once) for at_once in (False, True))
    if "ways" in config.parts:
        found["ways"] = measure_ways(config, models, notes)
    if "paced" in config.parts:
        found["paced"] = measure_paced(config, models, notes)
    if "precision" in config.parts:
        found["precision"] = measure_precision(config, models)
    if "fit" in config.parts:
        found["fit"] = measure_fit(config)
    if "single" in config.parts:
        found["single"] = measure_single(config)
    if "soak" in config.parts:
        found["soak"] = measure_soak(config)
    return found | {"notes": notes}


def processor() -> str:
    """Returns the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def keep_to(cores: int) -> None:
    """Starts this command anew on so many cores, the last ones, if it has more: libraries count them when they are imported."""
    available = priority.cores()
    if len(available) > cores and not priority.pin(available[-cores:]):
        os.execv(sys.executable, [sys.executable, "-m", "experiments.measure_latency", *sys.argv[1:]])


def main() -> int:
    """Runs the command line; returns the exit code: 1 too where ways of one tick differ, or a soaked agent compiled or grew."""
    try:
        config = tyro.cli(LatencyConfig, description=__doc__)
        keep_to(config.cores)
        # A tick is one call after another: handing each to another thread only costs.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        cache_compilations(Path("runs/.jax_cache"))
        priority.settle_collector()
        found = measure(config)
    except ValueError as error:
        print(f"measure_latency: {error}", file=sys.stderr)
        return 1
    show(found, Console(width=None if sys.stdout.isatty() else 140))
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(found, indent=1, default=str) + "\n")
    return int(not (found.get("ways", {}).get("same", True) and found.get("soak", {}).get("holds", True)))


if __name__ == "__main__":
    sys.exit(main())
