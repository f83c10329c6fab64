"""Prompts in training and when a loop is closed, through the commands."""

import json

import numpy as np
import pytest

from experiments.evaluate import Cell, demonstrations, load, policy_of, variant_in_rows
from experiments.rows import load as load_rows
from experiments.train import Mix, mix_of
from tests.experiments import debug_run as tiny
from tests.experiments.debug_run import command
from tests.experiments.test_commands import complaint


def test_a_quarter_begins_after_a_prompt_only_if_asked(debug_run, tmp_path):
    given = tiny.training(debug_run / "corpus", tmp_path / "run", steps=2)
    assert command("train", *given, "--mix.prompts", "0.9", "--mix.prompt-ticks", "12") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [line["prompted"] for line in lines if line["group"] == "train"]
    assert np.mean(shares) > 0.4
    mix = json.loads((tmp_path / "run" / "facts.json").read_text())["mix"]
    assert (mix["prompts"], mix["prompt_ticks"]) == (0.9, 12)
    assert load(tmp_path / "run").variant == "prompts"
    assert not {"prompts", "prompt_ticks"} & json.loads((debug_run / "two_rate" / "facts.json").read_text())["mix"].keys()
    assert "prompts" not in mix_of(Mix())


def test_a_demonstration_is_shown_before_tick_0(debug_run, tmp_path, capsys):
    given = ["--run", debug_run / "two_rate", "--episodes", "2", "--rows", tmp_path / "rows.jsonl", "--ratio", "4"]
    assert command("evaluate", *given, "--prompt", "patrol", "--prompt-ticks", "9") == 0
    (row,) = load_rows(tmp_path / "rows.jsonl")
    assert row.variant == "after_patrol_9"
    assert "was trained on patrol" in complaint(capsys, "evaluate", *given, "--prompt", "go_to")
    assert "has 9999 ticks: record more, or prompt less" in complaint(
        capsys, "evaluate", *given, "--prompt", "patrol", "--prompt-ticks", "9999"
    )


def test_a_demonstration_is_the_end_of_an_episode_that_was_held_out(debug_run):
    trained = load(debug_run / "two_rate")
    shown = demonstrations(debug_run / "corpus" / "patrol", (5, 6, 5), 9)
    assert [episode.ticks for episode in shown] == [9, 9, 9]
    assert shown[0].seed == shown[2].seed == tiny.EPISODES - 1
    state = policy_of(trained, "two_rate", "patrol", Cell(4, 2, prompt="patrol", prompt_ticks=9)).begin([5, 6])
    time = np.asarray(state.controller.place.time)[np.asarray(state.controller.place.segment) > 0]
    assert (time.min(), time.max(), state.tick) == (-8, -1, 0)
    assert variant_in_rows(trained, Cell(4, 2, agent="held_action", prompt="patrol")) == "two_rate+after_patrol_32"


@pytest.mark.long
def test_what_a_prompt_is_worth_is_measured_and_not_measured_again(tmp_path, capsys):
    given = ["--out", tmp_path, "--preset", "debug", "--recorded", "8", "--steps", "4", "--planner-steps", "2", "--episodes", "4"]
    assert command("prompts", *given) == 0
    said, rows = capsys.readouterr().out, load_rows(tmp_path / "rows.jsonl")
    assert said.count("the other task") == 4
    assert len({(row.task, row.variant) for row in rows}) == len(rows) == 12
    assert command("prompts", *given) == 0
    assert load_rows(tmp_path / "rows.jsonl") == rows
    assert "give two different ones" in complaint(capsys, "prompts", *given, "--tasks", "cue_recall", "cue_recall")
