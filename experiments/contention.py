"""Does a busy planner make the controller late? Real-time runs with the planner idle, at half and at full load, in turn.

    python -m experiments.contention --run runs/demo/two_rate --json runs/contention/contention.json
    python -m experiments.contention --seconds 5 --repeats 2 --presets demo --priorities real_time --out runs/try

For every planner and priority of the controller: five runs of a minute each with the planner doing nothing, computing half of the
time and all of the time, one after the other in changing order; beside them the synchronous runner, which plans in the
controller's own loop. The patrol goes four times as fast as it is meant to: 100 ticks a second, the world on the controller's
core. About 80 minutes on a machine that must have nothing else to do; it can be interrupted, and the same command goes on from
there. Prints a table, and writes a picture and the finished runs to --out. More in experiments/contention.md.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from experiments.figures import BLUE, GREY, MUTED, SAND, STYLE, TEAL, WIDTH
from experiments.real_time import newest_step
from experiments.real_time_run import Patience, RealTimeConfig, Weights, execute, figures, tokenizer_for, world_of
from experiments.statistics import Interval, mean_interval, paired_difference
from experiments.train import TOKENIZER, cache_compilations
from hierarchy.model.config import PRESETS
from hierarchy.model.flops import parameters
from hierarchy.training.checkpoint import CheckpointError

Priority = Literal["real_time", "usual"]
IDLE, LOOP = "idle", "in the loop"
LIMITS = {"real_time": 1.25, "usual": 2.5}
"""The most that the p99 of a tick may grow by, as a factor, when the planner is busy."""
LOOPS, LOOP_SHARE = 2, 1 / 12
"""Runs of the synchronous runner at most, and their share of the ticks of others: it is late by far more than runs differ, and
its ticks take as long as they take."""
ELSEWHERE, STOLEN, TRIES = 0.1, 0.03, 3
"""Most of the machine that other programs may use during a run, and that its host may take, and how often a run is made that had
more taken: the last counts, whatever it had. The planner is to be what disturbs."""
START_S = 20.0
"""Seconds that a run takes beside its ticks, until that is known."""


@dataclasses.dataclass(frozen=True)
class ContentionConfig:
    """out: folder of what is measured. json: where the summary goes too. run: weights of the planner of preset "demo", which are
    else random like all others; times do not depend on them. duties: shares of the time that a busy planner computes. speed: of
    the patrol, times real time. ratio: ticks between updates that are acted on. seconds: of ticks a run. repeats: runs of a kind,
    at least 2."""

    out: Path = Path("runs/contention")
    json: Path | None = None
    run: Path | None = None
    presets: tuple[str, ...] = ("demo", "demo_100M")
    priorities: tuple[Priority, ...] = ("real_time", "usual")
    duties: tuple[float, ...] = (0.5, 1.0)
    task: str = "patrol"
    speed: float = 4.0
    ratio: int = 8
    seconds: float = 60.0
    repeats: int = 5


def check(config: ContentionConfig) -> None:
    """Raises ValueError for what cannot be."""
    if config.repeats < 2:
        raise ValueError(f"repeats {config.repeats}: an interval needs at least 2")
    if unknown := set(config.presets) - set(PRESETS):
        raise ValueError(f"no preset {', '.join(sorted(unknown))}: there are {', '.join(PRESETS)}")
    if config.speed <= 0:
        raise ValueError(f"speed {config.speed:g}: times real time, above 0")
    if wrong := [duty for duty in config.duties if not 0 < duty <= 1]:
        raise ValueError(f"duties {wrong}: shares of the time, above 0 and up to 1")


class Kind(NamedTuple):
    """One kind of run. way: `IDLE`, a duty in percent, or `LOOP`."""

    preset: str
    priority: Priority
    way: str


def percent(duty: float) -> str:
    """Returns how a duty is called."""
    return f"{100 * duty:.0f}%"


def kinds(config: ContentionConfig) -> list[Kind]:
    """Returns all kinds of runs. The synchronous runner has the first priority alone: it is late in any."""
    ways = [IDLE, *map(percent, config.duties)]
    beside = [Kind(preset, first, way) for preset in config.presets for first in config.priorities for way in ways]
    return beside + [Kind(preset, config.priorities[0], LOOP) for preset in config.presets]


def schedule(config: ContentionConfig) -> list[tuple[Kind, int]]:
    """Returns the runs in their order: one of each kind, and again, beginning with another kind each time."""
    every = kinds(config)
    shift = max(sum(kind.way != LOOP for kind in every) // config.repeats, 1)
    turns = ((every[(i + repeat * shift) % len(every)], repeat) for repeat in range(config.repeats) for i in range(len(every)))
    return [(kind, repeat) for kind, repeat in turns if repeat < repeats(config, kind)]


def repeats(config: ContentionConfig, kind: Kind) -> int:
    """Returns how many runs of a kind there are."""
    return min(config.repeats, LOOPS) if kind.way == LOOP else config.repeats


def run_config(config: ContentionConfig, kind: Kind) -> RealTimeConfig:
    """Returns the real-time run of a kind."""
    duty = dict(zip(map(percent, config.duties), config.duties)) | {IDLE: 0.0, LOOP: None}
    return RealTimeConfig(
        out=config.out,
        weights=Weights(config.run if kind.preset == "demo" else None, kind.preset),
        task=config.task,
        hz=config.speed / world_of(config.task).tick_s,
        seconds=config.seconds * (LOOP_SHARE if kind.way == LOOP else 1),
        ratio=config.ratio,
        patience=Patience(silent_s=1e6),
        planner="loop" if kind.way == LOOP else "process",
        priority=kind.priority,
        duty=duty[kind.way],
    )


def measure(config: RealTimeConfig, tokenizer: Path | None) -> dict[str, Any]:
    """Returns the figures of a run, in a process that has computed nothing yet."""
    cache_compilations(Path("runs/.jax_cache"))
    flown = execute(config, tokenizer)
    if flown.failed is not None:
        raise flown.failed
    return figures(flown) | {"parameters": parameters(flown.network)}


def settings(config: ContentionConfig) -> dict[str, Any]:
    """Returns what the runs of two commands must have in common to be one measurement."""
    facts = {name: getattr(config, name) for name in ("task", "speed", "ratio", "seconds")}
    return facts | {"run": str(config.run), "step": newest_step(config.run) if config.run else None}


def disturbed(found: dict[str, Any]) -> bool:
    """Whether something besides the planner had too much of the machine during a run."""
    return (found["elsewhere"] or 0.0) > ELSEWHERE or (found["stolen"] or 0.0) > STOLEN


def finished(config: ContentionConfig) -> dict[tuple[Kind, int], dict[str, Any]]:
    """Returns what has been measured so far and counts, by kind and repeat."""
    path, wanted = config.out / "runs.jsonl", settings(config)
    *whole, torn = path.read_text().split("\n") if path.exists() else [""]
    if torn:
        print(f"{path}: the last line was cut short; its run is made again", file=sys.stderr)
        path.write_text("".join(line + "\n" for line in whole))
    found: dict[tuple[Kind, int], list[dict[str, Any]]] = {}
    for line in map(json.loads, whole):
        if line["settings"] == wanted:
            found.setdefault((Kind(*line["kind"]), line["repeat"]), []).append(line["found"])
    return {each: runs[-1] for each, runs in found.items() if len(runs) >= TRIES or not disturbed(runs[-1])}


def contention(config: ContentionConfig) -> dict[tuple[Kind, int], dict[str, Any]]:
    """Returns the figures of every run, after measuring those that are not there yet."""
    check(config)
    found, plan = finished(config), schedule(config)
    tokenizer = tokenizer_for(world_of(config.task), config.out / TOKENIZER)
    took: list[float] = []
    while left := [each for each in plan if each not in found]:
        kind, repeat = left[0]
        each_s = float(np.mean(took)) if took else config.seconds + START_S
        print(
            f"run {len(plan) - len(left) + 1} of {len(plan)}: {kind.preset}, {kind.priority} priority, {kind.way}; "
            f"{each_s * len(left) / 60:.0f} minutes left",
            file=sys.stderr,
            flush=True,
        )
        began = time.monotonic()
        # A process a run: what one leaves behind is not measured with the next.
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            one = fresh.submit(measure, run_config(config, kind), tokenizer).result()
        if one["ticks"] != run_config(config, kind).limit:
            raise KeyboardInterrupt
        if kind.way not in (IDLE, LOOP) and one["planner_duty"] is None:
            raise RuntimeError(f"the planner of {kind.preset}, {kind.way} busy, did not live through its run: start this again")
        took.append(time.monotonic() - began)
        line = {"kind": kind, "repeat": repeat, "settings": settings(config), "found": one}
        with (config.out / "runs.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print("    " + told(one), file=sys.stderr, flush=True)
        found = finished(config)
        if (kind, repeat) not in found:
            print("    disturbed: it is made again", file=sys.stderr, flush=True)
    return {each: found[each] for each in plan}


def told(found: dict[str, Any]) -> str:
    """Returns a run in a few words."""
    duty = "" if found["planner_duty"] is None else f", planner computed {100 * found['planner_duty']:.0f}%"
    elsewhere = "" if found["elsewhere"] is None else f", other programs {100 * found['elsewhere']:.0f}% of the machine"
    elsewhere += f", {100 * found['stolen']:.1f}% stolen by its host" if found["stolen"] else ""
    return f"tick p99 {found['tick_ms']['p99']:.2f} ms, {found['missed']} of {found['ticks']} missed{duty}{elsewhere}"


class Outcome(NamedTuple):
    """One kind of run. p99_ms: of a tick; missed: share of ticks that were late; both over runs. duty, slow_hz: means, of the
    planner's computing (None in the loop) and of plans taken. elsewhere: other programs' share of the machine. growth,
    more_missed: against idle, run by run; None for idle itself. limit: of growth. permitted: whether the priority asked for was
    to be had."""

    kind: Kind
    parameters: int
    p99_ms: Interval
    missed: Interval
    duty: float | None
    slow_hz: float
    elsewhere: float | None
    growth: Interval | None
    more_missed: Interval | None
    limit: float
    permitted: bool

    @property
    def holds(self) -> bool:
        """Whether the tick's p99 grows by the limit at most, on average, and misses are not more beyond the interval."""
        return self.growth is None or (self.growth.mean <= self.limit and self.more_missed.low <= 0)


def outcomes(config: ContentionConfig, found: dict[tuple[Kind, int], dict[str, Any]]) -> list[Outcome]:
    """Returns what the runs say, kind by kind."""
    made = []
    for kind in kinds(config):
        runs, idle = ([found[each, i] for i in range(repeats(config, kind))] for each in (kind, kind._replace(way=IDLE)))
        permitted = kind.priority == "usual" or all("SCHED_FIFO" in " ".join(run["notes"]) for run in (*runs, *idle))
        p99, before = ([run["tick_ms"]["p99"] for run in each] for each in (runs, idle))
        missed, missed_before = ([run["missed_share"] for run in each] for each in (runs, idle))
        known = [run["planner_duty"] for run in runs if run["planner_duty"] is not None]
        others = [run["elsewhere"] for run in runs if run["elsewhere"] is not None]
        against = kind.way != IDLE
        made.append(
            Outcome(
                kind,
                runs[0]["parameters"],
                mean_interval(p99),
                mean_interval(missed),
                float(np.mean(known)) if known else None,
                float(np.mean([run["slow_hz"] for run in runs])),
                float(np.mean(others)) if others else None,
                mean_interval(np.divide(p99, before)) if against else None,
                paired_difference(missed, missed_before) if against else None,
                LIMITS[kind.priority if permitted else "usual"],
                permitted,
            )
        )
    return made


def tabulated(found: Sequence[Outcome]) -> Table:
    """Returns the outcomes as a table; brackets are 95% bootstrap intervals over runs."""
    columns = (
        "planner",
        "parameters",
        "priority",
        "planner is",
        "computes",
        "slow Hz",
        "others",
        "tick p99, ms",
        "grows",
        "missed, %",
        "",
    )
    table = Table(*columns)
    for each in found:
        growth = "" if each.growth is None else f"{_spoken(each.growth, 2)}, limit {each.limit:g}"
        verdict = "" if each.kind.way in (IDLE, LOOP) else "holds" if each.holds else "DOES NOT HOLD"
        table.add_row(
            each.kind.preset,
            f"{each.parameters / 1e6:.1f}M",
            each.kind.priority + ("" if each.permitted else " (not permitted)"),
            each.kind.way,
            "" if each.duty is None else percent(each.duty),
            f"{each.slow_hz:.1f}",
            "" if each.elsewhere is None else percent(each.elsewhere),
            _spoken(each.p99_ms, 2),
            "" if each.kind.way == LOOP else growth,
            _spoken(Interval(*(100 * value for value in each.missed)), 3),
            verdict,
        )
    return table


def _spoken(interval: Interval, digits: int) -> str:
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def draw(config: ContentionConfig, found: dict[tuple[Kind, int], dict[str, Any]], made: Sequence[Outcome], path: Path) -> None:
    """Writes the picture: every run's p99 and misses, by how busy the planner is."""
    ways = [IDLE, *map(percent, config.duties), LOOP]
    period_ms = 1e3 * world_of(config.task).tick_s / config.speed
    titles = {"real_time": "controller at real-time priority", "usual": "controller at the usual priority"}
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 5.6), layout="constrained")
        grid = figure.subplots(2, len(config.priorities), sharex=True, sharey="row", squeeze=False)
        for column, priority in enumerate(config.priorities):
            times, missed = grid[:, column]
            own = [each for each in made if each.kind.priority == priority]
            for colour, preset in zip((BLUE, TEAL, SAND), config.presets):
                _draw_planner(times, missed, [each for each in own if each.kind.preset == preset], found, config, ways, colour)
            times.axhline(period_ms, color=GREY, lw=1, ls="--")
            times.annotate("period", (0, period_ms), (-12, 3), textcoords="offset points", fontsize=8.5, color=MUTED)
            times.set(yscale="log", title=titles[priority])
            missed.set_yscale("symlog", linthresh=0.01)
            missed.set(ylim=(-0.002, 100), xlabel="the planner is")
            missed.set_xticks(range(len(ways)), [way if way in (IDLE, LOOP) else f"{way} busy" for way in ways])
        grid[0, 0].set_ylabel("p99 of a tick, ms")
        grid[1, 0].set_ylabel("ticks that missed their deadline, %")
        grid[0, 0].legend(frameon=False, loc="upper left", fontsize=9)
        figure.savefig(path, dpi=110)


def _draw_planner(times: Axes, missed: Axes, own: Sequence[Outcome], found, config: ContentionConfig, ways, colour: str) -> None:
    """One planner's runs as dots, their means with intervals, and the limit that its idle p99 sets."""
    aside = 0.16 * (config.presets.index(own[0].kind.preset) - (len(config.presets) - 1) / 2) * 2
    for each in own:
        x = ways.index(each.kind.way) + aside
        runs = [found[each.kind, i] for i in range(repeats(config, each.kind))]
        jitter = x + np.linspace(-0.06, 0.06, len(runs))
        label = f"{each.parameters / 1e6:.1f}M parameters" if each.kind.way == IDLE else None
        for axes, values, interval in (
            (times, [run["tick_ms"]["p99"] for run in runs], each.p99_ms),
            (missed, [100 * run["missed_share"] for run in runs], Interval(*(100 * value for value in each.missed))),
        ):
            axes.plot(jitter, values, ".", color=colour, ms=4, alpha=0.6)
            axes.errorbar(
                [x],
                [interval.mean],
                [[interval.mean - interval.low], [interval.high - interval.mean]],
                fmt="o",
                ms=6,
                color=colour,
                elinewidth=1.4,
                label=label if axes is times else None,
            )
        if each.kind.way == IDLE:
            times.hlines(each.limit * each.p99_ms.mean, 0.6, len(config.duties) + 0.4, color=colour, lw=1, ls=":")


def report(config: ContentionConfig, found: dict[tuple[Kind, int], dict[str, Any]], made: Sequence[Outcome]) -> dict[str, Any]:
    """Returns all of it as JSON."""
    plain = [{**each._asdict(), "kind": each.kind._asdict(), "holds": each.holds} for each in made]
    intervals = ("p99_ms", "missed", "growth", "more_missed")
    for each in plain:
        each |= {name: each[name] and each[name]._asdict() for name in intervals}
    runs = [{"kind": kind._asdict(), "repeat": repeat, **one} for (kind, repeat), one in found.items()]
    facts = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return {"config": facts, "outcomes": plain, "runs": runs}


def main() -> int:
    """Runs the command line; returns the exit code: 1 where a busy planner does make the controller late."""
    config = tyro.cli(ContentionConfig, description=f"{__doc__}\n{ContentionConfig.__doc__}")
    try:
        found = contention(config)
    except (ValueError, OSError, RuntimeError, CheckpointError, concurrent.futures.BrokenExecutor) as error:
        print(f"contention: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("contention: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    made = outcomes(config, found)
    draw(config, found, made, config.out / "contention.png")
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(report(config, found, made), indent=1) + "\n")
    Console(width=None if sys.stdout.isatty() else 200).print(tabulated(made))
    print(f"{config.out}: runs.jsonl, contention.png")
    return int(not all(each.holds for each in made if each.kind.way != LOOP))


if __name__ == "__main__":
    sys.exit(main())
