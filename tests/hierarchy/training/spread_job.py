"""Trains a toy for three steps on one device and on meshes of up to eight, and prints how far they are apart.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.hierarchy.training.spread_job KIND einsum 2,2,2 1,4,1
"""

import dataclasses
import json
import sys

import jax
import numpy as np

from hierarchy.batch import Batch
from hierarchy.timeline import periodic
from hierarchy.training.learner import LearnerConfig, TrainState, initial_state, make_step, spread_state
from hierarchy.training.sharding import MeshConfig, bytes_a_device, spread_over
from modules.compute import Compute
from modules.stacking import by_layer
from tests.hierarchy.model.two_rate_toys import Toy, packed, segments, toy, windows, world

STEPS, ROWS = 3, 8


def example(kind: str) -> tuple[Toy, Batch]:
    """Returns a toy, and three packed rows of what it is trained on."""
    made = toy(kind)
    above = [periodic(made.ticks, 8, 1)] * len(made.network.config.above)
    return made, packed(made, segments(made, world(made), periodic(made.ticks, 4, 2, 1), windows(made.ticks), above))


def run(step, state: TrainState, batch) -> tuple[list[float], TrainState]:
    """Returns the losses of the steps and the last state."""
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, state


def main(kind: str, attention: str, meshes: list[str]) -> None:
    """Prints, by mesh, the largest relative difference of a loss, that of a parameter, and the share of a state a device has."""
    # Experts have room for all, by a number and not by being asked to, as the reference has.
    (made, batch), compute = example(kind), Compute(scan=True, remat="full", attention=attention, expert_capacity=2.0)
    batch = jax.tree.map(lambda x: x[np.arange(ROWS) % 3], batch)
    config = LearnerConfig(steps=STEPS, planner_steps=0, rate_warm_up=1)
    alone, reference = run(make_step(made.network, config, config.weights), initial_state(made.network, config), batch)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(reference))
    found = {}
    for name in meshes:
        mesh = MeshConfig(*map(int, name.split(",")))
        # How even loads are is said of what is gone through together: in parts it is another loss.
        halves = ROWS % (2 * mesh.data * mesh.fsdp) == 0 and kind != "experts"
        parts = dataclasses.replace(config, accumulate=2 if halves else 1)
        spread = spread_over(mesh, jax.devices()[: mesh.devices])
        initial, like = spread_state(made.network, config, spread, compute)
        held = bytes_a_device(jax.tree.map(lambda leaf: leaf.sharding, like), like)
        losses, state = run(make_step(made.network, parts, config.weights, compute, spread), initial(), batch)
        pairs = zip(jax.tree.leaves(by_layer(state.params)), jax.tree.leaves(reference.params), strict=True)
        found[name] = {
            "loss": max(abs(a / b - 1) for a, b in zip(losses, alone, strict=True)),
            "moved": abs(alone[-1] / alone[0] - 1),
            "params": max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs),
            "share": held / total,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
