"""Layers stacked and taken apart again are what they were, and so are slopes."""

import jax
import jax.numpy as jnp
import numpy as np

from modules.stacking import by_layer, kind_of, stacked


def params_of(layers: int) -> dict:
    rng = np.random.default_rng(0)
    made = {f"planner/transformer/layer_{n}/gate_up": {"w": rng.normal(size=(3, 4))} for n in range(layers)}
    made |= {f"planner/transformer/layer_{n}/plan_query_{n}": {"b": rng.normal(size=2)} for n in range(layers)}
    return jax.tree.map(jnp.asarray, made | {"planner/embedding": {"names": rng.normal(size=(5, 2))}})


def test_layers_are_stacked_in_the_order_of_their_numbers_and_taken_apart_again():
    params = params_of(12)
    together = stacked((3, [params]))[1][0]
    assert together.keys() == {
        "planner/transformer/layer_*/gate_up",
        "planner/transformer/layer_*/plan_query_*",
        "planner/embedding",
    }
    eleventh = together["planner/transformer/layer_*/gate_up"]["w"][11]
    np.testing.assert_array_equal(eleventh, params["planner/transformer/layer_11/gate_up"]["w"])
    jax.tree.map(np.testing.assert_array_equal, by_layer(together), params)
    assert by_layer(params) is params


def test_a_number_elsewhere_than_in_a_layer_is_part_of_the_name():
    assert kind_of("controller/plan_key_value_3") == ("controller/plan_key_value_3", 0)
    assert kind_of("planner/transformer/layer_12/plan_query_12") == ("planner/transformer/layer_*/plan_query_*", 12)
    assert kind_of("planner/transformer/layer_2/plan_query_12") == ("planner/transformer/layer_*/plan_query_12", 2)


def test_slopes_of_layers_come_back_stacked():
    params = params_of(3)
    weights = jax.tree.map(lambda x: x**2, params)

    def loss(together):
        return sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(by_layer(together)), jax.tree.leaves(weights), strict=True))

    jax.tree.map(np.testing.assert_allclose, jax.grad(loss)(stacked(params)), stacked(weights))
