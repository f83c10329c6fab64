"""What the demos are made of: stages with the time left, sources, paces, trainings side by side, and the facts of a run."""

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments import rows, scripted, train
from experiments.compare_ratios import CompareConfig, compare
from experiments.evaluate import FIRST_SEED, describe_row, load
from experiments.scripted import ScriptedConfig
from experiments.side_by_side import side_by_side
from experiments.train import TrainConfig, cache_compilations
from hierarchy.training.checkpoint import CheckpointError
from hierarchy.training.trainer import Interrupted, NotFinite, read_metrics

COMPILED = Path("runs/.jax_cache")
BAR = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(elapsed_when_finished=True),
    TextColumn("{task.fields[note]}"),
)
Loops = tuple[Sequence[tuple[CompareConfig, dict]], Sequence[ScriptedConfig]]
"""Comparisons with their tick times, and scripted references, that one process measures."""
PACKAGES = ["jax", "jaxlib", "dm-haiku", "optax", "dm-control", "mujoco", "numpy", "grain", "array-record", "orbax-checkpoint"]
"""Those whose versions a run states."""
TRAINED = "trained.json"
"""Stands in the folder of a run whose training is over."""


class Stages:
    """Says where a demo is and how long is left, and keeps how long each stage took across interruptions.

    The estimate is that of the listed minutes (2 cores), scaled by how fast the stages so far have been here.
    """

    def __init__(self, folder: Path, minutes: Mapping[str, float]):
        self._path, self._minutes = folder / "durations.json", minutes
        folder.mkdir(parents=True, exist_ok=True)
        self.took_s: dict[str, float] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def run(self, name: str, work: Callable[[], object]) -> None:
        """Runs a stage and adds its seconds to those of earlier tries."""
        number = list(self._minutes).index(name) + 1
        print(f"\n[{number}/{len(self._minutes)}] {name}; about {self.left(name):.0f} minutes left", flush=True)
        began = time.monotonic()
        try:
            work()
        finally:
            self.took_s[name] = self.took_s.get(name, 0.0) + time.monotonic() - began
            write_json(self._path, self.took_s)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the folder from every other demo meanwhile; the system lets it go when this process ends, however it ends.

        Raises:
            ValueError: another has it.
        """
        folder = self._path.parent
        with (folder / "in_use").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{folder} is in use by another demo: let it end, or give this one another --out") from None
            yield

    def left(self, name: str) -> float:
        """Returns the minutes left from the start of a stage."""
        names = list(self._minutes)
        before, after = names[: names.index(name)], names[names.index(name) :]
        expected = sum(self._minutes[each] for each in before)
        pace = sum(self.took_s.get(each, 0.0) for each in before) / 60 / expected if expected else 1.0
        return max(pace, 0.2) * sum(self._minutes[each] for each in after)

    def left_s(self, name: str) -> float:
        """Returns the seconds of the listed minutes left for a stage, after what was spent and before what is to come."""
        names = list(self._minutes)
        after = sum(self._minutes[each] for each in names[names.index(name) + 1 :])
        return 60 * (sum(self._minutes.values()) - after) - sum(self.took_s.values())


def write_json(path: Path, values: object) -> None:
    """Writes a file of JSON, whole or not at all."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(values, indent=1))
    draft.rename(path)


def record_sources(corpus: Path, episodes: Mapping[str, int]) -> None:
    """Records what is missing of these tasks, two at a time. episodes: of each."""
    waiting = [
        [sys.executable, "-m", "experiments.record", "--task", task, "--episodes", str(count), "--out", str(corpus / task)]
        for task, count in episodes.items()
    ]
    running: list[subprocess.Popen] = []
    while waiting or running:
        while waiting and len(running) < 2:
            running.append(subprocess.Popen(waiting.pop(0), env=os.environ | {"OMP_NUM_THREADS": "1"}))
        finished = [each for each in running if each.poll() is not None]
        if any(each.returncode for each in finished):
            for each in running:
                each.terminate()
            raise ChildProcessError("recording stopped; its message is above; the same command goes on from there")
        running = [each for each in running if each not in finished]
        time.sleep(0.1)


class Pace(NamedTuple):
    """Seconds of a step in the planner's warm-up, and in joint training."""

    warm_up_s: float
    joint_s: float


def steps_in(budget_s: float, pace: Pace, warm_up: float) -> int:
    """Returns how many steps take so long, a share of them warm-up: 2 at least."""
    return max(2, round(budget_s / (warm_up * pace.warm_up_s + (1 - warm_up) * pace.joint_s)))


def paces(probes: Mapping[str, TrainConfig], folder: Path, steps: int = 30) -> dict[str, Pace]:
    """Returns the pace of each training, measured once and kept: two at a time, each on half of the cores as they will train.

    steps: of each phase; compilation is left out.
    """
    found = {name: folder / f"pace_{name}.json" for name in probes}
    missing = [(measure_pace, (probes[name], path, steps)) for name, path in found.items() if not path.exists()]
    if missing:
        halves = {"paces_1": missing[::2], "paces_2": missing[1::2]}
        side_by_side({name: (in_turn, (jobs,)) for name, jobs in halves.items() if jobs}, folder)
    return {name: Pace(**json.loads(path.read_text())) for name, path in found.items()}


def measure_pace(config: TrainConfig, path: Path, steps: int) -> None:
    """Writes the seconds of a step in each phase of a training."""
    cache_compilations(COMPILED)
    write_json(path, Pace(*train.pace_s(config, steps))._asdict())


def in_turn(jobs: Sequence[tuple[Callable[..., object], tuple]]) -> None:
    """Does jobs one after another, in a process of its own."""
    for function, arguments in jobs:
        function(*arguments)
        # What one job compiled, the next has no use for.
        jax.clear_caches()


def train_alone(config: TrainConfig) -> None:
    """Trains, unless that is done."""
    path = config.out / TRAINED
    if path.exists():
        return
    cache_compilations(COMPILED)
    state = train.train_run(config)
    write_json(path, {"steps": int(state.step)})


def train_side_by_side(lanes: Mapping[str, Sequence[TrainConfig]], folder: Path) -> None:
    """Trains what is in the lanes at the same time, each lane's one after another, on its own part of the cores: so none that is
    compared has more of the machine than another."""
    with Progress(*BAR) as bar:
        steps = {name: sum(each.learner.steps for each in lane) for name, lane in lanes.items()}
        bars = {name: bar.add_task(f"training {name}", total=total, note="") for name, total in steps.items()}

        def watch() -> None:
            for name, lane in lanes.items():
                lines = {each.out: read_metrics(each.out) for each in lane}
                newest = [(out, found[-1]) for out, found in lines.items() if found]
                note = f"{newest[-1][0].name}, loss {newest[-1][1]['loss']:.3f}" if newest and "loss" in newest[-1][1] else ""
                bar.update(bars[name], completed=sum(line["step"] + 1 for _, line in newest), note=note)

        side_by_side(
            {name: (in_turn, ([(train_alone, (each,)) for each in lane],)) for name, lane in lanes.items()}, folder, watch
        )


def close_side_by_side(jobs: Mapping[str, Loops], folder: Path, tables: Sequence[Path], wanted: int) -> None:
    """Closes the loops of each job in a process of its own. tables: files of rows. wanted: how many rows there will be."""
    said = {(path, key) for path in tables for key in rows.by_key(rows.load(path))}
    with Progress(*BAR) as bar:
        cells = bar.add_task("closing loops", total=wanted, note="")

        def watch() -> None:
            found = {(path, key): row for path in tables for key, row in rows.by_key(rows.load(path)).items()}
            for key in found.keys() - said:
                bar.console.print(describe_row(found[key]), highlight=False)
            said.update(found)
            bar.update(cells, completed=len(found))

        side_by_side({name: (close_loops, arguments) for name, arguments in jobs.items()}, folder, watch)


def close_loops(wanted: Sequence[tuple[CompareConfig, dict]], beside: Sequence[ScriptedConfig]) -> None:
    """Closes the loops of each comparison, its tick times beside it, and plays scripted references, in a process of its own."""
    cache_compilations(COMPILED)
    trained = {run: load(run) for run in dict.fromkeys(each.run for each, _ in wanted)}
    for each, tick_ms in wanted:
        compare(each, trained[each.run], tick_ms)
    for each in beside:
        scripted.play(each)


def facts(target: str, module: str, config: object, seeds: object, stages: Stages) -> dict:
    """Returns what the report says about how a run came about: by which target of make, and which module of experiments."""
    return {
        "commands": [f"make {target}", " ".join([f"python -m experiments.{module}", *sys.argv[1:]])],
        "config": plain(dataclasses.asdict(config)),
        "seeds": {"training": seeds, "first evaluation episode": FIRST_SEED, "first recorded episode": 0},
        "durations_s": {name: round(seconds, 1) for name, seconds in stages.took_s.items()},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def plain(values: dict) -> dict:
    """Returns the config with paths as words."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def processor() -> str:
    """Returns the processor's name, as well as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def run_stages(stages: Stages, named: Iterable[tuple[str, Callable[[], object]]]) -> None:
    """Runs all stages in order. Raises ValueError where another demo is at work in the folder."""
    cache_compilations(COMPILED)
    with stages.held():
        for name, work in named:
            stages.run(name, work)


def run_command(name: str, job: Callable[[], Path]) -> int:
    """Returns the exit code of a demo, after saying where its page is and how long it took, or what is in the way."""
    began = time.monotonic()
    try:
        path = job()
    except (ValueError, OSError, CheckpointError, NotFinite) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"\n{name}: {error or 'stopped'}; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"\n{path} after {(time.monotonic() - began) / 60:.1f} minutes")
    return 0
