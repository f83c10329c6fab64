"""The compiled functions that act, and the weights that they are given: where they lie, and for how many episodes."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from hierarchy.layout import Layout, Schema, tokens_per_reading
from hierarchy.model import stepwise
from hierarchy.model.network import Network

Precision = Literal["float32", "bfloat16"]
"""Of what the controller's matrices are kept in, and multiply; sums are float32, and so is all that is no product."""


class Thinking(NamedTuple):
    """The compiled functions of one planner."""

    update: Callable[..., Any]
    read: Callable[..., Any]
    no_plan: Callable[..., Any]


class Devices(NamedTuple):
    """Where planner and controller run."""

    planner: jax.Device
    controller: jax.Device


class Weights(NamedTuple):
    """Parameters where they are used. update: all of them, beside the planner. tick: those that a tick reads, beside the
    controller; a call looks at every array that it is given, and a tick is short."""

    update: hk.Params
    tick: hk.Params


class Acting(NamedTuple):
    """The compiled functions of one layout, batched over B episodes. Built once; every timeline and episode reuses them.

    devices: None leaves everything where JAX puts it. above: of the planners above the planner, the nearest first. precision: of
    the tick.
    """

    network: Network
    schema: Schema
    layout: Layout
    update: Callable[..., Any]
    follow: Callable[..., Any]
    look: Callable[..., Any]
    read: Callable[..., Any]
    no_plan: Callable[..., Any]
    tick: Callable[..., Any]
    devices: Devices | None = None
    above: tuple[Thinking, ...] = ()
    precision: Precision = "float32"

    def thinking(self, level: int) -> Thinking:
        """Returns the functions of one planner: level 1 plans for the controller, 2 for that planner, and so on."""
        return Thinking(self.update, self.read, self.no_plan) if level == 1 else self.above[level - 2]


@functools.lru_cache(64)
def compile_acting(
    network: Network,
    schema: Schema,
    name: str,
    decoding: stepwise.Decoding = "mean",
    devices: Devices | None = None,
    precision: Precision = "float32",
) -> Acting:
    """Returns the acting functions of layout `name`, made once. Caches given to them are donated, and updated in place.

    decoding: "sample" draws an id, "argmax" takes the likeliest, "mean" takes the mean over bins of a bounded action.
    precision: of the tick; other than float32 it is no longer what the parallel pass computes, but near it.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}: it is one of {', '.join(get_args(Precision))}")
    layout = schema[name]

    def thinking(level: int) -> Thinking:
        # A planner under another one is given what it sees of that one's plans, and their age.
        seen = (0, None) if level <= len(layout.above) else ()

        def update(params, cache, tokens, chunks, now, *seen):
            return stepwise.update(network, layout, params, cache, tokens, chunks, now, level, *seen)

        def read(params, vectors):
            return stepwise.as_plan(network, params, vectors, level)

        return Thinking(
            jax.jit(jax.vmap(update, in_axes=(None, 0, 0, None, None, *seen)), donate_argnums=1),
            jax.jit(jax.vmap(read, in_axes=(None, 0))),
            jax.jit(lambda params: stepwise.no_plan(network, params, level)),
        )

    def follow(params, cache, tokens, first, ticks):
        return stepwise.follow(network, layout, params, cache, tokens, first, ticks)

    def look(params, cache, tokens, patches, now):
        return stepwise.look(network, layout, params, cache, tokens, patches, now)

    def tick(params, cache, packed, reading):
        # The clock is one for all episodes: told apart from them, it keeps writing to the cache in place.
        _, chunks, now, _, _ = stepwise.unpack_tick(packed[0], schema.controller_atoms)

        def one(cache, packed, reading):
            tokens, _, _, since, seed = stepwise.unpack_tick(packed, schema.controller_atoms)
            key = jax.random.fold_in(jax.random.key(seed.astype(jnp.uint32)), now)
            return stepwise.tick(network, schema, layout, params, cache, tokens, chunks, now, reading, since, key, decoding)

        return jax.vmap(one)(cache, packed, reading)

    planner, *above = (thinking(level) for level in range(1, 2 + len(layout.above)))
    return Acting(
        network,
        schema,
        layout,
        planner.update,
        jax.jit(jax.vmap(follow, in_axes=(None, 0, 0, None, None)), donate_argnums=1),
        jax.jit(jax.vmap(look, in_axes=(None, 0, 0, 0, None)), donate_argnums=1),
        planner.read,
        planner.no_plan,
        jax.jit(tick if precision == "float32" else in_bfloat16(tick), donate_argnums=1),
        devices,
        tuple(above),
        precision,
    )


def in_bfloat16(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function whose linear layers round what they multiply to bfloat16, where their matrices are."""

    def product(call, args, kwargs, context):
        if type(context.module) is not hk.Linear or context.method_name != "__call__":
            return call(*args, **kwargs)
        (x,) = args
        w = hk.get_parameter("w", (x.shape[-1], context.module.output_size), init=None)
        bias = hk.get_parameter("b", w.shape[1:], init=None) if context.module.with_bias else 0.0
        return jnp.matmul(x.astype(w.dtype), w, preferred_element_type=jnp.float32) + bias

    @functools.wraps(function)
    def run(*arguments):
        with hk.intercept_methods(product):
            return function(*arguments)

    return run


PLAN_SIDE = "/~read_plan/"
"""The controller's modules that run once an update, beside the planner."""


def lay_out(acting: Acting, params: hk.Params) -> Weights:
    """Returns the parameters where they are used."""
    tick = {name: leaves for name, leaves in params.items() if name.startswith("controller/") and PLAN_SIDE not in name}
    if acting.precision == "bfloat16":
        tick = {
            name: leaves | {"w": leaves["w"].astype(jnp.bfloat16)} if "w" in leaves else leaves for name, leaves in tick.items()
        }
    if acting.devices is None:
        return Weights(params, tick)
    return Weights(jax.device_put(params, acting.devices.planner), jax.device_put(tick, acting.devices.controller))


def ahead_of_time(acting: Acting, weights: Weights, batch: int = 1) -> Acting:
    """Returns acting functions whose tick is compiled now, for `batch` episodes; it raises TypeError for any other number."""
    network, layout = acting.network, acting.layout
    size, room = tokens_per_reading(layout), stepwise.controller_room(network, layout)
    tokens = size + -(-room.words // size) * size
    packed = np.zeros((batch, stepwise.HEADER + 2 * tokens * acting.schema.controller_atoms), np.int32)
    cache = repeat(stepwise.controller_cache(network, layout), batch)
    reading = None if network.config.planner is None else repeat(acting.no_plan(weights.update).reading, batch)
    cache, reading = beside_controller(acting, (cache, reading))
    return acting._replace(tick=acting.tick.lower(weights.tick, cache, packed, reading).compile())


def beside_controller(acting: Acting, tree):
    """Returns arrays where the controller runs."""
    return tree if acting.devices is None else jax.device_put(tree, acting.devices.controller)


def repeat(tree, batch: int):
    """Returns one episode's arrays for `batch` of them."""
    return jax.tree.map(lambda x: jnp.repeat(x[None], batch, axis=0), tree)
