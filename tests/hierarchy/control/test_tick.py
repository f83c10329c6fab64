"""The tick as it is executed: one program, one packed input, caches in place, weights of its own, wherever it runs."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from hierarchy.control.acting import ahead_of_time, compile_acting, lay_out
from hierarchy.control.agent import Agent
from hierarchy.model import stepwise
from hierarchy.timeline import periodic
from tests.hierarchy.corpus.corpus_toys import Letters
from tests.hierarchy.model.two_rate_toys import Toy, agent_of, observations, toy, world

PLACED = """
import jax, numpy as np
from hierarchy.control.acting import Devices, compile_acting
from hierarchy.control.agent import Agent
from hierarchy.timeline import periodic
from tests.hierarchy.corpus.corpus_toys import Letters
from tests.hierarchy.model.two_rate_toys import live, toy, world

one, two = jax.devices()
made = toy("film", "argmax")
lived = []
for devices in (None, Devices(planner=two, controller=one), Devices(planner=one, controller=two)):
    acting = compile_acting(made.network, made.schema, "toy", "argmax", devices)
    agent = Agent(acting, made.params, periodic(made.ticks, 4, 2), horizon=made.ticks, tokenizer=Letters())
    _, logits, state = live(agent, world(made))
    lived.append(logits)
    if devices is not None:
        assert {leaf.device for leaf in jax.tree.leaves(state.planner)} == {devices.planner}
        assert {leaf.device for leaf in jax.tree.leaves((state.controller, state.plans))} == {devices.controller}
        assert state.updates == 16
np.testing.assert_allclose(lived[1], lived[0], atol=1e-6)
np.testing.assert_allclose(lived[2], lived[0], atol=1e-6)
print("as one")
"""


def pointers(tree) -> list[int]:
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]


def arguments(made: Toy, ticks: int = 3):
    """An agent's state after some ticks."""
    agent, episodes = agent_of(made, periodic(made.ticks, 4)), world(made)
    state = agent.begin([0, 1, 2])
    for tick in range(ticks):
        _, state = agent.step(state, observations(episodes, tick))
    return agent, state, observations(episodes, ticks)


@pytest.mark.parametrize("kind", ["film", "at_once", "at_once_scalars"])
def test_the_cache_is_updated_where_it_stands(kind):
    agent, state, seen = arguments(toy(kind))
    before = pointers(state.controller.layers)
    for _ in range(3):
        _, state = agent.step(state, seen)
    assert pointers(state.controller.layers) == before


def copied(made: Toy, tick) -> list[str]:
    """Copies of one layer's keys or values in the tick's program, after XLA has done what it does."""
    agent, state, _ = arguments(made, 1)
    packed = np.zeros((3, packed_size(made)), np.int32)
    reading = jax.tree.leaves(state.plans[0].reading)
    assert reading
    program = tick.lower(agent.weights.tick, state.controller, packed, state.plans[0].reading).compile().as_text()
    shape = ",".join(map(str, state.controller.layers[0].key.shape))
    return re.findall(rf"= f32\[{shape}\]\S* copy\(.*", program)


def packed_size(made: Toy) -> int:
    return stepwise.HEADER + 2 * made.schema.controller_atoms * (1 if made.layout.pooled else 11)


@pytest.mark.parametrize("kind", ["film", "at_once", "prefix"])
def test_no_layer_of_the_cache_is_copied_inside(kind):
    made = toy(kind)
    assert copied(made, made.acting.tick) == []


def test_a_copy_inside_is_seen():
    made = toy("film")
    assert len(copied(made, jax.jit(made.acting.tick.__wrapped__))) > 0


def test_what_is_packed_comes_out_again():
    rng = np.random.default_rng(0)
    value, field = rng.integers(-1, 40_000, (2, 3, 5, 4)).astype(np.int32)
    count, before, age = (rng.integers(0, 9, 3) for _ in range(3))
    seeds = np.array([0, 2**32 - 1, 7], np.uint32)
    packed = stepwise.pack_tick(stepwise.Tokens(value, field, count, before), 2, 11, age, seeds)
    assert packed.dtype == np.int32
    for i, row in enumerate(packed):
        tokens, chunks, now, since, seed = stepwise.unpack_tick(row, 4)
        np.testing.assert_array_equal(tokens.value, value[i])
        np.testing.assert_array_equal(tokens.field, field[i])
        assert (tokens.count, tokens.before, chunks, now, since) == (count[i], before[i], 2, 11, age[i])
        assert np.uint32(seed.view(np.uint32)) == seeds[i]


@pytest.mark.parametrize("kind", ["film", "text"])
def test_compiled_ahead_of_time_it_is_the_same_tick_for_so_many_episodes_alone(kind):
    made = toy(kind, "argmax")
    timeline, episodes = periodic(made.ticks, 4), world(made)
    acting = ahead_of_time(made.acting, lay_out(made.acting, made.params), batch=3)
    ahead = Agent(acting, made.params, timeline, horizon=made.ticks, tokenizer=Letters())
    other, states = agent_of(made, timeline), []
    for agent in (ahead, other):
        state = agent.begin([0, 1, 2])
        for tick in range(6):
            _, state = agent.step(state, observations(episodes, tick))
        states.append(np.asarray(state.decoded.logits))
    np.testing.assert_array_equal(*states)
    with pytest.raises(TypeError):
        ahead.step(ahead.begin([0]), {name: rows[:1] for name, rows in observations(episodes, 0).items()})


@pytest.mark.parametrize(("kind", "sees"), [("at_once", False), ("film", True)])
def test_decoded_at_once_no_element_sees_what_another_drew(kind, sees):
    made = toy(kind)
    agent, seen = agent_of(made, periodic(made.ticks, 4)), observations(world(made), 0)
    drawn = [agent.step(agent.begin(seeds), seen)[1].decoded for seeds in ([0, 1, 2], [3, 4, 5])]
    ids, logits = (np.stack([np.asarray(getattr(each, part)) for each in drawn]) for part in ("ids", "logits"))
    assert (ids[0] != ids[1]).any(axis=0).all()
    np.testing.assert_array_equal(logits[0, :, 0], logits[1, :, 0])
    assert (logits[0, :, 1:] != logits[1, :, 1:]).any() == sees


def test_planner_and_controller_on_devices_of_their_own_act_as_on_one():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PLACED], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "as one", done.stderr


@pytest.mark.parametrize("kind", ["film", "at_once", "single_rate"])
def test_in_bfloat16_it_is_nearly_the_same_tick(kind):
    made = toy(kind, "argmax")
    acting = compile_acting(made.network, made.schema, "toy", "argmax", precision="bfloat16")
    lived = []
    for own in (made.acting, acting):
        agent = Agent(own, made.params, periodic(made.ticks, 4), horizon=made.ticks, tokenizer=Letters())
        _, state = agent.step(agent.begin([0, 1, 2]), observations(world(made), 0))
        lived.append(np.asarray(state.decoded.logits))
        kept = {leaves["w"].dtype.name for name, leaves in agent.weights.tick.items() if "w" in leaves}
        assert kept == {own.precision}
    legal = lived[0] > -1e9
    spread = np.std(lived[0][legal])
    assert 0 < np.abs(lived[0] - lived[1])[legal].max() < 0.1 * spread
    with pytest.raises(ValueError, match="precision is 'int8': it is one of float32, bfloat16"):
        compile_acting(made.network, made.schema, "toy", precision="int8")
