"""Two processes of two devices each train as one does; one of them killed ends the other with a clear word; nothing is lost."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

from experiments import train as command
from hierarchy.corpus.mixture import joined
from hierarchy.training import trainer
from hierarchy.training.checkpoint import digest_of, open_manager, restore, sums
from hierarchy.training.hosts import HostsConfig, anyone, own_shards, placed
from hierarchy.training.learner import TrainState, initial_state
from tests.experiments import debug_run as tiny

STEPS = 16


def options(corpus: Path, out: Path, every_s: float = 60.0, mesh: tuple[str, str] = ("2", "2")) -> list[str]:
    line = tiny.training(corpus, out, STEPS, every_s)
    line[line.index("--mix.rows") + 1] = "4"
    return [*line, "--mix.shards", "2", "--mesh.data", mesh[0], "--mesh.fsdp", mesh[1], "--compute.scan"]


def start(line: list[str], devices: int, *more: str) -> subprocess.Popen:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    full = [sys.executable, "-m", "experiments.train", *line, *more]
    return subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def two(line: list[str], silent_s: int = 60) -> list[subprocess.Popen]:
    """Two hosts on this computer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    how = ["--hosts.count", "2", "--hosts.coordinator", address, "--hosts.silent-s", str(silent_s)]
    return [start(line, 2, *how, "--hosts.index", str(index)) for index in range(2)]


def finish(*processes: subprocess.Popen) -> list[str]:
    said = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return said


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in trainer.read_metrics(folder) if line["group"] == "train"]


@pytest.fixture(scope="module")
def one_process(debug_run, tmp_path_factory) -> Path:
    """The run of one process with four devices."""
    out = tmp_path_factory.mktemp("one_process")
    finish(start(options(debug_run / "corpus", out), 4))
    return out


@pytest.mark.long
def test_two_processes_train_as_one(debug_run, tmp_path, one_process):
    finish(*two(options(debug_run / "corpus", tmp_path)))
    assert len(losses(tmp_path)) == STEPS
    np.testing.assert_allclose(losses(tmp_path), losses(one_process), rtol=1e-5)


def newest(config: command.TrainConfig) -> TrainState:
    network = command.assemble(config).network
    like = jax.eval_shape(lambda: initial_state(network, config.learner))
    return restore(open_manager(config.out / "checkpoints"), like)


def wait_for(number: int, folder: Path, processes: list[subprocess.Popen]) -> None:
    until = time.monotonic() + 300
    while len(trainer.read_metrics(folder)) < number:
        assert all(process.poll() is None for process in processes), [process.communicate()[0] for process in processes]
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_host_ends_the_run_and_the_same_command_goes_on(victim, debug_run, tmp_path):
    line = options(debug_run / "corpus", tmp_path / "killed", every_s=0.0)
    processes = two(line, silent_s=20)
    wait_for(4, tmp_path / "killed", processes)
    processes[victim].send_signal(signal.SIGKILL)
    said = processes[1 - victim].communicate(timeout=120)[0]
    processes[victim].communicate()
    assert processes[1 - victim].returncode == 1, said
    assert re.search(rf"train: host {1 - victim} of 2 lost another one.*training resumes from the newest checkpoint", said)
    finish(*two(line))
    whole = options(debug_run / "corpus", tmp_path / "whole", every_s=0.0)
    finish(*two(whole))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    states = [newest(tyro.cli(command.TrainConfig, args=each)) for each in (line, whole)]
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.long
def test_two_processes_stop_together_and_one_goes_on_on_another_mesh_and_acts(debug_run, tmp_path, one_process):
    processes = two(options(debug_run / "corpus", tmp_path, every_s=0.0))
    wait_for(3, tmp_path, processes)
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [130, 130], said
    assert "stopped by another host after step" in said[0]
    assert "stopped by SIGTERM after step" in said[1]
    finish(start(options(debug_run / "corpus", tmp_path, mesh=("1", "4")), 4))
    assert len(losses(tmp_path)) == STEPS
    np.testing.assert_allclose(losses(tmp_path), losses(one_process), rtol=1e-5)
    assert tiny.command("evaluate", "--run", tmp_path, "--task", "patrol", "--ratio", "4", "--episodes", "2") == 0


@pytest.mark.long
def test_heads_that_are_divided_over_hosts_are_refused(debug_run, tmp_path):
    for process in two([*options(debug_run / "corpus", tmp_path, mesh=("1", "1")), "--mesh.tensor", "4"]):
        assert "mesh.tensor 4 divides heads over hosts of 2 devices" in process.communicate(timeout=120)[0]
        assert process.returncode == 1


def test_shards_join_to_the_batch_whoever_makes_them(debug_run, tmp_path):
    config = tyro.cli(command.TrainConfig, args=options(debug_run / "corpus", tmp_path))
    mixture = command.assemble(config).mixture
    both, _ = mixture.rows(3, 7, range(2), 2)
    parts = [mixture.rows(3, 7, range(shard, shard + 1), 2)[0] for shard in range(2)]
    for one, other in zip(jax.tree.leaves(both), jax.tree.leaves(joined(parts)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert both.plan.shape[0] == 4
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, parts), strict=True))


def test_a_shard_reads_its_own_stretch_alone(debug_run, tmp_path):
    config = tyro.cli(command.TrainConfig, args=options(debug_run / "corpus", tmp_path))
    mixture, seen = command.assemble(config).mixture, []
    count = len(mixture.parts[0].episodes)
    kept = mixture._episode
    mixture._episode = lambda part, index: (seen.append(index), kept(part, index))[1]
    mixture.rows(0, 0, range(1, 2), 2)
    assert seen
    assert min(seen) >= count // 2


def test_shards_that_do_not_go_round_are_refused(debug_run, tmp_path):
    mixture = command.assemble(tyro.cli(command.TrainConfig, args=options(debug_run / "corpus", tmp_path))).mixture
    for shards in (3, 400):
        with pytest.raises(ValueError, match=rf"{shards} shards of 4 rows and of sources with \d+ episodes"):
            mixture.check_shards(shards)


def test_one_host_is_no_host_at_all():
    assert own_shards(3) == range(3)
    assert anyone({"stop": True, "save": False}) == {"stop": True, "save": False}
    assert placed("batch", None) == "batch"
    with pytest.raises(ValueError, match=r"host index 2 lies in \[0, 2\)"):
        HostsConfig(2, 2)


def test_sums_tell_any_word_and_do_not_depend_on_where_it_lies():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 5, 4)).astype(np.float32)
    state = TrainState({"layer": {"w": jax.numpy.asarray(weights)}}, {}, jax.numpy.asarray(3, jax.numpy.int32))
    expected = sums(state)
    assert digest_of(state, ("sums",)) == {"sums": expected}
    assert set(digest_of(state)) == {"sha256"}
    for _ in range(20):
        other = weights.copy()
        other.reshape(-1).view(np.uint32)[rng.integers(120)] ^= np.uint32(1 << int(rng.integers(32)))
        assert sums(state._replace(params={"layer": {"w": jax.numpy.asarray(other)}})) != expected
    swapped = weights.reshape(-1)[rng.permutation(120)].reshape(weights.shape)
    assert sums(state._replace(params={"layer": {"w": jax.numpy.asarray(swapped)}})) != expected
