"""The losses of joint training, each with a named weight."""

import dataclasses
from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp

from hierarchy.batch import Batch, Targets
from hierarchy.layout import CONTINUOUS_START
from hierarchy.model.network import Network
from hierarchy.model.parallel import Logits, act, legal, think
from modules.attention import MASKED
from modules.compute import current, over_rows
from modules.mixture_of_experts import Routed

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """action: cross-entropy of the tokens of control, through controller and plan. text: the same of text. sub_goal: the
    planner's own prediction of the privileged sub-goal at its updates. planner_text: its own of the next piece of text.
    following: the controller's prediction of the next tick's observation. lifetime: the planner's of how long its sub-goal will
    stand. These two are for triggers (`hierarchy.control.trigger`), and for layouts that ask for them. balance, router_z: of the
    planner's experts, where it has some (see `routing_losses`)."""

    action: float = 1.0
    text: float = 1.0
    sub_goal: float = 1.0
    planner_text: float = 1.0
    following: float = 0.0
    lifetime: float = 0.0
    balance: float = 0.01
    router_z: float = 0.001


def cross_entropy(logits: jax.Array, targets: Targets, first_id: int | jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the weighted sums of (loss in nats, right answers, weight) over logits [..., M, classes] of one head."""
    label = jnp.where(targets.weight > 0, targets.label - first_id, 0)
    gathered = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - gathered
    # The likeliest is the label, or as likely as it: the maximum is at hand, and an argmax is 3% of a step on a CPU.
    right = (gathered >= jnp.max(logits, axis=-1)).astype(jnp.float32)
    used = targets.weight > 0
    return (
        jnp.sum(jnp.where(used, loss, 0.0) * targets.weight),
        jnp.sum(jnp.where(used, right, 0.0) * targets.weight),
        jnp.sum(targets.weight),
    )


def action_loss(logits: Logits, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns the mean (loss, share of right tokens) over the targets of control of a batch, both heads together."""
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


def text_loss(logits: jax.Array, targets: Targets) -> tuple[jax.Array, jax.Array]:
    """Returns the mean (loss in nats a piece, share of right pieces) over targets of text."""
    loss, right, weight = cross_entropy(logits, targets, 0)
    return loss / jnp.maximum(weight, 1.0), right / jnp.maximum(weight, 1.0)


def following_loss(logits: jax.Array, targets: Targets) -> tuple[jax.Array, jax.Array]:
    """Returns the mean (loss in nats a scalar, share of right ones) over predictions of the next tick's observation."""
    loss, right, weight = cross_entropy(logits, targets, 0)
    return loss / jnp.maximum(weight, 1.0), right / jnp.maximum(weight, 1.0)


def lifetime_loss(logits: jax.Array, targets: Targets) -> jax.Array:
    """Returns the mean negative log-likelihood in nats of lifetimes under logits [..., M, bins]: that of the bin in which a
    sub-goal ended; where the episode ended first, that of any bin from the one it lasted to on (a censored lifetime)."""
    bins = logits.shape[-1]
    chance = jax.nn.log_softmax(logits)
    own = (targets.label % bins)[..., None]
    ended = jnp.take_along_axis(chance, own, axis=-1)[..., 0]
    lasted = jax.nn.logsumexp(jnp.where(jnp.arange(bins) >= own, chance, MASKED), axis=-1)
    found = jnp.where(targets.weight > 0, jnp.where(targets.label < bins, ended, lasted), 0.0)
    return -jnp.sum(found * targets.weight) / jnp.maximum(jnp.sum(targets.weight), 1.0)


def said_loss(
    head: Callable[..., jax.Array], params: hk.Params, said: jax.Array, logits: jax.Array, targets: Targets
) -> tuple[jax.Array, jax.Array]:
    """Returns what `text_loss` does, of the logits or, where the computation asks for chunks, of what `head` makes of the outputs
    `said` [B, M, D] chunk by chunk, each thrown away and made anew for its gradient. Whichever is not used is never computed.

    Raises:
        ValueError: chunks do not divide the targets.
    """
    chunk = current()[0].text_chunk
    if not chunk:
        return text_loss(logits, targets)
    rows, count = targets.slot.shape
    if count % chunk:
        raise ValueError(f"text_chunk {chunk} does not divide the {count} targets of text in a row: choose one that does")

    def chunked(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(rows, count // chunk, chunk, *x.shape[2:]), 0, 1)

    @jax.checkpoint
    def sums(part: tuple[jax.Array, Targets]) -> tuple[jax.Array, jax.Array, jax.Array]:
        made = over_rows(lambda said, targets: legal(head(params, said), targets))(*part)
        return cross_entropy(made, part[1], 0)

    loss, right, weight = (jnp.sum(each) for each in jax.lax.map(sums, jax.tree.map(chunked, (said, targets))))
    return loss / jnp.maximum(weight, 1.0), right / jnp.maximum(weight, 1.0)


def routing_losses(routed: Routed) -> Metrics:
    """Returns what there is to say of a batch's routing, [B, layers, ...], the mean over layers: `balance_loss`, 1 where experts
    are chosen alike (arXiv 2101.03961, equation 4), `router_z_loss` (arXiv 2202.08906, equation 5), `load_entropy`, of the
    experts' loads as a share of that of equal ones, and `dropped`, the share of choices that found no room."""
    load, chance, square, dropped, tokens = (jnp.sum(part, axis=0) for part in routed)
    choices = jnp.maximum(jnp.sum(load, axis=-1, keepdims=True), 1.0)
    tokens, experts = jnp.maximum(tokens, 1.0), load.shape[-1]
    balance = experts * jnp.sum(load / choices * chance / tokens[:, None], axis=-1)
    entropy = jnp.sum(jax.scipy.special.entr(load / choices), axis=-1) / jnp.log(experts)
    means = {
        "balance_loss": balance,
        "router_z_loss": square / tokens,
        "load_entropy": entropy,
        "dropped": dropped / choices[:, 0],
    }
    return {name: jnp.mean(each) for name, each in means.items()}


def joint_loss(
    network: Network, params: hk.Params, batch: Batch, weights: LossWeights, share: float = 1.0
) -> tuple[jax.Array, Metrics]:
    """Returns the weighted loss of a batch and its metrics. A weight of 0 leaves the computation out, not only the sum:
    with action, text and following 0 a two-rate model runs its planner alone (the warm-up).

    share: of a batch that is gone through in parts: how much of it this part is. What is said of tokens and not of targets, whose
        weights know, counts as much.
    """
    thought = think(network, params, batch)
    sub_goal = thought.sub_goal
    total, metrics = jnp.zeros(()), {}
    if weights.action or weights.text or weights.following or network.config.planner is None:
        logits = act(network, params, batch, thought.plan)
        sub_goal = logits.sub_goal if sub_goal is None else sub_goal
        if weights.action and controls(batch):
            loss, right = action_loss(logits, batch)
            total += weights.action * loss
            metrics |= {"action_loss": loss, "action_accuracy": right}
        if weights.text and logits.text is not None:
            loss, right = said_loss(network.text, params, logits.said, logits.text, batch.text)
            total += weights.text * loss
            metrics |= {"text_loss": loss, "text_accuracy": right}
        if weights.following and logits.following is not None:
            loss, right = following_loss(logits.following, batch.following)
            total += weights.following * loss
            metrics |= {"following_loss": loss, "following_accuracy": right}
    if weights.lifetime and thought.lifetime is not None:
        loss = lifetime_loss(thought.lifetime, batch.lifetime)
        total += weights.lifetime * loss
        metrics |= {"lifetime_loss": loss}
    if weights.sub_goal and sub_goal is not None:
        loss, right = sub_goal_loss(network, sub_goal, batch)
        total += weights.sub_goal * loss
        metrics |= {"sub_goal_loss": loss, "sub_goal_accuracy": right}
    if weights.planner_text and thought.text is not None:
        loss, right = said_loss(network.planner_text, params, thought.said, thought.text, batch.planner_text)
        total += weights.planner_text * loss
        metrics |= {"planner_text_loss": loss, "planner_text_accuracy": right}
    if thought.routed is not None:
        routing = {name: share * each for name, each in routing_losses(thought.routed).items()}
        total += weights.balance * routing["balance_loss"] + weights.router_z * routing["router_z_loss"]
        metrics |= routing
    return total, metrics | {"loss": total}


def controls(batch: Batch) -> bool:
    """Whether any layout of a batch acts in numbers; where none does, there is text alone."""
    return batch.continuous.slot.shape[-1] + batch.discrete.slot.shape[-1] > 0


def plan_use(network: Network, params: hk.Params, batch: Batch) -> Metrics:
    """Returns the losses of control and of text under the model's own plans, under another episode's (`_wrong_plan`), and under
    none (`_no_plan`); and what the planner predicts.

    Another episode's plan is that of the next row, at the same place in its list; in a batch of one row there is none. Equal
    losses mean that the plan is ignored.
    """
    thought = think(network, params, batch)
    plan, logits = thought.plan, act(network, params, batch, thought.plan)
    sub_goal = logits.sub_goal if thought.sub_goal is None else thought.sub_goal
    metrics = _own_losses(logits, batch)
    if sub_goal is not None:
        metrics["sub_goal_accuracy"] = sub_goal_loss(network, sub_goal, batch)[1]
    if thought.text is not None:
        metrics["planner_text_loss"] = text_loss(thought.text, batch.planner_text)[0]
    if plan is None:
        return metrics
    unplanned = batch._replace(plan=jnp.full_like(batch.plan, -1), age=jnp.full_like(batch.age, -1))
    changed = {"no_plan": act(network, params, unplanned, plan)}
    if len(batch.plan) > 1:
        changed["wrong_plan"] = act(network, params, under_others_plans(batch), jnp.roll(plan, -1, axis=0))
    for name, logits in changed.items():
        metrics |= {f"{key}_{name}": value for key, value in _own_losses(logits, batch).items()}
    return metrics


def under_others_plans(batch: Batch) -> Batch:
    """Returns the batch whose ticks see plans of the next row, at the same place in its list (again from its start, where it is
    shorter); the plans themselves are to be rolled by one row."""
    count = jnp.maximum(jnp.max(batch.plan, axis=1) + 1, 1)
    return batch._replace(plan=jnp.where(batch.plan >= 0, batch.plan % jnp.roll(count, -1)[:, None], -1))


def _own_losses(logits: Logits, batch: Batch) -> Metrics:
    metrics = {"action_loss": action_loss(logits, batch)[0]} if controls(batch) else {}
    return metrics if logits.text is None else metrics | {"text_loss": text_loss(logits.text, batch.text)[0]}
