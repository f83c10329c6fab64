"""Tokens are sums of atoms; neighbouring bins start out alike; the two ways of the embedding are one."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modules.embedding import TokenEmbedding, bin_features, log_features, product_by_field, row_features, sum_of_products

NAMES, BINS, FIELDS, WIDTH = 10, 64, 7, 12
SEPARATOR = NAMES + BINS


def embed(row, field, index):
    return TokenEmbedding(NAMES, BINS, FIELDS, 2, WIDTH)(row, field, index)


MODEL = hk.without_apply_rng(hk.transform(embed))


@pytest.fixture(scope="module")
def apply():
    row = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(MODEL.init)(jax.random.key(0), row, row, row[:, 0])
    call = jax.jit(MODEL.apply)

    def embedded(row, field, index=None):
        index = np.zeros(len(row), np.int32) if index is None else index
        return np.asarray(call(params, jnp.asarray(row), jnp.asarray(field), jnp.asarray(index)))

    return embedded


def tokens(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of 1 to 4 atoms, names first, each atom of a field of its own."""
    rng = np.random.default_rng(0)
    row = np.stack([np.sort(rng.integers(0, SEPARATOR + 1, 4)) for _ in range(count)]).astype(np.int32)
    row[np.sort(row, axis=1).argsort(axis=1) > rng.integers(1, 4, count)[:, None]] = -1
    row[:, 2:][(row[:, 2:] >= 0) & (row[:, 2:] < NAMES)] += NAMES
    field = np.stack([rng.permutation(FIELDS)[:4] for _ in range(count)]).astype(np.int32)
    return row, np.where(row < 0, -1, field)


def test_many_tokens_at_once_are_embedded_as_each_alone(apply):
    row, field = tokens(20)
    alone = np.concatenate([apply(row[i : i + 1], field[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(apply(row, field), alone, atol=1e-5)


def test_a_tpu_and_others_embed_alike():
    """Only one of the two is ever run by the tests of anything else."""
    row, field = tokens(200)
    rng = np.random.default_rng(1)
    table = row_features(NAMES, BINS)
    matrix, weight = (rng.normal(size=size).astype(np.float32) for size in ((FIELDS, table.shape[1], 3), (200, 3)))

    def graded(way):
        return jax.value_and_grad(lambda matrix: jnp.sum(weight * way(row, field, matrix)))(matrix)

    one, slope = graded(functools.partial(sum_of_products, names=NAMES, bins=BINS))
    other, other_slope = graded(functools.partial(product_by_field, table=table, own=np.arange(FIELDS)))
    assert abs(float(other)) > 1
    np.testing.assert_allclose(one, other, rtol=1e-5)
    np.testing.assert_allclose(slope, other_slope, atol=1e-4)


def test_fields_that_no_token_has_may_be_left_out():
    """Values, and gradients of all parameters; a field that is left out all the same is told by a mutant."""
    row, field = tokens(40)
    own = (1, 4, 6, 2)
    field = np.where(row < 0, -1, np.array([1, 4, 6, 2])[np.argsort(np.argsort(field, axis=1), axis=1)])

    def graded(own):
        embed = functools.partial(TokenEmbedding, NAMES, BINS, FIELDS, 2, WIDTH, own)
        model = hk.without_apply_rng(hk.transform(lambda: embed()(row, field, row[:, 0])))
        params = model.init(jax.random.key(0))
        weight = np.random.default_rng(1).normal(size=(40, WIDTH))
        return jax.value_and_grad(lambda params: jnp.sum(weight * model.apply(params)))(params)

    (one, slopes), (other, other_slopes), (wrong, _) = graded(own), graded(()), graded((1, 4, 2))
    np.testing.assert_allclose(one, other, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), slopes, other_slopes)
    assert abs(wrong - one) > 0.1


def test_a_token_is_the_scaled_sum_of_its_atoms(apply):
    a, b, c = (NAMES + 3, 2), (NAMES + 50, 5), (NAMES + 20, 1)

    def total(*atoms):
        row, field = np.full((2, 1, 4), -1)
        row[0, : len(atoms)], field[0, : len(atoms)] = zip(*atoms)
        return apply(row, field) * np.sqrt(len(atoms))

    np.testing.assert_allclose(total(a, b, c) * 2, total(a, b) + total(b, c) + total(a, c), atol=1e-5)


def test_a_value_alone_is_embedded_alike_in_every_field_but_for_what_the_field_adds(apply):
    rows = np.array([[NAMES + 3, -1, -1, -1], [NAMES + 50, -1, -1, -1]])
    here, there = (apply(rows, np.where(rows < 0, -1, field)) for field in (2, 5))
    np.testing.assert_allclose(here[0] - here[1], there[0] - there[1], atol=1e-5)
    assert np.abs(here - there).max() > 0.1


def test_absent_atoms_and_empty_tokens_are_nothing(apply):
    nothing = np.full((1, 4), -1)
    np.testing.assert_array_equal(apply(nothing, nothing), np.zeros((1, WIDTH)))


def test_neighbouring_bins_start_out_alike_and_far_ones_do_not(apply):
    row = np.full((BINS, 4), -1)
    row[:, 0] = NAMES + np.arange(BINS)
    field = np.where(row < 0, -1, 1)
    x = apply(row, field)
    near = np.linalg.norm(np.diff(x, axis=0), axis=-1).max()
    far = np.linalg.norm(x[0] - x[-1])
    assert near < 0.5 * far


def test_one_value_in_two_fields_is_two_things(apply):
    row = np.full((1, 4), -1)
    row[:, 0] = NAMES + 20
    ones = [apply(row, np.where(row < 0, -1, field)) for field in (1, 2)]
    assert np.abs(ones[0] - ones[1]).max() > 0.1


def test_a_word_is_told_from_the_same_word_elsewhere_and_a_number_is_not(apply):
    row = np.array([[4, -1, -1, -1]])
    field = np.where(row < 0, -1, 1)
    assert np.abs(apply(row, field, np.array([0])) - apply(row, field, np.array([1]))).max() > 0.1
    number = np.where(row < 0, -1, NAMES + 4)
    np.testing.assert_array_equal(apply(number, field, np.array([0])), apply(number, field, np.array([1])))


def test_features_are_of_the_size_of_one_and_tell_bins_apart():
    features = bin_features(1024)
    assert np.abs(features).max() <= 1 + 1e-6
    assert len(np.unique(features, axis=0)) == 1024
    np.testing.assert_allclose(bin_features(64)[::-1, 1:4], -bin_features(64)[:, 1:4], atol=1e-6)


def test_counts_have_no_largest():
    x = np.asarray(log_features(jnp.array([0, 1, 5, 1000, 10**6])))
    assert np.isfinite(x).all()
    assert np.abs(x).max() < 20
    assert len(np.unique(x.round(4), axis=0)) == 5


def test_what_is_before_0_is_told_apart_and_what_is_after_is_as_it_was():
    x = np.asarray(log_features(jnp.arange(-40, 41)))
    assert np.isfinite(x).all()
    assert len(np.unique(x.round(4), axis=0)) == 81
    np.testing.assert_allclose(x[40:, 1], np.log1p(np.arange(41)), rtol=1e-6)
    np.testing.assert_allclose(x[:41, 1], -x[40:, 1][::-1])


def test_a_name_is_predicted_by_the_row_that_embeds_it():
    """One table serves both, so that both learn it; the separator's row is no class."""

    def model(row, x):
        table = TokenEmbedding(NAMES, BINS, FIELDS, 2, WIDTH)
        return table(row, row, row[:, 0]).sum(), table.logits(x, NAMES - 2)

    made, row, x = hk.without_apply_rng(hk.transform(model)), jnp.ones((1, 1), jnp.int32), jnp.eye(3, WIDTH)
    params = made.init(jax.random.key(0), row, x)
    names = params["embedding"]["names"]
    params["embedding"]["bias"] = jnp.arange(NAMES - 2.0)
    expected = x @ names[: NAMES - 2].T / np.sqrt(WIDTH) + np.arange(NAMES - 2)
    np.testing.assert_allclose(made.apply(params, row, x)[1], expected, atol=1e-5)
    gradient = jax.grad(lambda params: made.apply(params, row, x)[1][:, 4].sum())(params)["embedding"]["names"]
    assert np.flatnonzero(np.asarray(gradient).any(axis=1)).tolist() == [4]
