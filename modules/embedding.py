"""Token embedding: integers in, one vector a token out, however many scalars the token sums over."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

SHARPNESS = (0.0, 4.0, 6.0)
FREQUENCIES = (0.5, 1.0, 2.0, 4.0, 8.0)


def bin_features(bins: int) -> np.ndarray:
    """Returns float32 [bins, features] of the bin centres in [-1, 1]: the value bent by several inverse companding
    curves, and its Fourier features.

    A table alone would have to meet every bin in training; with these, neighbouring bins start out alike.
    """
    centre = (np.arange(bins) + 0.5) * 2 / bins - 1
    bent = [centre if s == 0 else np.sign(centre) * np.expm1(s * np.abs(centre)) / np.expm1(s) for s in SHARPNESS]
    waves = [wave(np.pi * f * centre) for f in FREQUENCIES for wave in (np.sin, np.cos)]
    return np.stack([np.ones(bins), *bent, *waves], axis=-1).astype(np.float32)


def log_features(count: jax.Array) -> jax.Array:
    """Returns float32 [N, features] of log(1 + count) for counts >= 0 (an age, a time): smooth, and without a largest one."""
    x = jnp.log1p(count.astype(jnp.float32))[:, None]
    waves = x * jnp.asarray([0.5, 1.0, 2.0, 4.0])
    return jnp.concatenate([jnp.ones_like(x), x, jnp.sin(waves), jnp.cos(waves)], axis=-1)


class TokenEmbedding(hk.Module):
    """Embeds atoms (row of the value table, field id) and sums them into tokens.

    An atom is `value * scale[field] + offset[field]`: the field's own scale keeps a sum of fields apart. Rows from `first_bin` on
    are bins of continuous values, and have `bin_features` beside their free part.
    """

    def __init__(self, rows: int, first_bin: int, bins: int, fields: int, width: int, name: str = "embedding"):
        super().__init__(name=name)
        self._shape = (rows, width)
        self._fields = (fields, width)
        features = np.zeros((rows, bin_features(bins).shape[1]), np.float32)
        features[first_bin : first_bin + bins] = bin_features(bins)
        self._features = features

    def __call__(self, row: jax.Array, field: jax.Array) -> jax.Array:
        """Returns [N, D] from rows and fields int32 [N, K]; atoms with a negative row are absent."""
        small = hk.initializers.RandomNormal(0.1)
        table = hk.get_parameter("table", self._shape, init=small)
        scale = hk.get_parameter("field_scale", self._fields, init=hk.initializers.RandomNormal(1.0))
        offset = hk.get_parameter("field_offset", self._fields, init=small)
        bend = hk.get_parameter("bins", (self._features.shape[1], self._shape[1]), init=hk.initializers.VarianceScaling())
        there = row >= 0
        row, field = jnp.maximum(row, 0), jnp.maximum(field, 0)
        value = table[row] + jnp.asarray(self._features)[row] @ bend
        atoms = jnp.where(there[..., None], value * scale[field] + offset[field], 0.0)
        return atoms.sum(axis=-2) * jax.lax.rsqrt(jnp.maximum(there.sum(axis=-1, keepdims=True), 1).astype(jnp.float32))
