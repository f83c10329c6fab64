"""Token embedding: integers in, one vector a token out, however many scalars the token sums over."""

import functools
import math
from collections.abc import Sequence
from types import ModuleType

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from modules.attention import pick
from modules.compute import gathered, product

SHARPNESS = (0.0, 4.0, 6.0)
POSITIONS = 64
FREQUENCIES = (0.5, 1.0, 2.0, 4.0, 8.0)


def bin_features(bins: int) -> np.ndarray:
    """Returns float32 [bins, features] of the bin centres in [-1, 1]: the value bent by several inverse companding
    curves, and its Fourier features.

    A table alone would have to meet every bin in training; with these, neighbouring bins start out alike.
    """
    return curves((np.arange(bins) + 0.5) * 2 / bins - 1, np).astype(np.float32).T


def curves(centre: np.ndarray | jax.Array, of: ModuleType) -> np.ndarray | jax.Array:
    """Returns [features, ...], what `bin_features` has of centres, worked out by numpy or by JAX."""
    bent = [centre if s == 0 else of.sign(centre) * of.expm1(s * of.abs(centre)) / math.expm1(s) for s in SHARPNESS]
    waves = [wave(math.pi * f * centre) for f in FREQUENCIES for wave in (of.sin, of.cos)]
    return of.stack([of.ones_like(centre), *bent, *waves])


def row_features(names: int, bins: int) -> np.ndarray:
    """Returns float32 [rows, features] of all rows: names, which have the constant alone, bins, and three more like names."""
    features = bin_features(bins)
    constant = np.eye(1, features.shape[1], dtype=np.float32)
    return np.concatenate([constant.repeat(names, 0), features, constant.repeat(3, 0)])


def head_features(bins: int, waves: int = 16) -> np.ndarray:
    """Returns float32 [bins, features] that logits over bins are made of: Fourier features of the bin centres up to `waves` half
    turns, powers, and the two outermost bins by themselves, where saturated values gather."""
    centre = (np.arange(bins) + 0.5) * 2 / bins - 1
    parts = [wave(np.pi / 2 * f * centre) for f in range(1, waves + 1) for wave in (np.sin, np.cos)]
    ends = [np.arange(bins) == 0, np.arange(bins) == bins - 1]
    return np.stack([centre, centre**2, *parts, *ends], axis=-1).astype(np.float32)


class BinHead(hk.Module):
    """Logits over bins of continuous values, smooth along the bins: what is learnt about one bin holds for its neighbours."""

    def __init__(self, bins: int, name: str):
        super().__init__(name=name)
        self._features = head_features(bins)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits [M, bins] from outputs [M, D]."""
        bins, count = self._features.shape
        bias = hk.get_parameter("bias", (bins,), init=jnp.zeros)
        small = hk.initializers.VarianceScaling(0.01)
        return hk.Linear(count, w_init=small, name="weights")(x) @ jnp.asarray(self._features).T + bias


def log_features(count: jax.Array) -> jax.Array:
    """Returns float32 [N, features] of log(1 + count) for counts (an age, a time), mirrored below 0: smooth, without largest."""
    count = count.astype(jnp.float32)
    x = (jnp.sign(count) * jnp.log1p(jnp.abs(count)))[:, None]
    waves = x * jnp.asarray([0.5, 1.0, 2.0, 4.0])
    return jnp.concatenate([jnp.ones_like(x), x, jnp.sin(waves), jnp.cos(waves)], axis=-1)


def atoms(row: jax.Array, table: jax.Array) -> jax.Array:
    """Returns features [N, K, C] of atoms of rows int32 [N, K] in a table [rows, C]; 0 where there is none.

    A value that is a token of its own is embedded alike in every field, and its field only adds to it: what is learnt about
    copying one is learnt about all, so it has the constant alone. Values in a sum need matrices of their own to be told apart.
    """
    there = row >= 0
    features = jnp.where(there[..., None], table[jnp.maximum(row, 0)], 0.0)
    alone = there.sum(axis=-1) == 1
    return jnp.where(alone[:, None, None], features * jnp.eye(1, table.shape[1]), features)


def product_by_field(row: jax.Array, field: jax.Array, matrix: jax.Array, table: jax.Array, own: np.ndarray) -> jax.Array:
    """Returns [N, D], the sums over atoms [N, K] of features times their fields' own matrices [fields, C, D]. own: the fields
    that there may be.

    Features are brought to their fields instead of matrices to atoms, so that the gradient is a product and not a scatter.
    """
    place = np.zeros(len(matrix), np.int32)
    place[own] = np.arange(len(own))
    token, (_, count, size) = jnp.arange(row.shape[0])[:, None], matrix.shape
    by_field = jnp.zeros((row.shape[0], len(own), count))
    by_field = by_field.at[token, jnp.asarray(place)[jnp.maximum(field, 0)]].add(atoms(row, table))
    return product(by_field.reshape(row.shape[0], -1), matrix[own].reshape(-1, size))


def sum_of_products(row: jax.Array, field: jax.Array, matrix: jax.Array, names: int, bins: int) -> jax.Array:
    """Returns what `product_by_field` does with the table of `row_features`, one feature after another.

    A TPU has no gather or scatter to speak of, and an array whose last dimension is a dozen features is laid out anew number by
    number, in as much code. On a CPU this takes twice as long.
    """
    there, number = row >= 0, (row >= names) & (row < names + bins)
    alone = there.sum(axis=-1, keepdims=True) == 1
    made = curves((row - names + 0.5) * 2 / bins - 1, jnp)
    constant = jnp.arange(len(made))[:, None, None] == 0
    value = jnp.where(there & (constant | (number & ~alone)), made, 0.0)
    which = jax.nn.one_hot(jnp.where(there, field, -1), matrix.shape[0])

    def add(x: jax.Array, feature: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        value, own = feature
        return x + jnp.einsum("nk,nkf->nf", value, which) @ own, None

    return jax.lax.scan(add, jnp.zeros((len(row), matrix.shape[2])), (value, jnp.swapaxes(matrix, 0, 1)))[0]


class TokenEmbedding(hk.Module):
    """Embeds atoms (row of the value table, field id) and sums them into tokens.

    An atom is what its field's own matrix makes of the features of its value; alone in its token, what one shared matrix makes of
    it. A value that is a name and not a number (text, discrete, separator) adds a learnt row. Continuous bins have no free rows:
    scattering a gradient into them is most of a training step on a CPU, and neighbouring bins ought to be alike.
    """

    def __init__(
        self,
        names: int,
        bins: int,
        fields: int,
        lookups: int,
        width: int,
        own: Sequence[int] = (),
        name: str = "embedding",
    ):
        """names: rows [0, names) are names; `bins` rows of bins follow, then the separator's, then two of what is its field
        alone: an image patch, and an action element whose value is not known. lookups: names that one token may have, which
        come before its other atoms. own: the fields that tokens may have, none for all: many at once take a product over these,
        which with many layouts are the smaller part."""
        super().__init__(name=name)
        self._features = row_features(names, bins)
        self._names, self._bins, self._fields, self._lookups, self._width = names, bins, fields, lookups, width
        self._own = np.asarray(own or range(fields), np.int32)

    def __call__(self, row: jax.Array, field: jax.Array, index: jax.Array) -> jax.Array:
        """Returns [N, D] from rows and fields int32 [N, K]; atoms with a negative row are absent.

        index: int32 [N], a token's number in its moment. Words, which share a field, are told apart by it.
        """
        count, size = self._features.shape[1], self._width
        small = hk.initializers.RandomNormal(0.3)
        rows = self._table()
        matrix = hk.get_parameter("fields", (self._fields, count, size), init=small)
        shared = hk.get_parameter("shared", (count, size), init=small)
        there = row >= 0
        alone = there.sum(axis=-1) == 1
        table = jnp.asarray(self._features)
        if row.shape[1] == 1:
            # One value a token: its field only adds to it.
            x = pick(matrix[:, 0], jnp.where(there, field, -1)[:, 0])
        elif row.shape[0] > 8:
            x = jax.lax.platform_dependent(
                *(row, field, matrix),
                tpu=functools.partial(sum_of_products, names=self._names, bins=self._bins),
                default=functools.partial(product_by_field, table=table, own=self._own),
            )
        else:
            x = jnp.einsum("nkc,nkcd->nd", atoms(row, table), matrix[jnp.maximum(field, 0)])
        x = x + jnp.where(alone[:, None], table[jnp.maximum(row.max(axis=1), 0)] @ shared, 0.0)
        separator = row == self._names + self._bins
        x = x + jnp.any(separator, axis=1)[:, None] * rows[self._names]
        first = row[:, : self._lookups]
        named = (first >= 0) & (first < self._names)
        x = x + jnp.where(named[..., None], rows[jnp.where(named, first, 0)], 0.0).sum(axis=1)
        word = named[:, 0] & alone
        position = hk.get_parameter("positions", (POSITIONS, size), init=hk.initializers.RandomNormal(1.0))
        x = x + pick(position, jnp.where(word, jnp.minimum(index, POSITIONS - 1), -1))
        return x * jax.lax.rsqrt(jnp.maximum(there.sum(axis=-1, keepdims=True), 1).astype(jnp.float32))

    def logits(self, x: jax.Array, names: int) -> jax.Array:
        """Returns logits [M, names] of the first names from outputs [M, D]: how well each fits the row that embeds the name
        (arXiv 1608.05859). Scaled so that they start out of size 1."""
        bias = hk.get_parameter("bias", (names,), init=jnp.zeros)
        rows = gathered(self._table()[:names].astype(x.dtype), ("classes", "width"))
        return jnp.matmul(x * self._width**-0.5, rows.T, preferred_element_type=jnp.float32) + bias

    def _table(self) -> jax.Array:
        return hk.get_parameter("names", (self._names + 1, self._width), init=hk.initializers.RandomNormal(1.0))
