"""What a patch is embedded from: its pixels on their own scale, its row and its column."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hierarchy.corpus import codecs
from modules import patches
from modules.patches import PatchEmbedding, group_norm, scaled

SIDE, CHANNELS, WIDTH = 16, 3, 24
MODEL = hk.without_apply_rng(hk.transform(lambda *x: PatchEmbedding(CHANNELS, WIDTH)(*x)))


@pytest.fixture(scope="module")
def apply():
    pixels = np.zeros((1, SIDE * SIDE * CHANNELS), np.uint8)
    params = jax.jit(MODEL.init)(jax.random.key(0), pixels, np.zeros(1, int), np.zeros(1, int))
    call = jax.jit(MODEL.apply)
    return lambda pixels, row, column: np.asarray(call(params, pixels, np.array(row), np.array(column)))


def test_there_is_a_row_and_a_column_for_every_interval():
    assert patches.INTERVALS == codecs.INTERVALS


def test_pixels_lie_in_a_quarter_either_side_of_nothing():
    pixels = np.repeat(np.array([[0], [255], [51]], np.uint8), SIDE * SIDE * CHANNELS, axis=1)
    np.testing.assert_allclose(np.asarray(scaled(pixels, CHANNELS))[:, 0], [-0.25, 0.25, -0.15], atol=1e-6)
    np.testing.assert_allclose(np.asarray(scaled(pixels[:, : 8 * 8 * 3], 3))[:2, 0], np.array([-1, 1]) / np.sqrt(8), atol=1e-6)


def test_a_group_has_no_mean_and_a_variance_of_one():
    x = np.random.default_rng(0).normal(3, 5, (7, WIDTH)).astype(np.float32)
    normed = hk.without_apply_rng(hk.transform(lambda x: group_norm(x, "norm")))
    parts = np.asarray(normed.apply(normed.init(jax.random.key(0), x), x)).reshape(7, 8, 3)
    np.testing.assert_allclose(parts.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(parts.var(axis=-1), 1, atol=1e-3)


def test_rows_and_columns_add_and_pixels_are_read(apply):
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(2, SIDE * SIDE * CHANNELS), dtype=np.uint8)
    here = apply(pixels, [3, 3], [9, 9])
    for row, column in (([70, 70], [9, 9]), ([3, 3], [127, 127])):
        moved = apply(pixels, row, column) - here
        np.testing.assert_allclose(moved[0], moved[1], atol=1e-5)
        assert np.abs(moved).max() > 0.05
    assert np.abs(here[0] - here[1]).max() > 0.01


def test_every_pixel_counts(apply):
    params = jax.jit(MODEL.init)(jax.random.key(0), np.zeros((1, 768), np.uint8), np.zeros(1, int), np.zeros(1, int))
    one = jnp.zeros(1, int)
    slope = jax.grad(lambda x: MODEL.apply(params, x, one, one)[0, 0])(jnp.full((1, 768), 100.0))
    assert bool((slope != 0).all())
