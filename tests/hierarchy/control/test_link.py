"""What a controller and its planner tell each other comes over as it was meant, to whom it was meant, or not at all."""

import multiprocessing
import os
import time

import numpy as np
import pytest

from envs.patrol import Patrol
from experiments.layouts import PATROL
from hierarchy.control.link import LOG_ROWS, NOBODY, WARM_UP, Arrived, Link, Orders

HORIZON, SIZE = 12, 5


@pytest.fixture
def link() -> Link:
    world = Patrol()
    return Link(PATROL, world.observation_spec(), world.action_spec(), HORIZON, SIZE)


def plan(tick: int, read: list[int], generation: int = 0, episode: int = 1) -> Arrived:
    mask = np.isin(np.arange(HORIZON), read)
    return Arrived(episode, generation, tick, 10, 20, 3, mask, np.arange(SIZE, dtype=np.float32) + tick)


def test_what_is_shown_of_a_tick_is_seen_whole_in_its_episode_alone(link):
    seen = {name: np.asarray(value)[None] for name, value in Patrol(seed=4).reset().observation.items()}
    action = np.array([0.25], np.float32)
    assert link.seen(3, 1) is None
    link.show(1, 3, seen, action)
    observations, before = link.seen(3, 1)
    assert set(observations) == set(link.names) <= set(seen)
    assert "instruction" in observations
    for name, value in observations.items():
        np.testing.assert_array_equal(value, seen[name])
    np.testing.assert_array_equal(before, action[None])
    assert link.seen(3, 2) is None
    assert link.seen(3) is not None
    assert link.seen(2, 1) is None
    assert link.seen(HORIZON, 1) is None
    # The tick of the next episode is written over it.
    link.show(2, 3, seen, action)
    assert link.seen(3, 1) is None


def test_a_plan_is_found_once_and_only_the_newest(link):
    assert link.found(0) is None
    link.publish(plan(2, [0, 2]))
    link.publish(sent := plan(4, [0, 2, 4], generation=1))
    sequence, found = link.found(0)
    for name, value in sent._asdict().items():
        np.testing.assert_array_equal(getattr(found, name), value)
    assert link.found(sequence) is None
    link.publish(plan(5, [0, 2, 4, 5]))
    assert link.found(sequence)[1].tick == 5


def test_what_was_taken_is_to_be_read_again_in_its_episode(link):
    assert link.taken_of() == NOBODY
    assert not link.to_read_again(1).any()
    link.accept(plan(4, [0, 4], generation=2, episode=3))
    assert link.taken_of() == 2
    assert np.flatnonzero(link.to_read_again(3)).tolist() == [0, 4]
    assert not link.to_read_again(4).any()


def test_orders_begin_with_the_warm_up(link):
    assert link.ordered() == Orders(WARM_UP, False, NOBODY)
    link.order(Orders(3, True, 1))
    assert link.ordered() == Orders(3, True, 1)


def test_a_sign_of_life_is_of_one_start_of_the_planner_and_names_its_process(link):
    assert link.lived(0) is None
    assert link.living() is None
    before = time.monotonic_ns()
    link.live(1)
    assert before <= link.lived(1) <= time.monotonic_ns()
    assert link.lived(0) is None
    assert link.living() == (1, os.getpid())


def test_a_log_keeps_what_it_has_room_for(link):
    link.note(0, "died", "ü" * 300)
    link.note(LOG_ROWS - 1, "hung", "late")
    link.note(LOG_ROWS, "refused", "too late")
    first, last = link.events()
    assert (first.kind, first.detail) == ("died", "ü" * 120)
    assert (last.kind, last.detail) == ("hung", "late")
    assert first.at <= last.at


def answer(link: Link) -> None:
    while (row := link.seen(0, 1)) is None:
        time.sleep(0.001)
    link.live(7)
    link.publish(plan(int(row[1][0, 0] * 10), [0], generation=7))
    while not link.ordered().stop:
        time.sleep(0.001)
    link.note(0, "ready", "it was told to stop")


def test_two_processes_talk(link):
    other = multiprocessing.get_context("spawn").Process(target=answer, args=(link,), daemon=True)
    other.start()
    seen = {name: np.asarray(value)[None] for name, value in Patrol().reset().observation.items()}
    link.show(1, 0, seen, np.array([0.9], np.float32))
    until = time.monotonic() + 120
    while (found := link.found(0)) is None:
        assert time.monotonic() < until
        time.sleep(0.001)
    assert found[1].tick == 9
    assert link.living() == (7, other.pid)
    link.order(Orders(1, True, NOBODY))
    other.join(120)
    assert other.exitcode == 0
    assert [event.detail for event in link.events()] == ["it was told to stop"]
