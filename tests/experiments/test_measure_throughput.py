"""The throughput command: PyTorch's step is ours, both models see the same ticks, and every part runs."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from experiments import measure_throughput
from experiments.measure_throughput import LEARNER, TASK, ThroughputConfig, stepping, training, whole_episodes, with_wide_head
from experiments.record import RecordConfig, record_source
from experiments.train import Run, assemble
from hierarchy.layout import EMPTY
from hierarchy.training.learner import initial_state


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ThroughputConfig:
    made = ThroughputConfig(out=tmp_path_factory.mktemp("throughput"), preset="debug", rows=2, episodes=40, training_steps=3)
    record_source(RecordConfig(TASK, made.out / "corpus" / TASK, made.episodes))
    return made


@pytest.fixture(scope="module")
def runs(config) -> dict[str, Run]:
    return {agent: assemble(training(config, agent)) for agent in ("two_rate", "single_rate")}


def test_both_models_bear_loss_at_every_tick_of_the_same_episodes(config, runs):
    labels = []
    for run in runs.values():
        batch, ticks = whole_episodes(run, config.rows, config.ratio)
        episodes = [run.mixture.parts[0].episodes[i] for i in range(config.rows)]
        assert ticks == sum(len(episode.action) for episode in episodes)
        assert batch.continuous.weight.sum() == ticks
        labels.append(batch.continuous.label[batch.continuous.weight > 0])
        assert (batch.controller.segment > 0).all(axis=1).any()
    np.testing.assert_array_equal(*labels)


def test_a_segment_bears_loss_in_its_window_alone(config, runs):
    batch, ticks = whole_episodes(runs["two_rate"], config.rows, config.ratio, 20)
    assert ticks == 20 * config.rows == batch.continuous.weight.sum()
    whole, _ = whole_episodes(runs["two_rate"], config.rows, config.ratio)
    assert (batch.controller.value != EMPTY).sum() < (whole.controller.value != EMPTY).sum() / 2


def test_a_head_over_all_ids_learns_the_same_actions(config, runs):
    network, (batch, _) = runs["two_rate"].network, whole_episodes(runs["two_rate"], config.rows, config.ratio)
    way = stepping(with_wide_head(network), batch)
    losses = [way(i)["loss"] for i in range(8)]
    assert losses[-1] < losses[0]


def test_pytorch_takes_the_same_steps(config, runs):
    pytest.importorskip("torch")
    from experiments.torch_step import TorchStep

    run = assemble(dataclasses.replace(training(config, "two_rate"), plan_read="film"))
    network = run.network
    batch, _ = whole_episodes(run, config.rows, config.ratio)
    ours, theirs = stepping(network, batch), TorchStep(network, initial_state(network, LEARNER).params, LEARNER)
    given, found = theirs.prepared(batch), []
    for number in range(6):
        expected, (loss, norm) = ours(number), theirs(given)
        found.append(loss)
        assert loss == pytest.approx(expected["loss"], rel=1e-5)
        assert norm == pytest.approx(expected["gradient_norm"], rel=1e-3)
    assert found[-1] < found[0]


@pytest.mark.long
def test_the_command_measures_every_part(config, tmp_path):
    path = tmp_path / "figures.json"
    options = ["--out", str(config.out), "--preset", "debug", "--rows", "2", "--episodes", "40"]
    options += ["--seconds", "0.5", "--training-steps", "6", "--json", str(path)]
    subprocess.run([sys.executable, "-m", "experiments.measure_throughput", *options], check=True, capture_output=True)
    found = json.loads(path.read_text())
    ways = {row["way"]: row for row in found["steps"]["rows"]}
    assert ways[measure_throughput.ONE]["ticks"] == ways[measure_throughput.TWO]["ticks"]
    assert ways[measure_throughput.SEGMENT]["ticks"] < ways[measure_throughput.TWO]["ticks"]
    assert {row["part"] for row in found["where"]} >= {"planner, forward", "the whole step"}
    assert 0 <= found["loader"]["wait_share"] <= 1
    assert 0 < found["launch"]["warm"] < found["launch"]["cold"]
