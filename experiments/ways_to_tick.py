"""The operating point, and the ways to execute one tick of it: ours, and those that it is held against.

A way is a function of the tick's number that reads an observation and returns the action's means [A] in [-1, 1] as numpy; it
keeps its own cache. All ways of one model have the same weights, see the same observations and give the same actions.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from hierarchy.control.acting import Acting, Precision, ahead_of_time, compile_acting, lay_out
from hierarchy.layout import (
    CONTINUOUS_START,
    EMPTY,
    SEPARATOR,
    Bounded,
    Continuous,
    Field,
    Layout,
    Schema,
    single_rate,
    tokens_per_reading,
    tokens_per_update,
)
from hierarchy.model import stepwise
from hierarchy.model.config import ModelConfig, PlanRead
from hierarchy.model.network import Network, Reading, build
from modules.cache import Run
from modules.masks import Place
from modules.transformer import TransformerConfig, empty_cache

Way = Callable[[int], np.ndarray]
AGE = 3
"""Of the plan, at every tick."""
SHAPES = {
    "0.5M": (128, 3, 512),
    "1M": (192, 3, 640),
    "2M": (256, 3, 1024),
    "5M": (320, 5, 1280),
    "10M": (448, 5, 1792),
    "16M": (512, 6, 2048),
    "20M": (512, 8, 2048),
    "50M": (704, 10, 2816),
    "96M": (896, 12, 3584),
    "200M": (1152, 15, 4608),
    "400M": (1536, 17, 6144),
}
"""Width, layers and feed-forward size of transformers by the number of their layers' parameters."""
HEAD = 64
"""Size of a head."""


@dataclasses.dataclass(frozen=True)
class Point:
    """planner_tokens, observation, action: tokens of an update, and of a tick. window: ticks that both see. plan_vectors: keys
    and values that every layer of the controller reads of a plan, as plan_read says."""

    planner_tokens: int = 64
    observation: int = 20
    action: int = 6
    window: int = 16
    plan_vectors: int = 8
    plan_read: PlanRead = "prefix"

    def __post_init__(self) -> None:
        least = {"planner_tokens": 1, "observation": 2, "action": 1, "window": 1, "plan_vectors": 1}
        for name, most in least.items():
            if getattr(self, name) < most:
                raise ValueError(f"{name} is {getattr(self, name)}: it is at least {most}")


class Model(NamedTuple):
    """A model with random weights: what it is made of, and one plan as its controller reads it (None for one without plans)."""

    network: Network
    schema: Schema
    params: hk.Params
    reading: Reading | None

    @property
    def layout(self) -> Layout:
        return self.schema.layouts[0]


def sized(name: str, window: int) -> TransformerConfig:
    """Returns the transformer of a named size."""
    if name not in SHAPES:
        raise ValueError(f"no size {name!r}: there are {', '.join(SHAPES)}")
    width, layers, feed_forward = SHAPES[name]
    return TransformerConfig(width, layers, width // HEAD, feed_forward, window)


def of_parameters(count: int, window: int) -> TransformerConfig:
    """Returns the transformer whose layers have as nearly `count` parameters as whole layers and widths give."""
    choices = [(width, layers) for layers in range(2, 25) for width in range(2 * HEAD, 2049, HEAD) if 40 <= width / layers <= 160]
    width, layers = min(choices, key=lambda choice: abs(10 * choice[1] * choice[0] ** 2 - count))
    return TransformerConfig(width, layers, width // HEAD, 4 * width, window)


def layout_of(point: Point, at_once: bool = False) -> Layout:
    """Returns the layout of an operating point: every scalar a token."""
    action = Field("action", Bounded((-1.0,) * point.action, (1.0,) * point.action), point.action)
    seen = Field("seen", Continuous(), point.planner_tokens)
    state = Field("state", Continuous(), point.observation - 1)
    return Layout("point", (seen,), (state,), action, pooled=False, at_once=at_once)


def two_rate(point: Point, planner: TransformerConfig, controller: TransformerConfig, at_once: bool = False) -> Model:
    """Returns a planner and a controller at an operating point."""
    config = ModelConfig(
        planner, controller, plan_vectors=point.plan_vectors, plan_width=controller.width, plan_read=point.plan_read
    )
    return _model(config, Schema((layout_of(point, at_once),)))


def single(point: Point, size: TransformerConfig, at_once: bool = False) -> Model:
    """Returns one transformer that reads at every tick what either model reads there."""
    return _model(ModelConfig(None, size), Schema((single_rate(layout_of(point, at_once)),)))


def _model(config: ModelConfig, schema: Schema) -> Model:
    network = build(config, schema)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def drawn(path, leaf) -> np.ndarray:
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        each = rng.standard_normal(leaf.shape, np.float32)
        return each * np.float32(leaf.shape[-2] ** -0.5 if len(leaf.shape) == 2 and path[-1].key == "w" else 0.3)

    params = jax.device_put(jax.tree_util.tree_map_with_path(drawn, shapes))
    if config.planner is None:
        return Model(network, schema, params, None)
    plan = jax.jit(lambda params: stepwise.no_plan(network, params).reading)(params)
    return Model(network, schema, params, jax.block_until_ready(plan))


def observation(tick: int, tokens: int) -> np.ndarray:
    """Returns int32 [tokens], the ids that a reading sees at a tick; the last is the separator."""
    return _observations(tokens)[tick % len(_observations(tokens))]


@functools.cache
def _observations(tokens: int) -> np.ndarray:
    ids = np.random.default_rng(tokens).integers(CONTINUOUS_START, SEPARATOR, (97, tokens), np.int32)
    ids[:, -1] = SEPARATOR
    return ids


def _fields(model: Model, reader: str) -> np.ndarray:
    """Field ids beside one reading, int32 [tokens]."""
    layout, ids = model.layout, model.schema.field_ids(model.layout.name)
    spans = [ids[reader, field.name] + np.arange(field.size) for field in getattr(layout, reader)]
    return np.concatenate([*spans, [ids["controller", "separator"]][: reader == "controller"]]).astype(np.int32)


def compiled(model: Model, precision: Precision = "float32") -> Acting:
    """Returns the acting functions whose tick is compiled ahead of time for one episode."""
    acting = compile_acting(model.network, model.schema, model.layout.name, "mean", precision=precision)
    return ahead_of_time(acting, lay_out(acting, model.params))


class OneCall:
    """Ours, a `Way`: the whole tick is one compiled call."""

    def __init__(self, model: Model, precision: Precision):
        self._acting = compiled(model, precision)
        self._weights = lay_out(self._acting, model.params).tick
        self._size, self._fields = tokens_per_reading(model.layout), _fields(model, "controller")
        self._reading = jax.tree.map(lambda leaf: leaf[None], model.reading)
        # The second is for rehearsals.
        self._caches = [_batched(stepwise.controller_cache(model.network, model.layout)) for _ in range(2)]

    def __call__(self, tick: int) -> np.ndarray:
        """Returns the actions of a tick."""
        return self._with(0, tick)

    def rehearse(self, tick: int) -> None:
        """Goes through a tick to no effect, as `RealTimeAgent` does."""
        self._with(1, tick)

    def _with(self, which: int, tick: int) -> np.ndarray:
        full, nothing = np.array([self._size]), np.array([0])
        tokens = stepwise.Tokens(observation(tick, self._size)[None, :, None], self._fields[None, :, None], full, nothing)
        packed = stepwise.pack_tick(tokens, 1, tick, AGE, nothing)
        self._caches[which], action = self._acting.tick(self._weights, self._caches[which], packed, self._reading)
        return np.asarray(action.unit)[0]


def one_call_a_tick(model: Model, precision: Precision = "float32") -> OneCall:
    """Returns ours; one pass for all action tokens, where the layout decodes at once."""
    return OneCall(model, precision)


def update(model: Model) -> Callable[[int], None]:
    """Returns the planner's update: a function of the tick that it observes."""
    acting = compile_acting(model.network, model.schema, model.layout.name)
    size, fields = tokens_per_update(model.layout), _fields(model, "planner")
    cache = _batched(stepwise.planner_cache(model.network, model.layout))
    full, nothing = np.array([size], np.int32), np.array([0], np.int32)

    def way(tick: int) -> None:
        nonlocal cache
        tokens = stepwise.Tokens(observation(tick, size)[None, :, None], fields[None, :, None], full, nothing)
        cache, plan = acting.update(model.params, cache, tokens, np.int32(1), np.int32(tick))
        np.asarray(plan.vectors)

    return way


def _batched(tree):
    return jax.tree.map(lambda leaf: jnp.array(leaf[None]), tree)


def call_by_call(model: Model, a_token: bool) -> Way:
    """Returns the way of most codes: a call for the observation (or one for each of its tokens) and one for each action token,
    between which the host looks at what was decoded. The cache is donated here too."""
    network, layout = model.network, model.layout
    room, size, rest = stepwise.controller_room(network, layout), tokens_per_reading(layout), layout.action.size - 1
    asked = model.schema.field_ids(layout.name)["action", layout.action.name] + np.arange(layout.action.size)
    plan = jax.tree.map(lambda leaf: leaf[None], model.reading)

    def advance(params, cache, packed, plan):
        now, age, index, slot, lasting = packed[:5]
        value, field = packed[5:].reshape(2, -1)
        i = jnp.arange(len(value), dtype=jnp.int32)
        place = Place(i * 0 + now, index + i, i * 0 + 1, cache.written + i, (i >= 0) & (lasting > 0))
        x, after = network.control_tokens(
            params, value[:, None], field[:, None], place, plan, age[None], cache, [Run(slot, len(value))]
        )
        return after._replace(written=cache.written + len(value)), _mean(network, layout, params, x[-1:])

    call = jax.jit(advance, donate_argnums=1)
    fields, cache = (
        _fields(model, "controller"),
        jax.tree.map(jnp.array, empty_cache(network.config.controller, room.slots + rest)),
    )
    weights = lay_out(compile_acting(network, model.schema, layout.name), model.params).tick

    def told(tick: int, ids: np.ndarray, which: np.ndarray, index: int, slot: int, lasting: bool) -> np.ndarray:
        header = np.array([tick, AGE, index, slot, lasting], np.int32)
        return np.concatenate([header, ids, which], dtype=np.int32)

    def way(tick: int) -> np.ndarray:
        nonlocal cache
        ids, first = observation(tick, size), tick % room.readings * size
        for start in range(0, size, 1 if a_token else size):
            part = slice(start, start + 1 if a_token else size)
            cache, unit = call(weights, cache, told(tick, ids[part], fields[part], start, first + start, True), plan)
        units = [np.asarray(unit)]
        for i in range(rest):
            which = np.array([_id(layout, units[-1][0])]), asked[i : i + 1]
            cache, unit = call(weights, cache, told(tick, *which, size + i, room.kept + i, False), plan)
            units.append(np.asarray(unit))
        return np.concatenate(units)

    return way


def recomputing(model: Model) -> Way:
    """Returns the way without a cache: for every action token a pass over the window's observations and the tick's own tokens.

    It sees `window` ticks in all, where a cache carries over what each layer saw of the ticks before: cheaper than an exact one.
    """
    network, layout, window = model.network, model.layout, model.network.config.controller.window
    size, elements = tokens_per_reading(layout), layout.action.size
    fields = np.concatenate([np.tile(_fields(model, "controller"), window), np.zeros(elements - 1, np.int32)])
    fields[window * size :] = model.schema.field_ids(layout.name)["action", layout.action.name] + np.arange(elements - 1)
    count = window * size + elements - 1
    lasting = np.arange(count) < window * size
    index = np.where(lasting, np.arange(count) % size, size + np.arange(count) - window * size).astype(np.int32)

    def last(params, packed, plan):
        now, at, ids = packed[0], packed[1], packed[2:]
        time = now - window + 1 + jnp.where(lasting, jnp.arange(count) // size, window - 1)
        place = Place(time, index, ((ids != EMPTY) & (time >= 0)).astype(jnp.int32), jnp.arange(count), jnp.asarray(lasting))
        each = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], count, axis=0), plan)
        x, _ = network.control_tokens(params, ids[:, None], fields[:, None], place, each, jnp.full(1, AGE))
        return _mean(network, layout, params, jax.lax.dynamic_slice_in_dim(x, at, 1))

    call = jax.jit(last)
    weights = lay_out(compile_acting(network, model.schema, layout.name), model.params).tick

    def way(tick: int) -> np.ndarray:
        seen = [observation(t, size) for t in range(tick - window + 1, tick + 1)]
        own, units = np.full(elements - 1, EMPTY, np.int32), []
        for i in range(elements):
            packed = np.concatenate([[tick, window * size + i - 1], *seen, own], dtype=np.int32)
            units.append(np.asarray(call(weights, packed, model.reading)))
            if i < elements - 1:
                own[i] = _id(layout, units[-1][0])
        return np.concatenate(units)

    return way


def _mean(network: Network, layout: Layout, params: hk.Params, x: jax.Array) -> jax.Array:
    """Returns the mean over bins [1] of the element that an output [1, D] predicts."""
    keys = jax.random.key(0)[None]
    return stepwise.decode(network, layout, params, x, keys, "mean").unit


def _id(layout: Layout, unit: np.ndarray) -> int:
    """Returns the id of a mean in [-1, 1]."""
    bins = layout.action.codec.bins
    return CONTINUOUS_START + int(np.clip(np.floor((np.float32(unit) + 1) * bins / 2), 0, bins - 1))


def in_torch(model: Model, compiled: bool) -> Way:
    """Returns the tick in PyTorch, eager or compiled; ImportError where it is not installed."""
    from experiments.torch_tick import TorchTick

    if compiled:
        # PyTorch's compiler looks for an attribute in every module, and haiku's stand-in for flax raises ImportError when asked.
        sys.modules.pop("haiku.experimental.flax", None)
    way = TorchTick(model.params, model.network.config, model.schema, model.layout, model.reading, compiled)
    size, fields = tokens_per_reading(model.layout), _fields(model, "controller").astype(np.int64)
    return lambda tick: way(observation(tick, size), fields, tick, AGE)
