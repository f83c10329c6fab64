"""One optimiser step as a pure function of a state and a batch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from hierarchy.batch import Batch, Targets
from hierarchy.model.network import Network
from hierarchy.training.losses import LossWeights, Metrics, joint_loss, plan_use
from hierarchy.training.sharding import batch_sharding, state_shardings, whole
from modules.compute import Compute, Spread, computing, laid, lowered
from modules.stacking import LAYERS, by_layer, stacked

PlannerLearns = Literal["joint", "detached", "frozen"]
Optimizer = Literal["adamw", "muon"]


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
    """How parameters follow from batches.

    steps: optimiser steps in all, of which the first `planner_steps` train the planner's own losses alone (its warm-up).
    optimizer: of every parameter AdamW, or of the matrices inside layers Muon (see `optimizer`).
    peak_rate: of either, after `rate_warm_up` steps; then a cosine down to `final_rate` of it. controller_rate: how many times
        that the controller's rate is, which is small and wants a larger one. names_rate: the same of the rows that embed names
        (pieces of text, discrete values), which start out of size 1 and whose every change is small beside that.
    clip: largest global norm of a gradient.
    planner: what trains the planner once the controller learns: its own losses and, through the plan, the action's ("joint"), its
        own alone ("detached"), or nothing, so that it stays as its warm-up left it ("frozen").
    accumulate: parts that the rows of a batch are gone through in, one after another, their gradients added up: less memory.
    """

    steps: int = 3000
    planner_steps: int = 900
    peak_rate: float = 1.5e-3
    controller_rate: float = 3.0
    names_rate: float = 1.0
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
    optimizer: Optimizer = "adamw"

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate is {self.accumulate}: at least 1")
        if not 0 <= self.planner_steps <= self.steps:
            raise ValueError(f"planner_steps {self.planner_steps} lies within the {self.steps} steps")
        if self.optimizer not in get_args(Optimizer):
            raise ValueError(f"optimizer is {self.optimizer!r}: it is one of {', '.join(get_args(Optimizer))}")
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
    """Returns AdamW with decay on matrices alone, after clipping by the global norm; or Muon (arXiv 2502.16982) of the matrices
    inside layers, whose updates have the size of AdamW's, beside Adam with Nesterov's momentum of all else, without decay.

    Muon brings an update's singular values together, so that what one task asks for is not lost beside what another asks for more
    loudly. Its five iterations take as many operations of a matrix as three to five times as many tokens as it is wide do.
    """

    def matrices(params: hk.Params) -> Any:
        return {name: {key: leaf.ndim >= 2 + (LAYERS in name) for key, leaf in leaves.items()} for name, leaves in params.items()}

    def inside_layers(params: hk.Params) -> Any:
        there = MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
        inside = {name for name in params if "/layer_" in name}
        return {name: {key: there if key == "w" and name in inside else None for key in params[name]} for name in params}

    def at_own_rates(updates: hk.Params, params: hk.Params | None) -> hk.Params:
        def times(module: str, key: str) -> float:
            own = config.names_rate if key == "names" else 1.0
            return own * (config.controller_rate if module.startswith("controller") else 1.0)

        return {name: {key: times(name, key) * leaf for key, leaf in leaves.items()} for name, leaves in updates.items()}

    def everything(params: hk.Params) -> Any:
        return jax.tree.map(lambda _: True, params)

    moments = {"adam_b1": config.b1, "adam_b2": config.b2, "weight_decay": config.weight_decay}
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate(config), config.b1, config.b2, weight_decay=config.weight_decay, mask=matrices)
        if config.optimizer == "adamw"
        else muon(rate(config), consistent_rms=0.2, muon_weight_dimension_numbers=inside_layers, **moments),
        # A mask of everything, so that the state is what checkpoints have always held.
        optax.masked(optax.stateless(at_own_rates), everything),
    )


def initial_state(network: Network, config: LearnerConfig, compute: Compute | None = None) -> TrainState:
    """Returns the state before the first step, a function of the seed; with its layers stacked, where they run in a loop."""
    params = network.init(jax.random.key(config.seed))
    params = stacked(params) if compute is not None and compute.scan else params
    return TrainState(params, optimizer(config).init(params), jnp.zeros((), jnp.int32))


def spread_state(
    network: Network, config: LearnerConfig, spread: Spread, compute: Compute | None = None
) -> tuple[Callable[[], TrainState], TrainState]:
    """Returns what makes the initial state, each device its own part, and the shapes of a state with their shardings."""
    shapes = jax.eval_shape(lambda: initial_state(network, config, compute))
    held = state_shardings(spread, shapes)
    like = jax.tree.map(lambda leaf, how: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=how), shapes, held)
    return jax.jit(lambda: initial_state(network, config, compute), out_shardings=held), like


def arranged(state: TrainState, like: TrainState) -> TrainState:
    """Returns a state with its layers stacked, or one by one, and divided, as those of `like` (a state, or its shapes) are."""
    if jax.tree.structure(state) == jax.tree.structure(like):
        return state
    held = jax.tree.map(lambda leaf: leaf.sharding, like) if jax.tree.leaves(like)[0].sharding else None
    return jax.jit(stacked if len(like.params) < len(state.params) else by_layer, out_shardings=held)(state)


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@functools.lru_cache(16)
def make_step(
    network: Network, config: LearnerConfig, weights: LossWeights, compute: Compute | None = None, spread: Spread | None = None
) -> Step:
    """Returns the compiled step under these weights: (state, batch) to (state, metrics). The given state is donated.
    Made once.

    A step whose loss or gradient is not finite leaves parameters and optimiser as they were; `metrics["finite"]` says so.
    compute, spread: how it is computed, and over which devices; state and batch are divided as `hierarchy.training.sharding`
        says, and the state's layers are stacked where they run in a loop (see `initial_state`).
    """
    update = optimizer(config).update
    held = None if spread is None else spread_state(network, config, spread, compute)[1]
    held = jax.tree.map(lambda leaf: leaf.sharding, held)
    frozen = config.planner == "frozen" and weights == config.weights
    taught = detached(network) if config.planner == "detached" else network

    def loss(params: hk.Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        if frozen:
            params = params | jax.lax.stop_gradient(planner_of(params))
        return joint_loss(taught, by_layer(lowered(params)), batch, weights, 1 / config.accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with computing(compute or Compute(), spread):
            gradient, metrics = accumulated(loss, state.params, batch, config.accumulate)
        if held is not None:
            # Each device sums its own part of the gradient, and updates no other.
            gradient = jax.lax.with_sharding_constraint(gradient, held.params)
        norm = optax.global_norm(gradient)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        updates, moments = update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        if frozen:
            # Without a gradient, momentum and weight decay would still move them.
            params = params | planner_of(state.params)
        before = state.params, state.optimizer
        params, moments = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (params, moments), before)
        metrics |= {"gradient_norm": norm, "finite": finite, "rate": rate(config)(state.step)}
        return TrainState(params, moments, state.step + finite), metrics

    if spread is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(step, donate_argnums=0, in_shardings=(held, batch_sharding(spread)), out_shardings=(held, whole(spread)))


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
            return plan_use(network, by_layer(lowered(params)), batch)

    if spread is None:
        return jax.jit(measure)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    held = state_shardings(spread, jax.eval_shape(stacked, shapes) if compute.scan else shapes)
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
