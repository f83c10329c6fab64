"""Small models of every kind, run both ways: by the agent tick by tick, and in one pass over rows packed from what it did.

Those with planners above the planner are given a timeline for each of these, the nearest first.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from hierarchy.batch import Batch
from hierarchy.control.acting import Acting, compile_acting
from hierarchy.control.agent import Agent, AgentState
from hierarchy.corpus.budgets import AbovePacking, Packing
from hierarchy.corpus.packing import fill
from hierarchy.corpus.segment import HEADS, Segment, cut, encode_episode
from hierarchy.episode import Episode
from hierarchy.layout import (
    Bounded,
    Discrete,
    Field,
    Image,
    Layout,
    Piece,
    Schema,
    Text,
    ahead,
    numbers,
    single_rate,
    tick_action,
)
from hierarchy.model.config import ModelConfig
from hierarchy.model.network import Network, build
from hierarchy.model.parallel import Logits, forward
from hierarchy.timeline import Timeline
from modules.transformer import TransformerConfig
from tests.hierarchy.corpus.corpus_toys import Letters, toy_episode, toy_layout, toy_schema

PLANNER = TransformerConfig(width=16, layers=2, heads=2, feed_forward=24, window=12)
CONTROLLER = TransformerConfig(width=12, layers=2, heads=2, feed_forward=16, window=5)
EXPERTS = dataclasses.replace(PLANNER, experts=4, chosen=2)
MODEL = ModelConfig(PLANNER, CONTROLLER, plan_vectors=2, plan_width=8, text_slots=36)
SAYS = (
    {"say": ((0, "go on"), (13, "to the left"), (29, "right"))},
    {"say": ((0, "stay"),), "hint": ((5, "mind the gap"), (6, ""))},
    {"say": ((2, "up"),)},
)
ROWS = 3


class Kind(NamedTuple):
    """One kind of model: its layout, its sizes, and the ticks of its toy episodes."""

    layout: Layout
    model: ModelConfig = MODEL
    ticks: int = 64


CHUNK = 4
ALONE = dataclasses.replace(MODEL, planner=None)
SIGNS = Field("signs", Bounded((-1.0, 0.0), (1.0, 5.0), bins=64), 2, spoken=True)


def with_signs(layout: Layout) -> Layout:
    """Returns the layout whose planner is also told numbers when they change."""
    return dataclasses.replace(layout, planner=(*layout.planner, SIGNS))


def relative(model: ModelConfig) -> ModelConfig:
    """Returns the model whose two transformers attend by distance."""
    return dataclasses.replace(
        model, **{part: dataclasses.replace(getattr(model, part), position="relative") for part in ("planner", "controller")}
    )


def wordless(layout: Layout) -> Layout:
    """Returns the layout whose planner reads numbers alone."""
    return dataclasses.replace(layout, planner=numbers(layout.planner))


def by_layer(model: ModelConfig) -> ModelConfig:
    """Returns the model whose layers reach back differently far."""
    planner, controller = model.planner, model.controller
    return dataclasses.replace(
        model,
        planner=dataclasses.replace(planner, windows=(4, planner.window)),
        controller=dataclasses.replace(controller, windows=(controller.window, 2)),
    )


PICTURE = Field("picture", Image(16, 8, patch=8))
SAID = Field("previous_action", Piece(), 3)
COUNTER = Field("counter", Discrete(1024))


def talking(pictures: bool = False) -> Layout:
    """Returns the layout of a toy that says three pieces a tick; its planner reads every one of them, and pictures if asked."""
    shown = (PICTURE, Field("say", Text())) if pictures else ()
    return Layout(
        "toy",
        planner=(COUNTER, dataclasses.replace(SAID, every_tick=True), *shown),
        controller=(COUNTER, SAID),
        action=dataclasses.replace(SAID, name="action"),
        pooled=False,
    )


def watching() -> Layout:
    """Returns the pooled layout whose planner looks at pictures too, and follows what was done at every tick."""
    layout = toy_layout(elements=2)
    done = dataclasses.replace(layout.action, name="previous_action", every_tick=True)
    return dataclasses.replace(layout, planner=(*layout.planner, PICTURE, done))


def at_once(layout: Layout) -> Layout:
    """Returns the layout whose actions are decoded in one pass."""
    return dataclasses.replace(layout, at_once=True)


KINDS = {
    "pooled": Kind(with_signs(toy_layout())),
    "film": Kind(toy_layout(elements=3), dataclasses.replace(MODEL, plan_read="film")),
    "scalars": Kind(toy_layout(elements=2, pooled=False, discrete=True), ticks=32),
    "prefix": Kind(toy_layout(elements=2), dataclasses.replace(MODEL, plan_read="prefix")),
    "at_once": Kind(at_once(toy_layout(elements=3))),
    "at_once_scalars": Kind(at_once(toy_layout(elements=3, pooled=False)), ticks=32),
    "single_rate_at_once": Kind(single_rate(at_once(talking(pictures=True))), ALONE, ticks=32),
    "quantised": Kind(toy_layout(), dataclasses.replace(MODEL, plan_levels=(3, 4))),
    "relative": Kind(with_signs(toy_layout(elements=2)), relative(MODEL)),
    "experts": Kind(with_signs(toy_layout(elements=2)), dataclasses.replace(MODEL, planner=EXPERTS)),
    "rounds": Kind(toy_layout(elements=2), dataclasses.replace(MODEL, planner=dataclasses.replace(PLANNER, rounds=3))),
    "windows": Kind(with_signs(toy_layout(elements=2)), by_layer(MODEL)),
    "single_rate": Kind(toy_layout(elements=2, planner=False), ALONE),
    "single_rate_scalars": Kind(toy_layout(pooled=False, planner=False), ALONE, ticks=32),
    "chunked": Kind(ahead(toy_layout(elements=2), 0, CHUNK), ALONE),
    "text": Kind(talking(), ticks=32),
    "captions": Kind(talking(pictures=True), ticks=32),
    "pictures": Kind(watching()),
    "single_rate_captions": Kind(single_rate(talking(pictures=True)), ALONE, ticks=32),
}


ABOVE = TransformerConfig(width=20, layers=2, heads=2, feed_forward=28, window=9)


def slower(planners: int = 1, **how) -> Layout:
    """Returns the layout whose planner_2 alone is told what to say, and whose planner hears the chimes; the slowest of `planners`
    above the planner reads the numbers too."""
    layout = toy_layout(**how)
    fields = {field.name: field for field in layout.planner}
    told = fields["counter"], fields["say"], SIGNS, fields["state"]
    slowest = dataclasses.replace(fields["chime"], summed="episode"), fields["counter"], fields["number"]
    own = fields["counter"], fields["hint"], fields["chime"], fields["number"]
    return dataclasses.replace(layout, planner=own, above=(told, slowest)[:planners])


SLOWER = {
    "three_rates": Kind(slower(elements=2), dataclasses.replace(MODEL, above=(ABOVE,))),
    "three_rates_film": Kind(slower(discrete=True), dataclasses.replace(MODEL, above=(ABOVE,), plan_read="film")),
    "three_rates_scalars": Kind(
        slower(elements=2, pooled=False), dataclasses.replace(MODEL, above=(ABOVE,), plan_read="prefix"), ticks=32
    ),
    "four_rates": Kind(slower(2), dataclasses.replace(MODEL, above=(ABOVE, PLANNER))),
}
"""Those with more than two rates."""


SELDOM = {
    "seldom": Kind(with_signs(toy_layout(elements=2)), dataclasses.replace(by_layer(MODEL), least_ratio=4)),
    "seldom_wordless": Kind(wordless(toy_layout(elements=2, pooled=False)), dataclasses.replace(MODEL, least_ratio=5), ticks=32),
}
"""Those whose caches have no room for an update at every tick."""
UNTOLD = {
    f"{name}_untold": Kind(kind.layout, dataclasses.replace(kind.model, told_tick=False))
    for name, kind in KINDS.items()
    if name in ("pooled", "single_rate")
}
"""Those that are not told the tick."""


class Toy(NamedTuple):
    """A kind of model with weights, and its two compiled executions."""

    schema: Schema
    ticks: int
    network: Network
    params: dict
    acting: Acting
    forward: Callable[[dict, Batch], Logits]
    packing: Packing

    @property
    def layout(self) -> Layout:
        return self.schema.layouts[0]


@functools.cache
def toy(kind: str, decoding: str = "sample") -> Toy:
    """Returns the toy of a kind; one a process, so that all its tests share what is compiled."""
    layout, model, ticks = (KINDS | SLOWER | SELDOM | UNTOLD)[kind]
    schema = toy_schema(layout)
    network = build(model, schema)
    return Toy(
        schema,
        ticks,
        network,
        network.init(jax.random.key(1)),
        compile_acting(network, schema, layout.name, decoding),
        jax.jit(functools.partial(forward, network)),
        budgets(schema, model, ticks),
    )


def budgets(schema: Schema, model: ModelConfig, ticks: int) -> Packing:
    """Returns rows with room for the planner of two whole episodes and the controller of one; lead-ins are what layers reach."""
    slow, fast = model.planner or PLANNER, model.controller
    each = 1 if schema.layouts[0].pooled else 12
    return Packing(
        rows=ROWS,
        controller_tokens=(each + 2) * ticks + 90,
        planner_tokens=2 * (each * ticks + 70),
        plans=2 * ticks,
        action_targets=3 * ticks,
        sub_goal_targets=2 * ticks,
        patches=256,
        draw_places=False,
        lead_in=fast.lead_in,
        planner_lead_in=slow.lead_in,
        planner_reread=slow.window // 2,
        controller_reread=fast.window // 2,
        above=tuple(AbovePacking(2 * (each * ticks + 80), 2 * ticks, own.lead_in, own.window // 2) for own in model.above),
    )


def world(made: Toy, first: int = 0) -> list[Episode]:
    """Returns three episodes, numbered from `first`, whose observations the agent will be shown and whose words differ."""
    action = tick_action(made.layout)
    facts = dict(elements=action.size, discrete=not hasattr(action.codec, "low"))
    episodes = [toy_episode(first + i, made.ticks, says=says, **facts) for i, says in enumerate(SAYS)]
    rng = np.random.default_rng((first, 1))
    frames, shown = rng.integers(256, size=(3, 4, 16, 8, 3), dtype=np.uint8), rng.integers(4, size=(3, made.ticks + 1))
    pictures = [frames[i, np.sort(shown[i])] for i in range(3)]
    signs = np.repeat(np.random.default_rng(first).uniform((-1, 0), (1, 5), (3, 4, 2)), made.ticks // 3, axis=1)
    spread = action.size if facts["discrete"] else 1
    return [
        dataclasses.replace(
            episode,
            observation=episode.observation | {"signs": each[: made.ticks + 1], "picture": picture},
            action=np.repeat(episode.action, spread, axis=1),
            label=np.repeat(episode.label, spread, axis=1),
        )
        for episode, each, picture in zip(episodes, signs, pictures)
    ]


def observations(episodes: Sequence[Episode], tick: int) -> dict[str, np.ndarray]:
    """Returns what the episodes show at a tick, stacked; text that has not been said yet is empty."""
    shown = {name: np.stack([episode.observation[name][tick] for episode in episodes]) for name in episodes[0].observation}
    for name in episodes[0].text:
        said = [[wording for since, wording in episode.text[name] if since <= tick] for episode in episodes]
        shown[name] = np.array([wordings[-1] if wordings else "" for wordings in said], object)
    return shown


def agent_of(made: Toy, timeline: Timeline, params: dict | None = None, above: Sequence[Timeline] = ()) -> Agent:
    """Returns the agent under a timeline, or one a link."""
    params = made.params if params is None else params
    return Agent(made.acting, params, timeline, horizon=made.ticks, tokenizer=Letters(), above=above)


def live(agent: Agent, episodes: Sequence[Episode]) -> tuple[list[Episode], np.ndarray, AgentState]:
    """Returns the episodes with the agent's own actions, its logits [B, T, A, classes], and its last state."""
    state = agent.begin([episode.seed for episode in episodes])
    actions, logits = [], []
    for tick in range(episodes[0].ticks):
        action, state = agent.step(state, observations(episodes, tick))
        actions.append(action)
        logits.append(np.asarray(state.decoded.logits))
    actions = np.stack(actions, axis=1)
    lived = [dataclasses.replace(e, action=a.copy(), label=a.copy()) for e, a in zip(episodes, actions)]
    return lived, np.stack(logits, axis=1), state


Place = tuple[int, tuple[int, int]]
"""Which episode, and the ticks [a, b) of it that bear loss."""


def windows(ticks: int) -> list[list[Place]]:
    """Returns rows of segments: a whole episode; and windows from anywhere in the others, two a row."""
    end, third = ticks, ticks // 3
    return [
        [(0, (0, end))],
        [(1, (0, third)), (2, (third, end - 9))],
        [(2, (end - 9, end)), (1, (third + 2, 2 * third))],
    ]


def segments(
    made: Toy,
    lived: Sequence[Episode],
    timeline: Timeline,
    rows: list[list[Place]],
    further: Sequence[Timeline] = (),
    **changed,
) -> list[list[Segment]]:
    """Returns the segments of the rows; `further` are the timelines above, `changed` are budgets for the cut alone."""
    packing, rng = dataclasses.replace(made.packing, **changed), np.random.default_rng(0)
    encoded = [encode_episode(made.schema, made.layout.name, episode, Letters()) for episode in lived]
    return [[cut(rng, encoded[e], timeline, window, packing, further) for e, window in row] for row in rows]


def bearing(made: Toy, segment: Segment) -> np.ndarray:
    """Returns the ticks of a segment that bear loss."""
    targets = getattr(segment, head(made))
    return segment.controller.tick[targets.slot].reshape(-1, made.layout.action.size)[:, 0]


def head(made: Toy) -> str:
    """Returns the name of the head of the toy's actions: that of its targets in a batch, and of its logits."""
    return HEADS[type(made.layout.action.codec)]


def disagreement(
    made: Toy, stepped: np.ndarray, rows: list[list[Place]], parts: list[list[Segment]], batch: Batch, params: dict | None = None
) -> float:
    """Returns the largest difference between the agent's logits and the parallel pass's at every tick that bears loss, over
    max(1, largest logit)."""
    logits = made.forward(made.params if params is None else params, batch)
    parallel = np.asarray(getattr(logits, head(made)))
    worst = 0.0
    for b, (places, cuts) in enumerate(zip(rows, parts)):
        filled = 0
        for (episode, _), segment in zip(places, cuts):
            expected = stepped[episode, bearing(made, segment)].reshape(-1, stepped.shape[-1])
            found = parallel[b, filled : filled + len(expected)]
            filled += len(expected)
            legal = expected > -1e29
            np.testing.assert_array_equal(legal, found > -1e29)
            scale = max(1.0, np.abs(expected[legal]).max())
            worst = max(worst, float(np.abs(expected - found)[legal].max()) / scale)
    return worst


def packed(made: Toy, parts: list[list[Segment]]) -> Batch:
    """Returns the rows as a batch."""
    return fill(parts, made.schema, made.packing)
