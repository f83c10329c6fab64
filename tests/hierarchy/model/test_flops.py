"""The count of operations against XLA's own analysis of the compiled update and tick, and what the report builds on it."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import pytest

from experiments.tasks import schema_of
from experiments.ways_to_tick import Point, sized, two_rate
from hierarchy.control.acting import compile_acting, lay_out
from hierarchy.layout import BINS, tokens_between, tokens_per_reading, tokens_per_update
from hierarchy.model import stepwise
from hierarchy.model.config import PRESETS
from hierarchy.model.flops import (
    HEAD_FEATURES,
    TABLES,
    flops_per_tick,
    follow_flops,
    parameters,
    tick_flops,
    tick_passes,
    update_flops,
)
from hierarchy.model.network import build
from tests.hierarchy.model.two_rate_toys import relative

CASES = [
    pytest.param(preset, task, read, id=f"{preset}-{task}-{read}")
    for preset, task, read in (
        ("debug", "patrol", "cross_attention"),
        ("debug", "patrol", "film"),
        ("debug", "reacher_easy", "cross_attention"),
        ("debug", "reacher_easy", "prefix"),
        ("debug", "patrol", "quantised"),
        ("debug", "reacher_easy", "relative"),
        ("text", "text", "cross_attention"),
        ("demo", "patrol", "cross_attention"),
        ("demo", "reacher_easy", "cross_attention"),
        ("demo", "patrol", "relative"),
        ("demo", "reacher_easy", "at_once"),
        ("text", "text", "at_once"),
        ("demo", "patrol", "rounds"),
        ("needle", "needle", "cross_attention"),
        ("demo", "reacher_easy", "seldom"),
    )
]
KINDS = {
    "rounds": lambda config: dataclasses.replace(config, planner=dataclasses.replace(config.planner, layers=2, rounds=2)),
    "at_once": lambda config: config,
    "seldom": lambda config: dataclasses.replace(config, least_ratio=8, told_tick=False),
    "quantised": lambda config: dataclasses.replace(config, plan_levels=(5,)),
    "relative": relative,
}
NUMBER = jax.ShapeDtypeStruct((), jnp.int32)


def parts(preset: str, task: str, read: str = "cross_attention", agent: str = "two_rate"):
    config = KINDS.get(read, lambda config: dataclasses.replace(config, plan_read=read))(PRESETS[preset])
    if agent != "two_rate":
        config = dataclasses.replace(config, planner=None)
    schema = schema_of((task,), 280, agent)
    if read == "at_once":
        schema = dataclasses.replace(schema, layouts=tuple(dataclasses.replace(each, at_once=True) for each in schema.layouts))
    network = build(config, schema)
    return config, schema, schema.layouts[0], network, jax.eval_shape(network.init, jax.random.key(0))


def tokens(count: int, atoms: int) -> stepwise.Tokens:
    ids = jax.ShapeDtypeStruct((count, atoms), jnp.int32)
    return stepwise.Tokens(ids, ids, NUMBER, NUMBER)


def counted_by_xla(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(("preset", "task", "read"), CASES)
def test_an_update_costs_what_xla_says(preset, task, read):
    config, schema, layout, network, params = parts(preset, task, read)
    cache = jax.eval_shape(lambda: stepwise.planner_cache(network, layout))
    update = functools.partial(stepwise.update, network, layout)
    reading = tokens(tokens_per_update(layout), schema.planner_atoms)
    expected = counted_by_xla(update, params, cache, reading, NUMBER, NUMBER)
    # XLA works out what may be seen more than once, which is much of a tiny model's attention.
    assert update_flops(config, schema, layout) == pytest.approx(expected, rel=0.1 if preset == "debug" else 0.05)


@pytest.mark.parametrize(("preset", "task", "read"), CASES)
def test_a_tick_costs_what_xla_says(preset, task, read, monkeypatch):
    config, schema, layout, network, params = parts(preset, task, read)
    assert tick_flops(config, schema, layout) == pytest.approx(
        ticked_by_xla(schema, layout, network, params, monkeypatch), rel=0.05
    )


@pytest.mark.parametrize("at_once", [False, True])
def test_a_tick_of_the_operating_point_costs_what_xla_says(at_once, monkeypatch):
    """Where most of a tick is attention: a token a scalar, and 336 slots."""
    point = Point()
    made = two_rate(point, sized("0.5M", point.window), sized("0.5M", point.window), at_once)
    shapes = jax.eval_shape(made.network.init, jax.random.key(0))
    expected = ticked_by_xla(made.schema, made.layout, made.network, shapes, monkeypatch)
    assert tick_flops(made.network.config, made.schema, made.layout) == pytest.approx(expected, rel=0.03)


def ticked_by_xla(schema, layout, network, params, monkeypatch) -> float:
    # XLA counts the body of a loop once: the actions' elements are unrolled for it.
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    cache = jax.eval_shape(lambda: stepwise.controller_cache(network, layout))
    plan = jax.eval_shape(functools.partial(stepwise.no_plan, network), params)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def tick(params, cache, read, now, plan, age, key):
        return stepwise.tick(network, schema, layout, params, cache, read, 1, now, plan.reading, age, key, "argmax")

    reading = tokens(tokens_per_reading(layout), schema.controller_atoms)
    return counted_by_xla(tick, params, cache, reading, NUMBER, plan, NUMBER, key)


def test_what_is_followed_costs_what_xla_says_and_that_is_the_same_at_every_ratio():
    config, schema, layout, network, params = parts("text", "text")
    cache = jax.eval_shape(lambda: stepwise.planner_cache(network, layout))
    one = jax.ShapeDtypeStruct((1, tokens_between(layout), schema.planner_atoms), jnp.int32)
    follow = functools.partial(stepwise.follow, network, layout)
    expected = counted_by_xla(follow, params, cache, stepwise.Tokens(one, one, NUMBER, NUMBER), NUMBER, 1)
    assert follow_flops(config, schema, layout) == pytest.approx(expected, rel=0.05)
    costs = [flops_per_tick(config, schema, layout, ratio) for ratio in (1, 2, 8, 32)]
    plan = update_flops(config, schema, layout) - follow_flops(config, schema, layout)
    assert [round(costs[0] - cost) for cost in costs] == [round(plan * (1 - 1 / ratio)) for ratio in (1, 2, 8, 32)]


@pytest.mark.parametrize("read", ["cross_attention", "film", "prefix"])
def test_a_pass_reads_every_weight_that_a_tick_is_given_but_the_embeddings(read):
    config, schema, layout, network, params = parts("demo", "reacher_easy", read)
    acting = compile_acting(network, schema, layout.name)
    given = lay_out(acting, params).tick
    leaves = {f"{module}/{name}": leaf for module, each in given.items() for name, leaf in each.items()}
    embedding = ("controller/embedding/", "controller/age/")
    weights = sum(leaf.size for name, leaf in leaves.items() if not name.startswith(embedding)) + HEAD_FEATURES * BINS
    cache = jax.eval_shape(lambda: stepwise.controller_cache(network, layout))
    plan = jax.eval_shape(functools.partial(stepwise.no_plan, network), params).reading
    # A plan that is a prefix stands in the cache.
    held = sum(leaf.size for leaf in jax.tree.leaves((cache.layers, () if read == "prefix" else plan)))
    assert {each.bytes for each in tick_passes(config, schema, layout)} == {4 * (weights + held)}


def test_passes_are_one_a_token_or_one_for_all():
    config, schema, layout, _, _ = parts("text", "text")
    _, schema_at_once, layout_at_once, _, _ = parts("text", "text", "at_once")
    one_by_one, at_once = tick_passes(config, schema, layout), tick_passes(config, schema_at_once, layout_at_once)
    reading, rest = tokens_per_reading(layout), layout.action.size - 1
    assert [each.tokens for each in one_by_one] == [reading] + [1] * rest
    assert [each.tokens for each in at_once] == [reading + rest]
    assert sum(each.flops for each in at_once) == pytest.approx(sum(each.flops for each in one_by_one), rel=0.05)


def test_a_planner_update_is_worth_its_own_rate():
    config, schema, layout, _, _ = parts("demo", "patrol")
    assert update_flops(config, schema, layout) >= 5 * tick_flops(config, schema, layout)


def test_the_cost_of_a_tick_falls_with_the_ratio_to_the_controllers_own():
    config, schema, layout, _, _ = parts("demo", "patrol")
    costs = [flops_per_tick(config, schema, layout, ratio) for ratio in (1, 2, 4, 8, 16, 32)]
    tick, update = tick_flops(config, schema, layout), update_flops(config, schema, layout)
    assert costs == [tick + update / ratio for ratio in (1, 2, 4, 8, 16, 32)]
    alone, schema_alone, layout_alone, _, _ = parts("demo", "patrol", agent="single_rate")
    assert flops_per_tick(alone, schema_alone, layout_alone, 1) == flops_per_tick(alone, schema_alone, layout_alone, 32)


def test_parameters_are_those_that_are_multiplied_through():
    _, _, _, network, shapes = parts("debug", "patrol")
    sizes = {f"{module}/{name}": leaf.size for module, leaves in shapes.items() for name, leaf in leaves.items()}
    tables = {name for name in sizes if name.rsplit("/", 1)[1] in TABLES}
    read = ("names", "fields", "positions")
    assert tables == {f"{model}/embedding/{table}" for model in ("planner", "controller") for table in read}
    assert parameters(network) == sum(size for name, size in sizes.items() if name not in tables)


def test_experts_are_more_parameters_for_the_same_operations():
    config, schema, layout, network, _ = parts("demo", "patrol", "film")
    routed = dataclasses.replace(config, planner=dataclasses.replace(config.planner, experts=16, chosen=2))
    assert update_flops(routed, schema, layout) == pytest.approx(update_flops(config, schema, layout), rel=0.05)

    def blocks(config) -> int:
        """Of the planner."""
        shapes = jax.eval_shape(build(config, schema).init, jax.random.key(0))
        own = {module: leaves for module, leaves in shapes.items() if module.startswith("planner")}
        found = [leaves for module, leaves in own.items() if re.search("experts|gate_up|/down", module)]
        return sum(leaf.size for leaves in found for leaf in leaves.values())

    # Sixteen, each of half a block's size, and a router of 16 outputs for each of 4 layers of width 128.
    assert blocks(routed) == 8 * blocks(config) + 4 * 128 * 16
    assert parameters(build(routed, schema)) - parameters(network) == 7 * blocks(config) + 4 * 128 * 16


def test_parameters_do_not_depend_on_the_number_of_fields_or_words():
    config = PRESETS["debug"]
    small, large = schema_of(("go_to",), 280, "two_rate"), schema_of(("go_to", "patrol"), 900, "two_rate")
    assert parameters(build(config, small)) == parameters(build(config, large))
