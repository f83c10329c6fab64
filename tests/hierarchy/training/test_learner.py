"""What an optimiser's step does to which parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hierarchy.training.learner import LearnerConfig, Optimizer, optimizer

MATRIX, PLAIN = "controller/transformer/layer_0/gate_up", "planner/embedding"
RATE, CONTROLLERS, NAMES = 2e-3, 3.0, 5.0


def moved(kind: Optimizer) -> tuple[dict, dict]:
    """Returns the gradient and the first step of three parameters; the matrix' gradient is loud in one direction."""
    rng = np.random.default_rng(0)
    loud = 100.0 * np.outer(rng.normal(size=24), rng.normal(size=40))
    plain = {"names": rng.normal(size=(6, 8)), "bias": rng.normal(size=8)}
    gradient = {MATRIX: {"w": loud + rng.normal(size=(24, 40))}, PLAIN: plain}
    gradient = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), gradient)
    rates = {"peak_rate": RATE, "rate_warm_up": 0, "controller_rate": CONTROLLERS, "names_rate": NAMES}
    own = optimizer(LearnerConfig(weight_decay=0.0, optimizer=kind, **rates))
    step, _ = own.update(gradient, own.init(gradient), gradient)
    return gradient, step


def test_muon_moves_a_layers_matrix_alike_in_all_directions_and_as_far_as_adamw_does():
    gradient, step = moved("muon")
    before, after = (np.linalg.svd(each[MATRIX]["w"], compute_uv=False) for each in (gradient, step))
    assert before[0] / before[-1] > 100 > 4 > after[0] / after[-1]
    size = np.sqrt(np.mean(np.square(step[MATRIX]["w"])))
    assert size == pytest.approx(0.2 * CONTROLLERS * RATE, rel=0.3)
    assert np.vdot(step[MATRIX]["w"], gradient[MATRIX]["w"]) < 0


def test_muon_leaves_all_else_to_adam_with_nesterovs_momentum():
    gradient, step = moved("muon")
    adam = optax.nadam(RATE, LearnerConfig.b1, LearnerConfig.b2)
    other, _ = adam.update(gradient[PLAIN], adam.init(gradient[PLAIN]))
    np.testing.assert_allclose(step[PLAIN]["bias"], other["bias"], rtol=1e-3)
    np.testing.assert_allclose(step[PLAIN]["names"], NAMES * other["names"], rtol=1e-3)


def test_no_other_optimiser_is_known():
    with pytest.raises(ValueError, match="optimizer is 'sgd': it is one of adamw, muon"):
        LearnerConfig(optimizer="sgd")
