"""One transformer, two ways: over a stream at once, and over a cache in chunks of any length."""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modules.cache import Run, put
from modules.compute import Compute, computing
from modules.masks import Place
from modules.transformer import Transformer, TransformerConfig, empty_cache

CONFIG = TransformerConfig(width=8, layers=2, heads=2, feed_forward=12, window=4)
TOKENS, A_TICK, SLOTS = 36, 3, 12


def model(config: TransformerConfig) -> hk.Transformed:
    def run(x, place, cache=None, slots=None):
        return Transformer(config, "transformer")(x, place, cache=cache, slots=slots)

    return hk.without_apply_rng(hk.transform(run))


ROUNDS = dataclasses.replace(CONFIG, rounds=3)
WINDOWS = dataclasses.replace(CONFIG, windows=(2, 4))
FAR_WINDOWS = dataclasses.replace(WINDOWS, position="relative")
MODEL, RELATIVE = model(CONFIG), model(dataclasses.replace(CONFIG, position="relative"))
APPLY = jax.jit(MODEL.apply)


def stream() -> tuple[np.ndarray, Place]:
    x = np.random.default_rng(0).normal(size=(TOKENS, CONFIG.width)).astype(np.float32)
    order = np.arange(TOKENS, dtype=np.int32)
    return x, Place(order // A_TICK, order % A_TICK, np.ones(TOKENS, np.int32), order, np.ones(TOKENS, bool))


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), *stream())


def with_biases(params: hk.Params) -> hk.Params:
    """Biases start at zero: others, so that they are seen."""
    rng = np.random.default_rng(2)

    def drawn(name: str, leaf: jax.Array) -> jax.Array:
        return rng.normal(size=leaf.shape).astype(np.float32) if "bias" in name else leaf

    return {module: {name: drawn(name, leaf) for name, leaf in leaves.items()} for module, leaves in params.items()}


@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, position="relative"), ROUNDS, WINDOWS, FAR_WINDOWS])
@pytest.mark.parametrize("chunk", [1, 2, 3, 6])
def test_a_cache_in_chunks_gives_what_the_whole_stream_gives(config, chunk):
    """The cache has room for one window of 4 ticks of 3 tokens and a chunk, and is gone through at least twice."""
    transformed, (x, place) = model(config), stream()
    params, apply = with_biases(jax.jit(transformed.init)(jax.random.key(0), x, place)), jax.jit(transformed.apply)
    whole, _ = apply(params, x, place)
    # A chunk is written before it is read: without more room, its last tokens overwrite what its first ones still see.
    slots = SLOTS + chunk - 1
    cache, parts = empty_cache(config, slots), []
    for start in range(0, TOKENS, chunk):
        at = np.arange(start, start + chunk)
        out, cache = apply(params, x[at], Place(*(part[at] for part in place)), cache, at % slots)
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


@pytest.mark.parametrize("config", [CONFIG, ROUNDS, WINDOWS], ids=["one round", "three rounds", "by layer"])
def test_layers_reach_as_far_as_their_windows_add_up(params, config):
    x, place = stream()
    slope = jax.jit(jax.jacrev(lambda x: model(config).apply(params, x, place)[0][-1].sum()))(x)
    ticks = place.time[np.flatnonzero(np.any(np.asarray(slope) != 0, axis=-1))]
    reach = min(config.lead_in, TOKENS // A_TICK - 1)
    assert ticks.min() == place.time[-1] - reach
    assert np.array_equal(np.unique(ticks), np.arange(ticks.min(), place.time[-1] + 1))


def test_a_layer_that_reaches_further_sees_what_the_others_do_not():
    """The same parameters, the first of two layers short: what is 3 ticks back reaches the last tick through the second alone."""
    x, place = stream()

    def seen(*windows: int) -> set[int]:
        config = dataclasses.replace(CONFIG, window=max(windows), windows=windows)
        run = model(config)
        slope = jax.jit(jax.jacrev(lambda x: run.apply(jax.jit(run.init)(jax.random.key(0), x, place), x, place)[0][-1].sum()))(x)
        return set((place.time[-1] - place.time[np.any(np.asarray(slope) != 0, axis=-1)]).tolist())

    assert seen(1, 1) == {0}
    assert seen(1, 4) == seen(4, 1) == set(range(4))
    assert seen(2, 4) == set(range(5))


@pytest.mark.parametrize("compute", [Compute(scan=True), Compute(attention="flash"), Compute(scan=True, attention="flash")])
def test_windows_by_layer_are_the_same_however_they_are_computed(compute):
    run, (x, place) = model(WINDOWS), stream()
    params = jax.jit(run.init)(jax.random.key(0), x, place)
    with computing(compute):
        other, _ = jax.jit(run.apply)(params, x, place)
    np.testing.assert_allclose(other, jax.jit(run.apply)(params, x, place)[0], atol=1e-5)


@pytest.mark.parametrize("windows", [(4,), (4, 3, 2), (2, 3), (0, 4), (4, 5)])
def test_windows_that_are_not_the_layers_are_refused(windows):
    with pytest.raises(ValueError, match="of 2 layers, window 4: give one of at least 1 moment a layer"):
        dataclasses.replace(CONFIG, windows=windows)


def test_turns_that_go_round_are_as_if_no_time_had_passed():
    """With all turns of 4 moments, what is 4 moments back is as what is now."""
    config = dataclasses.replace(CONFIG, heads=1, window=40, slowest=4)
    run, (x, place) = model(config), stream()
    params = jax.jit(run.init)(jax.random.key(0), x, place)
    moved = place._replace(time=place.time + 4 * (place.time > 5))
    here, there = (jax.jit(run.apply)(params, x, each)[0] for each in (place, moved))
    np.testing.assert_allclose(here, there, atol=1e-5)
    farther = jax.jit(model(dataclasses.replace(config, slowest=None)).apply)
    assert np.abs(farther(params, x, place)[0] - farther(params, x, moved)[0]).max() > 1e-3
    for wrong in (dict(slowest=3), dict(position="relative")):
        with pytest.raises(ValueError, match="a rotary turn takes at least 4 moments"):
            dataclasses.replace(config, **wrong)


def test_rounds_go_through_the_same_layers_again(params):
    """Written out: what leaves the layers, brought to size 1, and what entered at first, enter them again."""
    x, place = stream()
    again = jax.jit(model(ROUNDS).init)(jax.random.key(0), x, place)
    jax.tree.map(np.testing.assert_array_equal, again, params)

    def one_round(x: np.ndarray) -> np.ndarray:
        # The last norm's scale is 1: without it, what left the layers differs by its size alone.
        return np.asarray(APPLY(params, x, place)[0])

    second = one_round(one_round(x) + x)
    np.testing.assert_allclose(jax.jit(model(ROUNDS).apply)(params, x, place)[0], one_round(second + x), atol=1e-4)
    assert np.abs(second - one_round(second + x)).max() > 1e-2


@pytest.mark.parametrize("transformed", [MODEL, RELATIVE], ids=["rotary", "relative"])
def test_the_same_a_long_time_later_is_the_same_and_stretched_it_is_not(transformed):
    x, place = stream()
    params, apply = with_biases(jax.jit(transformed.init)(jax.random.key(0), x, place)), jax.jit(transformed.apply)
    here, later = (apply(params, x, place._replace(time=place.time + start))[0] for start in (0, 100_000))
    np.testing.assert_allclose(later, here, atol=1e-5)
    # Tick 2 comes a tick later, and all that follows with it: seen from tick 3 on, tick 1 is further away.
    stretched, _ = apply(params, x, place._replace(time=place.time + (place.time > 1)))
    assert np.abs(stretched - here)[place.time == 2].max() > 1e-3
    np.testing.assert_allclose(stretched[place.time < 2], here[place.time < 2], atol=1e-6)


def test_relative_attention_is_transformer_xls(monkeypatch):
    """One layer, written out pair by pair: content and position with their biases, distances through their own projection."""
    config = dataclasses.replace(CONFIG, layers=1, position="relative")
    x, place = stream()
    params = with_biases(jax.jit(model(config).init)(jax.random.key(0), x, place))
    seen = {}

    def kept(query, memory, mask, reach, relative, prefix):
        seen.update(query=query, memory=memory, mask=mask, relative=relative)
        return jnp.zeros_like(x)

    monkeypatch.setattr("modules.transformer.attend_in_order", kept)
    model(config).apply(params, x, place)
    query, memory, mask, relative = (seen[name] for name in ("query", "memory", "mask", "relative"))
    scores = np.einsum("hqd,hkd->hqk", query, memory.key) / 2 + np.take_along_axis(relative.score, relative.distance[None], 2)
    layer = params["transformer/layer_0"]
    normed = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * params["transformer/layer_0/norm_attention"]["scale"]
    parts = np.split(normed @ params["transformer/layer_0/query_key_value"]["w"], 3, axis=-1)
    for head in range(2):
        at = slice(4 * head, 4 * head + 4)
        u, v, to_distance = layer["content_bias"][at], layer["position_bias"][at], layer["distance"][:, at]
        for q, k in ((0, 0), (10, 3), (35, 27), (20, 12)):
            assert mask[q, k]
            angle = (place.time[q] - place.time[k]) * 10_000.0 ** (-np.arange(4) / 4)
            far = np.concatenate([np.sin(angle), np.cos(angle)]) @ to_distance
            expected = ((parts[0][q, at] + u) @ parts[1][k, at] + (parts[0][q, at] + v) @ far) / 2
            assert float(scores[head, q, k]) == pytest.approx(float(expected), abs=1e-4)


def test_dropped_tokens_leave_the_cache_as_it_was(params):
    x, place = stream()
    first = np.arange(3)
    _, cache = APPLY(params, x[first], Place(*(part[first] for part in place)), empty_cache(CONFIG, SLOTS), first)
    nowhere = Place(*(part[first + 3] for part in place))._replace(segment=np.zeros(3, np.int32))
    _, after = APPLY(params, x[first + 3], nowhere, cache, np.full(3, 2**30))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), cache, after)))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(width=10, heads=2),
        dict(layers=0),
        dict(window=0),
        dict(feed_forward=13),
        dict(width=6, heads=4),
        dict(position="by foot"),
    ],
)
def test_sizes_that_make_no_transformer_are_refused(wrong):
    sizes = dict(width=8, layers=2, heads=2, feed_forward=12, window=4) | wrong
    with pytest.raises(ValueError, match=r"heads of an even size|at least 1|position is"):
        TransformerConfig(**sizes)


@pytest.mark.parametrize("axis", [0, 1])
def test_runs_are_slots_side_by_side(axis):
    rng = np.random.default_rng(axis)
    old, new = rng.normal(size=(9, 9, 2)), rng.normal(size=(5, 9, 2) if axis == 0 else (9, 5, 2))
    by_run = put(jnp.asarray(old), jnp.asarray(new), [Run(jnp.int32(6), 3), Run(jnp.int32(1), 2)], axis)
    one_by_one = put(jnp.asarray(old), jnp.asarray(new), jnp.array([6, 7, 8, 1, 2]), axis)
    np.testing.assert_array_equal(by_run, one_by_one)
    expected = np.array(old, np.float32)
    expected[(slice(None),) * axis + ([6, 7, 8, 1, 2],)] = new
    np.testing.assert_array_equal(by_run, expected)
