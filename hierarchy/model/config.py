"""What a two-rate model is made of, and the named sizes."""

import dataclasses
from typing import Literal, NamedTuple

from hierarchy.layout import CONTINUOUS_START, Bounded, Discrete, Schema, images, tokens_per_reading, words
from modules.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A planner and a controller; without a planner it is one transformer at every tick.

    plan_vectors, plan_width: the plan is [P, plan_width]. plan_read: how the controller reads it, by cross-attention in every
    layer or as FiLM's scale and shift of every layer (arXiv 1709.07871).
    text_slots: words and patches that a reader's window may hold; a cache has room for these beside its numbers.
    """

    planner: TransformerConfig | None
    controller: TransformerConfig
    plan_vectors: int = 4
    plan_width: int = 64
    plan_read: Literal["cross_attention", "film"] = "cross_attention"
    text_slots: int = 64

    def __post_init__(self) -> None:
        if self.plan_read not in ("cross_attention", "film"):
            raise ValueError(f"plan_read is {self.plan_read!r}: it is 'cross_attention' or 'film'")


PRESETS = {
    "debug": ModelConfig(
        planner=TransformerConfig(width=32, layers=2, heads=2, feed_forward=96, window=320),
        controller=TransformerConfig(width=16, layers=2, heads=2, feed_forward=32, window=8),
        plan_vectors=2,
        plan_width=16,
    ),
    "bench": ModelConfig(
        planner=TransformerConfig(width=32, layers=2, heads=2, feed_forward=96, window=128),
        controller=TransformerConfig(width=32, layers=2, heads=2, feed_forward=96, window=8),
        plan_vectors=2,
        plan_width=32,
    ),
    "text": ModelConfig(
        planner=TransformerConfig(width=64, layers=2, heads=2, feed_forward=192, window=64),
        controller=TransformerConfig(width=48, layers=2, heads=2, feed_forward=128, window=4),
        plan_vectors=4,
        plan_width=48,
    ),
    "demo": ModelConfig(
        planner=TransformerConfig(width=128, layers=4, heads=2, feed_forward=512, window=320),
        controller=TransformerConfig(width=64, layers=2, heads=2, feed_forward=256, window=8),
        plan_vectors=4,
        plan_width=64,
        plan_read="film",
    ),
}


class Sizes(NamedTuple):
    """Sizes of tables and heads that follow from a schema.

    names: rows of the value table for text and discrete ids, which share them; rows of bins and the separator's follow.
    planner_names, controller_names: most text or discrete ids that one token of the stream sums over.
    tick_tokens: most tokens of one tick in the controller's stream, its words not counted. controller_words: whether it has any.
    pieces: classes of the heads of text, 0 where no action is text. patch_values, patch_channels: of an image's patch, or 0.
    discrete: classes of that action head. goal_names, goal_bins: classes of the sub-goals' head, names first.
    """

    names: int
    fields: int
    planner_names: int
    controller_names: int
    tick_tokens: int
    controller_words: bool
    pieces: int
    patch_values: int
    patch_channels: int
    discrete: int
    goal_names: int
    goal_bins: int

    @property
    def goals(self) -> int:
        """Classes of the sub-goals' head."""
        return self.goal_names + self.goal_bins

    def row(self, value):
        """Returns the row of each Gato id; negative where the id is EMPTY."""
        return (value >= CONTINUOUS_START) * (self.names - CONTINUOUS_START) + value


def sizes(schema: Schema) -> Sizes:
    """Returns the sizes that a schema asks for."""
    fields = [field for layout in schema.layouts for field in (*layout.planner, *layout.controller, layout.action)]
    actions = [layout.action.codec for layout in schema.layouts]
    discrete = [field.codec.values for field in fields if isinstance(field.codec, Discrete)]
    goals = [goal.codec for layout in schema.layouts for goal in layout.sub_goal]
    return Sizes(
        names=max([schema.text_pieces, *discrete]),
        fields=schema.fields,
        planner_names=schema.planner_names,
        controller_names=schema.controller_names,
        tick_tokens=max(tokens_per_reading(layout) + layout.action.size - 1 for layout in schema.layouts),
        controller_words=any(words(layout.controller) for layout in schema.layouts),
        pieces=schema.text_pieces if schema.says else 0,
        patch_values=schema.patch_values,
        patch_channels=max([field.codec.channels for field in images(tuple(fields))], default=0),
        discrete=max([codec.values for codec in actions if isinstance(codec, Discrete)], default=0),
        goal_names=max([codec.values for codec in goals if isinstance(codec, Discrete)], default=0),
        goal_bins=max([codec.bins for codec in goals if isinstance(codec, Bounded)], default=0),
    )
