"""Values to Gato's ids and back (arXiv 2205.06175, section 2.1).

    Discrete     integers as they are                                     [0, values)
    Piece        integers as they are, EMPTY where nothing was said       [0, pieces)
    Continuous   mu-law companded, clipped to [-1, 1], 1024 uniform bins  [32000, 33024)
    Angle        whole turns taken off, affine to [-1, 1), uniform bins   [32000, 33024)
    Bounded      affine to [-1, 1], not companded, uniform bins           [32000, 32000 + bins)

The last bin holds its upper edge: +1 is 33023, never 33024, which is the first id of the next range. `decode` returns bin
centres, so a Bounded value comes back within half a bin. Words are not values: see `hierarchy/corpus/text.py`. Nor are images:
`patches` cuts them up, `intervals` says where each patch stands (section 2.2 and appendix C).
"""

import functools

import numpy as np
from dm_env import specs

from hierarchy.layout import (
    CONTINUOUS_START,
    EMPTY,
    TEXT_IDS,
    Angle,
    Bounded,
    Codec,
    Continuous,
    Discrete,
    Image,
    Piece,
    id_range,
)

# Recorded numbers are often float32: an edge of the spec may come back a rounding error outside it.
TOLERANCE = 1e-5

# Rows and columns of patches are learnt for this many intervals of an image's height and width.
INTERVALS = 128


def encode(codec: Codec, values: np.ndarray, text_pieces: int = TEXT_IDS) -> np.ndarray:
    """Returns int32 ids of the shape of `values`; a Bounded codec's elements lie along the last axis.

    text_pieces: how many pieces the corpus has.

    Raises:
        ValueError: a value is not finite, not one of a discrete field's, or outside a bounded field's spec.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"numbers are needed, not {values.dtype}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{values[~np.isfinite(values)][0]} is not a finite number: mend or drop the recording")
    match codec:
        case Discrete(count):
            return _whole(values, count)
        case Piece():
            return np.where(values == EMPTY, np.int32(EMPTY), _whole(np.where(values == EMPTY, 0, values), text_pieces))
        case Continuous(mu, bound):
            return _bins(compand(values, mu, bound), id_range(codec, 0)[1])
        case Angle():
            return _bins((values.astype(np.float64) / np.pi + 1) % 2 - 1, id_range(codec, 0)[1])
        case Bounded(bins=bins):
            return _bins(to_unit(codec, values), bins)
    raise ValueError(f"{codec} is not a codec of numbers")


def decode(codec: Codec, ids: np.ndarray) -> np.ndarray:
    """Returns the values of the shape of `ids`: float64 bin centres, or the integers of a Discrete codec.

    Raises:
        ValueError: an id lies outside the codec's range.
    """
    ids = np.asarray(ids)
    first, count = id_range(codec, TEXT_IDS)
    if ids.size and not first <= ids.min() <= ids.max() < first + count:
        raise ValueError(f"ids {ids.min()} to {ids.max()} do not lie in [{first}, {first + count}) of {type(codec).__name__}")
    match codec:
        case Discrete() | Piece():
            return ids.astype(np.int32)
        case Continuous(mu, bound):
            unit = unit_centres(count)[ids - first]
            return np.sign(unit) * np.expm1(np.abs(unit) * np.log1p(mu * bound)) / mu
        case Angle():
            return np.pi * unit_centres(count)[ids - first]
        case Bounded():
            return from_unit(codec, unit_centres(count)[ids - first])
    raise ValueError(f"{codec} is not a codec of numbers")


def patches(codec: Image, image: np.ndarray) -> np.ndarray:
    """Returns uint8 [patches, patch * patch * channels] of uint8 [height, width, channels], in raster order.

    Raises:
        ValueError: the image has another shape or other values.
    """
    image, side = np.asarray(image), codec.patch
    if image.shape != (codec.height, codec.width, codec.channels) or image.dtype != np.uint8:
        raise ValueError(f"an image is uint8 {(codec.height, codec.width, codec.channels)}, not {image.dtype} {image.shape}")
    grid = image.reshape(codec.height // side, side, codec.width // side, side, codec.channels)
    return grid.swapaxes(1, 2).reshape(codec.patches, -1)


def intervals(codec: Image, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row and the column, int32 [patches], of each patch in the `INTERVALS` of its image.

    A patch spans several: one of them is drawn, as in training, or without an `rng` the rounded mean is taken.
    """

    rows, columns = codec.height // codec.patch, codec.width // codec.patch
    row, column = np.divmod(np.arange(codec.patches), columns)
    return _interval(row, rows, rng), _interval(column, columns, rng)


def compand(values: np.ndarray, mu: float, bound: float) -> np.ndarray:
    """Returns sgn(x) log(mu|x| + 1) / log(mu M + 1), clipped to [-1, 1] (section 2.1; there mu = 100 and M = 256)."""
    values = np.asarray(values, np.float64)
    return np.clip(np.sign(values) * np.log1p(mu * np.abs(values)) / np.log1p(mu * bound), -1, 1)


def to_unit(codec: Bounded, values: np.ndarray) -> np.ndarray:
    """Returns values mapped affinely from the spec to [-1, 1]; ValueError if one lies outside the spec."""
    values = np.asarray(values, np.float64)
    low, high = _edges(codec)
    if values.shape[-1:] != low.shape:
        raise ValueError(f"values {values.shape} have no last axis of {len(low)} elements, one a bound")
    unit = 2 * (values - low) / (high - low) - 1
    if unit.size and np.abs(unit).max() > 1 + TOLERANCE:
        *_, element = np.unravel_index(np.abs(unit).argmax(), unit.shape)
        value = values[..., element].flat[np.abs(unit[..., element]).argmax()]
        raise ValueError(f"element {element} is {value:g}, outside its spec [{low[element]:g}, {high[element]:g}]")
    return np.clip(unit, -1, 1)


def from_unit(codec: Bounded, unit: np.ndarray) -> np.ndarray:
    """Returns values in the spec from `unit` [..., elements] in [-1, 1], clipped to it."""
    low, high = _edges(codec)
    return np.clip(low + (np.asarray(unit, np.float64) + 1) / 2 * (high - low), low, high)


@functools.cache
def unit_centres(bins: int) -> np.ndarray:
    """Returns [bins] float64: the centres of the uniform bins of [-1, 1]."""
    return (np.arange(bins) + 0.5) * (2 / bins) - 1


def bounded_from_spec(spec: specs.Array) -> Codec:
    """Returns the codec of a dm_env spec: Discrete for integers from 0, Bounded for an array with finite bounds.

    Raises:
        ValueError: there are no bounds, or they are not finite: a layout has to give them.
    """
    if isinstance(spec, specs.DiscreteArray):
        return Discrete(int(spec.num_values))
    if not isinstance(spec, specs.BoundedArray):
        raise ValueError(f"spec {spec.name!r} has no bounds: give Bounded(low, high) in the layout")
    if np.issubdtype(spec.dtype, np.integer):
        if np.any(spec.minimum < 0):
            raise ValueError(f"spec {spec.name!r} has integers below 0: state a codec in the layout")
        return Discrete(int(np.max(spec.maximum)) + 1)
    low, high = (np.broadcast_to(edge, spec.shape).ravel() for edge in (spec.minimum, spec.maximum))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(
            f"spec {spec.name!r} is unbounded ({spec.minimum} to {spec.maximum}): give Bounded(low, high) in the layout"
        )
    return Bounded(tuple(low.astype(float).tolist()), tuple(high.astype(float).tolist()))


def _interval(index: np.ndarray, count: int, rng: np.random.Generator | None) -> np.ndarray:
    edges = np.arange(count + 1) * INTERVALS // count
    first, last = edges[index], np.maximum(edges[index + 1] - 1, edges[index])
    return ((first + last + 1) // 2 if rng is None else rng.integers(first, last, endpoint=True)).astype(np.int32)


def _whole(values: np.ndarray, count: int) -> np.ndarray:
    whole = np.rint(values) if values.dtype.kind == "f" else values
    wrong = (whole < 0) | (whole >= count) | (np.abs(whole - values) > TOLERANCE if values.dtype.kind == "f" else False)
    if np.any(wrong):
        raise ValueError(f"{values[wrong].flat[0]} is not one of the integers 0 to {count - 1}")
    return whole.astype(np.int32)


def _bins(unit: np.ndarray, bins: int) -> np.ndarray:
    return np.minimum((unit + 1) * (bins / 2), bins - 1).astype(np.int32) + np.int32(CONTINUOUS_START)


@functools.lru_cache(maxsize=1024)
def _edges(codec: Bounded) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(codec.low, np.float64), np.asarray(codec.high, np.float64)
