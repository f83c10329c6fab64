"""Records in shared memory: what is read was written, whole, whatever happens to who writes it."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from dm_env import specs
from hypothesis import given, settings
from hypothesis import strategies as st

from hierarchy.control.records import Records, fields_of, record_of, values_of

WIDE = np.dtype([("number", np.int64), ("copies", np.int64, (4000,))])


def write_for_ever(records: Records, first: int) -> None:
    number = first
    while True:
        records.write(record_of(WIDE, {"number": number, "copies": number}))
        number += 1


def started(records: Records, first: int) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=write_for_ever, args=(records, first), daemon=True)
    process.start()
    return process


def newest(records: Records, after: int, until: float) -> tuple[int, np.void]:
    while time.monotonic() < until:
        if (found := records.read(after=after)) is not None:
            return found
    raise AssertionError("no record in time")


def test_no_record_is_torn_while_another_process_writes_and_is_stopped_and_killed():
    """A million words a second are written under the reader's eyes; four writers are stopped, then killed, wherever they are."""
    records, sequence, seen = Records(WIDE), 0, 0
    for generation in range(4):
        writer = started(records, 10**12 * generation)
        try:
            sequence, record = newest(records, sequence, time.monotonic() + 600)
            began, before, enough = time.monotonic(), -1, seen + 30
            # On a busy machine this takes longer, and sees as much.
            while time.monotonic() < began + 0.4 or (seen < enough and time.monotonic() < began + 600):
                found = records.read(after=sequence)
                if found is not None:
                    sequence, record = found
                    assert (record["copies"] == record["number"]).all()
                    assert record["number"] > before
                    before, seen = record["number"], seen + 1
            os.kill(writer.pid, signal.SIGSTOP)
            # A stopped writer holds nobody up: what is there is whole or not there.
            time.sleep(0.05)
            found = records.read()
            assert found is None or (found[1]["copies"] == found[1]["number"]).all()
        finally:
            writer.kill()
            writer.join()
    assert seen > 100


def test_a_writer_killed_half_way_is_taken_over_from():
    records = Records(WIDE)
    records.write(record_of(WIDE, {"number": 1, "copies": 1}))
    # As if killed between the words.
    records._sequence[0] |= 1
    records._bytes[200:400] = b"\xff" * 200
    assert records.read() is None
    records.write(record_of(WIDE, {"number": 2, "copies": 2}))
    sequence, record = records.read()
    assert sequence % 2 == 0
    assert record["number"] == 2
    assert (record["copies"] == 2).all()


def test_words_written_behind_the_locks_back_are_not_read():
    records = Records(WIDE)
    records.write(record_of(WIDE, {"number": 1, "copies": 1}))
    records.damage(b"\xff" * 8)
    assert records.read() is None
    records.write(record_of(WIDE, {"number": 2, "copies": 2}))
    assert records.read()[1]["number"] == 2


def test_damage_stays_within_its_row():
    records = Records(WIDE, rows=3)
    for row in range(3):
        records.write(record_of(WIDE, {"number": row, "copies": row}), row)
    records.damage(b"\xff" * 10**6, 1)
    assert records.read(1) is None
    assert [int(records.read(row)[1]["number"]) for row in (0, 2)] == [0, 2]


def test_a_record_that_was_read_does_not_change():
    records = Records(WIDE)
    records.write(record_of(WIDE, {"number": 1, "copies": 1}))
    _, record = records.read()
    records.write(record_of(WIDE, {"number": 2, "copies": 2}))
    assert (record["copies"] == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        record["copies"][0] = 3


def test_a_reader_is_told_only_what_is_new_and_rows_are_apart():
    records = Records(np.dtype([("x", np.int32)]), rows=3)
    assert records.read(1) is None
    records.write(record_of(records.dtype, {"x": 5}), 1)
    sequence, record = records.read(1)
    assert record["x"] == 5
    assert records.read(1, after=sequence) is None
    assert records.read(0) is None
    assert records.read(2) is None


SPEC = {
    "count": specs.DiscreteArray(9, name="count"),
    "state": specs.Array((2, 3), np.float32, name="state"),
    "words": specs.StringArray((), name="words"),
}


@given(
    st.integers(0, 8),
    st.lists(st.floats(allow_nan=False, width=32), min_size=6, max_size=6),
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40),
)
@settings(max_examples=50, deadline=None)
def test_observations_come_out_as_they_went_in(count, state, words):
    records = Records(np.dtype(fields_of(SPEC, 200)))
    state = np.array(state, np.float32).reshape(2, 3)
    records.write(record_of(records.dtype, {"count": count, "state": state, "words": words}))
    found = values_of(records.read()[1], list(SPEC))
    assert found["count"] == count
    np.testing.assert_array_equal(found["state"], state)
    assert found["words"] == words


def test_a_text_that_is_too_long_is_named():
    with pytest.raises(ValueError, match="text 'words' has 9 bytes, and a record has room for 8: shorten it"):
        record_of(np.dtype(fields_of(SPEC, 8)), {"words": "123456789"})
