"""Checkpoints of a training run: orbax for the arrays, JSON for the facts. Nothing in them can execute code."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from hierarchy.training.learner import TrainState

FACTS = "facts.json"
DIGEST = "digest"


class CheckpointError(Exception):
    """A checkpoint that cannot be written, read, or used here; the message names it and the mend."""


def open_manager(folder: Path, keep: int = 2, background: bool = False) -> ocp.CheckpointManager:
    """Returns the manager of a run's checkpoints, of which the newest `keep` stay. A save is complete or absent.

    background: what is saved may be written while training goes on.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=background)
    return ocp.CheckpointManager(folder.resolve(), options=options, item_names=("state", DIGEST))


def save(manager: ocp.CheckpointManager, state: TrainState, wait: bool = True) -> None:
    """Writes the state under its step. Raises CheckpointError where the disk refuses; earlier checkpoints stay.

    Of a state that is divided over hosts each writes its own part; all of them call this.

    wait: until it is written, and what was saved before it; else it is only copied, and the next save says what went wrong.
    """
    step = int(state.step)
    try:
        if step not in manager.all_steps():
            digest = ocp.args.JsonSave(digest_of(state))
            # The next step writes over this state, and the copy that orbax makes may be a view of it.
            kept = ocp.args.StandardSave(state if wait else copied(state))
            manager.save(step, args=ocp.args.Composite(state=kept, digest=digest), force=True)
        if wait:
            manager.wait_until_finished()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"step {step} could not be saved in {manager.directory}: {error}; earlier checkpoints are whole: "
            "make room and start again, training resumes from the newest"
        ) from error


def restore(manager: ocp.CheckpointManager, like: TrainState) -> TrainState | None:
    """Returns the newest state, or None where there is none yet.

    like: a state (or its shapes) of the same model; it comes back divided as this is, or on one device, however it was when it
        was saved. Raises CheckpointError where the stored one is of another model or damaged.
    """
    step = manager.latest_step()
    if step is None:
        return None
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here), like)
    wanted = ocp.args.Composite(state=ocp.args.StandardRestore(shapes), digest=ocp.args.JsonRestore())
    try:
        restored = manager.restore(step, args=wanted)
        # Orbax notices a flipped byte in its own tables and not in the arrays.
        if restored.digest != digest_of(restored.state, tuple(restored.digest)):
            raise ValueError("the arrays are not those that were saved")
    except Exception as error:  # orbax has no one error for what is damaged or of another shape
        raise CheckpointError(
            f"checkpoint {step} in {manager.directory} is damaged or of another model: {_first_line(error)}; remove that "
            "folder to go on from the checkpoint before it"
        ) from error
    return restored.state


@jax.jit
def copied(state: TrainState) -> TrainState:
    """Returns a copy of the state where it lies."""
    return jax.tree.map(jnp.copy, state)


def digest_of(state: TrainState, kinds: tuple[str, ...] = ()) -> dict[str, str]:
    """Returns what tells a state's arrays from any others, by kind: those asked for, or the one that suits where the state lies.

    The hash of its bytes takes them all to one place; of a state that is divided over hosts, sums are compared.
    """
    near = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(state))
    known = {"sha256": sha256, "sums": sums}
    return {kind: known[kind](state) for kind in kinds or (("sha256",) if near else ("sums",))}


def sums(state: TrainState) -> str:
    """Returns the hash of a sum of each of a state's arrays, with their places, kinds and shapes; each host reads its own parts.

    The sum is of 32-bit words, modulo 2**32, each times an odd number of its place: no word can change without it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    parts = ([_sum(leaf.shape, shard) for shard in leaf.addressable_shards] for _, leaf in leaves)
    own = np.array([np.sum(each, dtype=np.uint32) for each in parts])
    everywhere = own if jax.process_count() == 1 else multihost_utils.process_allgather(own).sum(axis=0, dtype=np.uint32)
    words = [f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} {int(x)}" for (path, leaf), x in zip(leaves, everywhere)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _sum(shape: tuple[int, ...], shard: Any) -> np.uint32:
    """The part of an array's sum that one device adds; of copies the first alone counts."""
    if shard.replica_id:
        return np.uint32(0)
    place = np.zeros((), np.uint32)
    for axis, (cut, size) in enumerate(zip(shard.index, shape, strict=True)):
        along = np.arange(*cut.indices(size), dtype=np.uint32) * np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        place = place[..., None] + along
    words = np.asarray(shard.data).view(np.uint32)
    return np.sum(words * (2 * place + 1), dtype=np.uint32)


def sha256(state: TrainState) -> str:
    """Returns the hash of a state's arrays, with their places, kinds and shapes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True))
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Writes what a run's checkpoints are of (schema, sizes, data), or checks it against what stands there.

    Raises:
        CheckpointError: the folder holds a run of something else; the message names the first difference.
    """
    path = folder / FACTS
    facts = json.loads(json.dumps(facts))
    if path.exists():
        expect_facts(folder, facts)
        return
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(facts, indent=1))
    draft.rename(path)


def read_facts(folder: Path) -> dict[str, Any]:
    """Returns what `write_facts` wrote. Raises CheckpointError where there is no run."""
    path = folder / FACTS
    if not path.exists():
        raise CheckpointError(f"no training run in {folder}: {FACTS} is missing")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def expect_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Raises CheckpointError unless the run in `folder` is of the same things; names the first difference."""
    stored = read_facts(folder)
    difference = first_difference(stored, json.loads(json.dumps(facts)))
    if difference:
        raise CheckpointError(f"the run in {folder} was trained with another {difference}; use that, or another folder")


def first_difference(stored: Any, wanted: Any, path: str = "") -> str:
    """Returns where two JSON values first differ and how, or an empty string."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted(stored.keys() | wanted.keys()):
            here = f"{path}.{key}" if path else key
            if key not in stored or key not in wanted:
                return f"{here}: {stored.get(key, 'absent')!r}, here {wanted.get(key, 'absent')!r}"
            if difference := first_difference(stored[key], wanted[key], here):
                return difference
        return ""
    if isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        found = (first_difference(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(stored, wanted, strict=True)))
        return next((difference for difference in found if difference), "")
    return "" if stored == wanted else f"{path}: {stored!r}, here {wanted!r}"


def save_batch(folder: Path, step: int, batch: Any) -> Path:
    """Writes the arrays of a batch to an .npz for inspection, and returns its path."""
    leaves = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(batch)}
    path = folder / f"batch_{step}.npz"
    np.savez_compressed(path, allow_pickle=False, **leaves)
    return path


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
