"""One window of one episode as the two streams see it, under one timeline.

    ticks of the episode    0 . . . s . . . a . . . . . b . . . T
    controller                      |lead-in|   loss    |
    planner, if it fits     |updates up to the last one seen|        (to the end, where a sub-goal is learnt)
    planner, if not               |lead-in|updates seen |            (from a drawn update on)

A tick bears loss only if everything behind its logits is in the row: the controller's lead-in, and for every plan seen there
the planner's. Ticks are the episode's own throughout.
"""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hierarchy.batch import Stream, Targets
from hierarchy.corpus.reading import History, Pieces, controller_tokens, encode_targets, planner_tokens, spoken_fields, words_read
from hierarchy.episode import Episode
from hierarchy.layout import EMPTY, Bounded, Codec, Schema, id_range, tick_action, tokens_per_reading, tokens_per_update, words
from hierarchy.timeline import NO_PLAN, Timeline, visible

if TYPE_CHECKING:
    from hierarchy.corpus.packing import Packing


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One episode in ids. history: its observations. label: int32 [T, A], sub_goal: int32 [T, G]; EMPTY where there is nothing
    to predict."""

    history: History
    label: np.ndarray
    sub_goal: np.ndarray

    @property
    def ticks(self) -> int:
        """T, the number of actions."""
        return len(self.label)


class Segment(NamedTuple):
    """One segment before it has a row: `Batch`'s arrays with slots counted from its own first tokens, and no padding.

    needed: planner tokens up to the last update that is seen; those after it serve the sub-goal alone. ticks: those with loss.
    """

    controller: Stream
    planner: Stream
    plan_slot: np.ndarray
    plan: np.ndarray
    age: np.ndarray
    continuous: Targets
    discrete: Targets
    sub_goal: Targets
    needed: int
    ticks: int


def encode_episode(schema: Schema, name: str, episode: Episode, tokenizer: Pieces | None = None) -> Encoded:
    """Returns the episode in the ids of layout `name`.

    Raises:
        ValueError: a field is missing, has another size, or a value that its codec refuses: names layout, field and tick.
    """
    layout = schema[name]
    history = History.from_episode(schema, name, episode, tokenizer)
    label = encode_targets(tick_action(layout), episode.label, f"layout {name!r}, label")
    label = look_ahead(label, layout.late, layout.chunk)
    sub_goals = [np.zeros((episode.ticks, 0), np.int32)]
    for goal in layout.sub_goal:
        if goal.name not in episode.privileged:
            raise ValueError(f"layout {name!r}: no privileged {goal.name!r}; there are {sorted(episode.privileged)}")
        sub_goals.append(encode_targets(goal, episode.privileged[goal.name], f"layout {name!r}, privileged {goal.name!r}"))
    return Encoded(history, label, np.concatenate(sub_goals, axis=1))


def look_ahead(label: np.ndarray, late: int, chunk: int) -> np.ndarray:
    """Returns int32 [T, chunk * A] from [T, A]: at tick t the labels of ticks t + late on, EMPTY past the episode's end."""
    beyond = np.full((late + chunk - 1, label.shape[1]), EMPTY, label.dtype)
    ticks = np.arange(len(label))[:, None] + late + np.arange(chunk)
    return np.concatenate([label, beyond])[ticks].reshape(len(label), -1)


def draw_window(rng: np.random.Generator, encoded: Encoded, packing: "Packing") -> tuple[int, int]:
    """Returns the loss window [a, b), drawn so that `segment_ticks` give every tick of the episode the same chance.

    The window slides over both ends of the episode, so that those at an end are shorter. An episode that is no longer than
    `segment_ticks` (None: any) is taken whole, or as much of it as a row takes.
    """
    length, ticks, layout = packing.segment_ticks, encoded.ticks, encoded.history.layout
    if length is not None and length < ticks:
        start = int(rng.integers(1 - length, ticks))
        return max(start, 0), min(start + length, ticks)
    each = tokens_per_reading(layout) + layout.action.size - 1
    readings = ticks if layout.chunk == 1 else -(-ticks // layout.chunk) + 1
    spoken = _words(encoded, "controller", np.arange(ticks), packing.controller_reread)
    if each * readings + sum(len(pieces) for _, pieces, _ in spoken) <= packing.controller_tokens:
        return 0, ticks
    most = packing.controller_tokens // each * layout.chunk
    start = max(0, int(rng.integers(1 - max(1, min(most - packing.lead_in, ticks - 1)), ticks)))
    return start, min(start + most, ticks)


def cut(rng: np.random.Generator, encoded: Encoded, timeline: Timeline, window: tuple[int, int], packing: "Packing") -> Segment:
    """Returns the segment whose ticks [a, b) bear loss, b brought down until the controller's tokens fit its stream.

    What is EMPTY in a label is no target and, within its tick, no token: later elements do not see one in its place.
    A tick whose visible plan is of an update before the row's first has plan and age -1 as if there were none, and weight 0,
    as has every tick that would attend to it; ticks that truly have no plan bear loss.

    Raises:
        ValueError: no tick could bear loss within the budgets; says which one to raise.
    """
    layout = encoded.history.layout
    readings = np.arange(window[1], dtype=np.int32)
    if layout.chunk > 1:
        readings = timeline.observed[timeline.observed < window[1]]
    # The reading that acts at the window's first tick.
    start = readings[np.searchsorted(readings, window[0], side="right") - 1]
    first = int(np.searchsorted(readings, start - packing.lead_in))
    controller, last = _controller(encoded, readings, first, packing)
    begin, ticks = readings[first], readings[first : first + len(last)]
    if not len(ticks) or ticks[-1] < start:
        raise ValueError(
            f"layout {layout.name!r}: no tick fits after a lead-in of {start - begin} ticks in "
            f"{packing.controller_tokens} controller tokens: raise controller_tokens"
        )
    seen = visible(timeline, ticks) if layout.planner else np.full(len(ticks), NO_PLAN, np.int32)
    planner, span = _planner(rng, encoded, timeline, seen, packing)
    bears = (ticks >= start) & _complete(seen, span.sound, packing.lead_in)
    if not bears.any():
        raise ValueError(
            f"layout {layout.name!r}: no tick of [{window[0]}, {window[1]}) has its plans' lead-in of "
            f"{packing.planner_lead_in} ticks in {packing.planner_tokens} planner tokens: raise planner_tokens or the ratios"
        )
    used, plan, age = _plans(timeline, ticks, seen, span)
    action = _targets(last[bears, None] + np.arange(layout.action.size), encoded.label[ticks[bears]], layout.action.codec)
    bounded = isinstance(layout.action.codec, Bounded)
    return Segment(
        controller,
        planner,
        plan_slot=used,
        plan=plan[np.searchsorted(ticks, controller.tick)],
        age=age[np.searchsorted(ticks, controller.tick)],
        continuous=action if bounded else NOTHING,
        discrete=NOTHING if bounded else action,
        sub_goal=_sub_goals(encoded, timeline, span, last[bears], ticks[bears]),
        needed=int(span.last[seen[-1] - span.first]) + 1 if seen[-1] != NO_PLAN else 0,
        ticks=int((encoded.label[ticks[bears]] != EMPTY).any(axis=1).sum()),
    )


def trim(segment: Segment) -> Segment:
    """Returns the segment without the planner tokens that no tick sees."""
    planner = Stream(*(array[: segment.needed] for array in segment.planner))
    if len(segment.planner.tick) == segment.needed:
        return segment
    kept = segment.sub_goal.slot < segment.needed
    return segment._replace(planner=planner, sub_goal=Targets(*(array[kept] for array in segment.sub_goal)))


class _Span(NamedTuple):
    """Updates [first, stop) are in the row, those from `sound` on with their lead-in. last: int [stop - first], last tokens."""

    first: int
    stop: int
    sound: int
    last: np.ndarray


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
    each = [_targets(last, encoded.sub_goal[ticks, g], goal.codec) for g, goal in enumerate(layout.sub_goal)]
    return Targets(*(np.concatenate(parts) for parts in zip(*each)))


def _controller(encoded: Encoded, readings: np.ndarray, begin: int, packing: "Packing") -> tuple[Stream, np.ndarray]:
    """The stream of the readings from `begin` on that fit, and the last observation token of each."""
    history, layout, ticks = encoded.history, encoded.history.layout, readings[begin:]
    previous = np.concatenate([[-1], readings])[begin:-1]
    value, field = (array[0] for array in controller_tokens(history, ticks, previous))
    elements = layout.action.size - 1
    if elements:
        ids, spare = np.full((2, len(ticks), elements, value.shape[2]), EMPTY, np.int32)
        ids[:, :, 0] = encoded.label[ticks, :elements]
        first = history.field_ids["action", layout.action.name]
        spare[:, :, 0] = np.where(ids[:, :, 0] == EMPTY, EMPTY, first + np.arange(elements))
        value, field = np.concatenate([value, ids], axis=1), np.concatenate([field, spare], axis=1)
    lasting = np.arange(value.shape[1]) < value.shape[1] - elements
    spoken = []
    if words(layout.controller):
        spoken = _words(encoded, "controller", readings, packing.controller_reread)
        spoken = [(reading - begin, pieces, name) for reading, pieces, name in spoken if reading >= begin]
    stream, start = _stream(value, field, ticks, lasting, spoken)
    fits = int(np.searchsorted(start + value.shape[1], packing.controller_tokens, side="right"))
    if fits < len(ticks):
        tokens = start[fits - 1] + value.shape[1] if fits else 0
        stream = Stream(*(array[:tokens] for array in stream))
    return stream, start[:fits] + tokens_per_reading(layout) - 1


def _planner(
    rng: np.random.Generator, encoded: Encoded, timeline: Timeline, seen: np.ndarray, packing: "Packing"
) -> tuple[Stream, _Span]:
    layout = encoded.history.layout
    if not layout.planner:
        none = np.zeros((0, 1, encoded.history.schema.planner_atoms), np.int32)
        stream, start = _stream(none, none, np.zeros(0, np.int32), np.ones(1, bool), [])
        return stream, _Span(0, 0, 0, start)
    observed = timeline.observed[timeline.observed < encoded.ticks]
    spoken = _words(encoded, "planner", observed, packing.planner_reread)
    each = np.full(len(observed), tokens_per_update(layout))
    for update, pieces, _ in spoken:
        each[update] += len(pieces)
    before = np.concatenate([[0], np.cumsum(each)])
    first, stop, sound = _updates(rng, before, observed, seen, packing, bool(layout.sub_goal))
    if first == stop > 0:
        raise ValueError(
            f"layout {layout.name!r}: update {stop - 1} alone has {each[stop - 1]} tokens, and a row has "
            f"{packing.planner_tokens}: raise planner_tokens"
        )
    updates = observed[first:stop]
    value, field = planner_tokens(encoded.history, updates, np.concatenate([[-1], observed])[first:stop])
    spoken = [(update - first, pieces, name) for update, pieces, name in spoken if first <= update < stop]
    stream, start = _stream(value[0], field[0], updates, np.ones(tokens_per_update(layout), bool), spoken)
    return stream, _Span(first, stop, sound, start + tokens_per_update(layout) - 1)


def _updates(
    rng: np.random.Generator, before: np.ndarray, observed: np.ndarray, seen: np.ndarray, packing: "Packing", sub_goal: bool
) -> tuple[int, int, int]:
    """Returns which updates [first, stop) to read, and the first whose lead-in is there. before: tokens before each update."""
    room = packing.planner_tokens
    if sub_goal and before[-1] <= room:
        return 0, len(observed), 0
    stop = int(seen[-1]) + 1
    if before[stop] <= room:
        return 0, stop, 0
    earliest = int(np.searchsorted(before, before[stop] - room))
    latest = int(np.searchsorted(observed, observed[max(seen[0], 0)] - packing.planner_lead_in, side="right")) - 1
    first = int(rng.integers(earliest, latest + 1)) if latest > earliest else earliest
    sound = int(np.searchsorted(observed, observed[min(first, stop - 1)] + packing.planner_lead_in))
    return first, stop, min(sound, stop)


def _complete(seen: np.ndarray, sound: int, lead_in: int) -> np.ndarray:
    """Returns whether each tick and those within the lead-in before it all see a plan with its own lead-in, or truly none."""
    position = np.arange(len(seen))
    broken = np.maximum.accumulate(np.where((seen == NO_PLAN) | (seen >= sound), -lead_in - 1, position))
    return position - broken > lead_in


def _stream(
    value: np.ndarray, field: np.ndarray, ticks: np.ndarray, lasting: np.ndarray, spoken: list[tuple[int, list[int], list[int]]]
) -> tuple[Stream, np.ndarray]:
    """The tokens [N, n, K] of N readings in a line, words before their reading's numbers; and where each one's numbers begin."""
    readings, each, atoms = value.shape
    start = np.arange(readings) * each
    value, field = value.reshape(-1, atoms), field.reshape(-1, atoms)
    tick, lasting = np.repeat(ticks, each).astype(np.int32), np.tile(lasting, readings)
    if spoken:
        reading = np.concatenate([np.full(len(pieces), at) for at, pieces, _ in spoken])
        said, named = np.full((2, len(reading), atoms), EMPTY, np.int32)
        said[:, 0] = np.concatenate([pieces for _, pieces, _ in spoken])
        named[:, 0] = np.concatenate([fields for _, _, fields in spoken])
        at = start[reading]
        value, field = np.insert(value, at, said, axis=0), np.insert(field, at, named, axis=0)
        tick, lasting = np.insert(tick, at, ticks[reading]), np.insert(lasting, at, True)
        start = start + np.cumsum(np.bincount(reading, minlength=readings))
    return Stream(value, field, tick, np.ones(len(tick), np.int32), lasting), start


def _words(encoded: Encoded, reader: str, ticks: np.ndarray, reread: int) -> list[tuple[int, list[int], list[int]]]:
    """Returns (reading, ids, field ids) of all words that a reader at `ticks` reads, in order."""
    history = encoded.history
    fields = words(getattr(history.layout, reader))
    if not fields:
        return []
    spoken = []
    for field in fields:
        changes = history.spoken[field.name][0]
        due = words_read([tick for tick, _ in changes], ticks, reread)
        spoken += [
            (reading, changes[wording][1], spoken_fields(field, history.field_ids[reader, field.name], changes[wording][1]))
            for reading, wording in due
            if changes[wording][1]
        ]
    return sorted(spoken, key=lambda words_of_one: words_of_one[0])


def _targets(slot: np.ndarray, label: np.ndarray, codec: Codec) -> Targets:
    label = np.ravel(label).astype(np.int32)
    slot, label = np.ravel(slot).astype(np.int32)[label != EMPTY], label[label != EMPTY]
    return Targets(slot, label, np.full(len(slot), id_range(codec, 0)[1], np.int32), np.ones(len(slot), np.float32))
