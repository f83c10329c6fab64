"""The long job: the whole corpus, three seeds, every baseline, and what the plan is worth for text and pictures.

    make demo-long       (or: python -m experiments.demo_long)

90 minutes at most on 2 cores, install aside: how long everything may train is decided once paces are measured, from what is left
of them. Interrupt it whenever you like: the same command goes on where it stopped. Everything lies in runs/demo_long; open
runs/demo_long/report.html.

Two groups are trained, and within each all have the same wall time on half of the cores and the same tries, one:

    whole corpus     two_rate and single_rate, three seeds each: patrol, bodies, documents and captioned pictures
    patrol alone     two_rate again and its baselines: chunked, late_action, detached, frozen, fixed, each with and without the
                     sub-goal, and controller_only

experiments/demo_long.md says how the minutes are spent, and what to expect.
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import tyro

from experiments import compare_ratios, evaluate_text, film, report, scripted, train
from experiments.compare_ratios import CompareConfig, cells_of
from experiments.evaluate import FIRST_SEED, load
from experiments.evaluate_text import EvaluateTextConfig
from experiments.scripted import ScriptedConfig
from experiments.stages import (
    Pace,
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
from experiments.train import Mix, TrainConfig
from hierarchy.training.learner import LearnerConfig
from hierarchy.training.losses import LossWeights
from hierarchy.training.trainer import TrainerConfig

SCRIPTED = {
    "cartpole_balance": 0.02,
    "cartpole_swingup": 0.03,
    "pendulum_swingup": 0.06,
    "point_mass_easy": 0.04,
    "reacher_easy": 0.03,
    "reacher_hard": 0.03,
}
"""Bodies whose experts are scripted, and the share of the episodes that is drawn from each."""

PLANNED = {
    "walker_walk": 0.03,
    "ball_in_cup_catch": 0.02,
    "finger_turn_easy": 0.02,
    "finger_turn_hard": 0.02,
    "fish_upright": 0.02,
}
"""The same of bodies whose experts plan, the longest to record first."""

SAID = {"text": 0.06, "captions": 0.12}
"""The same of what is said."""

BASELINES = ("two_rate", "chunked", "late_action", "detached", "frozen", "fixed")
WITHOUT = "_no_sub_goal"

MINUTES = {
    "record experts": 7.0,
    "measure paces": 6.0,
    "train two_rate and single_rate": 33.0,
    "train baselines": 22.0,
    "close loops": 19.0,
    "read text and captions": 2.0,
    "film and report": 1.0,
}
TRAINING = ("train two_rate and single_rate", "train baselines")
COMPILING = 7.0
"""Minutes of the two trainings that go into compiling."""


@dataclasses.dataclass(frozen=True)
class DemoLongConfig:
    """What the long demo does, and how much of it.

    out: folder. minutes: for everything, on the cores that are there. preset: size of the models. patrol_episodes,
    scripted_episodes (of each body with a scripted expert), planned_episodes (of each whose expert plans), documents, captions:
    recorded, documents at most as many as CPython has. seeds: of the trainings on the whole corpus. baselines: folders of the
    trainings on the patrol alone. warm_up, baseline_warm_up: share of the steps in which a planner learns its own tasks alone.
    patrol_share: of the episodes, on the whole corpus. rows, baseline_rows: of a batch. peak_rate, controller_rate: as in the
    demo. most_steps: of any training, for a short try. episodes, scripted_evaluations, planned_evaluations, documents_read,
    pictures: a cell.
    """

    out: Path = Path("runs/demo_long")
    minutes: float = 90.0
    preset: str = "demo"
    patrol_episodes: int = 2000
    scripted: tuple[str, ...] = tuple(SCRIPTED)
    scripted_episodes: int = 60
    planned: tuple[str, ...] = tuple(PLANNED)
    planned_episodes: int = 16
    documents: int = 100_000
    captions: int = 3000
    text_pieces: int = 800
    seeds: tuple[int, ...] = (0, 1, 2)
    baselines: tuple[str, ...] = (
        *(name + how for name in BASELINES for how in ("", WITHOUT)),
        "controller_only",
    )
    warm_up: float = 0.2
    baseline_warm_up: float = 0.25
    patrol_share: float = 0.6
    rows: int = 4
    baseline_rows: int = 2
    peak_rate: float = 1.5e-3
    controller_rate: float = 3.0
    most_steps: int = 100_000
    episodes: int = 256
    scripted_evaluations: int = 32
    planned_evaluations: int = 8
    documents_read: int = 64
    pictures: int = 128
    ratios: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    latencies: tuple[int, ...] = (0, 2, 4, 8)
    checkpoint_every_s: float = 60.0


def corpus(config: DemoLongConfig) -> Path:
    """Returns the folder of sources."""
    return config.out / "corpus"


def sources(config: DemoLongConfig) -> dict[str, int]:
    """Returns how many episodes of each task are recorded, the longest to record first."""
    counts = dict.fromkeys(config.planned, config.planned_episodes) | {"patrol": config.patrol_episodes}
    counts |= dict.fromkeys(config.scripted, config.scripted_episodes)
    return counts | {"text": config.documents, "captions": config.captions}


def record(config: DemoLongConfig) -> None:
    """Records what is missing, and trains the tokenizer on all of it before anyone needs it."""
    record_sources(corpus(config), sources(config))
    plan = whole(config, "two_rate", config.seeds[0], 2)
    train.tokenizer_of(plan.corpus, train.sources(plan), plan.text_pieces)


def whole_mix(config: DemoLongConfig) -> Mix:
    """Returns the mixture of the whole corpus: the patrol's share of the episodes, and the rest as listed above."""
    others = {task: share for task, share in (SCRIPTED | PLANNED | SAID).items() if task in sources(config)}
    rest = (1 - config.patrol_share) / sum(others.values())
    shares = {task: share * rest for task, share in others.items()} | {"patrol": config.patrol_share}
    names = tuple(sorted(shares))
    # Half wait for their first plan: a caption is over before a late one would be there.
    shared = {"rows": config.rows, "controller_tokens": 640, "wait_for_first": 0.5}
    return Mix(names, tuple(shares[name] for name in names), **shared)


def whole(config: DemoLongConfig, agent: train.AgentName, seed: int, steps: int) -> TrainConfig:
    """Returns how one agent is trained on the whole corpus."""
    return TrainConfig(
        corpus=corpus(config),
        out=config.out / (f"{agent}_{seed}" if seed != config.seeds[0] else agent),
        agent=agent,
        preset=config.preset,
        text_pieces=config.text_pieces,
        mix=whole_mix(config),
        learner=LearnerConfig(
            steps=steps,
            planner_steps=round(steps * config.warm_up),
            peak_rate=config.peak_rate,
            controller_rate=1.0 if agent == "single_rate" else config.controller_rate,
            seed=seed,
        ),
        trainer=TrainerConfig(checkpoint_every_s=config.checkpoint_every_s),
    )


def baseline(config: DemoLongConfig, name: str, steps: int) -> TrainConfig:
    """Returns how one agent is trained on the patrol alone: with so many steps, a name of `BASELINES` or controller_only, and at
    its end whether without a sub-goal."""
    kind = name.removesuffix(WITHOUT)
    agent = kind if kind in ("chunked", "late_action", "controller_only") else "two_rate"
    mix = Mix(tasks=("patrol",), rows=config.baseline_rows, controller_tokens=448)
    return TrainConfig(
        corpus=corpus(config),
        out=config.out / "baselines" / name,
        agent=agent,
        preset=config.preset,
        text_pieces=config.text_pieces,
        mix=dataclasses.replace(mix, ratios=(1,), latencies=(0,)) if kind == "fixed" else mix,
        learner=LearnerConfig(
            steps=steps,
            planner_steps=round(steps * warm_up_of(config, name)),
            peak_rate=config.peak_rate,
            controller_rate=1.0 if agent in ("chunked", "late_action") else config.controller_rate,
            weights=LossWeights(sub_goal=0.0) if kind != name else LossWeights(),
            planner=kind if kind in ("detached", "frozen") else "joint",
            seed=config.seeds[0],
        ),
        trainer=TrainerConfig(checkpoint_every_s=config.checkpoint_every_s),
    )


def warm_up_of(config: DemoLongConfig, name: str) -> float:
    """Returns the share of a baseline's steps that only its planner learns in: none without a planner or a sub-goal."""
    return config.baseline_warm_up if name in ("two_rate", "detached", "frozen", "fixed") else 0.0


def probes(config: DemoLongConfig) -> dict[str, TrainConfig]:
    """Returns the trainings whose pace is measured; the others have that of one of these, see `pace_of`."""
    many = min(2000, config.most_steps)
    found = {agent: whole(config, agent, config.seeds[0], many) for agent in ("two_rate", "single_rate")}
    return found | {f"baseline_{name}": baseline(config, name, many) for name in {pace_of(each): 0 for each in config.baselines}}


def pace_of(name: str) -> str:
    """Returns the baseline that takes as long a step as this one. A frozen planner has no gradient; the loss of a sub-goal, and
    which ratios are drawn, make no difference to speak of."""
    kind = name.removesuffix(WITHOUT)
    return kind if kind in ("frozen", "chunked", "late_action", "controller_only") else "two_rate"


def budget(config: DemoLongConfig, stages: Stages) -> dict:
    """Returns how long each group trains and with how many steps, decided once and kept.

    What the stages before have left, and those after will take, is divided between the groups as `MINUTES` has it.
    """
    path = config.out / "budget.json"
    if path.exists():
        return json.loads(path.read_text())
    scale = 60 * config.minutes / sum(MINUTES.values())
    after = sum(minutes for name, minutes in MINUTES.items() if name not in (*TRAINING, *stages.took_s))
    left_s = max(0.0, 60 * config.minutes - sum(stages.took_s.values()) - scale * (after + COMPILING))
    both = sum(MINUTES[name] for name in TRAINING)
    whole_s, alone_s = (left_s * MINUTES[name] / both for name in TRAINING)
    each_s = {"whole": whole_s / len(config.seeds), "alone": alone_s / max(1, -(-len(config.baselines) // 2))}
    found = paces(probes(config), config.out, PROBE_STEPS)
    steps = {agent: steps_in(each_s["whole"], found[agent], config.warm_up) for agent in ("two_rate", "single_rate")}
    for name in config.baselines:
        pace: Pace = found[f"baseline_{pace_of(name)}"]
        steps[f"baselines/{name}"] = steps_in(each_s["alone"], pace, warm_up_of(config, name))
    steps = {name: min(count, config.most_steps) for name, count in steps.items()}
    decided = {"spent_s": sum(stages.took_s.values()), "training_s": left_s, "each_s": each_s, "steps": steps}
    write_json(path, decided | {"paces": {name: pace._asdict() for name, pace in found.items()}})
    return decided


PROBE_STEPS = 18


def train_whole(config: DemoLongConfig, stages: Stages) -> None:
    """Trains the seeds of both agents, one agent on each half of the cores."""
    steps = budget(config, stages)["steps"]
    agents = ("two_rate", "single_rate")
    lanes = {agent: [whole(config, agent, seed, steps[agent]) for seed in config.seeds] for agent in agents}
    train_side_by_side(lanes, config.out)


def train_baselines(config: DemoLongConfig, stages: Stages) -> None:
    """Trains the baselines, half of them on each half of the cores."""
    steps = budget(config, stages)["steps"]
    wanted = [baseline(config, name, steps[f"baselines/{name}"]) for name in config.baselines]
    lanes = {"baselines_1": wanted[::2], "baselines_2": wanted[1::2]}
    train_side_by_side({name: lane for name, lane in lanes.items() if lane}, config.out)


def loops(config: DemoLongConfig) -> dict[str, list[CompareConfig]]:
    """Returns the cells to measure, in two halves that take about as long."""
    table = config.out / "rows.jsonl"
    held, late = tuple(k for k in config.ratios if k > 1), tuple(d for d in config.latencies if d > 0)
    ends = tuple(dict.fromkeys((config.latencies[0], config.latencies[-1])))
    halves: dict[str, list[CompareConfig]] = {"loops_1": [], "loops_2": []}
    for agent, seed in itertools.product(("two_rate", "single_rate"), config.seeds):
        run, first = whole(config, agent, seed, 2).out, seed == config.seeds[0]
        half = halves["loops_1" if agent == "two_rate" else "loops_2"]
        more = {"held": held, "late": late} if first else {"controls": ()}
        half.append(
            CompareConfig(run, table, "patrol", config.episodes, config.ratios, config.latencies if first else ends, **more)
        )
    # An expert that plans is slow to play: one half plays it for both agents.
    counts = dict.fromkeys(config.scripted, config.scripted_evaluations)
    counts |= dict.fromkeys(config.planned, config.planned_evaluations)
    for (task, count), agent in itertools.product(counts.items(), ("two_rate", "single_rate")):
        halves["loops_2"].append(CompareConfig(config.out / agent, table, task, count, ratios=(8,), latencies=(0,), controls=()))
    for name in config.baselines:
        ahead = name.startswith(("chunked", "late_action"))
        ratios = config.ratios if ahead else tuple(k for k in (1, 8, 16, 32) if k in config.ratios)
        halves["loops_1"].append(
            CompareConfig(
                config.out / "baselines" / name,
                config.out / "baselines" / "rows.jsonl",
                "patrol",
                config.episodes,
                ratios,
                config.latencies if ahead else ends,
                controls=("shuffled",),
            )
        )
    return halves


def references(config: DemoLongConfig) -> ScriptedConfig:
    """Returns the scripted references of the patrol, and of the bodies the two ends of their scale."""
    return ScriptedConfig(
        config.out / "rows.jsonl", config.episodes, config.scripted_evaluations, config.ratios, config.latencies, config.scripted
    )


def planned_references(config: DemoLongConfig) -> ScriptedConfig:
    """Returns the two ends of the scale of the bodies whose experts plan."""
    table, count = config.out / "rows.jsonl", config.planned_evaluations
    return ScriptedConfig(table, config.episodes, count, ratios=(), latencies=(), suite=config.planned)


def evaluate(config: DemoLongConfig) -> None:
    """Measures tick times with the machine to itself, then closes all loops in two processes, each on half of the cores."""
    halves, tables = loops(config), [config.out / "rows.jsonl", config.out / "baselines" / "rows.jsonl"]
    trained = {each.run: load(each.run) for half in halves.values() for each in half}
    timed = {config.out / agent for agent in ("two_rate", "single_rate")}
    jobs, wanted, both = {}, 0, [references(config), planned_references(config)]
    for name, half in halves.items():
        wanted += sum(len(cells_of(each, trained[each.run])) for each in half)
        ticks = [
            compare_ratios.tick_times(each, trained[each.run]) if each.run in timed and each.task == "patrol" else {}
            for each in half
        ]
        jobs[name] = list(zip(half, ticks)), both if name == "loops_2" else []
    ends = {row[:4] for each in both for row in scripted.rows_of(each)}
    close_side_by_side(jobs, config.out, tables, wanted + len(ends))


def read_and_tell(config: DemoLongConfig) -> None:
    """Measures held-out documents and captions of both agents, the first plan waited for, and keeps the figures."""
    path = config.out / "text.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for agent in ("two_rate", "single_rate"):
        if agent in found:
            continue
        asked = EvaluateTextConfig(config.out / agent, documents=config.documents_read, pictures=config.pictures)
        figures = evaluate_text.measure(load(asked.run), asked)
        found[agent] = {task: {name: each._asdict() for name, each in figure.items()} for task, figure in figures.items()}
        write_json(path, found)


def film_patrol(config: DemoLongConfig) -> None:
    """Writes a video of one patrol at ratio 8, latency 4."""
    path = config.out / "patrol.mp4"
    if not path.exists():
        film.film_episode(load(config.out / "two_rate"), "patrol", path, ratio=8, latency=4, seed=FIRST_SEED)


def write_page(config: DemoLongConfig, stages: Stages) -> None:
    """Writes run.json, which is everything that the report says about how it came about, and the report."""
    how = facts("demo-long", "demo_long", config, list(config.seeds), stages) | {"budget": budget(config, stages)}
    write_json(config.out / "run.json", how)
    report.write_report(config.out)


def stages_of(config: DemoLongConfig, stages: Stages) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yields the stages in order."""
    yield "record experts", lambda: record(config)
    yield "measure paces", lambda: paces(probes(config), config.out, PROBE_STEPS)
    yield "train two_rate and single_rate", lambda: train_whole(config, stages)
    yield "train baselines", lambda: train_baselines(config, stages)
    yield "close loops", lambda: evaluate(config)
    yield "read text and captions", lambda: read_and_tell(config)
    yield "film and report", lambda: (film_patrol(config), write_page(config, stages))


def demo_long(config: DemoLongConfig) -> Path:
    """Returns the report's path, after running whatever is not finished."""
    stages = Stages(config.out, {name: minutes * config.minutes / sum(MINUTES.values()) for name, minutes in MINUTES.items()})
    run_stages(stages, stages_of(config, stages))
    return config.out / "report.html"


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(DemoLongConfig, description=__doc__)
    return run_command("demo_long", lambda: demo_long(config))


if __name__ == "__main__":
    sys.exit(main())
