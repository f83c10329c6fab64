"""What one update and one tick cost, and how large a model is: counted from its config alone, nothing is run.

A multiply-add is 2 operations, an elementwise operation 1 and a transcendental one (exp, rsqrt, tanh) none, as XLA counts.
Attention is over the whole cache, as it is executed. An update is one chunk of numbers; the words of an instruction are further
chunks, on the few updates that read them, and so are images. Gathers, scatters and copies are no arithmetic.
"""

import dataclasses
import math
from collections.abc import Sequence

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
from modules.embedding import POSITIONS, bin_features, head_features
from modules.transformer import TransformerConfig

BIN_FEATURES = bin_features(BINS).shape[1]
HEAD_FEATURES = head_features(BINS).shape[1]
LOG_FEATURES = 10
TABLES = ("names", "fields", "positions", "rows", "columns")
"""Parameters that are read by id: the embedding's rows of names and positions, its matrices of fields, and patches' places."""

# Operations an element. RMS norm: square, sum, two scalings. One score: mask, largest, difference, sum; and where it may be seen
# (segment, order, time), worked out anew for every score, as it is fused. GELU by tanh, and the gate. One class: bias, limit,
# centre, and the comparisons of the choice.
NORM, SCORE, GEGLU, DECODED = 4, 4 + 12, 9, 17
# Quantising one number: bounded to a place, rounded straight through, and back.
QUANTISED = 8


def update_flops(config: ModelConfig, schema: Schema, layout: Layout, level: int = 1) -> int:
    """Returns the operations of one planner update of one chunk: transformer, the plan it reads where it has one above it, its
    own plan, and how the level below reads that. level: 1 for the controller's planner, 2 for that one's own."""
    reader, below = planner_name(level), config.controller if level == 1 else config.of(planner_name(level - 1))
    tokens, planner = tokens_per_update(layout, reader), config.of(reader)
    slots = planner.window * tokens + (config.text_slots if words(readers(layout)[reader]) else 0)
    atoms = schema.planner_atoms
    count = _embedding(schema, planner, tokens, atoms) + _layers(planner, tokens, slots)
    if level < len(config.planners):
        count += _plan_reading(config, planner, tokens) + tokens * 2 * LOG_FEATURES * planner.width
    vectors = config.plan_vectors * config.plan_width
    count += 2 * planner.width * vectors + (QUANTISED if config.plan_levels else 3) * vectors
    return count + below.layers * 2 * vectors * 2 * below.width


def follow_flops(config: ModelConfig, schema: Schema, layout: Layout) -> int:
    """Returns the operations of reading what the planner follows at one tick between two updates; 0 where it follows nothing.

    Nobody asks for an output there: the last layer makes its keys and values, and is left.
    """
    tokens, planner = tokens_between(layout), config.planner
    if not tokens:
        return 0
    slots = planner.window * tokens_per_update(layout) + (config.text_slots if words(layout.planner) else 0)
    before = _layers(dataclasses.replace(planner, layers=planner.layers - 1), tokens, slots)
    last = tokens * planner.width * (2 * 3 * planner.width + 3)
    return _embedding(schema, planner, tokens, schema.planner_atoms) + before + last


def tick_flops(config: ModelConfig, schema: Schema, layout: Layout) -> int:
    """Returns the operations of one controller tick: the reading, then every element of the action."""
    controller, reading, elements = config.controller, tokens_per_reading(layout), layout.action.size
    slots = controller.window * reading + (config.text_slots if words(layout.controller) else 0) + elements - 1
    count = _controller_pass(config, schema, reading, slots) + (elements - 1) * _controller_pass(config, schema, 1, slots)
    if isinstance(layout.action.codec, Bounded):
        head = 2 * HEAD_FEATURES * (controller.width + BINS) + DECODED * BINS
    else:
        table = sizes(schema)
        head = (2 * controller.width + DECODED) * (table.pieces if isinstance(layout.action.codec, Piece) else table.discrete)
    return count + elements * head


def flops_per_tick(config: ModelConfig, schema: Schema, layout: Layout, ratio: int, above: Sequence[int] = ()) -> float:
    """Returns the operations of a control tick on average: a tick, and one `ratio`th of an update with what it follows of the
    ticks before it; without a planner the tick, or that tick's share of the chunk that was decoded.

    above: ticks from one update to the next of the planners above the planner, the nearest first.
    """
    tick = tick_flops(config, schema, layout)
    if config.planner is None:
        return tick / layout.chunk
    slower = sum(update_flops(config, schema, layout, level) / ticks for level, ticks in enumerate(above, start=2))
    return tick + (update_flops(config, schema, layout) + (ratio - 1) * follow_flops(config, schema, layout)) / ratio + slower


def parameters(network: Network) -> int:
    """Returns how many parameters the network has without its embedding's tables (`TABLES`), from shapes alone."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for module in shapes.values() for name, leaf in module.items() if name not in TABLES)


def _controller_pass(config: ModelConfig, schema: Schema, tokens: int, slots: int) -> int:
    """Operations of `tokens` tokens through the controller."""
    controller = config.controller
    count = _embedding(schema, controller, tokens, schema.controller_atoms) + _layers(controller, tokens, slots)
    return count if config.planner is None else count + _plan_reading(config, controller, tokens)


def _plan_reading(config: ModelConfig, reader: TransformerConfig, tokens: int) -> int:
    """Operations by which `tokens` tokens of a reader take in a plan that has been read for its layers."""
    width = reader.width
    if config.plan_read == "film":
        return reader.layers * tokens * (NORM + 3) * width
    attended, softmax = 2 * 2 * config.plan_vectors * width, 4 * reader.heads * config.plan_vectors
    if config.plan_read == "prefix":
        return reader.layers * tokens * (attended + softmax + 2 * width)
    return reader.layers * tokens * (2 * 2 * width * width + attended + softmax + (NORM + 2) * width)


def _embedding(schema: Schema, config: TransformerConfig, tokens: int, atoms: int) -> int:
    """Operations of embedding tokens and their time or age; many tokens are embedded field by field, absent ones too."""
    summed = atoms if tokens <= 8 else schema.fields
    return tokens * 2 * ((summed + 1) * BIN_FEATURES + LOG_FEATURES + POSITIONS + 3) * config.width


def _layers(config: TransformerConfig, tokens: int, slots: int) -> int:
    """Operations of `tokens` tokens through the layers, each over `slots` keys."""
    width, wide = config.width, config.feed_forward
    linear = 2 * width * (3 * width + width + wide + wide // 2)
    attention = 2 * 2 * slots * width + SCORE * slots * config.heads
    elementwise = 2 * NORM * width + 2 * 3 * width + 2 * width + GEGLU * wide // 2
    layer = tokens * (linear + attention + elementwise)
    if config.position == "relative":
        # No turning; two biases; then whichever is projected, the queries or all distances' features.
        queries, distances = tokens * width * (width + config.heads * config.window), config.window * width * (width + tokens)
        layer += 2 * min(queries, distances) + tokens * (slots * config.heads - 3 * width)
    return config.layers * layer + tokens * NORM * width
