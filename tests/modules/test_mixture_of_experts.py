"""Experts: each token's own few, written out; alike, they are one block; and what finds no room is the last that came."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hierarchy.training.losses import routing_losses
from modules.mixture_of_experts import Experts, Routed

TOKENS, WIDTH, COUNT, HIDDEN = 24, 8, 6, 5
ROOM_FOR_ALL = float(COUNT)


def experts(chosen: int, capacity: float) -> hk.Transformed:
    made = hk.transform(lambda x, there: Experts(COUNT, chosen, HIDDEN, capacity, scale=1.0)(x, there))
    return hk.without_apply_rng(made)


def drawn(chosen: int = 2, seed: int = 0) -> tuple[hk.Params, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, there = rng.normal(size=(TOKENS, WIDTH)).astype(np.float32), rng.random(TOKENS) < 0.8
    return experts(chosen, 0.0).init(jax.random.key(seed), x, there), x, there


def block(x: np.ndarray, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
    gate, up = np.split(x @ gate_up, 2, axis=-1)
    return np.asarray(jax.nn.gelu(gate)) * up @ down


def chosen_one_by_one(params: hk.Params, x: np.ndarray, there: np.ndarray, chosen: int, room: int):
    """Token by token, and how many choices each expert had, and how many were left out."""
    weights = jax.tree.map(np.asarray, params["experts"])
    chances = np.asarray(jax.nn.softmax(x @ np.asarray(params["experts/router"]["w"])))
    out, load, dropped = np.zeros_like(x), np.zeros(COUNT, int), 0
    for token in np.flatnonzero(there):
        best = np.argsort(-chances[token])[:chosen]
        for expert in best:
            share = chances[token, expert] / (chances[token, best].sum() if chosen > 1 else 1.0)
            if load[expert] < room:
                out[token] += share * block(x[token], weights["gate_up"][expert], weights["down"][expert])
            dropped += load[expert] >= room
            load[expert] += 1
    return out, load, dropped


@pytest.mark.parametrize("chosen", [1, 2, 3])
@pytest.mark.parametrize("capacity", [0.0, 0.5, 1.0, ROOM_FOR_ALL])
def test_each_token_goes_through_its_own_few(chosen, capacity):
    params, x, there = drawn(chosen)
    found, routed = experts(chosen, capacity).apply(params, x, there)
    room = TOKENS if not capacity else min(int(np.ceil(capacity * TOKENS * chosen / COUNT)), TOKENS)
    expected, load, dropped = chosen_one_by_one(params, x, there, chosen, room)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(routed.load, load)
    assert (float(routed.dropped), float(routed.tokens)) == (dropped, there.sum())
    assert dropped > 0 if capacity == 0.5 else capacity == 1.0 or dropped == 0


@pytest.mark.parametrize("capacity", [0.0, ROOM_FOR_ALL])
def test_experts_that_are_alike_are_one_block(capacity):
    params, x, _ = drawn()
    alike = {name: np.broadcast_to(leaf[:1], leaf.shape) for name, leaf in params["experts"].items()}
    found, _ = experts(2, capacity).apply(params | {"experts": alike}, x, np.ones(TOKENS, bool))
    np.testing.assert_allclose(found, block(x, alike["gate_up"][0], alike["down"][0]), atol=1e-5)


@pytest.mark.parametrize("capacity", [0.0, 0.5])
def test_what_comes_later_changes_nothing(capacity):
    params, x, there = drawn()
    layer = experts(2, capacity)
    before, _ = layer.apply(params, x, there)
    for token in (5, 17):
        changed = x.copy()
        changed[token:] = np.random.default_rng(1).normal(size=changed[token:].shape)
        after, _ = layer.apply(params, changed, there)
        np.testing.assert_array_equal(after[:token], before[:token])


@pytest.mark.parametrize("capacity", [0.0, 1.0])
def test_who_is_not_there_adds_nothing_and_learns_nothing(capacity):
    params, x, there = drawn()
    layer = experts(2, capacity)

    def loss(params, x):
        out, routed = layer.apply(params, x, there)
        return jnp.sum(jnp.square(out)) + sum(jnp.sum(part) for part in (routed.chance, routed.square))

    slopes, of_tokens = jax.grad(loss, argnums=(0, 1))(params, x)
    assert not np.any(np.asarray(of_tokens)[~there])
    assert np.all(np.any(np.asarray(of_tokens)[there] != 0, axis=-1))
    other = np.where(there[:, None], x, 7.0)
    jax.tree.map(np.testing.assert_array_equal, slopes, jax.grad(loss)(params, other))


@pytest.mark.parametrize("chosen", [1, 2])
def test_a_router_learns_from_what_its_experts_are_worth(chosen):
    params, x, there = drawn(chosen)

    def loss(router, capacity):
        return jnp.sum(jnp.square(experts(chosen, capacity).apply(params | {"experts/router": {"w": router}}, x, there)[0]))

    slopes = [jax.grad(loss)(params["experts/router"]["w"], capacity) for capacity in (0.0, ROOM_FOR_ALL)]
    assert np.abs(slopes[0]).max() > 1e-3
    np.testing.assert_allclose(*slopes, atol=1e-4)


def test_losses_of_routing_are_least_where_experts_are_chosen_alike():
    def said(load) -> dict[str, float]:
        """Of two rows, one layer, probability as the choices fell, whose squared logits sum up to 3 a token."""
        load, tokens = np.array(load, np.float32), sum(load) / 2
        routed = Routed(load, load / 2, np.float32(3 * tokens), np.float32(0.1 * sum(load)), np.float32(tokens))
        halves = jax.tree.map(lambda part: np.stack([0.25 * part, 0.75 * part])[:, None], routed)
        return {name: float(each) for name, each in routing_losses(halves).items()}

    even, uneven, one = said([8, 8, 8, 8]), said([16, 8, 8, 0]), said([32, 0, 0, 0])
    assert even == pytest.approx({"balance_loss": 1.0, "router_z_loss": 3.0, "load_entropy": 1.0, "dropped": 0.1})
    assert 1.0 < uneven["balance_loss"] < one["balance_loss"] == pytest.approx(4.0)
    assert 1.0 > uneven["load_entropy"] > one["load_entropy"] == pytest.approx(0.0, abs=1e-6)
