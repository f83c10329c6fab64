"""What are experts worth in a planner? Dense and experts, the same operations a token, over seeds.

    python -m experiments.mixture_of_experts --out runs/mixture_of_experts

Trains the two-rate agent on text (the `text` source of experiments/text.md, recorded first) with one feed-forward block a
layer and with many, of which a token goes through a few: the same steps on the same batches, both kinds side by side. Prints
parameters, operations, how evenly experts are used and how much finds no room, and the losses on held-out documents; writes a
picture. Interrupted, the same command goes on where it stopped. experiments/mixture_of_experts.md says how long it takes and what
to expect.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
import scipy.stats
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from experiments.evaluate import Trained, load
from experiments.figures import BLUE, GREY, STYLE
from experiments.record import RecordConfig, record_source
from experiments.stages import COMPILED, train_side_by_side, write_json
from experiments.train import Mix, TrainConfig, assemble, cache_compilations, facts_of
from hierarchy.batch import Batch
from hierarchy.model.config import PRESETS
from hierarchy.model.flops import parameters, update_flops
from hierarchy.model.parallel import think
from hierarchy.training.checkpoint import CheckpointError, expect_facts
from hierarchy.training.learner import LearnerConfig, make_measure
from hierarchy.training.losses import Metrics, routing_losses
from hierarchy.training.trainer import Interrupted, NotFinite, read_metrics
from modules.compute import Compute, computing

SOURCE = "text"
KINDS = ("dense", "experts")
LOSSES = ("planner_text_loss", "text_loss")
MORE_PARAMETERS, SAME_FLOPS, EVEN = 4.0, 0.05, 0.9
"""What experts must be: so many times the planner's parameters, operations an update up to this share, and this load entropy."""


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """out: folder. experts, chosen: of every layer of the planner. capacity: an expert's room in training, in even shares; 0 for
    every token. steps: of a training. seeds: of both kinds' trainings."""

    out: Path = Path("runs/mixture_of_experts")
    preset: str = "text"
    experts: int = 16
    chosen: int = 2
    capacity: float = 1.25
    steps: int = 1500
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"no preset {self.preset!r}: there are {', '.join(PRESETS)}")
        if len(self.seeds) < 2:
            raise ValueError(f"seeds {self.seeds}: a difference over seeds takes 2 at least")


def training(config: ExpertsConfig, kind: str, seed: int) -> TrainConfig:
    """Returns how one agent is trained; nothing but the experts differs between kinds."""
    routed = kind == "experts"
    return TrainConfig(
        corpus=config.out / "corpus",
        out=config.out / f"{kind}_{seed}",
        preset=config.preset,
        text_pieces=800,
        experts=config.experts if routed else 0,
        chosen=config.chosen,
        mix=Mix(
            controller_tokens=320,
            planner_tokens=320,
            segment_ticks=160,
            ratios=(1, 4, 16),
            latencies=(0, 0, 2),
            wait_for_first=1.0,
        ),
        learner=LearnerConfig(
            steps=config.steps, planner_steps=0, peak_rate=3e-3, controller_rate=1.5, rate_warm_up=30, seed=seed
        ),
        compute=Compute(expert_capacity=config.capacity if routed else 0.0),
    )


def size(trained: Trained) -> tuple[int, int]:
    """Returns the planner's parameters, but for its tables, and the operations of one update."""
    network = trained.network
    alone = network._replace(init=lambda key: {k: v for k, v in network.init(key).items() if k.startswith("planner")})
    return parameters(alone), update_flops(network.config, trained.schema, trained.schema[SOURCE])


def held_out(config: ExpertsConfig, kind: str, seed: int) -> dict[str, float]:
    """Returns the losses of one agent on held-out documents, nothing left out; and how its experts are used there in the room
    that they had in training."""
    given = training(config, kind, seed)
    run, trained = assemble(given), load(given.out)
    # What is trained is not trained again, whatever it was: not to be taken for what is asked for now.
    expect_facts(given.out, facts_of(given, run))
    measure = make_measure(run.network)

    @jax.jit
    def routing(params: dict, batch: Batch) -> Metrics:
        with computing(given.compute):
            return routing_losses(think(run.network, params, batch).routed)

    found = []
    for batch in run.held_out:
        values = measure(trained.params, batch)
        found.append({name: values[name] for name in LOSSES} | (routing(trained.params, batch) if kind == "experts" else {}))
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def difference(config: ExpertsConfig, found: dict[str, list[dict[str, float]]], name: str) -> tuple[float, float, float]:
    """Returns experts' loss minus that of dense, seed by seed: the mean and its 95% interval (Student's t) over seeds."""
    apart = [a[name] - b[name] for a, b in zip(found["experts"], found["dense"], strict=True)]
    mean, error = float(np.mean(apart)), float(scipy.stats.sem(apart))
    reach = error * float(scipy.stats.t.ppf(0.975, len(apart) - 1))
    return mean, mean - reach, mean + reach


def draw(config: ExpertsConfig, path: Path) -> None:
    """Writes the picture: the planner's own loss of text in training, a line a seed."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((6.2, 3.6), layout="constrained")
        axes = figure.subplots()
        for kind, colour in zip(KINDS, (GREY, BLUE)):
            for seed in config.seeds:
                lines = [line for line in read_metrics(training(config, kind, seed).out) if "planner_text_loss" in line]
                lines = [line for line in lines if line["group"] == "train"]
                label = kind if seed == config.seeds[0] else None
                axes.plot([x["step"] for x in lines], [x["planner_text_loss"] for x in lines], color=colour, lw=1.2, label=label)
        axes.set(xlabel="steps", ylabel="planner's loss of text, nats a piece", title="in training, a line a seed")
        axes.legend(frameon=False)
        figure.savefig(path, dpi=110)


def experts(config: ExpertsConfig) -> dict[str, Any]:
    """Returns what was found, after doing whatever is not finished."""
    source = config.out / "corpus" / SOURCE
    record_source(RecordConfig(SOURCE, source, 100_000))
    # The first to be trained makes the tokenizer: both at once would make two.
    assemble(training(config, "dense", config.seeds[0]))
    lanes = {kind: [training(config, kind, seed) for seed in config.seeds] for kind in KINDS}
    train_side_by_side(lanes, config.out)
    found = {kind: [held_out(config, kind, seed) for seed in config.seeds] for kind in KINDS}
    sizes = {kind: size(load(lanes[kind][0].out)) for kind in KINDS}
    return {"held_out": found, "sizes": sizes, "differences": {name: difference(config, found, name) for name in LOSSES}}


def verdicts(said: dict[str, Any]) -> dict[str, bool]:
    """Returns what must hold of experts, in words, and whether it does."""
    (plain, operations), (many, routed) = said["sizes"]["dense"], said["sizes"]["experts"]
    entropy = min(each["load_entropy"] for each in said["held_out"]["experts"])
    return {
        f"{many / plain:.1f} times the planner's parameters, {MORE_PARAMETERS:.0f} wanted": many >= MORE_PARAMETERS * plain,
        f"{routed / operations - 1:+.1%} operations an update, {SAME_FLOPS:.0%} allowed": abs(routed / operations - 1)
        <= SAME_FLOPS,
        f"load entropy of {entropy:.3f} of uniform in the least even training, {EVEN} wanted": entropy >= EVEN,
    }


def tabulated(config: ExpertsConfig, said: dict[str, Any]) -> Table:
    """Returns a row a training."""
    table = Table("planner", "seed", "parameters", "MFLOP an update", *LOSSES, "load entropy", "found no room")
    for kind in KINDS:
        for seed, values in zip(config.seeds, said["held_out"][kind], strict=True):
            count, flops = said["sizes"][kind]
            used = [f"{values['load_entropy']:.3f}", f"{values['dropped']:.1%}"] if "dropped" in values else ["", ""]
            table.add_row(kind, str(seed), str(count), f"{flops / 1e6:.2f}", *(f"{values[name]:.3f}" for name in LOSSES), *used)
    return table


def main() -> int:
    """Runs the command line; returns the exit code: 1 too where experts are not what they must be. What they are worth is
    printed, whatever it is."""
    cache_compilations(COMPILED)
    try:
        config = tyro.cli(ExpertsConfig, description=f"{__doc__}\n{ExpertsConfig.__doc__}")
        said = experts(config)
    except (ValueError, OSError, CheckpointError, NotFinite) as error:
        print(f"mixture_of_experts: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"mixture_of_experts: {error or 'stopped'}; the same command goes on from here", file=sys.stderr)
        return 130
    write_json(config.out / "found.json", said)
    draw(config, config.out / "losses.png")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(tabulated(config, said))
    for name, (mean, low, high) in said["differences"].items():
        console.print(f"{name}, experts less dense: {mean:+.3f} [{low:+.3f}, {high:+.3f}] nats, over {len(config.seeds)} seeds")
    held = verdicts(said)
    for what, holds in held.items():
        console.print(f"{what}: {'holds' if holds else 'DOES NOT HOLD'}")
    print(f"{config.out}: found.json, losses.png")
    return int(not all(held.values()))


if __name__ == "__main__":
    sys.exit(main())
