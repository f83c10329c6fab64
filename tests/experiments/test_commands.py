"""The commands as they are typed: every option is named, an unknown one is an error, and what is finished is not done again."""

import dataclasses
import json
import shutil
import subprocess
import sys
import typing

import pytest

from experiments import evaluate, layouts, tasks, train
from experiments.compare_ratios import CompareConfig
from experiments.evaluate import EvaluateConfig
from experiments.evaluate_text import EvaluateTextConfig
from experiments.plan_contents import PlanContentsConfig
from experiments.plan_kinds import PlanKindsConfig
from experiments.prompts import PromptsConfig
from experiments.record import RecordConfig
from experiments.rows import load
from experiments.scripted import ScriptedConfig
from experiments.three_rates import ThreeRatesConfig
from experiments.train import TrainConfig
from hierarchy.layout import Continuous, Field
from tests.experiments import debug_run as tiny
from tests.experiments.debug_run import command

CONFIGS = {
    "record": RecordConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "compare_ratios": CompareConfig,
    "scripted": ScriptedConfig,
    "evaluate_text": EvaluateTextConfig,
    "plan_kinds": PlanKindsConfig,
    "plan_contents": PlanContentsConfig,
    "prompts": PromptsConfig,
    "three_rates": ThreeRatesConfig,
}


def options(config: type, prefix: str = "") -> list[str]:
    """Every option of a config, those of the configs inside it too; a cell's stand by themselves."""
    found = []
    for name, kind in typing.get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            found += options(kind, "" if name == "cell" else f"{prefix}{name}.")
        else:
            found.append("--" + (prefix + name).replace("_", "-"))
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_help_names_every_option(name, capsys):
    assert command(name, "--help") == 0
    said = capsys.readouterr().out.replace("_", "-")
    missing = [option for option in options(CONFIGS[name]) if option not in said]
    assert missing == []


@pytest.mark.parametrize("name", CONFIGS)
def test_an_unknown_option_is_an_error(name, capsys):
    assert command(name, "--task", "patrol", "--colour", "red") != 0
    assert "--colour" in capsys.readouterr().err


def test_a_command_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "experiments.record", "--tusk"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "--tusk" in done.stderr
    assert "Traceback" not in done.stderr


def complaint(capsys, name: str, *given: object) -> str:
    """The one line with which a command fails."""
    capsys.readouterr()
    assert command(name, *given) == 1
    *_, said = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"{name}: ")
    return said


def test_recording_again_does_nothing_and_another_count_is_refused(debug_run, capsys):
    source = debug_run / "corpus" / "patrol"
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    assert command("record", *tiny.recording(debug_run)) == 0
    assert f"{tiny.EPISODES} episodes of patrol" in capsys.readouterr().out
    assert f"holds {tiny.EPISODES} episodes" in complaint(capsys, "record", *tiny.recording(debug_run, 99))
    assert before == {path.name: path.read_bytes() for path in source.iterdir()}


def test_unknown_tasks_and_presets_are_named(debug_run, tmp_path, capsys):
    assert "no task 'patroll': there are patrol" in complaint(
        capsys, "record", "--task", "patroll", "--out", tmp_path / "a", "--episodes", 1
    )
    assert "no source in" in complaint(capsys, "train", "--corpus", tmp_path, "--out", tmp_path / "b")
    wrong = [*tiny.training(debug_run / "corpus", tmp_path / "c"), "--preset", "huge"]
    assert "no preset 'huge': there are debug" in complaint(capsys, "train", *wrong)
    assert list(tmp_path.iterdir()) == []


def test_training_again_does_nothing(debug_run, own_run, capsys):
    before = (own_run / "metrics.jsonl").read_text()
    assert command("train", *tiny.training(debug_run / "corpus", own_run)) == 0
    assert f"{tiny.STEPS} steps" in capsys.readouterr().out
    assert (own_run / "metrics.jsonl").read_text() == before
    assert len(before.splitlines()) == tiny.STEPS + 1


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--agent", "single_rate"], "another agent: 'two_rate', here 'single_rate'"),
        (["--preset", "demo"], "another model.controller.feed_forward: 32, here 256"),
        (["--learner.seed", "5"], "another learner.seed: 0, here 5"),
        (["--mix.ratios", "2"], "another mix.ratios"),
    ],
)
def test_a_run_of_another_kind_is_not_gone_on_with(changed, named, debug_run, own_run, capsys):
    before = sorted(path.name for path in (own_run / "checkpoints").iterdir())
    said = complaint(capsys, "train", *tiny.training(debug_run / "corpus", own_run), *changed)
    assert named in said
    assert "use that, or another folder" in said
    assert sorted(path.name for path in (own_run / "checkpoints").iterdir()) == before


def test_a_checkpoint_of_another_layout_is_refused(debug_run, monkeypatch, capsys):
    layout = dataclasses.replace(layouts.PATROL, controller=(Field("position", Continuous(20.0, 2.0), 3),))
    monkeypatch.setitem(tasks.TASKS, "patrol", dataclasses.replace(tasks.TASKS["patrol"], layout=layout))
    said = complaint(capsys, "evaluate", "--run", debug_run / "two_rate")
    assert "is a checkpoint of another layout: layouts[0].controller" in said
    assert "train it again" in said


def test_a_damaged_checkpoint_reaches_the_user_as_one_line(debug_run, own_run, capsys):
    newest = own_run / "checkpoints" / str(tiny.STEPS)
    heavy = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(heavy.read_bytes())
    data[len(data) // 2] ^= 1
    heavy.write_bytes(data)
    for name, given in (
        ("evaluate", ["--run", own_run]),
        ("train", tiny.training(debug_run / "corpus", own_run)),
        ("compare_ratios", ["--run", own_run, "--rows", own_run / "rows.jsonl"]),
    ):
        said = complaint(capsys, name, *given)
        assert f"checkpoint {tiny.STEPS} in " in said
        assert "is damaged" in said
    shutil.rmtree(newest)
    assert [path.name for path in newest.parent.iterdir()] == [str(tiny.STEPS - 1)]
    assert command("train", *tiny.training(debug_run / "corpus", own_run)) == 0
    assert f"{tiny.STEPS} steps" in capsys.readouterr().out


def cut_short(data: bytes) -> bytes:
    return data[:-200]


def flipped(data: bytes) -> bytes:
    # Every kilobyte, so that any record is hit.
    return bytes(byte ^ (place % 1024 == 512) for place, byte in enumerate(data))


def flipped_early(data: bytes) -> bytes:
    # Only what the loader's thread reads: the last episodes are held out, and read first.
    return flipped(data[: len(data) // 2]) + data[len(data) // 2 :]


@pytest.mark.parametrize("damage", [cut_short, flipped, flipped_early])
def test_a_damaged_source_reaches_the_user_as_one_line(damage, debug_run, tmp_path, capsys):
    corpus = shutil.copytree(debug_run / "corpus", tmp_path / "corpus")
    (shard,) = (corpus / "patrol").glob("*.array_record")
    shard.write_bytes(damage(shard.read_bytes()))
    said = complaint(capsys, "train", *tiny.training(corpus, tmp_path / "out"))
    assert shard.name in said
    assert "record 'patrol' again" in said


def test_evaluate_says_and_writes_a_row(debug_run, tmp_path, capsys):
    given = ["--run", debug_run / "two_rate", "--episodes", "3", "--rows", tmp_path / "rows.jsonl"]
    assert command("evaluate", *given, "--ratio", "4", "--latency", "2", "--control", "stale") == 0
    assert "two_rate on patrol, ratio 4, latency 2, control stale" in capsys.readouterr().out
    (row,) = load(tmp_path / "rows.jsonl")
    assert (row.agent, row.ratio, row.latency, row.control, row.episodes) == ("two_rate", 4, 2, "stale", 3)
    assert row.trained_at == "random"
    assert row.seen_in_training
    assert "was trained on patrol, and not on 'go_to'" in complaint(capsys, "evaluate", *given, "--task", "go_to")


def test_compare_skips_what_is_finished_and_resumes_what_is_not(debug_run, tmp_path, monkeypatch):
    whole = (debug_run / "rows.jsonl").read_text().splitlines()
    cells = [(row.agent, row.ratio, row.latency, row.control) for row in load(debug_run / "rows.jsonl")]
    assert cells == [
        *(("two_rate", ratio, latency, "none") for latency in (0, 4) for ratio in (1, 8)),
        ("two_rate", 8, 0, "zeroed"),
        ("held_action", 2, 0, "none"),
        ("late_action", 1, 2, "none"),
    ]
    measured = []

    def counted(trained, task, cell, *rest):
        measured.append(cell)
        return evaluate.measure(trained, task, cell, *rest)

    monkeypatch.setattr("experiments.compare_ratios.measure", counted)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join([*whole[:2], *whole[4:6]]) + "\n" + whole[6][:40])
    assert command("compare_ratios", *tiny.comparing(debug_run, rows)) == 0
    assert [(cell.agent, cell.ratio, cell.latency) for cell in measured] == [(None, 1, 4), (None, 8, 4), ("late_action", 1, 2)]
    again = {row.key: row.returns for row in load(rows)}
    assert again == {row.key: row.returns for row in load(debug_run / "rows.jsonl")}
    measured.clear()
    assert command("compare_ratios", *tiny.comparing(debug_run, rows)) == 0
    assert measured == []


def test_the_scripted_references_are_rows(tmp_path):
    rows = tmp_path / "scripted.jsonl"
    given = ["--rows", rows, "--episodes", "2", "--ratios", "8", "--latencies", "2"]
    assert command("scripted", *given) == 0
    before = rows.read_text()
    assert command("scripted", *given) == 0
    assert rows.read_text() == before
    found = {row.variant: row.normalised_return for row in load(rows)}
    assert set(found) == {"random", "expert", "hierarchy", "held", "chunks", "late", "compensated"}
    assert found["random"] == pytest.approx(0, abs=1e-6)
    assert found["expert"] == pytest.approx(100)


@pytest.mark.long
def test_every_agent_trains_and_acts(debug_run, tmp_path):
    for agent in ("single_rate", "controller_only"):
        given = [*tiny.training(debug_run / "corpus", tmp_path / agent, steps=2), "--agent", agent]
        assert command("train", *given, "--learner.planner-steps", "0") == 0
        assert command("evaluate", "--run", tmp_path / agent, "--episodes", "2", "--ratio", "1", "--rows", tmp_path / "r") == 0
    facts = json.loads((tmp_path / "single_rate" / "facts.json").read_text())
    assert facts["model"]["planner"] is None
    assert [row.agent for row in load(tmp_path / "r")] == ["single_rate", "controller_only"]
    assert train.TOKENIZER in {path.name for path in (debug_run / "corpus").iterdir()}


@pytest.mark.parametrize("agent", ["two_rate", "single_rate"])
def test_a_row_has_room_for_as_many_pieces_as_were_asked_for_and_else_as_its_tokens(agent, tmp_path):
    config = TrainConfig(tmp_path, tmp_path, agent)
    model = train.model_config(config, *(tasks.schema_of(("text",), 300, name) for name in (agent, "two_rate")))
    plain = train.packing_of(config, model)
    assert plain.text_targets == max(config.mix.planner_tokens, plain.controller_tokens)
    asked = dataclasses.replace(config, mix=dataclasses.replace(config.mix, text_targets=100))
    assert train.packing_of(asked, model) == dataclasses.replace(plain, text_targets=100)


@pytest.mark.long
def test_baselines_that_look_ahead_train_and_have_their_cells(debug_run, tmp_path, capsys):
    wanted = {"chunked": ["--mix.chunks", "1", "4"], "late_action": ["--mix.delays", "2"]}
    for agent, ticks in wanted.items():
        given = [*tiny.training(debug_run / "corpus", tmp_path / agent, steps=2), "--agent", agent, *ticks]
        assert command("train", *given, "--learner.planner-steps", "0") == 0
        cells = ["--episodes", "2", "--ratios", "1", "4", "8", "--latencies", "0", "2", "4"]
        for _ in range(2):
            assert command("compare_ratios", "--run", tmp_path / agent, "--rows", tmp_path / "rows", *cells) == 0
    rows = load(tmp_path / "rows")
    assert [(row.agent, row.variant, row.trained_at, row.ratio, row.latency) for row in rows] == [
        ("chunked", "", "random", 1, 0),
        ("chunked", "", "random", 4, 0),
        ("late_action", "", "k1d2", 1, 2),
    ]
    assert all(row.seen_in_training and row.slow_hz is None and row.tick_ms_p50 for row in rows)
    assert [row.observation_to_action_ticks for row in rows] == [0.0, 1.5, 2.0]
    assert [row.fast_hz for row in rows] == [25.0, 6.25, 25.0]
    # A reading of one token and the tokens of three actions, for four ticks: a token a tick, as when every tick is read.
    assert rows[1].flops_per_tick == pytest.approx(rows[0].flops_per_tick, rel=0.05)
    said = complaint(capsys, "evaluate", "--run", tmp_path / "chunked", "--episodes", "2", "--ratio", "3")
    assert "chunked was trained 1, 4 ticks ahead, and not 3" in said


@pytest.mark.long
def test_an_ablation_is_named_by_its_row(debug_run, tmp_path):
    given = [*tiny.training(debug_run / "corpus", tmp_path / "run", steps=2), "--mix.ratios", "1", "--mix.latencies", "0"]
    given += ["--learner.planner", "frozen", "--learner.weights.sub-goal", "0", "--learner.planner-steps", "0"]
    assert command("train", *given) == 0
    cells = ["--episodes", "2", "--ratios", "1", "8", "--latencies", "0", "--controls", "shuffled", "--held", "2"]
    assert command("compare_ratios", "--run", tmp_path / "run", "--rows", tmp_path / "rows", *cells) == 0
    assert [(row.agent, row.variant, row.trained_at, row.control, row.ratio) for row in load(tmp_path / "rows")] == [
        ("frozen", "fixed+no_sub_goal", "k1d0", "none", 1),
        ("frozen", "fixed+no_sub_goal", "k1d0", "none", 8),
        ("frozen", "fixed+no_sub_goal", "k1d0", "shuffled", 8),
        ("held_action", "frozen+fixed+no_sub_goal", "k1d0", "none", 2),
    ]
    assert [row.seen_in_training for row in load(tmp_path / "rows")] == [True, False, False, False]


@pytest.mark.long
def test_plans_of_several_kinds_are_compared(debug_run, tmp_path, capsys):
    given = ["--corpus", debug_run / "corpus", "--out", tmp_path, "--preset", "debug", "--kinds", "prefix", "quantised"]
    given += ["--steps", "2", "--planner-steps", "1", "--ratios", "8", "--latencies", "0", "--episodes", "2"]
    assert command("plan_kinds", *given) == 0
    said = capsys.readouterr().out
    assert [(row.variant, row.control) for row in load(tmp_path / "rows.jsonl")] == [
        ("prefix", "none"), ("prefix", "shuffled"), ("quantised", "none"), ("quantised", "shuffled")
    ]  # fmt: skip
    # 2 vectors of 16 numbers: of 32 bits, or of log2(8 * 5 * 5 * 5) bits every four.
    assert "1024" in said
    assert "80" in said
    models = [json.loads((tmp_path / kind / "facts.json").read_text())["model"] for kind in ("prefix", "quantised")]
    assert [(model["plan_read"], model["plan_levels"]) for model in models] == [
        ("prefix", []), ("cross_attention", [8, 5, 5, 5])
    ]  # fmt: skip
