import dataclasses
import json
import multiprocessing

import pytest

from experiments import rows
from experiments.rows import Row


def row(**changes):
    """A row of the patrol with some fields changed."""
    values = dict(
        task="patrol",
        agent="two_rate",
        trained_at="random",
        ratio=8,
        latency=0,
        train_seed=0,
        episodes=3,
        normalised_return=90.0,
        ci_low=85.0,
        ci_high=93.0,
        wall_s=1.5,
        returns=(3.0, 4.0, 3.0),
    )
    return Row(**(values | changes))


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    written = [row(ratio=ratio) for ratio in (1, 8)] + [row(agent="controller_only", ratio=None, latency=None)]
    for one in written:
        rows.append(path, one)
    assert rows.load(path) == written
    assert rows.load(tmp_path / "none.jsonl") == []


def append_many(path, ratios):
    for ratio in ratios:
        rows.append(path, row(ratio=ratio))


def test_processes_that_append_at_once_lose_no_row(tmp_path):
    path, spawn = tmp_path / "rows.jsonl", multiprocessing.get_context("spawn")
    apart = range(1, 201), range(201, 401)
    writing = [spawn.Process(target=append_many, args=(path, ratios)) for ratios in apart]
    for process in writing:
        process.start()
    seen = [0]
    while any(process.is_alive() for process in writing):
        seen.append(len(rows.load(path)))
    assert seen == sorted(seen)
    assert [process.exitcode for process in writing] == [0, 0]
    assert sorted(each.ratio for each in rows.load(path)) == list(range(1, 401))


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_torn_last_line_is_left_out_and_replaced(tmp_path, capsys, cut):
    path = tmp_path / "rows.jsonl"
    rows.append(path, row(ratio=1))
    rows.append(path, row(ratio=2))
    path.write_bytes(path.read_bytes()[:-cut])
    assert rows.load(path) == [row(ratio=1)]
    assert "cut short" in capsys.readouterr().err
    rows.append(path, row(ratio=4))
    assert rows.load(path) == [row(ratio=1), row(ratio=4)]
    assert capsys.readouterr().err == ""


def test_a_bad_line_inside_is_named_and_nothing_is_lost(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows.append(path, row())
    path.write_text("{}\n" + path.read_text())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="line 1"):
        rows.load(path)
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    rows.append(path, row(ratio=1))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows.os, "fsync", full)
    with pytest.raises(OSError, match="rows before it are safe"):
        rows.append(path, row(ratio=2))
    assert rows.load(path) == [row(ratio=1)]


def test_the_newest_row_of_a_cell_counts():
    first, second, other = row(), row(normalised_return=91.0), row(latency=8)
    assert rows.by_key([first, other, second]) == {first.key: second, other.key: other}


def test_the_key_holds_what_tells_cells_apart_and_nothing_measured():
    base = row()
    apart = dict(
        variant="x", control="zeroed", trained_at="k1d0", ratio=4, latency=2, train_seed=1, agent="detached", task="go_to"
    )
    assert all(row(**{name: value}).key != base.key for name, value in apart.items())
    assert row(wall_s=9.0, flops_per_tick=1e6, normalised_return=88.0).key == base.key


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"agent": "hybrid"}, "agent"),
        ({"control": "off"}, "control"),
        ({"trained_at": "k0d0"}, "trained_at"),
        ({"ratio": 0}, "ratio"),
        ({"latency": -1}, "latency"),
        ({"episodes": 2}, "episodes"),
        ({"ci_high": 80.0}, "interval"),
        ({"tick_ms_p99": float("nan")}, "tick_ms_p99"),
        ({"returns": (1.0, float("inf"), 2.0)}, "returns"),
        ({"task": ""}, "task"),
    ],
)
def test_what_is_not_a_row_is_refused_by_name(change, named):
    with pytest.raises(ValueError, match=named):
        row(**change)


def test_json_with_an_unknown_or_missing_field_is_refused():
    values = json.loads(json.dumps(dataclasses.asdict(row())))
    with pytest.raises(ValueError, match="colour"):
        rows.from_json(values | {"colour": "red"})
    del values["episodes"]
    with pytest.raises(ValueError, match="episodes"):
        rows.from_json(values)
