"""What each reader sees at each tick: the one path by which training and acting turn values into tokens.

A `History` holds the encoded ids of B parallel episodes. It grows tick by tick while acting (`append`) or is made at once from
a recorded episode (`from_episode`); `planner_tokens`, `between_tokens`, `controller_tokens` and `words_due` then serve both.

Axes: B episodes, T ticks, N readings, K atoms (scalars summed into one token).
"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from hierarchy.corpus.codecs import encode, patches
from hierarchy.episode import Episode
from hierarchy.layout import (
    EMPTY,
    PATCH,
    PREVIOUS_ACTION,
    SEPARATOR,
    Bounded,
    Field,
    Image,
    Schema,
    Text,
    followed,
    numbers,
    observed,
    readers,
    tokens_between,
    tokens_per_reading,
    tokens_per_update,
    words,
)
from hierarchy.timeline import Timeline


class Pieces(Protocol):
    """Whatever turns words into piece ids. end: the id that ends a text."""

    end: int

    def encode(self, words: str) -> list[int]: ...


class History:
    """What B episodes of one layout have observed so far.

    ticks: how many ticks are held. layout, schema: theirs. field_ids: `schema.field_ids` of the layout.
    spoken: field name to one list an episode of (tick, what is read), with a new entry when it changes: ids of words or numbers,
        or the patches uint8 [n, values] of an image.
    """

    def __init__(self, schema: Schema, name: str, batch: int, tokenizer: Pieces | None = None, capacity: int = 64):
        self.schema, self.layout, self.batch, self.tokenizer = schema, schema[name], batch, tokenizer
        self.ticks = 0
        everything = observed(self.layout)
        self._fields = {_key(field): field for field in numbers(everything)}
        shape = {key: (batch, capacity, field.size) for key, field in self._fields.items()}
        self._held = {key: np.empty(shape[key], _dtype(field)) for key, field in self._fields.items()}
        self._spoken = {field.name: field for field in words(everything)}
        self.spoken = {field: [[] for _ in range(batch)] for field in self._spoken}
        self._wording = {field: [None] * batch for field in self._spoken}
        self._rows_of = {reader: field_row(schema, name, reader) for reader in readers(self.layout)}
        self.field_ids = schema.field_ids(name)
        separator = self.field_ids["controller", "separator"]
        self._rows_of["controller"] = np.append(self._rows_of["controller"], np.int32(separator))
        self._atoms = dict.fromkeys(self._rows_of, schema.planner_atoms) | {"controller": schema.controller_atoms}
        text = [field.name for field in words(everything) if isinstance(field.codec, Text)]
        if text and tokenizer is None:
            raise ValueError(f"layout {name!r} reads text {text}: a tokenizer is needed")

    @classmethod
    def from_episode(cls, schema: Schema, name: str, episode: Episode, tokenizer: Pieces | None = None) -> "History":
        """Returns the history of one recorded episode, B = 1, T + 1 ticks; ValueError as for `append`."""
        history = cls(schema, name, 1, tokenizer, capacity=0)
        history._held = {
            key: history._encoded(field, episode.observation, episode.action, 0) for key, field in history._fields.items()
        }
        history._held = {key: held[None] for key, held in history._held.items()}
        history.ticks = episode.ticks + 1
        for field in history._spoken.values():
            if isinstance(field.codec, Text):
                for tick, wording in _named(episode.text, field.name, name, "text"):
                    history._hear(field, [wording], tick)
            elif isinstance(field.codec, Image):
                frames = _named(episode.observation, field.name, name, "observation")
                still = frames[1:] == frames[:-1] if np.any(frames.strides[:1]) else np.ones((len(frames) - 1, 1), bool)
                for tick in np.flatnonzero(np.append(True, ~still.reshape(len(still), -1).all(axis=1))):
                    history._hear(field, frames[tick][None], int(tick))
            else:
                rows = _named(episode.observation, field.name, name, "observation")
                ids = encode_rows(schema, field, rows, f"layout {name!r}, field {field.name!r}")
                changed = np.concatenate([[True], np.any(ids[1:] != ids[:-1], axis=1)])
                history.spoken[field.name] = [[(int(tick), ids[tick].tolist()) for tick in np.flatnonzero(changed)]]
        return history

    def append(self, observations: Mapping[str, np.ndarray], previous_action: np.ndarray | None = None) -> None:
        """Adds one tick: name to array [B, ...], text as [B] of str, images [B, height, width, channels], and the action [B, ...]
        executed before it.

        Raises:
            ValueError: a field is missing, has another size, is not finite or outside its codec: names layout, field, tick.
        """
        if (previous_action is None) != (self.ticks == 0):
            raise ValueError(f"layout {self.layout.name!r}, tick {self.ticks}: there is a previous action at every tick but 0")
        for key, field in self._fields.items():
            row = self._encoded(field, observations, previous_action, self.ticks)
            if self.ticks == self._held[key].shape[1]:
                self._held[key] = np.concatenate([self._held[key], np.empty_like(self._held[key])], axis=1)
            held = self._held[key]
            held[:, self.ticks] = row + held[:, self.ticks - 1] if field.summed and self.ticks else row
        for field in self._spoken.values():
            if isinstance(field.codec, Text):
                wordings = np.atleast_1d(_named(observations, field.name, self.layout.name, "text")).tolist()
            elif isinstance(field.codec, Image):
                wordings = _named(observations, field.name, self.layout.name, "observation")
            else:
                wordings = self._encoded(field, observations, None, self.ticks).tolist()
            self._hear(field, wordings, self.ticks)
        self.ticks += 1

    def _hear(self, field: Field, wordings: Sequence, tick: int) -> None:
        """Notes what each episode is told or shown at a tick, where it is not what it was before."""
        if len(wordings) != self.batch:
            raise ValueError(
                f"layout {self.layout.name!r}, text {field.name!r}: {len(wordings)} wordings for {self.batch} episodes"
            )
        for episode, wording in enumerate(wordings):
            before = self._wording[field.name][episode]
            same = np.array_equal if isinstance(field.codec, Image) else operator.eq
            if not same(wording, before):
                self._wording[field.name][episode] = wording
                self.spoken[field.name][episode].append((tick, self._read(field, wording, tick)))

    def _read(self, field: Field, wording, tick: int):
        """What a reader reads of what is told or shown."""
        if isinstance(field.codec, Text):
            return self.tokenizer.encode(wording)
        if not isinstance(field.codec, Image):
            return wording
        try:
            return patches(field.codec, wording)
        except ValueError as error:
            raise ValueError(f"layout {self.layout.name!r}, field {field.name!r}, tick {tick}: {error}") from None

    def _encoded(self, field: Field, observations: Mapping[str, np.ndarray], actions: np.ndarray | None, tick: int) -> np.ndarray:
        """Rows [rows, size] of a field: one an episode while acting, one a tick of a recorded episode (actions given whole)."""
        recorded = not field.spoken and self._held[_key(field)].shape[1] == 0
        if field.name == PREVIOUS_ACTION:
            first = np.full((1 if recorded else self.batch, field.size), EMPTY, np.int32)
            if actions is None:
                return first
            rows = self._rows(field, actions, tick, recorded)
            return np.concatenate([first, rows]) if recorded else rows
        return self._rows(field, _named(observations, field.name, self.layout.name, "observation"), tick, recorded)

    def _rows(self, field: Field, values: np.ndarray, tick: int, recorded: bool) -> np.ndarray:
        if not recorded and len(np.atleast_1d(values)) != self.batch:
            raise ValueError(f"layout {self.layout.name!r}, field {field.name!r}: {len(values)} rows for {self.batch} episodes")
        where = f"layout {self.layout.name!r}, field {field.name!r}"
        ids = encode_rows(self.schema, field, values, where, None if recorded else tick)
        if not field.summed:
            return ids
        raw = np.asarray(values, np.float64).reshape(ids.shape)
        return np.cumsum(raw, axis=0) if recorded else raw


def encode_rows(schema: Schema, field: Field, values: np.ndarray, where: str, tick: int | None = None) -> np.ndarray:
    """Returns int32 [rows, size]: the ids of a field's values [rows, ...], one row an episode at `tick`, or else one a tick.

    Raises:
        ValueError: another size, or a value that the codec refuses; begins with `where` and names the tick.
    """
    values = np.atleast_1d(values)
    rows = values.reshape(len(values), -1)
    if rows.shape[1] != field.size:
        raise ValueError(
            f"{where}: {rows.shape[1]} scalars a tick (shape {values.shape[1:]}), and the layout states {field.size}"
        )
    try:
        return encode(field.codec, rows, schema.text_pieces)
    except ValueError as error:
        at = next(i for i, row in enumerate(rows) if _refused(schema, field, row)) if tick is None else tick
        raise ValueError(f"{where}, tick {at}: {error}") from None


def encode_targets(schema: Schema, field: Field, values: np.ndarray, where: str) -> np.ndarray:
    """Returns int32 [T, size]: the ids of what is to be predicted, EMPTY where there is nothing: NaN, or -1 among whole numbers.

    Raises:
        ValueError: as `encode_rows`.
    """
    values = np.asarray(values)
    whole = values == EMPTY if not isinstance(field.codec, Bounded) else np.zeros(values.shape, bool)
    absent = np.isnan(values) if values.dtype.kind == "f" else whole
    if not absent.any():
        return encode_rows(schema, field, values, where)
    legal = np.reshape(field.codec.low, values.shape[1:]) if isinstance(field.codec, Bounded) else 0
    ids = encode_rows(schema, field, np.where(absent, legal, values), where)
    return np.where(absent.reshape(ids.shape), np.int32(EMPTY), ids)


def read(fields: Sequence[Field], history: History, ticks: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Returns int32 [B, N, atoms]: the numbers of `fields` read at `ticks` [N], EMPTY for frames before tick 0.

    previous: [N], the tick of the reader's reading before each; -1 for none. A field summed by "reading" adds up the
    ticks after it.
    """
    ticks, previous = np.asarray(ticks), np.asarray(previous)
    if ticks.size and not (ticks.min() >= 0 and ticks.max() < history.ticks and np.all(previous < ticks)):
        raise ValueError(f"readings at ticks {ticks} after {previous}: ticks 0 to {history.ticks - 1} are held")
    parts = []
    for field in numbers(tuple(fields)):
        held = history._held[_key(field)]
        if field.summed:
            start = (previous < 0) | (field.summed == "episode")
            before = np.where(start[:, None], 0, held[:, np.maximum(previous, 0)])
            part = _summed(field, held[:, ticks] - before, ticks)
        elif field.frames == 1:
            part = held[:, ticks]
        else:
            at = ticks[:, None] - field.stride * np.arange(field.frames)
            part = np.where((at < 0)[:, :, None], EMPTY, held[:, np.maximum(at, 0)])
        parts.append(part.reshape(history.batch, len(ticks), field.size * field.frames))
    return np.concatenate(parts, axis=2)


def field_row(schema: Schema, name: str, reader: str) -> np.ndarray:
    """Returns int32 [atoms]: the field ids beside one reading of `read`, for one of the layout's readers."""
    ids, fields = schema.field_ids(name), readers(schema[name])[reader]
    spans = [ids[reader, field.name] + np.arange(field.size * field.frames) for field in numbers(fields)]
    return np.concatenate([np.zeros(0, np.int32), *spans]).astype(np.int32)


def planner_tokens(
    history: History, ticks: np.ndarray, previous: np.ndarray, planner: str = "planner"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns value and field ids, each int32 [B, N, tokens_per_update, K], of a planner's updates at `ticks` [N]; words not
    counted."""
    value = read(readers(history.layout)[planner], history, ticks, previous)
    return _tokens(history, planner, value, tokens_per_update(history.layout, planner))


def between_tokens(history: History, ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns value and field ids, each int32 [B, N, tokens_between, K], at ticks [N] between updates: of
    what the planner follows, and of nothing else."""
    fields = followed(history.layout.planner)
    value = read(fields, history, ticks, np.asarray(ticks) - 1)
    at = np.cumsum([0] + [field.size * field.frames for field in numbers(history.layout.planner)])
    spans = [np.arange(a, b) for field, a, b in zip(numbers(history.layout.planner), at, at[1:]) if field.every_tick]
    return _tokens(history, "planner", value, tokens_between(history.layout), np.concatenate(spans))


def controller_tokens(history: History, ticks: np.ndarray, previous: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns value and field ids, each int32 [B, N, tokens_per_reading, K], at `ticks` [N]: the separator last."""
    value = read(history.layout.controller, history, ticks, previous)
    value = np.concatenate([value, np.full((*value.shape[:2], 1), SEPARATOR, np.int32)], axis=2)
    return _tokens(history, "controller", value, tokens_per_reading(history.layout))


def words_due(changed: int, last_read: int, tick: int, reread: int) -> bool:
    """Returns whether a reading at `tick` reads a text field whose newest wording stands since tick `changed`.

    It does at the first reading at or after the change, and again once the last reading is more than `reread` ticks ago: half
    of the reader's window keeps the words inside it. last_read: tick of the field's last reading, -1 for none.
    """
    return changed > last_read or tick - last_read > reread


def words_read(changes: Sequence[int], ticks: np.ndarray, reread: int) -> list[tuple[int, int]]:
    """Returns (index of reading, index of wording) of every reading of one text field by a reader at `ticks` [N], as `words_due`
    has it.

    changes: the ticks at which the wordings came, in order.
    """
    due, starts = [], np.searchsorted(ticks, changes).tolist()
    for wording, (reading, stop) in enumerate(zip(starts, [*starts[1:], len(ticks)])):
        while reading < stop:
            due.append((reading, wording))
            reading = int(np.searchsorted(ticks, ticks[reading] + reread, side="right"))
    return due


def spoken_ids(field: Field, what: Sequence) -> list[int]:
    """Returns the ids of what is spoken: those of words and numbers; of an image's patches all the same one."""
    return [PATCH] * len(what) if isinstance(field.codec, Image) else list(what)


def spoken_fields(field: Field, first: int, ids: Sequence[int]) -> list[int]:
    """Returns the field ids beside the ids of what is spoken: words and patches share one, numbers have one an element."""
    return [first] * len(ids) if isinstance(field.codec, Text | Image) else list(range(first, first + len(ids)))


def _tokens(
    history: History, reader: str, scalars: np.ndarray, tokens: int, columns: np.ndarray | slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """The scalars [B, N, A] of a reader's `columns` (those of its reading, all unless told), as so many tokens a reading."""
    together = scalars.shape[2] // tokens
    shape = (*scalars.shape[:2], tokens, together)
    value, field = np.full((2, *shape[:3], history._atoms[reader]), EMPTY, np.int32)
    value[..., :together] = scalars.reshape(shape)
    field[..., :together] = np.where(scalars == EMPTY, EMPTY, history._rows_of[reader][columns]).reshape(shape)
    return value, field


def _summed(field: Field, totals: np.ndarray, ticks: np.ndarray) -> np.ndarray:
    try:
        return encode(field.codec, totals)
    except ValueError as error:
        raise ValueError(f"field {field.name!r}, summed up to tick {ticks[-1]}: {error}") from None


def _key(field: Field) -> tuple:
    # One field may be read under two codecs; sums are kept raw and need only one.
    return (field.name, "sum") if field.summed else (field.name, field.codec)


def _dtype(field: Field) -> type:
    return np.float64 if field.summed else np.int32


def _named(values: Mapping, field: str, layout: str, kind: str):
    if field not in values:
        raise ValueError(f"layout {layout!r}: no {kind} {field!r}; there are {sorted(values)}")
    return values[field]


def _refused(schema: Schema, field: Field, row: np.ndarray) -> bool:
    try:
        encode(field.codec, row, schema.text_pieces)
    except ValueError:
        return True
    return False


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
