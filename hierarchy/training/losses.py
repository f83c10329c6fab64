"""The losses of joint training, each with a named weight."""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp

from hierarchy.batch import Batch, Targets
from hierarchy.layout import CONTINUOUS_START
from hierarchy.model.network import Network
from hierarchy.model.parallel import Logits, act, think

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """action: cross-entropy of the action tokens, through controller and plan. sub_goal: the planner's own prediction of the
    privileged sub-goal at its updates."""

    action: float = 1.0
    sub_goal: float = 1.0


def cross_entropy(logits: jax.Array, targets: Targets, first_id: int | jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the weighted sums of (loss in nats, right answers, weight) over logits [..., M, classes] of one head."""
    label = jnp.where(targets.weight > 0, targets.label - first_id, 0)
    gathered = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - gathered
    right = (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)
    used = targets.weight > 0
    return (
        jnp.sum(jnp.where(used, loss, 0.0) * targets.weight),
        jnp.sum(jnp.where(used, right, 0.0) * targets.weight),
        jnp.sum(targets.weight),
    )


def action_loss(logits: Logits, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns the mean (loss, share of right tokens) over the action targets of a batch, both heads together."""
    parts = [cross_entropy(logits.continuous, batch.continuous, CONTINUOUS_START)]
    if logits.discrete is not None:
        parts.append(cross_entropy(logits.discrete, batch.discrete, 0))
    loss, right, weight = (sum(column) for column in zip(*parts, strict=True))
    return loss / jnp.maximum(weight, 1.0), right / jnp.maximum(weight, 1.0)


def sub_goal_loss(network: Network, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns the mean loss over a batch's sub-goals and the share that is right, of names if there are any."""
    targets, number = batch.sub_goal, batch.sub_goal.label >= CONTINUOUS_START
    first_id = jnp.where(number, CONTINUOUS_START - network.table.goal_names, 0)
    loss, _, weight = cross_entropy(logits, targets, first_id)
    counted = targets._replace(weight=jnp.where(number & (network.table.goal_names > 0), 0.0, targets.weight))
    _, right, of = cross_entropy(logits, counted, first_id)
    return loss / jnp.maximum(weight, 1.0), right / jnp.maximum(of, 1.0)


def joint_loss(network: Network, params: hk.Params, batch: Batch, weights: LossWeights) -> tuple[jax.Array, Metrics]:
    """Returns the weighted loss of a batch and its metrics. A weight of 0 leaves the computation out, not only the sum:
    with action 0 a two-rate model runs its planner alone (the warm-up)."""
    plan, sub_goal = think(network, params, batch)
    total, metrics = jnp.zeros(()), {}
    if weights.action or network.config.planner is None:
        logits = act(network, params, batch, plan)
        sub_goal = logits.sub_goal if sub_goal is None else sub_goal
        if weights.action:
            loss, right = action_loss(logits, batch)
            total += weights.action * loss
            metrics |= {"action_loss": loss, "action_accuracy": right}
    if weights.sub_goal and sub_goal is not None:
        loss, right = sub_goal_loss(network, sub_goal, batch)
        total += weights.sub_goal * loss
        metrics |= {"sub_goal_loss": loss, "sub_goal_accuracy": right}
    return total, metrics | {"loss": total}


def plan_use(network: Network, params: hk.Params, batch: Batch) -> Metrics:
    """Returns the action loss under the model's own plans, under another episode's, and under none; and sub-goal accuracy.

    Another episode's plan is that of the next row, at the same place in its list. Equal losses mean that the plan is ignored.
    """
    plan, sub_goal = think(network, params, batch)
    logits = act(network, params, batch, plan)
    sub_goal = logits.sub_goal if sub_goal is None else sub_goal
    metrics = {"action_loss": action_loss(logits, batch)[0]}
    if sub_goal is not None:
        metrics["sub_goal_accuracy"] = sub_goal_loss(network, sub_goal, batch)[1]
    if plan is None:
        return metrics
    count = jnp.maximum(jnp.max(batch.plan, axis=1) + 1, 1)
    others = batch._replace(plan=jnp.where(batch.plan >= 0, batch.plan % jnp.roll(count, -1)[:, None], -1))
    wrong = act(network, params, others, jnp.roll(plan, -1, axis=0))
    without = act(network, params, batch._replace(plan=jnp.full_like(batch.plan, -1), age=jnp.full_like(batch.age, -1)), plan)
    metrics["action_loss_wrong_plan"] = action_loss(wrong, batch)[0]
    metrics["action_loss_no_plan"] = action_loss(without, batch)[0]
    return metrics
