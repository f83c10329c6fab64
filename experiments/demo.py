"""The main job: record experts, train three agents, close loops at many ratios and latencies, write the report.

    make demo            (or: python -m experiments.demo)

Half an hour at most on 2 cores, install aside. Interrupt it whenever you like: the same command goes on where it stopped, and
what is finished is not done again. Everything lies in runs/demo; open runs/demo/report.html.

experiments/demo.md says what to expect, and what has been seen so far.
"""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments import compare_ratios, film, report, rows, scripted, train
from experiments.compare_ratios import CompareConfig, compare
from experiments.evaluate import FIRST_SEED, describe_row, load
from experiments.scripted import ScriptedConfig
from experiments.side_by_side import side_by_side
from experiments.train import Mix, TrainConfig, cache_compilations, train_run
from hierarchy.training.checkpoint import CheckpointError
from hierarchy.training.learner import LearnerConfig
from hierarchy.training.trainer import Interrupted, NotFinite, TrainerConfig, read_metrics

SUITE = {"cartpole_balance": 1.0, "pendulum_swingup": 7.0, "point_mass_easy": 1.5, "reacher_easy": 0.5}
"""The bodies, and how often each is trained on against the others."""


COMPILED = Path("runs/.jax_cache")
BAR = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(elapsed_when_finished=True),
    TextColumn("{task.fields[note]}"),
)


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """What the demo does, and how much of it.

    out: folder. preset: size of the models. patrol_episodes, suite_episodes: recorded. steps, planner_steps: of the two-rate
    agent; the single-rate one gets the same wall time and the controller alone `controller_share` of the steps. peak_rate: the
    one learning rate that each of them is given, `controller_rate` times that for a small controller. episodes,
    suite_evaluations: a cell.
    """

    out: Path = Path("runs/demo")
    preset: str = "demo"
    patrol_episodes: int = 2000
    suite: tuple[str, ...] = tuple(SUITE)
    suite_episodes: int = 60
    steps: int = 2250
    planner_steps: int = 560
    peak_rate: float = 1.5e-3
    controller_rate: float = 3.0
    controller_share: float = 0.3
    patrol_weight: float = 0.72
    seed: int = 0
    episodes: int = 128
    suite_evaluations: int = 32
    ratios: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    latencies: tuple[int, ...] = (0, 2, 4, 8)
    checkpoint_every_s: float = 60.0


class Stages:
    """Says where the demo is and how long is left, and keeps how long each stage took across interruptions.

    The estimate is that of the listed minutes (2 cores), scaled by how fast the stages so far have been here.
    """

    def __init__(self, folder: Path, minutes: dict[str, float]):
        self._path, self._minutes = folder / "durations.json", minutes
        folder.mkdir(parents=True, exist_ok=True)
        self.took_s: dict[str, float] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def run(self, name: str, work: Callable[[], None]) -> None:
        """Runs a stage and adds its seconds to those of earlier tries."""
        number = list(self._minutes).index(name) + 1
        print(f"\n[{number}/{len(self._minutes)}] {name}; about {self.left(name):.0f} minutes left", flush=True)
        began = time.monotonic()
        try:
            work()
        finally:
            self.took_s[name] = self.took_s.get(name, 0.0) + time.monotonic() - began
            draft = self._path.with_suffix(".draft")
            draft.write_text(json.dumps(self.took_s, indent=1))
            draft.rename(self._path)

    def left(self, name: str) -> float:
        """Returns the minutes left from the start of a stage."""
        names = list(self._minutes)
        before, after = names[: names.index(name)], names[names.index(name) :]
        expected = sum(self._minutes[each] for each in before)
        pace = sum(self.took_s.get(each, 0.0) for each in before) / 60 / expected if expected else 1.0
        return max(pace, 0.2) * sum(self._minutes[each] for each in after)


def record_experts(config: DemoConfig) -> None:
    """Records what is missing, two tasks at a time."""
    counts = {"patrol": config.patrol_episodes} | dict.fromkeys(config.suite, config.suite_episodes)
    waiting = [
        [
            sys.executable,
            "-m",
            "experiments.record",
            "--task",
            task,
            "--episodes",
            str(count),
            "--out",
            str(corpus(config) / task),
        ]
        for task, count in counts.items()
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


def corpus(config: DemoConfig) -> Path:
    """Returns the folder of sources."""
    return config.out / "corpus"


def training(config: DemoConfig, agent: train.AgentName, steps: int) -> TrainConfig:
    """Returns how one agent is trained. Sources are weighted alike for all of them."""
    tasks = tuple(sorted(("patrol", *config.suite)))
    rest = (1 - config.patrol_weight) / max(sum(SUITE[task] for task in config.suite), 1)
    planner_steps = round(steps * config.planner_steps / config.steps) if agent != "controller_only" else 0
    return TrainConfig(
        corpus=corpus(config),
        out=config.out / agent,
        agent=agent,
        preset=config.preset,
        mix=Mix(tasks=tasks, weights=tuple(config.patrol_weight if task == "patrol" else rest * SUITE[task] for task in tasks)),
        learner=LearnerConfig(
            steps=steps,
            planner_steps=planner_steps,
            peak_rate=config.peak_rate,
            controller_rate=1.0 if agent == "single_rate" else config.controller_rate,
            seed=config.seed,
        ),
        trainer=TrainerConfig(checkpoint_every_s=config.checkpoint_every_s),
    )


def matched_steps(config: DemoConfig) -> int:
    """Returns the steps that give the single-rate agent the wall time of the two-rate one, decided once and kept.

    Both are counted without compilation, at the median pace of each phase, each measured on half of the cores as they will train,
    and at once as far as their compilations let them.
    """
    path = config.out / "single_rate_steps.json"
    if path.exists():
        return json.loads(path.read_text())["steps"]
    probes = {agent: training(config, agent, config.steps) for agent in ("two_rate", "single_rate")}
    found = {agent: config.out / f"pace_{agent}.json" for agent in probes}
    side_by_side({agent: (measure_pace, (probes[agent], found[agent])) for agent in probes}, config.out)
    warm_up, joint = ([json.loads(found[agent].read_text())[phase] for agent in probes] for phase in ("warm_up_s", "joint_s"))
    learner = probes["two_rate"].learner
    budget_s = learner.planner_steps * warm_up[0] + (learner.steps - learner.planner_steps) * joint[0]
    share = learner.planner_steps / learner.steps
    steps = max(2, round(budget_s / (share * warm_up[1] + (1 - share) * joint[1])))
    path.write_text(json.dumps({"steps": steps, "budget_s": budget_s, "warm_up_step_s": warm_up[1], "step_s": joint[1]}))
    return steps


def measure_pace(config: TrainConfig, path: Path) -> None:
    """Writes the seconds of a step in each phase of a training."""
    cache_compilations(COMPILED)
    warm_up_s, joint_s = train.pace_s(config)
    path.write_text(json.dumps({"warm_up_s": warm_up_s, "joint_s": joint_s}))


def train_alone(config: TrainConfig) -> None:
    """Trains, in a process of its own."""
    cache_compilations(COMPILED)
    train_run(config)


def train_side_by_side(config: DemoConfig) -> None:
    """Trains the two agents that are compared, each on half of the cores, so that neither has more of the machine."""
    steps = {"two_rate": config.steps, "single_rate": matched_steps(config)}
    wanted = {agent: training(config, agent, count) for agent, count in steps.items()}
    with Progress(*BAR) as bar:
        bars = {agent: bar.add_task(f"training {agent}", total=steps[agent], note="") for agent in steps}

        def watch() -> None:
            for agent, each in wanted.items():
                if lines := read_metrics(each.out):
                    note = f"loss {lines[-1]['loss']:.3f}" if "loss" in lines[-1] else ""
                    bar.update(bars[agent], completed=lines[-1]["step"] + 1, note=note)

        side_by_side({agent: (train_alone, (each,)) for agent, each in wanted.items()}, config.out, watch)


def evaluate(config: DemoConfig) -> None:
    """Measures tick times with the machine to itself, then closes all loops in two processes, each on half of the cores."""
    patrol = patrols(config)
    trained = {agent: load(config.out / agent) for agent in patrol}
    measured = [(patrol[agent], compare_ratios.tick_times(patrol[agent], trained[agent])) for agent in patrol]
    others = measured[1:] + [(bodies(config, agent, task), {}) for task in config.suite for agent in ("two_rate", "single_rate")]
    wanted = len(list(scripted.rows_of(references(config)))) + sum(
        len(compare_ratios.cells_of(each, trained[each.run.name])) for each, _ in measured[:1] + others
    )
    path = config.out / "rows.jsonl"
    said = set(rows.by_key(rows.load(path)))
    with Progress(*BAR) as bar:
        cells = bar.add_task("closing loops", total=wanted, note="")

        def watch() -> None:
            found = rows.by_key(rows.load(path))
            for key in found.keys() - said:
                bar.console.print(describe_row(found[key]), highlight=False)
            said.update(found)
            bar.update(cells, completed=len(found))

        jobs = {"loops_two_rate": (close_loops, (measured[:1],)), "loops_others": (close_loops, (others, references(config)))}
        side_by_side(jobs, config.out, watch)


def patrols(config: DemoConfig) -> dict[str, CompareConfig]:
    """Returns the cells of the patrol, by agent."""
    held, late = tuple(k for k in config.ratios if k > 1), tuple(d for d in config.latencies if d > 0)
    same = {
        "rows": config.out / "rows.jsonl",
        "episodes": config.episodes,
        "ratios": config.ratios,
        "latencies": config.latencies,
    }
    return {
        "two_rate": CompareConfig(config.out / "two_rate", held=held, late=late, **same),
        "single_rate": CompareConfig(config.out / "single_rate", held=held, late=late, **same),
        "controller_only": CompareConfig(config.out / "controller_only", **same),
    }


def bodies(config: DemoConfig, agent: str, task: str) -> CompareConfig:
    """Returns the one cell that a suite task is shown at."""
    return CompareConfig(
        config.out / agent, config.out / "rows.jsonl", task, config.suite_evaluations, ratios=(8,), latencies=(0,), controls=()
    )


def references(config: DemoConfig) -> ScriptedConfig:
    """Returns the scripted references."""
    return ScriptedConfig(
        config.out / "rows.jsonl", config.episodes, config.suite_evaluations, config.ratios, config.latencies, config.suite
    )


def close_loops(wanted: list[tuple[CompareConfig, dict]], references: ScriptedConfig | None = None) -> None:
    """Closes the loops of each comparison, its tick times beside it, and plays the references, in a process of its own."""
    cache_compilations(COMPILED)
    for each, tick_ms in wanted:
        compare(each, load(each.run), tick_ms)
    if references:
        scripted.play(references)


def film_patrol(config: DemoConfig) -> None:
    """Writes a video of one patrol at ratio 8, latency 4."""
    path = config.out / "patrol.mp4"
    if not path.exists():
        film.film_episode(load(config.out / "two_rate"), "patrol", path, ratio=8, latency=4, seed=FIRST_SEED)


def write_facts(config: DemoConfig, stages: Stages) -> None:
    """Writes run.json: everything that the report says about how it came about."""
    names = ("jax", "jaxlib", "dm-haiku", "optax", "dm-control", "mujoco", "numpy", "grain", "array-record", "orbax-checkpoint")
    facts = {
        "commands": ["make demo", " ".join(["python -m experiments.demo", *sys.argv[1:]])],
        "config": plain(dataclasses.asdict(config)),
        "seeds": {"training": config.seed, "first evaluation episode": FIRST_SEED, "first recorded episode": 0},
        "durations_s": {name: round(seconds, 1) for name, seconds in stages.took_s.items()},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
    }
    (config.out / "run.json").write_text(json.dumps(facts, indent=1))


def plain(values: dict) -> dict:
    """Returns the config with paths as words."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def processor() -> str:
    """Returns the processor's name, as well as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def stages_of(config: DemoConfig, stages: Stages) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yields the demo's stages in order."""
    yield "record experts", lambda: record_experts(config)
    yield "train two_rate and single_rate", lambda: train_side_by_side(config)
    few = max(2, round(config.steps * config.controller_share))
    yield "train controller_only", lambda: train_run(training(config, "controller_only", few))
    yield "close loops", lambda: evaluate(config)
    yield "film and report", lambda: (film_patrol(config), write_facts(config, stages), report.write_report(config.out))


MINUTES = {
    "record experts": 1.0,
    "train two_rate and single_rate": 17.0,
    "train controller_only": 1.5,
    "close loops": 6.0,
    "film and report": 0.2,
}


def demo(config: DemoConfig) -> Path:
    """Returns the report's path, after running whatever is not finished."""
    cache_compilations(COMPILED)
    stages = Stages(config.out, MINUTES)
    for name, work in stages_of(config, stages):
        stages.run(name, work)
    return config.out / "report.html"


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(DemoConfig, description=__doc__)
    began = time.monotonic()
    try:
        path = demo(config)
    except (ValueError, OSError, CheckpointError, NotFinite) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"\ndemo: {error or 'stopped'}; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"\n{path} after {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
