"""I5: a run that was stopped, killed or cut off goes on as if nothing had happened; and what is not finite stops it."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest
import tyro

from experiments import train as command
from experiments.evaluate import load
from hierarchy.corpus.mixture import Loader
from hierarchy.training import trainer
from hierarchy.training.checkpoint import open_manager, restore
from hierarchy.training.learner import Optimizer, TrainState, initial_state
from tests.experiments import debug_run as tiny

STEPS = 12
CLOCKS = {"wall_s", "loader_wait_share", "steps_per_s"}


def config_of(debug_run: Path, out: Path, **how) -> command.TrainConfig:
    return tyro.cli(command.TrainConfig, args=tiny.training(debug_run / "corpus", out, **({"steps": STEPS} | how)))


def lines(folder: Path) -> list[dict]:
    """The metric lines without what a clock wrote."""
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in trainer.read_metrics(folder)]


def assert_same(one: TrainState, other: TrainState) -> None:
    left, right = jax.tree.leaves(one), jax.tree.leaves(other)
    assert len(left) == len(right)
    for a, b in zip(left, right):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module")
def uninterrupted(debug_run, tmp_path_factory) -> tuple[TrainState, list[dict]]:
    out = tmp_path_factory.mktemp("uninterrupted")
    state = command.train_run(config_of(debug_run, out))
    return state, lines(out)


def test_runs_from_before_an_option_go_on_without_it(debug_run, tmp_path):
    """What facts.json held at first: an option that came later is said only where it is used."""
    facts = json.loads((debug_run / "two_rate" / "facts.json").read_text())
    assert facts["learner"]["weights"].keys() == {"action", "text", "sub_goal", "planner_text"}
    assert facts["mix"].keys() == {
        "tasks", "weights", "rows", "controller_tokens", "planner_tokens", "plans", "segment_ticks", "ratios", "latencies",
        "wait_for_first", "chunks", "delays", "loader_threads",
    }  # fmt: skip
    asked = {"irregular": 0.5, "prompts": 0.25, "rows": 2}
    assert command.said(dataclasses.asdict(command.Mix(**asked))).items() >= asked.items()


class StopAfter:
    """A loader whose batch number `last` is followed by a SIGTERM to this very process. It says when it was closed."""

    def __init__(self, batches, first: int, last: int):
        self._batches, self._next, self._last = batches, first, last
        self.closed = False

    def close(self):
        self._batches.close()
        self.closed = True

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self._batches)
        if self._next == self._last:
            os.kill(os.getpid(), signal.SIGTERM)
        self._next += 1
        return batch


def stopped_after(config: command.TrainConfig, last: int, monkeypatch) -> None:
    """Trains until a SIGTERM comes during step `last`, which closes the loader."""
    made = []

    def load(mix, seed: int, step: int, **how) -> StopAfter:
        made.append(StopAfter(Loader(mix, seed, step, **how), step, last))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(command, "Loader", load)
        with pytest.raises(trainer.Interrupted, match=rf"stopped by SIGTERM after step {last}; the same command goes on"):
            command.train_run(config)
    assert [each.closed for each in made] == [True]


@pytest.mark.parametrize("last", [pytest.param(0, marks=pytest.mark.long), 4])
def test_stopped_by_a_signal_and_resumed_is_uninterrupted(last, debug_run, tmp_path, uninterrupted, monkeypatch):
    config = config_of(debug_run, tmp_path)
    stopped_after(config, last, monkeypatch)
    assert open_manager(tmp_path / "checkpoints").latest_step() == last + 1
    assert_same(command.train_run(config), uninterrupted[0])
    assert lines(tmp_path) == uninterrupted[1]


@pytest.mark.parametrize("optimizer", get_args(Optimizer))
def test_layers_in_a_loop_are_kept_one_by_one_and_resumed(optimizer, debug_run, tmp_path, monkeypatch):
    """A step that runs layers in a loop holds them stacked; its checkpoints are those of any other run."""
    config = config_of(debug_run, tmp_path / "cut")
    learner = dataclasses.replace(config.learner, optimizer=optimizer)
    config = dataclasses.replace(config, learner=learner, compute=dataclasses.replace(config.compute, scan=True))
    whole = command.train_run(dataclasses.replace(config, out=tmp_path / "whole"))
    like = jax.eval_shape(lambda: initial_state(command.assemble(config).network, config.learner))
    stopped_after(config, 4, monkeypatch)
    middle = restore(open_manager(tmp_path / "cut" / "checkpoints"), like)
    assert int(middle.step) == 5
    assert jax.tree.structure(middle) == jax.tree.structure(like)
    assert_same(command.train_run(config), whole)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "cut").params, whole.params)


def test_a_loader_that_starts_again_from_the_first_batch_is_noticed(debug_run, tmp_path, uninterrupted, monkeypatch):
    config = config_of(debug_run, tmp_path)
    stopped_after(config, 4, monkeypatch)
    monkeypatch.setattr(command, "Loader", lambda mix, seed, step, **how: Loader(mix, seed, 0, **how))
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_same(command.train_run(config), uninterrupted[0])
    assert lines(tmp_path)[:5] == uninterrupted[1][:5]
    assert lines(tmp_path)[5:] != uninterrupted[1][5:]


def start(config_options: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *config_options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_for(number: int, folder: Path, process: subprocess.Popen) -> None:
    """Waits until the run has written metric line `number`."""
    until = time.monotonic() + 240
    while len(trainer.read_metrics(folder)) < number:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.01)


def test_killed_and_resumed_is_uninterrupted(debug_run, tmp_path, uninterrupted):
    process = start(tiny.training(debug_run / "corpus", tmp_path, STEPS, every_s=0.0))
    wait_for(4, tmp_path, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    saved = open_manager(tmp_path / "checkpoints").latest_step()
    assert 3 <= saved < STEPS
    assert_same(command.train_run(config_of(debug_run, tmp_path)), uninterrupted[0])
    assert lines(tmp_path) == uninterrupted[1]


@pytest.mark.long
def test_killed_at_twenty_random_moments_is_uninterrupted(debug_run, tmp_path):
    rng, steps = np.random.default_rng(0), 200
    for _ in range(20):
        process = start(tiny.training(debug_run / "corpus", tmp_path, steps, every_s=0.0))
        wait_for(len(trainer.read_metrics(tmp_path)) + int(rng.integers(1, 4)), tmp_path, process)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
    assert 0 < open_manager(tmp_path / "checkpoints").latest_step() < steps
    whole = tmp_path.with_name("whole")
    assert_same(*(command.train_run(config_of(debug_run, out, steps=steps)) for out in (tmp_path, whole)))
    assert lines(tmp_path) == lines(whole)
    shutil.rmtree(whole)


def test_the_command_leaves_cleanly_on_a_signal(debug_run, tmp_path):
    process = start(tiny.training(debug_run / "corpus", tmp_path, 10_000))
    wait_for(2, tmp_path, process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 130
    step = open_manager(tmp_path / "checkpoints").latest_step()
    assert said.strip().endswith(f"train: stopped by SIGINT after step {step - 1}; the same command goes on from there")
    assert "Traceback" not in said


def test_a_metric_line_cut_short_by_a_crash_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "wall_s": 1.0}\n{"step": 1, "wall')
    assert [line["step"] for line in trainer.read_metrics(tmp_path)] == [0]
    with trainer.Log(tmp_path, 3) as log:
        log.write(3, {"loss": 1.5})
    assert [line["step"] for line in trainer.read_metrics(tmp_path)] == [0, 3]


def test_what_is_not_finite_stops_with_the_batch_and_the_last_good_state(debug_run, tmp_path, monkeypatch):
    config, bad = config_of(debug_run, tmp_path), 5

    def broken(mix, seed, step, **how):
        for number, (batch, stats) in enumerate(Loader(mix, seed, step, **how), step):
            if number == bad:
                weight = batch.continuous.weight.copy()
                weight[0, 0] = np.inf
                batch = batch._replace(continuous=batch.continuous._replace(weight=weight))
            yield batch, stats

    monkeypatch.setattr(command, "Loader", broken)
    with pytest.raises(trainer.NotFinite, match=rf"step {bad}: loss .*, gradient norm .*its batch is in .*batch_{bad}\.npz"):
        command.train_run(config)
    with np.load(tmp_path / f"batch_{bad}.npz", allow_pickle=False) as saved:
        assert np.isinf(saved[".continuous.weight"]).sum() == 1
    network = command.assemble(config).network
    good = restore(open_manager(tmp_path / "checkpoints"), jax.eval_shape(lambda: initial_state(network, config.learner)))
    assert int(good.step) == bad
    monkeypatch.undo()
    other = tmp_path.with_name("until_then")
    stopped_after(config_of(debug_run, other), bad - 1, monkeypatch)
    expected = restore(open_manager(other / "checkpoints"), jax.eval_shape(lambda: initial_state(network, config.learner)))
    assert_same(good, expected)
    shutil.rmtree(other)
