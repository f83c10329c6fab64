"""The pointer chain: chains that lead back, and goals that are reached."""

import numpy as np
import pytest

from envs import pointer_chain
from envs.pointer_chain import Expert, PointerChain, Rules
from envs.recording import record, replay
from experiments.layouts import BENCH
from hierarchy.layout import Discrete

RULES = Rules(chains=3, length=4, ticks=3)


def test_links_are_chains_and_the_expert_is_always_paid():
    drawn = set()
    for seed in range(60):
        world = PointerChain(RULES)
        episode = record(world, Expert(), seed, "pointer_chain")
        links, starts = episode.observation["links"][0], episode.observation["start"][: RULES.ticks, 0]
        ends = [pointer_chain.follow(links, node, RULES.hops) for node in range(RULES.nodes)]
        assert sorted(np.unique(ends, return_counts=True)[1]) == [RULES.length] * RULES.chains
        assert np.bincount(links, minlength=RULES.nodes).max() <= 2
        assert (links <= np.arange(RULES.nodes)).all()
        for start, hops, label in zip(starts, world.hops, episode.label):
            path = [pointer_chain.follow(links, start, count) for count in range(RULES.hops + 1)]
            assert path.index(ends[start]) == hops
            assert label == ends[start]
        assert episode.reward.tolist() == [1.0] * RULES.ticks
        assert (episode.observation["links"] == links).all()
        drawn.update(world.hops)
    assert drawn == set(range(RULES.hops + 1))


def test_an_episode_is_a_function_of_its_seed():
    one, again, other = (record(PointerChain(RULES), Expert(), seed, "pointer_chain") for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.observation["links"], again.observation["links"])
    assert (one.observation["links"] != other.observation["links"]).any()
    np.testing.assert_array_equal(one.reward, [float(moment.rewards[0]) for moment in replay(PointerChain(RULES), one)])


def test_hops_can_be_given():
    for seed in range(5):
        seen = record(PointerChain(RULES, 2), Expert(), seed, "").observation
        for links, start in zip(seen["links"], seen["start"]):
            reached = [pointer_chain.follow(links, int(start[0]), hops) for hops in range(4)]
            assert len(set(reached[:3])) == 3
            assert reached[2] == reached[3]
    with pytest.raises(ValueError, match="hops 4: 0 to 3"):
        PointerChain(RULES, 4)


def test_observations_and_actions_keep_their_specs():
    environment = PointerChain(RULES)
    environment.reseed(0)
    step = environment.reset()
    while not step.last():
        for name, spec in environment.observation_spec().items():
            spec.validate(step.observation[name])
        step = environment.step(0)
    environment.reset()
    with pytest.raises(ValueError, match="action 12 at tick 0: nodes are numbered 0 to 11"):
        environment.step(12)


def test_the_layout_is_of_this_many_nodes():
    layout, rules = BENCH["pointer_chain"], Rules()
    assert layout.action.codec == Discrete(rules.nodes) == layout.sub_goal[0].codec
    assert {field.name: field.size for field in layout.planner}["links"] == rules.nodes
