"""Attention without a matrix of scores, as kernels for TPUs (FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2).

Queries, keys and values are read where the products with their weights leave them, heads side by side, [N, H * D]: bringing heads
apart costs a TPU as much as a third of those products. Rotary turns are made in the kernels, for the same reason. Who sees whom
is told by an integer or two a token, so no mask is ever read from memory.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from modules.compute import KERNEL_MADE, current, each_device, laid, partition

MASKED = -1e30
BLOCK = 512
LANES = 128
NEVER = 2**30
"""A moment after all others, of places that only fill a block up."""
ROOM = 2**23
"""Bytes that the slopes of queries may take while they are summed, beside all else in a chip's vector memory, 16 MiB."""


def flash(
    query_key_value: jax.Array,
    heads: int,
    turn: tuple[jax.Array, jax.Array],
    seen: tuple[jax.Array, jax.Array],
    reach: int | None = None,
) -> jax.Array:
    """Returns what tokens attend to among each other, [N, H * D], from queries, keys and values side by side, [N, 3 * H * D];
    every device has its own rows, and its own heads.

    turn: cos and sin [N, C] of the rotary angles by which the first 2C numbers of each query's and key's head are turned (see
    `modules.attention.rotate`). seen: now and until, int32 [N] (see `modules.masks.spans`): token i sees token k <= i exactly if
    now[i] < until[k]. reach: how many places back a token can see at most, None for any.
    """
    kernel = functools.partial(
        flash_attention, size=query_key_value.shape[1] // (3 * heads), reach=reach, interpret=_interpreted()
    )
    if not (over := _heads_divided(heads, query_key_value.shape[1] // 3)):
        return each_device(kernel, *[(None, None)] * 3, *[(None,)] * 2)(query_key_value, *turn, *seen)
    parts = [laid(part, None, over) for part in jnp.split(query_key_value, 3, axis=-1)]

    def of_own_heads(query: jax.Array, key: jax.Array, value: jax.Array, *told: jax.Array) -> jax.Array:
        return kernel(jnp.concatenate([query, key, value], axis=-1), *told)

    return each_device(of_own_heads, *[(None, over)] * 3, *[(None, None)] * 2, *[(None,)] * 2)(*parts, *turn, *seen)


def flash_picked(query: jax.Array, key: jax.Array, value: jax.Array, heads: int, index: jax.Array) -> jax.Array:
    """Returns what queries [N, H * D] attend to, each over the P keys and values of the entry that its index [N] picks out of
    [M, P, H * D], as `modules.attention.attend_own` does. Zeros where the index is negative."""
    entries, vectors, width = key.shape
    number = jnp.repeat(jnp.arange(entries), vectors)
    over = _heads_divided(heads, width)
    kernel = functools.partial(flash_same, size=width // heads, interpret=_interpreted())
    run = each_device(kernel, *[(None, over)] * 3, *[(None,)] * 2)
    return run(query, key.reshape(-1, width), value.reshape(-1, width), jnp.maximum(index, -1), number)


def _interpreted() -> bool:
    _, spread = current()
    device = jax.devices()[0] if spread is None else spread.mesh.devices.flat[0]
    return device.platform != "tpu"


def _heads_divided(heads: int, width: int) -> str | None:
    """Returns the name of a dimension that holds heads side by side, where devices have whole heads of it; else None."""
    _, spread = current()
    if spread is None:
        return None
    of_heads, of_width = (partition(spread, ("heads",), (size,))[0] for size in (heads, width))
    return "heads" if of_heads is not None and of_heads == of_width else None


def flash_attention(
    query_key_value: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    now: jax.Array,
    until: jax.Array,
    size: int,
    reach: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns what `flash` does, of heads of `size` numbers, on one device."""
    length, width = query_key_value.shape
    block, blocks, span = blocks_of(length, reach)
    heads, lanes = width // (3 * size), lanes_of(size)
    at = _Steps(
        size, lanes, (block, block), (blocks, blocks), ((0, 0), (0, heads), (0, 2 * heads)), heads, span, cos.shape[1], interpret
    )
    turn = jnp.concatenate([cos, sin, jnp.zeros((length, lanes - 2 * cos.shape[1]))], axis=-1)
    told = _filled(now, at, 0, NEVER)[:, None], _filled(until, at, 1, -NEVER)[None]
    out = _attend((_filled(_in_lanes(query_key_value, size), at, 0),), told, (_filled(turn, at, 0),) * 2, at)
    return _out_of_lanes(out[:length], size)


def flash_same(
    query: jax.Array, key: jax.Array, value: jax.Array, number: jax.Array, of_key: jax.Array, size: int, interpret: bool = False
) -> jax.Array:
    """Returns what queries [N, H * size] attend to, over keys and values [M, H * size] whose int32 number [M] is theirs, [N]:
    zeros where there are none of it. No number is below -1."""
    (block, blocks, _), (of_keys, key_blocks, _) = blocks_of(len(query), None), blocks_of(len(key), None)
    heads = query.shape[1] // size
    at = _Steps(size, lanes_of(size), (block, of_keys), (blocks, key_blocks), ((0, 0), (1, 0), (2, 0)), heads, None, 0, interpret)
    told = _filled(number, at, 0, -2)[:, None], _filled(of_key, at, 1, -3)[None]
    arrays = tuple(_filled(_in_lanes(x, size), at, which) for x, which in ((query, 0), (key, 1), (value, 1)))
    return _out_of_lanes(_attend(arrays, told, None, at)[: len(query)], size)


def lanes_of(size: int) -> int:
    """Returns how many lanes a head of so many numbers fills: whole rows of them."""
    return LANES * math.ceil(size / LANES)


def blocks_of(length: int, reach: int | None) -> tuple[int, int, int]:
    """Returns the tokens of a block, how many blocks hold so many tokens, and how many of them a block of queries sees."""
    blocks = math.ceil(length / BLOCK)
    block = LANES * math.ceil(length / (blocks * LANES))
    return block, blocks, blocks if reach is None else min(blocks, math.ceil(reach / block) + 1)


def pairs(length: int, reach: int | None = None) -> int:
    """Returns how many pairs of tokens `flash` goes through, those that do not see each other among them."""
    block, blocks, span = blocks_of(length, reach)
    return block**2 * sum(min(i + 1, span) for i in range(blocks))


def picked_pairs(queries: int, keys: int) -> int:
    """Returns how many pairs `flash_picked` goes through."""
    return math.prod(block * blocks for block, blocks, _ in (blocks_of(length, None) for length in (queries, keys)))


def _in_lanes(x: jax.Array, size: int) -> jax.Array:
    """Returns heads side by side, [N, C * lanes], each filled up with zeros to whole lanes, from [N, C * size]."""
    if (lanes := lanes_of(size)) == size:
        return x
    return jnp.pad(x.reshape(len(x), -1, size), ((0, 0), (0, 0), (0, lanes - size))).reshape(len(x), -1)


def _out_of_lanes(x: jax.Array, size: int) -> jax.Array:
    """Returns [N, C * size] from what `_in_lanes` makes."""
    return x.reshape(len(x), -1, lanes_of(size))[..., :size].reshape(len(x), -1)


def _filled(x: jax.Array, at: "_Steps", which: int, value: int = 0) -> jax.Array:
    """Returns what queries (0) or keys (1) have, up to whole blocks."""
    filling = at.block[which] * at.count[which] - len(x)
    return jnp.pad(x, ((0, filling), *[(0, 0)] * (x.ndim - 1)), constant_values=value) if filling else x


Told = tuple[jax.Array, jax.Array]
"""Who sees whom: an integer of each query and one of each key, [N, 1] and [1, M], or the other way round."""

Turns = tuple[jax.Array, jax.Array] | None
"""Rotary turns of queries and of keys, float32 [N, lanes]: cos, then sin, then zeros; None for none."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(arrays: tuple[jax.Array, ...], told: Told, turns: Turns, at: "_Steps") -> jax.Array:
    return _forward(arrays, told, turns, at)[0]


def _attend_forward(arrays: tuple[jax.Array, ...], told: Told, turns: Turns, at: "_Steps"):
    out, total = (checkpoint_name(made, KERNEL_MADE) for made in _forward(arrays, told, turns, at))
    return out, (arrays, told, turns, out, total)


def _attend_backward(at: "_Steps", kept, slope: jax.Array):
    arrays, told, turns, out, total = kept
    slopes = _backward(arrays, told, turns, out, total, slope, at)
    numbers = [number for number, _ in at.where]
    joined = tuple(
        jnp.concatenate([one for one, own in zip(slopes, numbers, strict=True) if own == number], axis=-1)
        for number in range(len(arrays))
    )
    return joined, None, None


_attend.defvjp(_attend_forward, _attend_backward)


class _Steps(NamedTuple):
    """How queries and keys are gone through: step (head, i, j) takes one block of queries and one of keys. Forward, i is of
    queries and all j of an i follow each other; backward, i is of keys.

    size, lanes: of a head: its numbers, and what they fill. block, count: tokens of a block and blocks, of queries and of keys.
    where: of queries, keys and values: which array, and how many heads stand in it before them. span: key blocks that a block of
    queries sees, up to its own; None where there is no order, and it sees all. turned: pairs of numbers that are turned.
    """

    size: int
    lanes: int
    block: tuple[int, int]
    count: tuple[int, int]
    where: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    heads: int
    span: int | None
    turned: int
    interpret: bool

    def steps(self, back: bool) -> int:
        """Returns how many j there are for an i."""
        return self.count[0 if back else 1] if self.span is None else self.span

    def pair(self, i: jax.Array, j: jax.Array, back: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the numbers of the query block and of the key block; one of them may not exist."""
        if self.span is None:
            return (j, i) if back else (i, j)
        return (i + j, i) if back else (i, i + j + 1 - self.span)

    def number(self, which: int, i: jax.Array, j: jax.Array, back: bool) -> jax.Array:
        """Returns the number of the block of queries (0) or keys (1) to fetch: one that is there already is not fetched again."""
        return jnp.clip(self.pair(i, j, back)[which], 0, self.count[which] - 1)

    def there(self, back: bool) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns, inside a kernel, j, the pair of this step, and whether it exists."""
        j = pl.program_id(2)
        q, k = self.pair(pl.program_id(1), j, back)
        return j, q, k, (k >= 0) & (q < self.count[0])

    def seen(self, of_query: jax.Array, of_key: jax.Array, q: jax.Array, k: jax.Array, query_axis: int) -> jax.Array:
        """Returns which pairs of block q and block k see each other; the queries are along `query_axis`."""
        if self.span is None:
            return of_query == of_key
        shape = self.block[query_axis], self.block[1 - query_axis]
        row = q * self.block[0] + jax.lax.broadcasted_iota(jnp.int32, shape, query_axis)
        column = k * self.block[1] + jax.lax.broadcasted_iota(jnp.int32, shape, 1 - query_axis)
        return (column <= row) & (of_query < of_key)

    def specs(self, back: bool) -> dict[str, Any]:
        """Returns the blocks of the kernels' arguments."""
        return {
            "tall": [pl.BlockSpec((self.block[w], 1), lambda h, i, j, w=w: (self.number(w, i, j, back), 0)) for w in (0, 1)],
            "flat": [pl.BlockSpec((1, self.block[w]), lambda h, i, j, w=w: (0, self.number(w, i, j, back))) for w in (0, 1)],
            "turns": tuple(
                pl.BlockSpec((self.block[w], self.lanes), lambda h, i, j, w=w: (self.number(w, i, j, back), 0)) for w in (0, 1)
            ),
            "parts": [self.heads_of(w, first, back) for w, (_, first) in zip((0, 1, 1), self.where, strict=True)],
            "total": pl.BlockSpec((None, 1, self.block[0]), lambda h, i, j: (h, 0, self.number(0, i, j, back))),
        }

    def heads_of(self, which: int, first: int, back: bool) -> pl.BlockSpec:
        """Returns the blocks of one head of queries (0) or keys (1) in an array in which `first` others stand before."""
        return pl.BlockSpec((self.block[which], self.lanes), lambda h, i, j: (self.number(which, i, j, back), first + h))

    def call(self, kernel, back: bool, **how):
        """Returns the kernel over all steps."""
        # Backward the slopes of queries are summed from one i to the next.
        order = "parallel", "arbitrary" if back else "parallel", "arbitrary"
        return pl.pallas_call(
            functools.partial(kernel, self),
            grid=(self.heads, self.count[1 if back else 0], self.steps(back)),
            compiler_params=pltpu.CompilerParams(dimension_semantics=order),
            interpret=self.interpret,
            **how,
        )


def _product(a: jax.Array, b: jax.Array, over_a: int, over_b: int) -> jax.Array:
    # Said here and not left to `jax_default_matmul_precision`: the compiler refuses more than bfloat16 has to give, and would
    # multiply float32 as bfloat16.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((over_a,), (over_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _turned(x: jax.Array, turn, count: int, way: int = 1) -> jax.Array:
    """Returns [T, lanes] with the pairs of its first 2 * count lanes turned by their angles, or (way -1) turned back."""
    if turn is None:
        return x
    wide, angle, lanes = x.astype(jnp.float32), turn[...], x.shape[1]
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    first, second = lane < count, lane < 2 * count
    cos = jnp.where(first, angle, jnp.where(second, pltpu.roll(angle, count, 1), 1.0))
    sin = jnp.where(first, -pltpu.roll(angle, lanes - count, 1), jnp.where(second, angle, 0.0))
    other = jnp.where(first, pltpu.roll(wide, lanes - count, 1), pltpu.roll(wide, count, 1))
    return (wide * cos + way * other * sin).astype(x.dtype)


def _forward_kernel(at: _Steps, of_query, of_key, turns, query, key, value, out, total, largest, weight, mixed) -> None:
    j, q, k, exists = at.there(back=False)
    turns = turns or (None, None)

    @pl.when(j == 0)
    def _() -> None:
        largest[...] = jnp.full_like(largest, MASKED)
        weight[...] = jnp.zeros_like(weight)
        mixed[...] = jnp.zeros_like(mixed)

    @pl.when(exists)
    def _() -> None:
        own, others = (_turned(x[...], turn, at.turned) for x, turn in zip((query, key), turns, strict=True))
        seen = at.seen(of_query[...], of_key[...], q, k, 0)
        scores = jnp.where(seen, _product(own, others, 1, 1) * at.size**-0.5, MASKED)
        before = largest[...]
        after = jnp.maximum(before, scores.max(axis=1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - after), 0.0)
        kept = jnp.exp(before - after)
        largest[...] = after
        weight[...] = kept * weight[...] + weights.sum(axis=1, keepdims=True)
        mixed[...] = kept * mixed[...] + _product(weights.astype(value.dtype), value[...], 1, 0)

    @pl.when(j == at.steps(back=False) - 1)
    def _() -> None:
        # A query that sees nothing has weight 0, and attends to zeros.
        some = jnp.where(weight[...] > 0, weight[...], 1.0)
        out[...] = (mixed[...] / some).astype(out.dtype)
        total[...] = jnp.broadcast_to(largest[...] + jnp.log(some), (some.shape[0], LANES)).T[:1]


def _backward_kernel(
    at: _Steps,
    of_query,
    of_key,
    turns,
    query,
    key,
    value,
    out,
    slope,
    total,
    of_queries,
    of_keys,
    of_values,
    queries,
    keys,
    values,
) -> None:
    # Scores lie [keys, queries] here: all that is known of a query lies along the lanes then, and only one product needs a
    # transposed matrix.
    j, q, k, exists = at.there(back=True)
    turns, ordered = turns or (None, None), at.span is not None
    slot = q % queries.shape[0]

    @pl.when(j == 0)
    def _() -> None:
        keys[...] = jnp.zeros_like(keys)
        values[...] = jnp.zeros_like(values)

    @pl.when(exists & ((k == 0) | (ordered & (j == at.steps(back=True) - 1))))
    def _() -> None:
        queries[slot] = jnp.zeros(queries.shape[1:], queries.dtype)

    @pl.when(exists)
    def _() -> None:
        own, others = (_turned(x[...], turn, at.turned) for x, turn in zip((query, key), turns, strict=True))
        seen = at.seen(of_query[...], of_key[...], q, k, 1)
        scores = jnp.where(seen, _product(others, own, 1, 1) * at.size**-0.5, MASKED)
        weights = jnp.where(seen, jnp.exp(scores - total[...]), 0.0)
        dropped = slope[...].astype(jnp.float32) * out[...].astype(jnp.float32)
        drop = _product(jnp.ones((8, at.lanes)), dropped, 1, 1)[:1]
        slopes = weights * (_product(value[...], slope[...], 1, 1) - drop) * at.size**-0.5
        slopes = slopes.astype(query.dtype)
        values[...] += _product(weights.astype(slope.dtype), slope[...], 1, 0)
        keys[...] += _product(slopes, own, 1, 0)
        queries[slot] += _product(slopes, others, 0, 0)

    @pl.when(j == at.steps(back=True) - 1)
    def _() -> None:
        of_keys[...] = _turned(keys[...], turns[1], at.turned, -1).astype(of_keys.dtype)
        of_values[...] = values[...].astype(of_values.dtype)

    @pl.when(exists & ((j == 0) if ordered else (k == at.count[1] - 1)))
    def _() -> None:
        of_queries[...] = _turned(queries[slot], turns[0], at.turned, -1).astype(of_queries.dtype)


def _parts(arrays: tuple[jax.Array, ...], at: _Steps) -> list[jax.Array]:
    return [arrays[number] for number, _ in at.where]


def _forward(arrays: tuple[jax.Array, ...], told: Told, turns: Turns, at: _Steps) -> tuple[jax.Array, jax.Array]:
    """Returns outputs [N, H * lanes] and the logarithm of each query's sum of weights, float32 [H, 1, N]."""
    specs, length, tall = at.specs(back=False), at.block[0] * at.count[0], (at.block[0], 1)
    width, dtype = at.heads * at.lanes, arrays[0].dtype
    return at.call(
        _forward_kernel,
        back=False,
        in_specs=[specs["tall"][0], specs["flat"][1], turns and specs["turns"], *specs["parts"]],
        out_specs=[at.heads_of(0, 0, back=False), specs["total"]],
        out_shape=[jax.ShapeDtypeStruct((length, width), dtype), jax.ShapeDtypeStruct((at.heads, 1, length), jnp.float32)],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in (tall, tall, (at.block[0], at.lanes))],
        name="flash_forward",
    )(*told, turns, *_parts(arrays, at))


def _backward(
    arrays: tuple[jax.Array, ...], told: Told, turns: Turns, out: jax.Array, total: jax.Array, slope: jax.Array, at: _Steps
) -> list[jax.Array]:
    """Returns the slopes of queries, keys and values, [N, H * lanes] or [M, H * lanes] each."""
    specs, own = at.specs(back=True), at.heads_of(0, 0, back=True)

    def written(h: jax.Array, i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The slopes of a block of queries are whole with its last keys: its own, where there is an order; else the last.
        return (jnp.where(i == at.count[1] - 1, j, 0) if at.span is None else i), h

    kept = at.count[0] if at.span is None else at.span
    if kept * at.block[0] * at.lanes * 4 > ROOM:
        raise ValueError(
            f"the slopes of {kept * at.block[0]} queries that see the same key, heads of {at.lanes}: at most "
            f"{ROOM // (4 * at.lanes)} fit; give rows fewer tokens, or a reach"
        )
    shapes = [(at.block[w], at.lanes) for w in (0, 1, 1)]
    return at.call(
        _backward_kernel,
        back=True,
        in_specs=[specs["flat"][0], specs["tall"][1], turns and specs["turns"], *specs["parts"], own, own, specs["total"]],
        out_specs=[pl.BlockSpec(shapes[0], written), *[at.heads_of(1, 0, back=True)] * 2],
        out_shape=[jax.ShapeDtypeStruct((at.block[w] * at.count[w], at.heads * at.lanes), arrays[0].dtype) for w in (0, 1, 1)],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in ((kept, *shapes[0]), *shapes[1:])],
        name="flash_backward",
    )(*(x.T for x in told), turns, *_parts(arrays, at), out, slope, total)
