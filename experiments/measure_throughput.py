"""How fast a model is trained: the joint step of two rates beside one model of their size, and beside PyTorch.

    python -m experiments.measure_throughput --json runs/throughput/throughput.json
    python -m experiments.measure_throughput --parts steps --ratio 4 --rows 8

Patrols are recorded once, and read whole: both models see the same ticks of the same episodes, and bear loss at each of them.
See experiments/measure_throughput.md for what is compared.
"""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import haiku as hk
import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.record import RecordConfig, record_source
from experiments.stages import processor
from experiments.train import Mix, Run, TrainConfig, assemble, cache_compilations
from experiments.turns import interleave, p50
from hierarchy.batch import Batch
from hierarchy.corpus.mixture import Loader
from hierarchy.corpus.outline import TAKEN, outline
from hierarchy.corpus.packing import BUDGETS, fill
from hierarchy.corpus.segment import encode_episode, make, taken
from hierarchy.layout import BINS, CONTINUOUS_START
from hierarchy.model.flops import parameters
from hierarchy.model.network import Network
from hierarchy.timeline import periodic
from hierarchy.training.learner import LearnerConfig, initial_state, make_step
from hierarchy.training.losses import joint_loss

Part = Literal["steps", "where", "loader", "launch"]
Way = Callable[[int], Any]
TASK = "patrol"
ROOMY = 100_000
"""A budget that no episode fills."""
VOCABULARY = CONTINUOUS_START + BINS
"""Classes of a head over all ids, as Gato's is (arXiv 2205.06175, section 2.1)."""
TWO, ONE, TORCH = "two rates", "one model of their size", "PyTorch eager, two rates"
SEGMENT, WIDE = "two rates, a segment with loss", "two rates, a head over all ids"
LEARNER = LearnerConfig(steps=10_000, planner_steps=0)
SAME = 1e-3
"""Most that the losses of PyTorch's first steps may be from ours, as a share."""


@dataclasses.dataclass(frozen=True)
class ThroughputConfig:
    """parts: what to measure. `steps`: a step of every kind. `where`: the time that goes into its parts. `loader`: what is waited
        for batches in training. `launch`: from the command to the first step, with nothing compiled before and again.
    out: folder of the patrols. json: where the figures are written, if anywhere. preset: sizes. ratio: ticks an update. rows:
        episodes a batch. episodes: recorded. seconds: of steps that each way gets. training_steps: of `loader`.
    """

    parts: tuple[Part, ...] = ("steps", "where", "loader", "launch")
    out: Path = Path("runs/throughput")
    json: Path | None = None
    preset: str = "demo"
    ratio: int = 8
    rows: int = 4
    episodes: int = 64
    seconds: float = 12.0
    training_steps: int = 90

    def __post_init__(self) -> None:
        if min(self.ratio, self.rows) < 1 or self.seconds <= 0 or self.training_steps < 3:
            raise ValueError(
                f"ratio {self.ratio} and rows {self.rows} are at least 1, seconds {self.seconds:g} above 0, training_steps "
                f"{self.training_steps} at least 3"
            )
        if self.episodes < 2 * self.rows:
            raise ValueError(f"episodes {self.episodes}: twice the {self.rows} rows at least, some are held out")


def training(config: ThroughputConfig, agent: Literal["two_rate", "single_rate"]) -> TrainConfig:
    """Returns how an agent of these sizes is trained."""
    corpus, out = config.out / "corpus", config.out / agent
    return TrainConfig(corpus, out, agent, config.preset, mix=Mix(tasks=(TASK,)), learner=LEARNER)


def whole_episodes(run: Run, rows: int, ratio: int, length: int | None = None) -> tuple[Batch, int]:
    """Returns a batch with an episode a row, in budgets that just hold it, and how many ticks bear loss: all of them, or `length`
    in the middle of each, before which the controller reads its lead-in."""
    part = run.mixture.parts[0]
    encoded = [encode_episode(run.schema, part.layout, part.episodes[i], run.tokenizer) for i in range(rows)]
    roomy = dataclasses.replace(run.mixture.packing, rows=rows, controller_tokens=ROOMY, planner_tokens=ROOMY)
    firsts = [max(each.ticks - (length or each.ticks), 0) // 2 for each in encoded]
    windows = [(first, min(first + (length or each.ticks), each.ticks)) for first, each in zip(firsts, encoded)]
    outlines = [outline(each, periodic(each.ticks, ratio), window, roomy) for each, window in zip(encoded, windows)]
    segments = [make(None, each) for each in outlines]
    needed: dict[str, int] = {}
    for name, count in zip(TAKEN, np.max([taken(each)[: len(TAKEN)] for each in segments], axis=0)):
        needed[BUDGETS[name]] = max(needed.get(BUDGETS[name], 1), int(count))
    packing = dataclasses.replace(roomy, **needed)
    return fill([[each] for each in segments], run.schema, packing), sum(each.ticks for each in segments)


def stepping(network: Network, batch: Batch) -> Way:
    """Returns a step of training: each goes on where the last one ended."""
    step, state, given = make_step(network, LEARNER, LEARNER.weights), initial_state(network, LEARNER), jax.device_put(batch)

    def way(_: int) -> dict[str, float]:
        nonlocal state
        state, metrics = step(state, given)
        return {name: float(metrics[name]) for name in ("loss", "gradient_norm")}

    return way


def with_wide_head(network: Network) -> Network:
    """Returns the network whose controller tells bins by a head over all ids, those of bins first."""
    name, width = "controller/all_ids", network.config.controller.width

    def init(key: jax.Array) -> hk.Params:
        return network.init(key) | {name: {"w": 0.02 * jax.random.normal(key, (width, VOCABULARY))}}

    return network._replace(init=init, continuous=lambda params, x: x @ params[name]["w"])


def in_torch(network: Network, batch: Batch, notes: list[str]) -> dict[str, Way]:
    """Returns PyTorch's step, from the same weights; nothing, and a note, where it cannot be had."""
    try:
        import torch

        from experiments.torch_step import TorchStep
    except ImportError:
        notes.append("PyTorch is not installed, so it is not compared with: pip install -r requirements-extras.txt")
        return {}
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        step = TorchStep(network, initial_state(network, LEARNER).params, LEARNER)
    except ValueError as error:
        notes.append(f"PyTorch is not compared with: {error}")
        return {}
    given = step.prepared(batch)

    def way(_: int) -> dict[str, float]:
        loss, norm = step(given)
        return {"loss": loss, "gradient_norm": norm}

    return {TORCH: way}


def measure_steps(config: ThroughputConfig, runs: dict[str, Run], notes: list[str]) -> dict[str, Any]:
    """Returns how long steps of every kind take, and the ticks a second that they make of it."""
    two, one = (runs[agent] for agent in ("two_rate", "single_rate"))
    whole, ticks = whole_episodes(two, config.rows, config.ratio)
    same, alike = whole_episodes(one, config.rows, config.ratio)
    if ticks != alike:
        raise RuntimeError(f"{ticks} ticks with loss of the two-rate model, and {alike} of the one model: not the same ticks")
    segment, fewer = whole_episodes(two, config.rows, config.ratio, two.mixture.packing.segment_ticks)
    ways = {
        TWO: (stepping(two.network, whole), ticks, whole),
        ONE: (stepping(one.network, same), ticks, same),
        SEGMENT: (stepping(two.network, segment), fewer, segment),
        WIDE: (stepping(with_wide_head(two.network), whole), ticks, whole),
    }
    ways |= {name: (way, ticks, whole) for name, way in in_torch(two.network, whole, notes).items()}
    first = {name: [way(i) for i in range(3)] for name, (way, _, _) in ways.items()}
    timed = interleave({name: way for name, (way, _, _) in ways.items()}, config.seconds, "training steps")
    apart = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(first[TORCH], first[TWO])) if TORCH in first else None
    if apart is not None and apart > SAME:
        notes.append(f"PyTorch's step is not the same: its losses are {apart:.0e} from ours")
    rows = [
        {
            "way": name,
            "step_ms": p50(timed[name]),
            "steps": len(timed[name]),
            "ticks": count,
            "controller_tokens": int((batch.controller.segment > 0).sum()),
            "planner_tokens": int((batch.planner.segment > 0).sum()),
            "ticks_per_s": 1e3 * count / p50(timed[name]),
            "of_two_rates": (count / p50(timed[name])) / (ticks / p50(timed[TWO])),
        }
        for name, (_, count, batch) in ways.items()
    ]
    sizes = {agent: parameters(run.network) for agent, run in runs.items()}
    return {"rows": rows, "parameters": sizes, "apart": apart, "same": apart is None or apart <= SAME}


def measure_where(config: ThroughputConfig, run: Run) -> list[dict[str, Any]]:
    """Returns what parts of the two-rate step take by themselves, compiled apart: they need not add up to it."""
    batch, _ = whole_episodes(run, config.rows, config.ratio)
    given, params = jax.device_put(batch), initial_state(run.network, LEARNER).params
    alone = dataclasses.replace(LEARNER.weights, action=0.0, text=0.0)

    def loss(weights) -> Callable:
        return lambda params, batch: joint_loss(run.network, params, batch, weights)[0]

    functions = {
        "planner, forward": jax.jit(loss(alone)),
        "planner, forward and backward": jax.jit(jax.grad(loss(alone))),
        "both, forward": jax.jit(loss(LEARNER.weights)),
        "both, forward and backward": jax.jit(jax.grad(loss(LEARNER.weights))),
    }
    ways: dict[str, Way] = {
        name: lambda _, function=function: jax.block_until_ready(function(params, given)) for name, function in functions.items()
    }
    ways["the whole step"] = stepping(run.network, batch)
    ways["filling a batch, by another thread"] = lambda number: run.mixture.batch(0, number)
    for way in ways.values():
        way(0)
    timed = interleave(ways, config.seconds / 3, "parts of a step")
    whole = p50(timed["the whole step"])
    return [{"part": name, "ms": p50(times), "of_step": p50(times) / whole} for name, times in timed.items()]


def measure_loader(config: ThroughputConfig, run: Run) -> dict[str, float]:
    """Returns the share of training that batches were waited for, compilation and a first third left out."""
    step, state = make_step(run.network, LEARNER, LEARNER.weights), initial_state(run.network, LEARNER)
    batches, first = Loader(run.mixture, 0), config.training_steps // 3
    began = waited = 0.0
    for number in range(config.training_steps):
        if number == first:
            began, waited = time.perf_counter(), batches.wait_s
        state, metrics = step(state, jax.device_put(next(batches)[0]))
        jax.block_until_ready(metrics)
    took, waited = time.perf_counter() - began, batches.wait_s - waited
    batches.close()
    return {"step_ms": 1e3 * took / (config.training_steps - first), "wait_share": waited / took}


def measure_launch(config: ThroughputConfig) -> dict[str, float]:
    """Returns the seconds from the command to its first step, in a folder where nothing has been compiled and there again."""
    folder, corpus = config.out / "launches" / str(time.time_ns()), (config.out / "corpus").resolve()
    folder.mkdir(parents=True)
    here = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(here)}
    found = {}
    for name in ("cold", "warm"):
        options = ["--corpus", str(corpus), "--out", name, "--preset", config.preset, "--mix.tasks", TASK]
        command = [sys.executable, "-m", "experiments.train", *options, "--learner.steps", "1", "--learner.planner-steps", "0"]
        began, lines = time.monotonic(), folder / name / "metrics.jsonl"
        with (folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
            while not (lines.exists() and lines.stat().st_size):
                if process.poll() is not None:
                    raise RuntimeError(f"a training ended with {process.returncode} before its first step: see {log.name}")
                time.sleep(0.02)
            found[name] = time.monotonic() - began
            process.wait()
    return found


def measure(config: ThroughputConfig) -> dict[str, Any]:
    """Returns all figures that were asked for, and notes on them."""
    record_source(RecordConfig(TASK, config.out / "corpus" / TASK, config.episodes))
    agents: tuple[Literal["two_rate", "single_rate"], ...] = ("two_rate", "single_rate")
    notes = [f"{os.cpu_count()} cores; medians over steps in turns"]
    runs = {agent: assemble(training(config, agent)) for agent in agents}
    found: dict[str, Any] = {
        "command": {name: str(value) for name, value in dataclasses.asdict(config).items()},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform(), "jax": jax.__version__},
    }
    if "steps" in config.parts:
        found["steps"] = measure_steps(config, runs, notes)
    if "where" in config.parts:
        found["where"] = measure_where(config, runs["two_rate"])
    if "loader" in config.parts:
        found["loader"] = measure_loader(config, runs["two_rate"])
    if "launch" in config.parts:
        found["launch"] = measure_launch(config)
    return found | {"notes": notes}


def show(found: dict[str, Any], console: Console) -> None:
    """Prints the figures."""
    if "steps" in found:
        steps = found["steps"]
        sizes = ", ".join(f"{agent} {count:,}" for agent, count in steps["parameters"].items())
        table = Table("a step of", "ms", "ticks with loss", "tokens, fast", "slow", "ticks/s", "x two rates", title=sizes)
        for row in steps["rows"]:
            counts = str(row["ticks"]), str(row["controller_tokens"]), str(row["planner_tokens"])
            speed = f"{row['ticks_per_s']:.0f}", f"{row['of_two_rates']:.2f}"
            table.add_row(row["way"], f"{row['step_ms']:.1f}", *counts, *speed)
        console.print(table)
    if "where" in found:
        table = Table("of the two-rate step", "ms", "of the step")
        for row in found["where"]:
            table.add_row(row["part"], f"{row['ms']:.1f}", f"{row['of_step']:.2f}")
        console.print(table)
    if "loader" in found:
        loader = found["loader"]
        waited = f"{100 * loader['wait_share']:.1f}%"
        console.print(f"in training a step takes {loader['step_ms']:.0f} ms, {waited} of it for its batch")
    if "launch" in found:
        launch = found["launch"]
        console.print(f"to the first step: {launch['cold']:.1f} s with nothing compiled, {launch['warm']:.1f} s the second time")
    for note in found["notes"]:
        console.print(f"[dim]{note}[/dim]")


def main() -> int:
    """Runs the command line; returns the exit code: 1 too where PyTorch's step is not ours."""
    try:
        config = tyro.cli(ThroughputConfig, description=f"{__doc__}\n{ThroughputConfig.__doc__}")
        cache_compilations(Path("runs/.jax_cache"))
        found = measure(config)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"measure_throughput: {error}", file=sys.stderr)
        return 1
    show(found, Console(width=None if sys.stdout.isatty() else 140))
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(not found.get("steps", {}).get("same", True))


if __name__ == "__main__":
    sys.exit(main())
