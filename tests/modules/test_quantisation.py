"""Finite scalar quantisation: what values it takes, and which gradients pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modules.quantisation import quantise

LEVELS = (2, 3, 4, 8)
X = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32) * 3


def test_every_channel_takes_its_levels_alone_and_all_of_them():
    found = np.asarray(quantise(X, LEVELS))
    for channel, levels in enumerate(LEVELS * 2):
        np.testing.assert_allclose(np.unique(found[:, channel]), np.linspace(-1, 1, levels), atol=1e-6)


def test_it_is_the_nearest_level_of_the_bounded_value():
    found = np.asarray(quantise(X, LEVELS))
    for channel, levels in enumerate(LEVELS * 2):
        values = np.linspace(-1, 1, levels)
        nearest = values[np.abs(np.tanh(X[:, channel])[:, None] - values).argmin(axis=1)]
        np.testing.assert_allclose(found[:, channel], nearest, atol=1e-6)


def test_gradients_pass_as_if_nothing_were_rounded():
    mixed = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    found = jax.grad(lambda x: (quantise(x, LEVELS) * mixed).sum())(jnp.asarray(X))
    expected = jax.grad(lambda x: (jnp.tanh(x) * mixed).sum())(jnp.asarray(X))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_levels_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="3 levels for 8 channels"):
        quantise(X, (2, 3, 4))
