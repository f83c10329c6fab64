import numpy as np
import pytest
from dm_env import specs
from hypothesis import given, settings
from hypothesis import strategies as st

from hierarchy.corpus.codecs import bounded_from_spec, compand, decode, encode, from_unit
from hierarchy.layout import Bounded, Continuous, Discrete, Text, id_range

UNIT = Bounded((-1.0,), (1.0,))


@st.composite
def bounded(draw):
    low = draw(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4))
    high = [edge + draw(st.floats(1e-3, 1e3)) for edge in low]
    return Bounded(tuple(low), tuple(high), draw(st.integers(2, 1024)))


def test_companding_has_the_papers_values():
    np.testing.assert_allclose(
        compand(np.array([1, 10, 256, -1, 1e9]), 100, 256), [0.454674, 0.680639, 1, -0.454674, 1], atol=5e-7
    )


@pytest.mark.parametrize(("value", "token"), [(-1, 32000), (0, 32512), (1, 33023)])
def test_actions_are_not_companded_and_plus_one_stays_in_range(value, token):
    assert encode(UNIT, np.array([[value]])).tolist() == [[token]]


@pytest.mark.parametrize(("value", "token"), [(-1, 32279), (1, 32744), (256, 33023), (1e6, 33023), (-256, 32000), (-1e6, 32000)])
def test_observations_are_companded(value, token):
    assert encode(Continuous(), value) == token


def test_companded_unit_interval_uses_466_bins():
    assert len(np.unique(encode(Continuous(), np.linspace(-1, 1, 100_001)))) == 466


@settings(deadline=None)
@given(bounded(), st.data())
def test_bounded_round_trip_is_within_half_a_bin(codec, data):
    share = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(codec.low), max_size=len(codec.low))))
    low, high = np.array(codec.low), np.array(codec.high)
    values = np.clip(low + share * (high - low), low, high)
    ids = encode(codec, values)
    first, count = id_range(codec, 0)
    assert ids.dtype == np.int32
    assert np.all((ids >= first) & (ids < first + count))
    assert np.all(np.abs(decode(codec, ids) - values) <= (high - low) / codec.bins / 2 + 1e-9)


def test_worst_action_error_is_one_in_1024():
    values = np.linspace(-1, 1, 20_001)[:, None]
    assert np.abs(decode(UNIT, encode(UNIT, values)) - values).max() <= 1 / 1024 + 1e-12


@settings(deadline=None)
@given(
    st.one_of(
        bounded(), st.builds(Continuous, st.floats(0.1, 1e3), st.floats(0.1, 1e4)), st.builds(Discrete, st.integers(1, 1024))
    )
)
def test_every_id_stands_for_a_value_that_has_that_id(codec):
    first, count = id_range(codec, 0)
    ids = np.arange(first, first + count, dtype=np.int32)
    if isinstance(codec, Bounded):
        ids = np.repeat(ids[:, None], len(codec.low), axis=1)
    np.testing.assert_array_equal(encode(codec, decode(codec, ids)), ids)


@settings(deadline=None)
@given(st.lists(st.floats(-1e30, 1e30), min_size=2), st.floats(0.1, 1e3), st.floats(0.1, 1e4))
def test_continuous_ids_are_in_range_and_keep_the_order(values, mu, bound):
    ids = encode(Continuous(mu, bound), np.sort(values))
    assert np.all(np.diff(ids) >= 0)
    assert 32000 <= ids[0] <= ids[-1] <= 33023


@settings(deadline=None)
@given(bounded(), st.floats(-1, 1))
def test_unit_values_lie_inside_the_spec_and_come_back(codec, unit):
    values = from_unit(codec, np.full(len(codec.low), unit))
    assert np.all((np.array(codec.low) <= values) & (values <= np.array(codec.high)))
    expected = min(int((unit + 1) / 2 * codec.bins), codec.bins - 1) + 32000
    assert np.all(np.abs(encode(codec, values) - expected) <= 1)


@pytest.mark.parametrize(
    ("codec", "value", "message"),
    [
        (Continuous(), np.nan, "nan is not a finite number"),
        (Continuous(), np.inf, "inf is not a finite number"),
        (UNIT, [np.nan], "not a finite number"),
        (UNIT, [1.001], r"element 0 is 1.001, outside its spec \[-1, 1\]"),
        (Bounded((0.0, 0.0), (1.0, 2.0)), [[0.5, 0.5], [0.1, 2.5]], r"element 1 is 2.5, outside its spec \[0, 2\]"),
        (Bounded((0.0, 0.0), (1.0, 2.0)), [0.5], "last axis of 2 elements"),
        (Discrete(4), 4, "4 is not one of the integers 0 to 3"),
        (Discrete(4), -1, "-1 is not one of the integers 0 to 3"),
        (Discrete(4), 1.5, "1.5 is not one of"),
        (Discrete(4), "two", "numbers are needed"),
        (Text(), 3, "not a codec of numbers"),
    ],
)
def test_a_value_that_has_no_id_is_refused_by_name(codec, value, message):
    with pytest.raises(ValueError, match=message):
        encode(codec, value)


def test_float32_bounds_are_inside_their_own_spec():
    codec = bounded_from_spec(specs.BoundedArray((2,), np.float32, [-0.1, 0.3], [0.7, 1.1]))
    assert encode(codec, np.float32([-0.1, 1.1])).tolist() == [32000, 33023]
    assert encode(codec, np.float32([0.7, 0.3])).tolist() == [33023, 32000]


@pytest.mark.parametrize(
    ("codec", "token"), [(UNIT, 33024), (UNIT, 31999), (UNIT, 0), (Discrete(4), 4), (Bounded((0.0,), (1.0,), 10), 32010)]
)
def test_an_illegal_id_is_never_mapped_to_a_value(codec, token):
    with pytest.raises(ValueError, match="do not lie in"):
        decode(codec, np.array([token]))


def test_specs_become_codecs():
    assert bounded_from_spec(specs.DiscreteArray(7)) == Discrete(7)
    assert bounded_from_spec(specs.BoundedArray((), np.int32, 0, 3)) == Discrete(4)
    assert bounded_from_spec(specs.BoundedArray((2, 1), np.float64, -1, [[1], [2]])) == Bounded((-1.0, -1.0), (1.0, 2.0))


@pytest.mark.parametrize("spec", [specs.Array((2,), float, "a"), specs.BoundedArray((2,), float, -np.inf, 1, "a")])
def test_an_unbounded_spec_is_refused_with_the_mend(spec):
    with pytest.raises(ValueError, match=r"spec 'a'.*give Bounded\(low, high\) in the layout"):
        bounded_from_spec(spec)
