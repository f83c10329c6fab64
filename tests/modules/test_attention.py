"""Attention against its formula, entry by entry, and what the quick ways of it must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modules import attention
from modules.attention import (
    KeyValues,
    Prefix,
    Relative,
    attend,
    attend_in_order,
    attend_own,
    distance_waves,
    pick,
    rotate,
    rotation,
    score_distances,
    split_heads,
)

HEADS, SIZE = 2, 6


def arrays(*shapes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max())
    return raised / raised.sum()


def by_hand(query, key, value, mask) -> np.ndarray:
    """One query and one head at a time, over the keys that the mask leaves."""
    mixed = np.zeros((query.shape[1], HEADS, SIZE))
    for head in range(HEADS):
        for q in range(query.shape[1]):
            seen = np.flatnonzero(mask[q])
            weights = softmax(key[head, seen].astype(np.float64) @ query[head, q] / np.sqrt(SIZE))
            mixed[q, head] = weights @ value[head, seen]
    return mixed.reshape(query.shape[1], -1)


def test_attend_is_the_formula():
    query, key, value = arrays((HEADS, 5, SIZE), (HEADS, 9, SIZE), (HEADS, 9, SIZE))
    mask = np.random.default_rng(1).random((5, 9)) < 0.5
    mask[:, 0] = True
    found = attend(query, KeyValues(key, value), mask)
    np.testing.assert_allclose(found, by_hand(query, key, value, mask), atol=1e-5)


def test_large_scores_stay_finite():
    query, key, value = arrays((HEADS, 3, SIZE), (HEADS, 4, SIZE), (HEADS, 4, SIZE))
    found = attend(1e4 * query, KeyValues(1e4 * key, value), np.ones((3, 4), bool))
    assert np.isfinite(found).all()
    slope = jax.grad(lambda q: attend(q, KeyValues(key, value), np.ones((3, 4), bool)).sum())(1e4 * query)
    assert np.isfinite(slope).all()


def test_heads_are_split_and_joined_in_place():
    (x,) = arrays((4, HEADS * SIZE))
    alone = attend(
        jnp.ones((HEADS, 4, SIZE)), KeyValues(jnp.ones((HEADS, 4, SIZE)), split_heads(x, HEADS)), np.eye(4, dtype=bool)
    )
    np.testing.assert_allclose(alone, x, atol=1e-6)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
@pytest.mark.parametrize("reach", [None, 1, 5, 100])
def test_attention_in_chunks_leaves_nothing_out(length, reach, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 8)
    query, key, value = arrays((HEADS, length, SIZE), (HEADS, length, SIZE), (HEADS, length, SIZE))
    back = np.arange(length)[:, None] - np.arange(length)[None]
    mask = (back >= 0) & (back <= (length if reach is None else reach))
    found = attend_in_order(query, KeyValues(key, value), mask, reach)
    np.testing.assert_allclose(found, by_hand(query, key, value, mask), atol=1e-5)


def test_each_query_over_its_own_keys():
    query, key, value = arrays((HEADS, 3, SIZE), (3, HEADS, 4, SIZE), (3, HEADS, 4, SIZE))
    found = attend_own(query, KeyValues(key, value))
    for q in range(3):
        one = by_hand(query[:, q : q + 1], key[q], value[q], np.ones((1, 4), bool))
        np.testing.assert_allclose(found[q], one[0], atol=1e-5)


def test_a_prefix_is_keys_that_stand_before_all_others():
    """As if each query's own had been in the memory; and a query that sees nothing else attends to them alone."""
    query, turned, key, value = arrays((HEADS, 3, SIZE), (HEADS, 3, SIZE), (HEADS, 4, SIZE), (HEADS, 4, SIZE))
    own_key, own_value = arrays((3, HEADS, 2, SIZE), (3, HEADS, 2, SIZE), seed=1)
    mask = np.array([[True, False, True, True], [False, True, False, False], [False] * 4])
    found = attend(turned, KeyValues(key, value), mask, prefix=Prefix(query, KeyValues(own_key, own_value)))
    for q in range(3):
        mixed = np.zeros((HEADS, SIZE))
        for head in range(HEADS):
            scores = np.concatenate([own_key[q, head] @ query[head, q], key[head, mask[q]] @ turned[head, q]]) / np.sqrt(SIZE)
            mixed[head] = softmax(scores) @ np.concatenate([own_value[q, head], value[head, mask[q]]])
        np.testing.assert_allclose(found[q], mixed.reshape(-1), atol=1e-5)


@pytest.mark.parametrize("queries", [1, 40])
def test_what_queries_say_of_distances_is_the_formula(queries):
    """Few queries are projected themselves and many project the distances: the formula is one."""
    query, projection = arrays((HEADS, queries, SIZE), (HEADS * SIZE, HEADS * SIZE))
    waves = distance_waves(9, HEADS * SIZE)
    found = score_distances(query, projection, waves)
    for head in range(HEADS):
        keys = waves @ projection[:, head * SIZE : (head + 1) * SIZE]
        np.testing.assert_allclose(found[head], query[head] @ keys.T / np.sqrt(SIZE), atol=1e-4)


def test_distances_are_told_apart_by_their_waves():
    waves = distance_waves(300, 12)
    apart = np.linalg.norm(waves[:, None] - waves[None], axis=-1) + 10 * np.eye(300)
    assert apart.min() > 1e-2
    np.testing.assert_array_equal(waves[0], [0] * 6 + [1] * 6)


def test_a_distance_adds_to_the_score_of_its_pair():
    query, key, value, score = arrays((HEADS, 5, SIZE), (HEADS, 9, SIZE), (HEADS, 9, SIZE), (HEADS, 5, 4))
    distance = np.random.default_rng(1).integers(4, size=(5, 9))
    found = attend(query, KeyValues(key, value), np.ones((5, 9), bool), Relative(score, distance))
    for q in range(5):
        for head in range(HEADS):
            weights = softmax(key[head] @ query[head, q] / np.sqrt(SIZE) + score[head, q, distance[q]])
            np.testing.assert_allclose(found[q, head * SIZE : (head + 1) * SIZE], weights @ value[head], atol=1e-5)


@pytest.mark.parametrize("reach", [None, 5])
def test_chunks_take_their_share_of_distances_and_prefixes(reach, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 8)
    query, key, value, score = arrays((HEADS, 30, SIZE), (HEADS, 30, SIZE), (HEADS, 30, SIZE), (HEADS, 30, 6))
    prefix = Prefix(query, KeyValues(*arrays((30, HEADS, 2, SIZE), (30, HEADS, 2, SIZE), seed=1)))
    back = np.arange(30)[:, None] - np.arange(30)[None]
    mask, far = (back >= 0) & (back < 6), Relative(score, np.clip(back, 0, 5))
    whole = attend(query, KeyValues(key, value), mask, far, prefix)
    found = attend_in_order(query, KeyValues(key, value), mask, reach, far, prefix)
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_pick_of_nothing_teaches_nothing():
    x, nothing = jnp.ones((5, 3, 2)), jnp.zeros(0, jnp.int32)
    assert pick(x, nothing).shape == (0, 3, 2)
    slope = jax.grad(lambda x: pick(x, nothing).sum())(x)
    np.testing.assert_array_equal(slope, np.zeros((5, 3, 2)))


def test_pick_is_indexing_and_zero_for_none():
    (x,) = arrays((5, 2, 3))
    index = jnp.array([4, 0, -1, 4])
    found = pick(x, index)
    np.testing.assert_array_equal(found[jnp.array([0, 1, 3])], x[np.array([4, 0, 4])])
    assert not np.any(found[2])
    slope = jax.grad(lambda x: (pick(x, index) * jnp.arange(1.0, 5.0)[:, None, None]).sum())(jnp.asarray(x))
    np.testing.assert_allclose(slope[:, 0, 0], [2, 0, 0, 0, 5])


def test_rotated_products_depend_on_the_time_between_alone():
    query, key = arrays((1, 1, 24), (1, 1, 24))

    def product(at: int, then: int) -> float:
        turned = [rotate(x, *rotation(jnp.array([time]), 24, 40)) for x, time in ((query, at), (key, then))]
        return float(jnp.vdot(*turned))

    for gap in (0, 1, 3, 39):
        assert product(gap, 0) == pytest.approx(product(100_000 + gap, 100_000), abs=1e-5)
    assert len({round(product(gap, 0), 4) for gap in range(10)}) > 5


def test_rotation_turns_and_does_not_stretch():
    (x,) = arrays((HEADS, 7, SIZE))
    turned = rotate(x, *rotation(jnp.arange(7), SIZE, 40))
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
