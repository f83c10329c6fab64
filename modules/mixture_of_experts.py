"""A feed-forward layer of many experts, each token going through a few of them (arXiv 1701.06538, 2101.03961).

Parameters grow with the experts, operations a token do not. Which experts a token goes to depends on that token alone, so a pass
over a cache sends it where the parallel pass does. Each expert has room for a fixed number of tokens, as arrays have a fixed
size: for all of them, or in training for fewer (`Compute.expert_capacity`), and what finds no room is left out and counted.
"""

import math
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from modules.compute import laid


class Routed(NamedTuple):
    """Where tokens went, as sums over the tokens of one stream: [..., E] and [...]; with a layer each in front from all layers.

    load: choices that fell on each expert. chance: its probability. square: the squared log-sum-exp of the router's logits.
    dropped: choices that found no room. tokens: how many there were.
    """

    load: jax.Array
    chance: jax.Array
    square: jax.Array
    dropped: jax.Array
    tokens: jax.Array


class Experts(hk.Module):
    """GEGLU blocks side by side, `chosen` of them for every token.

    hidden: size of each GEGLU half of one expert. capacity: an expert's room in even shares of the choices; 0 for room for every
    token. scale: of the initial variance of what is added.
    """

    def __init__(self, count: int, chosen: int, hidden: int, capacity: float, scale: float, name: str = "experts"):
        super().__init__(name=name)
        self._count, self._chosen, self._hidden, self._capacity, self._scale = count, chosen, hidden, capacity, scale

    def __call__(self, x: jax.Array, there: jax.Array) -> tuple[jax.Array, Routed]:
        """Returns what the experts make of tokens [N, D], each weighted by its share among the chosen; zero where `there`,
        bool [N], says that there is no token."""
        count, chosen, width = self._count, self._chosen, x.shape[1]
        first, second = (hk.initializers.TruncatedNormal(size) for size in (width**-0.5, (self._scale / self._hidden) ** 0.5))
        gate_up = hk.get_parameter("gate_up", (count, width, 2 * self._hidden), init=first)
        down = hk.get_parameter("down", (count, self._hidden, width), init=second)
        logits = hk.Linear(count, with_bias=False, name="router")(x.astype(jnp.float32))
        chance = jax.nn.softmax(logits)
        share, expert = jax.lax.top_k(chance, chosen)
        # Of one choice alone the share would be 1 whatever the router says, and teach it nothing: its chance stands for it.
        share = share / jnp.sum(share, axis=-1, keepdims=True) if chosen > 1 else share
        load, choice, taken = grouped(expert, there, count, self._room(x.shape[0]))
        token, share = choice // chosen, jnp.where(taken, share.reshape(-1)[choice], 0.0)
        mine = laid(x[token], "experts", None, None)
        gate, up = (laid(part, "experts", None, "hidden") for part in jnp.split(mine @ gate_up, 2, axis=-1))
        y = laid((jax.nn.gelu(gate) * up) @ down, "experts", None, None).astype(jnp.float32) * share[..., None]
        out = jnp.zeros(x.shape, jnp.float32).at[token].add(y)
        used = there.astype(jnp.float32)
        square = jnp.sum(jnp.square(jax.nn.logsumexp(logits, axis=-1)) * used)
        routed = Routed(load, jnp.sum(chance * used[:, None], axis=0), square, jnp.sum(load) - jnp.sum(taken), jnp.sum(used))
        return out.astype(x.dtype), jax.tree.map(lambda part: part.astype(jnp.float32), routed)

    def _room(self, tokens: int) -> int:
        # A token chooses an expert once: more than its number is never needed.
        return min(math.ceil(self._capacity * tokens * self._chosen / self._count), tokens) if self._capacity else tokens


def grouped(expert: jax.Array, there: jax.Array, count: int, room: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns each expert's load, int32 [E], and the choices [N, k] of tokens by expert: int32 [E, room], numbers of token * k +
    rank, the first that came; and which of these places hold one. Tokens that are not there take no room."""
    key = jnp.where(there[:, None], expert, count).reshape(-1)
    order = jnp.argsort(key, stable=True)
    load = jnp.sum(key[:, None] == jnp.arange(count), axis=0, dtype=jnp.int32)
    place, first = jnp.arange(room)[None, :], (jnp.cumsum(load) - load)[:, None]
    return load, order[jnp.minimum(first + place, key.size - 1)], place < load[:, None]
