"""Attention whose keys and values are values: they come from the same tokens, or out of a cache, through one function."""

import functools
import math
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from modules.compute import product

MASKED = -1e30
CHUNK = 80


class KeyValues(NamedTuple):
    """key, value: [H, N, D/H], one layer's."""

    key: jax.Array
    value: jax.Array


class Relative(NamedTuple):
    """What the time between adds to scores: score [H, Q, window] by distance, distance int32 [Q, N] of each query and key."""

    score: jax.Array
    distance: jax.Array


class Prefix(NamedTuple):
    """What stands before all tokens, for each query its own: query [H, Q, D/H]; memory's arrays are [Q, H, P, D/H], or
    [1, H, P, D/H] where all queries have the same.

    The query is given apart because a prefix has no time: nothing of the token's own time may turn it.
    """

    query: jax.Array
    memory: KeyValues


def rotation(time: jax.Array, size: int, longest: int) -> tuple[jax.Array, jax.Array]:
    """Returns cos and sin [N, size/4] of rotary angles (RoFormer, arXiv 2104.09864) of integer times [N].

    Periods are whole numbers from 4 to `longest`, so that angles are exact however late the time is.
    """
    count = max(size // 4, 1)
    periods = jnp.asarray(np.geomspace(4, max(longest, 4), count).round().astype(np.int32))
    angle = 2 * jnp.pi * (time[:, None] % periods).astype(jnp.float32) / periods
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Returns [H, N, size] with pairs of its first half turned by their time's angle.

    The other half stays, so that what was said long ago can be found by what it says, whatever the time between.
    """
    count = cos.shape[-1]
    a, b, rest = x[..., :count], x[..., count : 2 * count], x[..., 2 * count :]
    turned = (a * cos - b * sin, a * sin + b * cos)
    return jnp.concatenate([*(part.astype(x.dtype) for part in turned), rest], axis=-1)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """Returns [H, N, D/H] from [N, D]."""
    return jnp.swapaxes(x.reshape(x.shape[0], heads, -1), 0, 1)


def join_heads(x: jax.Array) -> jax.Array:
    """Returns [..., N, D] from [..., H, N, D/H]."""
    x = jnp.swapaxes(x, -3, -2)
    return x.reshape(*x.shape[:-2], -1)


def distance_waves(longest: int, size: int) -> np.ndarray:
    """Returns float32 [longest, size]: sines, then cosines, of the distances 0, 1, ... (arXiv 1706.03762, section 3.5)."""
    frequency = 10_000.0 ** -(np.arange(size // 2) / max(size // 2, 1))
    angle = np.arange(longest)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


def score_distances(query: jax.Array, projection: jax.Array, waves: jax.Array) -> jax.Array:
    """Returns [H, Q, W]: what queries [H, Q, D/H] say of the distances whose features are waves [W, D], projected by [D, D].

    Transformer-XL's terms b and d (arXiv 1901.02860, section 3.3), its position bias added to the query before. Many queries
    project the waves, few are projected themselves, whichever takes fewer operations.
    """
    heads, _, size = query.shape
    by_head = projection.reshape(projection.shape[0], heads, size)
    return jnp.einsum("hqc,dhc,wd->hqw", query * size**-0.5, by_head, waves, optimize="optimal")


def attend(
    query: jax.Array,
    memory: KeyValues,
    mask: jax.Array,
    relative: Relative | None = None,
    prefix: Prefix | None = None,
    more: KeyValues | None = None,
) -> jax.Array:
    """Returns [Q, D] from queries [H, Q, D/H] over keys and values [H, N, D/H] where mask [Q, N] allows, and over the prefix.

    more: M keys and values that stand elsewhere and come after the memory's in mask and relative, which are then [Q, N + M]:
    joining the two would copy them.
    """
    # Scores and sums are float32 whatever the precision of queries, keys and values.
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scale, parts, first = query.shape[-1] ** -0.5, [], 0
    for each in (memory,) if more is None else (memory, more):
        own = slice(first, first := first + each.key.shape[1])
        scores = product("hqd,hnd->hqn", query * scale, each.key)
        if relative is not None:
            distance = relative.distance[None, :, own]
            scores = scores + jnp.take_along_axis(relative.score, distance, axis=-1, mode="clip")
        parts.append((jnp.where(mask[:, own], scores, MASKED), "hqn,hnd->hqd", each.value))
    if prefix is not None:
        scores = product("hqd,qhpd->hqp", prefix.query * scale, prefix.memory.key)
        parts.append((scores, "hqp,qhpd->hqd", prefix.memory.value))
    largest = functools.reduce(jnp.maximum, [scores.max(axis=-1, keepdims=True) for scores, _, _ in parts])
    mixed, total = 0.0, 0.0
    for scores, mixing, value in parts:
        weights = jnp.exp(scores - jax.lax.stop_gradient(largest))
        mixed, total = mixed + product(mixing, weights.astype(value.dtype), value), total + weights.sum(axis=-1, keepdims=True)
    return join_heads((mixed / total).astype(query.dtype))


def attend_in_order(
    query: jax.Array,
    memory: KeyValues,
    mask: jax.Array,
    reach: int | None = None,
    relative: Relative | None = None,
    prefix: Prefix | None = None,
) -> jax.Array:
    """Returns what `attend` does, for tokens that see none after them and none more than `reach` places back (None: any).

    Works chunk by chunk over the keys that a chunk can see at all, so that the rest is never computed.
    """
    length = query.shape[1]
    parts = []
    for start in range(0, length, CHUNK):
        stop, first = min(start + CHUNK, length), 0 if reach is None else max(start - reach, 0)
        seen = KeyValues(memory.key[:, first:stop], memory.value[:, first:stop])
        far = relative and Relative(relative.score[:, start:stop], relative.distance[start:stop, first:stop])
        own = prefix and Prefix(prefix.query[:, start:stop], KeyValues(*(each[start:stop] for each in prefix.memory)))
        parts.append(attend(query[:, start:stop], seen, mask[start:stop, first:stop], far, own))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def attend_own(query: jax.Array, memory: KeyValues) -> jax.Array:
    """Returns [Q, D] from queries [H, Q, D/H], each over keys and values of its own: memory's arrays are [Q, H, P, D/H],
    or [1, H, P, D/H] where all queries have the same."""
    scores = jnp.einsum("hqd,qhpd->qhp", query, memory.key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    mixed = jnp.einsum("qhp,qhpd->qhd", jax.nn.softmax(scores, axis=-1).astype(memory.value.dtype), memory.value)
    return mixed.reshape(mixed.shape[0], -1)


def pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """Returns x[index], [M, ...] from [N, ...] by index [M]; zeros where it is negative.

    Its gradient is a product with one-hot rows, as that of a gather is a scatter, which TPUs are not made for.
    """
    # Worked out here, so that an index that stands in numpy is none of what the gradient keeps.
    return _pick(x, jnp.maximum(index, -1))


@jax.custom_vjp
def _pick(x: jax.Array, index: jax.Array) -> jax.Array:
    there = (index >= 0).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(there, x[jnp.maximum(index, 0)], 0)


def _picked(x: jax.Array, index: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Only the shape of x is needed; the array is not kept, as an empty part of it says as much.
    return _pick(x, index), (x[..., :0] if x.ndim > 1 else x, index)


def _picked_from(kept: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, None]:
    shape, index = kept
    chosen = jax.nn.one_hot(index, shape.shape[0], dtype=slope.dtype, axis=0)
    # Not -1, which nothing can be divided into where no index is given.
    flat = jnp.matmul(chosen, slope.reshape(slope.shape[0], math.prod(slope.shape[1:])), precision=jax.lax.Precision.HIGHEST)
    return flat.reshape(shape.shape[0], *slope.shape[1:]), None


_pick.defvjp(_picked, _picked_from)


class Linear(hk.Module):
    """A linear layer without bias, its initial variance scaled by `scale` over the width it reads."""

    def __init__(self, size: int, name: str, scale: float = 1.0):
        super().__init__(name=name)
        self._size, self._scale = size, scale

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [..., size] from [..., C]."""
        init = hk.initializers.VarianceScaling(self._scale)
        return product(x, hk.get_parameter("w", (x.shape[-1], self._size), x.dtype, init=init))


def norm(name: str) -> hk.RMSNorm:
    """Returns the normalisation that stands before every block."""
    return hk.RMSNorm(axis=-1, eps=1e-6, name=name)


def normed(name: str, x: jax.Array) -> jax.Array:
    """Returns x normalised, worked out in float32."""
    return norm(name)(x.astype(jnp.float32)).astype(x.dtype)
