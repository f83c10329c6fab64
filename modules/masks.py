"""Masks from integers. Nothing here knows what a tick or a plan is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Place(NamedTuple):
    """Where N tokens stand, as int32 [N].

    time: the moment of the token. index: its number among the tokens of its moment. segment: tokens see their own segment alone;
    0 marks a place with no token. order: rises along the stream. lasting: bool [N], whether tokens of later times may see this
    one.
    """

    time: jax.Array
    index: jax.Array
    segment: jax.Array
    order: jax.Array
    lasting: jax.Array


def may_see(query: Place, key: Place, window: int) -> jax.Array:
    """Returns bool [Q, N]: a query sees the keys of its segment, not after it, less than `window` moments old, and lasting
    unless of its own moment."""
    time_q, time_k = query.time[:, None], key.time[None, :]
    same = (query.segment[:, None] == key.segment[None, :]) & (key.segment > 0)[None, :]
    past = key.order[None, :] <= query.order[:, None]
    near = time_q - time_k < window
    present = key.lasting[None, :] | (time_q == time_k)
    return same & past & near & present


def spans(place: Place, window: int) -> tuple[jax.Array, jax.Array]:
    """Returns now and until, int32 [N]: token i of a stream sees token k <= i, by `may_see`, exactly if now[i] < until[k].

    For a stream in order, whose segments are contiguous and in order of time. `now` is time with its jumps cut to the window and
    a window between segments, so that one comparison tells segments, windows and lasting apart. An empty place sees itself.
    """
    jump = jnp.clip(jnp.diff(place.time, prepend=place.time[:1]), 0, window)
    other = jnp.diff(place.segment, prepend=place.segment[:1]) != 0
    now = jnp.cumsum(jnp.where(other, window, jump), dtype=jnp.int32)
    return now, now + jnp.where(place.lasting, window, 1)
