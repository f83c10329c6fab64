"""Planners and controller in haiku, as pure functions of parameters; nothing here loops over time.

Everything is for one row or one episode; `jax.vmap` adds the batch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from hierarchy.layout import BINS, Schema, planner_name
from hierarchy.model.config import ModelConfig, Sizes, sizes
from modules.attention import KeyValues, Linear, attend_own, join_heads, normed, pick, split_heads
from modules.cache import Cache, Slots
from modules.compute import current
from modules.embedding import BinHead, TokenEmbedding, log_features
from modules.flash import flash_picked
from modules.masks import Place
from modules.patches import PatchEmbedding
from modules.quantisation import quantise
from modules.transformer import Transformer, TransformerConfig

Reading = tuple[Any, ...]
"""A plan as the layers of the level below read it (the controller's, or a planner's under another), one entry a layer: KeyValues
[H, P, D/H] of cross-attention or of the prefix, or FiLM's (scale, shift) [D]."""


class Planner(hk.Module):
    """A slow transformer: tokens to outputs, outputs to plans and sub-goals.

    level: 1 for the one that plans for the controller, 2 for the one that plans for that, and so on. All but the slowest read
    the plans of the level above.
    """

    def __init__(self, config: ModelConfig, own: TransformerConfig | None, table: Sizes, level: int = 1):
        super().__init__(name=planner_name(level))
        self._config, self._own, self._table, self._level = config, own, table, level

    def __call__(
        self,
        value: jax.Array,
        field: jax.Array,
        place: Place,
        cache: Cache | None = None,
        slots: Slots | None = None,
        shown: jax.Array | None = None,
        reading: Reading | None = None,
        age: jax.Array | None = None,
        index: jax.Array | None = None,
        last: int | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns outputs [S, D] of tokens [S, K], and the cache. Time enters absolutely here, unless the config says not to, and
        not only through attention.

        shown: [S, D], what patches of images add to their tokens (see `patches`); None where there are none. reading, age, index:
        each token's visible plan of the level above and its age, as the controller's; None for the slowest planner. last: with a
        cache, how many of the tokens, the last ones, are asked for their outputs; None for all.
        """
        config, table = self._own, self._table
        x = embedding(table, self._level, config.width)(table.row(value), field, place.index)
        x = x if shown is None else x + shown
        if self._config.told_tick:
            x = x + Linear(config.width, "time")(log_features(place.time))
        if reading is None:
            return Transformer(config, "transformer")(x, place, cache=cache, slots=slots, last=last)
        return under_plans(self._config, config, x, place, reading, age, index, cache, slots, last=last)

    def no_plan(self) -> jax.Array:
        """Returns the learnt plan [P, plan_width] of the level above that stands while there is none."""
        return learnt_plan(self._config)

    def read_plan(self, plan: jax.Array) -> Reading:
        """Returns how each layer reads one plan [P, plan_width] of the level above."""
        return read_plan(self._config, self._own, plan)

    def patches(self, pixels: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        """Returns the patches of images, embedded, [M, D]."""
        return PatchEmbedding(self._table.patch_channels, self._own.width)(pixels, row, column)

    @hk.experimental.name_like("__call__")
    def text(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, pieces] of the next piece of text from outputs [M, D], by the table that embeds pieces."""
        table = self._table
        return embedding(table, self._level, self._config.planner.width).logits(x, table.pieces)

    def plan(self, x: jax.Array) -> jax.Array:
        """Returns plans [J, P, plan_width] as `limited` leaves them, from outputs [J, D]."""
        config = self._config
        plans = Linear(config.plan_vectors * config.plan_width, "vectors")(x)
        return limited(plans.reshape(-1, config.plan_vectors, config.plan_width), config)

    def sub_goal(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, classes] of the sub-goals from outputs [M, D]."""
        return goal_logits(x, self._table)

    def lifetime(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, lives] over bins of the ticks until the sub-goal changes, from outputs [M, D]."""
        return hk.Linear(self._table.lives, name="lifetime")(x)


class Controller(hk.Module):
    """The fast transformer; the single-rate model is one without plans."""

    def __init__(self, config: ModelConfig, table: Sizes):
        super().__init__(name="controller")
        self._config, self._table = config, table

    def no_plan(self) -> jax.Array:
        """Returns the learnt plan [P, plan_width] that stands while there is none."""
        return learnt_plan(self._config)

    def read_plan(self, plan: jax.Array) -> Reading:
        """Returns how each layer reads one plan [P, plan_width]; run once an update, used by every tick."""
        return read_plan(self._config, self._config.controller, plan)

    def __call__(
        self,
        value: jax.Array,
        field: jax.Array,
        place: Place,
        reading: Reading | None,
        age: jax.Array,
        cache: Cache | None = None,
        slots: Slots | None = None,
        shown: jax.Array | None = None,
        beside: Cache | None = None,
        index: jax.Array | None = None,
        last: int | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns outputs [L, D] of tokens [L, K], and the cache. beside: another cache that is attended over too.

        reading: each token's visible plan (entries [L, ...], or [1, ...] where all see the same), or None for a model without
        plans. age: int32 [L] or [1], -1 for none. index: int32 [L], which entry of the reading a token sees, where there is one a
        plan and not one a token.
        shown: [L, D], what patches of images add to their tokens, in a model without plans; None where there are none.
        last: with a cache, how many of the tokens, the last ones, are asked for their outputs; None for all.
        """
        config, table = self._config.controller, self._table
        reach = table.reach(config.window)
        x = embedding(table, 0, config.width)(table.row(value), field, place.index)
        x = x if shown is None else x + shown
        if reading is None:
            if self._config.told_tick:
                x = x + Linear(config.width, "time")(log_features(place.time))
            own = {"cache": cache, "slots": slots, "reach": reach, "beside": beside, "last": last}
            return Transformer(config, "transformer")(x, place, **own)
        return under_plans(self._config, config, x, place, reading, age, index, cache, slots, reach, beside, last)

    def continuous(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, 1024] over bins from outputs [M, D]."""
        return BinHead(BINS, name="continuous")(x)

    def discrete(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, classes] over discrete actions from outputs [M, D]."""
        return hk.Linear(self._table.discrete, name="discrete")(x)

    @hk.experimental.name_like("__call__")
    def text(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, pieces] over pieces of text from outputs [M, D], by the table that embeds pieces."""
        table = self._table
        return embedding(table, 0, self._config.controller.width).logits(x, table.pieces)

    def patches(self, pixels: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        """Returns the patches of images, embedded, [M, D], where no planner is there to see them."""
        return PatchEmbedding(self._table.patch_channels, self._config.controller.width)(pixels, row, column)

    def sub_goal(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, classes] of the sub-goals, where no planner is there to predict them."""
        return goal_logits(x, self._table)

    def following(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, classes] of all predicted scalars of the next tick, one scalar's classes after another's, from
        outputs [M, D]."""
        return hk.Linear(sum(self._table.predictions), name="following")(x)


def embedding(table: Sizes, level: int, width: int) -> TokenEmbedding:
    """Returns the token embedding of a planner's stream, or of the controller's (level 0)."""
    names = table.planner_names if level else table.controller_names
    return TokenEmbedding(table.names, BINS, table.fields, names, width, table.own_fields[level])


def learnt_plan(config: ModelConfig) -> jax.Array:
    """Returns a plan [P, plan_width] that is a parameter of the module at work."""
    shape = (config.plan_vectors, config.plan_width)
    return limited(hk.get_parameter("no_plan", shape, init=hk.initializers.RandomNormal(1.0)), config)


def read_plan(config: ModelConfig, reader: TransformerConfig, plan: jax.Array) -> Reading:
    """Returns how each layer of a reader reads one plan [P, plan_width]."""
    layers = []
    for i in range(reader.layers):
        if config.plan_read == "film":
            scale, shift = jnp.split(Linear(2 * reader.width, f"plan_film_{i}")(plan.reshape(-1)), 2)
            layers.append((scale, shift))
        else:
            key_value = Linear(2 * reader.width, f"plan_key_value_{i}")(plan)
            layers.append(KeyValues(*(split_heads(part, reader.heads) for part in jnp.split(key_value, 2, axis=-1))))
    return tuple(layers)


def under_plans(
    config: ModelConfig,
    reader: TransformerConfig,
    x: jax.Array,
    place: Place,
    reading: Reading,
    age: jax.Array,
    index: jax.Array | None,
    cache: Cache | None,
    slots: Slots | None,
    reach: int | None = None,
    beside: Cache | None = None,
    last: int | None = None,
) -> tuple[jax.Array, Cache | None]:
    """Returns a reader's outputs of tokens [N, D] that each see a plan, entries [N, ...], of an age [N] ([1, ...] and [1] where
    all see the same; with an index [N] entries are the plans that there are), and the cache. beside: another cache that is
    attended over too. last: as the transformer's."""
    aged = Linear(reader.width, "age")(log_features(jnp.maximum(age, 0)))
    x = x + jnp.where(age[:, None] >= 0, aged, 0.0)
    if config.plan_read == "prefix":
        prefix = tuple(own_entries(layer, index) for layer in reading)
        return Transformer(reader, "transformer")(x, place, (), cache, slots, reach, prefix, beside, last)
    adds = what_a_plan_adds(config, reader, index)
    between = [jax.tree_util.Partial(adds, layer) for layer in reading]
    return Transformer(reader, "transformer")(x, place, between, cache, slots, reach, beside=beside, last=last)


def own_entries(layer: Any, index: jax.Array | None) -> Any:
    """Returns what each token reads of one layer's entry of a reading: [N, ...] by index, or the entry as it is."""
    return layer if index is None else jax.tree.map(lambda entries: pick(entries, index), layer)


def what_a_plan_adds(
    config: ModelConfig, reader: TransformerConfig, index: jax.Array | None
) -> Callable[[Any, jax.Array, int], jax.Array]:
    """Returns what a layer of a reader adds from its plan: a function of its entry of the reading, of x, and of its number.

    Each token's own entry is picked out here, in the layer: those of all layers at once would be most of a step's memory.
    """

    def film(layer: tuple[jax.Array, jax.Array], x: jax.Array, i: int) -> jax.Array:
        scale, shift = own_entries(layer, index)
        return normed(f"norm_plan_{i}", x) * scale + shift

    def cross_attention(layer: KeyValues, x: jax.Array, i: int) -> jax.Array:
        query = Linear(reader.width, f"plan_query_{i}")(normed(f"norm_plan_{i}", x))
        if index is not None and current()[0].attention == "flash":
            mixed = flash_picked(query, *(join_heads(entries) for entries in layer), reader.heads, index)
        else:
            query = split_heads(query, reader.heads)
            mixed = attend_own(query, own_entries(layer, index))
        return Linear(reader.width, f"plan_out_{i}")(mixed)

    return film if config.plan_read == "film" else cross_attention


def goal_logits(x: jax.Array, table: Sizes) -> jax.Array:
    """Returns logits [M, names + bins] of the sub-goals' head, names first."""
    names = hk.Linear(table.goal_names, name="goal_names")(x) if table.goal_names else x[:, :0]
    bins = BinHead(table.goal_bins, name="goal_bins")(x) if table.goal_bins else x[:, :0]
    return jnp.concatenate([names, bins], axis=-1)


def limited(plan: jax.Array, config: ModelConfig) -> jax.Array:
    """Returns plan vectors [..., plan_width] of unit mean square, or quantised where the config gives levels."""
    return quantise(plan, config.plan_levels) if config.plan_levels else unit_mean_square(plan)


def unit_mean_square(x: jax.Array) -> jax.Array:
    """Returns x scaled to a mean square of 1 over its last axis."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


class Planning(NamedTuple):
    """How one level plans and how the level below reads its plans: functions of the parameters, then the modules' arguments."""

    plan_tokens: Callable[..., tuple[jax.Array, Cache | None]]
    plan: Callable[..., jax.Array]
    no_plan: Callable[..., jax.Array]
    read_plan: Callable[..., Reading]


class Network(NamedTuple):
    """One model: its sizes, and its pure functions, each of the parameters and then the module's own arguments.

    above: of the planners above the planner, the nearest first.
    """

    config: ModelConfig
    table: Sizes
    init: Callable[[jax.Array], hk.Params]
    plan_tokens: Callable[..., tuple[jax.Array, Cache | None]]
    plan: Callable[..., jax.Array]
    planner_sub_goal: Callable[..., jax.Array]
    planner_text: Callable[..., jax.Array]
    planner_patches: Callable[..., jax.Array]
    no_plan: Callable[..., jax.Array]
    read_plan: Callable[..., Reading]
    control_tokens: Callable[..., tuple[jax.Array, Cache | None]]
    continuous: Callable[..., jax.Array]
    discrete: Callable[..., jax.Array]
    text: Callable[..., jax.Array]
    controller_sub_goal: Callable[..., jax.Array]
    controller_patches: Callable[..., jax.Array]
    lifetime: Callable[..., jax.Array]
    following: Callable[..., jax.Array]
    above: tuple[Planning, ...]

    def planning(self, level: int) -> Planning:
        """Returns the functions of a planner: 1 is the one that plans for the controller, 2 the one that plans for it."""
        if level > 1:
            return self.above[level - 2]
        return Planning(self.plan_tokens, self.plan, self.no_plan, self.read_plan)


@functools.lru_cache(16)
def build(config: ModelConfig, schema: Schema) -> Network:
    """Returns the network for a schema. `init(key)` needs no example: parameters' shapes do not depend on lengths.

    Asked again for the same network it returns the same one, whose compiled functions are then found again.
    """
    table = sizes(schema)
    if len(config.above) != schema.above:
        raise ValueError(f"{len(config.above)} planners above the planner, and the layouts have {schema.above}: give as many")

    def modules() -> tuple[Callable[[], None], tuple[Callable[..., Any], ...]]:
        planner, controller = Planner(config, config.planner, table), Controller(config, table)
        above = [Planner(config, own, table, level) for level, own in enumerate(config.above, start=2)]

        def init() -> None:
            value = jnp.zeros((1, 1), jnp.int32)
            patch = jnp.zeros((1, table.patch_values)), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)
            place = Place(*(jnp.zeros(1, jnp.int32) for _ in range(4)), jnp.ones(1, bool))
            reading, age = None, jnp.zeros(1, jnp.int32)
            for writer, reader in reversed(list(zip(above, (planner, *above)))):
                x, _ = writer(value, value, place, reading=reading, age=age)
                writer.plan(x)
                reading = jax.tree.map(lambda r: r[None], reader.read_plan(reader.no_plan()))
            if config.planner is not None:
                x, _ = planner(value, value, place, reading=reading, age=age)
                planner.plan(x)
                reading = jax.tree.map(lambda r: r[None], controller.read_plan(controller.no_plan()))
                if table.goals:
                    planner.sub_goal(x)
                if table.pieces:
                    planner.text(x)
                if table.patch_values:
                    planner.patches(*patch)
            y, _ = controller(value, value, place, reading, age)
            controller.continuous(y)
            if table.discrete:
                controller.discrete(y)
            if table.pieces:
                controller.text(y)
            if table.goals and config.planner is None:
                controller.sub_goal(y)
            if table.patch_values and config.planner is None:
                controller.patches(*patch)
            # Last, so that a model without them starts from the same weights as ever.
            if table.lives and config.planner is not None:
                planner.lifetime(x)
            if table.predictions:
                controller.following(y)

        return init, (
            planner,
            planner.plan,
            planner.sub_goal,
            planner.text,
            planner.patches,
            controller.no_plan,
            controller.read_plan,
            controller,
            controller.continuous,
            controller.discrete,
            controller.text,
            controller.sub_goal,
            controller.patches,
            planner.lifetime,
            controller.following,
            tuple(
                Planning(writer, writer.plan, reader.no_plan, reader.read_plan)
                for writer, reader in zip(above, (planner, *above))
            ),
        )

    transformed = hk.without_apply_rng(hk.multi_transform(modules))
    return Network(config, table, jax.jit(transformed.init), *transformed.apply)
