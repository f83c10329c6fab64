"""The needle's experiment: every depth is judged, one pass answers as acting does, and what is there is not made again."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from envs.needle import Rules
from experiments import needle
from experiments.evaluate import load
from experiments.needle import (
    DEPTHS,
    Asked,
    Cell,
    NeedleConfig,
    acted,
    asked,
    cells,
    draw,
    matched_steps,
    mean,
    tabulated,
    training,
    verdicts,
)

CONFIG = NeedleConfig()


def found(worst: dict[tuple[str, int], float], others: float = 100.0) -> list[Cell]:
    """All cells, of which one an agent and length is so bad."""
    return [
        Cell(agent, ticks, many, depth, 50, worst.get((agent, ticks), others) if (many, depth) == (4, 6) else others, 0.0, 100.0)
        for agent in ("two_rate", "single_rate")
        for ticks in CONFIG.lengths
        for many in CONFIG.needles
        for depth in range(DEPTHS)
    ]


@pytest.mark.parametrize(
    ("worst", "holds"),
    [
        ({}, [True] * 5),
        ({("two_rate", 4096): 94.0, ("two_rate", 16384): 81.0}, [True, True, False, True, True]),
        ({("two_rate", 256): 96.0, ("two_rate", 16384): 79.0}, [True, True, True, False, True]),
        ({("single_rate", 256): 0.0, ("single_rate", 16384): 0.0}, [True] * 5),
    ],
)
def test_every_depth_is_to_be_right_enough(worst, holds):
    assert [held for *_, held in verdicts(found(worst), CONFIG).values()] == holds


def test_a_single_rate_agent_that_has_learnt_nothing_is_no_comparison():
    cells_ = [cell._replace(right=50.0) if cell.agent == "single_rate" else cell for cell in found({})]
    assert [held for *_, held in verdicts(cells_, CONFIG).values()] == [True] * 4 + [False]


def test_a_question_is_answered_where_every_tick_of_it_is_and_stands_at_its_needle_s_depth():
    right = np.ones((2, 2, 4), bool)
    right[0, 1, 3] = False
    own = cells("two_rate", Rules(ticks=160, needles=2, hold=4), Asked(np.array([[0.0, 0.55], [0.5, 0.975]]), right))
    assert [(cell.depth, cell.questions, cell.right) for cell in own] == [(0, 1, 100.0), (5, 2, 50.0), (9, 1, 100.0)]
    assert own[1].low < 50.0 < own[1].high


def test_numbers_of_needles_count_alike():
    cells_ = [Cell("two_rate", 256, 1, 0, 10, 100.0, 0, 100), Cell("two_rate", 256, 16, 0, 1000, 50.0, 0, 100)]
    assert mean(cells_, "two_rate", 256) == 75.0


def test_the_picture_and_the_table_show_every_cell(tmp_path):
    draw(found({}), CONFIG, tmp_path / "needle.png")
    assert (tmp_path / "needle.png").stat().st_size > 10_000
    assert tabulated(found({}), CONFIG).row_count == 2 * 4 * 3


@pytest.mark.parametrize(("wrong", "said"), [(dict(lengths=(250,)), "whole stretches of 16"), (dict(held=128), "no longer than")])
def test_lengths_that_cannot_be_measured_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        NeedleConfig(**wrong)


@pytest.mark.long
def test_a_try_runs_to_its_end_and_is_not_made_again(tmp_path, monkeypatch):
    config = NeedleConfig(
        tmp_path,
        lengths=(64, 128),
        needles=(1, 2),
        trained=96,
        held=80,
        recorded=60,
        steps=3,
        planner_steps=2,
        questions=2,
        single_rate_questions=1,
        closed=3,
    )
    monkeypatch.setattr(
        needle, "training", lambda *which: dataclasses.replace(own := training(*which), mix=dataclasses.replace(own.mix, rows=2))
    )
    rows, (_, agree) = needle.needles(config)
    assert agree == 100.0
    assert {(cell.agent, cell.ticks, cell.needles) for cell in rows} == {
        (agent, ticks, many) for agent in ("two_rate", "single_rate") for ticks in (64, 128) for many in (1, 2)
    }
    assert json.loads((tmp_path / "single_rate_steps.json").read_text())["steps"] >= 2
    for name in ("asked", "acted", "pace_s"):
        monkeypatch.setattr(needle, name, None)
    assert needle.needles(config)[0] == rows


@pytest.mark.long
def test_one_pass_answers_as_acting_tick_by_tick_does(tmp_path):
    """Of agents that know nothing: they are right now and then, and the two must be so at the same ticks."""
    config = NeedleConfig(tmp_path, lengths=(64,), trained=96, held=80, recorded=60, steps=3, planner_steps=2)
    for agent in ("two_rate", "single_rate"):
        needle.train_run(training(config, agent, 3))
        trained, rules, seeds = load(tmp_path / agent), Rules(ticks=96, needles=2), range(20, 32)
        trained = dataclasses.replace(trained, params=trained.network.init(jax.random.key(1)))
        right = asked(trained, rules, seeds, rows=3).right
        assert 0 < right.mean() < 1
        np.testing.assert_array_equal(right, acted(trained, rules, seeds).right)


def test_a_share_of_time_is_decided_once_and_another_is_refused(tmp_path):
    (tmp_path / "single_rate_steps.json").write_text(json.dumps({"steps": 7, "time": 1.5}))
    assert matched_steps(NeedleConfig(tmp_path, single_rate_time=1.5)) == 7
    with pytest.raises(ValueError, match=r"decided for 1\.5 times the two-rate agent's wall time, asked for 1\.0"):
        matched_steps(NeedleConfig(tmp_path))
