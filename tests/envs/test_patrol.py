import sys
from collections.abc import Callable

import numpy as np
import pytest

from envs import lqr, pads, track
from envs.cartpole import State
from envs.patrol import Patrol, Rules, Scene, draw_scene
from envs.patrol_experts import Regulator
from envs.recording import record

CALM = Rules(push_chance=0.0)


def balanced(task: Patrol, goal: float) -> float:
    """An action that holds the cart at `goal`, for scripted walks over the pads."""
    return float(lqr.act(np.array(task.track.state), goal))


def walk(task: Patrol, goal: float, ticks: int) -> float:
    return sum(task.advance(balanced(task, goal)) for _ in range(ticks) if not task.track.ended)


def test_observations_and_actions_are_what_the_specs_say():
    task = Patrol(seed=3)
    step = task.reset()
    while not step.last():
        assert list(step.observation) == list(task.observation_spec())
        for name, spec in task.observation_spec().items():
            spec.validate(step.observation[name])
        step = task.step(np.zeros(1, np.float32))
    assert step.discount == 0.0
    assert abs(task.track.state.theta) > task.rules.fall


def test_a_seed_alone_decides_the_next_reset():
    one, other = Patrol(seed=1), Patrol(seed=2)
    other.step(np.ones(1, np.float32))
    one.reseed(7), other.reseed(7)
    first, second = one.reset(), other.reset()
    for name, value in first.observation.items():
        assert np.array_equal(value, second.observation[name])
    assert np.array_equal(one.scene.track.pushes, other.scene.track.pushes)


def test_scenes_are_drawn_within_their_rules():
    rules = Rules()
    scenes = [draw_scene(np.random.default_rng(seed), rules) for seed in range(300)]
    for scene in scenes:
        assert np.all(np.abs(np.sort(scene.track.pads) - pads.SLOTS_M) <= rules.jitter)
        assert len(set(scene.order)) == 3
    assert {scene.order[0] for scene in scenes} == set(range(4))
    pushes = np.concatenate([scene.track.pushes for scene in scenes])
    assert np.mean(pushes != 0) == pytest.approx(0.05, abs=0.003)
    assert np.std(pushes[pushes != 0]) == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("template", pads.PATROLS)
def test_the_words_name_the_order(template):
    words = pads.say(template, (0, 1, 2))
    said = sorted(("red", "green", "blue"), key=words.index)
    assert said == (["blue", "green", "red"] if "after" in template else ["red", "green", "blue"])


def test_a_visit_takes_the_dwell_on_end_and_moves_the_target_on():
    task = Patrol(CALM, seed=5)
    target, ticks = task.goal, 0
    while task.visits == 0:
        reward = task.advance(balanced(task, target))
        ticks += 1
        assert (reward == 1.0) == (task.visits == 1)
        if task.visits == 0 and task.track.stayed:
            assert task.track.stayed < CALM.dwell
    assert task.track.stayed == CALM.dwell
    assert task.target == task.scene.order[1]
    assert task.goal != target


def test_the_chime_sounds_once_at_the_observation_after_the_visit():
    episode = record(Patrol(), Regulator(), 4, "patrol")
    chimes = episode.observation["chime"][:, 0]
    assert chimes[0] == 0
    assert chimes.sum() >= 3
    assert np.array_equal(chimes[1:] == 1, episode.reward == 1)
    moved = episode.privileged["sub_goal"][1:, 0] != episode.privileged["sub_goal"][:-1, 0]
    assert np.array_equal(moved, chimes[1:-1] == 1)


def test_the_order_is_cyclic():
    task = Patrol(Rules(push_chance=0.0, ticks=600), seed=5)
    targets = []
    while not task.track.ended:
        targets.append(task.target)
        task.advance(balanced(task, task.goal))
    visited = [colour for i, colour in enumerate(targets) if i == 0 or colour != targets[i - 1]]
    assert len(visited) >= 6
    assert all(colour == task.scene.order[i % 3] for i, colour in enumerate(visited))


def test_staying_on_a_wrong_pad_costs_once_a_stay_and_the_visited_pad_nothing():
    task = Patrol(CALM, seed=5)
    wrong = next(place for colour, place in enumerate(task.track.places) if colour not in task.scene.order)
    before = walk(task, wrong, 120)
    assert task.track.pad is not None
    assert task.visits == 0
    assert before == -CALM.miss * task.misses
    assert task.misses >= 1
    task = Patrol(CALM, seed=5)
    first = task.goal
    assert walk(task, first, 120) == 1.0 - CALM.miss * task.misses
    assert task.visits == 1
    assert walk(task, first, 60) == 0.0


def test_a_stay_is_on_one_pad_even_where_pads_touch():
    task = Patrol(Rules(push_chance=0.0, zone=0.31, jitter=0.0, start=0.0, ticks=400), seed=5)
    pads_on = []
    while not task.track.ended:
        task.advance(balanced(task, 0.3 if task.track.tick < 150 else -0.3))
        pads_on.append(task.track.pad)
        if len(pads_on) > 1 and pads_on[-1] != pads_on[-2] and pads_on[-1] is not None:
            assert task.track.stayed == 1
    assert len(set(pads_on) - {None}) >= 2


def test_nothing_is_left_of_the_episode_before():
    used, fresh = Patrol(seed=0), Patrol(seed=0)
    while abs(used.track.state.x) < 1.8 and not used.track.ended:
        used.advance(balanced(used, 2.5))
    scene = used.scene._replace(track=used.scene.track._replace(start=State(1.79, 0.1, 1.0, 0.0)))
    used.reset_to(scene), fresh.reset_to(scene)
    for _ in range(20):
        used.advance(0.5), fresh.advance(0.5)
        assert used.track.state == fresh.track.state


def test_a_fall_terminates_and_time_truncates():
    assert record(Patrol(Rules(ticks=20)), Regulator(), 0, "patrol").truncated
    task = Patrol()
    task.reset()
    steps = [task.step(np.ones(1, np.float32)) for _ in range(60)]
    last = next(step for step in steps if step.last())
    assert last.discount == 0.0
    assert steps[steps.index(last) + 1].first()


def test_the_mirror_image_of_an_episode_happens_in_the_mirror_image_of_its_scene():
    task, image = Patrol(seed=2), Patrol()
    image.reset_to(Scene(track.mirror_scene(task.scene.track), task.scene.order, task.scene.instruction))
    rng = np.random.default_rng(0)
    while not task.track.ended:
        action = float(np.clip(balanced(task, task.goal) + rng.normal(0, 0.2), -1, 1))
        assert task.advance(action) == image.advance(-action)
        np.testing.assert_allclose(image.track.state, -np.array(task.track.state), atol=1e-9)
    assert task.visits == image.visits > 0


def test_the_tick_is_the_suites_own_physics():
    suite = pytest.importorskip("dm_control.suite.cartpole")
    from dm_control import mujoco

    physics = mujoco.Physics.from_xml_string(*suite.get_model_and_assets())
    task = Patrol(CALM, seed=2)
    with physics.reset_context():
        physics.data.qpos[:], physics.data.qvel[:] = task.track.state[:2], task.track.state[2:]
    for tick in range(30):
        physics.set_control([np.sin(tick)])
        physics.step(4)
        task.advance(float(np.sin(tick)))
        np.testing.assert_allclose(task.track.state, [*physics.data.qpos, *physics.data.qvel], atol=1e-12)


def calls(work: Callable[[], object]) -> int:
    """How many functions some work calls, of Python and of C: what it costs on any machine, however busy."""
    count = 0

    def note(frame, event, argument) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def test_a_task_is_made_and_stepped_in_few_calls():
    Patrol(seed=0)
    assert calls(lambda: [Patrol(seed=seed) for seed in range(128)]) < 128 * 120
    task, action = Patrol(seed=0), np.zeros(1, np.float32)
    task.reset()
    assert calls(lambda: [task.step(action) for _ in range(4000)]) < 4000 * 66
