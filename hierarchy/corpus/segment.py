"""One window of one episode as its streams see it: what its outline says, made.

One update's tokens: what the planner follows, at each tick since the update before; images, spoken numbers and words that are
due; one reading of its numbers, what it follows among them. The last of them is where the plan is read.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hierarchy.batch import Above, Patches, Stream, Targets
from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.codecs import intervals
from hierarchy.corpus.outline import HEADS, TAKEN, Heard, Outline, Over, Read, Said, learnt_from, outline, pieces_after, says
from hierarchy.corpus.reading import (
    Encoded,
    History,
    Pieces,
    between_tokens,
    controller_tokens,
    encode_rows,
    encode_targets,
    planner_tokens,
)
from hierarchy.corpus.text import spell
from hierarchy.episode import Episode
from hierarchy.layout import (
    ASKED,
    CONTINUOUS_START,
    EMPTY,
    LIVES,
    PATCH,
    PREVIOUS_ACTION,
    Bounded,
    Codec,
    Field,
    Layout,
    Piece,
    Schema,
    followed,
    id_range,
    numbers,
    planner_name,
    scalars,
    tick_action,
    tokens_between,
    tokens_per_update,
)
from hierarchy.timeline import NO_PLAN, PLAN_READY, Timeline, from_marks


class Segment(NamedTuple):
    """One segment before it has a row: `Batch`'s arrays with slots counted from its own first tokens, and no padding.

    needed: planner tokens up to the last update that is seen; those after it serve the planner's own losses alone. ticks: those
    with loss.
    """

    controller: Stream
    planner: Stream
    plan_slot: np.ndarray
    plan: np.ndarray
    age: np.ndarray
    continuous: Targets
    discrete: Targets
    text: Targets
    sub_goal: Targets
    planner_text: Targets
    patches: Patches
    following: Targets
    lifetime: Targets
    needed: int
    ticks: int
    above: tuple[Above, ...] = ()


def encode_episode(schema: Schema, name: str, episode: Episode, tokenizer: Pieces | None = None) -> Encoded:
    """Returns the episode in the ids of layout `name`; words that are to be said become pieces here (see `spell`).

    Raises:
        ValueError: a field is missing, has another size, or a value that its codec refuses: names layout, field and tick.
    """
    layout = schema[name]
    if isinstance(layout.action.codec, Piece) and layout.action.name in episode.text:
        if tokenizer is None:
            raise ValueError(f"layout {name!r} says text: a tokenizer is needed")
        episode = spell(episode, tick_action(layout), tokenizer)
    history = History.from_episode(schema, name, episode, tokenizer)
    label = encode_targets(schema, tick_action(layout), episode.label, f"layout {name!r}, label")
    label = look_ahead(label, layout.late, layout.chunk)
    sub_goals = [np.zeros((episode.ticks, 0), np.int32)]
    for goal in layout.sub_goal:
        if goal.name not in episode.privileged:
            raise ValueError(f"layout {name!r}: no privileged {goal.name!r}; there are {sorted(episode.privileged)}")
        where = f"layout {name!r}, privileged {goal.name!r}"
        sub_goals.append(encode_targets(schema, goal, episode.privileged[goal.name], where))
    marked = episode.privileged.get(PLAN_READY)
    timeline = None if marked is None else from_marks(marked)
    return Encoded(history, label, np.concatenate(sub_goals, axis=1), next_classes(schema, layout, episode), timeline)


def next_classes(schema: Schema, layout: Layout, episode: Episode) -> np.ndarray:
    """Returns int32 [T, F]: at tick t the classes of the predicted scalars of tick t + 1, the last one's observation included."""
    parts = [np.zeros((episode.ticks, 0), np.int32)]
    for field in layout.predicted:
        if field.name not in episode.observation:
            raise ValueError(f"layout {layout.name!r}: no observation {field.name!r}; there are {sorted(episode.observation)}")
        parts.append(predicted_values(schema, layout, field, episode.observation[field.name][1:]))
    first = np.array([start for start, _ in schema.predictions(layout.name)], np.int32)
    return np.concatenate(parts, axis=1) + first


def predicted_values(schema: Schema, layout: Layout, field: Field, rows: np.ndarray) -> np.ndarray:
    """Returns int32 [rows, size]: the values of a predicted field in the bins of its codec, counted from 0."""
    ids = encode_rows(schema, field, rows, f"layout {layout.name!r}, predicted {field.name!r}")
    return ids - (CONTINUOUS_START if isinstance(field.codec, Bounded) else 0)


def lives(sub_goal: np.ndarray) -> np.ndarray:
    """Returns int32 [T], from a sub-goal [T]: at each tick the bin of LIVES that says in how many ticks the sub-goal changes.

    Where the episode ends first, the number of bins is added: it lasts at least until the first tick after the end. EMPTY where
    there is no sub-goal.
    """
    ticks = np.arange(len(sub_goal))
    changes = np.flatnonzero(np.diff(sub_goal)) + 1
    after = np.searchsorted(changes, ticks, side="right")
    ended = after < len(changes)
    end = np.append(changes, len(sub_goal))[after]
    found = np.searchsorted(LIVES, end - ticks, side="right") - 1 + np.where(ended, 0, len(LIVES))
    return np.where(sub_goal == EMPTY, EMPTY, found).astype(np.int32)


def look_ahead(label: np.ndarray, late: int, chunk: int) -> np.ndarray:
    """Returns int32 [T, chunk * A] from [T, A]: at tick t the labels of ticks t + late on, EMPTY past the episode's end."""
    beyond = np.full((late + chunk - 1, label.shape[1]), EMPTY, label.dtype)
    ticks = np.arange(len(label))[:, None] + late + np.arange(chunk)
    return np.concatenate([label, beyond])[ticks].reshape(len(label), -1)


def cut(
    rng: np.random.Generator,
    encoded: Encoded,
    timeline: Timeline,
    window: tuple[int, int],
    packing: "Packing",
    above: Sequence[Timeline] = (),
) -> Segment:
    """Returns the segment whose ticks [a, b) bear loss, b brought down until the controller's tokens fit its stream: what
    `outline` says, made. Where a planner cannot read from its first update, the one that it reads from is drawn."""
    drawn = outline(encoded, timeline, window, packing, above, rng.random())
    return make(rng if packing.draw_places else None, drawn)


def make(places: np.random.Generator | None, drawn: Outline) -> Segment:
    """Returns the segment of an outline. places: draws where patches of images stand in their intervals; None for the mean."""
    encoded, timeline, ticks, bears, seen, heard, read, over, _, _ = drawn
    history, layout = encoded.history, encoded.history.layout
    controller = _controller(encoded, ticks, heard)
    planner, between, between_slot = _planner(encoded, "planner", read)
    used, plan, age = _plans(timeline, ticks, seen, read)
    slots = heard.last[bears, None] + np.arange(layout.action.size)
    action = _targets(history.schema, slots, encoded.label[ticks[bears]], layout.action.codec)
    heads = dict.fromkeys(HEADS.values(), NOTHING) | {HEADS[type(layout.action.codec)]: action}
    token = np.searchsorted(ticks, controller.tick)
    return Segment(
        controller,
        planner,
        plan_slot=used,
        plan=plan[token],
        age=age[token],
        **heads,
        sub_goal=_sub_goals(encoded, timeline, read, heard.last[bears], ticks[bears]),
        planner_text=_next_pieces(encoded, timeline, read, between, between_slot),
        patches=_patches(history.schema, places, *((planner, read.said) if layout.planner else (controller, heard.said))),
        following=_following(encoded, heard.last[bears], ticks[bears]),
        lifetime=_lifetimes(encoded, timeline, read),
        needed=int(read.last[seen[-1] - read.first]) + 1 if seen[-1] != NO_PLAN else 0,
        ticks=int((encoded.label[ticks[bears]] != EMPTY).any(axis=1).sum()),
        above=_above(encoded, 2, over, planner),
    )


def taken(segment: Segment) -> np.ndarray:
    """Returns what a segment takes of each budget of a row, as `Outline.whole` has it."""
    own = {name: len(getattr(segment, name).slot) for name in TAKEN[3:]}
    own |= {"controller": len(segment.controller.tick), "planner": len(segment.planner.tick), "plans": len(segment.plan_slot)}
    above = [len(part) for link in segment.above for part in (link.stream.tick, link.plan_slot)]
    return np.array([own[name] for name in TAKEN] + above)


def trim(segment: Segment, tokens: int = 0) -> Segment:
    """Returns the segment without the planner tokens that no tick sees, but for those of its first `tokens`, whole ticks; and
    above without those that then no update sees."""
    length = len(segment.planner.tick)
    if length <= max(tokens, segment.needed):
        return segment
    ends = np.flatnonzero(np.diff(segment.planner.tick)) + 1
    kept = max(segment.needed, int(np.max(ends[ends <= tokens], initial=0)))
    planner = Stream(*(array[:kept] for array in segment.planner))
    above, below = [], kept
    for stream, plan_slot, plan, age in segment.above:
        plan, age = plan[:below], age[:below]
        plan_slot = plan_slot[: plan.max(initial=-1) + 1]
        below = plan_slot.max(initial=-1) + 1
        above.append(Above(Stream(*(array[:below] for array in stream)), plan_slot, plan, age))

    def within(part):
        early = part.slot < kept
        return type(part)(*(array[early] for array in part))

    names = ("sub_goal", "planner_text", "patches", "lifetime")
    return segment._replace(planner=planner, above=tuple(above), **{name: within(getattr(segment, name)) for name in names})


class _Before(NamedTuple):
    """M tokens that stand before readings, in order: the index of the reading [M], the tick [M], value and field [M, K]."""

    reading: np.ndarray
    tick: np.ndarray
    value: np.ndarray
    field: np.ndarray


NOTHING = Targets(*(np.zeros(0, np.int32) for _ in range(3)), np.zeros(0, np.float32))


def _plans(timeline: Timeline, ticks: np.ndarray, seen: np.ndarray, read: Read) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The slots of the plans that are seen; and for each tick the index of its own among them and its age."""
    shown = np.where(seen >= read.first, seen, NO_PLAN)
    used = shown[np.flatnonzero(shown != NO_PLAN)]
    used = used[np.append(True, used[1:] != used[:-1])[: len(used)]]
    plan = np.where(shown == NO_PLAN, -1, np.searchsorted(used, shown))
    age = np.where(shown == NO_PLAN, -1, ticks - np.append(timeline.observed, 0)[shown])
    return read.last[used - read.first].astype(np.int32), plan.astype(np.int32), age.astype(np.int32)


def _sub_goals(encoded: Encoded, timeline: Timeline, read: Read, last: np.ndarray, ticks: np.ndarray) -> Targets:
    """At every update with its lead-in; without a planner at the last observation tokens of the ticks that bear loss."""
    layout = encoded.history.layout
    if not layout.sub_goal:
        return NOTHING
    if layout.planner:
        updates = np.arange(read.sound, read.stop)
        last, ticks = read.last[updates - read.first], timeline.observed[updates]
    schema = encoded.history.schema
    each = [_targets(schema, last, encoded.sub_goal[ticks, g], goal.codec) for g, goal in enumerate(layout.sub_goal)]
    return Targets(*(np.concatenate(parts) for parts in zip(*each)))


def _following(encoded: Encoded, last: np.ndarray, ticks: np.ndarray) -> Targets:
    """At the last observation token of every tick that bears loss, one target a predicted scalar."""
    history = encoded.history
    limit = np.array([classes for _, classes in history.schema.predictions(history.layout.name)], np.int32)
    slot = np.repeat(last, len(limit)).astype(np.int32)
    return Targets(slot, encoded.following[ticks].ravel(), np.tile(limit, len(last)), np.ones(len(slot), np.float32))


def _lifetimes(encoded: Encoded, timeline: Timeline, read: Read) -> Targets:
    """At every update with its lead-in."""
    if not encoded.history.layout.lifetime:
        return NOTHING
    updates = np.arange(read.sound, read.stop)
    label = lives(encoded.sub_goal[:, 0])[timeline.observed[updates]]
    slot, label = read.last[updates - read.first].astype(np.int32)[label != EMPTY], label[label != EMPTY]
    return Targets(slot, label, np.full(len(slot), len(LIVES), np.int32), np.ones(len(slot), np.float32))


def _next_pieces(encoded: Encoded, timeline: Timeline, read: Read, between: np.ndarray, between_slot: np.ndarray) -> Targets:
    """The piece after each one that the planner follows, from the first update with its lead-in on.

    between, between_slot: int [M], the ticks between updates that it follows, and their first tokens.
    """
    layout = encoded.history.layout
    if not says(layout) or not len(read.updates):
        return NOTHING
    fields = numbers(layout.planner)
    at = [field.name for field in fields].index(PREVIOUS_ACTION)
    start = read.last - tokens_per_update(layout) + 1 + scalars(fields[:at])
    ticks = np.concatenate([read.updates, between])
    slots = np.concatenate([start, between_slot + scalars(followed(fields[:at]))])
    order = np.argsort(slots)
    order = order[ticks[order] >= learnt_from(timeline, read)]
    ticks, slots = ticks[order], slots[order]
    following = pieces_after(encoded.label, ticks)
    return _targets(encoded.history.schema, slots[:, None] + np.arange(layout.action.size), following, layout.action.codec)


def _patches(schema: Schema, places: np.random.Generator | None, stream: Stream, said: list[Said]) -> Patches:
    """The patches of a stream's images, each at a place drawn within its own interval, or at the mean."""
    shown = [one.shown for one in said if one.shown is not None]
    if not shown:
        return Patches(np.zeros((0, schema.patch_values), np.uint8), *np.zeros((3, 0), np.int32))
    slot = np.flatnonzero(stream.value[:, 0] == PATCH).astype(np.int32)
    parts = [(pixels, *intervals(codec, places)) for codec, pixels in shown]
    return Patches(*(np.concatenate(part) for part in zip(*parts)), slot)


def _controller(encoded: Encoded, ticks: np.ndarray, heard: Heard) -> Stream:
    """The controller's stream of the readings at `ticks`."""
    history, layout = encoded.history, encoded.history.layout
    value, field = (array[0] for array in controller_tokens(history, ticks, heard.previous))
    elements = layout.action.size - 1
    if elements:
        ids, spare = np.full((2, len(ticks), elements, value.shape[2]), EMPTY, np.int32)
        ids[:, :, 0] = ASKED if layout.at_once else encoded.label[ticks, :elements]
        first = history.field_ids["action", layout.action.name]
        spare[:, :, 0] = np.where(ids[:, :, 0] == EMPTY, EMPTY, first + np.arange(elements))
        value, field = np.concatenate([value, ids], axis=1), np.concatenate([field, spare], axis=1)
    lasting = np.arange(value.shape[1]) < value.shape[1] - elements
    return _stream(value, field, ticks, lasting, _before(heard.said, ticks, value.shape[2]))[0]


def _above(encoded: Encoded, level: int, over: tuple[Over, ...], below: Stream) -> tuple[Above, ...]:
    """The planners from `level` up, the nearest first; below: the stream that sees their plans."""
    if not over:
        return ()
    own = over[0]
    stream, _, _ = _planner(encoded, planner_name(level), own.read)
    slots, plan, age = _plans(own.timeline, own.updates, own.seen, own.read)
    token = np.searchsorted(own.updates, below.tick)
    return Above(stream, slots, plan[token], age[token]), *_above(encoded, level + 1, over[1:], stream)


def _planner(encoded: Encoded, reader: str, read: Read) -> tuple[Stream, np.ndarray, np.ndarray]:
    """A planner's stream; the ticks between updates that it follows, and their first tokens."""
    history, layout = encoded.history, encoded.history.layout
    between = np.zeros(0, np.int32)
    if not layout.planner:
        none = np.zeros((0, 1, history.schema.planner_atoms), np.int32)
        return _stream(none, none, between, np.ones(1, bool), None)[0], between, between
    value, field = (array[0] for array in planner_tokens(history, read.updates, read.previous, reader))
    earlier = _before(read.said, read.updates, value.shape[2])
    if tokens_between(layout):
        reading = np.repeat(np.arange(len(read.updates)), read.updates - read.since - 1)
        between = np.concatenate([between, *(np.arange(a + 1, b, dtype=np.int32) for a, b in zip(read.since, read.updates))])
        earlier = _followed_first(history, reading, between, earlier)
    stream, _, stands = _stream(value, field, read.updates, np.ones(tokens_per_update(layout, reader), bool), earlier)
    if not len(between):
        return stream, between, between
    return stream, between, stands[np.isin(stream.tick[stands], between)][:: tokens_between(layout)]


def _followed_first(history: History, reading: np.ndarray, ticks: np.ndarray, said: _Before | None) -> _Before:
    """What the planner follows at ticks between updates, each reading's before what is said there."""
    tokens = tokens_between(history.layout)
    value, field = (array[0].reshape(-1, array.shape[-1]) for array in between_tokens(history, ticks))
    followed_ = _Before(np.repeat(reading, tokens), np.repeat(ticks, tokens), value, field)
    if said is None:
        return followed_
    both = [np.concatenate(parts) for parts in zip(followed_, said)]
    order = np.argsort(both[0], kind="stable")
    return _Before(*(part[order] for part in both))


def _stream(
    value: np.ndarray, field: np.ndarray, ticks: np.ndarray, lasting: np.ndarray, before: _Before | None
) -> tuple[Stream, np.ndarray, np.ndarray]:
    """The tokens [N, n, K] of N readings in a line, what stands before a reading before its numbers; where each reading's numbers
    begin; and where the tokens before them stand."""
    readings, each, atoms = value.shape
    start = np.arange(readings) * each
    value, field = value.reshape(-1, atoms), field.reshape(-1, atoms)
    tick, lasting = np.repeat(ticks, each).astype(np.int32), np.tile(lasting, readings)
    stands = np.zeros(0, np.int64)
    if before is not None:
        stands = start[before.reading] + np.arange(len(before.reading))
        own = np.ones(len(tick) + len(stands), bool)
        own[stands] = False
        inserted = (value, before.value), (field, before.field), (tick, before.tick), (lasting, True)
        value, field, tick, lasting = (_inserted(own, *both) for both in inserted)
        start = start + np.cumsum(np.bincount(before.reading, minlength=readings))
    return Stream(value, field, tick, np.ones(len(tick), np.int32), lasting), start, stands


def _inserted(own: np.ndarray, values: np.ndarray, before: np.ndarray | bool) -> np.ndarray:
    """Values where `own` has it, what comes before them elsewhere."""
    whole = np.empty((len(own), *values.shape[1:]), values.dtype)
    whole[own], whole[~own] = values, before
    return whole


def _before(said: list[Said], ticks: np.ndarray, atoms: int) -> _Before | None:
    """The tokens of what is said, each alone in its token, for a reader at `ticks`."""
    if not said:
        return None
    reading = np.concatenate([np.full(len(one.value), one.reading) for one in said])
    value, field = np.full((2, len(reading), atoms), EMPTY, np.int32)
    value[:, 0] = np.concatenate([one.value for one in said])
    field[:, 0] = np.concatenate([one.field for one in said])
    return _Before(reading, ticks[reading], value, field)


def _targets(schema: Schema, slot: np.ndarray, label: np.ndarray, codec: Codec) -> Targets:
    label = np.ravel(label).astype(np.int32)
    slot, label = np.ravel(slot).astype(np.int32)[label != EMPTY], label[label != EMPTY]
    limit = id_range(codec, schema.text_pieces)[1]
    return Targets(slot, label, np.full(len(slot), limit, np.int32), np.ones(len(slot), np.float32))
