"""One transformer, two ways: over a stream at once, and over a cache in chunks of any length."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modules.masks import Place
from modules.transformer import Transformer, TransformerConfig, empty_cache

CONFIG = TransformerConfig(width=8, layers=2, heads=2, feed_forward=12, window=4)
TOKENS, A_TICK, SLOTS = 36, 3, 12


def run(x, place, cache=None, slots=None):
    return Transformer(CONFIG, "transformer")(x, place, cache=cache, slots=slots)


MODEL = hk.without_apply_rng(hk.transform(run))
APPLY = jax.jit(MODEL.apply)


def stream() -> tuple[np.ndarray, Place]:
    x = np.random.default_rng(0).normal(size=(TOKENS, CONFIG.width)).astype(np.float32)
    order = np.arange(TOKENS, dtype=np.int32)
    return x, Place(order // A_TICK, order % A_TICK, np.ones(TOKENS, np.int32), order, np.ones(TOKENS, bool))


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), *stream())


@pytest.mark.parametrize("chunk", [1, 2, 3, 6])
def test_a_cache_in_chunks_gives_what_the_whole_stream_gives(params, chunk):
    """The cache has room for one window of 4 ticks of 3 tokens and a chunk, and is gone through at least twice."""
    x, place = stream()
    whole, _ = APPLY(params, x, place)
    # A chunk is written before it is read: without more room, its last tokens overwrite what its first ones still see.
    slots = SLOTS + chunk - 1
    cache, parts = empty_cache(CONFIG, slots), []
    for start in range(0, TOKENS, chunk):
        at = np.arange(start, start + chunk)
        out, cache = APPLY(params, x[at], Place(*(part[at] for part in place)), cache, at % slots)
        parts.append(out)
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_a_cache_too_small_by_one_is_seen(params):
    x, place = stream()
    whole, _ = APPLY(params, x, place)
    cache, parts = empty_cache(CONFIG, SLOTS - 1), []
    for at in np.arange(TOKENS)[:, None]:
        out, cache = APPLY(params, x[at], Place(*(part[at] for part in place)), cache, at % (SLOTS - 1))
        parts.append(out)
    assert np.abs(np.concatenate(parts) - whole).max() > 1e-3


def test_layers_reach_as_far_as_their_windows_add_up(params):
    x, place = stream()
    slope = jax.jit(jax.jacrev(lambda x: MODEL.apply(params, x, place)[0][-1].sum()))(x)
    ticks = place.time[np.flatnonzero(np.any(np.asarray(slope) != 0, axis=-1))]
    reach = CONFIG.layers * (CONFIG.window - 1)
    assert ticks.min() == place.time[-1] - reach
    assert np.array_equal(np.unique(ticks), np.arange(ticks.min(), place.time[-1] + 1))


def test_dropped_tokens_leave_the_cache_as_it_was(params):
    x, place = stream()
    first = np.arange(3)
    _, cache = APPLY(params, x[first], Place(*(part[first] for part in place)), empty_cache(CONFIG, SLOTS), first)
    nowhere = Place(*(part[first + 3] for part in place))._replace(segment=np.zeros(3, np.int32))
    _, after = APPLY(params, x[first + 3], nowhere, cache, np.full(3, 2**30))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), cache, after)))


@pytest.mark.parametrize(
    "wrong", [dict(width=10, heads=2), dict(layers=0), dict(window=0), dict(feed_forward=13), dict(width=6, heads=4)]
)
def test_sizes_that_make_no_transformer_are_refused(wrong):
    sizes = dict(width=8, layers=2, heads=2, feed_forward=12, window=4) | wrong
    with pytest.raises(ValueError, match=r"heads of an even size|at least 1"):
        TransformerConfig(**sizes)
