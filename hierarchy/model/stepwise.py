"""The second execution: one update, one tick, over explicit caches, for acting. Same parameters, same layers.

Functions are for one episode; `jax.vmap` adds the batch. A reading may have more tokens than a chunk holds (an instruction
arrives); the loop over chunks runs as often as there are chunks, inside the one compiled call. What an update has to read besides
goes before it through `follow` (ticks between updates) and `look` (an image).
"""

from typing import Literal, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from hierarchy.batch import Patches
from hierarchy.layout import (
    BINS,
    CONTINUOUS_START,
    Bounded,
    Layout,
    Piece,
    Schema,
    planner_name,
    readers,
    tokens_between,
    tokens_per_reading,
    tokens_per_update,
    words,
)
from hierarchy.model.network import Network, Reading
from modules.attention import MASKED
from modules.masks import Place
from modules.transformer import Cache, TransformerConfig, empty_cache

Decoding = Literal["sample", "argmax", "mean"]
DROPPED = 2**30
"""A slot past the end of every cache: writes to it are dropped."""


class Tokens(NamedTuple):
    """The tokens of one reading, in a buffer of M: value, field int32 [M, K]; `count` of them are there. before: how many tokens
    of the same tick (an image's) have been read already."""

    value: jax.Array
    field: jax.Array
    count: jax.Array
    before: jax.Array


class Action(NamedTuple):
    """What one tick decoded.

    ids: int32 [A], Gato ids. unit: float32 [A], the action in [-1, 1] (the bin's centre, or the mean over bins; for a discrete
    action the id). logits: float32 [A, classes], illegal classes masked.
    """

    ids: jax.Array
    unit: jax.Array
    logits: jax.Array


class Plan(NamedTuple):
    """One update's plan, vectors [P, plan_width], and how the layers of the level below read it."""

    vectors: jax.Array
    reading: Reading


def planner_slots(network: Network, layout: Layout, level: int = 1) -> int:
    """Returns how many tokens the cache of a planner must hold, updates at every tick included."""
    reader = planner_name(level)
    text = network.config.text_slots if words(readers(layout)[reader]) else 0
    return network.config.of(reader).window * tokens_per_update(layout, reader) + text


def controller_slots(network: Network, layout: Layout) -> int:
    """Returns how many lasting tokens a controller's cache must hold; the action's tokens have slots of their own beyond."""
    text = network.config.text_slots if words(layout.controller) else 0
    return network.config.controller.window * tokens_per_reading(layout) + text


def planner_cache(network: Network, layout: Layout, level: int = 1) -> Cache:
    """Returns a planner's cache at the start of an episode."""
    return empty_cache(network.config.of(planner_name(level)), planner_slots(network, layout, level))


def controller_cache(network: Network, layout: Layout) -> Cache:
    """Returns the controller's cache at the start of an episode."""
    return empty_cache(network.config.controller, controller_slots(network, layout) + layout.action.size - 1)


def as_plan(network: Network, params: hk.Params, vectors: jax.Array, level: int = 1) -> Plan:
    """Returns vectors [P, plan_width] of a planner with what the level below it reads of them."""
    return Plan(vectors, network.planning(level).read_plan(params, vectors))


def no_plan(network: Network, params: hk.Params, level: int = 1) -> Plan:
    """Returns the learnt no-plan that stands for a planner's."""
    return as_plan(network, params, network.planning(level).no_plan(params), level)


def update(
    network: Network,
    layout: Layout,
    params: hk.Params,
    cache: Cache,
    tokens: Tokens,
    chunks: jax.Array,
    tick: jax.Array,
    level: int = 1,
    reading: Reading | None = None,
    age: jax.Array | None = None,
) -> tuple[Cache, Plan]:
    """Returns a planner's cache and plan after one update that observes `tick`.

    chunks: how many chunks of `tokens_per_update` tokens the buffer fills; one number for a whole batch. level: 1 for the planner
    of the controller, 2 for the planner of that. reading, age: of the visible plan of the level above, None where there is none.
    """
    planning, reader = network.planning(level), planner_name(level)

    def write(value, field, place, cache, slots):
        count = value.shape[0]
        seen = () if reading is None else (None, _for_each(reading, count), jnp.full(count, age))
        return planning.plan_tokens(params, value, field, place, cache, slots, *seen)

    size, slots = tokens_per_update(layout, reader), planner_slots(network, layout, level)
    cache, x = _ingest(write, network.config.of(reader), cache, tokens, chunks, tick, size, slots)
    return cache, as_plan(network, params, planning.plan(params, x[None])[0], level)


def _for_each(reading: Reading, count: int) -> Reading:
    """Returns what `count` tokens read that all see one plan."""
    return jax.tree.map(lambda entry: jnp.repeat(entry[None], count, axis=0), reading)


def follow(
    network: Network, layout: Layout, params: hk.Params, cache: Cache, tokens: Tokens, first: jax.Array, ticks: jax.Array
) -> Cache:
    """Returns the planner's cache after it has read what it follows of ticks first, first + 1, ..., `ticks` of them.

    tokens: value, field [M, tokens_between, K], a row a tick.
    """

    def write(value, field, place, cache, slots):
        return network.plan_tokens(params, value, field, place, cache, slots)

    size, slots = tokens_between(layout), planner_slots(network, layout)

    def one(i, cache):
        own = Tokens(tokens.value[i], tokens.field[i], tokens.count, tokens.before)
        return _ingest(write, network.config.planner, cache, own, 1, first + i, size, slots)[0]

    return jax.lax.fori_loop(0, ticks, one, cache)


def look(
    network: Network, layout: Layout, params: hk.Params, cache: Cache, tokens: Tokens, patches: Patches, now: jax.Array
) -> Cache:
    """Returns the cache of the reader of images (the planner, where there is one) after it has read one image at tick `now`.

    tokens: the image's, all of them or none (count 0). patches: pixels [M, values], row and column [M].
    """
    by_planner = network.config.planner is not None
    embed = network.planner_patches if by_planner else network.controller_patches
    read = network.plan_tokens if by_planner else network.control_tokens
    config = network.config.planner if by_planner else network.config.controller
    slots = (planner_slots if by_planner else controller_slots)(network, layout)
    rest = () if by_planner else (None, jnp.full(tokens.value.shape[0], -1))
    shown = embed(params, *patches[:3])

    def write(value, field, place, cache, at):
        return read(params, value, field, place, *rest, cache, at, shown)

    return _ingest(write, config, cache, tokens, 1, now, tokens.value.shape[0], slots)[0]


def tick(
    network: Network,
    schema: Schema,
    layout: Layout,
    params: hk.Params,
    cache: Cache,
    tokens: Tokens,
    chunks: jax.Array,
    now: jax.Array,
    reading: Reading | None,
    age: jax.Array,
    key: jax.Array,
    decoding: Decoding,
) -> tuple[Cache, Action]:
    """Returns the controller's cache and the action of tick `now`: the observation is read, then all elements are decoded.

    reading, age: of the visible plan; age is -1 where there is none. key: for sampling.
    """
    each = None if reading is None else jax.tree.map(lambda entry: entry[None], reading)

    def write(value, field, place, cache, slots):
        count = value.shape[0]
        wide = None if each is None else jax.tree.map(lambda entry: jnp.repeat(entry, count, axis=0), each)
        return network.control_tokens(params, value, field, place, wide, jnp.full(count, age), cache, slots)

    lasting = controller_slots(network, layout)
    cache, x = _ingest(write, network.config.controller, cache, tokens, chunks, now, tokens_per_reading(layout), lasting)
    first_field = schema.field_ids(layout.name)["action", layout.action.name]

    def element(carry: tuple[Cache, jax.Array], i: jax.Array):
        cache, x = carry
        ids, unit, logits = _decode(network, layout, params, x, jax.random.fold_in(key, i), decoding)
        index = tokens.before + tokens.count + i
        place = Place(now[None], index[None], jnp.ones(1, jnp.int32), (cache.written + i)[None], jnp.zeros(1, bool))
        x, after = write(ids[None, None], (first_field + i)[None, None], place, cache, (lasting + i)[None])
        return (after, x[0]), Action(ids, unit, logits)

    size = layout.action.size
    (cache, x), actions = jax.lax.scan(element, (cache, x), jnp.arange(size - 1))
    last = Action(*_decode(network, layout, params, x, jax.random.fold_in(key, size - 1), decoding))
    return cache, jax.tree.map(lambda most, end: jnp.concatenate([most, end[None]]), actions, last)


def _ingest(write, config: TransformerConfig, cache: Cache, tokens: Tokens, chunks, now, size: int, slots: int):
    """Returns the cache with a reading's tokens written to it, and the output [D] of the last of them."""
    value, field, count, before = tokens
    first = cache.written

    def chunk(i, carry):
        cache, last = carry
        index = i * size + jnp.arange(size, dtype=jnp.int32)
        there = index < count
        part = [jax.lax.dynamic_slice_in_dim(buffer, i * size, size) for buffer in (value, field)]
        place = Place(jnp.full(size, now), before + index, there.astype(jnp.int32), first + index, there)
        x, cache = write(*part, place, cache, jnp.where(there, (first + index) % slots, DROPPED))
        at = count - 1 - i * size
        return cache, jnp.where((at >= 0) & (at < size), x[jnp.clip(at, 0, size - 1)], last)

    start = (cache, jnp.zeros(config.width))
    single = value.shape[0] == size
    cache, last = chunk(0, start) if single else jax.lax.fori_loop(0, chunks, chunk, start)
    return cache._replace(written=first + count), last


def _decode(network: Network, layout: Layout, params: hk.Params, x: jax.Array, key: jax.Array, decoding: Decoding):
    """Returns (id, unit value, logits [classes]) of one action element from the output [D] that predicts it."""
    codec = layout.action.codec
    bounded = isinstance(codec, Bounded)
    if isinstance(codec, Piece):
        head, limit = network.text, network.table.pieces
    else:
        head, limit = (network.continuous, codec.bins) if bounded else (network.discrete, codec.values)
    logits = head(params, x[None])[0]
    logits = jnp.where(jnp.arange(logits.shape[0]) < limit, logits, MASKED)
    choice = jax.random.categorical(key, logits) if decoding == "sample" else jnp.argmax(logits)
    if not bounded:
        return choice.astype(jnp.int32), choice.astype(jnp.float32), logits
    centres = (jnp.arange(BINS) + 0.5) * 2 / limit - 1
    unit = centres[choice]
    if decoding == "mean":
        unit = jnp.sum(jax.nn.softmax(logits) * jnp.where(jnp.arange(BINS) < limit, centres, 0.0))
        choice = jnp.clip(jnp.floor((unit + 1) * limit / 2), 0, limit - 1)
    return CONTINUOUS_START + choice.astype(jnp.int32), unit, logits
