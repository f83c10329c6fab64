"""The long job: the whole corpus, every baseline, three seeds, and what the plan is worth for text and pictures.

    make demo-long       (or: python -m experiments.demo_long)

86 minutes planned on 2 cores, install aside: how long a group may train is decided when its turn comes, from what is then left of
them. Interrupt it whenever you like: the same command goes on where it stopped. Everything lies in runs/demo_long;
open runs/demo_long/report.html.

Two groups are trained, and within each all have the same wall time on half of the cores and the same tries, one:

    whole corpus     two_rate and single_rate: patrol, bodies, documents and captioned pictures
    patrol alone     two_rate and single_rate, three seeds each, and the baselines: chunked, late_action, detached, frozen, fixed,
                     each with and without the sub-goal, and controller_only

experiments/demo_long.md says how the minutes are spent, and what to expect.
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import tyro

from experiments import compare_ratios, evaluate_text, film, report, scripted, train
from experiments.compare_ratios import CompareConfig, cells_of
from experiments.evaluate import FIRST_SEED, load
from experiments.evaluate_text import EvaluateTextConfig
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
from experiments.train import Mix, TrainConfig
from hierarchy.training.learner import LearnerConfig, Optimizer
from hierarchy.training.losses import LossWeights
from hierarchy.training.trainer import TrainerConfig

SCRIPTED = {
    "ball_in_cup_catch": 0.065,
    "cartpole_balance": 0.01,
    "cartpole_balance_sparse": 0.01,
    "cartpole_swingup": 0.12,
    "cartpole_swingup_sparse": 0.04,
    "pendulum_swingup": 0.065,
    "point_mass_easy": 0.02,
    "reacher_easy": 0.09,
    "reacher_hard": 0.09,
}
"""Bodies whose experts are scripted, and how often an episode is drawn from each, beside the patrol's and all others."""

PLANNED = {"walker_walk": 0.005, "finger_turn_easy": 0.015, "finger_turn_hard": 0.015, "fish_upright": 0.01}
"""The same of bodies whose experts plan, the longest to record first."""

SAID = {"text": 0.41, "captions": 1.66}
"""The same of what is said."""

BASELINES = ("two_rate", "chunked", "late_action", "detached", "frozen", "fixed")
WITHOUT = "_no_sub_goal"

MINUTES = {
    "record experts": 6.0,
    "measure paces": 3.0,
    "train on the whole corpus": 50.0,
    "train on the patrol alone": 15.0,
    "close loops": 14.5,
    "read text and captions": 1.0,
    "film and report": 0.5,
}
WHOLE, ALONE = "train on the whole corpus", "train on the patrol alone"
COMPILING = {WHOLE: 1.0, ALONE: 3.0}
"""Minutes of the two trainings that go into compiling."""


@dataclasses.dataclass(frozen=True)
class DemoLongConfig:
    """What the long demo does, and how much of it.

    out: folder. minutes: for everything, on the cores that are there. preset: size of the models. patrol_episodes,
    scripted_episodes (of each body with a scripted expert), planned_episodes (of each whose expert plans), documents, captions:
    recorded, documents at most as many as CPython has. seeds: of two_rate and single_rate on the patrol alone; all else has the
    first. baselines: what else is trained on the patrol alone. warm_up, baseline_warm_up: share of the steps in which a planner
    learns its own tasks alone. patrol_share: how often an episode is the patrol's, beside what is listed of all others. rows,
    baseline_rows: of a batch. peak_rate, controller_rate, names_rate, optimizer: of the learner. most_steps: of any training, for
    a short try. episodes, scripted_evaluations, planned_evaluations, documents_read, pictures: a cell.
    """

    out: Path = Path("runs/demo_long")
    minutes: float = 86.0
    preset: str = "demo_wide"
    patrol_episodes: int = 2000
    scripted: tuple[str, ...] = tuple(SCRIPTED)
    scripted_episodes: int = 1000
    planned: tuple[str, ...] = tuple(PLANNED)
    planned_episodes: int = 24
    documents: int = 100_000
    captions: int = 20_000
    text_pieces: int = 800
    seeds: tuple[int, ...] = (0, 1, 2)
    baselines: tuple[str, ...] = (
        *(name + how for name in BASELINES for how in ("", WITHOUT)),
        "controller_only",
    )
    warm_up: float = 0.15
    baseline_warm_up: float = 0.15
    patrol_share: float = 0.44
    rows: int = 3
    baseline_rows: int = 1
    peak_rate: float = 1.5e-3
    controller_rate: float = 3.0
    names_rate: float = 8.0
    optimizer: Optimizer = "muon"
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
    plan = whole(config, "two_rate", 2)
    train.tokenizer_of(plan.corpus, train.sources(plan), plan.text_pieces)


def whole_mix(config: DemoLongConfig) -> Mix:
    """Returns the mixture of the whole corpus, each task's share as listed above."""
    among = SCRIPTED | PLANNED | SAID | {"patrol": config.patrol_share}
    shares = {task: share for task, share in among.items() if task in sources(config)}
    names = tuple(sorted(shares))
    weights = tuple(shares[name] / sum(shares.values()) for name in names)
    # Half wait for their first plan: a caption is over before a late one would be there.
    own = {"controller_tokens": 632, "planner_tokens": 344, "text_targets": 344, "segment_ticks": 112, "wait_for_first": 0.5}
    return Mix(names, weights, config.rows, **own)


def learner(config: DemoLongConfig, agent: train.AgentName, steps: int, **own) -> LearnerConfig:
    """Returns how an agent of either group learns; own: what this one does in its own way."""
    # What reads everything at every tick is one large transformer, and has the rate of one.
    faster = config.controller_rate if agent in ("two_rate", "controller_only") else 1.0
    rates = {"peak_rate": config.peak_rate, "controller_rate": faster, "names_rate": config.names_rate}
    return LearnerConfig(steps, optimizer=config.optimizer, **rates, **own)


def whole(config: DemoLongConfig, agent: train.AgentName, steps: int) -> TrainConfig:
    """Returns how one agent is trained on the whole corpus."""
    return TrainConfig(
        corpus=corpus(config),
        out=config.out / agent,
        agent=agent,
        preset=config.preset,
        text_pieces=config.text_pieces,
        mix=whole_mix(config),
        learner=learner(config, agent, steps, planner_steps=round(steps * config.warm_up), seed=config.seeds[0]),
        trainer=TrainerConfig(checkpoint_every_s=config.checkpoint_every_s),
    )


class Alone(NamedTuple):
    """One training on the patrol alone: a name of `BASELINES`, controller_only or single_rate, and at its end whether without a
    sub-goal; and a seed."""

    name: str
    seed: int

    @property
    def kind(self) -> str:
        """Its name, whether with or without a sub-goal."""
        return self.name.removesuffix(WITHOUT)

    @property
    def agent(self) -> train.AgentName:
        """The agent that is trained."""
        return "two_rate" if self.kind in ("detached", "frozen", "fixed") else self.kind


def alone(config: DemoLongConfig) -> dict[str, Alone]:
    """Returns folder to training of all on the patrol alone: the first seed of each, and other seeds of the two main ones."""
    first, *others = config.seeds
    found = {name: Alone(name, first) for name in (*config.baselines, "single_rate")}
    return found | {f"{name}_{seed}": Alone(name, seed) for seed in others for name in ("two_rate", "single_rate")}


def baseline(config: DemoLongConfig, folder: str, steps: int) -> TrainConfig:
    """Returns how one of `alone` is trained with so many steps."""
    name, seed = each = alone(config)[folder]
    # Long segments: a planner reads an episode from its start, however little of it the controller is trained on.
    # At ratio 1 the planner reads as often as the controller acts, and an episode from its start: it needs the longer row.
    tokens = (256, 704) if each.kind == "fixed" else (608, 384)
    mix = Mix(("patrol",), rows=config.baseline_rows, controller_tokens=tokens[0], planner_tokens=tokens[1], segment_ticks=144)
    return TrainConfig(
        corpus=corpus(config),
        out=config.out / "baselines" / folder,
        agent=each.agent,
        preset=config.preset,
        text_pieces=config.text_pieces,
        mix=dataclasses.replace(mix, ratios=(1,), latencies=(0,)) if each.kind == "fixed" else mix,
        learner=learner(
            config,
            each.agent,
            steps,
            planner_steps=round(steps * warm_up_of(config, name)),
            weights=LossWeights() if each.kind == name else LossWeights(sub_goal=0.0),
            planner=each.kind if each.kind in ("detached", "frozen") else "joint",
            seed=seed,
        ),
        trainer=TrainerConfig(checkpoint_every_s=config.checkpoint_every_s),
    )


def warm_up_of(config: DemoLongConfig, name: str) -> float:
    """Returns the share of a training's steps in which it learns its own tasks alone: none without a planner or a sub-goal."""
    return config.baseline_warm_up if name in ("two_rate", "single_rate", "detached", "frozen", "fixed") else 0.0


def probes(config: DemoLongConfig) -> dict[str, TrainConfig]:
    """Returns the trainings whose pace is measured; all others have that of one of these, see `pace_of`."""
    many = min(2000, config.most_steps)
    found = {agent: whole(config, agent, many) for agent in ("two_rate", "single_rate")}
    like = {pace_of(each): folder for folder, each in reversed(alone(config).items())}
    return found | {f"baseline_{kind}": baseline(config, folder, many) for kind, folder in like.items()}


def pace_of(each: Alone) -> str:
    """Returns the kind of training that takes as long a step as this one. A frozen planner has no gradient, and a fixed ratio has
    rows of its own; the loss of a sub-goal makes no difference to speak of."""
    return each.kind if each.kind in ("frozen", "fixed") else each.agent


def budget(config: DemoLongConfig, stages: Stages, group: str) -> dict:
    """Returns how long each training of a group may take and with how many steps, decided when the group's turn comes and kept.

    What is then left of the minutes, less what the stages after it and its compilations take, belongs to the group: if one ends
    early or late, the next has more or less.
    """
    path = config.out / "budget.json"
    decided = json.loads(path.read_text()) if path.exists() else {}
    if group not in decided:
        found = paces(probes(config), config.out, PROBE_STEPS)
        scale = 60 * config.minutes / sum(MINUTES.values())
        kinds = {folder: (pace_of(each), warm_up_of(config, each.name)) for folder, each in alone(config).items()}
        paced = {
            WHOLE: {agent: (agent, config.warm_up) for agent in ("two_rate", "single_rate")},
            ALONE: {f"baselines/{folder}": (f"baseline_{kind}", warm_up) for folder, (kind, warm_up) in kinds.items()},
        }[group]
        each_s = max(0.0, stages.left_s(group) - scale * COMPILING[group]) / -(-len(paced) // 2)
        steps = {name: steps_in(each_s, found[kind], warm_up) for name, (kind, warm_up) in paced.items()}
        steps = {name: min(count, config.most_steps) for name, count in steps.items()}
        kept = {kind: found[kind]._asdict() for kind, _ in paced.values()}
        decided[group] = {"spent_s": sum(stages.took_s.values()), "each_s": each_s, "steps": steps, "paces": kept}
        write_json(path, decided)
    return decided[group]


PROBE_STEPS = 18


def train_whole(config: DemoLongConfig, stages: Stages) -> None:
    """Trains both agents on the whole corpus, one on each half of the cores."""
    steps = budget(config, stages, WHOLE)["steps"]
    train_side_by_side({agent: [whole(config, agent, steps[agent])] for agent in ("two_rate", "single_rate")}, config.out)


def train_on_the_patrol(config: DemoLongConfig, stages: Stages) -> None:
    """Trains what is trained on the patrol alone, half of it on each half of the cores."""
    steps = budget(config, stages, ALONE)["steps"]
    wanted = [baseline(config, folder, steps[f"baselines/{folder}"]) for folder in alone(config)]
    lanes = {"patrol_alone_1": wanted[::2], "patrol_alone_2": wanted[1::2]}
    train_side_by_side({name: lane for name, lane in lanes.items() if lane}, config.out)


def loops(config: DemoLongConfig) -> dict[str, list[CompareConfig]]:
    """Returns the cells to measure, in two halves that take about as long."""
    table, ends = config.out / "rows.jsonl", tuple(dict.fromkeys((config.latencies[0], config.latencies[-1])))
    held, late = tuple(k for k in config.ratios if k > 1), tuple(d for d in config.latencies if d > 0)
    halves: dict[str, list[CompareConfig]] = {"loops_1": [], "loops_2": []}
    for agent, half in zip(("two_rate", "single_rate"), halves.values(), strict=True):
        cells = (config.episodes, config.ratios, config.latencies)
        half.append(CompareConfig(config.out / agent, table, "patrol", *cells, held=held, late=late))
    # An expert that plans is slow to play: one half plays it for both agents.
    counts = dict.fromkeys(config.scripted, config.scripted_evaluations)
    counts |= dict.fromkeys(config.planned, config.planned_evaluations)
    for (task, count), agent in itertools.product(counts.items(), ("two_rate", "single_rate")):
        halves["loops_2"].append(CompareConfig(config.out / agent, table, task, count, ratios=(8,), latencies=(0,), controls=()))
    few = tuple(k for k in (1, 8, 16) if k in config.ratios)
    for folder, each in alone(config).items():
        run, rows_of = config.out / "baselines" / folder, config.out / "baselines" / "rows.jsonl"
        ahead = each.kind in ("chunked", "late_action")
        cells = (config.episodes, config.ratios, config.latencies) if ahead else (config.episodes, few, ends)
        controls = ("shuffled",) if each.seed == config.seeds[0] else ()
        half = halves["loops_1" if each.agent == "two_rate" else "loops_2"]
        half.append(CompareConfig(run, rows_of, "patrol", *cells, controls=controls))
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
    how = facts("demo-long", "demo_long", config, list(config.seeds), stages) | {
        "budget": {group: budget(config, stages, group) for group in (WHOLE, ALONE)}
    }
    write_json(config.out / "run.json", how)
    report.write_report(config.out)


def stages_of(config: DemoLongConfig, stages: Stages) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yields the stages in order."""
    yield "record experts", lambda: record(config)
    yield "measure paces", lambda: paces(probes(config), config.out, PROBE_STEPS)
    yield WHOLE, lambda: train_whole(config, stages)
    yield ALONE, lambda: train_on_the_patrol(config, stages)
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
