"""The first execution: all ticks of packed rows in one pass, for training."""

from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from hierarchy.batch import Batch, Stream, Targets
from hierarchy.layout import CONTINUOUS_START
from hierarchy.model.config import Sizes
from hierarchy.model.network import Network
from modules.attention import MASKED, pick
from modules.masks import Place


class Logits(NamedTuple):
    """Logits at a batch's targets, [B, M, classes]; None for a head that the schema has no use for. Illegal ones are masked."""

    continuous: jax.Array
    discrete: jax.Array | None
    sub_goal: jax.Array | None


def forward(network: Network, params: hk.Params, batch: Batch) -> Logits:
    """Returns the logits of a batch [B, ...]: planner, plans, controller."""
    plan, sub_goal = think(network, params, batch)
    logits = act(network, params, batch, plan)
    return logits if sub_goal is None else logits._replace(sub_goal=sub_goal)


def think(network: Network, params: hk.Params, batch: Batch) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns the batch's plans [B, J, P, plan_width] and the planner's sub-goal logits; None for what the model lacks."""
    if network.config.planner is None:
        return None, None

    def row(row: Batch) -> tuple[jax.Array, jax.Array | None]:
        x, _ = network.plan_tokens(params, row.planner.value, row.planner.field, place_of(row.planner))
        goal = None
        if network.table.goals:
            goal = legal_goal(network.planner_sub_goal(params, pick(x, row.sub_goal.slot)), row.sub_goal, network.table)
        return network.plan(params, pick(x, row.plan_slot)), goal

    return jax.vmap(row)(batch)


def act(network: Network, params: hk.Params, batch: Batch, plan: jax.Array | None) -> Logits:
    """Returns the controller's logits of a batch under the given plans [B, J, P, plan_width]."""

    def row(row: Batch, plan: jax.Array | None) -> Logits:
        reading = None if plan is None else readings(network, params, plan, row.plan)
        stream = row.controller
        x, _ = network.control_tokens(params, stream.value, stream.field, place_of(stream), reading, row.age)
        continuous = legal(network.continuous(params, pick(x, row.continuous.slot)), row.continuous)
        discrete = goal = None
        if network.table.discrete:
            discrete = legal(network.discrete(params, pick(x, row.discrete.slot)), row.discrete)
        if network.table.goals and plan is None:
            goal = legal_goal(network.controller_sub_goal(params, pick(x, row.sub_goal.slot)), row.sub_goal, network.table)
        return Logits(continuous, discrete, goal)

    return jax.vmap(row)(batch, plan)


def readings(network: Network, params: hk.Params, plan: jax.Array, index: jax.Array):
    """Returns what each of L tokens reads: plan index [L] of plans [J, P, plan_width], the learnt no-plan where negative."""
    everything = jnp.concatenate([plan, network.no_plan(params)[None]])
    read = jax.vmap(network.read_plan, in_axes=(None, 0))(params, everything)
    index = jnp.where(index < 0, plan.shape[0], index)
    return jax.tree.map(lambda entry: pick(entry, index), read)


def place_of(stream: Stream) -> Place:
    """Returns where the tokens of one row's stream stand."""
    order = jnp.arange(stream.tick.shape[-1], dtype=jnp.int32)
    new = (jnp.diff(stream.tick, prepend=-1) != 0) | (jnp.diff(stream.segment, prepend=-1) != 0)
    first = jax.lax.cummax(jnp.where(new, order, 0))
    return Place(stream.tick, order - first, stream.segment, order, stream.lasting)


def legal(logits: jax.Array, targets: Targets) -> jax.Array:
    """Returns logits [M, classes] with the classes from each target's limit on masked."""
    return jnp.where(jnp.arange(logits.shape[-1]) < targets.limit[:, None], logits, MASKED)


def legal_goal(logits: jax.Array, targets: Targets, table: Sizes) -> jax.Array:
    """Returns sub-goal logits [M, names + bins] with all but the target's own range masked: names below its limit, or bins."""
    number = targets.label[:, None] >= CONTINUOUS_START
    place = jnp.arange(logits.shape[-1]) - jnp.where(number, table.goal_names, 0)
    return jnp.where((place >= 0) & (place < targets.limit[:, None]), logits, MASKED)
