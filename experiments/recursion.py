"""Does a planner that thinks for longer think better? The same weights, gone through more or less often, on a task of depth.

    python -m experiments.recursion --out runs/recursion

The pointer chain (envs/pointer_chain.py): where does following links from a start end? Planners of one layer are trained to go
through it once or eight times, three seeds each, and used with any number of rounds. Prints how often they are right, hop by hop,
and what an update and a tick take; writes a picture. Interrupted, the same command goes on where it stopped.
experiments/recursion.md says how long it takes and what to expect.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from envs.loop import returns, run
from envs.pointer_chain import PointerChain, Rules
from experiments.evaluate import Trained, load, seeds_of
from experiments.figures import BLUE, GREY, ORANGE, SAND, SKY, STYLE, TEAL
from experiments.record import RecordConfig, record_source
from experiments.statistics import Interval, paired_difference
from experiments.train import Mix, TrainConfig, cache_compilations, train_run
from hierarchy.timeline import periodic
from hierarchy.training.checkpoint import CheckpointError
from hierarchy.training.learner import LearnerConfig
from hierarchy.training.trainer import Interrupted, NotFinite

TASK = "pointer_chain"
RULES = Rules()
MORE, HOLDS = 20.0, -2.0
"""Points that eight rounds must be above one, and the least that sixteen may be above eight."""


@dataclasses.dataclass(frozen=True)
class RecursionConfig:
    """out: folder. trained: rounds that planners are trained with, the fewest and the most. used: rounds that they are used with.
    seeds: of the trainings. recorded: episodes. steps, planner_steps: of a training. episodes: of a cell, the same seeds in every
    cell."""

    out: Path = Path("runs/recursion")
    trained: tuple[int, int] = (1, 8)
    used: tuple[int, ...] = (1, 2, 4, 8, 16)
    seeds: tuple[int, ...] = (0, 1, 2)
    recorded: int = 20_000
    steps: int = 6000
    planner_steps: int = 5000
    episodes: int = 256

    def __post_init__(self) -> None:
        if not self.trained[0] < self.trained[1] or min(self.trained + self.used) < 1:
            raise ValueError(f"trained {self.trained} with fewer and then more rounds, used {self.used} with 1 at least")
        if missing := set(self.trained) - set(self.used):
            raise ValueError(f"used {self.used} lacks {sorted(missing)}, which planners are trained with")


def training(config: RecursionConfig, rounds: int, seed: int) -> TrainConfig:
    """Returns how one planner is trained: an update a tick, and two episodes in a row."""
    mix = Mix(
        rows=8,
        controller_tokens=2 * RULES.ticks,
        planner_tokens=2 * (RULES.nodes + RULES.ticks),
        plans=2 * RULES.ticks,
        segment_ticks=RULES.ticks,
        ratios=(1,),
        latencies=(0,),
    )
    # Every further hop takes its steps: small batches have more of them.
    rates = {"peak_rate": 1.5e-3, "controller_rate": 1.0}
    learner = LearnerConfig(steps=config.steps, planner_steps=config.planner_steps, seed=seed, **rates)
    out = config.out / f"rounds_{rounds}_seed_{seed}"
    return TrainConfig(config.out / "corpus", out, "two_rate", "recursive", rounds=rounds, mix=mix, learner=learner)


def right(trained: Trained, rounds: int, hops: int, episodes: int) -> np.ndarray:
    """Returns the percentage of ticks that were right, of each of the episodes with so many hops."""
    agent = trained.in_rounds(rounds).agent(TASK, periodic(RULES.ticks, 1), RULES.ticks)
    worlds = [PointerChain(RULES, hops) for _ in range(episodes)]
    return 100 * np.asarray(returns(run(worlds, agent, seeds_of(episodes)))) / RULES.best


def measured(config: RecursionConfig) -> dict[tuple[int, int, int, int], list[float]]:
    """Returns the percentages of every episode by (rounds trained with, seed, rounds used with, hops), measured once and kept."""
    found = {}
    for rounds in config.trained:
        for seed in config.seeds:
            trained = load(training(config, rounds, seed).out)
            path = config.out / f"right_{rounds}_{seed}_{int(trained.facts['learner']['steps'])}_{config.episodes}.json"
            known = json.loads(path.read_text()) if path.exists() else {}
            cells = [(used, hops) for used in config.used for hops in range(RULES.hops + 1)]
            for used, hops in track(cells, description=f"trained with {rounds}, seed {seed}"):
                key = f"{used},{hops}"
                if key not in known:
                    known[key] = right(trained, used, hops, config.episodes).tolist()
                found[rounds, seed, used, hops] = known[key]
            path.write_text(json.dumps(known))
    return found


def pooled(found: dict, config: RecursionConfig, rounds: int, used: int, hops: int | None = None) -> np.ndarray:
    """Returns one percentage an episode: the mean over seeds, and all numbers of hops, which the task draws alike, if None."""
    which = range(RULES.hops + 1) if hops is None else (hops,)
    return np.mean([found[rounds, seed, used, each] for seed in config.seeds for each in which], axis=0)


def times_ms(trained: Trained, used: Sequence[int], episodes: int = 200) -> dict[int, tuple[float, float]]:
    """Returns rounds to the medians of a tick with an update before it and of a tick alone, one episode at a time, in turns."""
    agents = {n: trained.in_rounds(n).agent(TASK, periodic(2, 2), 2) for n in used}
    spec, taken = PointerChain(RULES).observation_spec(), {n: ([], []) for n in used}
    seen = {name: np.zeros((1, *each.shape), each.dtype) for name, each in spec.items()}
    for episode in range(episodes):
        for n, agent in agents.items():
            state = agent.begin([episode])
            for tick in range(2):
                began = time.perf_counter()
                _, state = agent.step(state, seen)
                taken[n][tick].append(time.perf_counter() - began)
    return {n: tuple(1e3 * float(np.median(times[10:])) for times in both) for n, both in taken.items()}


def verdicts(found: dict, config: RecursionConfig) -> dict[str, tuple[Interval, float, bool]]:
    """Returns what must hold on the task: the difference, its least value, and whether it does."""
    few, many = config.trained

    def at(rounds: int, used: int) -> np.ndarray:
        return pooled(found, config, rounds, used)

    gains = {
        f"trained with {many} rounds and used with {many}, above used with {few}": paired_difference(
            at(many, many), at(many, few)
        ),
        f"trained and used with {many} rounds, above trained and used with {few}": paired_difference(
            at(many, many), at(few, few)
        ),
    }
    rows = {what: (gain, MORE, gain.mean >= MORE) for what, gain in gains.items()}
    if max(config.used) > many:
        held = paired_difference(at(many, max(config.used)), at(many, many))
        rows[f"trained with {many} and used with {max(config.used)}, above {many}"] = held, HOLDS, held.mean >= HOLDS
    return rows


def draw(found: dict, config: RecursionConfig, path: Path) -> None:
    """Writes the picture: how often each planner is right, by hops, a line for the rounds that it is used with."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((9.3, 3.6), layout="constrained")
        hops = range(RULES.hops + 1)
        for axes, rounds in zip(figure.subplots(1, 2, sharey=True), config.trained):
            for used, colour in zip(config.used, (GREY, SAND, SKY, BLUE, TEAL, ORANGE)):
                values = [pooled(found, config, rounds, used, each).mean() for each in hops]
                label = f"used with {used}" + (", as trained" if used == rounds else "")
                axes.plot(hops, values, color=colour, lw=2.4 if used == rounds else 1.4, marker="o", ms=3, label=label)
            axes.axhline(100 / RULES.chains, color=GREY, lw=1, ls="--")
            axes.set(title=f"trained with {rounds} round{'s' * (rounds > 1)}", xlabel="hops", ylim=(0, 103))
            axes.legend(frameon=False, fontsize=8.5)
        figure.axes[0].set_ylabel("right, %")
        figure.savefig(path, dpi=110)


def tabulated(found: dict, config: RecursionConfig, times: dict[int, tuple[float, float]]) -> Table:
    """Returns the percentages by hops, and times."""
    hops = [f"{each} hops" for each in range(RULES.hops + 1)]
    table = Table("trained with", "used with", *hops, "all", "update and tick, ms", "tick, ms")
    for rounds in config.trained:
        for used in config.used:
            values = [pooled(found, config, rounds, used, each).mean() for each in (*range(RULES.hops + 1), None)]
            spent = [f"{ms:.2f}" for ms in times[used]] if rounds == config.trained[-1] else ["", ""]
            table.add_row(str(rounds), str(used), *(f"{value:.1f}" for value in values), *spent)
    return table


def recursion(config: RecursionConfig) -> tuple[dict, dict[int, tuple[float, float]]]:
    """Returns what was found, after training and measuring what is not there yet, and the times."""
    record_source(RecordConfig(TASK, config.out / "corpus" / TASK, config.recorded))
    for seed in config.seeds:
        for rounds in config.trained:
            train_run(training(config, rounds, seed))
    return measured(config), times_ms(load(training(config, config.trained[-1], config.seeds[0]).out), config.used)


def main() -> int:
    """Runs the command line; returns the exit code: 1 too where more rounds do not help, or the most do not hold."""
    config = tyro.cli(RecursionConfig, description=f"{__doc__}\n{RecursionConfig.__doc__}")
    cache_compilations(Path("runs/.jax_cache"))
    try:
        found, times = recursion(config)
    except (ValueError, OSError, CheckpointError, NotFinite) as error:
        print(f"recursion: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"recursion: {error or 'stopped; the same command goes on from there'}", file=sys.stderr)
        return 130
    draw(found, config, config.out / "recursion.png")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(tabulated(found, config, times))
    judged = verdicts(found, config)
    for what, (difference, least, holds) in judged.items():
        spoken = f"{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"
        console.print(f"{what}: {spoken} points, {least:+.0f} wanted: {'holds' if holds else 'DOES NOT HOLD'}")
    print(f"{config.out}: recursion.png")
    return int(not all(holds for _, _, holds in judged.values()))


if __name__ == "__main__":
    sys.exit(main())
