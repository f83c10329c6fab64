"""Embedding of image patches (A Generalist Agent, arXiv 2205.06175, section 2.2 and appendix C.2)."""

import math

import haiku as hk
import jax
import jax.numpy as jnp

from modules.attention import Linear, pick

INTERVALS = 128
GROUPS = 8


class PatchEmbedding(hk.Module):
    """Embeds patches: one pre-activation residual block (GroupNorm, GELU), plus what is learnt for its row and its column.

    Pixels are scaled to [-1, 1] and divided by the square root of the patch's side. The block's maps are dense over a patch: the
    paper does not give its kernels.
    """

    def __init__(self, channels: int, width: int, name: str = "patches"):
        super().__init__(name=name)
        self._channels, self._width = channels, width

    def __call__(self, pixels: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        """Returns [M, D] from uint8 [M, patch * patch * channels], and rows and columns int32 [M] in [0, 128)."""
        x = Linear(self._width, "pixels")(scaled(pixels, self._channels))
        y = Linear(self._width, "first")(jax.nn.gelu(group_norm(x, "norm_first")))
        x = x + Linear(self._width, "second")(jax.nn.gelu(group_norm(y, "norm_second")))
        for name, index in (("rows", row), ("columns", column)):
            x = x + pick(hk.get_parameter(name, (INTERVALS, self._width), init=hk.initializers.RandomNormal(0.3)), index)
        return x


def scaled(pixels: jax.Array, channels: int) -> jax.Array:
    """Returns float32 pixels [M, patch * patch * channels] from 0 to 255 brought to [-1, 1] and divided by sqrt(patch)."""
    side = math.isqrt(pixels.shape[-1] // channels)
    return (pixels.astype(jnp.float32) * (2 / 255) - 1) / math.sqrt(side)


def group_norm(x: jax.Array, name: str) -> jax.Array:
    """Returns x [M, D] with each of its groups of features brought to mean 0 and variance 1 (arXiv 1803.08494), then scaled and
    shifted feature by feature."""
    groups = math.gcd(x.shape[-1], GROUPS)
    parts = x.reshape(x.shape[0], groups, -1)
    parts = parts - parts.mean(axis=-1, keepdims=True)
    parts = parts * jax.lax.rsqrt(jnp.mean(jnp.square(parts), axis=-1, keepdims=True) + 1e-5)
    scale = hk.get_parameter(f"{name}_scale", x.shape[-1:], init=jnp.ones)
    return parts.reshape(x.shape) * scale + hk.get_parameter(f"{name}_shift", x.shape[-1:], init=jnp.zeros)
