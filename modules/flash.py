"""Attention without a matrix of scores, as a kernel for TPUs (FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2).

Who sees whom is told by two integers a token (see `modules.masks.spans`), so no mask is ever read from memory. A key block that
stands further back than `reach`, or after the queries, is never computed.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

MASKED = -1e30
BLOCK = 512
LANES = 128
NEVER = 2**30
"""A moment after all others, of places that only fill a block up."""


def flash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    now: jax.Array,
    until: jax.Array,
    reach: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns [H, N, D] from queries, keys and values [H, N, D]: token i sees token k <= i exactly if now[i] < until[k].

    now, until: int32 [N]; every token sees itself. reach: how many places back a token can see at most, None for any.
    """
    length = query.shape[1]
    block, blocks, span = blocks_of(length, reach)
    filling = block * blocks - length
    query, key, value = (jnp.pad(x, ((0, 0), (0, filling), (0, 0))) for x in (query, key, value))
    now, until = jnp.pad(now, (0, filling), constant_values=NEVER), jnp.pad(until, (0, filling), constant_values=NEVER + 1)
    return _attend(query, key, value, now[:, None], until[None], block, span, interpret)[:, :length]


def blocks_of(length: int, reach: int | None) -> tuple[int, int, int]:
    """Returns the tokens of a block, how many blocks hold so many tokens, and how many of them a block of queries sees."""
    block = min(BLOCK, LANES * math.ceil(length / LANES))
    blocks = math.ceil(length / block)
    return block, blocks, blocks if reach is None else min(blocks, math.ceil(reach / block) + 1)


def pairs(length: int, reach: int | None = None) -> int:
    """Returns how many pairs of tokens the kernel goes through, those that do not see each other among them."""
    block, blocks, span = blocks_of(length, reach)
    return block**2 * sum(min(i + 1, span) for i in range(blocks))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _attend(query, key, value, now, until, block: int, span: int, interpret: bool) -> jax.Array:
    return _forward(query, key, value, now, until, block, span, interpret)[0]


def _attend_forward(query, key, value, now, until, block: int, span: int, interpret: bool):
    out, total = _forward(query, key, value, now, until, block, span, interpret)
    return out, (query, key, value, now, until, out, total)


def _attend_backward(block: int, span: int, interpret: bool, kept, slope: jax.Array):
    return (*_backward(*kept, slope, block, span, interpret), None, None)


_attend.defvjp(_attend_forward, _attend_backward)


class _Blocks(NamedTuple):
    """How streams of `count` blocks of `block` tokens are gone through: step (head, i, j) pairs one block of queries with one of
    keys. All steps of an i follow each other: i is of queries, and j of the `span` key blocks up to theirs; or, `turned`, i is of
    keys and j of the query blocks from theirs on."""

    block: int
    size: int
    span: int
    count: int
    turned: bool = False

    def pair(self, i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the numbers of the query block and of the key block; one of them may not exist."""
        return (i + j, i) if self.turned else (i, i + j + 1 - self.span)

    def _number(self, which: int, i: jax.Array, j: jax.Array) -> jax.Array:
        # A block that is there already is not fetched again.
        return jnp.clip(self.pair(i, j)[which], 0, self.count - 1)

    def tokens(self, which: int, size: int) -> pl.BlockSpec:
        """Returns the blocks of an array [H, N, size] of queries (0) or keys (1)."""
        return pl.BlockSpec((None, self.block, size), lambda h, i, j: (h, self._number(which, i, j), 0))

    def specs(self) -> list[pl.BlockSpec]:
        """Returns the blocks of now [N, 1], until [1, N], and queries, keys, values [H, N, D]."""
        now = pl.BlockSpec((self.block, 1), lambda h, i, j: (self._number(0, i, j), 0))
        until = pl.BlockSpec((1, self.block), lambda h, i, j: (0, self._number(1, i, j)))
        return [now, until, *(self.tokens(which, self.size) for which in (0, 1, 1))]

    def scores(self, q: jax.Array, k: jax.Array, now, until, query, key) -> tuple[jax.Array, jax.Array]:
        """Returns scores [Q, K] of query block q and key block k, and which of them are seen."""
        shape = (self.block, self.block)
        row = q * self.block + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        column = k * self.block + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        scores = _product(query[...], key[...], 1, 1) * self.size**-0.5
        return scores, (column <= row) & (now[...] < until[...])

    def step(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns, inside a kernel, j, the pair of this step, and whether it exists."""
        j = pl.program_id(2)
        q, k = self.pair(pl.program_id(1), j)
        return j, q, k, (k >= 0) & (q < self.count)


def _product(a: jax.Array, b: jax.Array, over_a: int, over_b: int) -> jax.Array:
    return jax.lax.dot_general(a, b, (((over_a,), (over_b,)), ((), ())), preferred_element_type=jnp.float32)


def _forward_kernel(at: _Blocks, now, until, query, key, value, out, total, largest, weight, mixed) -> None:
    j, q, k, exists = at.step()

    @pl.when(j == 0)
    def _() -> None:
        largest[...] = jnp.full_like(largest, MASKED)
        weight[...] = jnp.zeros_like(weight)
        mixed[...] = jnp.zeros_like(mixed)

    @pl.when(exists)
    def _() -> None:
        scores, seen = at.scores(q, k, now, until, query, key)
        scores = jnp.where(seen, scores, MASKED)
        before = largest[...]
        after = jnp.maximum(before, scores.max(axis=1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - after), 0.0)
        kept = jnp.exp(before - after)
        largest[...] = after
        weight[...] = kept * weight[...] + weights.sum(axis=1, keepdims=True)
        mixed[...] = kept * mixed[...] + _product(weights.astype(value.dtype), value[...], 1, 0)

    @pl.when(j == at.span - 1)
    def _() -> None:
        out[...] = (mixed[...] / weight[...]).astype(out.dtype)
        total[...] = largest[...] + jnp.log(weight[...])


def _slopes(
    at: _Blocks, q: jax.Array, k: jax.Array, now, until, query, key, value, slope, total, drop
) -> tuple[jax.Array, jax.Array]:
    """Returns the weights [Q, K] and the slopes of the scores before their scaling."""
    scores, seen = at.scores(q, k, now, until, query, key)
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, scores, MASKED) - total[...]), 0.0)
    return weights, weights * (_product(slope[...], value[...], 1, 1) - drop[...]) * at.size**-0.5


def _query_kernel(at: _Blocks, now, until, query, key, value, slope, total, drop, out, summed) -> None:
    j, q, k, exists = at.step()

    @pl.when(j == 0)
    def _() -> None:
        summed[...] = jnp.zeros_like(summed)

    @pl.when(exists)
    def _() -> None:
        _, slopes = _slopes(at, q, k, now, until, query, key, value, slope, total, drop)
        summed[...] += _product(slopes.astype(key.dtype), key[...], 1, 0)

    @pl.when(j == at.span - 1)
    def _() -> None:
        out[...] = summed[...].astype(out.dtype)


def _key_kernel(at: _Blocks, now, until, query, key, value, slope, total, drop, of_key, of_value, keys, values) -> None:
    j, q, k, exists = at.step()

    @pl.when(j == 0)
    def _() -> None:
        keys[...] = jnp.zeros_like(keys)
        values[...] = jnp.zeros_like(values)

    @pl.when(exists)
    def _() -> None:
        weights, slopes = _slopes(at, q, k, now, until, query, key, value, slope, total, drop)
        values[...] += _product(weights.T.astype(slope.dtype), slope[...], 1, 0)
        keys[...] += _product(slopes.T.astype(query.dtype), query[...], 1, 0)

    @pl.when(j == at.span - 1)
    def _() -> None:
        of_key[...] = keys[...].astype(of_key.dtype)
        of_value[...] = values[...].astype(of_value.dtype)


def _call(kernel, at: _Blocks, heads: int, wide: int, **how):
    """Returns the kernel over all steps. wide: how many float32 sums of [block, D] it keeps, after those in `scratch_shapes`."""
    grid = (heads, at.count, at.span)
    how["scratch_shapes"] = [*how.get("scratch_shapes", ()), *[pltpu.VMEM((at.block, at.size), jnp.float32)] * wide]
    order = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))
    return pl.pallas_call(functools.partial(kernel, at), grid=grid, compiler_params=order, **how)


def _forward(query, key, value, now, until, block: int, span: int, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """Returns outputs [H, N, D] and the logarithm of each query's sum of weights, float32 [H, N, 1]."""
    heads, length, size = query.shape
    at = _Blocks(block, size, span, length // block)
    return _call(
        _forward_kernel,
        at,
        heads,
        1,
        in_specs=at.specs(),
        out_specs=[at.tokens(0, size), at.tokens(0, 1)],
        out_shape=[jax.ShapeDtypeStruct(query.shape, query.dtype), jax.ShapeDtypeStruct((heads, length, 1), jnp.float32)],
        scratch_shapes=[pltpu.VMEM((block, 1), jnp.float32)] * 2,
        interpret=interpret,
        name="flash_forward",
    )(now, until, query, key, value)


def _backward(query, key, value, now, until, out, total, slope, block: int, span: int, interpret: bool):
    """Returns the slopes of queries, keys and values."""
    heads, length, size = query.shape
    drop = jnp.sum(slope.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    arguments = (now, until, query, key, value, slope, total, drop)

    def call(kernel, turned: bool, outputs: int, name: str):
        at = _Blocks(block, size, span, length // block, turned)
        return _call(
            kernel,
            at,
            heads,
            outputs,
            in_specs=[*at.specs(), at.tokens(0, size), at.tokens(0, 1), at.tokens(0, 1)],
            out_specs=[at.tokens(int(turned), size)] * outputs,
            out_shape=[jax.ShapeDtypeStruct(query.shape, query.dtype)] * outputs,
            interpret=interpret,
            name=name,
        )(*arguments)

    (of_query,) = call(_query_kernel, False, 1, "flash_backward_queries")
    of_key, of_value = call(_key_kernel, True, 2, "flash_backward_keys")
    return of_query, of_key, of_value
