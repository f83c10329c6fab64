"""What a training step costs: the products of a packed batch, counted from config and budgets alone.

A multiply-add is 2 operations; a backward pass is two forward ones. Nothing that is only computed twice to save memory counts,
nor what picks tokens out of streams. Every place of a budget counts, filled or not. A token attends over those before it, as far
as it can reach: half of a square. Of experts those count that a token is for; room that nobody takes does not.
"""

from hierarchy.corpus.budgets import Packing
from hierarchy.layout import BINS, Schema
from hierarchy.model.config import ModelConfig, Sizes, sizes
from hierarchy.model.flops import BIN_FEATURES, HEAD_FEATURES
from modules.transformer import TransformerConfig


def step_flops(config: ModelConfig, schema: Schema, packing: Packing) -> float:
    """Returns the operations of one training step of a two-rate model: forward and backward of every row."""
    table, slow, fast = sizes(schema), config.planner, config.controller
    tokens, ticks = packing.planner_tokens, packing.controller_tokens
    count = _layers(slow, tokens) + _embedding(slow, table, 1, tokens)
    count += _layers(fast, ticks) + _embedding(fast, table, 0, ticks) + _plan_reads(config, ticks)
    vectors = config.plan_vectors * config.plan_width
    count += packing.plans * 2 * vectors * (slow.width + 2 * fast.width * fast.layers)
    count += (packing.text_targets * 2 * table.pieces) * (slow.width + fast.width) if table.pieces else 0
    count += packing.sub_goal_targets * _bins(slow.width, table.goal_names, table.goal_bins > 0)
    count += packing.action_targets * (_bins(fast.width, table.discrete, True))
    return 3 * packing.rows * (count + attention_flops(config, schema, packing) / packing.rows)


def attention_flops(config: ModelConfig, schema: Schema, packing: Packing) -> float:
    """Returns the operations of one forward pass of self-attention over all rows: scores, and sums of values."""
    slow, fast, reach = config.planner, config.controller, sizes(schema).reach(config.controller.window)
    of_pairs = pair_flops(slow) * pairs(packing.planner_tokens) + pair_flops(fast) * pairs(packing.controller_tokens, reach)
    return packing.rows * of_pairs


def pair_flops(config: TransformerConfig) -> int:
    """Returns the operations of one query over one key in all layers."""
    return config.depth * 4 * config.width


def pairs(tokens: int, reach: int | None = None) -> float:
    """Returns how many pairs of a row's tokens may see each other."""
    reach = tokens if reach is None else min(reach, tokens)
    return tokens * reach - reach * (reach - 1) / 2


def _layers(config: TransformerConfig, tokens: int) -> float:
    """Products with weights; what relative attention says of distances is one more of the width with itself for every token."""
    width, wide = config.width, config.feed_forward
    more = width * (width + config.heads * config.window) if config.position == "relative" else 0
    more += width * config.experts
    return config.depth * tokens * 2 * (4 * width * width + width * wide + wide // 2 * width + more)


def _embedding(config: TransformerConfig, table: Sizes, level: int, tokens: int) -> float:
    return tokens * 2 * config.width * BIN_FEATURES * (len(table.own_fields[level]) + 1)


def _plan_reads(config: ModelConfig, tokens: int) -> float:
    fast = config.controller
    if config.plan_read == "film":
        return 0.0
    attended = 2 * 2 * config.plan_vectors * fast.width
    own = 0 if config.plan_read == "prefix" else 2 * 2 * fast.width * fast.width
    return fast.depth * tokens * (attended + own)


def _bins(width: int, names: int, bins: bool) -> float:
    return 2 * width * names + (2 * HEAD_FEATURES * (width + BINS) if bins else 0)
