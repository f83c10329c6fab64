"""The real-time command and its replay, as they are typed, on a body that does not fall."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from experiments import real_time, real_time_figure, real_time_run, replay
from hierarchy.control import harm
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
    used; the first of an episode is waited for."""
    out = tmp_path_factory.mktemp("real_time") / "run"
    options = ["--preset", "debug", "--task", "point_mass_easy", "--hz", 10, "--ticks", TICKS, "--episodes", 2, "--ratio", 3]
    options += ["--think-s", 0.25, "--planner", "thread", "--world", "process", "--late.then", "no_plan", "--late.max-age", 9]
    # However busy the machine is, its planner is not taken for a hung one.
    options += ["--patience.silent-s", 600, "--wait-for-first"]
    assert command(real_time, *options, "--out", out) == 0
    return out


def test_a_run_writes_what_it_says(flown):
    summary = json.loads((flown / "summary.json").read_text())
    assert summary["ticks"] == 2 * TICKS
    assert summary["episodes"] == len(Source.open(flown / "episodes")) == 2
    assert summary["plan_age_ticks"]["max"] <= 9
    assert summary["wanted_hz"] == 10
    assert summary["fast_hz"] <= 10.5
    assert summary["planner_events"]["ready"] == 1
    lines = [json.loads(line) for line in (flown / "ticks.jsonl").read_text().splitlines()]
    assert [line["tick"] for line in lines] == [*range(TICKS)] * 2
    assert sum(line["missed_by_ms"] > 0 for line in lines) == summary["missed"]
    assert {json.loads(line)["kind"] for line in (flown / "events.jsonl").read_text().splitlines()} >= {"started", "ready"}
    trace = json.loads((flown / "trace.json").read_text())["traceEvents"]
    updates = [update for number in range(2) for update in np.load(flown / f"acted-{number:04d}.npz")["updates"].tolist()]
    assert sum(event["name"].startswith("update of tick") for event in trace) == summary["plans_taken"] == len(updates) >= 2
    assert all(ended - began >= 250_000_000 for _, _, began, ended, _ in updates)
    assert (flown / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_is_drawn_again_from_what_was_written(flown, tmp_path, capsys):
    picture = tmp_path / "cadence.png"
    assert command(real_time_figure, flown, "--out", picture, "--from-s", 0.5, "--seconds", 1) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert command(real_time_figure, tmp_path, "--out", picture) == 1
    assert "is no whole run of experiments.real_time" in capsys.readouterr().err


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
    changes |= {"stopped": lambda stopped: np.append(stopped, 4).astype(stopped.dtype)}
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
    with mock.patch.object(real_time_run, "Driven", Unlucky):
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
    for wrong, said in [
        (["--seconds", 0.01], "seconds 0.01 at hz 25: ticks of a known length"),
        (["--harm", -1], "harm -1: how often, 0 or more"),
        (["--harm", 3], "harm 3 needs seconds: the most that it may take"),
        (["--ticks", 0], "ticks 0: of an episode, at least 1"),
        (
            ["--harm", 3, "--seconds", 9, "--planner", "thread"],
            "harm 3 with planner 'thread': it is for one in a process of its own",
        ),
        (["--duty", 0.5, "--planner", "loop"], "planner 'loop' is waited for"),
        (["--rehearse", "--planner", "thread"], "rehearse with planner 'thread': the two would wait for each other"),
        (["--late-share", 0.5], "a share of 0.5 of plans held back by up to 0 s"),
        (["--ratio", 0], "ratio 0 is at least 1"),
    ]:
        assert command(real_time, *wrong, "--out", tmp_path / "other") == 1
        assert f"real_time: {said}" in capsys.readouterr().err
        assert not (tmp_path / "other").exists()
    assert command(replay, tmp_path / "none") == 1
    assert capsys.readouterr().err.startswith("replay: ")


def test_the_safe_action_is_nearest_to_nothing():
    from experiments.tasks import find

    np.testing.assert_array_equal(real_time_run.safe_action(find("point_mass_easy").make()), [0, 0])
    assert real_time_run.safe_action(find("cue_recall").make()) == 0


PATIENT = ["--patience.silent-s", 600]


def test_with_its_planner_in_a_process_it_writes_the_same_and_the_replay_agrees(tmp_path, capsys):
    """Plans are held back at random, and most ticks go on meanwhile."""
    options = ["--preset", "debug", "--task", "point_mass_easy", "--hz", 25, "--ticks", 60, "--episodes", 2, "--ratio", 2]
    options += ["--late-share", 0.5, "--late-s", 0.2, "--wait-for-first", *PATIENT]
    assert command(real_time, *options, "--out", tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["ticks"] == 120
    assert summary["planner_events"] == {"started": 1, "ready": 1}
    assert 0 < summary["plans_held_back"] < summary["plans_taken"]
    assert 0 < summary["planner_duty"] <= 1.1
    capsys.readouterr()
    assert command(replay, tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert f"{summary['plans_held_back']} plans that were taken had been held back on purpose" in said
    assert "agrees" in said


def test_at_least_fifty_late_plans_are_replayed(tmp_path, capsys):
    options = ["--preset", "debug", "--hz", 50, "--seconds", 60, "--ratio", 2, "--late-share", 0.7, "--late-s", 0.4, *PATIENT]
    assert command(real_time, *options, "--out", tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["ticks"] == 3000
    assert summary["plans_held_back"] >= 50
    assert command(replay, tmp_path / "run") == 0


def test_a_planner_that_is_harmed_a_hundred_times_costs_no_tick(tmp_path, capsys):
    """Each harm is counted by its kind, and the run goes on to its end and replays."""
    options = ["--preset", "debug", "--task", "point_mass_easy", "--hz", 20, "--ticks", 500, "--seconds", 3600, "--harm", 100]
    # What counts as hung on a quiet machine is a busy planner on another.
    assert command(real_time, *options, "--patience.silent-s", 10, "--out", tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    done, events = summary["harm"], summary["planner_events"]
    assert done["done"] == sum(done["by_kind"].values()) == 100
    assert done["over"]
    assert set(done["by_kind"]) == set(harm.KINDS)
    assert {kind: events[f"harm: {kind}"] for kind in harm.KINDS} == done["by_kind"]
    # A planner that was harmed for good was seen to be, and replaced; on a busy machine others may have been too.
    for_good = sum(done["by_kind"][kind] for kind in ("kill", "stop", "corrupt"))
    replaced = sum(events.get(kind, 0) for kind in ("died", "hung", "refused"))
    assert replaced >= for_good
    assert events["started"] == replaced + 1
    assert "gave up" not in events
    rows = np.load(tmp_path / "run" / "ticks.npy")
    lengths = [episode.ticks for episode in Source.open(tmp_path / "run" / "episodes")]
    assert rows["tick"].tolist() == [tick for length in lengths for tick in range(length)]
    # Waiting for another planner would take seconds.
    assert (rows["computed"] - rows["deadline"]).max() < 2e9
    assert (rows["acted"] >= rows["computed"]).all()
    capsys.readouterr()
    assert command(replay, tmp_path / "run") == 0


def leftovers(session: int) -> list[str]:
    """Returns the processes of a session that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        state, _, _, its_session = rest.split()[:4]
        if int(its_session) == session and state != "Z":
            found.append(name)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc")
def test_control_c_in_the_middle_keeps_whole_episodes_and_leaves_nothing_behind(tmp_path):
    options = ["--preset", "debug", "--task", "point_mass_easy", "--hz", 25, "--ticks", 25, "--episodes", 1000, *PATIENT]
    line = [sys.executable, "-m", "experiments.real_time", *map(str, options), "--world", "process", "--out", tmp_path / "run"]
    places = [Path(tempfile.gettempdir()), Path("/dev/shm")]
    ours = ("pym-", "psm_", "sem.")
    before = {path for place in places if place.exists() for path in place.iterdir() if path.name.startswith(ours)}
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        said = []

        def listen() -> None:
            said.extend(running.stderr)

        listener = threading.Thread(target=listen)
        listener.start()
        until = time.monotonic() + 900
        while not any("episode 2 of 1000" in one for one in said):
            assert time.monotonic() < until, said
            assert running.poll() is None, said
            time.sleep(0.05)
        time.sleep(0.4)
        # As a terminal sends it: to all of them.
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(120) == 0, said
        listener.join()
    until = time.monotonic() + 10
    while leftovers(running.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert leftovers(running.pid) == []
    after = {path for place in places if place.exists() for path in place.iterdir() if path.name.startswith(ours)}
    assert not after - before
    episodes = list(Source.open(tmp_path / "run" / "episodes"))
    assert len(episodes) >= 2
    assert {episode.ticks for episode in episodes} == {25}
    assert command(replay, tmp_path / "run") == 0


def test_a_planner_in_the_loop_is_never_late_and_its_controller_waits(tmp_path):
    options = ["--preset", "debug", "--task", "point_mass_easy", "--hz", 20, "--seconds", 4, "--ticks", 50, "--planner", "loop"]
    assert command(real_time, *options, "--out", tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["ticks"], summary["episodes"]) == (80, 2)
    assert summary["plan_age_ticks"]["max"] == 7
    assert summary["ticks_without_plan"] == 0
    assert command(replay, tmp_path / "run") == 0
