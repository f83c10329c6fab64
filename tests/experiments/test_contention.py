"""The measurement of a busy planner: what runs in which order, what its figures come to, and that it goes on where it was."""

import collections
import dataclasses
import json
import sys
from pathlib import Path
from unittest import mock

import pytest

from experiments import contention
from experiments.contention import (
    IDLE,
    LOOP,
    LOOPS,
    ContentionConfig,
    Kind,
    kinds,
    outcomes,
    percent,
    repeats,
    run_config,
    schedule,
    tabulated,
)

CONFIG = ContentionConfig(presets=("debug", "demo"), repeats=4)
REAL_TIME = "real-time priority 50 (SCHED_FIFO) on all threads of the controller"


def invented(p99: float, missed: float, note: str = REAL_TIME) -> dict:
    """The figures of a run."""
    return {
        "ticks": 1000,
        "missed": round(1000 * missed),
        "missed_share": missed,
        "tick_ms": {"p99": p99},
        "slow_hz": 12.5,
        "planner_duty": 0.5,
        "elsewhere": 0.01,
        "stolen": 0.0,
        "parameters": 850_000,
        "notes": ["controller on core 1, planner on cores [0]", note],
    }


def found(busy: float, missed: float, note: str = REAL_TIME) -> dict:
    """What was found where a busy planner makes the p99 of every run grow by `busy` and its share of misses by `missed`."""
    made = {}
    for kind in kinds(CONFIG):
        for repeat in range(repeats(CONFIG, kind)):
            alone = 2.0 + repeat / 10
            against = kind.way not in (IDLE, LOOP)
            made[kind, repeat] = invented(alone * (busy if against else 1), missed if against else 0.001 * (repeat == 1), note)
    return made


def test_every_kind_runs_once_a_round_beginning_with_another_each_time():
    plan = schedule(CONFIG)
    beside = [kind for kind in kinds(CONFIG) if kind.way != LOOP]
    assert (len(beside), len(kinds(CONFIG))) == (12, 14)
    wanted = {(kind, repeat): 1 for kind in beside for repeat in range(4)}
    loops = {(kind, repeat): 1 for kind in kinds(CONFIG) if kind.way == LOOP for repeat in range(LOOPS)}
    assert collections.Counter(plan) == wanted | loops
    assert [repeat for _, repeat in plan] == sorted(repeat for _, repeat in plan)
    first = [next(kind for kind, repeat in plan if repeat == round_) for round_ in range(4)]
    assert len(set(first)) == 4


def test_a_run_is_of_so_many_ticks_at_four_times_real_time():
    config = run_config(CONFIG, Kind("debug", "usual", percent(0.5)))
    assert (config.hz, config.limit, config.duty, config.priority, config.world) == (100, 6000, 0.5, "usual", "here")
    assert run_config(CONFIG, Kind("debug", "usual", IDLE)).duty == 0
    loop = run_config(CONFIG, Kind("debug", "real_time", LOOP))
    assert (loop.planner, loop.duty, loop.ratio, loop.limit) == ("loop", None, 8, 500)


@pytest.mark.parametrize(
    ("busy", "missed", "note", "holds"),
    [
        (1.1, 0.0, REAL_TIME, {"real_time": True, "usual": True}),
        (1.6, 0.0, REAL_TIME, {"real_time": False, "usual": True}),
        (2.6, 0.0, REAL_TIME, {"real_time": False, "usual": False}),
        (1.1, 0.01, REAL_TIME, {"real_time": False, "usual": False}),
        # Where real-time priority is not to be had, the limit is that without it, and it is said.
        (1.6, 0.0, "no real-time priority (Operation not permitted)", {"real_time": True, "usual": True}),
    ],
)
def test_the_verdict_is_on_growth_and_on_misses(busy, missed, note, holds):
    made = outcomes(CONFIG, found(busy, missed, note))
    for each in made:
        if each.kind.way not in (IDLE, LOOP):
            assert each.growth.mean == pytest.approx(busy)
            assert each.holds == holds[each.kind.priority]
            assert each.permitted == ("SCHED_FIFO" in note or each.kind.priority == "usual")
        elif each.kind.way == IDLE:
            assert each.growth is None
            assert each.holds
            assert each.p99_ms.mean == pytest.approx(2.15)
    assert len(tabulated(made).rows) == len(kinds(CONFIG))


def test_the_picture_and_the_json_hold_every_kind(tmp_path):
    runs = found(1.1, 0.0)
    made = outcomes(CONFIG, runs)
    contention.draw(CONFIG, runs, made, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads(json.dumps(contention.report(CONFIG, runs, made)))
    assert len(written["runs"]) == len(runs)
    assert [Kind(**each["kind"]) for each in written["outcomes"]] == kinds(CONFIG)
    assert {each["holds"] for each in written["outcomes"]} == {True}


def test_what_was_measured_otherwise_is_not_taken_for_this(tmp_path):
    kind = kinds(CONFIG)[0]
    config = dataclasses.replace(CONFIG, out=tmp_path)
    line = {"kind": kind, "repeat": 1, "settings": contention.settings(config), "found": invented(2.0, 0.0)}
    (tmp_path / "runs.jsonl").write_text(json.dumps(line) + "\n")
    assert contention.finished(config) == {(kind, 1): invented(2.0, 0.0)}
    assert contention.finished(dataclasses.replace(config, seconds=5.0)) == {}
    assert contention.finished(dataclasses.replace(config, out=tmp_path / "other")) == {}


def test_a_disturbed_run_is_made_again_and_the_last_of_three_counts(tmp_path):
    kind, config = kinds(CONFIG)[0], dataclasses.replace(CONFIG, out=tmp_path)
    quiet, busy, stolen = ({**invented(2.0, 0.0), "elsewhere": e, "stolen": s} for e, s in ((None, 0.02), (0.4, 0.0), (0.0, 0.1)))

    def counted(*found: dict) -> dict:
        lines = [{"kind": kind, "repeat": 0, "settings": contention.settings(config), "found": each} for each in found]
        (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return contention.finished(config).get((kind, 0))

    assert counted(busy) is counted(stolen) is counted(busy, stolen) is None
    assert counted(quiet) == counted(busy, quiet) == counted(busy, stolen, quiet) == quiet
    assert counted(busy, busy, stolen) == stolen


def command(*options: object) -> int:
    with mock.patch.object(sys, "argv", ["contention", *map(str, options)]):
        try:
            return contention.main()
        except SystemExit as left:
            return int(left.code or 0)


def test_help_and_what_cannot_be(capsys):
    assert command("--help") == 0
    said = capsys.readouterr().out.replace("_", "-")
    for field in dataclasses.fields(ContentionConfig):
        assert "--" + field.name.replace("_", "-") in said
    for wrong, words in [
        (("--repeats", 1), "repeats 1: an interval needs at least 2"),
        (("--presets", "huge"), "no preset huge"),
        (("--duties", 2), "duties [2.0]: shares of the time"),
    ]:
        assert command(*wrong) == 1
        assert f"contention: {words}" in capsys.readouterr().err
    assert command("--colour", "red") != 0


@pytest.mark.long
def test_a_short_measurement_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    """What the figures are is this machine's affair; that they are there is not."""
    options = ["--presets", "debug", "--priorities", "usual", "--duties", 1.0, "--seconds", 1, "--repeats", 2, "--out", tmp_path]
    out = tmp_path / "contention.json"

    def stop(*_) -> dict:
        raise KeyboardInterrupt

    monkeypatch.setattr(contention, "TRIES", 1)
    real, calls = contention.told, []
    with mock.patch.object(contention, "told", lambda one: calls.append(one) or (real(one) if len(calls) < 2 else stop())):
        assert command(*options, "--json", out) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    lines = Path(tmp_path / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert command(*options, "--json", out) in (0, 1)
    again = Path(tmp_path / "runs.jsonl").read_text().splitlines()
    assert again[:2] == lines
    assert len(again) == 6
    written = json.loads(out.read_text())
    assert {run["ticks"] for run in written["runs"]} == {100}
    plans = {each["kind"]["way"]: each["slow_hz"] for each in written["outcomes"]}
    assert plans[IDLE] == 0
    assert plans[LOOP] > 0
    assert (tmp_path / "contention.png").exists()
