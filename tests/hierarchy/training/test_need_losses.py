"""The losses of the heads that triggers go by: known values, and what each of them trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hierarchy.batch import Targets
from hierarchy.layout import LIVES
from hierarchy.timeline import periodic
from hierarchy.training.learner import LearnerConfig, step_weights
from hierarchy.training.losses import LossWeights, following_loss, joint_loss, lifetime_loss
from tests.hierarchy.control.test_trigger import episodes, needy
from tests.hierarchy.model.two_rate_toys import packed, segments, windows


def targets(label, weight=None) -> Targets:
    label = np.array([label], np.int32)
    weight = np.ones(label.shape, np.float32) if weight is None else np.array([weight], np.float32)
    return Targets(np.zeros_like(label), label, np.full_like(label, len(LIVES)), weight)


def test_a_lifetime_that_ended_has_its_bin_and_one_cut_short_all_bins_from_its_own():
    n = len(LIVES)
    chance = np.arange(1.0, n + 1) / np.sum(np.arange(1.0, n + 1))
    logits = jnp.log(jnp.asarray(np.tile(chance, (1, 4, 1))))
    ended, cut_short, from_start = chance[3], chance[5:].sum(), 1.0
    found = lifetime_loss(logits, targets([3, n + 5, n, 0], [1, 1, 1, 0]))
    assert float(found) == pytest.approx(-np.log([ended, cut_short, from_start]).mean(), abs=1e-5)


def test_only_true_chances_make_lifetimes_likeliest():
    """Lives drawn from known chances and cut short at random: no other chances have a lower loss."""
    rng, n = np.random.default_rng(0), len(LIVES)
    chance = rng.dirichlet(np.full(n, 3.0))
    life, cut_at = rng.choice(n, 20_000, p=chance), rng.integers(n, size=20_000)
    label = np.where(life < cut_at, life, n + np.minimum(life, cut_at))
    drawn = targets(label)

    def loss(logits):
        return lifetime_loss(jnp.broadcast_to(logits, (1, len(label), n)), drawn)

    logits = jnp.zeros(n)
    step = jax.jit(lambda logits: logits - 4.0 * jax.grad(loss)(logits))
    for _ in range(400):
        logits = step(logits)
    # The last bins are seldom seen to end, and are known less well.
    np.testing.assert_allclose(jax.nn.softmax(logits)[: n - 4], chance[: n - 4], atol=0.02)


def gradient(weights: LossWeights):
    made = needy()
    batch = packed(made, segments(made, episodes(), periodic(made.ticks, 4, 1), windows(made.ticks)))
    return jax.jit(jax.grad(lambda params: joint_loss(made.network, params, batch, weights)[0]))(made.params)


def moved(tree) -> tuple[bool, bool, bool]:
    """Returns whether the head of the next tick, that of lifetimes, and any of the controller have a gradient."""
    names = {name for name, leaves in tree.items() if any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(leaves))}
    heads = (any(name.endswith(head) for name in names) for head in ("following", "lifetime"))
    return *heads, any(name.startswith("controller") for name in names)


def test_each_head_is_trained_by_its_own_loss_and_by_nothing_else():
    nothing = LossWeights(action=0.0, text=0.0, sub_goal=0.0, planner_text=0.0)
    assert moved(gradient(dataclasses.replace(nothing, following=1.0))) == (True, False, True)
    assert moved(gradient(dataclasses.replace(nothing, lifetime=1.0))) == (False, True, False)
    assert moved(gradient(LossWeights())) == (False, False, True)


def test_the_next_tick_is_predicted_scalar_by_scalar():
    made = needy()
    batch = packed(made, segments(made, episodes(), periodic(made.ticks, 4, 1), windows(made.ticks)))
    logits = made.forward(made.params, batch).following
    loss, right = following_loss(logits, batch.following)
    assert 0 < float(loss) < 60
    assert 0 <= float(right) <= 1
    used = batch.following.weight > 0
    told = np.where(np.arange(35) == batch.following.label[..., None], 50.0, np.asarray(logits) * (np.asarray(logits) < -1e29))
    loss, right = following_loss(jnp.asarray(told), batch.following)
    assert used.sum() > 100
    assert float(loss) < 1e-6
    assert float(right) == 1.0


def test_the_warm_up_leaves_the_controllers_predictions_out():
    config = LearnerConfig(steps=4, planner_steps=2, weights=LossWeights(following=0.5, lifetime=0.3))
    assert step_weights(config, 0) == LossWeights(action=0.0, text=0.0, following=0.0, lifetime=0.3)
    assert step_weights(config, 2) == config.weights
