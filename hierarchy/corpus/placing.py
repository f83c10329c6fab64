"""Which row each segment goes to, by what it takes alone: no arrays are made before a segment has its place.

What is drawn is placed, whatever its size, so that every source is learnt as often as it is drawn:

1. The largest first, and where there is more than fits the last drawn at last, each in the row that is emptiest with it. A row is
   sure to hold what a segment takes at the least, which is without the updates that no tick sees.
2. One that no row has room for is shortened to what a row has left, the emptiest row first. Where nothing would remain of it, it
   is left out, and counted: those are few, for what is drawn is a little less than fits.
3. Windows grow into what their row has left of the controller's stream, then what planners read into what is left of theirs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hierarchy.corpus.outline import Outline
from hierarchy.corpus.segment import Segment
from hierarchy.layout import tokens_per_reading

STREAMS = slice(0, 2)
"""Where the tokens of both streams stand among what a segment takes."""

WORTHWHILE = 6
"""Ticks by which a window grows at the least: each try costs what a fifth of a segment does."""


class Offer(NamedTuple):
    """A segment that is to find a row.

    whole, least: what it takes, see `Outline`. outline: what it will hold. again: the outline of the same draw with a window so
    many ticks longer, and with so many tokens of both streams at most (None: those of a row); raises ValueError where they are
    too few. made: the segment itself where that cannot be changed, the two before it then None.
    """

    whole: np.ndarray
    least: np.ndarray
    outline: Outline | None = None
    again: Callable[[int, np.ndarray | None], Outline] | None = None
    made: Segment | None = None


class Placed(NamedTuple):
    """A segment in its row. tokens: of the planner's, how many it has."""

    offer: Offer
    tokens: int


def place(offers: Sequence[Offer], budgets: np.ndarray, rows: int, grows: bool) -> tuple[list[list[Placed]], int]:
    """Returns the segments of each row and how many have found none. offers: as they were drawn, the last of them what is over.
    budgets: of a row. grows: whether windows may."""
    held: list[list[Offer]] = [[] for _ in range(rows)]
    room, share = np.tile(budgets, (rows, 1)), 1 / np.maximum(budgets[STREAMS], 1)
    free = room[:, STREAMS] * share
    misfits = []
    over = (sum(offer.least[STREAMS] for offer in offers) > rows * budgets[STREAMS]).any()
    first = offers[:-1] if over else offers
    for offer in [*sorted(first, key=lambda offer: -(offer.least[STREAMS] * share).max()), *offers[len(first) :]]:
        fits = np.flatnonzero((room >= offer.least).all(axis=1))
        if not len(fits):
            misfits.append(offer)
            continue
        # Half of what no tick sees is likely to stay.
        likely = (offer.whole + offer.least)[STREAMS] / 2 * share
        row = fits[np.argmax((free[fits] - likely).min(axis=1))]
        held[row].append(offer)
        room[row] -= offer.least
        free[row] -= likely
    left_out = 0
    for offer in misfits:
        for row in np.argsort(-(room[:, STREAMS] * share).min(axis=1), kind="stable"):
            if shorter := shortened(offer, room[row]):
                held[row].append(shorter)
                room[row] -= shorter.least
                break
        else:
            left_out += 1
    return [fill_up(row, left, grows) for row, left in zip(held, room)], left_out


def shortened(offer: Offer, room: np.ndarray) -> Offer | None:
    """Returns a segment cut down to what a row has left, None where nothing remains of it, or not the start that it had: what is
    said at the start of an episode is not said again."""
    if offer.again is None:
        return None
    try:
        shorter = offer.again(0, room[STREAMS])
    except ValueError:
        return None
    whole = offer.outline.read.first > 0 or shorter.read.first == 0
    return as_offer(shorter, None) if whole and (shorter.least <= room).all() else None


def fill_up(offers: list[Offer], room: np.ndarray, grows: bool) -> list[Placed]:
    """Returns the segments of a row grown into what it has left."""
    room, grown = room.copy(), list(offers)
    # Those whose episode has the least more to give come first: what they leave of their part is for the others.
    order = sorted(range(len(offers)), key=lambda i: ticks_left(offers[i])) if grows else []
    for parts, i in zip(range(len(order), 0, -1), order):
        grown[i] = lengthened(offers[i], int(room[0]) // parts, room)
        room += offers[i].least - grown[i].least
    placed = []
    for offer in grown:
        more = offer.whole - offer.least
        more[1] = min(more[1], room[1])
        more = more if (more <= room).all() else np.zeros_like(more)
        room -= more
        placed.append(Placed(offer, int(offer.least[1] + more[1])))
    return placed


def lengthened(offer: Offer, tokens: int, room: np.ndarray) -> Offer:
    """Returns a segment whose window is longer by what takes so many controller tokens, or by a half or a quarter of that, the
    first for which a row has room; else as it is."""
    if offer.again is None or not ticks_left(offer):
        return offer
    layout = offer.outline.encoded.history.layout
    longer = tokens // (tokens_per_reading(layout) + layout.action.size - 1)
    for ticks in (longer, longer // 2, longer // 4):
        if ticks < WORTHWHILE:
            break
        try:
            found = as_offer(offer.again(ticks, None), offer.again)
        except ValueError:
            continue
        if (room + offer.least >= found.least).all():
            return found
    return offer


def ticks_left(offer: Offer) -> int:
    """Returns how many ticks of its episode a segment does not learn."""
    return 0 if offer.outline is None else offer.outline.encoded.ticks - int(offer.outline.bears.sum())


def as_offer(outline: Outline, again: Callable[[int, np.ndarray | None], Outline] | None) -> Offer:
    """Returns the offer of an outline."""
    return Offer(outline.whole, outline.least, outline, again)
