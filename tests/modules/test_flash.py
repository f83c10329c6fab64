"""The kernel, interpreted, against attention that is written out; and two integers a token against the mask they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modules import flash
from modules.attention import KeyValues, attend, attend_own, pick, rotate, rotation, split_heads
from modules.flash import flash_attention, flash_picked
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


def arrays(*shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def attended(qkv: jax.Array, turn: tuple[jax.Array, jax.Array], mask: jax.Array, heads: int) -> jax.Array:
    """What the kernel does, written out."""
    query, key, value = (split_heads(part, heads) for part in jnp.split(qkv, 3, axis=-1))
    return attend(rotate(query, *turn), KeyValues(rotate(key, *turn), value), mask)


@pytest.mark.parametrize(("window", "reach", "size"), [(5, None, 8), (5, 150, 8), (1000, None, 8), (5, 150, 128), (5, None, 136)])
def test_the_kernel_attends_as_written_out_and_so_do_its_slopes(window, reach, size, monkeypatch):
    """Heads that fill a row of lanes, that fill part of one, and that fill one and part of another."""
    monkeypatch.setattr(flash, "BLOCK", 128)
    qkv, weight = arrays((LENGTH, 3 * HEADS * size), (LENGTH, HEADS * size))
    where = place(1)
    now, until = spans(where, window)
    turn = rotation(jnp.asarray(where.time), size, 40)
    there = np.asarray(where.segment) > 0
    back = np.arange(LENGTH)[:, None] - np.arange(LENGTH)[None]
    mask = may_see(where, where, window)
    assert reach is None or back[np.asarray(mask)].max() <= reach

    def plain(qkv):
        return attended(qkv, turn, mask, HEADS)

    def kernel(qkv):
        return flash_attention(qkv, *turn, now, until, size, reach, interpret=True)

    def graded(way):
        return jax.jit(
            jax.value_and_grad(lambda qkv: (jnp.vdot((mixed := way(qkv)), weight * there[:, None]), mixed), has_aux=True)
        )(qkv)

    ((_, found), slope), ((_, expected), wanted) = graded(kernel), graded(plain)
    np.testing.assert_allclose(found[there], expected[there], atol=2e-5)
    np.testing.assert_allclose(slope, wanted, atol=2e-4)


@pytest.mark.parametrize(("queries", "entries", "size"), [(300, 50, 8), (20, 3, 128)])
def test_picked_entries_are_attended_over_as_each_by_itself(queries, entries, size, monkeypatch):
    """Entries in any order, some that none picks, and queries that pick none."""
    monkeypatch.setattr(flash, "BLOCK", 128)
    query, key, value, weight = arrays((queries, HEADS * size), *[(entries, 4, HEADS * size)] * 2, (queries, HEADS * size))
    index = np.random.default_rng(1).integers(-1, entries - 1, queries)

    def plain(query, key, value):
        by_head = (jax.vmap(lambda entry: split_heads(entry, HEADS))(x) for x in (key, value))
        return attend_own(split_heads(query, HEADS), KeyValues(*(pick(x, index) for x in by_head)))

    def kernel(query, key, value):
        return flash_picked(query, key, value, HEADS, jnp.asarray(index))

    found, expected = (
        jax.jit(jax.value_and_grad(lambda *x, way=way: jnp.vdot(way(*x), weight), (0, 1, 2)))(query, key, value)
        for way in (kernel, plain)
    )
    np.testing.assert_allclose(kernel(query, key, value), plain(query, key, value), atol=2e-5)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-4), found[1], expected[1])
    assert not np.any(kernel(query, key, value)[index < 0])


def test_the_kernel_goes_through_the_blocks_that_may_be_seen_and_no_more():
    assert flash.pairs(1024) == 3 * 512**2
    assert flash.pairs(1024, 100) == 3 * 512**2
    assert flash.pairs(2048, 512) == 7 * 512**2
    assert flash.pairs(300) == 384**2
    assert flash.picked_pairs(2048, 1032) == 2048 * 3 * 384


def test_rows_at_once_are_rows_by_themselves():
    (qkv,) = arrays((2, 100, 3 * HEADS * SIZE))
    wheres = place(0, 100), place(3, 100)
    turn, seen = (
        [jnp.stack(x) for x in zip(*each, strict=True)]
        for each in ([rotation(jnp.asarray(where.time), SIZE, 40) for where in wheres], [spans(where, 4) for where in wheres])
    )
    both = jax.vmap(lambda *row: flash_attention(*row, size=SIZE, interpret=True))(qkv, *turn, *seen)
    for i in range(2):
        alone = flash_attention(qkv[i], *(x[i] for x in (*turn, *seen)), size=SIZE, interpret=True)
        np.testing.assert_allclose(both[i], alone, atol=1e-6)


def test_streams_too_long_for_a_chip_are_refused_unless_they_see_less():
    def shape(length: int, reach: int | None) -> tuple[int, ...]:
        qkv, turn, when = (
            jax.ShapeDtypeStruct((length, *more), kind) for more, kind in (((384,), "float32"), ((32,), "float32"), ((), "int32"))
        )
        total = jax.grad(lambda *x: flash_attention(*x, size=128, reach=reach, interpret=True).sum())
        return jax.eval_shape(total, qkv, turn, turn, when, when).shape

    assert shape(16_384, None) == (16_384, 384)
    assert shape(32_768, 4000) == (32_768, 384)
    with pytest.raises(ValueError, match="slopes of 32768 queries that see the same key, heads of 128: at most 16384 fit"):
        shape(32_768, None)
