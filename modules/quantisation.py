"""Finite scalar quantisation (arXiv 2309.15505): every number takes one of a few values, and there is no codebook to learn."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def quantise(x: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Returns x [..., D] bounded by tanh and rounded: channel c to levels[c % len(levels)] evenly spaced values from -1 to 1.

    Gradients pass the rounding as if it were not there (straight through), and so are those of tanh. An even number of levels
    lies symmetrically about 0, where the paper shifts it to hold 0.

    Raises:
        ValueError: the channels are not a whole number of times the levels.
    """
    channels = x.shape[-1]
    if channels % len(levels):
        raise ValueError(f"{len(levels)} levels for {channels} channels: make one a whole multiple of the other")
    steps = jnp.asarray(np.resize(np.asarray(levels, np.float32) - 1, channels))
    place = (jnp.tanh(x) + 1) / 2 * steps
    # The difference of nearby numbers is exact, so that the sum is the whole number itself.
    place = place + jax.lax.stop_gradient(jnp.round(place) - place)
    return 2 * place / steps - 1
