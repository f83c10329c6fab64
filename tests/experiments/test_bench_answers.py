"""What the bench calls known is what scripted readers of plans do, and its scores count the ticks that they say."""

import numpy as np
import pytest

from envs import cue_recall, switching_goal
from envs.bench_references import act_on_goal, plan_reader, recall_cue
from envs.cue_recall import CueRecall
from envs.loop import run
from envs.switching_goal import SwitchingGoal
from experiments.bench import followed, known, scores, settled
from experiments.evaluate import Cell

EPISODES = 300
TICKS = switching_goal.Rules().ticks


def first_read(observations, reads):
    return act_on_goal(observations, None if reads is None else reads[:1])


def read_before(observations, reads):
    return act_on_goal(observations, None if reads is None else reads[max(len(reads) - 2, 0) :][:1])


def switching(act, cell):
    policy = plan_reader(act, "goal", TICKS, cell.ratio, cell.latency)
    return list(run([SwitchingGoal() for _ in range(EPISODES)], policy, range(EPISODES)))


@pytest.mark.parametrize(
    ("act", "cell"),
    [
        (act_on_goal, Cell(8, 0)),
        (act_on_goal, Cell(32, 4)),
        (first_read, Cell(8, 0, control="frozen")),
        (read_before, Cell(8, 4, control="stale")),
    ],
)
def test_switching_goal_is_known(act, cell):
    percent, ticks = scores("switching_goal", cell, np.stack([moment.rewards for moment in switching(act, cell)]))
    # The error of 300 episodes' mean is at most 1.1 points here.
    assert percent.mean() == pytest.approx(known("switching_goal", cell)[0], abs=3.0)
    assert ticks % cell.ratio == 0


def test_settled_ticks_are_whole_periods_with_a_plan():
    rules = switching_goal.Rules()
    assert settled(rules, Cell(32, 4)) == slice(4, 100)
    assert settled(rules, Cell(32, 0)) == slice(0, 128)
    assert settled(rules, Cell(1, 4)) == slice(4, 128)


def test_following_is_acting_on_what_the_visible_plan_saw():
    cell = Cell(8, 4)
    assert followed(cell, switching(act_on_goal, cell)) == 100.0
    assert followed(cell, switching(read_before, cell)) < 90.0


@pytest.mark.parametrize("ratio", [1, 8, 32])
def test_cue_recall_counts_answers_alone(ratio):
    cell, rules = Cell(ratio, 4), cue_recall.Rules()
    policy = plan_reader(recall_cue, "cue", rules.ticks, ratio, 4)
    moments = run([CueRecall() for _ in range(50)], policy, range(50))
    percent, ticks = scores("cue_recall", cell, np.stack([moment.rewards for moment in moments]))
    assert percent.mean() == known("cue_recall", cell)[0] == 100.0
    assert ticks == rules.answers
