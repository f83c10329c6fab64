"""A checkpoint comes back as it was, or one line says what is wrong with it and what to do; nothing is lost by trying."""

import json
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hierarchy.training.checkpoint import (
    CheckpointError,
    expect_facts,
    open_manager,
    read_facts,
    restore,
    save,
    save_batch,
    write_facts,
)
from hierarchy.training.learner import TrainState

# Orbax leaves its other reads unfinished when one fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_of(step: int, size: int = 64) -> TrainState:
    rng = np.random.default_rng(step)
    params = {"layer": {"w": jnp.asarray(rng.normal(size=(size, size)), jnp.float32), "b": jnp.zeros(size)}}
    return TrainState(params, {"mu": jnp.asarray(rng.normal(size=(size, size)), jnp.float32)}, jnp.asarray(step, jnp.int32))


def same(one: TrainState, other: TrainState) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A folder with the checkpoints of steps 3 and 5."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    with open_manager(folder) as manager:
        save(manager, state_of(3))
        save(manager, state_of(5))
    return folder


@pytest.fixture
def folder(two, tmp_path) -> Path:
    return Path(shutil.copytree(two, tmp_path / "checkpoints"))


def test_the_newest_comes_back_and_the_older_are_let_go(tmp_path):
    with open_manager(tmp_path, keep=2) as manager:
        assert restore(manager, state_of(0)) is None
        for step in (1, 4, 9):
            save(manager, state_of(step))
        save(manager, state_of(9)._replace(params={}))
        assert sorted(manager.all_steps()) == [4, 9]
        assert same(restore(manager, state_of(0)), state_of(9))


def test_what_is_saved_in_the_background_is_the_state_as_it_was(tmp_path):
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    with open_manager(tmp_path, background=True) as manager:
        state = state_of(3, 512)
        for _ in range(3):
            save(manager, state, wait=False)
            before, state = jax.tree.map(np.array, state), step(state)
        save(manager, state)
        assert sorted(manager.all_steps()) == [5, 6]
        assert same(restore(manager, state_of(0, 512)), state)
    shutil.rmtree(tmp_path / "6")
    with open_manager(tmp_path) as manager:
        assert same(restore(manager, state_of(0, 512)), before)


def one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    said = str(error.value)
    assert "\n" not in said
    for part in parts:
        assert part in said


def heavy(folder: Path) -> Path:
    """The largest file of the newest checkpoint: the one with the arrays."""
    return max((path for path in (folder / "5").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(damage, folder):
    damage(heavy(folder))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with open_manager(folder) as manager, pytest.raises(CheckpointError, match=r"checkpoint 5 in .* is damaged") as error:
        restore(manager, state_of(0))
    one_line(error, str(folder), "remove that folder to go on from the checkpoint before it")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shutil.rmtree(folder / "5")
    with open_manager(folder) as manager:
        assert same(restore(manager, state_of(0)), state_of(3))


def test_a_flipped_byte_is_never_taken_for_a_weight(folder):
    path = heavy(folder)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for at in rng.integers(len(whole), size=8):
        data = bytearray(whole)
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with open_manager(folder) as manager:
            try:
                assert same(restore(manager, state_of(0)), state_of(5))
            except CheckpointError:
                continue


def test_a_checkpoint_of_another_shape_is_refused(folder):
    with open_manager(folder) as manager, pytest.raises(CheckpointError, match="damaged or of another model") as error:
        restore(manager, state_of(0, size=32))
    one_line(error)


def test_a_full_disk_costs_no_earlier_checkpoint(folder):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_manager(folder) as manager:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
            with pytest.raises(CheckpointError, match=r"step 7 could not be saved in .*earlier checkpoints are whole") as error:
                save(manager, state_of(7, 512))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    one_line(error, "make room and start again")
    with open_manager(folder) as manager:
        assert same(restore(manager, state_of(0)), state_of(5))
        save(manager, state_of(7))
        assert same(restore(manager, state_of(0)), state_of(7))


def test_facts_are_written_once_and_their_first_difference_is_named(tmp_path):
    facts = {"schema": {"layouts": [{"name": "a"}, {"name": "b"}]}, "steps": (3, 4)}
    write_facts(tmp_path, facts)
    write_facts(tmp_path, facts)
    assert read_facts(tmp_path)["steps"] == [3, 4]
    other = {"schema": {"layouts": [{"name": "a"}, {"name": "c"}]}, "steps": (3, 4)}
    with pytest.raises(CheckpointError, match=r"trained with another schema\.layouts\[1\]\.name: 'b', here 'c'; use that, or"):
        write_facts(tmp_path, other)
    with pytest.raises(CheckpointError, match=r"another steps: .*, here 'absent'"):
        expect_facts(tmp_path, {"schema": facts["schema"]})
    assert json.loads((tmp_path / "facts.json").read_text())["schema"] == facts["schema"]


def test_facts_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no training run in .*: facts\.json is missing"):
        read_facts(tmp_path)
    (tmp_path / "facts.json").write_text('{"agent": ')
    with pytest.raises(CheckpointError, match=r"facts\.json is damaged") as error:
        read_facts(tmp_path)
    one_line(error)


def test_a_batch_is_saved_without_pickle(tmp_path):
    path = save_batch(tmp_path, 4, {"value": jnp.arange(3), "age": jnp.full(2, jnp.nan)})
    with np.load(path, allow_pickle=False) as saved:
        assert saved["['value']"].tolist() == [0, 1, 2]
        assert np.isnan(saved["['age']"]).all()
