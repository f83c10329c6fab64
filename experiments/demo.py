"""The main job: record experts, train three agents, close loops at many ratios and latencies, write the report.

    make demo            (or: python -m experiments.demo)

Half an hour at most on 2 cores, install aside. Interrupt it whenever you like: the same command goes on where it stopped, and
what is finished is not done again. Everything lies in runs/demo; open runs/demo/report.html.

experiments/demo.md says what to expect, and what has been seen so far.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import tyro

from experiments import compare_ratios, film, report, scripted, train
from experiments.compare_ratios import CompareConfig
from experiments.evaluate import FIRST_SEED, load
from experiments.scripted import ScriptedConfig
from experiments.stages import (
    Stages,
    close_side_by_side,
    facts,
    paces,
    record_sources,
    run_command,
    run_stages,
    steps_in,
    train_side_by_side,
    write_json,
)
from experiments.train import Mix, TrainConfig, train_run
from hierarchy.training.learner import LearnerConfig
from hierarchy.training.trainer import TrainerConfig

SUITE = {"cartpole_balance": 1.0, "pendulum_swingup": 7.0, "point_mass_easy": 1.5, "reacher_easy": 0.5}
"""The bodies, and how often each is trained on against the others."""


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
    steps: int = 3500
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
    found, learner = paces(probes, config.out), probes["two_rate"].learner
    budget_s = learner.planner_steps * found["two_rate"].warm_up_s
    budget_s += (learner.steps - learner.planner_steps) * found["two_rate"].joint_s
    pace = found["single_rate"]
    steps = steps_in(budget_s, pace, learner.planner_steps / learner.steps)
    write_json(path, {"steps": steps, "budget_s": budget_s, "warm_up_step_s": pace.warm_up_s, "step_s": pace.joint_s})
    return steps


def train_both(config: DemoConfig) -> None:
    """Trains the two agents that are compared, each on half of the cores, so that neither has more of the machine."""
    steps = {"two_rate": config.steps, "single_rate": matched_steps(config)}
    train_side_by_side({agent: [training(config, agent, count)] for agent, count in steps.items()}, config.out)


def evaluate(config: DemoConfig) -> None:
    """Measures tick times with the machine to itself, then closes all loops in two processes, each on half of the cores."""
    patrol = patrols(config)
    trained = {agent: load(config.out / agent) for agent in patrol}
    measured = [(patrol[agent], compare_ratios.tick_times(patrol[agent], trained[agent])) for agent in patrol]
    others = measured[1:] + [(bodies(config, agent, task), {}) for task in config.suite for agent in ("two_rate", "single_rate")]
    wanted = len(list(scripted.rows_of(references(config)))) + sum(
        len(compare_ratios.cells_of(each, trained[each.run.name])) for each, _ in measured[:1] + others
    )
    jobs = {"loops_two_rate": (measured[:1], []), "loops_others": (others, [references(config)])}
    close_side_by_side(jobs, config.out, [config.out / "rows.jsonl"], wanted)


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


def film_patrol(config: DemoConfig) -> None:
    """Writes a video of one patrol at ratio 8, latency 4."""
    path = config.out / "patrol.mp4"
    if not path.exists():
        film.film_episode(load(config.out / "two_rate"), "patrol", path, ratio=8, latency=4, seed=FIRST_SEED)


def write_page(config: DemoConfig, stages: Stages) -> None:
    """Writes run.json, which is everything that the report says about how it came about, and the report."""
    write_json(config.out / "run.json", facts("demo", "demo", config, config.seed, stages))
    report.write_report(config.out)


def stages_of(config: DemoConfig, stages: Stages) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yields the demo's stages in order."""
    counts = {"patrol": config.patrol_episodes} | dict.fromkeys(config.suite, config.suite_episodes)
    yield "record experts", lambda: record_sources(corpus(config), counts)
    yield "train two_rate and single_rate", lambda: train_both(config)
    few = max(2, round(config.steps * config.controller_share))
    yield "train controller_only", lambda: train_run(training(config, "controller_only", few))
    yield "close loops", lambda: evaluate(config)
    yield "film and report", lambda: (film_patrol(config), write_page(config, stages))


MINUTES = {
    "record experts": 1.0,
    "train two_rate and single_rate": 17.0,
    "train controller_only": 1.5,
    "close loops": 6.0,
    "film and report": 0.2,
}


def demo(config: DemoConfig) -> Path:
    """Returns the report's path, after running whatever is not finished."""
    stages = Stages(config.out, MINUTES)
    run_stages(stages, stages_of(config, stages))
    return config.out / "report.html"


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(DemoConfig, description=__doc__)
    return run_command("demo", lambda: demo(config))


if __name__ == "__main__":
    sys.exit(main())
