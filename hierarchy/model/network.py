"""Planner and controller in haiku, as pure functions of parameters; nothing here loops over time.

Everything is for one row or one episode; `jax.vmap` adds the batch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from hierarchy.layout import BINS, Schema
from hierarchy.model.config import ModelConfig, Sizes, sizes
from modules.attention import KeyValues, attend_own, linear, norm, split_heads
from modules.embedding import BinHead, TokenEmbedding, log_features
from modules.masks import Place
from modules.patches import PatchEmbedding
from modules.quantisation import quantise
from modules.transformer import Cache, Transformer

Reading = tuple[Any, ...]
"""A plan as the controller's layers read it, one entry a layer: KeyValues [H, P, D/H] of cross-attention or of the prefix, or
FiLM's (scale, shift) [D]."""


class Planner(hk.Module):
    """The slow transformer: tokens to outputs, outputs to plans and sub-goals."""

    def __init__(self, config: ModelConfig, table: Sizes):
        super().__init__(name="planner")
        self._config, self._table = config, table

    def __call__(
        self,
        value: jax.Array,
        field: jax.Array,
        place: Place,
        cache: Cache | None = None,
        slots: jax.Array | None = None,
        shown: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns outputs [S, D] of tokens [S, K], and the cache. Time enters absolutely here, not only through attention.

        shown: [S, D], what patches of images add to their tokens (see `patches`); None where there are none.
        """
        config, table = self._config.planner, self._table
        x = TokenEmbedding(table.names, BINS, table.fields, table.planner_names, config.width)(
            table.row(value), field, place.index
        )
        x = x if shown is None else x + shown
        x = x + linear(config.width, "time")(log_features(place.time))
        return Transformer(config, "transformer")(x, place, cache=cache, slots=slots)

    def patches(self, pixels: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        """Returns the patches of images, embedded, [M, D]."""
        return PatchEmbedding(self._table.patch_channels, self._config.planner.width)(pixels, row, column)

    def text(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, pieces] of the next piece of text from outputs [M, D]."""
        return hk.Linear(self._table.pieces, name="text")(x)

    def plan(self, x: jax.Array) -> jax.Array:
        """Returns plans [J, P, plan_width] as `limited` leaves them, from outputs [J, D]."""
        config = self._config
        plans = linear(config.plan_vectors * config.plan_width, "vectors")(x)
        return limited(plans.reshape(-1, config.plan_vectors, config.plan_width), config)

    def sub_goal(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, classes] of the sub-goals from outputs [M, D]."""
        return goal_logits(x, self._table)


class Controller(hk.Module):
    """The fast transformer; the single-rate model is one without plans."""

    def __init__(self, config: ModelConfig, table: Sizes):
        super().__init__(name="controller")
        self._config, self._table = config, table

    def no_plan(self) -> jax.Array:
        """Returns the learnt plan [P, plan_width] that stands while there is none."""
        shape = (self._config.plan_vectors, self._config.plan_width)
        return limited(hk.get_parameter("no_plan", shape, init=hk.initializers.RandomNormal(1.0)), self._config)

    def read_plan(self, plan: jax.Array) -> Reading:
        """Returns how each layer reads one plan [P, plan_width]; run once an update, used by every tick."""
        config = self._config.controller
        layers = []
        for i in range(config.layers):
            if self._config.plan_read == "film":
                scale, shift = jnp.split(linear(2 * config.width, f"plan_film_{i}")(plan.reshape(-1)), 2)
                layers.append((scale, shift))
            else:
                key_value = linear(2 * config.width, f"plan_key_value_{i}")(plan)
                layers.append(KeyValues(*(split_heads(part, config.heads) for part in jnp.split(key_value, 2, axis=-1))))
        return tuple(layers)

    def _reader(self) -> Callable[[Any, jax.Array, int], jax.Array]:
        """Returns what a layer adds from its plan: a function of the reading, with one entry a token, of x, and of its number."""
        config = self._config.controller
        if self._config.plan_read == "film":
            return lambda reading, x, i: norm(f"norm_plan_{i}")(x) * reading[0] + reading[1]

        def cross_attention(reading: KeyValues, x: jax.Array, i: int) -> jax.Array:
            query = split_heads(linear(config.width, f"plan_query_{i}")(norm(f"norm_plan_{i}")(x)), config.heads)
            return linear(config.width, f"plan_out_{i}")(attend_own(query, reading))

        return cross_attention

    def __call__(
        self,
        value: jax.Array,
        field: jax.Array,
        place: Place,
        reading: Reading | None,
        age: jax.Array,
        cache: Cache | None = None,
        slots: jax.Array | None = None,
        shown: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns outputs [L, D] of tokens [L, K], and the cache.

        reading: each token's visible plan (entries [L, ...]), or None for a model without plans. age: int32 [L], -1 for none.
        shown: [L, D], what patches of images add to their tokens, in a model without plans; None where there are none.
        """
        config, table = self._config.controller, self._table
        reach = None if table.controller_words else config.window * table.tick_tokens
        embed = TokenEmbedding(table.names, BINS, table.fields, table.controller_names, config.width)
        x = embed(table.row(value), field, place.index)
        x = x if shown is None else x + shown
        if reading is None:
            x = x + linear(config.width, "time")(log_features(place.time))
            return Transformer(config, "transformer")(x, place, cache=cache, slots=slots, reach=reach)
        aged = linear(config.width, "age")(log_features(jnp.maximum(age, 0)))
        x = x + jnp.where(age[:, None] >= 0, aged, 0.0)
        if self._config.plan_read == "prefix":
            return Transformer(config, "transformer")(x, place, (), cache, slots, reach, prefix=reading)
        read = self._reader()
        between = [jax.tree_util.Partial(read, layer) for layer in reading]
        return Transformer(config, "transformer")(x, place, between, cache, slots, reach)

    def continuous(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, 1024] over bins from outputs [M, D]."""
        return BinHead(BINS, name="continuous")(x)

    def discrete(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, classes] over discrete actions from outputs [M, D]."""
        return hk.Linear(self._table.discrete, name="discrete")(x)

    def text(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, pieces] over pieces of text from outputs [M, D]."""
        return hk.Linear(self._table.pieces, name="text")(x)

    def patches(self, pixels: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        """Returns the patches of images, embedded, [M, D], where no planner is there to see them."""
        return PatchEmbedding(self._table.patch_channels, self._config.controller.width)(pixels, row, column)

    def sub_goal(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, classes] of the sub-goals, where no planner is there to predict them."""
        return goal_logits(x, self._table)


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


class Network(NamedTuple):
    """One model: its sizes, and its pure functions, each of the parameters and then the module's own arguments."""

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


@functools.lru_cache(16)
def build(config: ModelConfig, schema: Schema) -> Network:
    """Returns the network for a schema. `init(key)` needs no example: parameters' shapes do not depend on lengths.

    Asked again for the same network it returns the same one, whose compiled functions are then found again.
    """
    table = sizes(schema)

    def modules() -> tuple[Callable[[], None], tuple[Callable[..., Any], ...]]:
        planner, controller = Planner(config, table), Controller(config, table)

        def init() -> None:
            value = jnp.zeros((1, 1), jnp.int32)
            patch = jnp.zeros((1, table.patch_values)), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)
            place = Place(*(jnp.zeros(1, jnp.int32) for _ in range(4)), jnp.ones(1, bool))
            reading = None
            if config.planner is not None:
                x, _ = planner(value, value, place)
                planner.plan(x)
                reading = jax.tree.map(lambda r: r[None], controller.read_plan(controller.no_plan()))
                if table.goals:
                    planner.sub_goal(x)
                if table.pieces:
                    planner.text(x)
                if table.patch_values:
                    planner.patches(*patch)
            y, _ = controller(value, value, place, reading, jnp.zeros(1, jnp.int32))
            controller.continuous(y)
            if table.discrete:
                controller.discrete(y)
            if table.pieces:
                controller.text(y)
            if table.goals and config.planner is None:
                controller.sub_goal(y)
            if table.patch_values and config.planner is None:
                controller.patches(*patch)

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
        )

    transformed = hk.without_apply_rng(hk.multi_transform(modules))
    return Network(config, table, jax.jit(transformed.init), *transformed.apply)
