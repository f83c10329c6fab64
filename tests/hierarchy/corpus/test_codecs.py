import numpy as np
import pytest
from dm_env import specs
from hypothesis import given, settings
from hypothesis import strategies as st

from hierarchy.corpus.codecs import bounded_from_spec, compand, decode, encode, from_unit, intervals, patches
from hierarchy.layout import EMPTY, Angle, Bounded, Continuous, Discrete, Image, Piece, Text, id_range

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
        bounded(),
        st.builds(Continuous, st.floats(0.1, 1e3), st.floats(0.1, 1e4)),
        st.builds(Angle),
        st.builds(Discrete, st.integers(1, 1024)),
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
@given(st.floats(-np.pi, np.pi), st.integers(-1000, 1000))
def test_an_angle_is_the_same_after_any_number_of_turns(angle, turns):
    ids = encode(Angle(), [angle, angle + 2 * np.pi * turns])
    assert np.all((ids >= 32000) & (ids <= 33023))
    apart = np.abs(decode(Angle(), ids) - angle)
    assert np.all(np.minimum(apart, 2 * np.pi - apart) <= np.pi / 1024 + 1e-9)


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
        (Angle(), np.inf, "inf is not a finite number"),
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


def test_pieces_are_their_own_ids_and_what_was_not_said_is_empty():
    assert encode(Piece(), np.array([0, 99, EMPTY]), 100).tolist() == [0, 99, EMPTY]
    assert decode(Piece(), np.array([0, 99])).tolist() == [0, 99]
    for illegal in (100, -2):
        with pytest.raises(ValueError, match=f"{illegal} is not one of the integers 0 to 99"):
            encode(Piece(), np.array([illegal]), 100)


def test_patches_are_whole_squares_in_raster_order():
    codec = Image(32, 48, 3)
    image = np.random.default_rng(0).integers(256, size=(32, 48, 3), dtype=np.uint8)
    found = patches(codec, image)
    assert codec.patches == len(found) == 6
    for number, (top, left) in enumerate([(0, 0), (0, 16), (0, 32), (16, 0), (16, 16), (16, 32)]):
        np.testing.assert_array_equal(found[number].reshape(16, 16, 3), image[top : top + 16, left : left + 16])


@pytest.mark.parametrize("wrong", [np.zeros((32, 32, 3), np.uint8), np.zeros((32, 48, 3)), np.zeros((32, 48), np.uint8)])
def test_an_image_of_another_kind_is_refused(wrong):
    with pytest.raises(ValueError, match=r"an image is uint8 \(32, 48, 3\), not"):
        patches(Image(32, 48), wrong)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 80), (64, 2048), (16, 4096)])
def test_a_patch_stands_anywhere_in_its_own_interval_and_else_in_the_middle(height, width):
    codec, rng = Image(height, width), np.random.default_rng(0)
    rows, columns = height // 16, width // 16
    drawn = np.array([intervals(codec, rng) for _ in range(300)])
    middle = np.array(intervals(codec, None))
    for axis, count in ((0, rows), (1, columns)):
        index = np.divmod(np.arange(codec.patches), columns)[axis]
        found = drawn[:, axis]
        # In whole intervals a patch keeps its share of the picture, and two patches share none while there are enough.
        low, high = index * 128 / count, (index + 1) * 128 / count
        assert ((found >= np.floor(low)) & (found <= np.maximum(np.floor(high) - 1, np.floor(low)))).all()
        assert (np.abs(middle[axis] - (low + high - 1) / 2) <= 1).all()
        assert ((found >= 0) & (found < 128)).all()
        if count <= 8:
            mine = found[:, index == 0].ravel()
            assert len(set(mine.tolist())) > 0.8 * (128 // count)
