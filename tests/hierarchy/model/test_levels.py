"""A chain of planners: what each costs, and what it is made of."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from experiments.tasks import schema_of
from hierarchy.layout import planner_name, tokens_per_update
from hierarchy.model import stepwise
from hierarchy.model.config import PRESETS, ModelConfig
from hierarchy.model.flops import update_flops
from hierarchy.model.network import build
from modules.masks import Place
from tests.hierarchy.model.test_flops import NUMBER, counted_by_xla, tokens
from tests.hierarchy.model.two_rate_toys import ABOVE, MODEL, toy

OTHER_READS = [pytest.param(read, marks=pytest.mark.long) for read in ("film", "prefix")]


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("read", ["cross_attention", *OTHER_READS])
def test_an_update_at_any_level_costs_what_xla_says(level, read):
    config = dataclasses.replace(PRESETS["debug"], plan_read=read, above=(PRESETS["bench"].planner,))
    schema = schema_of(("patrol",), 280, "three_rate")
    layout, network = schema["patrol"], build(config, schema)
    params = jax.eval_shape(network.init, jax.random.key(0))
    cache = jax.eval_shape(lambda: stepwise.planner_cache(network, layout, level))
    update = functools.partial(stepwise.update, network, layout)
    read_from_above = ()
    if level == 1:
        plan = jax.eval_shape(lambda params: stepwise.no_plan(network, params, 2), params)
        read_from_above = plan.reading, NUMBER
    arguments = params, cache, tokens(tokens_per_update(layout, planner_name(level)), schema.planner_atoms), NUMBER, NUMBER
    expected = counted_by_xla(lambda *given: update(*given[:5], level, *given[5:]), *arguments, *read_from_above)
    assert update_flops(config, schema, layout, level) == pytest.approx(expected, rel=0.05)


def test_each_planner_but_the_slowest_reads_plans_as_the_controller_does():
    params = toy("three_rates").params

    def parts(module: str) -> set[str]:
        own = {name.removeprefix(f"{module}/") for name in params if name.split("/")[0] == module}
        return {name for name in own if "plan_" in name or name == "age"} | {"no_plan"} & set(params.get(module, {}))

    assert parts("planner") == parts("controller") != set()
    assert not parts("planner_2")


def test_planners_above_need_one_below_and_layouts_that_feed_them():
    with pytest.raises(ValueError, match="give one, or leave out those above"):
        ModelConfig(None, MODEL.controller, above=(ABOVE,))
    with pytest.raises(ValueError, match="1 planners above the planner, and the layouts have 0"):
        build(dataclasses.replace(MODEL, above=(ABOVE,)), schema_of(("patrol",), 280, "two_rate"))
    with pytest.raises(ValueError, match="no reader 'planner_2': this model has controller, planner"):
        MODEL.of("planner_2")


def test_a_plan_above_changes_what_the_planner_plans():
    """The toys' random plans matter at this link too: without this, none of the mutants of it would mean anything."""
    made = toy("three_rates")
    network, params, config = made.network, made.params, made.network.config
    zero, one = jnp.zeros(1, jnp.int32), jnp.ones(1, jnp.int32)
    place = Place(zero, zero, one, zero, one > 0)

    @jax.jit
    def output(plan):
        reading = jax.tree.map(lambda entry: entry[None], network.planning(2).read_plan(params, plan))
        return network.planning(1).plan_tokens(params, zero[:, None], zero[:, None], place, reading=reading, age=zero)[0]

    plans = jax.random.normal(jax.random.key(0), (2, config.plan_vectors, config.plan_width))
    assert float(jnp.abs(output(plans[0]) - output(plans[1])).max()) > 1e-2
