"""One episode as bytes: a JSON header and raw little-endian arrays. Nothing in it can be executed.

crc32 of the rest | length of the header | header, JSON | array | array ...     every part begins at a multiple of 8 bytes

An observation that never changes (a picture) is stored once; read back, it is one frame in memory too.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from hierarchy.episode import Episode

PLAIN = ("source", "tick_s", "terminated", "truncated", "seed")
ARRAYS = ("action", "label", "reward", "discount")
GROUPS = ("observation", "privileged")


class Damaged(ValueError):
    """A record is not what was written."""


def to_bytes(episode: Episode) -> bytes:
    """Returns the record of an episode; ValueError names a field that is not an array of plain numbers."""
    arrays = {name: _little(name, array) for name, array in named_arrays(episode).items()}
    header = {name: _plain(getattr(episode, name)) for name in PLAIN}
    header["text"] = {name: [[int(tick), words] for tick, words in changes] for name, changes in episode.text.items()}
    header["info"] = {name: _plain(value) for name, value in episode.info.items()}
    still = {name for name, array in arrays.items() if name.startswith("observation/") and _still(array)}
    header["arrays"] = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    header["still"] = sorted(still)
    arrays = {name: array[:1] if name in still else array for name, array in arrays.items()}
    head = json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
    body = b"".join([_whole_words(head), *(_whole_words(array.tobytes()) for array in arrays.values())])
    body = struct.pack("<Q", len(head)) + body
    return struct.pack("<Q", zlib.crc32(body)) + body


def from_bytes(record: bytes) -> Episode:
    """Returns the episode of a record, its arrays read-only views; `Damaged` if the bytes are not those that were written."""
    if len(record) < 16 or zlib.crc32(memoryview(record)[8:]) != struct.unpack_from("<Q", record)[0]:
        raise Damaged("its checksum does not agree")
    (length,) = struct.unpack_from("<Q", record, 8)
    header = json.loads(record[16 : 16 + length])
    at, arrays = 16 + _up(length), {}
    for name, dtype, shape in header["arrays"]:
        stored = [1, *shape[1:]] if name in header.get("still", ()) else shape
        array = np.frombuffer(record, dtype, int(np.prod(stored)), at).reshape(stored)
        arrays[name] = np.broadcast_to(array, shape)
        at += _up(array.nbytes)
    groups = {group: {} for group in GROUPS}
    for name, array in arrays.items():
        group, _, field = name.partition("/")
        if field:
            groups[group][field] = array
    return Episode(
        **{name: header[name] for name in PLAIN},
        **{name: arrays[name] for name in ARRAYS},
        **groups,
        text={name: tuple((tick, words) for tick, words in changes) for name, changes in header["text"].items()},
        info=header["info"],
    )


def named_arrays(episode: Episode) -> dict[str, np.ndarray]:
    """Returns every array of an episode by name: `action`, ..., `observation/NAME`, `privileged/NAME`."""
    arrays = {name: getattr(episode, name) for name in ARRAYS}
    for group in GROUPS:
        values: Mapping[str, np.ndarray] = getattr(episode, group)
        arrays |= {f"{group}/{name}": value for name, value in values.items()}
    return {name: np.asarray(array) for name, array in arrays.items()}


def _little(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"field {name!r} holds {array.dtype}: only numbers are stored; words go into the episode's text")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _still(array: np.ndarray) -> bool:
    return array.size > 0 and array[0].size > 64 and bool((array == array[:1]).all())


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"{value!r} is no plain fact: a number, a word, true or false")
    return value


def _up(length: int) -> int:
    return -(-length // 8) * 8


def _whole_words(data: bytes) -> bytes:
    return data + bytes(_up(len(data)) - len(data))
