"""The training loop: batches in order, metrics, checkpoints, and a clean way out."""

import contextlib
import dataclasses
import functools
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from hierarchy.batch import Batch
from hierarchy.model.network import Network
from hierarchy.training.checkpoint import open_manager, restore, save, save_batch
from hierarchy.training.hosts import anyone, divided, lost_hosts_named, placed
from hierarchy.training.learner import (
    LearnerConfig,
    TrainState,
    arranged,
    initial_state,
    make_measure,
    make_step,
    spread_state,
    step_weights,
)
from modules.compute import Compute, Spread

Loader = Callable[[int], Iterator[tuple[Batch, dict[str, float]]]]
"""From the number of the first step to the batches from there on, with their statistics. What it returns is closed after the last
step, where it can be."""


class Interrupted(Exception):
    """Somebody asked the run to stop; its state is saved."""


class NotFinite(Exception):
    """A loss or gradient was not finite; the batch is saved and the last good state too."""


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    """log_every, measure_every: steps between metric lines, and between measurements of plan use on held-out batches.
    checkpoint_every_s: seconds between checkpoints."""

    log_every: int = 20
    measure_every: int = 200
    checkpoint_every_s: float = 60.0


def train(
    network: Network,
    learner: LearnerConfig,
    trainer: TrainerConfig,
    loader: Loader,
    held_out: list[Batch],
    folder: Path,
    title: str = "training",
    compute: Compute | None = None,
    spread: Spread | None = None,
) -> TrainState:
    """Returns the state after all steps, resuming from the newest checkpoint in `folder`.

    Writes metrics.jsonl, TensorBoard events and checkpoints there. Several hosts call this with one folder that all reach and
    with loaders of their own rows; the first of them writes what is not the parameters.

    Args:
        compute, spread: how steps are computed, and over which devices (see `make_step`); neither is part of a checkpoint,
            which holds every layer by itself.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after saving.
        NotFinite: after saving the last good state and the batch.
        HostLost: another host has ended.
        CheckpointError: a checkpoint cannot be written or read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manager = open_manager(folder / "checkpoints", background=spread is not None)
    if spread is None:
        initial = functools.partial(initial_state, network, learner, compute)
        like, kept = jax.eval_shape(initial), jax.eval_shape(functools.partial(initial_state, network, learner))
    else:
        (initial, like), (_, kept) = (spread_state(network, learner, spread, how) for how in (compute, None))
    state = restore(manager, kept)
    state = initial() if state is None else arranged(state, like)
    both = {step_weights(learner, 0), learner.weights}
    steps = {weights: make_step(network, learner, weights, compute, spread) for weights in both}
    measure = make_measure(network, compute, spread)
    first = int(state.step)
    first_host = jax.process_index() == 0
    with (
        lost_hosts_named(),
        Log(folder if first_host else None, first) as log,
        stop_signals() as stop,
        progress(title, learner.steps, first, shown=first_host) as advance,
        closing(loader(first) if first < learner.steps else iter(())) as batches,
    ):
        saved_at = time.monotonic()
        for number in range(first, learner.steps):
            began = time.perf_counter()
            batch, stats = next(batches)
            waited = time.perf_counter() - began
            state, metrics = steps[step_weights(learner, number)](state, placed(batch, spread))
            if not bool(metrics["finite"]):
                save(manager, arranged(state, kept))
                raise NotFinite(
                    f"step {number}: loss {float(metrics['loss'])}, gradient norm {float(metrics['gradient_norm'])}; parameters "
                    f"are those before it, its batch is in {save_batch(folder, number, batch)}"
                )
            log.count(waited, time.perf_counter() - began, stats)
            if number % trainer.log_every == 0 or number + 1 == learner.steps:
                log.write(number, metrics)
            if held_out and ((number + 1) % trainer.measure_every == 0 or number + 1 == learner.steps):
                measured = [measure(state.params, divided(batch, spread)) for batch in held_out]
                log.write(number, mean_of(measured), "held_out")
            advance(f"loss {float(metrics['loss']):.3f}")
            due = time.monotonic() - saved_at > trainer.checkpoint_every_s
            now = anyone({"stop": stop.is_set, "save": due or stop.is_set})
            if now["save"]:
                save(manager, arranged(state, kept), wait=spread is None or now["stop"])
                saved_at = time.monotonic()
            if now["stop"]:
                by = stop.name or "another host"
                raise Interrupted(f"stopped by {by} after step {number}; the same command goes on from there")
        state = arranged(state, kept)
        save(manager, state)
    return state


@contextlib.contextmanager
def closing(batches: Iterator) -> Iterator[Iterator]:
    """Gives the batches, and closes them if they are made by something that has to be closed."""
    try:
        yield batches
    finally:
        if hasattr(batches, "close"):
            batches.close()


def mean_of(metrics: list[dict[str, jax.Array]]) -> dict[str, float]:
    """Returns the mean of each metric over several batches."""
    return {name: float(np.mean([float(each[name]) for each in metrics])) for name in metrics[0]}


class Log:
    """Metric lines in metrics.jsonl and as TensorBoard events. Lines at or after the first step are of a lost run and are cut.

    folder: None for a host that writes none.
    """

    def __init__(self, folder: Path | None, first: int):
        self._wall, self._events = 0.0, None
        self._reset()
        if folder is None:
            return
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(folder) if line["step"] < first]
        self._wall = kept[-1]["wall_s"] if kept else 0.0
        draft = self._path.with_suffix(".draft")
        draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
        draft.rename(self._path)
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def _reset(self) -> None:
        self._waited = self._took = 0.0
        self._stats: list[dict[str, float]] = []

    def count(self, waited_s: float, took_s: float, stats: dict[str, float]) -> None:
        """Adds one step: seconds waited for its batch, seconds in all, and the batch's statistics."""
        self._waited += waited_s
        self._took += took_s
        self._wall += took_s
        self._stats.append(stats)

    def write(self, step: int, metrics: dict[str, Any], group: str = "train") -> None:
        """Writes one line; training lines carry what was counted since the last."""
        if self._events is None:
            return
        line = {name: float(value) for name, value in metrics.items()}
        if group == "train" and self._stats:
            line |= {name: float(np.mean([each[name] for each in self._stats])) for name in self._stats[0]}
            line |= {"loader_wait_share": self._waited / self._took, "steps_per_s": len(self._stats) / self._took}
            self._reset()
        for name, value in line.items():
            self._events.add_scalar(f"{group}/{name}", value, step)
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "group": group, "wall_s": self._wall} | line) + "\n")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the metric lines of a run; a last line cut short by a crash is left out."""
    path = folder / "metrics.jsonl"
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


class Stop:
    """Whether a signal came, and which."""

    def __init__(self) -> None:
        self.is_set, self.name = False, ""

    def __call__(self, number: int, _: Any) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set, self.name = True, signal.Signals(number).name


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Gives a flag that SIGINT and SIGTERM set; a second signal breaks off at once. Outside the main thread it stays unset."""
    stop = Stop()
    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress(title: str, total: int, done: int, shown: bool = True) -> Iterator[Callable[[str], None]]:
    """Gives a function that moves a progress bar with time left on by one step, with a note beside it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), disable=not shown) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")
        yield lambda note: bar.update(task, advance=1, note=note)
