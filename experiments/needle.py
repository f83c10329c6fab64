"""How far back does a planner remember? What was shown once, at any depth of up to four times the length of its training.

    python -m experiments.needle --out runs/needle

The trajectory needle (envs/needle.py): 1, 4 and 16 marked pairs of key and value among hay, 256 to 16384 ticks of it, and then
each key is asked for. A two-rate agent, whose planner has a sliding layer and one over everything, is trained on 64 to 4096 ticks
of hay; one model at every tick, with a window of as many tokens and the same wall time, on as much hay as that window holds.
Prints how often each is right by length, number of needles and depth; writes rows.jsonl and a picture. Interrupted, the same
command goes on where it stopped. experiments/needle.md says how long it takes and what to expect.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import matplotlib
import numpy as np
import scipy.stats
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from envs import needle
from envs.loop import run
from envs.needle import Needle, Rules, course
from experiments.evaluate import FIRST_SEED, Trained, load
from experiments.figures import INK, ORANGE, STYLE
from experiments.record import LICENCE
from experiments.stages import Pace, steps_in
from experiments.statistics import CONFIDENCE
from experiments.train import Mix, TrainConfig, cache_compilations, pace_s, train_run
from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.packing import fill
from hierarchy.corpus.reading import Encoded
from hierarchy.corpus.segment import cut, encode_episode
from hierarchy.corpus.store import MANIFEST, Source, write_source
from hierarchy.episode import Episode
from hierarchy.model.network import Network
from hierarchy.model.parallel import forward
from hierarchy.timeline import PLAN_READY, marks, periodic
from hierarchy.training.checkpoint import CheckpointError
from hierarchy.training.learner import LearnerConfig
from hierarchy.training.trainer import Interrupted, NotFinite

AgentName = Literal["two_rate", "single_rate"]
TASK, HOLD, DEPTHS = "needle", Rules().hold, 10
SHORTEST = 4
"""Stretches of the shortest training episode."""
WITHIN, BEYOND, CONTROL = 95.0, 80.0, 90.0
"""Percent that must be right at every depth up to the trained length, at every depth of longer episodes, and of the single-rate
agent where its window holds the whole episode: else it has not learnt the task, and the comparison says nothing."""


@dataclasses.dataclass(frozen=True)
class NeedleConfig:
    """out: folder. lengths: ticks of hay in the episodes that are measured. needles: in one episode. trained: most ticks of hay
    in training of the two-rate agent; held: of the single-rate one, what its window holds. recorded: episodes of each corpus.
    steps, planner_steps: of the two-rate training; single_rate_time: wall time of the other's, in times of that one's. questions:
    of a cell of length, needles and depth, about, and single_rate_questions the same of the single-rate agent. closed: episodes
    of the longest length that are acted tick by tick. seed: of the trainings."""

    out: Path = Path("runs/needle")
    lengths: tuple[int, ...] = (256, 1024, 4096, 16384)
    needles: tuple[int, ...] = (1, 4, 16)
    trained: int = 4096
    held: int = 1024
    recorded: int = 6000
    steps: int = 800
    planner_steps: int = 500
    single_rate_time: float = 1.0
    questions: int = 100
    single_rate_questions: int = 10
    closed: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for ticks in (*self.lengths, self.trained, self.held):
            if ticks % HOLD or ticks < SHORTEST * HOLD:
                raise ValueError(f"{ticks} ticks of hay: whole stretches of {HOLD} ticks, {SHORTEST} of them at least")
        if min(self.lengths) > self.held:
            raise ValueError(f"lengths {self.lengths}: one of them at least is no longer than held, {self.held} ticks")

    def longest(self, agent: AgentName) -> int:
        """Returns the most ticks of hay in an agent's training."""
        return self.trained if agent == "two_rate" else self.held


def made(count: int, longest: int, needles: tuple[int, ...]) -> Iterator[Episode]:
    """Yields the episodes of a corpus: lengths up to `longest` ticks of hay drawn log-uniformly, and as many needles as fit.

    They tell a timeline under which every stretch is read as it begins, as it is when acting.
    """
    for number in track(range(count), description=f"making {TASK} up to {longest} ticks"):
        rng = np.random.default_rng((number, longest))
        stretches = int(2 ** rng.uniform(np.log2(SHORTEST), np.log2(longest // HOLD)))
        fitting = [many for many in needles if many <= stretches]
        made_at_once = needle.episode(Rules(stretches * HOLD, int(rng.choice(fitting))), number)
        marked = marks(periodic(made_at_once.ticks, HOLD), made_at_once.ticks)
        yield dataclasses.replace(made_at_once, privileged=made_at_once.privileged | {PLAN_READY: marked})


def corpus(config: NeedleConfig, agent: AgentName) -> Path:
    """Returns the folder of an agent's corpus, made or taken up as it is."""
    folder = config.out / f"corpus_{config.longest(agent)}"
    if (folder / TASK / MANIFEST).exists():
        if len(Source.open(folder / TASK)) != config.recorded:
            raise ValueError(f"{folder} does not hold {config.recorded} episodes: remove it, or give another --out")
        return folder
    episodes = made(config.recorded, config.longest(agent), config.needles)
    about = {"name": TASK, "tick_s": Rules().tick_s, "licence": LICENCE, "expert": "Expert"}
    write_source(folder / TASK, episodes, **about)
    return folder


def training(config: NeedleConfig, agent: AgentName, steps: int) -> TrainConfig:
    """Returns how an agent is trained. A row of either holds its longest episode, and several of the others."""
    most = config.longest(agent) + max(config.needles) * HOLD
    two_rate = agent == "two_rate"
    mix = Mix(
        rows=8 if two_rate else 2,
        controller_tokens=400,
        planner_tokens=most // HOLD + 16 if two_rate else most + 16,
        plans=120,
        segment_ticks=4 * HOLD,
        ratios=(HOLD,),
        latencies=(0,),
        recorded_timelines=1.0,
    )
    learner = LearnerConfig(steps=steps, planner_steps=config.planner_steps if two_rate else 0, seed=config.seed)
    preset = "needle" if two_rate else "needle_single_rate"
    return TrainConfig(corpus(config, agent), config.out / agent, agent, preset, mix=mix, learner=learner)


def matched_steps(config: NeedleConfig) -> int:
    """Returns the steps that give the single-rate agent its share of the two-rate one's wall time, decided once and kept.

    Raises:
        ValueError: it was decided for another share.
    """
    path = config.out / "single_rate_steps.json"
    if not path.exists():
        two_rate, single_rate = (Pace(*pace_s(training(config, agent, config.steps), 12)) for agent in AGENTS)
        budget_s = config.planner_steps * two_rate.warm_up_s + (config.steps - config.planner_steps) * two_rate.joint_s
        steps = steps_in(config.single_rate_time * budget_s, single_rate, 0.0)
        kept = {"steps": steps, "budget_s": budget_s, "step_s": single_rate.joint_s, "time": config.single_rate_time}
        path.write_text(json.dumps(kept) + "\n")
    decided = json.loads(path.read_text())
    if decided["time"] != config.single_rate_time:
        raise ValueError(
            f"{path}: decided for {decided['time']} times the two-rate agent's wall time, asked for {config.single_rate_time}: "
            "give that, or another --out"
        )
    return decided["steps"]


AGENTS: tuple[AgentName, ...] = ("two_rate", "single_rate")


class Asked(NamedTuple):
    """What became of questions. where: [E, needles], at which share of the hay, [0, 1), each question's needle stood. right: bool
    [E, needles, hold], whether each tick of its stretch was."""

    where: np.ndarray
    right: np.ndarray


def asked(trained: Trained, rules: Rules, seeds: range, rows: int = 8) -> Asked:
    """Returns how one pass over each episode answers; the controller's stream is the questions and what they reach back to."""
    model, ticks, count = trained.network.config, (rules.ticks, rules.whole), rules.needles * rules.hold
    lead_in = min(model.controller.lead_in, rules.ticks)
    packing = Packing(
        rows=rows,
        controller_tokens=count + lead_in,
        planner_tokens=rules.whole // rules.hold if model.planner else 1,
        plans=(count + lead_in) // rules.hold + 2,
        action_targets=count,
        sub_goal_targets=count,
        lead_in=lead_in,
        planner_lead_in=0,
    )
    timeline, rng, right = periodic(rules.whole, rules.hold), np.random.default_rng(0), []

    def encoded(seed: int) -> Encoded:
        return encode_episode(trained.schema, TASK, needle.episode(rules, seed))

    for first in range(seeds.start, seeds.stop, rows):
        # All batches are of one size: what is over in the last is left out below.
        row = [[cut(rng, encoded(seed), timeline, ticks, packing)] for seed in range(first, first + rows)]
        batch = fill(row, trained.schema, packing)
        logits = np.asarray(_forward(trained.network)(trained.params, batch).discrete)
        right.append((logits.argmax(-1) == batch.discrete.label).reshape(rows, rules.needles, rules.hold))
    where = [course(rules, np.random.default_rng(seed)).where / rules.stretches for seed in seeds]
    return Asked(np.array(where), np.concatenate(right)[: len(seeds)])


@functools.lru_cache(4)
def _forward(network: Network):
    return jax.jit(functools.partial(forward, network))


def acted(trained: Trained, rules: Rules, seeds: range) -> Asked:
    """Returns the same of a loop that is closed tick by tick."""
    agent = trained.agent(TASK, periodic(rules.whole, rules.hold), rules.whole)
    worlds = [Needle(rules) for _ in seeds]
    moments = track(run(worlds, agent, seeds), description=f"acting {rules.whole} ticks", total=rules.whole)
    paid = np.stack([moment.rewards for moment in moments], axis=1)[:, rules.ticks :] > 0
    where = np.array([world.course.where for world in worlds]) / rules.stretches
    return Asked(where, paid.reshape(len(seeds), rules.needles, rules.hold))


class Cell(NamedTuple):
    """One cell of the result. depth: which of `DEPTHS` equal parts of the hay the needles stood in, 0 the oldest. questions: how
    many. right: percent of them answered rightly at every tick of their stretch; low, high: 95% interval (Wilson)."""

    agent: str
    ticks: int
    needles: int
    depth: int
    questions: int
    right: float
    low: float
    high: float


def share(right: np.ndarray) -> tuple[float, float, float]:
    """Returns the percentage of True, and its interval (Wilson 1927)."""
    found = scipy.stats.binomtest(int(right.sum()), right.size).proportion_ci(CONFIDENCE, "wilson")
    return 100 * float(right.mean()), 100 * found.low, 100 * found.high


def cells(agent: str, rules: Rules, found: Asked) -> list[Cell]:
    """Returns the cells of one length and number of needles, those without a question left out."""
    depth, right = (found.where * DEPTHS).astype(int), found.right.all(axis=2)
    parts = {part: right[depth == part] for part in range(DEPTHS)}
    return [Cell(agent, rules.ticks, rules.needles, part, own.size, *share(own)) for part, own in parts.items() if own.size]


def measured(config: NeedleConfig, agent: AgentName) -> list[Cell]:
    """Returns all cells of an agent, measured once and kept."""
    trained = load(config.out / agent)
    questions = config.questions if agent == "two_rate" else config.single_rate_questions
    path = config.out / f"cells_{agent}_{trained.facts['learner']['steps']}_{questions}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    wanted = [(ticks, many) for ticks in config.lengths for many in config.needles if many * HOLD <= ticks]
    for ticks, many in track(wanted, description=f"asking {agent}"):
        key, rules = f"{ticks},{many}", Rules(ticks, many)
        if key not in known:
            episodes = -(-DEPTHS * questions // many)
            found = asked(trained, rules, range(FIRST_SEED, FIRST_SEED + episodes))
            known[key] = cells(agent, rules, found)
            path.write_text(json.dumps(known))
    return [Cell(*cell) for ticks, many in wanted for cell in known[f"{ticks},{many}"]]


def closed_loop(config: NeedleConfig) -> tuple[float, float]:
    """Returns, of episodes of the longest length acted tick by tick, the percentage of questions' ticks that were right, and of
    those at which one pass over the episode is right where acting was, and wrong where it was not; measured once and kept."""
    trained = load(config.out / "two_rate")
    path = config.out / f"closed_{trained.facts['learner']['steps']}_{config.closed}.json"
    if not path.exists():
        rules = Rules(max(config.lengths), min(4, max(config.needles)))
        seeds = range(FIRST_SEED, FIRST_SEED + config.closed)
        loop, one_pass = acted(trained, rules, seeds).right, asked(trained, rules, seeds).right
        path.write_text(json.dumps([100 * float(loop.mean()), 100 * float((loop == one_pass).mean())]))
    return tuple(json.loads(path.read_text()))


def least(found: list[Cell], agent: str, ticks: int) -> Cell:
    """Returns the worst cell of an agent at a length."""
    return min((cell for cell in found if (cell.agent, cell.ticks) == (agent, ticks)), key=lambda cell: cell.right)


def mean(found: list[Cell], agent: str, ticks: int) -> float:
    """Returns the percentage of an agent's questions at a length that are right, every number of needles counting alike."""
    by_needles: dict[int, list[Cell]] = {}
    for cell in found:
        if (cell.agent, cell.ticks) == (agent, ticks):
            by_needles.setdefault(cell.needles, []).append(cell)
    return float(np.mean([np.average([c.right for c in own], weights=[c.questions for c in own]) for own in by_needles.values()]))


def verdicts(found: list[Cell], config: NeedleConfig) -> dict[str, tuple[float, float, bool]]:
    """Returns what must hold: the percentage, the least that is wanted, and whether it is."""
    rows = {}
    for ticks in config.lengths:
        wanted = WITHIN if ticks <= config.trained else BEYOND
        worst = least(found, "two_rate", ticks)
        rows[f"two rates, {ticks} ticks, its worst depth ({worst.needles} needles)"] = worst.right, wanted, worst.right >= wanted
    shortest = min(config.lengths)
    control = mean(found, "single_rate", shortest)
    rows[f"positive control: single rate, {shortest} ticks, which its window holds"] = control, CONTROL, control >= CONTROL
    return rows


def draw(found: list[Cell], config: NeedleConfig, path: Path) -> None:
    """Writes the picture: length across, depth down, a panel for each number of needles and agent; what is right of the dashed
    line is longer than any training episode."""
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure((9.3, 6.6), layout="constrained")
        panels = figure.subplots(len(AGENTS), len(config.needles), sharex=True, sharey=True, squeeze=False)
        for line, agent in zip(panels, AGENTS):
            for axes, many in zip(line, config.needles):
                grid = np.full((DEPTHS, len(config.lengths)), np.nan)
                for cell in found:
                    if (cell.agent, cell.needles) == (agent, many):
                        grid[cell.depth, config.lengths.index(cell.ticks)] = cell.right
                shown = axes.imshow(grid, cmap="Blues", vmin=0, vmax=100, aspect="auto")
                for (row, column), value in np.ndenumerate(grid):
                    if np.isfinite(value):
                        colour = "white" if value > 60 else INK
                        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
                if agent == "two_rate":
                    trained = sum(ticks <= config.trained for ticks in config.lengths)
                    axes.axvline(trained - 0.5, color=ORANGE, lw=1.6, ls="--")
                title = {"two_rate": "two rates", "single_rate": "single rate"}[agent]
                axes.set_title(f"{title}, {many} needle{'s' * (many > 1)}")
                axes.set_xticks(range(len(config.lengths)), [str(ticks) for ticks in config.lengths])
                axes.set_yticks(range(0, DEPTHS, 3), [f"{100 * part // DEPTHS}%" for part in range(0, DEPTHS, 3)])
        for axes in panels[-1]:
            axes.set_xlabel("ticks of hay")
        for line in panels:
            line[0].set_ylabel("depth of the needle")
        figure.colorbar(shown, ax=panels, shrink=0.6, label="right, %")
        figure.savefig(path, dpi=110)


def tabulated(found: list[Cell], config: NeedleConfig) -> Table:
    """Returns the percentages by length, needles and depth."""
    table = Table("agent", "ticks", "needles", *(f"{100 * part // DEPTHS}%" for part in range(DEPTHS)), "all", "interval")
    for agent in AGENTS:
        for ticks in config.lengths:
            for many in config.needles:
                own = {cell.depth: cell for cell in found if (cell.agent, cell.ticks, cell.needles) == (agent, ticks, many)}
                if not own:
                    continue
                right = np.concatenate([np.arange(c.questions) < round(c.right * c.questions / 100) for c in own.values()])
                middle, low, high = share(right)
                by_depth = [f"{own[part].right:.0f}" if part in own else "" for part in range(DEPTHS)]
                table.add_row(agent, str(ticks), str(many), *by_depth, f"{middle:.1f}", f"[{low:.1f}, {high:.1f}]")
    return table


def needles(config: NeedleConfig) -> tuple[list[Cell], tuple[float, float]]:
    """Returns all cells, after training and measuring what is not there yet, and what `closed_loop` says."""
    train_run(training(config, "two_rate", config.steps))
    found = measured(config, "two_rate")
    closed = closed_loop(config)
    train_run(training(config, "single_rate", matched_steps(config)))
    return found + measured(config, "single_rate"), closed


def main() -> int:
    """Runs the command line; returns the exit code: 1 too where something that must hold does not."""
    config = tyro.cli(NeedleConfig, description=f"{__doc__}\n{NeedleConfig.__doc__}")
    cache_compilations(Path("runs/.jax_cache"))
    try:
        found, closed = needles(config)
    except (ValueError, OSError, CheckpointError, NotFinite) as error:
        print(f"needle: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"needle: {error or 'stopped; the same command goes on from there'}", file=sys.stderr)
        return 130
    (config.out / "rows.jsonl").write_text("".join(json.dumps(cell._asdict()) + "\n" for cell in found))
    draw(found, config, config.out / "needle.png")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(tabulated(found, config))
    console.print(
        f"closed loop, {config.closed} episodes of {max(config.lengths)} ticks: {closed[0]:.1f}% of asked ticks right, one pass "
        f"over them agrees at {closed[1]:.1f}%"
    )
    judged = verdicts(found, config)
    for what, (percent, wanted, holds) in judged.items():
        console.print(f"{what}: {percent:.1f}%, {wanted:.0f} wanted: {'holds' if holds else 'DOES NOT HOLD'}")
    print(f"{config.out}: rows.jsonl, needle.png")
    return int(not all(holds for _, _, holds in judged.values()))


if __name__ == "__main__":
    sys.exit(main())
