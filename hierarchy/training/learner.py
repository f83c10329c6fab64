"""One optimiser step as a pure function of a state and a batch."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from hierarchy.batch import Batch, Targets
from hierarchy.model.network import Network
from hierarchy.training.losses import LossWeights, Metrics, joint_loss, plan_use
from hierarchy.training.sharding import batch_sharding, state_shardings, whole
from modules.compute import Compute, Spread, computing, laid, lowered

PlannerLearns = Literal["joint", "detached", "frozen"]


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
    """How parameters follow from batches.

    steps: optimiser steps in all, of which the first `planner_steps` train the planner's own losses alone (its warm-up).
    peak_rate: of AdamW, after `rate_warm_up` steps; then a cosine down to `final_rate` of it. controller_rate: how many times
        that the controller's rate is, which is small and wants a larger one.
    clip: largest global norm of a gradient.
    planner: what trains the planner once the controller learns: its own losses and, through the plan, the action's ("joint"), its
        own alone ("detached"), or nothing, so that it stays as its warm-up left it ("frozen").
    accumulate: parts that the rows of a batch are gone through in, one after another, their gradients added up: less memory.
    """

    steps: int = 3000
    planner_steps: int = 900
    peak_rate: float = 1.5e-3
    controller_rate: float = 3.0
    rate_warm_up: int = 100
    final_rate: float = 0.05
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1e-3
    clip: float = 1.0
    weights: LossWeights = LossWeights()
    planner: PlannerLearns = "joint"
    accumulate: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate is {self.accumulate}: at least 1")
        if not 0 <= self.planner_steps <= self.steps:
            raise ValueError(f"planner_steps {self.planner_steps} lies within the {self.steps} steps")
        if self.planner not in get_args(PlannerLearns):
            raise ValueError(f"planner is {self.planner!r}: it is one of {', '.join(get_args(PlannerLearns))}")


class TrainState(NamedTuple):
    """Everything that a step changes. step: int32, the number of steps taken, and so the number of the next batch."""

    params: hk.Params
    optimizer: Any
    step: jax.Array


def rate(config: LearnerConfig) -> optax.Schedule:
    """Returns the learning rate by step: a linear warm-up and a cosine over all steps."""
    warm_up = min(config.rate_warm_up, max(config.steps - 1, 1))
    steps, final = max(config.steps, warm_up + 1), config.final_rate * config.peak_rate
    return optax.warmup_cosine_decay_schedule(0.0, config.peak_rate, warm_up, steps, final)


def optimizer(config: LearnerConfig) -> optax.GradientTransformation:
    """Returns AdamW with decay on matrices alone, after clipping by the global norm."""

    def matrices(params: hk.Params) -> Any:
        return {name: {key: leaf.ndim >= 2 + (LAYERS in name) for key, leaf in leaves.items()} for name, leaves in params.items()}

    def faster(params: hk.Params) -> Any:
        return {name: dict.fromkeys(leaves, name.startswith("controller")) for name, leaves in params.items()}

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate(config), config.b1, config.b2, weight_decay=config.weight_decay, mask=matrices),
        optax.masked(optax.scale(config.controller_rate), faster),
    )


def initial_state(network: Network, config: LearnerConfig) -> TrainState:
    """Returns the state before the first step, a function of the seed."""
    params = network.init(jax.random.key(config.seed))
    return TrainState(params, optimizer(config).init(params), jnp.zeros((), jnp.int32))


def spread_state(network: Network, config: LearnerConfig, spread: Spread) -> tuple[Callable[[], TrainState], TrainState]:
    """Returns what makes the initial state, each device its own part, and the shapes of a state with their shardings."""
    shapes = jax.eval_shape(lambda: initial_state(network, config))
    held = state_shardings(spread, shapes)
    like = jax.tree.map(lambda leaf, how: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=how), shapes, held)
    return jax.jit(lambda: initial_state(network, config), out_shardings=held), like


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@functools.lru_cache(16)
def make_step(
    network: Network, config: LearnerConfig, weights: LossWeights, compute: Compute | None = None, spread: Spread | None = None
) -> Step:
    """Returns the compiled step under these weights: (state, batch) to (state, metrics). The given state is donated.
    Made once.

    A step whose loss or gradient is not finite leaves parameters and optimiser as they were; `metrics["finite"]` says so.
    compute, spread: how it is computed, and over which devices; state and batch are divided as `hierarchy.training.sharding`
        says.
    """
    update = optimizer(config).update
    held = None if spread is None else state_shardings(spread, jax.eval_shape(lambda: initial_state(network, config)))
    frozen, scanned = config.planner == "frozen" and weights == config.weights, compute is not None and compute.scan
    taught = detached(network) if config.planner == "detached" else network

    def loss(params: hk.Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        if frozen:
            params = params | jax.lax.stop_gradient(planner_of(params))
        return joint_loss(taught, lowered(params), batch, weights, 1 / config.accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with computing(compute or Compute(), spread):
            gradient, metrics = accumulated(loss, state.params, batch, config.accumulate)
        if held is not None:
            # Each device sums its own part of the gradient, and updates no other.
            gradient = jax.lax.with_sharding_constraint(gradient, held.params)
        parts = gradient, state.params, state.optimizer
        gradient, params, moments = stacked(parts) if scanned else parts
        norm = optax.global_norm(gradient)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        updates, moved_moments = update(gradient, moments, params)
        moved = optax.apply_updates(params, updates)
        if frozen:
            # Without a gradient, momentum and weight decay would still move them.
            moved = moved | planner_of(params)
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (moved, moved_moments), (params, moments))
        params, moments = unstacked(after, state.params) if scanned else after
        metrics |= {"gradient_norm": norm, "finite": finite, "rate": rate(config)(state.step)}
        return TrainState(params, moments, state.step + finite), metrics

    if spread is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(step, donate_argnums=0, in_shardings=(held, batch_sharding(spread)), out_shardings=(held, whole(spread)))


LAYERS = "layer_*"
"""What stands for a layer's number in the name of what all layers have."""


def kind_of(module: str) -> tuple[str, int]:
    """Returns a module's name with the number of its layer left out, and that number; 0 where it stands in no layer."""
    found = re.search(r"/layer_(\d+)", module)
    if found is None:
        return module, 0
    return f"{module[: found.start()]}/{LAYERS}" + re.sub(rf"_{found[1]}(?=/|$)", "_*", module[found.end() :]), int(found[1])


def stacked(tree: Any) -> Any:
    """Returns trees of parameters, or of what an optimiser keeps of each, with what all layers have as one array [layers, ...].

    An optimiser treats them alike, and hundreds of small updates would take longer to compile than all the rest of a step.
    """

    def stack(params: hk.Params) -> hk.Params:
        kinds: dict[str, list[str]] = {}
        for module in sorted(params, key=lambda name: kind_of(name)[1]):
            kinds.setdefault(kind_of(module)[0], []).append(module)
        return {
            kind: jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[module] for module in modules))
            if LAYERS in kind
            else params[kind]
            for kind, modules in kinds.items()
        }

    return jax.tree.map(lambda each: stack(each) if is_params(each) else each, tree, is_leaf=is_params)


def unstacked(tree: Any, like: hk.Params) -> Any:
    """Returns what `stacked` was given. like: the parameters."""

    def unstack(kinds: hk.Params) -> hk.Params:
        found = {module: kind_of(module) for module in like}
        return {
            module: jax.tree.map(lambda leaf, number=number: leaf[number], kinds[kind]) if LAYERS in kind else kinds[kind]
            for module, (kind, number) in found.items()
        }

    return jax.tree.map(lambda each: unstack(each) if is_params(each) else each, tree, is_leaf=is_params)


def is_params(node: Any) -> bool:
    """Whether a node of a tree is a tree of parameters."""
    return isinstance(node, dict)


def accumulated(
    loss: Callable[[hk.Params, Batch], tuple[jax.Array, Metrics]], params: hk.Params, batch: Batch, parts: int
) -> tuple[hk.Params, Metrics]:
    """Returns the gradient and the metrics of a loss over a batch, gone through in so many parts.

    Every row's share of the means is that in the whole batch: weights are brought to a sum of 1 a head first, and a mean divides
    by a sum of at least 1, so that the parts' losses add up to the batch's. In parts, `sub_goal_accuracy` counts names alone as
    right, of all sub-goals, and experts' loads are to be even in every part.
    """
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, batch)
    rows = batch.plan.shape[0]
    if rows % parts:
        raise ValueError(f"accumulate {parts} does not divide the batch's {rows} rows")

    def split(x: jax.Array) -> jax.Array:
        # Every parts-th row: rows that follow each other stand on one device, and each part has some of every device's.
        return laid(jnp.swapaxes(x.reshape(rows // parts, parts, *x.shape[1:]), 0, 1), None, "rows", *(None,) * (x.ndim - 1))

    def add(sums: tuple[hk.Params, Metrics], part: Batch) -> tuple[tuple[hk.Params, Metrics], None]:
        return jax.tree.map(jnp.add, sums, gradient(params, part)), None

    pieces = jax.tree.map(split, shared(batch))
    nothing = jax.eval_shape(lambda: gradient(params, jax.tree.map(lambda x: x[0], pieces)))
    sums, _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nothing), pieces)
    return sums


def shared(batch: Batch) -> Batch:
    """Returns the batch with the weights of each head's targets divided by their sum over the batch, where that is above 1.

    Actions are one head, whether of numbers or of names.
    """
    heads = {name: targets for name, targets in batch._asdict().items() if isinstance(targets, Targets)}
    sums = {name: jnp.sum(targets.weight) for name, targets in heads.items()}
    sums |= dict.fromkeys(("continuous", "discrete"), sums["continuous"] + sums["discrete"])
    return batch._replace(
        **{name: each._replace(weight=each.weight / jnp.maximum(sums[name], 1.0)) for name, each in heads.items()}
    )


@functools.lru_cache(16)
def make_measure(
    network: Network, compute: Compute | None = None, spread: Spread | None = None
) -> Callable[[hk.Params, Batch], Metrics]:
    """Returns the compiled `plan_use` of a network, computed as its steps are (see `make_step`), but for its experts, which leave
    nothing out as they leave nothing out when acting. Made once."""
    compute = dataclasses.replace(compute or Compute(), expert_capacity=0.0)

    def measure(params: hk.Params, batch: Batch) -> Metrics:
        with computing(compute, spread):
            return plan_use(network, lowered(params), batch)

    if spread is None:
        return jax.jit(measure)
    held = state_shardings(spread, jax.eval_shape(network.init, jax.random.key(0)))
    return jax.jit(measure, in_shardings=(held, batch_sharding(spread)), out_shardings=whole(spread))


def detached(network: Network) -> Network:
    """Returns the network whose plans pass no gradient back to the planner."""
    return network._replace(plan=lambda *arguments: jax.lax.stop_gradient(network.plan(*arguments)))


def planner_of(params: hk.Params) -> hk.Params:
    """Returns the planner's parameters."""
    return {name: leaves for name, leaves in params.items() if name.startswith("planner")}


def step_weights(config: LearnerConfig, step: int) -> LossWeights:
    """Returns the weights of a step: the planner's own losses alone in the warm-up, all of them after it."""
    warm_up = dataclasses.replace(config.weights, action=0.0, text=0.0, following=0.0)
    return warm_up if step < config.planner_steps else config.weights
