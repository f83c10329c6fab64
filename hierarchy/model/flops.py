"""What one update and one tick cost, and how large a model is: counted from its config alone, nothing is run.

A multiply-add is 2 operations, an elementwise operation 1 and a transcendental one (exp, rsqrt, tanh) none, as XLA counts.
Attention is over the whole cache, as it is executed. An update is one chunk of numbers; the words of an instruction are further
chunks, on the few updates that read them, and so are images. Gathers, scatters and copies are no arithmetic. Of experts those are
counted that a token goes through, though all have room for it and are multiplied by. In the last layer a token that nobody asks
for its output leaves its keys and values, and goes no further.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

from hierarchy.layout import (
    BINS,
    Bounded,
    Layout,
    Piece,
    Schema,
    planner_name,
    readers,
    tokens_between,
    tokens_per_reading,
    tokens_per_update,
    words,
)
from hierarchy.model.config import ModelConfig, sizes
from hierarchy.model.network import Network
from modules.embedding import bin_features, head_features
from modules.transformer import TransformerConfig

BIN_FEATURES = bin_features(BINS).shape[1]
HEAD_FEATURES = head_features(BINS).shape[1]
LOG_FEATURES = 10
TABLES = ("names", "fields", "positions", "rows", "columns")
"""Parameters that are read by id: the embedding's rows of names and positions, its matrices of fields, and patches' places."""

# Operations an element. RMS norm: square, sum, two scalings. One score of a head: mask, largest, difference, sum. Whether a token
# may see another (segment, order, time), once for all layers. GELU by tanh, and the gate. One class: bias, limit, centre, and the
# comparisons of the choice.
NORM, SCORE, SEEN, GEGLU, DECODED = 4, 4, 12, 9, 17
# One expert's chance and choice: largest, difference, sum, share, and the comparison that orders it.
ROUTED = 5
# Quantising one number: bounded to a place, rounded straight through, and back.
QUANTISED = 8


def update_flops(config: ModelConfig, schema: Schema, layout: Layout, level: int = 1) -> int:
    """Returns the operations of one planner update of one chunk: transformer, the plan it reads where it has one above it, its
    own plan, and how the level below reads that. level: 1 for the controller's planner, 2 for that one's own."""
    reader, below = planner_name(level), config.controller if level == 1 else config.of(planner_name(level - 1))
    tokens, planner = tokens_per_update(layout, reader), config.of(reader)
    slots = config.updates_within(planner.window) * tokens + (config.text_slots if words(readers(layout)[reader]) else 0)
    atoms = schema.planner_atoms
    # Of words any may be the last one.
    outputs = tokens if words(readers(layout)[reader]) else 1
    moments = tokens if config.told_tick else 0
    count = _embedding(schema, reader, planner, tokens, atoms, moments) + _layers(planner, tokens, slots, outputs)
    if level < len(config.planners):
        count += _plan_reading(config, planner, tokens, outputs) + 2 * LOG_FEATURES * planner.width
    vectors = config.plan_vectors * config.plan_width
    count += 2 * planner.width * vectors + (QUANTISED if config.plan_levels else 3) * vectors
    count += 2 * planner.width * sizes(schema).lives if layout.lifetime and level == 1 else 0
    return count + below.layers * 2 * vectors * 2 * below.width


def follow_flops(config: ModelConfig, schema: Schema, layout: Layout) -> int:
    """Returns the operations of reading what the planner follows at one tick between two updates; 0 where it follows nothing."""
    tokens, planner = tokens_between(layout), config.planner
    if not tokens:
        return 0
    slots = planner.window * tokens_per_update(layout) + (config.text_slots if words(layout.planner) else 0)
    moments = tokens if config.told_tick else 0
    count = _embedding(schema, planner_name(1), planner, tokens, schema.planner_atoms, moments)
    return count + _layers(planner, tokens, slots, outputs=0)


class Pass(NamedTuple):
    """One way of `tokens` tokens through the controller, and of its outputs through the head.

    flops: operations. bytes: what has to be read for it, float32: weights, keys and values of the cache, the plan.
    """

    tokens: int
    flops: int
    bytes: int


def tick_passes(config: ModelConfig, schema: Schema, layout: Layout, whole: bool = False) -> list[Pass]:
    """Returns the passes of one controller tick, one after another: the reading, then every element of the action but the last;
    or one for all, where they are decoded at once.

    whole: counts all layers of all tokens, whether or not their outputs are asked for, as a pass in training has them.
    """
    controller, reading, rest = config.controller, tokens_per_reading(layout), layout.action.size - 1
    # The action's own keys and values are made by the tick itself and small: its elements attend over them, but reading them is
    # not counted.
    kept = controller.window * reading + (config.text_slots if words(layout.controller) else 0)
    head, numbers = _head_flops(config, schema, layout), _weights(config, schema, layout) + _remembered(config, kept)

    def one(tokens: int, atoms: int, outputs: int, own: int) -> Pass:
        through = tokens if whole or words(layout.controller) else outputs
        return Pass(tokens, _controller_pass(config, schema, tokens, atoms, kept + own, through) + outputs * head, 4 * numbers)

    if layout.at_once:
        passes = [one(reading + rest, schema.controller_atoms, rest + 1, rest)]
    else:
        passes = [one(reading, schema.controller_atoms, 1, 0)] + rest * [one(1, 1, 1, rest)]
    if layout.predicted:
        following = config.controller.width * sum(sizes(schema).predictions)
        passes[0] = passes[0]._replace(flops=passes[0].flops + 2 * following, bytes=passes[0].bytes + 4 * following)
    return passes


def tick_flops(config: ModelConfig, schema: Schema, layout: Layout) -> int:
    """Returns the operations of one controller tick."""
    return sum(each.flops for each in tick_passes(config, schema, layout))


def flops_per_tick(config: ModelConfig, schema: Schema, layout: Layout, ratio: int, above: Sequence[int] = ()) -> float:
    """Returns the operations of a control tick on average: a tick, and one `ratio`th of an update with what it follows of the
    ticks before it; without a planner the tick, or that tick's share of the chunk that was decoded.

    above: ticks from one update to the next of the planners above the planner, the nearest first; one for each of them.

    Raises:
        ValueError: there are more or fewer planners above the planner.
    """
    if len(above) != len(config.above):
        raise ValueError(
            f"above {tuple(above)}: the model has {len(config.above)} planners above the planner, give each its ticks"
        )
    tick = tick_flops(config, schema, layout)
    if config.planner is None:
        return tick / layout.chunk
    slower = sum(update_flops(config, schema, layout, level) / ticks for level, ticks in enumerate(above, start=2))
    return tick + (update_flops(config, schema, layout) + (ratio - 1) * follow_flops(config, schema, layout)) / ratio + slower


def parameters(network: Network) -> int:
    """Returns how many parameters the network has without its embedding's tables (`TABLES`), from shapes alone."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for module in shapes.values() for name, leaf in module.items() if name not in TABLES)


def _head_flops(config: ModelConfig, schema: Schema, layout: Layout) -> int:
    """Operations of the head for one element."""
    if isinstance(layout.action.codec, Bounded):
        return 2 * HEAD_FEATURES * (config.controller.width + BINS) + DECODED * BINS
    return (2 * config.controller.width + DECODED) * _classes(schema, layout)


def _classes(schema: Schema, layout: Layout) -> int:
    table = sizes(schema)
    return table.pieces if isinstance(layout.action.codec, Piece) else table.discrete


def _weights(config: ModelConfig, schema: Schema, layout: Layout) -> int:
    """Numbers that every pass multiplies by: those of the controller's layers and of the head."""
    controller, width = config.controller, config.controller.width
    layer = width * (4 * width + controller.feed_forward + controller.feed_forward // 2) + 2 * width
    if config.planner is not None:
        layer += {"cross_attention": 2 * width * width + width, "film": width, "prefix": 0}[config.plan_read]
    if isinstance(layout.action.codec, Bounded):
        head = HEAD_FEATURES * (width + 1 + BINS) + BINS
    else:
        head = (width + 1) * _classes(schema, layout)
    return controller.depth * layer + width + head


def _remembered(config: ModelConfig, slots: int) -> int:
    """Numbers of the cache and of the plan that every pass attends over."""
    width = config.controller.width
    plan = 0 if config.planner is None else 2 * width if config.plan_read == "film" else 2 * config.plan_vectors * width
    return config.controller.depth * (2 * slots * width + plan)


def _controller_pass(config: ModelConfig, schema: Schema, tokens: int, atoms: int, slots: int, outputs: int) -> int:
    """Operations of `tokens` tokens of as many atoms through the controller. They share the plan's age; or have each its time."""
    controller, moments = config.controller, tokens * config.told_tick if config.planner is None else 1
    count = _embedding(schema, "controller", controller, tokens, atoms, moments) + _layers(controller, tokens, slots, outputs)
    return count if config.planner is None else count + _plan_reading(config, controller, tokens, outputs)


def _plan_reading(config: ModelConfig, reader: TransformerConfig, tokens: int, outputs: int) -> int:
    """Operations by which `tokens` tokens of a reader take in a plan that has been read for its layers; in the last `outputs`."""
    width, through = reader.width, (reader.depth - 1) * tokens + outputs
    if config.plan_read == "film":
        return through * (NORM + 3) * width
    attended, softmax = 2 * 2 * config.plan_vectors * width, 4 * reader.heads * config.plan_vectors
    if config.plan_read == "prefix":
        return through * (attended + softmax + 2 * width)
    return through * (2 * 2 * width * width + attended + softmax + (NORM + 2) * width)


def _embedding(schema: Schema, reader: str, config: TransformerConfig, tokens: int, atoms: int, moments: int) -> int:
    """Operations of embedding tokens of a reader and as many times or ages as `moments`. Many tokens of several atoms are
    embedded field by field, those of the stream's own that a token lacks too."""
    several = (atoms if tokens <= 8 else sum(map(len, schema.own_fields(reader)))) * BIN_FEATURES
    multiplied = (0 if atoms == 1 else several) + BIN_FEATURES + 3
    return 2 * config.width * (tokens * multiplied + moments * LOG_FEATURES)


def _layers(config: TransformerConfig, tokens: int, slots: int, outputs: int) -> int:
    """Operations of `tokens` tokens through the layers, each over `slots` keys, and of `outputs` of them through the last one."""
    width, wide = config.width, config.feed_forward
    # What every token leaves behind: a norm, queries, keys and values, and the keys' turn.
    left = (NORM + 2 * 3 * width + 3) * width
    linear = 2 * width * (width + wide + wide // 2)
    attention = 2 * 2 * slots * width + SCORE * slots * config.heads
    elementwise = NORM * width + 3 * width + 2 * width + GEGLU * wide // 2
    if config.experts:
        # The router, its softmax, and as many outputs weighted and added up.
        elementwise += (2 * width + ROUTED) * config.experts + 2 * config.chosen * width
    through = linear + attention + elementwise

    def layer(asked: int) -> int:
        count = tokens * left + asked * through
        if config.position == "relative" and asked:
            # No turning; two biases; then whichever is projected, the queries or all distances' features.
            queries, distances = asked * width * (width + config.heads * config.window), config.window * width * (width + asked)
            count += 2 * min(queries, distances) + asked * slots * config.heads - 3 * tokens * width
        return count

    between = (config.rounds - 1) * tokens * (NORM + 1) * width
    return (config.depth - 1) * layer(tokens) + layer(outputs) + between + outputs * NORM * width + tokens * SEEN * slots
