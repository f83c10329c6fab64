"""However a pass is computed, it computes the same, of the same parameters."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from hierarchy.batch import Targets
from hierarchy.training.learner import LearnerConfig, Optimizer, initial_state, make_step, optimizer, shared
from hierarchy.training.losses import LossWeights, joint_loss
from modules.compute import Compute, LayerNames, Spread, computing, lowered, over_rows, partition, product
from modules.stacking import by_layer, stacked
from tests.hierarchy.model.two_rate_toys import toy
from tests.hierarchy.training.spread_job import example

WEIGHTS = LossWeights()


def graded(kind: str, compute: Compute):
    toy_, batch = example(kind)

    def loss(params, batch):
        with computing(compute):
            return joint_loss(toy_.network, lowered(params), batch, WEIGHTS)[0]

    return jax.jit(jax.value_and_grad(loss))(toy_.params, batch)


def assert_close(one, other, within: float) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=within)


def one_by_one(x, weights):
    return jnp.stack([jnp.matmul(row, weights) for row in x])


@pytest.mark.parametrize("layer", [lambda each: each, jax.checkpoint], ids=["kept", "computed anew"])
def test_tokens_of_all_rows_are_multiplied_as_those_of_each_row(layer):
    """Values, and gradients of tokens and weights; sums over rows of another order would be seen."""
    rng = np.random.default_rng(0)
    x, weights, slope = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((3, 5, 4), (4, 6), (3, 5, 6)))

    def graded(multiply):
        return jax.value_and_grad(lambda x, weights: jnp.sum(slope * multiply(x, weights)), (0, 1))(x, weights)

    def at_once(x, weights):
        return over_rows(layer(lambda row: product(row, weights)))(x)

    for one, other in zip(jax.tree.leaves(graded(at_once)), jax.tree.leaves(graded(one_by_one)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    turned = jax.tree.leaves(graded(lambda x, weights: at_once(x[::-1], weights)))
    assert abs(turned[0] - graded(one_by_one)[0]) > 0.1
    ranks = [line for line in str(jax.make_jaxpr(graded, static_argnums=0)(at_once)).splitlines() if "dot_general" in line]
    assert ranks
    assert not any("f32[3,5," in line.split("dot_general")[0] for line in ranks)


def test_weights_of_a_rows_own_and_rows_of_none_are_multiplied_too():
    rng = np.random.default_rng(1)
    x, weights = rng.normal(size=(3, 5, 4)).astype(np.float32), rng.normal(size=(3, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(over_rows(product)(x, weights), np.einsum("bnc,bcd->bnd", x, weights), atol=1e-5)
    plans = over_rows(lambda plan: jax.vmap(lambda each: product(each, weights[0]))(plan))(x[:, None])
    np.testing.assert_allclose(plans[:, 0], x @ weights[0], atol=1e-5)
    alone = jax.grad(lambda weights: product(x[0], weights).sum())(weights[0])
    np.testing.assert_allclose(alone, np.tile(x[0].sum(0)[:, None], 6), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "compute"),
    [
        pytest.param("film", Compute(scan=True, remat="full"), marks=pytest.mark.long),
        pytest.param("pooled", Compute(scan=True, remat="dots"), marks=pytest.mark.long),
        pytest.param("prefix", Compute(scan=True), marks=pytest.mark.long),
        pytest.param("relative", Compute(scan=True, remat="full"), marks=pytest.mark.long),
        pytest.param("windows", Compute(scan=True, remat="full"), marks=pytest.mark.long),
        pytest.param("pooled", Compute(remat="full"), marks=pytest.mark.long),
        pytest.param("pooled", Compute(attention="flash", scan=True), marks=pytest.mark.long),
        pytest.param("pooled", Compute(attention="flash", scan=True, remat="dots"), marks=pytest.mark.long),
        pytest.param("three_rates", Compute(scan=True, remat="full"), marks=pytest.mark.long),
        pytest.param("captions", Compute(scan=True, remat="full", text_chunk=32), marks=pytest.mark.long),
        pytest.param("text", Compute(text_chunk=64), marks=pytest.mark.long),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, dataclasses.astuple(value))),
)
def test_loss_and_gradient_are_the_same(kind, compute):
    assert_close(graded(kind, compute), graded(kind, Compute()), 1e-5)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["pooled", "film", "relative", "text"])
def test_half_the_digits_give_nearly_the_same(kind):
    low = graded(kind, Compute(precision="bfloat16", scan=True, remat="full"))
    full = graded(kind, Compute())
    assert float(low[0]) == pytest.approx(float(full[0]), rel=0.02)
    assert float(low[0]) != float(full[0])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(low[1]))


def test_layers_have_the_names_of_the_first_with_their_own_numbers():
    names = LayerNames()
    for flat, first, number in (
        ("layer_12/query_key_value", "layer_0/query_key_value", 12),
        ("layer_3/plan_query_3", "layer_0/plan_query_0", 3),
        ("layer_3", "layer_0", 3),
    ):
        assert names.flat_to_stacked(flat) == (first, number)
        assert names.stacked_to_flat(first, number) == flat
    assert names.flat_to_stacked("norm_out") is None


def test_an_axis_divides_the_first_dimension_that_claims_it_and_can_be_divided():
    mesh = Mesh(np.array(jax.devices() * 8)[:8].reshape(2, 4), ("data", "fsdp"))
    spread = Spread(mesh, (("rows", ("data", "fsdp")), ("width", ("fsdp",))))
    assert partition(spread, ("rows", "width"), (16, 8)) == PartitionSpec(("data", "fsdp"), None)
    assert partition(spread, ("rows", "width"), (2, 8)) == PartitionSpec(("data",), ("fsdp",))
    assert partition(spread, ("width", None), (6, 8)) == PartitionSpec(None, None)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["film", "captions"])
def test_a_batch_in_parts_is_the_batch(kind):
    toy_, batch = example(kind)
    batch = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), batch)
    config = LearnerConfig(steps=4, planner_steps=0, rate_warm_up=1, clip=1e9)
    after = {}
    for parts in (1, 2):
        learner = dataclasses.replace(config, accumulate=parts)
        after[parts] = make_step(toy_.network, learner, WEIGHTS)(initial_state(toy_.network, learner), batch)
    (one, metrics), (other, in_parts) = after.values()
    for name in metrics.keys() - {"sub_goal_accuracy"}:
        np.testing.assert_allclose(float(metrics[name]), float(in_parts[name]), rtol=1e-5, err_msg=name)
    # The optimiser's means are a tenth of the gradient.
    assert_close(one, other, 1e-5)


@pytest.mark.long
def test_experts_in_parts_that_are_alike_are_those_of_the_batch():
    toy_, batch = example("experts")
    batch = jax.tree.map(lambda x: x[[0, 0, 1, 1]], batch)
    config, found = LearnerConfig(steps=4, planner_steps=0, rate_warm_up=1), []
    for parts in (1, 2):
        learner = dataclasses.replace(config, accumulate=parts)
        step = make_step(toy_.network, learner, WEIGHTS, Compute(expert_capacity=0.5))
        found.append(step(initial_state(toy_.network, learner), batch)[1])
    assert 0 < float(found[0]["dropped"]) < 0.5
    for name in ("loss", "balance_loss", "router_z_loss", "load_entropy", "dropped", "gradient_norm"):
        np.testing.assert_allclose(float(found[0][name]), float(found[1][name]), rtol=1e-5, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("kind", get_args(Optimizer))
def test_an_optimiser_treats_layers_that_stand_together_as_it_does_each(kind):
    params = toy("film").params
    together = stacked(params)
    assert len(together) < len(params)
    assert together["controller/transformer/layer_*/gate_up"]["w"].shape == (2, 12, 16)
    assert any(name.endswith("/plan_film_1") for name in together)
    made = optimizer(LearnerConfig(rate_warm_up=0, optimizer=kind))
    update, state = made.update, made.init(params)
    alone, _ = update(params, state, params)
    moved, _ = update(together, stacked(state), together)
    assert_close(by_layer(moved), alone, 1e-7)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(alone)) > 1e-4
    jax.tree.map(np.testing.assert_array_equal, by_layer(stacked(state)), state)


def test_shares_of_every_head_add_up_to_one_and_actions_are_one_head():
    _, batch = example("film")
    heads = [name for name, part in batch._asdict().items() if isinstance(part, Targets)]
    each = Targets(*np.zeros((3, 3, 5), np.int32), np.full((3, 5), 0.7, np.float32))
    given = shared(batch._replace(**dict.fromkeys(heads, each)))
    for name in heads:
        expected = 0.5 if name in ("continuous", "discrete") else 1.0
        assert float(getattr(given, name).weight.sum()) == pytest.approx(expected), name
    assert float(shared(batch).text.weight.sum()) == 0.0


@pytest.mark.parametrize("wrong", [dict(precision="int8"), dict(remat="some"), dict(attention="fast"), dict(text_chunk=-1)])
def test_what_is_no_computation_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Compute(**wrong)


def test_parts_and_chunks_that_do_not_go_round_are_refused():
    toy_, batch = example("film")
    learner = LearnerConfig(accumulate=2)
    with pytest.raises(ValueError, match="accumulate 2 does not divide the batch's 3 rows"):
        make_step(toy_.network, learner, WEIGHTS)(initial_state(toy_.network, learner), batch)
    with pytest.raises(ValueError, match="text_chunk 7 does not divide"):
        graded("text", Compute(text_chunk=7))
