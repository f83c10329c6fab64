"""However a pass is computed, it computes the same, of the same parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from hierarchy.batch import Targets
from hierarchy.training.learner import LearnerConfig, initial_state, make_step, optimizer, shared
from hierarchy.training.losses import LossWeights, joint_loss
from modules.compute import Compute, LayerNames, Spread, computing, lowered, partition
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
def test_an_optimiser_treats_layers_that_stand_together_as_it_does_each():
    params = toy("film").params
    together = stacked(params)
    assert len(together) < len(params)
    assert together["controller/transformer/layer_*/gate_up"]["w"].shape == (2, 12, 16)
    assert any(name.endswith("/plan_film_1") for name in together)
    update, state = optimizer(LearnerConfig(rate_warm_up=0)).update, optimizer(LearnerConfig()).init(params)
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
