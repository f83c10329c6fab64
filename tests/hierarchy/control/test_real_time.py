"""Plans that come when they come: what was acted on is what the timeline says, and the parallel pass agrees with it."""

import numpy as np
import pytest

from experiments.replay import TOLERANCE, check_actions, check_plans
from hierarchy.control.link import Arrived
from hierarchy.control.planner_process import Pace, PlannerWithin
from hierarchy.control.real_time import Late, timeline_of
from hierarchy.timeline import Timeline, age, recorded, visible
from tests.hierarchy.control.real_time_toys import SAFE, Bench, seen_at
from tests.hierarchy.control.toy_parts import make

TICKS = 48


def fly(bench: Bench, planned: Timeline, ticks: int = TICKS, restart: int | None = None) -> None:
    """Runs an episode whose planner observes and delivers at the ticks that are asked for; it starts anew at `restart`."""
    bench.begin()
    thinker, generation, waiting = bench.thinker(), 0, []
    thinker.begin(1)
    for tick in range(ticks):
        while waiting and waiting[0][0] <= tick:
            bench.link.publish(waiting.pop(0)[1])
        bench.tick()
        if tick == restart:
            generation, waiting = generation + 1, []
            thinker = bench.thinker(generation)
            thinker.begin(1)
        thinker.absorb()
        for j in np.flatnonzero(planned.observed == tick):
            waiting.append((int(planned.ready[j]), thinker.plan()))


def late_plans(seed: int) -> Timeline:
    """Some run of one planner: it delivers one plan after the other, each as late as it likes, some at once with the next."""
    rng = np.random.default_rng(seed)
    observed, ready, at = [], [], int(rng.integers(7))
    while at < TICKS:
        observed.append(at)
        ready.append(at + int(rng.integers(1, 15)))
        at = int(rng.integers(max(at + 1, ready[-1] - 3), ready[-1] + 5))
    return recorded(observed, np.maximum.accumulate(ready))


@pytest.mark.parametrize("seed", range(4))
def test_the_timeline_is_what_happened_and_the_parallel_pass_agrees(seed):
    planned, bench = late_plans(seed), Bench(TICKS)
    fly(bench, planned)
    happened = bench.timeline()
    ticks = np.arange(TICKS)
    arrived = planned.ready < TICKS
    np.testing.assert_array_equal(
        np.append(planned.observed, -1)[visible(Timeline(*(each[arrived] for each in planned)), ticks)],
        np.append(happened.observed, -1)[visible(happened, ticks)],
    )
    assert bench.disagreement() <= TOLERANCE


PLANNED = recorded([0, 4, 8, 12, 20, 30], [3, 7, 17, 17, 24, 36])


def test_what_was_acted_on_is_told_from_what_was_not():
    """Another timeline than the recorded one, by one tick or one plan, is seen: so agreement means something."""
    bench = Bench(TICKS)
    fly(bench, PLANNED)
    happened = bench.timeline()
    np.testing.assert_array_equal(happened.observed, PLANNED.observed)
    np.testing.assert_array_equal(happened.ready, PLANNED.ready)
    assert bench.disagreement() <= TOLERANCE
    for wrong in (
        happened._replace(ready=happened.ready + 1),
        Timeline(happened.observed[1:], happened.ready[1:]),
        happened._replace(observed=happened.observed + (np.arange(6) == 4)),
    ):
        assert bench.disagreement(wrong) > 10 * TOLERANCE
        with pytest.raises(ValueError, match="acted on the plan of tick"):
            check_plans(bench.acted(wrong))


def test_a_planner_that_starts_again_reads_again_what_its_plans_rested_on():
    bench = Bench(TICKS)
    fly(bench, PLANNED, restart=22)
    # The plan of tick 20 was under way when its planner died: nobody ever read it.
    np.testing.assert_array_equal(bench.timeline().observed, [0, 4, 8, 12, 30])
    assert bench.disagreement() <= TOLERANCE
    with_it = recorded(PLANNED.observed, [3, 7, 17, 17, 99, 36])
    assert bench.disagreement(with_it) > TOLERANCE


def plan_of(bench: Bench, tick: int, read: list[int], reading: float | np.ndarray = 0.5, generation: int = 0) -> Arrived:
    """A plan made by hand."""
    mask = np.isin(np.arange(bench.horizon), read)
    vector = np.full(bench.link.reading_size, reading, np.float32)
    return Arrived(1, generation, tick, 0, 0, 0, mask, vector)


def broken(bench: Bench) -> dict[str, Arrived]:
    """Plans that are wrong, after the one of tick 2 which had read 0 and 2."""
    some = np.full(bench.link.reading_size, 0.5)
    some[3] = np.nan
    return {
        "not a number": plan_of(bench, 4, [0, 2, 4], some),
        "infinite": plan_of(bench, 4, [0, 2, 4], np.inf),
        "forgot what it read": plan_of(bench, 4, [4]),
        "read what was not": plan_of(bench, 4, [0, 1, 2, 4]),
        "older": plan_of(bench, 1, [0, 1]),
        "from the future": plan_of(bench, 11, [0, 2, 11]),
        "of no tick at all": plan_of(bench, 1 << 40, [0, 2, 4]),
        "read what was to come": plan_of(bench, 4, [0, 2, 4, 10]),
        "not its own tick": plan_of(bench, 4, [0, 2, 3]),
    }


@pytest.mark.parametrize("which", ["not a number", "infinite", "forgot what it read", "read what was not", "older"])
def test_a_plan_that_is_not_sound_is_refused_said_so_and_never_acted_on(which):
    bench = Bench(12)
    bench.begin()
    for _ in range(3):
        bench.tick()
    bench.link.publish(plan_of(bench, 2, [0, 2]))
    bench.tick()
    bench.tick()
    bench.link.publish(broken(bench)[which])
    bench.tick()
    assert [incident.kind for incident in bench.monitor.incidents] == ["plan refused"]
    assert bench.link.ordered().refused == 0
    # Nothing more is taken from that start of the planner, sound or not; from the next one it is.
    bench.link.publish(plan_of(bench, 5, [0, 2, 5]))
    bench.tick()
    assert bench.monitor.rows["plan"][:7].tolist() == [-1, -1, -1, 2, 2, 2, 2]
    bench.link.publish(plan_of(bench, 6, [0, 2, 6], generation=1))
    bench.tick()
    assert bench.monitor.rows["plan"][7] == 6
    assert np.isfinite(bench.executed).all()


@pytest.mark.parametrize("which", ["from the future", "of no tick at all", "read what was to come", "not its own tick"])
def test_a_plan_that_lies_about_its_tick_is_refused(which):
    bench = Bench(12)
    bench.begin()
    for _ in range(3):
        bench.tick()
    bench.link.publish(plan_of(bench, 2, [0, 2]))
    for _ in range(5):
        bench.tick()
    bench.link.publish(broken(bench)[which])
    bench.tick()
    assert bench.monitor.rows["plan"][8] == 2
    assert bench.monitor.incidents


def test_a_plan_of_a_planner_that_was_replaced_is_not_taken():
    bench = Bench(12)
    bench.begin()
    bench.tick()
    bench.link.publish(plan_of(bench, 0, [0], generation=1))
    bench.tick()
    bench.link.publish(plan_of(bench, 1, [0, 1], generation=0))
    bench.tick()
    assert bench.monitor.rows["plan"][:3].tolist() == [-1, 0, 0]
    assert not bench.monitor.incidents


def test_a_plan_of_the_last_episode_is_not_for_this_one():
    bench = Bench(12)
    bench.begin()
    bench.tick()
    bench.link.publish(plan_of(bench, 0, [0]))
    bench.begin()
    bench.tick()
    assert not bench.flight.taken
    assert not bench.monitor.incidents


LATE_PLANS = recorded([0, 10], [2, 20])
"""Of age 2 to 19 at ticks 2 to 19, then 10 to 37."""


@pytest.mark.parametrize("then", ["hold", "no_plan", "stop"])
def test_a_late_plan_meets_its_policy_exactly_beyond_its_age(then):
    held, bench = Bench(TICKS), Bench(TICKS, late=Late(then, 0 if then == "hold" else 12))
    fly(held, LATE_PLANS)
    fly(bench, LATE_PLANS)
    old = age(LATE_PLANS, np.arange(TICKS))
    stale = [] if then == "hold" else np.flatnonzero(old > 12).tolist()
    assert len(stale) in (0, 32)
    assert bench.flight.without == (stale if then == "no_plan" else [])
    assert bench.flight.stopped == (stale if then == "stop" else [])
    stopped = np.isin(np.arange(TICKS), bench.flight.stopped)
    assert (np.stack(bench.executed)[stopped] == SAFE).all()
    np.testing.assert_array_equal(np.stack(bench.executed)[~stopped], np.stack(bench.flight.decoded)[~stopped])
    seen = np.where(np.isin(np.arange(TICKS), bench.flight.without), -1, np.where(old < 0, -1, np.arange(TICKS) - old))
    np.testing.assert_array_equal(bench.monitor.rows["plan"], seen)
    # What was there is known even where it was not acted on.
    np.testing.assert_array_equal(bench.monitor.rows["newest"], np.where(old < 0, -1, np.arange(TICKS) - old))
    # Up to the first stale tick all policies act alike; there, those that drop the plan say something else.
    first = stale[0] if stale else TICKS
    np.testing.assert_array_equal(bench.flight.logits[:first], held.flight.logits[:first])
    if then == "no_plan":
        assert np.abs(bench.flight.logits[first] - held.flight.logits[first]).max() > 1e-3
    assert bench.disagreement() <= TOLERANCE
    if then == "no_plan":
        kept = bench.flight.without.pop(0)
        with pytest.raises(ValueError, match=f"tick {kept} acted on the plan of tick -1"):
            bench.disagreement()
        assert bench.disagreement(bench.timeline()) > 10 * TOLERANCE


@pytest.mark.parametrize("wrong", ["a stop that was not", "no stop where there was one", "another safe action"])
def test_a_replay_tells_what_was_executed_from_what_was_not(wrong):
    bench = Bench(24, late=Late("stop", 12))
    fly(bench, LATE_PLANS, 24)
    acted, episode = bench.acted(), bench.episode()
    assert acted.stopped.tolist() == [*range(13, 20), 23]
    check_actions(acted, episode)
    changed, tick = {
        "a stop that was not": (acted._replace(stopped=np.append(acted.stopped, 3)), 3),
        "no stop where there was one": (acted._replace(stopped=acted.stopped[1:]), 13),
        "another safe action": (acted._replace(safe=SAFE + 1), 13),
    }[wrong]
    with pytest.raises(ValueError, match=f"tick {tick} executed"):
        check_actions(changed, episode)


def test_a_planner_in_the_controllers_loop_is_waited_for():
    """Its plans are of the tick that they are used at, every `ratio` ticks, in one episode after the other."""
    bench = Bench(21)
    bench.agent._within = within = PlannerWithin(make, bench.link, Pace(4))
    within.warm_up()
    for _ in range(2):
        bench.begin()
        for _ in range(10):
            bench.tick()
        timeline = bench.timeline()
        assert timeline.observed.tolist() == timeline.ready.tolist() == [0, 4, 8]
    bench.monitor.rows[:10] = bench.monitor.rows[10:20]
    assert bench.disagreement() <= TOLERANCE


def test_stopping_counts_the_ticks_before_the_first_plan_too():
    bench = Bench(TICKS, late=Late("stop", 5))
    fly(bench, recorded([0, 10], [9, 12]))
    assert bench.flight.stopped[:6] == [5, 6, 7, 8, 9, 10]


def test_the_first_plan_can_be_waited_for():
    bench = Bench(8, wait_for_first=True)
    bench.begin()
    thinker = bench.thinker()
    thinker.begin(1)
    bench.link.show(1, 0, seen_at(0), SAFE)
    thinker.absorb()
    bench.link.publish(thinker.plan())
    for _ in range(4):
        bench.tick()
    np.testing.assert_array_equal(bench.timeline().ready, [0])
    assert bench.disagreement() <= TOLERANCE


def test_updates_that_nobody_saw_are_ready_with_the_one_that_was():
    horizon = 9
    first, third = np.isin(np.arange(horizon), [0]), np.isin(np.arange(horizon), [0, 2, 3])
    assert [each.tolist() for each in timeline_of([(1, first), (5, third)])] == [[0, 2, 3], [1, 5, 5]]
    assert [each.tolist() for each in timeline_of([])] == [[], []]


def test_an_update_is_due_a_ratio_after_the_last_and_never_of_a_tick_that_is_not_there():
    pace = Pace(4)
    assert [pace.due(newest, -1) for newest in (-1, 0, 3)] == [False, True, True]
    assert [pace.due(newest, 2) for newest in (2, 5, 6, 9)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ratio": 0}, "ratio 0 is at least 1"),
        ({"duty": 1.5}, "a duty of 1.5"),
        ({"late_share": 0.5}, "a share of 0.5 of plans held back by up to 0 s"),
        ({"late_s": 1.0}, "a share of 0 of plans held back by up to 1 s"),
        ({"late_share": 2.0, "late_s": 1.0}, "a share of 2 of plans"),
    ],
)
def test_paces_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Pace(**wrong)


def test_policies_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="max_age 0 with 'stop'"):
        Late("stop")
    with pytest.raises(ValueError, match="max_age 3 with 'hold'"):
        Late("hold", 3)
    with pytest.raises(ValueError, match="then is 'pray'"):
        Late("pray", 3)


def test_deadlines_are_the_worlds_where_it_has_a_clock():
    """After ticks that the world went through alone, an agent is on time again."""
    period_s, numbers, began = 0.01, [0, 1, 2, 5, 6, 7, 8], []
    bench = Bench(len(numbers), period_s, due=lambda: began[0] + numbers[len(bench.executed)] * 10_000_000)
    bench.begin()
    for _ in numbers:
        bench.tick()
        began = began or [bench.agent.clock.deadline(0)]
    rows = bench.monitor.rows[: len(numbers)]
    np.testing.assert_array_equal(rows["deadline"], began[0] + 10_000_000 * np.array(numbers))
    assert (rows["woken"] >= rows["deadline"]).all()


@pytest.mark.parametrize("rehearse", [True, False])
def test_rehearsals_are_gone_through_before_deadlines_and_change_nothing(rehearse):
    bench, planned, rehearsed = Bench(TICKS, 0.03, rehearse=rehearse), late_plans(0), []
    approach = bench.agent.clock.approach
    bench.agent.clock.approach = lambda tick, lead_ns: rehearsed.append(approach(tick, lead_ns)) or rehearsed[-1]
    fly(bench, planned)
    assert len(rehearsed) == (TICKS - 1 if rehearse else 0)
    assert not rehearse or any(rehearsed)
    assert bench.disagreement() <= TOLERANCE


def test_past_its_horizon_an_agent_says_so():
    bench = Bench(2)
    bench.begin()
    bench.tick()
    bench.tick()
    with pytest.raises(ValueError, match="tick 2 is past the agent's horizon of 2 ticks: give it a longer one"):
        bench.tick()


def test_a_rehearsed_update_is_told_of_one_episode_alone():
    """Episodes go on meanwhile, each with words of its own; together they would have no room."""
    bench = Bench(40)
    thinker, nothing = bench.thinker(), np.zeros((1, 3), np.float32)
    for episode in range(1, 100):
        said = {
            name: np.array([chr(97 + episode % 26) * 6], object) for name, value in seen_at(0).items() if value.dtype == object
        }
        assert said
        bench.link.show(episode, 0, seen_at(0) | said, nothing)
        thinker.rehearse()
