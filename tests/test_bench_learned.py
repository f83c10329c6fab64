"""One small model a bench task, trained here and now, does what the task's own formulas say."""

import pytest

from envs import switching_goal
from experiments.bench import LATENCIES, RATIOS, BenchConfig, bench, sub_goal_accuracy

pytestmark = pytest.mark.long


def answers_of(task, folder):
    config = BenchConfig(task, folder)
    return {(each.agent, each.control, each.ratio, each.latency): each for each in bench(config)}


def test_switching_goal_is_right_as_often_as_its_redraw_rule_says(tmp_path):
    answers, rules = answers_of("switching_goal", tmp_path), switching_goal.Rules()
    for latency in LATENCIES:
        for ratio in RATIOS:
            cell = answers["two_rate", "none", ratio, latency]
            known = 100 * switching_goal.correct_probability(ratio, latency, rules.tau, rules.goals)
            assert cell.ticks >= 20_000
            assert cell.measured == pytest.approx(known, abs=3.0)
            assert cell.followed > 99.5
    assert sub_goal_accuracy(tmp_path / "two_rate") > 99.5


def test_cue_is_recalled_by_the_planner_alone(tmp_path):
    answers = answers_of("cue_recall", tmp_path)
    assert all(answers["two_rate", "none", ratio, latency].measured >= 90.0 for ratio in RATIOS for latency in LATENCIES)
    blind = [answers["controller_only", "none", None, None]] + [answers["two_rate", how, 8, 0] for how in ("zeroed", "shuffled")]
    assert all(each.measured <= 25.0 + 5.0 for each in blind)


def test_disturbances_are_rejected_at_every_tick_or_not_at_all(tmp_path):
    answers = answers_of("disturbance_rejection", tmp_path)
    assert answers["two_rate", "none", 8, 0].measured >= 80.0
    for k in (2, 4, 8):
        held = answers["held_action", "none", k, 0]
        assert held.measured <= held.known
    assert answers["held_action", "none", 8, 0].measured <= 10.0
