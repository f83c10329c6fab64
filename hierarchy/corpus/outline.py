"""What one window of one episode will hold under one timeline a link, and how much of a row it takes, before its arrays are made.

    ticks of the episode    0 . . . s . . . a . . . . . b . . . T
    controller                      |lead-in|   loss    |
    planner, if it fits     |updates up to the last one seen|        (to the end, where a sub-goal or text is learnt)
    planner, if not               |lead-in|updates seen |            (from a drawn update on)
    planner_2, which plans for the planner: as the planner, of what the planner's updates in the row see

A tick bears loss only if everything behind its logits is in the row: the controller's lead-in, and for every plan seen there
the planner's. Ticks are the episode's own throughout.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.reading import Encoded, spoken_fields, spoken_ids, words_read
from hierarchy.layout import (
    EMPTY,
    PREVIOUS_ACTION,
    Bounded,
    Discrete,
    Image,
    Layout,
    Piece,
    followed,
    planner_name,
    readers,
    tokens_between,
    tokens_per_reading,
    tokens_per_update,
    words,
)
from hierarchy.timeline import NO_PLAN, Timeline, visible

HEADS = {Bounded: "continuous", Discrete: "discrete", Piece: "text"}
"""The head of an action by its codec."""

TAKEN = (
    "controller",
    "planner",
    "plans",
    "continuous",
    "discrete",
    "text",
    "sub_goal",
    "planner_text",
    "patches",
    "following",
    "lifetime",
)
"""What a segment takes of a row: tokens of both streams, plans, and targets by their head."""


class NoLoss(ValueError):
    """No tick of a window could bear loss."""


class Said(NamedTuple):
    """What one reading holds of one spoken field: ids, their field ids, and of an image its codec and patches."""

    reading: int
    value: list[int]
    field: list[int]
    shown: tuple[Image, np.ndarray] | None


class Heard(NamedTuple):
    """What the controller reads. previous: [N], the reading before each. said: what is spoken, by reading. last: int [N], last
    observation tokens. tokens: all of them."""

    previous: np.ndarray
    said: list[Said]
    last: np.ndarray
    tokens: int


class Read(NamedTuple):
    """What a planner reads: updates [first, stop), those from `sound` on with their lead-in.

    updates, previous: int [stop - first], their ticks and those of the updates before them. since: the tick after which each
    reads what it follows. said: what is spoken, by update. last: the updates' last tokens.
    """

    first: int
    stop: int
    sound: int
    updates: np.ndarray
    previous: np.ndarray
    since: np.ndarray
    said: list[Said]
    last: np.ndarray

    @property
    def tokens(self) -> int:
        """All of its tokens."""
        return int(self.last[-1]) + 1 if len(self.last) else 0

    def until(self, count: int) -> "Read":
        """Returns the first `count` updates of these."""
        arrays = {name: getattr(self, name)[:count] for name in ("updates", "previous", "since", "last")}
        said = [one for one in self.said if one.reading < count]
        return self._replace(stop=self.first + count, said=said, **arrays)


class Over(NamedTuple):
    """What a planner above reads under its timeline. updates, seen: those of the planner below, and the plans that they see."""

    timeline: Timeline
    read: Read
    updates: np.ndarray
    seen: np.ndarray

    @property
    def plans(self) -> int:
        """How many plans the updates below see."""
        return distinct(self.seen[np.searchsorted(self.seen, max(self.read.first, 0)) :])


class _Room(NamedTuple):
    """What a planner's stream of a row has room for, the ticks of its lead-in and until words are read again; and the name of
    its budget of tokens."""

    tokens: int
    lead_in: int
    reread: int
    name: str


class Outline(NamedTuple):
    """A segment before any of its arrays is made.

    ticks: int [N], of the controller's readings. bears: bool [N], which of them bear loss. seen: int [N], the updates whose plans
    they see. over: of the planners above the planner, the nearest first. whole, least: what it takes of each budget of a row,
    in the order of `TAKEN` and then tokens and plans of each planner above; least without the updates that no tick sees.
    """

    encoded: "Encoded"
    timeline: Timeline
    ticks: np.ndarray
    bears: np.ndarray
    seen: np.ndarray
    heard: Heard
    read: Read
    over: tuple[Over, ...]
    whole: np.ndarray
    least: np.ndarray


def window_at(place: float, encoded: "Encoded", packing: "Packing", longer: int = 0) -> tuple[int, int]:
    """Returns the loss window [a, b) at a place in [0, 1); where places are drawn uniformly, every tick has the same chance.

    The window slides over both ends of the episode, so that those at an end are shorter. An episode that is no longer than
    `segment_ticks` (None: any) is taken whole, or as much of it as a row takes. Where a row does not take `segment_ticks`, the
    window is as long as it does take with a lead-in.

    longer: ticks more than `segment_ticks`. A longer window at the same place holds the shorter one.
    """
    length, ticks, layout = packing.segment_ticks, encoded.ticks, encoded.history.layout
    each = tokens_per_reading(layout) + layout.action.size - 1
    if length is not None:
        length = max(1, min(length + longer, packing.controller_tokens // each - packing.lead_in))
    if length is not None and length < ticks:
        start = 1 - length + int(place * (ticks + length - 1))
        return max(start, 0), min(start + length, ticks)
    readings = ticks if layout.chunk == 1 else -(-ticks // layout.chunk) + 1
    spoken = _words(encoded, "controller", np.arange(ticks), packing.controller_reread)
    if each * readings + sum(len(said.value) for said in spoken) <= packing.controller_tokens:
        return 0, ticks
    most = packing.controller_tokens // each * layout.chunk
    before = max(1, min(most - packing.lead_in, ticks - 1))
    start = max(0, 1 - before + int(place * (ticks + before - 1)))
    return start, min(start + most, ticks)


def outline(
    encoded: "Encoded",
    timeline: Timeline,
    window: tuple[int, int],
    packing: "Packing",
    above: Sequence[Timeline] = (),
    place: float = 0.0,
    known: Read | None = None,
) -> Outline:
    """Returns the outline of the segment whose ticks [a, b) bear loss, b brought down until the controller's tokens fit its
    stream.

    above: the timelines of the planners above the planner, the nearest first. place: in [0, 1), at which of the updates that it
    could begin with a planner begins that cannot read from the first. known: what the planner reads under another window, where
    that is the whole episode: then it reads the same under this one.

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
    heard = _hear(encoded, readings, first, packing)
    ticks = readings[first : first + len(heard.last)]
    if not len(ticks) or ticks[-1] < start:
        raise ValueError(
            f"layout {layout.name!r}: no tick fits after a lead-in of {start - readings[first]} ticks in "
            f"{packing.controller_tokens} controller tokens: raise controller_tokens"
        )
    seen = visible(timeline, ticks) if layout.planner else np.full(len(ticks), NO_PLAN, np.int32)
    room = _Room(packing.planner_tokens, packing.planner_lead_in, packing.planner_reread, "planner_tokens")
    read = _read(encoded, "planner", timeline, seen, room, place) if known is None else known
    over, sound = _read_above(encoded, 2, timeline, read, room.lead_in, above, packing, place)
    read = read._replace(sound=max(read.sound, sound))
    bears = (ticks >= start) & _complete(seen, read.sound, packing.lead_in)
    if not bears.any():
        raise NoLoss(
            f"layout {layout.name!r}: no tick of [{window[0]}, {window[1]}) has its plans' lead-in of "
            f"{packing.planner_lead_in} ticks in {packing.planner_tokens} planner tokens: raise planner_tokens or the ratios"
        )
    whole = least = _taken_by_planner(encoded, timeline, read)
    needed = 0 if seen[-1] == NO_PLAN else int(seen[-1]) + 1 - read.first
    if needed < len(read.last):
        least = _taken_by_planner(encoded, timeline, read.until(needed))
    own = _taken_by_controller(encoded, ticks[bears], seen[np.searchsorted(seen, max(read.first, 0)) :], heard)
    whole, least = (np.array([{**own, **part}.get(name, 0) for name in TAKEN]) for part in (whole, least))
    if over:
        above = np.array([count for link in over for count in (link.read.tokens, link.plans)])
        whole, least = np.append(whole, above), np.append(least, above)
    return Outline(encoded, timeline, ticks, bears, seen, heard, read, over, whole, least)


def _taken_by_planner(encoded: "Encoded", timeline: Timeline, read: Read) -> dict[str, int]:
    """What a planner's reading takes of a row, as `taken` will say it; nothing without a planner."""
    layout = encoded.history.layout
    if not layout.planner:
        return {}
    due = timeline.observed[read.sound : read.stop]
    own = {"planner": read.tokens, "patches": _patches_in(read.said)}
    if layout.sub_goal:
        own["sub_goal"] = np.count_nonzero(encoded.sub_goal[due] != EMPTY)
    if layout.lifetime:
        own["lifetime"] = np.count_nonzero(encoded.sub_goal[due, 0] != EMPTY)
    if says(layout) and len(read.updates):
        ticks = np.arange(read.since[0] + 1, read.updates[-1] + 1)
        own["planner_text"] = np.count_nonzero(pieces_after(encoded.label, ticks[ticks >= learnt_from(timeline, read)]) != EMPTY)
    return own


def _taken_by_controller(encoded: "Encoded", bearing: np.ndarray, seen: np.ndarray, heard: Heard) -> dict[str, int]:
    """What the controller's reading takes of a row, as `taken` will say it. bearing: the ticks that bear loss. seen: the updates
    in the row whose plans ticks see, in order."""
    layout = encoded.history.layout
    own = {"controller": heard.tokens, "plans": distinct(seen), "following": len(bearing) * encoded.following.shape[1]}
    own[HEADS[type(layout.action.codec)]] = np.count_nonzero(encoded.label[bearing] != EMPTY)
    if not layout.planner:
        own |= {"patches": _patches_in(heard.said), "sub_goal": np.count_nonzero(encoded.sub_goal[bearing] != EMPTY)}
    return own


def _patches_in(said: list[Said]) -> int:
    return sum(len(one.value) for one in said if one.shown is not None)


def distinct(rising: np.ndarray) -> int:
    """Returns how many different numbers there are in an array that never falls."""
    return int(np.count_nonzero(rising[1:] != rising[:-1])) + 1 if len(rising) else 0


def _hear(encoded: "Encoded", readings: np.ndarray, begin: int, packing: "Packing") -> Heard:
    """What the controller reads at the readings from `begin` on that fit."""
    layout = encoded.history.layout
    each = np.full(len(readings) - begin, tokens_per_reading(layout) + layout.action.size - 1)
    said = []
    if words(layout.controller):
        said = _words(encoded, "controller", readings, packing.controller_reread)
        said = [one._replace(reading=one.reading - begin) for one in said if one.reading >= begin]
    for one in said:
        each[one.reading] += len(one.value)
    ends = np.cumsum(each)
    fits = int(np.searchsorted(ends, packing.controller_tokens, side="right"))
    previous = np.concatenate([[-1], readings])[begin : begin + fits]
    said = [one for one in said if one.reading < fits]
    return Heard(previous, said, ends[:fits] - layout.action.size, int(ends[fits - 1]) if fits else 0)


def _read_above(
    encoded: "Encoded",
    level: int,
    timeline: Timeline,
    below: Read,
    lead_in: int,
    above: Sequence[Timeline],
    packing: "Packing",
    place: float,
) -> tuple[tuple[Over, ...], int]:
    """What the planners from `level` up read, the nearest first, and the first update of the planner below that sees sound plans
    alone.

    timeline, below, lead_in: the planner's below, which sees the plans made here.
    """
    if not above:
        return (), below.first
    budget = packing.above[level - 2]
    seen = visible(above[0], below.updates)
    room = _Room(budget.tokens, budget.lead_in, budget.reread, f"the tokens of {planner_name(level)}")
    own = _read(encoded, planner_name(level), above[0], seen if len(seen) else np.full(1, NO_PLAN), room, place)
    further, sound = _read_above(encoded, level + 1, above[0], own, room.lead_in, above[1:], packing, place)
    own = own._replace(sound=max(own.sound, sound))
    broken = below.updates[(seen != NO_PLAN) & (seen < own.sound)]
    first = below.first
    if len(broken):
        first += int(np.searchsorted(below.updates, broken[-1] + lead_in, side="right"))
    return (Over(above[0], own, below.updates, seen), *further), first


def _read(encoded: "Encoded", reader: str, timeline: Timeline, seen: np.ndarray, room: _Room, place: float) -> Read:
    """What a planner reads at its updates, of which some are seen."""
    layout, nowhere = encoded.history.layout, np.zeros(0, np.int32)
    if not layout.planner:
        return Read(0, 0, 0, nowhere, nowhere, nowhere, [], nowhere)
    observed = timeline.observed[timeline.observed < encoded.ticks]
    previous = np.concatenate([[-1], observed])[:-1].astype(np.int32)
    said = _words(encoded, reader, observed, room.reread)
    own, follows = tokens_per_update(layout, reader), tokens_between(layout)
    each = own + follows * (observed - previous - 1)
    for one in said:
        each[one.reading] += len(one.value)
    before = np.concatenate([[0], np.cumsum(each)])
    whole = reader == "planner" and (bool(layout.sub_goal) or says(layout))
    first, stop, sound = _updates(place, before, observed, seen, room, whole)
    since, each = previous[first:stop], each[first:stop]
    spare = room.tokens - (before[stop] - before[first])
    if follows and first > max(int(seen[0]), 0):
        # The update before has room for its own tokens, and for the newest of the ticks that it follows.
        follow_on = follows * (observed[first - 1] - previous[first - 1] - 1)
        alone = before[first] - before[first - 1] - follow_on
        if spare >= alone:
            first -= 1
            kept = (spare - alone) // follows
            since = np.concatenate([[observed[first] - 1 - kept], since])
            each = np.concatenate([[alone + follows * kept], each])
    if follows and first:
        # The lead-in counts from the first tick that is read, which is before the first update.
        sound = min(int(np.searchsorted(observed, since[:1] + 1 + room.lead_in)[0]), stop) if len(since) else stop
    if first == stop > 0:
        raise ValueError(
            f"layout {layout.name!r}: update {stop - 1} alone has {before[stop] - before[stop - 1]} tokens, and a row has "
            f"{room.tokens}: raise {room.name}"
        )
    said = [one._replace(reading=one.reading - first) for one in said if first <= one.reading < stop]
    return Read(first, stop, sound, observed[first:stop], previous[first:stop], since, said, np.cumsum(each) - 1)


def _updates(
    place: float, before: np.ndarray, observed: np.ndarray, seen: np.ndarray, room: _Room, whole: bool
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
    first = earliest + int(place * max(latest + 1 - earliest, 0))
    sound = int(np.searchsorted(observed, observed[min(first, stop - 1)] + room.lead_in))
    return first, stop, min(sound, stop)


def _complete(seen: np.ndarray, sound: int, lead_in: int) -> np.ndarray:
    """Returns whether each tick and those within the lead-in before it all see a plan with its own lead-in, or truly none."""
    position = np.arange(len(seen))
    broken = np.maximum.accumulate(np.where((seen == NO_PLAN) | (seen >= sound), -lead_in - 1, position))
    return position - broken > lead_in


def _words(encoded: "Encoded", reader: str, ticks: np.ndarray, reread: int) -> list[Said]:
    """Returns what a reader at `ticks` reads of its spoken fields, in order."""
    history, said = encoded.history, []
    for field in words(readers(history.layout)[reader]):
        changes, first = history.spoken[field.name][0], history.field_ids[reader, field.name]
        for reading, wording in words_read([tick for tick, _ in changes], ticks, reread):
            what = changes[wording][1]
            shown = (field.codec, what) if isinstance(field.codec, Image) else None
            if len(what):
                said.append(Said(reading, spoken_ids(field, what), spoken_fields(field, first, what), shown))
    return sorted(said, key=lambda one: one.reading)


def learnt_from(timeline: Timeline, read: Read) -> float:
    """The tick from which on the planner's pieces bear loss."""
    if read.first == 0:
        return 0
    return timeline.observed[read.sound] if read.sound < read.stop else np.inf


def pieces_after(label: np.ndarray, ticks: np.ndarray) -> np.ndarray:
    """What follows each piece that is read at `ticks`, [N, A]. Those read are of the tick before; the last of them is followed by
    the first of this one."""
    before = np.where(ticks[:, None] > 0, label[ticks - 1], EMPTY)
    return np.concatenate([before[:, 1:], label[ticks, :1]], axis=1)


def says(layout: Layout) -> bool:
    """Whether the planner follows text that is said piece by piece, each a token of its own."""
    return (
        isinstance(layout.action.codec, Piece)
        and not layout.pooled
        and any(field.name == PREVIOUS_ACTION for field in followed(layout.planner))
    )
