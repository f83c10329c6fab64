"""The demo's every stage, on the debug preset: the same code, smaller numbers."""

import dataclasses
import json

import pytest

from experiments import rows
from experiments.demo import DemoConfig, demo, matched_steps
from experiments.stages import Stages, run_stages

SMALL = DemoConfig(
    preset="debug",
    patrol_episodes=8,
    suite=("reacher_easy",),
    suite_episodes=2,
    steps=6,
    planner_steps=2,
    episodes=2,
    suite_evaluations=2,
    ratios=(1, 8),
    latencies=(0, 8),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = dataclasses.replace(SMALL, out=tmp_path_factory.mktemp("demo"))
    demo(config)
    return config


def test_the_report_is_one_file_with_plots_and_a_video(finished):
    page = (finished.out / "report.html").read_text()
    assert "data:video/mp4;base64," in page
    assert page.count("data:image/") >= 4
    assert 'src="http' not in page


def test_every_cell_has_its_row(finished):
    table = rows.load(finished.out / "rows.jsonl")
    assert len({row.key for row in table}) == len(table)
    patrol = [row for row in table if row.task == "patrol"]
    cells = {(row.ratio, row.latency) for row in patrol if row.agent == "two_rate" and row.control == "none"}
    assert cells == {(ratio, latency) for ratio in SMALL.ratios for latency in SMALL.latencies}
    assert {row.control for row in patrol if row.agent == "two_rate"} == {
        "none", "zeroed", "frozen", "shuffled", "stale", "random"
    }  # fmt: skip
    assert {row.variant for row in patrol if row.agent == "held_action"} == {"two_rate", "single_rate"}
    assert {row.variant for row in patrol if row.agent == "late_action"} == {"two_rate", "single_rate"}
    assert {row.agent for row in table if row.task == "reacher_easy"} == {"two_rate", "single_rate", "scripted"}
    assert all(row.seen_in_training == (row.ratio == 1) for row in patrol if row.agent == "two_rate" and row.control == "none")


def test_the_baseline_has_the_parameters_of_both_models_and_the_same_wall_time(finished):
    table = rows.load(finished.out / "rows.jsonl")
    params = {row.agent: row.params for row in table if row.agent in ("two_rate", "single_rate")}
    assert params["single_rate"] == pytest.approx(params["two_rate"], rel=0.02)
    decided = json.loads((finished.out / "single_rate_steps.json").read_text())
    phases = SMALL.planner_steps / SMALL.steps
    pace = phases * decided["warm_up_step_s"] + (1 - phases) * decided["step_s"]
    assert decided["steps"] == max(2, round(decided["budget_s"] / pace))
    assert matched_steps(finished) == decided["steps"], "decided once, whatever the machine does later"


def test_run_again_it_repeats_nothing_and_mends_what_is_missing(finished):
    path = finished.out / "rows.jsonl"
    before = path.read_text()
    lines = before.splitlines(keepends=True)
    lost = next(i for i, line in enumerate(lines) if '"agent": "two_rate"' in line and '"patrol"' in line)
    path.write_text("".join(lines[:lost] + lines[lost + 1 :]) + '{"task": "pat')
    (finished.out / "report.html").unlink()
    demo(finished)
    again = {row.key: row.returns for row in rows.load(path)}
    assert again == {row.key: row.returns for row in map(rows.from_json, map(json.loads, lines))}
    assert path.read_text().startswith("".join(lines[:lost] + lines[lost + 1 :])), "rows that were there are left alone"
    assert (finished.out / "report.html").exists()


def test_the_time_left_follows_the_pace_so_far(tmp_path):
    stages = Stages(tmp_path, {"first": 2.0, "second": 3.0})
    assert stages.left("first") == pytest.approx(5.0)
    stages.took_s["first"] = 240.0
    assert stages.left("second") == pytest.approx(6.0)


def test_a_folder_has_one_demo_at_a_time_and_is_free_again_after_a_failure(tmp_path):
    done = []
    with Stages(tmp_path, {"only": 1.0}).held(), pytest.raises(ValueError, match=r"in use .* another --out"):
        run_stages(Stages(tmp_path, {"only": 1.0}), [("only", lambda: done.append("second"))])
    assert not done
    with pytest.raises(OSError, match="disk"):
        run_stages(Stages(tmp_path, {"only": 1.0}), [("only", fail)])
    run_stages(Stages(tmp_path, {"only": 1.0}), [("only", lambda: done.append("third"))])
    assert done == ["third"]


def fail():
    """Raises what a full disk does."""
    raise OSError("disk full")
