"""Records that one process writes and others read in shared memory, where nobody ever waits: a sequence lock a row.

    row    | sequence | checksum | record |        the sequence is odd while the record is being written

A reader copies the record and takes it only if the sequence was even before, is the same after, and goes with the checksum; so a
record that was torn is never seen, whichever order a processor's stores arrive in. A writer that is stopped or killed half-way
leaves an odd sequence: readers keep what they have, and the next writer takes over.

The memory has no name: it is inherited by the processes that are given the object, and gone when the last of them is.
"""

import multiprocessing
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from dm_env import specs

TRIES = 3


class Records:
    """`rows` records of one numpy dtype. Each row has one writer at a time and any number of readers. It may be handed to a
    process that is being spawned, and only then."""

    def __init__(self, dtype: np.dtype, rows: int = 1):
        self.dtype, self.rows = np.dtype(dtype), rows
        row = self._row_dtype()
        self._memory = multiprocessing.get_context("spawn").RawArray("b", rows * row.itemsize)
        self._open()

    def _row_dtype(self) -> np.dtype:
        whole = -(-self.dtype.itemsize // 8) * 8
        return np.dtype([("sequence", np.int64), ("checksum", np.int64), ("record", f"V{whole}")])

    def _open(self) -> None:
        row = self._row_dtype()
        rows = np.frombuffer(self._memory, row, self.rows)
        self._sequence, self._checksum = rows["sequence"], rows["checksum"]
        self._bytes = memoryview(self._memory).cast("B")
        self._first, self._step = row.fields["record"][1], row.itemsize

    def __getstate__(self) -> tuple:
        return self.dtype, self.rows, self._memory

    def __setstate__(self, state: tuple) -> None:
        self.dtype, self.rows, self._memory = state
        self._open()

    def write(self, record: np.ndarray, row: int = 0) -> None:
        """Replaces a row by a record of the dtype, shape ()."""
        data = record.tobytes()
        writing = int(self._sequence[row]) | 1
        self._sequence[row] = writing
        at = self._first + row * self._step
        self._bytes[at : at + len(data)] = data
        self._checksum[row] = zlib.crc32(data, (writing + 1) & 0xFFFFFFFF)
        self._sequence[row] = writing + 1

    def damage(self, data: bytes, row: int = 0) -> None:
        """Writes over a row's record behind the lock's back, as a program gone wrong would: no reader takes it until the next
        `write`."""
        at = self._first + row * self._step
        data = data[: self.dtype.itemsize]
        self._bytes[at : at + len(data)] = data

    def read(self, row: int = 0, after: int = 0) -> tuple[int, np.void] | None:
        """Returns a row's sequence and a copy of its record; None if it is not newer than sequence `after`, or was caught in
        the middle of a write."""
        at = self._first + row * self._step
        for _ in range(TRIES):
            sequence = int(self._sequence[row])
            if sequence <= after or sequence % 2:
                return None
            data = bytes(self._bytes[at : at + self.dtype.itemsize])
            checksum = int(self._checksum[row])
            if int(self._sequence[row]) == sequence and checksum == zlib.crc32(data, sequence & 0xFFFFFFFF):
                return sequence, np.frombuffer(data, self.dtype)[0]
        return None


def fields_of(spec: Mapping[str, specs.Array], words: int = 512) -> list[tuple]:
    """Returns the dtype's fields for observations of a flat spec. words: bytes (UTF-8) that a text may have."""
    return [
        (name, f"S{words}") if isinstance(field, specs.StringArray) else (name, field.dtype, field.shape)
        for name, field in spec.items()
    ]


def record_of(dtype: np.dtype, values: Mapping[str, Any]) -> np.ndarray:
    """Returns a record of shape () with these values, text encoded; fields that are not given are zero.

    Raises:
        ValueError: a text is longer than its field; says so.
    """
    record = np.zeros((), dtype)
    for name, value in values.items():
        field = dtype[name]
        if field.kind == "S":
            value = str(value).encode()
            if len(value) > field.itemsize:
                raise ValueError(f"text {name!r} has {len(value)} bytes, and a record has room for {field.itemsize}: shorten it")
        record[name] = value
    return record


def values_of(record: np.void, names: list[str]) -> dict[str, Any]:
    """Returns the named fields of a record, text decoded: the inverse of `record_of`."""
    return {name: record[name].decode() if record.dtype[name].kind == "S" else record[name] for name in names}
