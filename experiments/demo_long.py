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

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import tyro

from experiments import compare_ratios, evaluate_text, film, report, scripted, train
from experiments.compare_ratios import CompareConfig, cells_of
from experiments.demo_long_trainings import (
    DemoLongConfig,
    alone,
    baseline,
    corpus,
    pace_of,
    probes,
    sources,
    warm_up_of,
    whole,
)
from experiments.evaluate import FIRST_SEED, load
from experiments.evaluate_text import EvaluateTextConfig, documents_to_measure
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
from experiments.tasks import COLLECTIONS
from hierarchy.corpus.store import Source

MINUTES = {
    "record experts": 6.0,
    "measure paces": 3.0,
    "train on the patrol alone": 15.0,
    "train on the whole corpus": 50.0,
    "close loops": 14.5,
    "read text and captions": 1.0,
    "film and report": 0.5,
}
WHOLE, ALONE = "train on the whole corpus", "train on the patrol alone"
COMPILING = {WHOLE: 1.0, ALONE: 3.0}
"""Minutes of the two trainings that go into compiling."""
PROBE_STEPS = 18
"""Of each phase, when a pace is measured."""


def record(config: DemoLongConfig) -> None:
    """Records what is missing, and trains the tokenizer on all of it before anyone needs it. Raises ValueError where there is too
    little text to measure, which would else come out at the end."""
    record_sources(corpus(config), sources(config))
    for task in COLLECTIONS:
        documents_to_measure(Source.open(corpus(config) / task), task)
    plan = whole(config, "two_rate", 2)
    train.tokenizer_of(plan.corpus, train.sources(plan), plan.text_pieces)


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
    # The short trainings go first: of a pace that was measured 8% too fast the long ones make four minutes, a third of theirs.
    yield ALONE, lambda: train_on_the_patrol(config, stages)
    yield WHOLE, lambda: train_whole(config, stages)
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
