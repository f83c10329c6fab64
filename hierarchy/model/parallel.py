"""The first execution: all ticks of packed rows in one pass, for training."""

from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from hierarchy.batch import Above, Batch, Patches, Stream, Targets
from hierarchy.layout import CONTINUOUS_START
from hierarchy.model.config import Sizes
from hierarchy.model.network import Network, Planning
from modules.attention import MASKED, pick
from modules.compute import current, over_rows
from modules.masks import Place
from modules.mixture_of_experts import Routed


class Logits(NamedTuple):
    """Logits at a batch's targets, [B, M, classes]; None for a head that the schema has no use for. Illegal ones are masked.

    said: the outputs [B, M, D] that the logits of text are made of.
    """

    continuous: jax.Array
    discrete: jax.Array | None
    sub_goal: jax.Array | None
    text: jax.Array | None = None
    planner_text: jax.Array | None = None
    following: jax.Array | None = None
    lifetime: jax.Array | None = None
    said: jax.Array | None = None


class Thought(NamedTuple):
    """What the planner makes of a batch: plans [B, J, P, plan_width], its logits of sub-goals, of the next pieces of text and of
    lifetimes, the outputs that those of text are made of (said), and where its experts had the tokens, [B, layers, ...]; None for
    what the model lacks."""

    plan: jax.Array | None
    sub_goal: jax.Array | None
    text: jax.Array | None
    lifetime: jax.Array | None = None
    said: jax.Array | None = None
    routed: Routed | None = None


def forward(network: Network, params: hk.Params, batch: Batch) -> Logits:
    """Returns the logits of a batch [B, ...]: planners, slowest first, plans, controller."""
    thought = think(network, params, batch)
    logits = act(network, params, batch, thought.plan)._replace(planner_text=thought.text, lifetime=thought.lifetime)
    return logits if thought.sub_goal is None else logits._replace(sub_goal=thought.sub_goal)


def think(network: Network, params: hk.Params, batch: Batch) -> Thought:
    """Returns what the planner makes of a batch, after those above it."""
    if network.config.planner is None:
        return Thought(None, None, None)

    def row(row: Batch) -> Thought:
        shown = shown_at(network, network.planner_patches, params, row.patches, row.planner.tick.shape[-1])
        stream, seen = row.planner, from_above(network, params, row.above)
        x, routed = network.plan_tokens(params, stream.value, stream.field, place_of(stream), shown=shown, **seen)
        goal = text = lifetime = said = None
        if network.table.goals:
            goal = legal_goal(network.planner_sub_goal(params, pick(x, row.sub_goal.slot)), row.sub_goal, network.table)
        if network.table.pieces:
            said = pick(x, row.planner_text.slot)
            text = legal(network.planner_text(params, said), row.planner_text)
        if network.table.lives:
            lifetime = network.lifetime(params, pick(x, row.lifetime.slot))
        return Thought(network.plan(params, pick(x, row.plan_slot)), goal, text, lifetime, said, routed)

    return over_rows(row)(batch)


def from_above(network: Network, params: hk.Params, above: tuple[Above, ...]) -> dict[str, Any]:
    """Returns what the planner is told of the plans of one row that its tokens see (see `seen_plans`); nothing where no planner
    stands above."""
    seen: dict[str, Any] = {}
    for level, (stream, plan_slot, plan, age) in reversed(list(enumerate(above, start=2))):
        planning = network.planning(level)
        x, _ = planning.plan_tokens(params, stream.value, stream.field, place_of(stream), **seen)
        seen = seen_plans(planning, params, planning.plan(params, pick(x, plan_slot)), plan, age)
    return seen


def act(network: Network, params: hk.Params, batch: Batch, plan: jax.Array | None) -> Logits:
    """Returns the controller's logits of a batch under the given plans [B, J, P, plan_width]."""

    def row(row: Batch, plan: jax.Array | None) -> Logits:
        seen = {"reading": None, "age": row.age}
        if plan is not None:
            seen = seen_plans(network.planning(1), params, plan, row.plan, row.age)
        stream = row.controller
        shown = None
        if plan is None:
            shown = shown_at(network, network.controller_patches, params, row.patches, stream.tick.shape[-1])
        x, _ = network.control_tokens(params, stream.value, stream.field, place_of(stream), shown=shown, **seen)
        continuous = legal(network.continuous(params, pick(x, row.continuous.slot)), row.continuous)
        discrete = goal = text = following = said = None
        if network.table.discrete:
            discrete = legal(network.discrete(params, pick(x, row.discrete.slot)), row.discrete)
        if network.table.goals and plan is None:
            goal = legal_goal(network.controller_sub_goal(params, pick(x, row.sub_goal.slot)), row.sub_goal, network.table)
        if network.table.pieces:
            said = pick(x, row.text.slot)
            text = legal(network.text(params, said), row.text)
        if network.table.predictions:
            following = legal_prediction(network.following(params, pick(x, row.following.slot)), row.following, network.table)
        return Logits(continuous, discrete, goal, text, following=following, said=said)

    return over_rows(row)(batch, plan)


def shown_at(network: Network, embed, params: hk.Params, patches: Patches, tokens: int) -> jax.Array | None:
    """Returns what the patches of one row add to its tokens [tokens, D]; None where no layout has images."""
    if not network.table.patch_values:
        return None
    chosen = jax.nn.one_hot(patches.slot, tokens)
    return jnp.matmul(chosen.T, embed(params, *patches[:3]), precision=jax.lax.Precision.HIGHEST)


def seen_plans(planning: Planning, params: hk.Params, plan: jax.Array, index: jax.Array, age: jax.Array) -> dict[str, Any]:
    """Returns the reading of plans [J, P, plan_width] and of the learnt no-plan after them, entries [J + 1, ...], with what each
    of L tokens sees of it: an index [L], the no-plan's where it is negative, and the plan's age [L]."""
    compute, _ = current()
    everything = jnp.concatenate([plan, planning.no_plan(params)[None]])
    read = jax.vmap(planning.read_plan, in_axes=(None, 0))(params, everything)
    reading = jax.tree.map(lambda entry: entry.astype(compute.dtype), read)
    return {"reading": reading, "age": age, "index": jnp.where(index < 0, plan.shape[0], index)}


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


def legal_prediction(logits: jax.Array, targets: Targets, table: Sizes) -> jax.Array:
    """Returns logits [M, classes] of predicted scalars with all but the classes of the target's own scalar masked."""
    firsts = jnp.asarray(np.cumsum((0, *table.predictions[:-1])), jnp.int32)
    first = firsts[jnp.searchsorted(firsts, targets.label, side="right") - 1]
    place = jnp.arange(logits.shape[-1]) - first[:, None]
    return jnp.where((place >= 0) & (place < targets.limit[:, None]), logits, MASKED)
