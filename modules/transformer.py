"""A pre-norm transformer with GEGLU blocks (arXiv 2002.05202) and attention over a window of time, rotary or relative.

The same call serves the parallel pass (keys from the tokens themselves) and the step (keys from a cache that the tokens are
written to first), so the two cannot drift apart.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from modules.attention import (
    KeyValues,
    Linear,
    Prefix,
    Relative,
    attend,
    attend_in_order,
    distance_waves,
    normed,
    rotate,
    rotation,
    score_distances,
    split_heads,
)
from modules.cache import Cache, Run, Slots, put
from modules.compute import LayerNames, current, gathering, laid, rematerialised
from modules.flash import flash
from modules.masks import Place, may_see, spans
from modules.mixture_of_experts import Experts, Routed


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one transformer.

    window: moments (ticks) that a layer reaches back, its own counted. windows: the same by layer, where they differ, the longest
        of them `window`, which is what a cache has to keep; none where all are alike.
    feed_forward: size of the two GEGLU halves together.
    position: how attention knows the time between tokens: by turning half of every query and key ("rotary"), or by a learnt
        projection of the distance in every layer, with biases for content and position ("relative", Transformer-XL, arXiv
        1901.02860). Either way tokens of one moment are told apart by what they are, not by where they stand.
    rounds: how often the layers are gone through, with the same weights each time (Universal Transformers, arXiv 1807.03819).
        No parameter depends on it: weights trained with some rounds can be used with more, or with fewer.
    slowest: moments in which the slowest of rotary turns goes round; None for four windows. At no more than episodes last in
        training, all turns have been seen there, however far a window reaches.
    experts: GEGLU blocks in every layer, of which each token goes through `chosen` (see `modules.mixture_of_experts`); 0 for one
        block that all go through. `feed_forward` is the size of all that one token goes through: experts do not change it.
    """

    width: int
    layers: int
    heads: int
    feed_forward: int
    window: int
    position: Literal["rotary", "relative"] = "rotary"
    rounds: int = 1
    experts: int = 0
    chosen: int = 2
    windows: tuple[int, ...] = ()
    slowest: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(self.windows))
        if self.position not in ("rotary", "relative"):
            raise ValueError(f"position is {self.position!r}: it is 'rotary' or 'relative'")
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads of an even size")
        sizes = self.width, self.layers, self.heads, self.feed_forward, self.window, self.rounds
        if min(sizes) < 1 or self.feed_forward % 2:
            raise ValueError(f"sizes are at least 1 and feed_forward is even: {self}")
        if self.experts and not (1 <= self.chosen < self.experts and self.feed_forward % (2 * self.chosen) == 0):
            raise ValueError(
                f"chosen {self.chosen} of {self.experts} experts with feed_forward {self.feed_forward}: choose fewer than "
                "there are, and a number that divides the halves of feed_forward"
            )
        if self.slowest is not None and (self.slowest < 4 or self.position != "rotary"):
            raise ValueError(f"slowest is {self.slowest}, position {self.position!r}: a rotary turn takes at least 4 moments")
        if self.windows and (len(self.windows) != self.layers or min(self.windows) < 1 or max(self.windows) != self.window):
            raise ValueError(
                f"windows {self.windows} of {self.layers} layers, window {self.window}: give one of at least 1 moment a layer, "
                "the longest of them the window; or none"
            )

    @property
    def depth(self) -> int:
        """How many layers a token goes through, those of all rounds counted."""
        return self.layers * self.rounds

    @property
    def by_layer(self) -> tuple[int, ...]:
        """How many moments each of the layers reaches back."""
        return self.windows or (self.window,) * self.layers

    @property
    def lead_in(self) -> int:
        """How many moments before its own an output can depend on, through all layers and rounds."""
        return self.rounds * sum(window - 1 for window in self.by_layer)


def empty_cache(config: TransformerConfig, slots: int) -> Cache:
    """Returns a cache of `slots` empty slots."""
    shape = (config.heads, slots, config.width // config.heads)
    place = Place(*(jnp.zeros(slots, jnp.int32) for _ in range(4)), jnp.zeros(slots, bool))
    layers = tuple(KeyValues(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(config.depth))
    return Cache(place, layers, jnp.zeros((), jnp.int32))


class Turn(NamedTuple):
    """Time for rotary attention: cos and sin [Q, D/4H] of the tokens' own times."""

    cos: jax.Array
    sin: jax.Array


class Distance(NamedTuple):
    """Time for relative attention: features [window, D] of distances, and the distance int32 [Q, N] of each query and key."""

    waves: jax.Array
    between: jax.Array


Time = Turn | Distance


def time_of(config: TransformerConfig, query: Place, key: Place) -> Time:
    """Returns what attention is told of time, in ticks. Beyond the window a distance is the window's last, and masked."""
    if config.position == "rotary":
        return Turn(*rotation(query.time, config.width // config.heads, config.slowest or 4 * config.window))
    between = jnp.clip(query.time[:, None] - key.time[None, :], 0, config.window - 1)
    return Distance(jnp.asarray(distance_waves(config.window, config.width)), between)


class Block(hk.Module):
    """One layer: self-attention, whatever `between` adds from outside, GEGLU or experts of it with this capacity."""

    def __init__(self, config: TransformerConfig, name: str, capacity: float = 0.0):
        super().__init__(name=name)
        self._config, self._capacity = config, capacity

    def __call__(
        self,
        x: jax.Array,
        time: Time,
        over: Callable[..., tuple[jax.Array, KeyValues]] | None,
        between: Callable[[jax.Array], jax.Array] | None,
        prefix: KeyValues | None,
        there: jax.Array,
        last: int | None = None,
        kernel: Callable[[jax.Array], jax.Array] | None = None,
    ) -> tuple[jax.Array, KeyValues | None, Routed | None]:
        """Returns the layer's output [Q, D], the keys and values that are left for later, and where experts had the tokens.

        over: attends with queries over the tokens' own keys and values, and over others that it knows. there: bool [Q], whether
            there is a token. last: how many tokens, the last ones, are asked for their output; None for all. kernel: attends
            instead of `over`, with queries, keys and values side by side, [Q, 3 * D], as they are; it leaves nothing for later.
        """
        config, asked = self._config, slice(None if last is None else -last, None)
        qkv = Linear(3 * config.width, "query_key_value")(normed("norm_attention", x))
        if kernel is not None:
            mixed, memory = kernel(qkv), None
        else:
            mixed, memory = self._attend(qkv, time, over, prefix, asked)
            x, there = x[asked], there[asked]
        x = laid(x + Linear(config.width, "attention_out", 1.0 / config.layers)(mixed), None, None)
        if between is not None:
            x = x + between(x).astype(x.dtype)
        added, routed = self._feed_forward(normed("norm_feed_forward", x), there)
        return laid(x + added, None, None), memory, routed

    @hk.experimental.name_like("__call__")
    def _attend(
        self, qkv: jax.Array, time: Time, over: Callable[..., tuple[jax.Array, KeyValues]], prefix: KeyValues | None, asked: slice
    ) -> tuple[jax.Array, KeyValues]:
        """Returns what the asked tokens attend to, and the keys and values of all."""
        heads = self._config.heads
        query, key, value = (split_heads(laid(part, None, "heads"), heads) for part in jnp.split(qkv, 3, axis=-1))
        query = query[:, asked]
        before = None if prefix is None else Prefix(query, prefix)
        relative = None
        if isinstance(time, Turn):
            query, key = rotate(query, time.cos[asked], time.sin[asked]), rotate(key, *time)
        else:
            query, relative = self._relative(query, Distance(time.waves, time.between[asked]))
        return over(query, KeyValues(key, value), relative=relative, prefix=before)

    @hk.experimental.name_like("__call__")
    def _feed_forward(self, x: jax.Array, there: jax.Array) -> tuple[jax.Array, Routed | None]:
        config, scale = self._config, 1.0 / self._config.layers
        if config.experts:
            hidden = config.feed_forward // (2 * config.chosen)
            return Experts(config.experts, config.chosen, hidden, self._capacity, scale)(x, there)
        gate_up = Linear(config.feed_forward, "gate_up")(x)
        gate, up = (laid(part, None, "hidden") for part in jnp.split(gate_up, 2, axis=-1))
        return Linear(config.width, "down", scale)(jax.nn.gelu(gate) * up), None

    def _relative(self, query: jax.Array, time: Distance) -> tuple[jax.Array, Relative]:
        """Returns queries for the content of keys, and what queries add to their scores for the distance."""
        width, heads = self._config.width, self._config.heads
        content, position = (
            hk.get_parameter(name, (width,), init=jnp.zeros).reshape(heads, 1, -1) for name in ("content_bias", "position_bias")
        )
        projection = hk.get_parameter("distance", (width, width), init=hk.initializers.VarianceScaling(1.0))
        content, position, waves = (part.astype(query.dtype) for part in (content, position, time.waves))
        return query + content, Relative(score_distances(query + position, projection, waves), time.between)


class Transformer(hk.Module):
    """Layers over one stream."""

    def __init__(self, config: TransformerConfig, name: str):
        super().__init__(name=name)
        self._config = config

    def __call__(
        self,
        x: jax.Array,
        place: Place,
        between: Sequence[Callable[[jax.Array, int], jax.Array]] = (),
        cache: Cache | None = None,
        slots: Slots | None = None,
        reach: int | None = None,
        prefix: Sequence[KeyValues] = (),
        beside: Cache | None = None,
        last: int | None = None,
    ) -> tuple[jax.Array, Cache | Routed | None]:
        """Returns normalised outputs [Q, D] and the cache after the tokens were written to it; without a cache, where experts had
        the tokens, [layers, ...], if there are any.

        Args:
            x: [Q, D] embedded tokens.
            place: of the tokens.
            between: one function a layer, of (x, the layer's number), applied between attention and feed-forward; none, or
                `layers` of them, which are pytrees of one structure (`jax.tree_util.Partial`).
            cache, slots: with a cache, tokens are written to their slots first and attend over the whole cache; without one they
                attend over each other. Tokens past the last run are written nowhere, and are attended over all the same.
            reach: without a cache, how many places back a token can see at most; None for any.
            prefix: one a layer, or none: keys and values [Q, H, P, D/H] that each token attends over beside the tokens. With a
                cache and rotary attention it is the same for all tokens, [1, H, P, D/H], which are all of one moment, and
                stands in the cache's last P slots.
            beside: with a cache, another one that tokens attend over too, and that stays as it is. The prefix stands there.
            last: with a cache, how many of the tokens, the last ones, are asked for their outputs, [last, D]; None for all. The
                last layer does no more for the others than to leave their keys and values.
        """
        if cache is None:
            return over_each_other(self._config, x, place, between, reach, prefix)
        config, memories = self._config, []
        count = x.shape[0] if isinstance(slots, jax.Array) else sum(run.count for run in slots)
        kept = jax.tree.map(lambda old, new: put(old, new[:count], slots, 0), cache.place, place)
        # A prefix that is one more product for each layer takes longer than one that is turned as all keys are, to the time at
        # which it is met: scores are then as if neither were turned.
        turned, size = config.position == "rotary" and len(prefix) > 0, cache.place.time.shape[0]
        ahead = [Run(jnp.asarray(size - prefix[0].key.shape[2]), prefix[0].key.shape[2])] if turned and beside is None else []
        if ahead:
            now = Place(place.time[0], *jnp.array([0, 1, 0]), jnp.asarray(False))
            kept = jax.tree.map(lambda old, one: put(old, jnp.full(ahead[0].count, one), ahead, 0), kept, now)
        more = jax.tree.map(lambda part: part[count:], place) if beside is None else beside.place
        keys = jax.tree.map(lambda one, other: jnp.concatenate([one, other]), kept, more)
        windows = sorted({*config.by_layer})

        def told() -> tuple[dict[int, jax.Array], Time]:
            return {window: may_see(place, keys, window) for window in windows}, time_of(config, place, keys)

        masks, time = once(place.time, told)

        def over(n: int, query: jax.Array, new: KeyValues, **how) -> tuple[jax.Array, KeyValues]:
            memory = jax.tree.map(lambda old, fresh: put(old, fresh[:, :count], slots, 1), cache.layers[n], new)
            if ahead:
                own = prefix[n % config.layers]
                plan = KeyValues(rotate(own.key[0], time.cos[:1], time.sin[:1]), own.value[0])
                memory = jax.tree.map(lambda old, fresh: put(old, fresh.astype(old.dtype), ahead, 1), memory, plan)
            more = jax.tree.map(lambda part: part[:, count:], new) if beside is None else beside.layers[n]
            mask = masks[config.by_layer[n % config.layers]]
            allowed = mask[mask.shape[0] - query.shape[1] :]
            return attend(query, memory, allowed, more=more if more.key.shape[1] else None, **how), memory

        blocks, entered = [Block(config, f"layer_{i}") for i in range(config.layers)], x
        for n in range(config.depth):
            i = n % config.layers
            x = x if i or not n else again(x, entered)
            outside = functools.partial(between[i], i=i) if between else None
            before = prefix[i] if prefix and not turned else None
            asked = last if n == config.depth - 1 else None
            x, memory, _ = blocks[i](x, time, functools.partial(over, n), outside, before, place.segment > 0, asked)
            memories.append(memory)
        return normed("norm_out", x), Cache(kept, tuple(memories), cache.written)


def again(x: jax.Array, entered: jax.Array) -> jax.Array:
    """Returns what enters the layers in another round: what left them, brought to size 1, and once more what entered at first,
    so that it is not forgotten however many rounds there are (arXiv 2202.05826)."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)).astype(x.dtype) + entered


def once(number: jax.Array, work: Callable[[], Any]) -> Any:
    """Returns what `work` returns, worked out in one place, by a loop that ends after one turn.

    What is made of a few integers XLA counts as cheap, and works out again wherever it is used: a mask for every head and score,
    an angle's cosine in every layer. It does so across an optimisation barrier too. number: any array of integers; from one of
    them it is asked how long the loop is, or XLA would leave it out.
    """
    turns = jnp.minimum(jnp.abs(number.reshape(-1)[0]), 0) + 1
    nothing = jax.tree.map(lambda made: jnp.zeros(made.shape, made.dtype), jax.eval_shape(work))
    return jax.lax.fori_loop(0, turns, lambda _, __: work(), nothing)


def over_each_other(
    config: TransformerConfig, x: jax.Array, place: Place, between: Sequence, reach: int | None, prefix: Sequence
) -> tuple[jax.Array, Routed | None]:
    """Returns the normalised outputs of tokens that attend over each other, computed as `modules.compute` says, and where each
    layer's experts had them."""
    compute, _ = current()
    time = time_of(config, place, place)

    by_kernel = compute.attention == "flash" and config.position == "rotary" and not prefix

    def attention(window: int | jax.Array) -> Callable[..., jax.Array]:
        """Returns what attends over a window of so many moments."""
        if by_kernel:
            return functools.partial(flash, heads=config.heads, turn=tuple(time), seen=spans(place, window), reach=reach)
        return functools.partial(attend_in_order, mask=may_see(place, place, window), reach=reach)

    # Of layers that are alike the mask is made once, outside of them.
    shared = None if config.windows else attention(config.window)

    scanned = compute.scan and config.rounds == 1 and not hk.running_init()
    blocks = [] if scanned else [Block(config, f"layer_{i}", compute.expert_capacity) for i in range(config.layers)]

    def layer(
        i: int, x: jax.Array, outside: Callable | None, before: KeyValues | None, window: int | jax.Array | None
    ) -> tuple[jax.Array, Routed | None]:
        outside, attends = outside and functools.partial(outside, i=i), shared or attention(window)

        def over(query: jax.Array, new: KeyValues, **how) -> tuple[jax.Array, KeyValues]:
            return attends(query, new, **how), new

        with gathering():
            block = blocks[i] if blocks else Block(config, f"layer_{i}", compute.expert_capacity)
            x, _, routed = block(x, time, over, outside, before, place.segment > 0, kernel=attends if by_kernel else None)
        return x, routed

    x = entered = laid(x.astype(compute.dtype), None, None)
    if scanned:
        first = rematerialised(functools.partial(layer, 0), compute.remat)
        stack = hk.layer_stack(config.layers, with_per_layer_inputs=True, transparent=True, transparency_map=LayerNames())
        each = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts) if parts else None for parts in (between, prefix)]
        x, routed = stack(first)(x, *each, jnp.asarray(config.windows) if config.windows else None)
    else:
        by_layer = []
        for n in range(config.depth):
            i = n % config.layers
            x = x if i or not n else again(x, entered)
            one = rematerialised(functools.partial(layer, i), compute.remat)
            own = jnp.asarray(config.windows[i]) if config.windows else None
            x, routed = one(x, between[i] if between else None, prefix[i] if prefix else None, own)
            by_layer.append(routed)
        routed = jax.tree.map(lambda *parts: jnp.stack(parts), *by_layer)
    return normed("norm_out", x), routed
