"""I2 and I7: what a logit depends on, and what a loss trains, by gradient and exactly: nothing is left to a tolerance."""

import functools
from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hierarchy.batch import Batch, Stream
from hierarchy.timeline import periodic, visible
from hierarchy.training.losses import LossWeights, joint_loss
from modules import transformer
from modules.embedding import TokenEmbedding
from modules.masks import Place, may_see
from modules.transformer import Transformer, TransformerConfig
from tests.hierarchy.model.two_rate_toys import CONTROLLER, PLANNER, Toy, agent_of, head, live, packed, segments, toy, world

TIMELINE = periodic(64, 4, 3, 1)
PLACES = [(2, (20, 34)), (1, (0, 12))]
Added = dict[str, jax.Array]


def watched(kind: type[hk.Module], added: Added) -> Callable:
    """An interceptor that adds arrays of zeros, by model, to what modules of one kind return: gradients to them are read off."""

    def interceptor(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.method_name != "__call__" or not isinstance(context.module, kind):
            return result
        model = context.module.module_name.split("/")[0]
        return (result[0] + added[model], *result[1:]) if isinstance(result, tuple) else result + added[model]

    return interceptor


@functools.cache
def one_row(kind: str) -> tuple[Toy, Batch]:
    """A row of two segments of what the agent did."""
    made = toy(kind)
    timeline = periodic(made.ticks, 4, 3, 1)
    lived, _, _ = live(agent_of(made, timeline), world(made))
    places = [(episode, (a, min(b, made.ticks))) for episode, (a, b) in PLACES]
    return made, packed(made, segments(made, lived, timeline, [places]))


def zeros(batch: Batch) -> Added:
    sizes = {
        "planner": (batch.planner.tick.shape[1], PLANNER.width),
        "controller": (batch.controller.tick.shape[1], CONTROLLER.width),
    }
    return {model: jnp.zeros(size) for model, size in sizes.items()}


def influence(made: Toy, batch: Batch) -> dict[str, np.ndarray]:
    """For each stream bool [M, N]: whether the gradient from action target m's logits to embedded token n is not exactly zero."""
    mixed = np.random.default_rng(0).normal(size=2048).astype(np.float32)

    def logits(added: Added) -> jax.Array:
        with hk.intercept_methods(watched(TokenEmbedding, added)):
            result = made.forward.__wrapped__(made.params, batch)
        logits = getattr(result, head(made))
        return jnp.where(logits[0] > -1e29, logits[0] * mixed[: logits.shape[-1]], 0.0).sum(axis=-1)

    jacobian = jax.jit(jax.jacrev(logits))(zeros(batch))
    return {model: np.any(np.asarray(each) != 0, axis=-1) for model, each in jacobian.items()}


@functools.cache
def found_in(kind: str) -> dict[str, np.ndarray]:
    """The influence in the row of a kind, worked out once: compiling it is most of these tests' time."""
    return influence(*one_row(kind))


def reached(stream: Stream, config: TransformerConfig, layers: int | None = None) -> np.ndarray:
    """bool [N, N]: whether token n can be behind token m's output, hop by hop through the last `layers`, all if None; written out
    pair by pair."""
    tick, segment, lasting = (np.asarray(part)[0] for part in (stream.tick, stream.segment, stream.lasting))
    count = len(tick)
    hops = np.eye(count, dtype=bool)
    for window in config.by_layer[: -1 - (layers or config.layers) : -1]:
        hop = np.eye(count, dtype=bool)
        for m in range(count):
            for n in range(m):
                same = segment[m] == segment[n] != 0
                hop[m, n] = same and tick[m] - tick[n] < window and (bool(lasting[n]) or tick[m] == tick[n])
        hops = hops @ hop
    return hops


LONG_TOO = [pytest.param(kind, marks=pytest.mark.long) for kind in ("captions", "windows")]


@pytest.mark.parametrize("kind", ["film", "scalars", "prefix", "relative", *LONG_TOO])
def test_logits_depend_on_what_they_may_and_on_all_of_it(kind):
    (made, batch), found = one_row(kind), found_in(kind)
    targets = getattr(batch, head(made))
    slots, plan = targets.slot[0], batch.plan[0]
    used = targets.weight[0] > 0
    fast, slow = made.network.config.controller, made.network.config.planner
    controller, planner = reached(batch.controller, fast), reached(batch.planner, slow)
    np.testing.assert_array_equal(found["controller"][used], controller[slots[used]])
    # Its own plan reaches a token, and those of the tokens that it sees after their first layer read theirs.
    seen = reached(batch.controller, fast, fast.layers - 1)
    through = [
        np.any(
            [planner[batch.plan_slot[0, j]] for j in set(plan[seen[slot]].tolist()) - {-1}] or [np.zeros(len(planner))],
            axis=0,
        )
        for slot in slots[used]
    ]
    np.testing.assert_array_equal(found["planner"][used], np.array(through, bool))
    assert found["planner"][used].any()


def sees_the_future(made: Toy, batch: Batch, found: dict[str, np.ndarray]) -> bool:
    """Whether any action target's logits depend on a later token, on another segment, on what does not last, or, through a plan,
    on what came after the observation of the plan that its tick may see."""
    targets = getattr(batch, head(made))
    stream, slow = batch.controller, batch.planner
    for m in np.flatnonzero(targets.weight[0] > 0):
        slot = targets.slot[0, m]
        tick, own = stream.tick[0, slot], stream.segment[0, slot]
        later = np.arange(len(stream.tick[0])) > slot
        hidden = later | (stream.segment[0] != own) | ((stream.tick[0] != tick) & ~stream.lasting[0])
        newest = visible(TIMELINE, np.array([tick]))[0]
        seen = TIMELINE.observed[newest] if newest >= 0 else -1
        unseen = (slow.tick[0] > seen) | (slow.segment[0] != own)
        if found["controller"][m, hidden].any() or found["planner"][m, unseen].any():
            return True
    return False


@pytest.mark.parametrize("kind", ["film", "scalars", "prefix", "relative", *LONG_TOO])
def test_no_future(kind):
    assert not sees_the_future(*one_row(kind), found_in(kind))


def a_plan_early(batch: Batch) -> Batch:
    """Every tick sees the plan after its own, where the row has one of the same segment."""
    following = np.minimum(batch.plan + 1, (batch.plan_slot >= 0).sum(axis=1, keepdims=True) - 1)
    owner = np.take_along_axis(batch.planner.segment, np.take_along_axis(batch.plan_slot, following, axis=1), axis=1)
    return batch._replace(plan=np.where((batch.plan >= 0) & (owner == batch.controller.segment), following, batch.plan))


def test_a_plan_from_the_future_is_seen():
    made, batch = one_row("film")
    assert sees_the_future(made, a_plan_early(batch), influence(made, a_plan_early(batch)))


@pytest.mark.parametrize("lost", ["order", "segment", "lasting"])
def test_a_mask_that_lost_a_rule_is_seen(lost, monkeypatch):
    def blind(query: Place, key: Place, window: int) -> jax.Array:
        everywhere = {"order": 0, "segment": 1, "lasting": True}
        value = jnp.full_like(getattr(key, lost), everywhere[lost])
        query = query if lost == "lasting" else query._replace(**{lost: jnp.full_like(getattr(query, lost), everywhere[lost])})
        return may_see(query, key._replace(**{lost: value}), window)

    monkeypatch.setattr(transformer, "may_see", blind)
    assert sees_the_future(*one_row("film"), influence(*one_row("film")))


def with_later_ids_changed(batch: Batch, tick: int) -> Batch:
    """Other values for all that is observed or done after a tick, in both streams."""

    def changed(stream: Stream) -> Stream:
        later = (stream.tick > tick)[:, :, None] & (stream.value >= 0) & (stream.value < 33_024)
        return stream._replace(value=np.where(later, stream.value ^ 1, stream.value))

    return batch._replace(controller=changed(batch.controller), planner=changed(batch.planner))


def test_other_later_ids_leave_the_logits_bit_for_bit():
    made, batch = one_row("film")
    tick, ticks = 27, batch.controller.tick[0, batch.continuous.slot[0]]
    before = np.asarray(made.forward(made.params, batch).continuous)[0]
    after = np.asarray(made.forward(made.params, with_later_ids_changed(batch, tick)).continuous)[0]
    used = batch.continuous.weight[0] > 0
    same = (before == after).all(axis=-1)
    assert same[used & (ticks <= tick)].all()
    assert not same[used & (ticks > tick)].any()


def trained(made: Toy, batch: Batch, weights: LossWeights) -> dict[str, np.ndarray]:
    """For each stream bool [N]: whether the gradient of the loss to a token's output is not exactly zero."""

    def loss(added: Added) -> jax.Array:
        with hk.intercept_methods(watched(Transformer, added)):
            return joint_loss(made.network, made.params, batch, weights)[0]

    return {model: np.any(np.asarray(each) != 0, axis=-1) for model, each in jax.jit(jax.grad(loss))(zeros(batch)).items()}


def at(slots: np.ndarray, used: np.ndarray, count: int) -> np.ndarray:
    return np.isin(np.arange(count), slots[used])


def test_the_action_loss_trains_its_targets_alone():
    """Not padding, nor the lead-in, nor words, nor an action's last token; the planner through its plans alone."""
    made, batch = one_row("film")
    found = trained(made, batch, LossWeights(sub_goal=0.0))
    targets, count = batch.continuous, batch.controller.tick.shape[1]
    expected = at(targets.slot[0], targets.weight[0] > 0, count)
    np.testing.assert_array_equal(found["controller"], expected)
    lead_in = (batch.controller.segment[0] == 1) & (batch.controller.tick[0] < 20)
    assert lead_in.sum() == 3 * 8
    assert not found["controller"][lead_in].any()
    behind = np.unique(batch.plan[0][np.any(reached(batch.controller, CONTROLLER, CONTROLLER.layers - 1)[expected], axis=0)])
    slots = batch.plan_slot[0, behind[behind >= 0]]
    np.testing.assert_array_equal(found["planner"], np.isin(np.arange(batch.planner.tick.shape[1]), slots))


def test_the_sub_goal_loss_trains_its_own_targets_alone():
    made, batch = one_row("film")
    found = trained(made, batch, LossWeights(action=0.0))
    targets = batch.sub_goal
    assert not found["controller"].any()
    expected = at(targets.slot[0], targets.weight[0] > 0, batch.planner.tick.shape[1])
    np.testing.assert_array_equal(found["planner"], expected)
    assert expected.any()


def test_the_planner_learns_text_from_its_own_targets_alone():
    """Neither images nor words nor numbers nor padding; and no controller."""
    made, batch = one_row("captions")
    found = trained(made, batch, LossWeights(action=0.0, text=0.0, sub_goal=0.0))
    targets = batch.planner_text
    assert not found["controller"].any()
    expected = at(targets.slot[0], targets.weight[0] > 0, batch.planner.tick.shape[1])
    np.testing.assert_array_equal(found["planner"], expected)
    said = made.schema.field_ids(made.layout.name)["planner", "previous_action"] + np.arange(3)
    assert np.isin(batch.planner.field[0, expected, 0], [*said, -1]).all()
    assert expected.any()


def test_a_piece_the_planner_predicts_is_not_behind_its_own_prediction():
    """Another id for a piece changes the planner's predictions of what comes after it, and nothing up to its own."""
    made, batch = one_row("captions")
    slots, used = batch.planner_text.slot[0], batch.planner_text.weight[0] > 0
    at_slot = slots[used][7]
    value = batch.planner.value.copy()
    value[0, at_slot, 0] ^= 1
    other = batch._replace(planner=batch.planner._replace(value=value))
    before, after = (np.asarray(made.forward(made.params, each).planner_text)[0][used] for each in (batch, other))
    differ = (before != after).any(axis=-1)
    assert not differ[slots[used] < at_slot].any()
    assert differ[slots[used] == at_slot].all()


def test_pixels_reach_text_through_the_plan_and_only_after_their_tick():
    made, batch = one_row("captions")
    number = int(np.flatnonzero(batch.patches.slot[0] >= 0)[0])
    pixels = batch.patches.pixels.copy()
    pixels[0, number] ^= 255
    other = batch._replace(patches=batch.patches._replace(pixels=pixels))
    before, after = (np.asarray(made.forward(made.params, each).text)[0] for each in (batch, other))
    slots, used = batch.text.slot[0], batch.text.weight[0] > 0
    differ = (before != after).any(axis=-1)
    shown = batch.planner.tick[0, batch.patches.slot[0, number]], batch.planner.segment[0, batch.patches.slot[0, number]]
    sees = np.where(batch.plan[0] >= 0, batch.planner.tick[0, batch.plan_slot[0, batch.plan[0]]], -1)[slots]
    own = batch.controller.segment[0, slots] == shown[1]
    assert differ[used & own].any()
    assert not differ[used & ~own].any()
    ticks = batch.controller.tick[0, slots]
    first = ticks[used & own & (sees >= shown[0])].min()
    assert not differ[used & own & (ticks < first)].any()


def weighed_everywhere(batch: Batch) -> Batch:
    return batch._replace(continuous=batch.continuous._replace(weight=np.ones_like(batch.continuous.weight)))


def predicted_one_later(batch: Batch) -> Batch:
    slot = batch.continuous.slot
    return batch._replace(continuous=batch.continuous._replace(slot=np.where(batch.continuous.weight > 0, slot + 1, slot)))


@pytest.mark.parametrize("mutant", [weighed_everywhere, predicted_one_later])
def test_a_loss_in_the_wrong_place_is_seen(mutant):
    made, batch = one_row("film")
    right = at(batch.continuous.slot[0], batch.continuous.weight[0] > 0, batch.controller.tick.shape[1])
    assert (trained(made, mutant(batch), LossWeights(sub_goal=0.0))["controller"] != right).any()


def test_an_action_is_not_predicted_from_its_own_token():
    """Another label of element i changes the logits of later elements of its tick, and of nothing else."""
    made, batch = one_row("film")
    stream = batch.controller
    slot = batch.continuous.slot[0, 3]
    value = stream.value.copy()
    value[0, slot + 1, 0] ^= 1
    before = np.asarray(made.forward(made.params, batch).continuous)[0]
    after = np.asarray(made.forward(made.params, batch._replace(controller=stream._replace(value=value))).continuous)[0]
    used = batch.continuous.weight[0] > 0
    differ = (before != after).any(axis=-1)[used]
    assert np.flatnonzero(differ).tolist() == [4, 5]


def test_labels_that_do_not_count_change_nothing():
    made, batch = one_row("film")
    used = batch.continuous.weight > 0
    noise = np.random.default_rng(0).integers(0, 40_000, used.shape)
    other = batch._replace(
        continuous=batch.continuous._replace(label=np.where(used, batch.continuous.label, noise).astype(np.int32))
    )
    loss = jax.jit(jax.value_and_grad(lambda params, batch: joint_loss(made.network, params, batch, LossWeights())[0]))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), loss(made.params, batch), loss(made.params, other))
    assert all(jax.tree.leaves(same))
