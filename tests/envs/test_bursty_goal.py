"""The bursty goal is bursty, its reader is stale as its timeline says, and an oracle on the reward is worth 20 points."""

import numpy as np
import pytest

from envs.bursty_goal import BurstyGoal, Reader, Rules, at_random, draw_goals, on_failure, periodically, scripted
from envs.recording import record, replay
from hierarchy.timeline import NO_PLAN, PLAN_READY, from_marks, visible

RULES = Rules()
GOALS = np.stack([draw_goals(np.random.default_rng(seed), RULES)[:-1] for seed in range(300)])


def switches(goals):
    return np.diff(goals, axis=1) != 0


def right(outcome):
    return 100 * outcome.right.mean()


def test_switches_come_in_bursts():
    gaps = np.concatenate([np.diff(np.flatnonzero(row)) for row in switches(GOALS)])
    low, high = RULES.spacing
    # Gaps that were geometric with the same mean would be there with a chance of 0.2.
    assert ((gaps >= low) & (gaps <= high)).mean() > 0.7
    assert (gaps > 2 * high).mean() > 0.05
    assert switches(GOALS).sum(axis=1).mean() == pytest.approx(8.7, abs=0.7)


def test_episodes_begin_anywhere():
    early = switches(GOALS)[:, :32].mean()
    assert early == pytest.approx(switches(GOALS)[:, -32:].mean(), rel=0.2)


def test_the_reader_is_as_stale_as_its_own_timeline_and_its_label_never():
    reader, world = Reader(ratios=(16,), latencies=(3,)), BurstyGoal()
    told = untold = 0
    for seed in range(20):
        episode = record(world, reader, seed, "bursty_goal")
        timeline = from_marks(episode.privileged[PLAN_READY])
        goals, ticks = episode.observation["goal"][:-1, 0], np.arange(episode.ticks)
        np.testing.assert_array_equal(episode.label, goals)
        np.testing.assert_array_equal(episode.observation["reward"][1:, 0], episode.reward)
        plan = visible(timeline, ticks)
        seen = np.where(plan == NO_PLAN, -1, goals[timeline.observed[plan]])
        follows = episode.action == seen
        # Under each plan it follows until it has failed, and never again.
        for j in range(len(timeline.observed)):
            own = ticks[plan == j]
            failed = np.flatnonzero(episode.reward[own] == 0)
            until = failed[0] + 1 if len(failed) else len(own)
            assert follows[own[:until]].all()
            assert not follows[own[until:]].any()
            told, untold = told + until, untold + len(own) - until
    assert told > 500
    assert untold > 100


def test_the_clean_reader_is_never_wrong_and_an_episode_replays():
    episode = record(BurstyGoal(), Reader(), 7, "bursty_goal")
    assert episode.info["return"] == RULES.best
    np.testing.assert_array_equal(episode.reward, [float(moment.rewards[0]) for moment in replay(BurstyGoal(), episode)])
    spec = BurstyGoal().observation_spec()
    for name, rows in episode.observation.items():
        for row in rows:
            spec[name].validate(row)


@pytest.mark.parametrize(("latency", "period", "points"), [(0, 13, 20.0), (2, 13, 18.0)])
def test_an_oracle_on_the_reward_beats_the_period_and_chance_does_not(latency, period, points):
    fixed = scripted(GOALS, periodically(period), np.random.default_rng(0), latency=latency)
    oracle = scripted(GOALS, on_failure(), np.random.default_rng(0), latency=latency)
    chance = (fixed.updates.mean() - 1) / (RULES.ticks - 1 - latency * fixed.updates.mean())
    random = scripted(GOALS, at_random(chance, np.random.default_rng(1)), np.random.default_rng(0), latency=latency)
    assert oracle.updates.mean() <= fixed.updates.mean()
    assert random.updates.mean() == pytest.approx(fixed.updates.mean(), rel=0.1)
    assert right(oracle) >= right(fixed) + points
    assert right(random) < right(fixed)


def test_rules_that_make_no_task_are_refused():
    with pytest.raises(ValueError, match="ranges from 1 up"):
        Rules(spacing=(4, 3))
