"""The real-time command and its replay, as they are typed, on a body that does not fall."""

import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from experiments import real_time, replay
from hierarchy.control.driver import Driven
from hierarchy.corpus.store import Source

# Processes that compile are started: minutes on a busy machine.
pytestmark = pytest.mark.long

TICKS = 30


def command(module, *options: object) -> int:
    """Returns the exit code of a command with these options, run in this process."""
    with mock.patch.object(sys, "argv", [module.__name__, *map(str, options)]):
        try:
            return module.main()
        except SystemExit as left:
            return int(left.code or 0)


@pytest.fixture(scope="module")
def flown(tmp_path_factory) -> Path:
    """A run of two episodes, the planner in a thread and the world in a process. On a busy machine a plan may be too old to be
    used, or never come."""
    out = tmp_path_factory.mktemp("real_time") / "run"
    options = ["--preset", "debug", "--task", "point_mass_easy", "--hz", 10, "--ticks", TICKS, "--episodes", 2, "--ratio", 3]
    options += ["--think-s", 0.25, "--planner", "thread", "--world", "process", "--late.then", "no_plan", "--late.max-age", 9]
    # However busy the machine is, its planner is not taken for a hung one.
    options += ["--patience.silent-s", 600]
    assert command(real_time, *options, "--out", out) == 0
    return out


def test_a_run_writes_what_it_says(flown):
    summary = json.loads((flown / "summary.json").read_text())
    assert summary["ticks"] == 2 * TICKS
    assert summary["episodes"] == len(Source.open(flown / "episodes")) == 2
    assert summary["plan_age_ticks"] is None or summary["plan_age_ticks"]["max"] <= 9
    assert summary["wanted_hz"] == 10
    assert summary["fast_hz"] <= 10.5
    assert summary["planner_events"]["ready"] == 1
    lines = [json.loads(line) for line in (flown / "ticks.jsonl").read_text().splitlines()]
    assert [line["tick"] for line in lines] == [*range(TICKS)] * 2
    assert sum(line["missed_by_ms"] > 0 for line in lines) == summary["missed"]
    assert {json.loads(line)["kind"] for line in (flown / "events.jsonl").read_text().splitlines()} >= {"started", "ready"}
    trace = json.loads((flown / "trace.json").read_text())["traceEvents"]
    taken = sum(len(np.load(flown / f"acted-{number:04d}.npz")["ready"]) for number in range(2))
    assert sum(event["name"].startswith("update of tick") for event in trace) <= taken
    assert (flown / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_replay_agrees(flown, capsys):
    assert command(replay, flown) == 0
    said = capsys.readouterr().out
    assert "agrees" in said
    assert said.count("visible") == 2


def test_as_fast_as_possible_from_the_first_plan_on_and_the_replay_of_another_run_is_told(tmp_path, capsys):
    options = ["--preset", "debug", "--task", "point_mass_easy", "--hz", 0, "--ticks", 20, "--planner", "thread"]
    options += ["--patience.silent-s", 600]
    assert command(real_time, *options, "--wait-for-first", "--out", tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["wanted_hz"] is None
    assert summary["missed"] == summary["ticks_without_plan"] == 0
    assert command(replay, tmp_path / "run") == 0
    before = (tmp_path / "run" / "facts.json").read_bytes()
    assert command(real_time, *options, "--out", tmp_path / "run") == 1
    assert "give --out a folder that is new or empty" in capsys.readouterr().err
    assert (tmp_path / "run" / "facts.json").read_bytes() == before
    changes = {"logits": lambda logits: np.roll(logits, 1, axis=0), "ready": lambda ready: ready + 1}
    for what, change in (changes | {"nan": lambda logits: np.full_like(logits, np.nan)}).items():
        changed = Path(shutil.copytree(tmp_path / "run", tmp_path / what))
        with np.load(changed / "acted-0000.npz") as arrays:
            values = dict(arrays)
        name = what if what in values else "logits"
        values[name] = change(values[name])
        np.savez(changed / "acted-0000.npz", **values)
        assert command(replay, changed) == 1


class Unlucky(Driven):
    """A driver that is gone at the third action of its second episode."""

    def step(self, action):
        # The first reset is the one that is warmed up on.
        if self._order["reset"] == 3 and self._order["number"] == 2:
            self._process.kill()
        return super().step(action)


def test_a_patrol_whose_driver_dies_keeps_what_is_whole_and_its_words_and_goals_are_replayed(tmp_path, capsys):
    """The folder may be moved: what a replay reads is in it."""
    options = ["--preset", "debug", "--hz", 20, "--ticks", 8, "--episodes", 2, "--planner", "thread", "--world", "process"]
    with mock.patch.object(real_time, "Driven", Unlucky):
        assert command(real_time, *options, "--patience.silent-s", 600, "--out", tmp_path / "run") == 1
    assert "real_time: the driver has said nothing" in capsys.readouterr().err
    (tmp_path / "run").rename(tmp_path / "moved")
    (episode,) = Source.open(tmp_path / "moved" / "episodes")
    assert episode.ticks == 8
    assert {"sub_goal", "target"} <= episode.privileged.keys()
    assert command(replay, tmp_path / "moved") == 0


@pytest.mark.parametrize("module", [real_time, replay])
def test_help_and_unknown_options(module, capsys):
    assert command(module, "--help") == 0
    said = capsys.readouterr().out
    wanted = ["--hz", "--late.then", "--late.max-age", "--think-s", "--run", "--preset", "--wait-for-first", "--world"]
    assert [option for option in (wanted if module is real_time else ["folder that"]) if option not in said] == []
    assert command(module, "--colour", "red") != 0


def test_what_cannot_be_is_said_in_one_line(tmp_path, capsys):
    assert command(real_time, "--preset", "huge", "--task", "point_mass_easy", "--out", tmp_path / "run") == 1
    assert "real_time: no preset 'huge': there are debug" in capsys.readouterr().err
    assert command(real_time, "--hz", -5, "--out", tmp_path / "other") == 1
    assert "real_time: hz -5: ticks a second" in capsys.readouterr().err
    assert command(replay, tmp_path / "none") == 1
    assert capsys.readouterr().err.startswith("replay: ")


def test_the_safe_action_is_nearest_to_nothing():
    from experiments.tasks import find

    np.testing.assert_array_equal(real_time.safe_action(find("point_mass_easy").make()), [0, 0])
    assert real_time.safe_action(find("cue_recall").make()) == 0
