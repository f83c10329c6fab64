"""The trajectory needle: what is asked for was shown once, and an episode made at once is the one that is stepped through."""

import dataclasses

import numpy as np
import pytest

from envs import needle
from envs.needle import Expert, Needle, Rules
from envs.recording import record, replay
from experiments.layouts import BENCH
from hierarchy.corpus.record import named_arrays
from hierarchy.layout import Discrete

RULES = Rules(ticks=48, needles=3, hold=4)


@pytest.mark.parametrize("rules", [RULES, Rules(ticks=8, needles=2, hold=4), Rules(ticks=5, needles=1, hold=1)])
def test_an_episode_made_at_once_is_the_recorded_one(rules):
    for seed in range(20):
        stepped, made = record(Needle(rules), Expert(), seed, "needle"), needle.episode(rules, seed)
        for name, array in named_arrays(stepped).items():
            own = named_arrays(made)[name]
            assert (own.dtype, own.shape) == (array.dtype, array.shape), name
            np.testing.assert_array_equal(own, array, err_msg=name)
        plain = ("source", "tick_s", "text", "terminated", "truncated", "seed", "info")
        assert [getattr(made, name) for name in plain] == [getattr(stepped, name) for name in plain]
        assert made.reward.sum() == rules.best


def test_each_needle_is_asked_for_once_and_its_value_pays():
    stood = []
    for seed in range(200):
        drawn = needle.course(RULES, np.random.default_rng(seed))
        hay, questions = slice(0, RULES.stretches), slice(RULES.stretches, None)
        marked = np.flatnonzero(drawn.mark[hay] == RULES.mark)
        assert sorted(drawn.where) == marked.tolist()
        assert len(set(drawn.key[marked])) == RULES.needles
        np.testing.assert_array_equal(drawn.asked[questions], drawn.key[drawn.where])
        np.testing.assert_array_equal(drawn.right[questions], drawn.value[drawn.where])
        assert not np.concatenate([drawn.asked[hay], drawn.right[hay], drawn.mark[questions], drawn.key[questions]]).any()
        stood += drawn.where.tolist()
    assert set(stood) == set(range(RULES.stretches))


def test_hay_has_the_keys_of_needles_with_other_values():
    """Who overlooks the mark is led astray."""
    astray = 0
    for seed in range(50):
        drawn = needle.course(Rules(ticks=1024), np.random.default_rng(seed))
        alike = (drawn.key == drawn.asked[-1]) & (drawn.mark == 0)
        astray += int((drawn.value[alike] != drawn.right[-1]).any())
    assert astray > 25


def test_fields_share_no_symbol_but_keys_that_are_asked_for():
    drawn, rules = needle.course(Rules(ticks=8192, needles=16), np.random.default_rng(0)), Rules()
    symbols = {name: set(getattr(drawn, name).tolist()) - {0} for name in ("mark", "key", "value", "asked")}
    assert symbols["mark"] == {rules.mark}
    assert symbols["value"] == set(range(1, 9))
    assert symbols["key"] == set(range(9, 41))
    assert symbols["asked"] < symbols["key"]


def test_an_episode_is_a_function_of_its_seed_and_a_stretch_stands():
    one, again, other = (record(Needle(RULES), Expert(), seed, "needle") for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.observation["key"], again.observation["key"])
    assert (one.observation["key"] != other.observation["key"]).any()
    np.testing.assert_array_equal(one.reward, [float(moment.rewards[0]) for moment in replay(Needle(RULES), one)])
    for name in ("mark", "key", "value", "asked"):
        held = one.observation[name][: RULES.whole, 0].reshape(-1, RULES.hold)
        assert (held == held[:, :1]).all()
    np.testing.assert_allclose(one.observation["clock"][:5, 0], [0, 0.25, 0.5, 0.75, 0])


def test_a_wrong_value_does_not_pay_and_nothing_does_before_the_questions():
    world = Needle(RULES)
    world.reseed(0)
    step = world.reset()
    while not step.last():
        right, tick = world.right, world._tick
        step = world.step(right if tick % 2 else 1 + right % RULES.values)
        assert step.reward == float(tick >= RULES.ticks and tick % 2)
    assert world.step(0).first()


def test_observations_and_actions_keep_their_specs():
    world = Needle(RULES)
    world.reseed(0)
    step = world.reset()
    while not step.last():
        for name, spec in world.observation_spec().items():
            spec.validate(step.observation[name])
        step = world.step(0)
    world.reset()
    with pytest.raises(ValueError, match="action 9 at tick 0: values are 1 to 8, and 0 is none"):
        world.step(9)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(needles=0), "1 needle and 2 values"),
        (dict(ticks=50), "whole stretches of 4 ticks"),
        (dict(ticks=8), "3 needles in 2 stretches"),
        (dict(keys=2), "with 2 keys"),
    ],
)
def test_rules_that_make_no_task_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(RULES, **wrong)


def test_the_layout_is_of_these_symbols():
    layout, rules = BENCH["needle"], Rules()
    assert layout.action.codec == Discrete(1 + rules.values) == layout.sub_goal[0].codec
    spec = Needle().observation_spec()
    assert {field.name: field.codec.values for field in layout.planner} == {
        name: int(spec[name].maximum) + 1 for name in ("mark", "key", "value", "asked")
    }
