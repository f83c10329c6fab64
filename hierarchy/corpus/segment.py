"""One window of one episode as its streams see it, under one timeline a link.

    ticks of the episode    0 . . . s . . . a . . . . . b . . . T
    controller                      |lead-in|   loss    |
    planner, if it fits     |updates up to the last one seen|        (to the end, where a sub-goal or text is learnt)
    planner, if not               |lead-in|updates seen |            (from a drawn update on)
    planner_2, which plans for the planner: as the planner, of what the planner's updates in the row see

A tick bears loss only if everything behind its logits is in the row: the controller's lead-in, and for every plan seen there
the planner's. Ticks are the episode's own throughout.

One update's tokens: what the planner follows, at each tick since the update before; images, spoken numbers and words that are
due; one reading of its numbers, what it follows among them. The last of them is where the plan is read.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hierarchy.batch import Above, Patches, Stream, Targets
from hierarchy.corpus.codecs import intervals
from hierarchy.corpus.reading import (
    History,
    Pieces,
    between_tokens,
    controller_tokens,
    encode_rows,
    encode_targets,
    planner_tokens,
    spoken_fields,
    spoken_ids,
    words_read,
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
    Discrete,
    Field,
    Image,
    Layout,
    Piece,
    Schema,
    followed,
    id_range,
    numbers,
    planner_name,
    readers,
    scalars,
    tick_action,
    tokens_between,
    tokens_per_reading,
    tokens_per_update,
    words,
)
from hierarchy.timeline import NO_PLAN, PLAN_READY, Timeline, from_marks, visible

if TYPE_CHECKING:
    from hierarchy.corpus.packing import Packing


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One episode in ids. history: its observations. label: int32 [T, A], sub_goal: int32 [T, G]; EMPTY where there is nothing
    to predict. following: int32 [T, F], classes of the predicted scalars of the tick after. timeline: the one under which it was
    recorded, None where it does not tell. prompt: what is read before it, if anything (`hierarchy.corpus.prompts`)."""

    history: History
    label: np.ndarray
    sub_goal: np.ndarray
    following: np.ndarray
    timeline: Timeline | None
    prompt: "Encoded | None" = None

    @property
    def ticks(self) -> int:
        """T, the number of actions."""
        return len(self.label)


class NoLoss(ValueError):
    """No tick of a window could bear loss."""


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


def draw_window(rng: np.random.Generator, encoded: Encoded, packing: "Packing") -> tuple[int, int]:
    """Returns the loss window [a, b), drawn so that `segment_ticks` give every tick of the episode the same chance.

    The window slides over both ends of the episode, so that those at an end are shorter. An episode that is no longer than
    `segment_ticks` (None: any) is taken whole, or as much of it as a row takes. Where a row does not take `segment_ticks`, the
    window is as long as it does take with a lead-in.
    """
    length, ticks, layout = packing.segment_ticks, encoded.ticks, encoded.history.layout
    each = tokens_per_reading(layout) + layout.action.size - 1
    if length is not None:
        length = max(1, min(length, packing.controller_tokens // each - packing.lead_in))
    if length is not None and length < ticks:
        start = int(rng.integers(1 - length, ticks))
        return max(start, 0), min(start + length, ticks)
    readings = ticks if layout.chunk == 1 else -(-ticks // layout.chunk) + 1
    spoken = _words(encoded, "controller", np.arange(ticks), packing.controller_reread)
    if each * readings + sum(len(said.value) for said in spoken) <= packing.controller_tokens:
        return 0, ticks
    most = packing.controller_tokens // each * layout.chunk
    start = max(0, int(rng.integers(1 - max(1, min(most - packing.lead_in, ticks - 1)), ticks)))
    return start, min(start + most, ticks)


def cut(
    rng: np.random.Generator,
    encoded: Encoded,
    timeline: Timeline,
    window: tuple[int, int],
    packing: "Packing",
    above: Sequence[Timeline] = (),
) -> Segment:
    """Returns the segment whose ticks [a, b) bear loss, b brought down until the controller's tokens fit its stream.

    above: the timelines of the planners above the planner, the nearest first.

    What is EMPTY in a label is no target and, within its tick, no token: later elements do not see one in its place.
    A tick whose visible plan is of an update before the row's first has plan and age -1 as if there were none, and weight 0,
    as has every tick that would attend to it; ticks that truly have no plan bear loss.

    Raises:
        NoLoss: no tick of the window could bear loss within the budgets; says which one to raise. A ValueError, as where not even
            one update fits.
    """
    layout = encoded.history.layout
    if not len(above) == len(packing.above) == len(layout.above):
        raise ValueError(
            f"layout {layout.name!r} has {len(layout.above)} planners above the planner; there are {len(above)} timelines and "
            f"{len(packing.above)} budgets for them"
        )
    readings = np.arange(window[1], dtype=np.int32)
    if layout.chunk > 1:
        readings = timeline.observed[timeline.observed < window[1]]
    # The reading that acts at the window's first tick.
    start = readings[np.searchsorted(readings, window[0], side="right") - 1]
    first = int(np.searchsorted(readings, start - packing.lead_in))
    controller, last, shown = _controller(encoded, readings, first, packing)
    begin, ticks = readings[first], readings[first : first + len(last)]
    if not len(ticks) or ticks[-1] < start:
        raise ValueError(
            f"layout {layout.name!r}: no tick fits after a lead-in of {start - begin} ticks in "
            f"{packing.controller_tokens} controller tokens: raise controller_tokens"
        )
    seen = visible(timeline, ticks) if layout.planner else np.full(len(ticks), NO_PLAN, np.int32)
    room = _Room(packing.planner_tokens, packing.planner_lead_in, packing.planner_reread, "planner_tokens")
    planner, span, seen_by_planner = _planner(rng, encoded, "planner", timeline, seen, room)
    over, sound = _above(rng, encoded, 2, timeline, span, planner, room.lead_in, above, packing)
    span = span._replace(sound=max(span.sound, sound))
    bears = (ticks >= start) & _complete(seen, span.sound, packing.lead_in)
    if not bears.any():
        raise NoLoss(
            f"layout {layout.name!r}: no tick of [{window[0]}, {window[1]}) has its plans' lead-in of "
            f"{packing.planner_lead_in} ticks in {packing.planner_tokens} planner tokens: raise planner_tokens or the ratios"
        )
    used, plan, age = _plans(timeline, ticks, seen, span)
    schema, own = encoded.history.schema, HEADS[type(layout.action.codec)]
    slots = last[bears, None] + np.arange(layout.action.size)
    action = _targets(schema, slots, encoded.label[ticks[bears]], layout.action.codec)
    heads = dict.fromkeys(HEADS.values(), NOTHING) | {own: action}
    places = rng if packing.draw_places else None
    return Segment(
        controller,
        planner,
        plan_slot=used,
        plan=plan[np.searchsorted(ticks, controller.tick)],
        age=age[np.searchsorted(ticks, controller.tick)],
        **heads,
        sub_goal=_sub_goals(encoded, timeline, span, last[bears], ticks[bears]),
        planner_text=_next_pieces(encoded, timeline, span),
        patches=_patches(schema, places, *((planner, seen_by_planner) if layout.planner else (controller, shown))),
        following=_following(encoded, last[bears], ticks[bears]),
        lifetime=_lifetimes(encoded, timeline, span),
        needed=int(span.last[seen[-1] - span.first]) + 1 if seen[-1] != NO_PLAN else 0,
        ticks=int((encoded.label[ticks[bears]] != EMPTY).any(axis=1).sum()),
        above=over,
    )


def trim(segment: Segment) -> Segment:
    """Returns the segment without the planner tokens that no tick sees, and above without those that then no update sees."""
    planner = Stream(*(array[: segment.needed] for array in segment.planner))
    if len(segment.planner.tick) == segment.needed:
        return segment
    above, below = [], segment.needed
    for stream, plan_slot, plan, age in segment.above:
        plan, age = plan[:below], age[:below]
        plan_slot = plan_slot[: plan.max(initial=-1) + 1]
        below = plan_slot.max(initial=-1) + 1
        above.append(Above(Stream(*(array[:below] for array in stream)), plan_slot, plan, age))

    def within(part):
        kept = part.slot < segment.needed
        return type(part)(*(array[kept] for array in part))

    names = ("sub_goal", "planner_text", "patches", "lifetime")
    return segment._replace(planner=planner, above=tuple(above), **{name: within(getattr(segment, name)) for name in names})


class _Span(NamedTuple):
    """Updates [first, stop) are in the row, those from `sound` on with their lead-in. last: int [stop - first], last tokens.
    between, between_slot: int [M], the ticks between updates that the planner followed, and their first tokens."""

    first: int
    stop: int
    sound: int
    last: np.ndarray
    between: np.ndarray
    between_slot: np.ndarray


class _Room(NamedTuple):
    """What a planner's stream of a row has room for, the ticks of its lead-in and until words are read again; and the name of
    its budget of tokens."""

    tokens: int
    lead_in: int
    reread: int
    name: str


class _Said(NamedTuple):
    """What one reading holds of one spoken field: ids, their field ids, and of an image its codec and patches."""

    reading: int
    value: list[int]
    field: list[int]
    shown: tuple[Image, np.ndarray] | None


class _Before(NamedTuple):
    """M tokens that stand before readings, in order: the index of the reading [M], the tick [M], value and field [M, K]."""

    reading: np.ndarray
    tick: np.ndarray
    value: np.ndarray
    field: np.ndarray


HEADS = {Bounded: "continuous", Discrete: "discrete", Piece: "text"}
"""The head of an action by its codec."""

NOTHING = Targets(*(np.zeros(0, np.int32) for _ in range(3)), np.zeros(0, np.float32))


def _plans(timeline: Timeline, ticks: np.ndarray, seen: np.ndarray, span: _Span) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The slots of the plans that are seen; and for each tick the index of its own among them and its age."""
    shown = np.where(seen >= span.first, seen, NO_PLAN)
    used = np.unique(shown[shown != NO_PLAN])
    plan = np.where(shown == NO_PLAN, -1, np.searchsorted(used, shown))
    age = np.where(shown == NO_PLAN, -1, ticks - np.append(timeline.observed, 0)[shown])
    return span.last[used - span.first].astype(np.int32), plan.astype(np.int32), age.astype(np.int32)


def _sub_goals(encoded: Encoded, timeline: Timeline, span: _Span, last: np.ndarray, ticks: np.ndarray) -> Targets:
    """At every update with its lead-in; without a planner at the last observation tokens of the ticks that bear loss."""
    layout = encoded.history.layout
    if not layout.sub_goal:
        return NOTHING
    if layout.planner:
        updates = np.arange(span.sound, span.stop)
        last, ticks = span.last[updates - span.first], timeline.observed[updates]
    schema = encoded.history.schema
    each = [_targets(schema, last, encoded.sub_goal[ticks, g], goal.codec) for g, goal in enumerate(layout.sub_goal)]
    return Targets(*(np.concatenate(parts) for parts in zip(*each)))


def _following(encoded: Encoded, last: np.ndarray, ticks: np.ndarray) -> Targets:
    """At the last observation token of every tick that bears loss, one target a predicted scalar."""
    history = encoded.history
    limit = np.array([classes for _, classes in history.schema.predictions(history.layout.name)], np.int32)
    slot = np.repeat(last, len(limit)).astype(np.int32)
    return Targets(slot, encoded.following[ticks].ravel(), np.tile(limit, len(last)), np.ones(len(slot), np.float32))


def _lifetimes(encoded: Encoded, timeline: Timeline, span: _Span) -> Targets:
    """At every update with its lead-in."""
    if not encoded.history.layout.lifetime:
        return NOTHING
    updates = np.arange(span.sound, span.stop)
    label = lives(encoded.sub_goal[:, 0])[timeline.observed[updates]]
    slot, label = span.last[updates - span.first].astype(np.int32)[label != EMPTY], label[label != EMPTY]
    return Targets(slot, label, np.full(len(slot), len(LIVES), np.int32), np.ones(len(slot), np.float32))


def _next_pieces(encoded: Encoded, timeline: Timeline, span: _Span) -> Targets:
    """The piece after each one that the planner follows, from the first update with its lead-in on."""
    layout, label = encoded.history.layout, encoded.label
    read = numbers(layout.planner)
    at = [field.name for field in read].index(PREVIOUS_ACTION) if _says(layout) else -1
    if at < 0 or span.first == span.stop:
        return NOTHING
    start = span.last - tokens_per_update(layout) + 1 + scalars(read[:at])
    ticks = np.concatenate([timeline.observed[span.first : span.stop], span.between])
    slots = np.concatenate([start, span.between_slot + scalars(followed(read[:at]))])
    order = np.argsort(slots)
    begin = timeline.observed[span.sound] if span.sound < span.stop else np.inf
    order = order[ticks[order] >= (0 if span.first == 0 else begin)]
    ticks, slots = ticks[order], slots[order]
    # The pieces read at a tick are those of the tick before; the last of them predicts the first of this one.
    before = np.where(ticks[:, None] > 0, label[ticks - 1], EMPTY)
    following = np.concatenate([before[:, 1:], label[ticks, :1]], axis=1)
    return _targets(encoded.history.schema, slots[:, None] + np.arange(layout.action.size), following, layout.action.codec)


def _says(layout: Layout) -> bool:
    """Whether the planner follows text that is said piece by piece, each a token of its own."""
    return isinstance(layout.action.codec, Piece) and not layout.pooled and PREVIOUS_ACTION in _names(followed(layout.planner))


def _names(fields: tuple[Field, ...]) -> list[str]:
    return [field.name for field in fields]


def _patches(schema: Schema, places: np.random.Generator | None, stream: Stream, said: list[_Said]) -> Patches:
    """The patches of a stream's images, each at a place drawn within its own interval, or at the mean."""
    shown = [one.shown for one in said if one.shown is not None]
    slot = np.flatnonzero(stream.value[:, 0] == PATCH).astype(np.int32)
    none = np.zeros((0, schema.patch_values), np.uint8), np.zeros(0, np.int32), np.zeros(0, np.int32)
    parts = [none] + [(pixels, *intervals(codec, places)) for codec, pixels in shown]
    # The stream may have been cut off within an image.
    return Patches(*(np.concatenate(part)[: len(slot)] for part in zip(*parts)), slot)


def _controller(encoded: Encoded, readings: np.ndarray, begin: int, packing: "Packing") -> tuple[Stream, np.ndarray, list[_Said]]:
    """The stream of the readings from `begin` on that fit, the last observation token of each, and what is said in it."""
    history, layout, ticks = encoded.history, encoded.history.layout, readings[begin:]
    previous = np.concatenate([[-1], readings])[begin:-1]
    value, field = (array[0] for array in controller_tokens(history, ticks, previous))
    elements = layout.action.size - 1
    if elements:
        ids, spare = np.full((2, len(ticks), elements, value.shape[2]), EMPTY, np.int32)
        ids[:, :, 0] = ASKED if layout.at_once else encoded.label[ticks, :elements]
        first = history.field_ids["action", layout.action.name]
        spare[:, :, 0] = np.where(ids[:, :, 0] == EMPTY, EMPTY, first + np.arange(elements))
        value, field = np.concatenate([value, ids], axis=1), np.concatenate([field, spare], axis=1)
    lasting = np.arange(value.shape[1]) < value.shape[1] - elements
    said = []
    if words(layout.controller):
        said = _words(encoded, "controller", readings, packing.controller_reread)
        said = [one._replace(reading=one.reading - begin) for one in said if one.reading >= begin]
    stream, start, _ = _stream(value, field, ticks, lasting, _before(said, ticks, value.shape[2]))
    fits = int(np.searchsorted(start + value.shape[1], packing.controller_tokens, side="right"))
    if fits < len(ticks):
        tokens = start[fits - 1] + value.shape[1] if fits else 0
        stream = Stream(*(array[:tokens] for array in stream))
    return stream, start[:fits] + tokens_per_reading(layout) - 1, said


def _above(
    rng: np.random.Generator,
    encoded: Encoded,
    level: int,
    timeline: Timeline,
    span: _Span,
    below: Stream,
    lead_in: int,
    above: Sequence[Timeline],
    packing: "Packing",
) -> tuple[tuple[Above, ...], int]:
    """The planners from `level` up, the nearest first, and the first update of the planner below that sees sound plans alone.

    timeline, span, below, lead_in: the planner's below, which sees the plans made here.
    """
    if not above:
        return (), span.first
    budget = packing.above[level - 2]
    updates = timeline.observed[span.first : span.stop]
    seen = visible(above[0], updates)
    room = _Room(budget.tokens, budget.lead_in, budget.reread, f"the tokens of {planner_name(level)}")
    shown = seen if len(seen) else np.full(1, NO_PLAN)
    stream, own, _ = _planner(rng, encoded, planner_name(level), above[0], shown, room)
    further, sound = _above(rng, encoded, level + 1, above[0], own, stream, room.lead_in, above[1:], packing)
    own = own._replace(sound=max(own.sound, sound))
    slots, plan, age = _plans(above[0], updates, seen, own)
    broken = updates[(seen != NO_PLAN) & (seen < own.sound)]
    first = span.first + int(np.searchsorted(updates, broken[-1] + lead_in, side="right")) if len(broken) else span.first
    token = np.searchsorted(updates, below.tick)
    return (Above(stream, slots, plan[token], age[token]), *further), first


def _planner(
    rng: np.random.Generator, encoded: Encoded, reader: str, timeline: Timeline, seen: np.ndarray, room: _Room
) -> tuple[Stream, _Span, list[_Said]]:
    """The stream of a planner's updates of which some are seen, which they are, and what is said in it."""
    history, layout = encoded.history, encoded.history.layout
    nowhere = np.zeros(0, np.int32)
    if not layout.planner:
        none = np.zeros((0, 1, history.schema.planner_atoms), np.int32)
        stream, start, _ = _stream(none, none, nowhere, np.ones(1, bool), None)
        return stream, _Span(0, 0, 0, start, nowhere, nowhere), []
    observed = timeline.observed[timeline.observed < encoded.ticks]
    previous = np.concatenate([[-1], observed])[:-1].astype(np.int32)
    said = _words(encoded, reader, observed, room.reread)
    each = tokens_per_update(layout, reader) + tokens_between(layout) * (observed - previous - 1)
    for one in said:
        each[one.reading] += len(one.value)
    before = np.concatenate([[0], np.cumsum(each)])
    whole = reader == "planner" and (bool(layout.sub_goal) or _says(layout))
    first, stop, sound = _updates(rng, before, observed, seen, room, whole)
    since = previous[first:stop].copy()
    spare = room.tokens - (before[stop] - before[first])
    if tokens_between(layout) and first > max(int(seen[0]), 0):
        # The update before has room for its own tokens, and for the newest of the ticks that it follows.
        spare -= each[first - 1] - tokens_between(layout) * (observed[first - 1] - previous[first - 1] - 1)
        if spare >= 0:
            first -= 1
            since = np.concatenate([[observed[first] - 1 - spare // tokens_between(layout)], since])
    if tokens_between(layout) and first:
        # The lead-in counts from the first tick that is read, which is before the first update.
        sound = min(int(np.searchsorted(observed, since[:1] + 1 + room.lead_in)[0]), stop) if len(since) else stop
    if first == stop > 0:
        raise ValueError(
            f"layout {layout.name!r}: update {stop - 1} alone has {each[stop - 1]} tokens, and a row has "
            f"{room.tokens}: raise {room.name}"
        )
    updates = observed[first:stop]
    value, field = (array[0] for array in planner_tokens(history, updates, previous[first:stop], reader))
    said = [one._replace(reading=one.reading - first) for one in said if first <= one.reading < stop]
    earlier, between = _before(said, updates, value.shape[2]), nowhere
    if tokens_between(layout):
        reading = np.repeat(np.arange(len(updates)), updates - since - 1)
        between = np.concatenate([nowhere, *(np.arange(a + 1, b, dtype=np.int32) for a, b in zip(since, updates))])
        earlier = _followed_first(history, reading, between, earlier)
    stream, start, stands = _stream(value, field, updates, np.ones(tokens_per_update(layout, reader), bool), earlier)
    own = np.flatnonzero(np.isin(stream.tick[stands], updates, invert=True))[:: max(tokens_between(layout), 1)]
    return stream, _Span(first, stop, sound, start + tokens_per_update(layout, reader) - 1, between, stands[own]), said


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


def _updates(
    rng: np.random.Generator, before: np.ndarray, observed: np.ndarray, seen: np.ndarray, room: _Room, whole: bool
) -> tuple[int, int, int]:
    """Returns which updates [first, stop) to read, and the first whose lead-in is there. before: tokens before each update.
    whole: all of them are wanted, if they fit."""
    if whole and before[-1] <= room.tokens:
        return 0, len(observed), 0
    stop = int(seen[-1]) + 1
    if before[stop] <= room.tokens:
        return 0, stop, 0
    earliest = int(np.searchsorted(before, before[stop] - room.tokens))
    latest = int(np.searchsorted(observed, observed[max(seen[0], 0)] - room.lead_in, side="right")) - 1
    first = int(rng.integers(earliest, latest + 1)) if latest > earliest else earliest
    sound = int(np.searchsorted(observed, observed[min(first, stop - 1)] + room.lead_in))
    return first, stop, min(sound, stop)


def _complete(seen: np.ndarray, sound: int, lead_in: int) -> np.ndarray:
    """Returns whether each tick and those within the lead-in before it all see a plan with its own lead-in, or truly none."""
    position = np.arange(len(seen))
    broken = np.maximum.accumulate(np.where((seen == NO_PLAN) | (seen >= sound), -lead_in - 1, position))
    return position - broken > lead_in


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
        at = start[before.reading]
        stands = at + np.arange(len(at))
        value, field = np.insert(value, at, before.value, axis=0), np.insert(field, at, before.field, axis=0)
        tick, lasting = np.insert(tick, at, before.tick), np.insert(lasting, at, True)
        start = start + np.cumsum(np.bincount(before.reading, minlength=readings))
    return Stream(value, field, tick, np.ones(len(tick), np.int32), lasting), start, stands


def _before(said: list[_Said], ticks: np.ndarray, atoms: int) -> _Before | None:
    """The tokens of what is said, each alone in its token, for a reader at `ticks`."""
    if not said:
        return None
    reading = np.concatenate([np.full(len(one.value), one.reading) for one in said])
    value, field = np.full((2, len(reading), atoms), EMPTY, np.int32)
    value[:, 0] = np.concatenate([one.value for one in said])
    field[:, 0] = np.concatenate([one.field for one in said])
    return _Before(reading, ticks[reading], value, field)


def _words(encoded: Encoded, reader: str, ticks: np.ndarray, reread: int) -> list[_Said]:
    """Returns what a reader at `ticks` reads of its spoken fields, in order."""
    history, said = encoded.history, []
    for field in words(readers(history.layout)[reader]):
        changes, first = history.spoken[field.name][0], history.field_ids[reader, field.name]
        for reading, wording in words_read([tick for tick, _ in changes], ticks, reread):
            what = changes[wording][1]
            shown = (field.codec, what) if isinstance(field.codec, Image) else None
            if len(what):
                said.append(_Said(reading, spoken_ids(field, what), spoken_fields(field, first, what), shown))
    return sorted(said, key=lambda one: one.reading)


def _targets(schema: Schema, slot: np.ndarray, label: np.ndarray, codec: Codec) -> Targets:
    label = np.ravel(label).astype(np.int32)
    slot, label = np.ravel(slot).astype(np.int32)[label != EMPTY], label[label != EMPTY]
    limit = id_range(codec, schema.text_pieces)[1]
    return Targets(slot, label, np.full(len(slot), limit, np.int32), np.ones(len(slot), np.float32))
