"""What a stream has seen, and where new tokens are written to it."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from modules.attention import KeyValues
from modules.masks import Place


class Cache(NamedTuple):
    """What a stream has seen: places of N slots, each layer's keys and values, one round's after another's, and the number of
    tokens ever written."""

    place: Place
    layers: tuple[KeyValues, ...]
    written: jax.Array


class Run(NamedTuple):
    """Where tokens stand side by side in a cache: `count` of them, from slot `first` on."""

    first: jax.Array
    count: int


Slots = jax.Array | Sequence[Run]
"""Where Q tokens are written: a slot each, int32 [Q] (one past the end drops its token), or runs of them, in order. A run is
copied where it belongs, in place; slots one by one are scattered, which is many times slower on a CPU."""


def put(old: jax.Array, new: jax.Array, slots: Slots, axis: int) -> jax.Array:
    """Returns an array of a cache with the entries of new tokens at their slots, along `axis`."""
    if isinstance(slots, jax.Array):
        return old.at[(slice(None),) * axis + (slots,)].set(new, mode="drop")
    start = 0
    for first, count in slots:
        part = jax.lax.slice_in_dim(new, start, start + count, axis=axis)
        old, start = _put_run(old, part, first, axis), start + count
    return old


def _put_run(old: jax.Array, new: jax.Array, first: jax.Array, axis: int) -> jax.Array:
    """Returns `old` with `new` from index `first` of an axis on.

    JAX's own rule makes a scatter of a batch of these, which rewrites the whole array. Where all members of the batch have one
    `first` it is one update of them all, in place.
    """

    @jax.custom_batching.custom_vmap
    def write(old: jax.Array, new: jax.Array, first: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, first, axis)

    @write.def_vmap
    def write_all(size: int, batched: list[bool], old: jax.Array, new: jax.Array, first: jax.Array) -> tuple[jax.Array, bool]:
        old, new = (part if there else jnp.broadcast_to(part, (size, *part.shape)) for part, there in zip((old, new), batched))
        if not batched[2]:
            return _put_run(old, new, first, axis + 1), True
        return jax.vmap(lambda *parts: jax.lax.dynamic_update_slice_in_dim(*parts, axis))(old, new, first), True

    return write(old, new, first)
