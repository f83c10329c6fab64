"""The mask against one sentence a pair."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modules.masks import Place, may_see


def places(count: int, seed: int) -> Place:
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(0, 9, count)).astype(np.int32)
    order = np.arange(count, dtype=np.int32)
    return Place(
        time=time, index=order, segment=rng.integers(0, 3, count).astype(np.int32), order=order, lasting=rng.random(count) < 0.6
    )


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 10_000))
def test_who_sees_whom(count, window, seed):
    place = places(count, seed)
    found = np.asarray(may_see(place, place, window))
    for q in range(count):
        for k in range(count):
            expected = place.segment[k] != 0
            expected &= place.segment[q] == place.segment[k]
            expected &= k <= q
            expected &= place.time[q] - place.time[k] < window
            expected &= bool(place.lasting[k]) or place.time[k] == place.time[q]
            assert found[q, k] == expected


def test_a_cache_has_keys_in_any_order():
    place = places(10, 3)
    turn = np.random.default_rng(0).permutation(10)
    turned = Place(*(part[turn] for part in place))
    np.testing.assert_array_equal(may_see(place, turned, 4), np.asarray(may_see(place, place, 4))[:, turn])
