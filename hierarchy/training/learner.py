"""One optimiser step as a pure function of a state and a batch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from hierarchy.batch import Batch
from hierarchy.model.network import Network
from hierarchy.training.losses import LossWeights, Metrics, joint_loss


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
    """How parameters follow from batches.

    steps: optimiser steps in all, of which the first `planner_steps` train the planner's own losses alone (its warm-up).
    peak_rate: of AdamW, after `rate_warm_up` steps; then a cosine down to `final_rate` of it. controller_rate: how many times
        that the controller's rate is, which is small and wants a larger one.
    clip: largest global norm of a gradient.
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
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.planner_steps <= self.steps:
            raise ValueError(f"planner_steps {self.planner_steps} lies within the {self.steps} steps")


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
        return jax.tree.map(lambda x: x.ndim >= 2, params)

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


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(network: Network, config: LearnerConfig, weights: LossWeights) -> Step:
    """Returns the compiled step under these weights: (state, batch) to (state, metrics). The given state is donated.

    A step whose loss or gradient is not finite leaves parameters and optimiser as they were; `metrics["finite"]` says so.
    """
    update = optimizer(config).update

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grad = jax.grad(lambda params: joint_loss(network, params, batch, weights), has_aux=True)
        gradient, metrics = grad(state.params)
        norm = optax.global_norm(gradient)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        updates, moments = update(gradient, state.optimizer, state.params)
        after = (optax.apply_updates(state.params, updates), moments)
        params, moments = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, (state.params, state.optimizer))
        metrics |= {"gradient_norm": norm, "finite": finite, "rate": rate(config)(state.step)}
        return TrainState(params, moments, state.step + finite), metrics

    return step


def step_weights(config: LearnerConfig, step: int) -> LossWeights:
    """Returns the weights of a step: the planner's own losses alone in the warm-up, all of them after it."""
    return dataclasses.replace(config.weights, action=0.0, text=0.0) if step < config.planner_steps else config.weights
