"""The relayed goal is what its rules say, its expert is right, and its formula is what a scripted reader of plans gets."""

import dm_env
import numpy as np
import pytest

from envs.loop import returns, run
from envs.recording import record
from envs.relayed_goal import Expert, RelayedGoal, Rules, expected_return
from hierarchy.timeline import NO_PLAN, periodic, recorded, visible


class ReadsPlans:
    """Acts on the turn and the course that plans on two timelines carry; on goal 0 while either is missing."""

    def __init__(self, planner, above):
        self._planner, self._above = planner, above

    def begin(self, seeds):
        return 0, [], []

    def step(self, state, observations):
        tick, turns, courses = state
        turns, courses = [*turns, observations["turn"][:, 0]], [*courses, observations["course"][:, 0]]
        update = visible(self._planner, np.array([tick]))[0]
        if update != NO_PLAN:
            seen = self._planner.observed[update]
            above = visible(self._above, np.array([seen]))[0]
            if above != NO_PLAN:
                goal = (turns[seen] + courses[self._above.observed[above]]) % 4
                return goal.astype(np.int32), (tick + 1, turns, courses)
        return np.zeros(len(turns[0]), np.int32), (tick + 1, turns, courses)


@pytest.mark.parametrize(
    ("planner", "above"),
    [
        (periodic(128, 1), periodic(128, 1)),
        (periodic(128, 8, 4), periodic(128, 64, 8)),
        (periodic(128, 16, 8, 3), periodic(128, 5, 2)),
        (periodic(128, 4), recorded([40], [50])),
        (recorded([], []), periodic(128, 1)),
    ],
)
def test_it_pays_what_is_expected(planner, above):
    rules = Rules()
    totals = returns(run([RelayedGoal(rules) for _ in range(400)], ReadsPlans(planner, above), range(400)))
    assert totals.mean() / rules.ticks == pytest.approx(expected_return(rules, planner, above) / rules.ticks, abs=0.025)


def test_nothing_is_known_without_either():
    rules = Rules()
    often, never = periodic(rules.ticks, 1), recorded([], [])
    assert expected_return(rules, often, often) == rules.ticks
    assert expected_return(rules, often, never) == expected_return(rules, never, often) == rules.ticks / rules.goals


def test_the_expert_is_right_and_both_goals_change_at_their_own_rate():
    episodes = [record(RelayedGoal(), Expert(), seed, "relayed_goal") for seed in range(60)]
    assert all(episode.reward.sum() == episode.ticks == 128 for episode in episodes)
    seen = {name: np.stack([episode.observation[name][:, 0] for episode in episodes]) for name in ("course", "turn")}
    changed = {name: (np.diff(values) != 0).mean() for name, values in seen.items()}
    # Three redraws of four are to another value.
    assert changed["turn"] == pytest.approx(0.75 / 20, rel=0.2)
    assert changed["course"] == pytest.approx(0.75 / 80, rel=0.3)
    goals = np.stack([episode.privileged["sub_goal"][:, 0] for episode in episodes])
    np.testing.assert_array_equal(goals, ((seen["course"] + seen["turn"]) % 4)[:, :-1])


def test_an_episode_follows_from_its_seed_and_refuses_other_goals():
    one, two = RelayedGoal(), RelayedGoal()
    one.reseed(5), two.reseed(5)
    assert all(np.array_equal(a, b) for a, b in zip(one.reset().observation.values(), two.reset().observation.values()))
    with pytest.raises(ValueError, match="action 4 at tick 0"):
        one.step(4)
    with pytest.raises(ValueError, match="taus of 1 tick"):
        Rules(course_tau=0.5)
    last = None
    for _ in range(128):
        last = one.step(0)
    assert (last.step_type, last.discount) == (dm_env.StepType.LAST, 1.0)
    assert one.step(0).first()
