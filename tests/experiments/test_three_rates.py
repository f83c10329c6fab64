"""Three rates by the ordinary commands, and the answer that is known for the relayed goal."""

import dataclasses
import json

import jax
import pytest

from envs import relayed_goal
from experiments import three_rates
from experiments.evaluate import Cell, Trained, trained_on, variant_of
from experiments.rows import Row, load
from experiments.tasks import layouts_of, schema_of
from experiments.train import Mix, TrainConfig, assemble, facts_of
from hierarchy.model.config import PRESETS, ModelConfig
from hierarchy.model.flops import flops_per_tick, tick_flops, update_flops
from hierarchy.model.network import build
from tests.experiments import debug_run as tiny
from tests.experiments.debug_run import command
from tests.experiments.test_commands import complaint

ABOVE = ["--mix.above-ratios", "16", "64", "--mix.above-latencies", "0", "8"]


@pytest.fixture(scope="module")
def trained(debug_run, tmp_path_factory):
    """A few steps of three rates on the tiny corpus of the patrol."""
    out = tmp_path_factory.mktemp("three") / "three_rate"
    given = [*tiny.training(debug_run / "corpus", out, steps=2), "--agent", "three_rate", *ABOVE]
    assert command("train", *given, "--learner.planner-steps", "0") == 0
    return out


@pytest.mark.long
def test_the_patrol_trains_and_acts_at_two_ratios(trained, tmp_path, capsys):
    given = ["--run", trained, "--episodes", "2", "--ratio", "8", "--latency", "2", "--rows", tmp_path / "rows"]
    assert command("evaluate", *given, "--above-ratio", "64", "--above-latency", "8") == 0
    assert "three_rate (above_k64d8) on patrol, ratio 8, latency 2" in capsys.readouterr().out
    assert "give --above-ratio, its ticks" in complaint(capsys, "evaluate", *given)
    (row,) = load(tmp_path / "rows")
    assert (row.agent, row.variant, row.ratio, row.latency) == ("three_rate", "above_k64d8", 8, 2)
    assert not row.seen_in_training  # Ratio 8 is not among those that are drawn.
    facts = json.loads((trained / "facts.json").read_text())
    assert len(facts["model"]["above"]) == 1
    assert facts["mix"]["above_ratios"] == [16, 64]
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert 0 <= lines[0]["planner_2_padding"] < 1


def test_two_rates_have_no_planner_above(debug_run, capsys):
    said = complaint(capsys, "evaluate", "--run", debug_run / "two_rate", "--episodes", "2", "--above-ratio", "64")
    assert "two_rate has no planner above the planner: leave --above-ratio out" in said
    facts = json.loads((debug_run / "two_rate" / "facts.json").read_text())
    assert not [name for name in (*facts["model"], *facts["mix"], *facts["schema"]["layouts"][0]) if "above" in name]


@pytest.mark.parametrize(
    ("mix", "cell", "name", "seen"),
    [
        (Mix(), Cell(16, 3, above_ratio=64), "random", True),
        (Mix(), Cell(16, 3, above_ratio=32), "random", False),
        (Mix(), Cell(8, 3, above_ratio=64), "random", False),
        (Mix(ratios=(8,), latencies=(0,)), Cell(8, 0, above_ratio=64, above_latency=4), "random", True),
        (
            Mix(ratios=(8,), latencies=(0,), above_ratios=(64,), above_latencies=(2,)),
            Cell(8, 0, above_ratio=64, above_latency=2),
            "k8d0_k64d2",
            True,
        ),
    ],
)
def test_a_row_says_what_both_links_were_trained_on(debug_run, tmp_path, mix, cell, name, seen):
    """By the facts that a run writes, whether its options are the defaults or not."""
    mix = dataclasses.replace(mix, tasks=("patrol",))
    config = TrainConfig(debug_run / "corpus", tmp_path, "three_rate", preset="debug", mix=mix)
    run = assemble(config)
    facts = json.loads(json.dumps(facts_of(config, run)))
    trained = Trained("three_rate", variant_of(facts), (), run.network, run.schema, run.tokenizer, {}, facts)
    assert trained_on(trained, cell) == (name, seen)
    assert trained.variant == ("" if name == "random" else "fixed")
    Row(
        task="patrol",
        agent="three_rate",
        trained_at=name,
        ratio=8,
        latency=0,
        train_seed=0,
        episodes=1,
        normalised_return=1.0,
        ci_low=0.0,
        ci_high=2.0,
        wall_s=1.0,
    )


def test_what_is_about_another_planner_is_refused_where_there_is_none(debug_run, tmp_path, capsys):
    given = tiny.training(debug_run / "corpus", tmp_path / "out", steps=2)
    said = complaint(capsys, "train", *given, "--mix.above-ratios", "8")
    assert "mix.above-ratios is about a planner above the planner, and two_rate has none: train three_rate" in said
    run = ["--run", debug_run / "two_rate", "--episodes", "2"]
    assert "above_latency 3: two_rate has no planner above" in complaint(capsys, "evaluate", *run, "--above-latency", "3")
    said = complaint(capsys, "evaluate", *run, "--control", "shuffled", "--control-at", "2")
    assert "has no planner 2 whose plans could be changed" in said


def test_a_task_without_such_a_layout_is_named():
    with pytest.raises(ValueError, match="'cue_recall' has no layout of three rates: there are patrol, relayed_goal"):
        layouts_of("cue_recall", "three_rate")


def test_the_words_are_the_slowest_planners_alone():
    (layout,) = layouts_of("patrol", "three_rate").values()
    assert {"instruction", "pads"} <= {field.name for field in layout.above[0]}
    assert not {"instruction", "pads"} & {field.name for field in layout.planner + layout.controller}


def test_each_level_is_paid_for_at_its_own_rate():
    schema, config = schema_of(("patrol",), 280, "three_rate"), three_rates_of("debug")
    layout = schema["patrol"]
    tick = tick_flops(config, schema, layout)
    updates = [update_flops(config, schema, layout, level) for level in (1, 2)]
    assert flops_per_tick(config, schema, layout, 8, (64,)) == pytest.approx(tick + updates[0] / 8 + updates[1] / 64)
    with pytest.raises(ValueError, match="the model has 1 planners above the planner, give each its ticks"):
        flops_per_tick(config, schema, layout, 8)


def three_rates_of(preset: str) -> ModelConfig:
    return dataclasses.replace(PRESETS[preset], above=(PRESETS[preset].planner,))


def test_every_level_has_weights_of_its_own():
    network = build(three_rates_of("debug"), schema_of(("patrol",), 280, "three_rate"))
    names = {name.split("/")[0] for name in jax.eval_shape(network.init, jax.random.key(0))}
    assert names == {"controller", "planner", "planner_2"}


def test_what_is_known_of_a_cell():
    rules = relayed_goal.Rules()
    assert three_rates.known(Cell(1, 0, above_ratio=1)) == 100
    assert three_rates.known(Cell(1, 0, above_ratio=16)) == pytest.approx(
        100 * sum(0.25 + 0.75 * (1 - 1 / rules.course_tau) ** (tick % 16) for tick in range(128)) / 128
    )
    assert all(three_rates.known(cell) == 25 for cell in three_rates.cells() if cell.control != "none")
    kept = [three_rates.known(Cell(4, 0, above_ratio=64, above_latency=late)) for late in (0, 8, 200)]
    assert kept[0] > kept[1] > kept[2] == 25


@pytest.mark.long
def test_what_is_learnt_is_what_is_known(tmp_path):
    answers = three_rates.three_rates(three_rates.ThreeRatesConfig(tmp_path))
    for each in answers:
        assert each.measured == pytest.approx(each.known, abs=3.0), each
    assert (tmp_path / "answers.jsonl").read_text().count("\n") == len(answers)
