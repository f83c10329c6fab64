"""What is trained by which loss, and that the wrong plan is really another's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hierarchy.batch import Batch, Targets
from hierarchy.model.parallel import act, think
from hierarchy.timeline import periodic
from hierarchy.training.learner import LearnerConfig, detached, initial_state, make_step, rate, step_weights
from hierarchy.training.losses import LossWeights, action_loss, cross_entropy, joint_loss, plan_use
from tests.hierarchy.model.two_rate_toys import Toy, packed, segments, toy, windows, world


@pytest.fixture(scope="module")
def made() -> tuple[Toy, object]:
    made = toy("pooled")
    return made, packed(made, segments(made, world(made), periodic(made.ticks, 4, 2, 1), windows(made.ticks)))


def groups(tree) -> dict[str, bool]:
    """Returns "planner" and "controller" to whether any parameter of theirs is not zero."""
    found = dict.fromkeys(("planner", "controller"), False)
    for name, leaves in tree.items():
        found[name.split("/")[0]] |= any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(leaves))
    return found


@pytest.fixture(scope="module")
def gradients(made) -> list:
    """Gradients under the action alone, under the sub-goal alone, and under both."""
    toy_, batch = made
    weights = LossWeights(sub_goal=0.0), LossWeights(action=0.0), LossWeights(action=0.5, sub_goal=3.0)
    return [
        jax.jit(jax.grad(lambda params, each=each: joint_loss(toy_.network, params, batch, each)[0]))(toy_.params)
        for each in weights
    ]


def test_the_warm_up_trains_the_planner_alone(gradients):
    assert groups(gradients[1]) == {"planner": True, "controller": False}


def test_the_action_reaches_the_planner_through_the_plan(gradients):
    assert groups(gradients[0]) == {"planner": True, "controller": True}


def test_losses_add_up_under_their_weights(gradients):
    for found, one, other in zip(*map(jax.tree.leaves, (gradients[2], gradients[0], gradients[1])), strict=True):
        np.testing.assert_allclose(found, 0.5 * one + 3.0 * other, atol=1e-5)


def test_no_step_of_the_warm_up_moves_a_controller(made):
    toy_, batch = made
    config = LearnerConfig(steps=4, planner_steps=2, rate_warm_up=1, weight_decay=0.0)
    weights = [step_weights(config, step) for step in range(4)]
    assert [each.action for each in weights] == [0.0, 0.0, 1.0, 1.0]
    state = initial_state(toy_.network, config)
    before = jax.tree.map(np.asarray, state.params)
    warm, joint = (make_step(toy_.network, config, each) for each in (weights[0], weights[-1]))
    for step, moved in ((warm, False), (warm, False), (joint, True)):
        state, _ = step(state, batch)
        change = jax.tree.map(lambda new, old: np.asarray(new) - old, state.params, before)
        assert groups(change)["controller"] == moved
    assert int(state.step) == 3
    assert groups(change)["planner"]


def test_the_rate_of_names_is_that_of_the_rows_that_embed_them_alone(made):
    toy_, batch = made
    plain = LearnerConfig(steps=4, planner_steps=0, rate_warm_up=0, weight_decay=0.0)

    def change(config):
        state, _ = make_step(toy_.network, config, config.weights)(initial_state(toy_.network, config), batch)
        return jax.tree.map(lambda new, old: np.asarray(new) - old, state.params, toy_.network.init(jax.random.key(0)))

    one, eight = change(plain), change(dataclasses.replace(plain, names_rate=8.0))
    names = [module for module, leaves in one.items() if "names" in leaves]
    assert names
    assert all(np.any(one[module]["names"]) for module in names)
    for module, leaves in one.items():
        for key, moved in leaves.items():
            np.testing.assert_allclose(eight[module][key], moved * (8.0 if key == "names" else 1.0), rtol=1e-3, atol=1e-6)


def test_detached_plans_carry_exactly_no_gradient_and_change_no_loss(made):
    toy_, batch = made
    weights = LossWeights(sub_goal=0.0)

    def graded(network):
        return jax.jit(jax.value_and_grad(lambda params: joint_loss(network, params, batch, weights)[0]))(toy_.params)

    (loss, gradient), (joint_loss_, joint) = graded(detached(toy_.network)), graded(toy_.network)
    assert loss == joint_loss_
    assert groups(gradient) == {"planner": False, "controller": True}
    assert groups(joint) == {"planner": True, "controller": True}
    same = [jax.tree.leaves((gradient[name], joint[name])) for name in joint if name.startswith("controller")]
    for leaves in same:
        half = len(leaves) // 2
        for one, other in zip(leaves[:half], leaves[half:], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(("planner", "moved"), [("joint", True), ("detached", True), ("frozen", False)])
def test_a_frozen_planner_stays_as_its_warm_up_left_it_bit_for_bit(made, planner, moved):
    """With momentum from the warm-up and with weight decay, that need no gradient to move a weight."""
    toy_, batch = made
    config = LearnerConfig(steps=6, planner_steps=2, rate_warm_up=1, weight_decay=0.1, planner=planner)
    warm, joint = (make_step(toy_.network, config, step_weights(config, step)) for step in (0, 5))
    state = initial_state(toy_.network, config)
    for _ in range(2):
        state, _ = warm(state, batch)
    before = jax.tree.map(np.asarray, state.params)
    for _ in range(2):
        state, metrics = joint(state, batch)
    assert metrics["sub_goal_loss"] > 0
    change = jax.tree.map(lambda new, old: np.asarray(new) - old, state.params, before)
    assert groups(change) == {"planner": moved, "controller": True}


def test_the_action_moves_a_detached_planner_not_at_all(made):
    toy_, batch = made
    config = LearnerConfig(
        steps=4, planner_steps=0, rate_warm_up=1, weight_decay=0.0, planner="detached", weights=LossWeights(sub_goal=0.0)
    )
    step, state = make_step(toy_.network, config, config.weights), initial_state(toy_.network, config)
    before = jax.tree.map(np.asarray, state.params)
    for _ in range(2):
        state, _ = step(state, batch)
    change = jax.tree.map(lambda new, old: np.asarray(new) - old, state.params, before)
    assert groups(change) == {"planner": False, "controller": True}


def test_a_planner_that_learns_in_no_known_way_is_refused():
    with pytest.raises(ValueError, match="joint, detached, frozen"):
        LearnerConfig(planner="asleep")


def test_the_rate_warms_up_and_falls_to_its_end():
    config = LearnerConfig(steps=100, planner_steps=0, peak_rate=0.1, rate_warm_up=10, final_rate=0.05)
    rates = [float(rate(config)(step)) for step in range(101)]
    assert rates[0] == 0
    assert int(np.argmax(rates)) == 10
    np.testing.assert_allclose([max(rates), rates[-1]], [0.1, 0.005], rtol=1e-6)


def test_cross_entropy_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(2, 5, 7)), rng.integers(7, size=(2, 5))
    weight = np.array([[1, 0, 2, 1, 0], [0, 0, 1, 1, 1]], np.float32)
    label[weight == 0] = 10_000
    targets = Targets(np.zeros((2, 5), int), label + 100, np.full((2, 5), 7), weight)
    loss, right, total = cross_entropy(jnp.asarray(logits), targets, 100)
    used = [(logits[i], label[i], weight[i]) for i in np.ndindex(2, 5) if weight[i]]
    expected = sum(w * (np.log(np.exp(x).sum()) - x[y]) for x, y, w in used)
    np.testing.assert_allclose([loss, right, total], [expected, sum(w * (x.argmax() == y) for x, y, w in used), 7.0], rtol=1e-5)


def test_the_wrong_plan_is_the_next_rows_and_no_plan_is_the_learnt_one(made):
    toy_, batch = made
    measured = jax.jit(lambda params: plan_use(toy_.network, params, batch))(toy_.params)
    plan = jax.jit(lambda params: think(toy_.network, params, batch)[0])(toy_.params)

    @jax.jit
    def loss_under(seen: Batch, plan: jax.Array) -> jax.Array:
        return action_loss(act(toy_.network, toy_.params, seen, plan), batch)[0]

    rows = len(batch.plan)
    count = (batch.plan.max(axis=1) + 1).tolist()
    assert min(count) >= 1
    swapped, index = np.zeros_like(plan), batch.plan.copy()
    for row in range(rows):
        other = (row + 1) % rows
        swapped[row] = plan[other]
        for at in np.flatnonzero(batch.plan[row] >= 0):
            index[row, at] = batch.plan[row, at] % count[other]
            # Only plans that some tick of the other row sees: the budget's unused ones are nobody's.
            assert batch.plan_slot[other, index[row, at]] >= 0
    wrong = loss_under(batch._replace(plan=index), swapped)
    nothing = batch._replace(plan=np.full_like(batch.plan, -1), age=np.full_like(batch.age, -1))
    without, own = loss_under(nothing, plan), loss_under(batch, plan)
    found = [measured[name] for name in ("action_loss", "action_loss_wrong_plan", "action_loss_no_plan")]
    np.testing.assert_allclose(found, [own, wrong, without], rtol=1e-5)
    assert len({round(float(each), 6) for each in found}) == 3


def test_one_row_has_no_other_episodes_plan(made):
    toy_, batch = made
    one = jax.tree.map(lambda x: x[:1], batch)
    assert set(plan_use(toy_.network, toy_.params, one)) == {"action_loss", "action_loss_no_plan", "sub_goal_accuracy"}


@pytest.mark.long
def test_text_is_logged_by_its_own_name_and_weighed_apart():
    made = toy("captions")
    batch = packed(made, segments(made, world(made), periodic(made.ticks, 4, 2, 1), windows(made.ticks)))
    loss = jax.jit(lambda weights: joint_loss(made.network, made.params, batch, weights), static_argnums=0)
    total, metrics = loss(LossWeights(text=2.0, planner_text=0.5))
    assert set(metrics) == {"loss", "text_loss", "text_accuracy", "planner_text_loss", "planner_text_accuracy"}
    np.testing.assert_allclose(total, 2.0 * metrics["text_loss"] + 0.5 * metrics["planner_text_loss"], rtol=1e-5)
    # Untrained, a piece is about as likely as any other.
    assert abs(float(metrics["text_loss"]) - np.log(128)) < 1.0
    used = plan_use(made.network, made.params, batch)
    assert set(used) == {"text_loss", "text_loss_wrong_plan", "text_loss_no_plan", "planner_text_loss"}
    assert len({round(float(used[name]), 6) for name in used}) == 4


def test_the_warm_up_keeps_every_loss_of_the_planners_own():
    weights = LossWeights(action=1.0, text=1.0, sub_goal=0.3, planner_text=0.7)
    first = step_weights(LearnerConfig(steps=4, planner_steps=2, weights=weights), 0)
    assert first == LossWeights(action=0.0, text=0.0, sub_goal=0.3, planner_text=0.7)
