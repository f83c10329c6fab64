"""What a model of two or more rates is made of, and the named sizes."""

import dataclasses
import itertools
from typing import Literal, NamedTuple, get_args

from hierarchy.layout import (
    CONTINUOUS_START,
    LIVES,
    Bounded,
    Discrete,
    Schema,
    images,
    observed,
    planner_name,
    tokens_per_reading,
    words,
)
from modules.transformer import TransformerConfig

PlanRead = Literal["cross_attention", "film", "prefix"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A planner and a controller; without a planner it is one transformer at every tick.

    plan_vectors, plan_width: the plan is [P, plan_width]. plan_read: how every layer of the controller reads it: by attention of
    its own over the plan ("cross_attention"), as a scale and shift ("film", arXiv 1709.07871), or with the plan's vectors as
    tokens that stand before all others in its self-attention ("prefix", arXiv 2101.00190).
    plan_levels: how many values the plan's channels may take, in turn (`modules.quantisation`); none for real numbers.
    text_slots: words and patches that a reader's window may hold; a cache has room for these beside its numbers.
    above: planners above the planner, the nearest first: each reads the plans of the one above it as the controller reads the
    planner's, and all plans are of one size.
    least_ratio: fewest ticks from one update of a planner to its next. Its cache has room for as many updates as a window then
    holds, and no more: at 1 for one at every tick.
    told_tick: whether planners, or the one transformer of a single rate, are told each token's tick beside what attention is told
    of the time between. Without it an episode may last longer than any that was trained on and look no different.
    """

    planner: TransformerConfig | None
    controller: TransformerConfig
    plan_vectors: int = 4
    plan_width: int = 64
    plan_read: PlanRead = "cross_attention"
    text_slots: int = 64
    plan_levels: tuple[int, ...] = ()
    above: tuple[TransformerConfig, ...] = ()
    least_ratio: int = 1
    told_tick: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "plan_levels", tuple(self.plan_levels))
        if self.plan_read not in get_args(PlanRead):
            raise ValueError(f"plan_read is {self.plan_read!r}: it is one of {', '.join(get_args(PlanRead))}")
        if self.plan_levels and (self.plan_width % len(self.plan_levels) or min(self.plan_levels) < 2):
            raise ValueError(
                f"plan_levels {self.plan_levels} stand in turn for {self.plan_width} channels: give at least 2 each, and as many "
                "as divide plan_width"
            )
        if self.above and self.planner is None:
            raise ValueError("planners above the planner, and no planner: give one, or leave out those above")
        if self.least_ratio < 1:
            raise ValueError(f"least_ratio is {self.least_ratio}: it counts ticks and is at least 1")
        if any(own.experts for own in (self.controller, *self.above)):
            raise ValueError("experts in the controller, or in a planner above the planner: they are for the planner alone")

    @property
    def planners(self) -> tuple[TransformerConfig, ...]:
        """The planners, from the one that plans for the controller to the slowest; none where there is one rate."""
        return () if self.planner is None else (self.planner, *self.above)

    def updates_within(self, window: int) -> int:
        """Returns the most updates of a planner that a window of so many ticks holds."""
        return 1 - -(window - 1) // self.least_ratio

    def of(self, reader: str) -> TransformerConfig:
        """Returns the transformer of one of a layout's readers. Raises ValueError for a reader that there is not."""
        planners = {planner_name(level): planner for level, planner in enumerate(self.planners, start=1)}
        transformers = {"controller": self.controller} | planners
        if reader not in transformers:
            raise ValueError(f"no reader {reader!r}: this model has {', '.join(transformers)}")
        return transformers[reader]


def gato(
    width: int, layers: int, heads: int, feed_forward: int, controller: TransformerConfig, plan_vectors: int, plan_width: int
) -> ModelConfig:
    """Returns a planner of one of Gato's sizes (arXiv 2205.06175, table 5) beside a controller.

    Its relative attention, and the feed-forward size split between the halves of GEGLU, are what the published parameter counts
    call for: the paper does not state them.
    """
    planner = TransformerConfig(width, layers, heads, feed_forward, window=256, position="relative")
    return ModelConfig(planner, controller, plan_vectors, plan_width, text_slots=512)


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
    "recursive": ModelConfig(
        planner=TransformerConfig(width=64, layers=1, heads=4, feed_forward=256, window=16, rounds=8),
        controller=TransformerConfig(width=32, layers=2, heads=2, feed_forward=96, window=8),
        plan_vectors=2,
        plan_width=32,
    ),
    # A planner over whole episodes: the first layer sees what happens now, the second all there ever was.
    "needle": ModelConfig(
        planner=TransformerConfig(64, 2, 2, 256, window=16_640, windows=(512, 16_640), slowest=1024),
        controller=TransformerConfig(width=32, layers=2, heads=2, feed_forward=96, window=8),
        plan_vectors=2,
        plan_width=32,
        least_ratio=16,
        told_tick=False,
    ),
    # The same with a window of as many tokens at a token a tick, for one rate.
    "needle_single_rate": ModelConfig(
        planner=TransformerConfig(64, 2, 2, 256, window=1040, slowest=1024),
        controller=TransformerConfig(width=32, layers=2, heads=2, feed_forward=96, window=8),
        plan_vectors=2,
        plan_width=32,
        told_tick=False,
    ),
    "text": ModelConfig(
        planner=TransformerConfig(width=64, layers=2, heads=2, feed_forward=192, window=512),
        controller=TransformerConfig(width=48, layers=2, heads=2, feed_forward=128, window=32),
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
    # For a corpus of many bodies, text and pictures, all of which the controller has to act in and say. In a tick
    # of the patrol at ratio 8 it takes 0.32 of the operations of one model of the same size; 128 wide it would take 0.34.
    "demo_wide": ModelConfig(
        planner=TransformerConfig(width=128, layers=4, heads=2, feed_forward=512, window=320),
        controller=TransformerConfig(width=120, layers=2, heads=2, feed_forward=480, window=8),
        plan_vectors=4,
        plan_width=64,
        plan_read="film",
    ),
    # For times: the demo's controller beside a planner of 100 million parameters.
    "demo_100M": ModelConfig(
        planner=TransformerConfig(width=1024, layers=10, heads=16, feed_forward=4096, window=320),
        controller=TransformerConfig(width=64, layers=2, heads=2, feed_forward=256, window=8),
        plan_vectors=4,
        plan_width=64,
        plan_read="film",
    ),
    "79M": gato(768, 8, 24, 3072, TransformerConfig(256, 4, 2, 1024, window=16), plan_vectors=8, plan_width=256),
    "364M": gato(1536, 12, 12, 6144, TransformerConfig(512, 6, 4, 2048, window=16), plan_vectors=8, plan_width=256),
    "1.18B": gato(2048, 24, 16, 8192, TransformerConfig(768, 8, 6, 3072, window=16), plan_vectors=8, plan_width=256),
}


class Sizes(NamedTuple):
    """Sizes of tables and heads that follow from a schema.

    names: rows of the value table for text and discrete ids, which share them; rows of bins and the separator's follow.
    planner_names, controller_names: most text or discrete ids that one token of a planner's or the controller's stream sums over.
    tick_tokens: most tokens of one tick in the controller's stream, its words not counted. controller_words: whether it has any.
    pieces: classes of the heads of text, 0 where no action is text. patch_values, patch_channels: of an image's patch, or 0.
    discrete: classes of that action head. goal_names, goal_bins: classes of the sub-goals' head, names first.
    predictions: classes of each predicted scalar, one after another those of that head. lives: bins of the lifetimes' head, or 0.
    own_fields: those that tokens of a stream may have: of the controller's, then of the planners',
    from the one that plans for the controller up.
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
    predictions: tuple[int, ...]
    lives: int
    own_fields: tuple[tuple[int, ...], ...]

    @property
    def goals(self) -> int:
        """Classes of the sub-goals' head."""
        return self.goal_names + self.goal_bins

    def reach(self, window: int) -> int | None:
        """Returns how many places back a token of the controller's stream can see, whose layers see `window` ticks; None for
        any."""
        return None if self.controller_words else window * self.tick_tokens

    def row(self, value):
        """Returns the row of each Gato id; negative where the id is EMPTY."""
        return (value >= CONTINUOUS_START) * (self.names - CONTINUOUS_START) + value


def sizes(schema: Schema) -> Sizes:
    """Returns the sizes that a schema asks for."""
    fields = [field for layout in schema.layouts for field in (*observed(layout), layout.action)]
    actions = [layout.action.codec for layout in schema.layouts]
    discrete = [field.codec.values for field in fields if isinstance(field.codec, Discrete)]
    streams = "controller", *map(planner_name, range(1, schema.above + 2))
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
        predictions=tuple(classes for layout in schema.layouts for _, classes in schema.predictions(layout.name)),
        lives=len(LIVES) if any(layout.lifetime for layout in schema.layouts) else 0,
        own_fields=tuple(tuple(itertools.chain(*schema.own_fields(reader))) for reader in streams),
    )
