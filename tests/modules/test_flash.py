"""The kernel, interpreted, against attention that is written out; and two integers a token against the mask they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modules import flash
from modules.attention import KeyValues, attend, join_heads
from modules.flash import flash_attention
from modules.masks import Place, may_see, spans

HEADS, SIZE, LENGTH = 2, 8, 300


def place(seed: int, length: int = LENGTH) -> Place:
    """Segments of ticks of one to three tokens, some of them gone after their tick, jumps in time, and padding at the end."""
    rng = np.random.default_rng(seed)
    time, segment, lasting = (np.zeros(length, np.int32) for _ in range(3))
    at, number = 0, 1
    while at < length - 20:
        now = int(rng.integers(50))
        for _ in range(rng.integers(5, 40)):
            count = int(rng.integers(1, 4))
            time[at : at + count], segment[at : at + count] = now, number
            lasting[at : at + count] = np.arange(count) < 2
            at, now = min(at + count, length - 10), now + int(rng.choice([1, 1, 1, 4, 30]))
        number += 1
    time[at:], segment[at:] = 0, 0
    order = np.arange(length, dtype=np.int32)
    return Place(time, order, segment, order, lasting.astype(bool))


@pytest.mark.parametrize("window", [1, 3, 12, 1000])
def test_two_integers_say_what_the_mask_says(window):
    for seed in range(5):
        where = place(seed)
        now, until = spans(where, window)
        told = (np.arange(LENGTH)[None] <= np.arange(LENGTH)[:, None]) & (np.asarray(now)[:, None] < np.asarray(until)[None])
        there = np.asarray(where.segment) > 0
        np.testing.assert_array_equal(told[there], np.asarray(may_see(where, where, window))[there])
        assert np.diagonal(told).all()


def arrays(count: int, length: int = LENGTH) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(HEADS, length, SIZE)), jnp.float32) for _ in range(count)]


@pytest.mark.parametrize(("window", "reach"), [(5, None), (5, 150), (1000, None)])
def test_the_kernel_attends_as_written_out_and_so_do_its_slopes(window, reach, monkeypatch):
    monkeypatch.setattr(flash, "BLOCK", 128)
    query, key, value, weight = arrays(4)
    where = place(1)
    now, until = spans(where, window)
    weight = weight * (np.asarray(where.segment) > 0)[:, None]
    back = np.arange(LENGTH)[:, None] - np.arange(LENGTH)[None]
    mask = may_see(where, where, window)
    assert reach is None or back[np.asarray(mask)].max() <= reach

    def plain(query, key, value):
        mixed = attend(query, KeyValues(key, value), mask)
        return jnp.sum(mixed * join_heads(weight)), mixed

    def kernel(query, key, value):
        mixed = flash_attention(query, key, value, now, until, reach, interpret=True)
        return jnp.sum(mixed * weight), join_heads(mixed)

    graded = [jax.jit(jax.value_and_grad(each, (0, 1, 2), has_aux=True))(query, key, value) for each in (kernel, plain)]
    ((_, found), slopes), ((_, expected), wanted) = graded
    there = np.asarray(where.segment) > 0
    np.testing.assert_allclose(found[there], expected[there], atol=2e-5)
    for one, other in zip(slopes, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_kernel_goes_through_the_blocks_that_may_be_seen_and_no_more():
    assert flash.pairs(1024) == 3 * 512**2
    assert flash.pairs(1024, 100) == 3 * 512**2
    assert flash.pairs(2048, 512) == 7 * 512**2
    assert flash.pairs(300) == 384**2


def test_rows_at_once_are_rows_by_themselves():
    query, key, value = (jnp.stack([x, 2 * x]) for x in arrays(3, 100))
    now, until = (jnp.stack([a, b]) for a, b in zip(spans(place(0, 100), 4), spans(place(3, 100), 4), strict=True))
    both = jax.vmap(lambda *row: flash_attention(*row, interpret=True))(query, key, value, now, until)
    for i in range(2):
        alone = flash_attention(query[i], key[i], value[i], now[i], until[i], interpret=True)
        np.testing.assert_allclose(both[i], alone, atol=1e-6)
