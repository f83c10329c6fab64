"""The second execution: one update, one tick, over explicit caches, for acting. Same parameters, same layers.

Functions are for one episode; `jax.vmap` adds the batch. A reading may have more tokens than a chunk holds (an instruction
arrives); the loop over chunks runs as often as there are chunks, inside the one compiled call. What an update has to read besides
goes before it through `follow` (ticks between updates) and `look` (an image).
"""

from typing import Literal, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from hierarchy.batch import Patches
from hierarchy.layout import (
    ASKED,
    BINS,
    CONTINUOUS_START,
    EMPTY,
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
from hierarchy.model.config import ModelConfig
from hierarchy.model.network import Network, Reading
from modules.attention import MASKED
from modules.cache import Cache, Run
from modules.masks import Place
from modules.transformer import TransformerConfig, empty_cache

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


HEADER = 6
"""Numbers of a packed tick that come before its tokens."""


def pack_tick(tokens: Tokens, chunks: int, now: int, age: int, seeds: np.ndarray) -> np.ndarray:
    """Returns int32 [B, N], all that a tick is told beside the plan, from a batch's tokens [B, M, K], age and seeds [B].

    One array costs a call a few microseconds; an array each for what stands in it would cost as many times that.
    """
    batch, size = len(tokens.value), tokens.value[0].size
    packed = np.empty((batch, HEADER + 2 * size), np.int32)
    for column, part in enumerate((now, age, chunks, np.asarray(seeds, np.uint32).view(np.int32), tokens.count, tokens.before)):
        packed[:, column] = part
    packed[:, HEADER : HEADER + size] = tokens.value.reshape(batch, size)
    packed[:, HEADER + size :] = tokens.field.reshape(batch, size)
    return packed


def unpack_tick(packed, atoms: int):
    """Returns (tokens, chunks, now, age, seed) of one episode's row [N] of a packed tick; tokens of `atoms` atoms."""
    now, age, chunks, seed, count, before = packed[:HEADER]
    value, field = packed[HEADER:].reshape(2, -1, atoms)
    return Tokens(value, field, count, before), chunks, now, age, seed


class Action(NamedTuple):
    """What one tick decoded.

    ids: int32 [A], Gato ids. unit: float32 [A], the action in [-1, 1] (the bin's centre, or the mean over bins; for a discrete
    action the id). logits: float32 [A, classes], illegal classes masked. following: float32 [classes], of the layout's predicted
    scalars, one scalar's classes after another's; None where there are none.
    """

    ids: jax.Array
    unit: jax.Array
    logits: jax.Array
    following: jax.Array | None = None


class Plan(NamedTuple):
    """One update's plan, vectors [P, plan_width], how the layers of the level below read it, and logits over the bins of its
    lifetime, None where nobody predicts it."""

    vectors: jax.Array
    reading: Reading
    lifetime: jax.Array | None = None


class Room(NamedTuple):
    """What a cache has room for: the tokens of `readings`, `each` a reading, and beside them `words` and patches; then what
    stands there for one tick alone, what is `asked` at once and the vectors of a `plan` that is a prefix. apart: fewest ticks
    from one reading to the next."""

    readings: int
    each: int
    words: int
    asked: int
    plan: int
    apart: int = 1

    @property
    def kept(self) -> int:
        """How many tokens later ticks may see. Those of an action are never among them."""
        return self.readings * self.each + self.words

    @property
    def slots(self) -> int:
        """How many there are in all."""
        return self.kept + self.asked + self.plan


def planner_room(network: Network, layout: Layout, level: int = 1) -> Room:
    """Returns what the cache of a planner must hold, updates as close to each other as the model allows.

    Raises:
        ValueError: updates are apart, and the planner reads something at every tick between them.
    """
    reader = planner_name(level)
    config, own = network.config, network.config.of(reader)
    if config.least_ratio > 1 and tokens_between(layout):
        raise ValueError(
            f"layout {layout.name!r}: its planner follows fields at every tick, and its cache has room for one reading in "
            f"{config.least_ratio}: set least_ratio to 1 in the model's config"
        )
    text = config.text_slots if words(readers(layout)[reader]) else 0
    plan = prefix_vectors(config, own) if level < len(config.planners) else 0
    readings, each = config.updates_within(own.window), tokens_per_update(layout, reader)
    return Room(readings, each, text, asked=0, plan=plan, apart=config.least_ratio)


def controller_room(network: Network, layout: Layout) -> Room:
    """Returns what a controller's cache must hold."""
    config, own = network.config, network.config.controller
    text = config.text_slots if words(layout.controller) else 0
    asked = layout.action.size - 1 if layout.at_once and not text else 0
    plan = prefix_vectors(config, own) if config.planner is not None else 0
    return Room(own.window, tokens_per_reading(layout), text, asked, plan)


def prefix_vectors(config: ModelConfig, reader: TransformerConfig) -> int:
    """Returns how many of a plan's vectors stand in the cache of a transformer that reads it."""
    return config.plan_vectors if config.plan_read == "prefix" and reader.position == "rotary" else 0


def planner_cache(network: Network, layout: Layout, level: int = 1) -> Cache:
    """Returns a planner's cache at the start of an episode."""
    return empty_cache(network.config.of(planner_name(level)), planner_room(network, layout, level).slots)


def controller_cache(network: Network, layout: Layout) -> Cache:
    """Returns the controller's cache at the start of an episode."""
    return empty_cache(network.config.controller, controller_room(network, layout).slots)


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
    # One plan for all tokens of the update.
    seen = () if reading is None else (None, jax.tree.map(lambda entry: entry[None], reading), age[None])

    def write(value, field, place, cache, slots, last=None):
        return planning.plan_tokens(params, value, field, place, cache, slots, *seen, last=last)

    size, room = tokens_per_update(layout, reader), planner_room(network, layout, level)
    cache, x = _ingest(write, room, cache, tokens, chunks, tick, size)
    plan = as_plan(network, params, planning.plan(params, x)[0], level)
    lives = layout.lifetime and level == 1
    return cache, plan._replace(lifetime=network.lifetime(params, x)[0]) if lives else plan


def follow(
    network: Network, layout: Layout, params: hk.Params, cache: Cache, tokens: Tokens, first: jax.Array, ticks: jax.Array
) -> Cache:
    """Returns the planner's cache after it has read what it follows of ticks first, first + 1, ..., `ticks` of them.

    tokens: value, field [M, tokens_between, K], a row a tick.
    """

    def write(value, field, place, cache, slots, last=None):
        return network.plan_tokens(params, value, field, place, cache, slots, last=last)

    size, room = tokens_between(layout), planner_room(network, layout)

    def one(i, cache):
        own = Tokens(tokens.value[i], tokens.field[i], tokens.count, tokens.before)
        return _ingest(write, room, cache, own, 1, first + i, size)[0]

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
    room = (planner_room if by_planner else controller_room)(network, layout)
    rest = () if by_planner else (None, jnp.full(tokens.value.shape[0], -1))
    shown = embed(params, *patches[:3])

    def write(value, field, place, cache, at, last=None):
        return read(params, value, field, place, *rest, cache, at, shown, last=last)

    return _ingest(write, room, cache, tokens, 1, now, tokens.value.shape[0])[0]


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
    # One plan for all tokens of the tick.
    plan = None if reading is None else jax.tree.map(lambda entry: entry[None], reading)
    first_field, rest = schema.field_ids(layout.name)["action", layout.action.name], layout.action.size - 1
    room, size = controller_room(network, layout), tokens_per_reading(layout)
    index, order = tokens.before + tokens.count, cache.written + tokens.count

    def write(value, field, place, cache, slots, last=None, beside=None):
        return network.control_tokens(params, value, field, place, plan, age[None], cache, slots, beside=beside, last=last)

    def own(i: jax.Array, atoms: int = 1) -> tuple[jax.Array, Place]:
        """The fields [N, atoms] of elements i [N] of the action, and where they stand: after the observation, for this tick."""
        none, field = jnp.zeros_like(i), jnp.full((i.shape[0], atoms), EMPTY).at[:, 0].set(first_field + i)
        return field, Place(none + now, index + i, none + 1, order + i, none > 0)

    def elements(x: jax.Array, first: jax.Array | int) -> Action:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first + jnp.arange(x.shape[0]))
        return decode(network, layout, params, x, keys, decoding)

    def element(carry: tuple[Cache, jax.Array], i: jax.Array):
        decoded, x = carry
        action = elements(x, i)
        x, decoded = write(action.ids[:, None], *own(i[None]), decoded, [Run(i, 1)], beside=cache)
        return (decoded, x), action

    def following(x: jax.Array) -> jax.Array | None:
        """What the reading's last output says of the next tick, before anything is decoded."""
        own = schema.predictions(layout.name)
        return network.following(params, x)[0, own[0][0] : sum(own[-1])] if own else None

    if layout.at_once or not rest:
        which, atoms = jnp.arange(rest), tokens.value.shape[1]
        asked = jnp.full((rest, atoms), EMPTY).at[:, 0].set(ASKED), *own(which, atoms)
        cache, x = _ingest(write, room, cache, tokens, chunks, now, size, asked if rest else None)
        return cache, elements(x, 0)._replace(following=following(x[:1]))
    cache, first = _ingest(write, room, cache, tokens, chunks, now, size)
    # What is decoded has a cache of its own: a loop that carried the large one would copy it.
    (_, x), actions = jax.lax.scan(element, (empty_cache(network.config.controller, rest), first), jnp.arange(rest))
    decoded = jax.tree.map(lambda most, end: jnp.concatenate([most[:, 0], end]), actions, elements(x, rest))
    return cache, decoded._replace(following=following(first))


Written = tuple[jax.Array, jax.Array, Place]
"""Tokens to write: value, field [N, K], and where they stand."""


def _ingest(write, room: Room, cache: Cache, tokens: Tokens, chunks, now, size: int, asked: Written | None = None):
    """Returns the cache with a reading's tokens written to it, and the output [1, D] of the last of them.

    write: embeds tokens, writes them to slots, and returns the outputs of the `last` of them, of all if None, and the cache.
    asked: tokens that come after it and are for now alone; their outputs follow, [1 + N, D].
    """
    if room.words:
        cache, last = _ingest_words(write, room, cache, tokens, chunks, now, size)
        if asked is None:
            return cache, last
        x, cache = write(*asked, cache, [])
        return cache, jnp.concatenate([last, x])
    # Every reading has slots of its own until it leaves the window. One of nothing leaves them empty, as they count already.
    slots = [Run(now // room.apart % room.readings * room.each, size)]
    index = jnp.arange(size, dtype=jnp.int32)
    there = index < tokens.count
    place = Place(jnp.full(size, now), index, there.astype(jnp.int32), cache.written + index, there)
    reading = tokens.value, tokens.field, place
    if asked is not None:
        # After those of all ticks, in the place of what was asked at the tick before.
        reading = jax.tree.map(lambda first, then: jnp.concatenate([first, then]), reading, asked)
        slots.append(Run(jnp.asarray(room.kept), room.asked))
    x, cache = write(*reading, cache, slots, last=1 + len(reading[0]) - size)
    return cache._replace(written=cache.written + tokens.count), x


def _ingest_words(write, room: Room, cache: Cache, tokens: Tokens, chunks, now, size: int):
    """Does what `_ingest` does for a reading of any length, chunk by chunk, in slots that are filled one after another."""
    value, field, count, before = tokens
    first = cache.written

    def chunk(i, carry):
        cache, last = carry
        index = i * size + jnp.arange(size, dtype=jnp.int32)
        there = index < count
        part = [jax.lax.dynamic_slice_in_dim(buffer, i * size, size) for buffer in (value, field)]
        place = Place(jnp.full(size, now), before + index, there.astype(jnp.int32), first + index, there)
        x, cache = write(*part, place, cache, jnp.where(there, (first + index) % room.kept, DROPPED))
        at = count - 1 - i * size
        return cache, jnp.where((at >= 0) & (at < size), x[jnp.clip(at, 0, size - 1)], last)

    heads, _, size_of_head = cache.layers[0].key.shape
    start = (cache, jnp.zeros(heads * size_of_head))
    single = value.shape[0] == size
    cache, last = chunk(0, start) if single else jax.lax.fori_loop(0, chunks, chunk, start)
    return cache._replace(written=first + count), last[None]


def decode(network: Network, layout: Layout, params: hk.Params, x: jax.Array, keys: jax.Array, decoding: Decoding) -> Action:
    """Returns action elements [N] decoded from the outputs [N, D] that predict them, one key for each."""
    codec = layout.action.codec
    bounded = isinstance(codec, Bounded)
    if isinstance(codec, Piece):
        head, limit = network.text, network.table.pieces
    else:
        head, limit = (network.continuous, codec.bins) if bounded else (network.discrete, codec.values)
    logits = head(params, x)
    logits = jnp.where(jnp.arange(logits.shape[-1]) < limit, logits, MASKED)
    choice = jax.vmap(jax.random.categorical)(keys, logits) if decoding == "sample" else jnp.argmax(logits, axis=-1)
    if not bounded:
        return Action(choice.astype(jnp.int32), choice.astype(jnp.float32), logits)
    centres = (jnp.arange(BINS) + 0.5) * 2 / limit - 1
    unit = centres[choice]
    if decoding == "mean":
        unit = jnp.sum(jax.nn.softmax(logits) * jnp.where(jnp.arange(BINS) < limit, centres, 0.0), axis=-1)
        choice = jnp.clip(jnp.floor((unit + 1) * limit / 2), 0, limit - 1)
    return Action(CONTINUOUS_START + choice.astype(jnp.int32), unit, logits)
