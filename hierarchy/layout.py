"""How one tick of one kind of episode becomes tokens: specs only, no values.

Ids are Gato's (arXiv 2205.06175, section 2.1): text [0, 32000), discrete [0, 1024), continuous [32000, 33024). The separator
has the id after those, a patch of an image the one after that, and an action element that is asked for without its value the
next. A layout says which fields the planner reads at its updates, which of them for every tick, which the controller reads at
every tick, and what the action is; with more than two rates, also what planners above the planner read. A `Schema` is the set of
layouts that one set of weights serves.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

TEXT_IDS = 32_000
DISCRETE_IDS = 1024
BINS = 1024
CONTINUOUS_START = 32_000
SEPARATOR = CONTINUOUS_START + BINS
PATCH = SEPARATOR + 1
ASKED = PATCH + 1
EMPTY = -1


@dataclasses.dataclass(frozen=True)
class Text:
    """Words as SentencePiece pieces: ids [0, pieces of the corpus)."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Single SentencePiece pieces, one an element: ids [0, pieces of the corpus), EMPTY where nothing was said."""


@dataclasses.dataclass(frozen=True)
class Image:
    """Pixels, uint8 [height, width, channels], as non-overlapping square patches in raster order."""

    height: int
    width: int
    channels: int = 3
    patch: int = 16

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.channels, self.patch) < 1 or self.height % self.patch or self.width % self.patch:
            raise ValueError(f"{self} does not divide into patches: height and width are whole multiples of {self.patch}")

    @property
    def patches(self) -> int:
        """How many tokens an image is."""
        return (self.height // self.patch) * (self.width // self.patch)


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Integers in [0, values): ids [0, values), shared with text as in Gato."""

    values: int

    def __post_init__(self) -> None:
        if not 1 <= self.values <= DISCRETE_IDS:
            raise ValueError(f"a discrete field has 1 to {DISCRETE_IDS} values, not {self.values}")


@dataclasses.dataclass(frozen=True)
class Continuous:
    """Unbounded numbers, mu-law companded: sgn(x) log(mu|x| + 1) / log(mu M + 1), clipped to [-1, 1], in 1024 bins."""

    mu: float = 100.0
    bound: float = 256.0

    def __post_init__(self) -> None:
        if not (self.mu > 0 and self.bound > 0):
            raise ValueError(f"mu {self.mu} and bound (M) {self.bound} must be above 0")


@dataclasses.dataclass(frozen=True)
class Angle:
    """Radians, after any number of turns: the same angle between half a turn to either side, in 1024 bins."""


@dataclasses.dataclass(frozen=True)
class Bounded:
    """Numbers in [low, high], one bound an element, mapped affinely to [-1, 1] and not companded: Gato's actions."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    bins: int = BINS

    def __post_init__(self) -> None:
        finite = all(math.isfinite(x) for x in self.low + self.high)
        if len(self.low) != len(self.high) or not finite or not all(a < b for a, b in zip(self.low, self.high)):
            raise ValueError(f"bounds {self.low} and {self.high} must be finite and low below high: state them in the layout")
        if not 2 <= self.bins <= BINS:
            raise ValueError(f"2 to {BINS} bins, not {self.bins}")


Codec = Text | Piece | Image | Discrete | Continuous | Angle | Bounded


def id_range(codec: Codec, text_pieces: int) -> tuple[int, int]:
    """Returns (first id, number of ids) that a value under this codec may have."""
    match codec:
        case Text() | Piece():
            return 0, text_pieces
        case Image():
            return PATCH, 1
        case Discrete(values):
            return 0, values
        case Continuous() | Angle():
            return CONTINUOUS_START, BINS
        case Bounded(bins=bins):
            return CONTINUOUS_START, bins


@dataclasses.dataclass(frozen=True)
class Field:
    """One named field of a tick.

    size: scalars a tick, in row-major order (text and images have 1: their tokens are counted when they are read).
    frames, stride: the reading at tick t also holds ticks t - stride, t - 2 stride, ..., `frames` of them in all.
    summed: the reading is a sum, encoded once: over the ticks after the reader's previous reading ("reading": what happened
        since), or over all ticks so far ("episode": how often it has happened); "" for the value itself.
    spoken: numbers that are read as text and images always are: at the first reading after they change, one token a scalar, and
        again before they would leave the reader's window.
    every_tick: the planner reads the field for every tick, not at its updates alone: an update reads it for all ticks since the
        update before, each at its own tick.
    """

    name: str
    codec: Codec
    size: int = 1
    frames: int = 1
    stride: int = 1
    summed: Literal["", "reading", "episode"] = ""
    spoken: bool = False
    every_tick: bool = False

    def __post_init__(self) -> None:
        if min(self.size, self.frames, self.stride) < 1:
            raise ValueError(f"field {self.name!r}: size, frames and stride are at least 1")
        if isinstance(self.codec, Bounded) and len(self.codec.low) != self.size:
            raise ValueError(f"field {self.name!r}: {len(self.codec.low)} bounds for {self.size} elements")
        if isinstance(self.codec, Text | Image):
            object.__setattr__(self, "spoken", True)
        if (self.frames > 1) + bool(self.summed) + self.spoken > 1:
            raise ValueError(f"field {self.name!r}: frames are of numbers at single ticks, not of sums or of what is spoken")
        if self.every_tick and (self.frames > 1 or self.summed or self.spoken):
            raise ValueError(f"field {self.name!r}: what is read for every tick has one frame, no sum, and is not spoken")


LIVES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)
"""First ticks of the bins of a lifetime; the last bin has no end."""

PREVIOUS_ACTION = "previous_action"
"""The one derived field: the action executed at the tick before, absent at tick 0."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """One kind of episode, by name.

    planner: what each update reads. controller: what each tick reads. Both are kept in lexicographic order of names (Gato's
        order): images, spoken numbers, text (so that a word can be about what was shown or told before it), pieces and discrete
        fields, the others. Images are read by the planner, where there is one.
    action: the target of every tick, in the action's own codec; decoded element by element.
    sub_goal: privileged fields, each one scalar, that the planner learns to predict at its updates; given as one field, several
        or None. Names (discrete) are learnt fast, numbers (bounded) say precisely what to put into a plan.
    late, chunk: a reading at tick t decodes the actions of ticks t + late to t + late + chunk - 1, one tick after another in the
        `action` field, which is as large as all of them. A chunk longer than 1 is for a controller that reads at a timeline's
        updates and acts without looking in between.
    at_once: all elements of an action are decoded in one pass, each from its place alone: none sees another's value. One pass
        takes a fraction of the time of one after another; it cannot tell which of two answers an earlier element chose.
    pooled: one token a reading, the sum of its scalars' embeddings with the separator; else one token a scalar (Gato's way)
        with the separator as a token of its own.
    predicted: observation fields, Bounded or Discrete, of which the controller predicts the next tick's values, before it knows
        its action. Their codecs are the prediction's own and may be coarser than those that are read.
    lifetime: whether the planner predicts at its updates in how many ticks its first sub-goal changes, in the bins of LIVES.
    above: what each update of the planners above the planner reads, the nearest first (see `readers`): numbers and words at their
        updates alone, as there is no third rate for images, for what is followed tick by tick, and for text that is said.
    """

    name: str
    planner: tuple[Field, ...]
    controller: tuple[Field, ...]
    action: Field
    sub_goal: tuple[Field, ...] | Field | None = ()
    pooled: bool = True
    late: int = 0
    chunk: int = 1
    at_once: bool = False
    predicted: tuple[Field, ...] = ()
    lifetime: bool = False
    above: tuple[tuple[Field, ...], ...] = ()

    def __post_init__(self) -> None:
        goals = self.sub_goal or ()
        object.__setattr__(self, "sub_goal", (goals,) if isinstance(goals, Field) else tuple(goals))
        for goal in self.sub_goal:
            if goal.size != 1 or not isinstance(goal.codec, Bounded | Discrete):
                raise ValueError(f"layout {self.name!r}: sub-goal {goal.name!r} is one Bounded or Discrete scalar")
        for reader, fields in readers(self).items():
            names = [field.name for field in fields]
            if len(set(names)) != len(names):
                raise ValueError(f"layout {self.name!r}: the {reader} reads a field twice: {names}")
        for reader in ("planner", "controller"):
            object.__setattr__(self, reader, _ordered(getattr(self, reader)))
        object.__setattr__(self, "above", tuple(_ordered(fields) for fields in self.above))
        if not numbers(self.controller):
            raise ValueError(f"layout {self.name!r}: the controller reads at least one field of numbers")
        if self.planner and not numbers(self.planner):
            raise ValueError(f"layout {self.name!r}: the planner reads at least one field of numbers")
        if not isinstance(self.action.codec, Bounded | Discrete | Piece):
            raise ValueError(f"layout {self.name!r}: an action is Bounded, Discrete or Piece; give an unbounded one bounds")
        if followed(self.controller):
            raise ValueError(f"layout {self.name!r}: the controller reads everything at every tick; every_tick is the planner's")
        if self.planner and images(self.controller):
            raise ValueError(f"layout {self.name!r}: images are the planner's, where there is one")
        if self.late < 0 or self.chunk < 1 or self.action.size % self.chunk:
            raise ValueError(
                f"layout {self.name!r}: {self.action.size} action elements are not those of {self.chunk} ticks, {self.late} late"
            )
        if self.chunk > 1 and self.planner:
            raise ValueError(f"layout {self.name!r}: a planner's controller reads every tick, and decodes one tick's action")
        for field in self.predicted:
            if not isinstance(field.codec, Bounded | Discrete) or field.frames > 1 or field.summed or field.spoken:
                raise ValueError(f"layout {self.name!r}: predicted {field.name!r} is of single ticks, and Bounded or Discrete")
        if self.predicted and self.chunk > 1:
            raise ValueError(f"layout {self.name!r}: the next tick is predicted by who reads every tick, and it acts in chunks")
        if self.lifetime and not (self.planner and self.sub_goal):
            raise ValueError(f"layout {self.name!r}: a lifetime is of a planner's sub-goal, and it lacks one of the two")
        if self.above:
            _check_above(self)


def _check_above(layout: Layout) -> None:
    """Raises ValueError for what a layout with planners above the planner cannot have."""
    if not layout.planner or not all(numbers(fields) for fields in layout.above):
        raise ValueError(f"layout {layout.name!r}: every planner has one below it, and reads at least one field of numbers")
    for reader, fields in readers(layout).items():
        if images(fields) or followed(fields):
            names = [field.name for field in images(fields) + followed(fields)]
            raise ValueError(
                f"layout {layout.name!r}: the {reader} reads {names}, and with planners above the planner there are no images "
                "and no every_tick: leave those out, or the planners above"
            )
    if isinstance(layout.action.codec, Piece):
        raise ValueError(f"layout {layout.name!r}: text is said with one planner at most: leave out those above")


def planner_name(level: int) -> str:
    """Returns the name of a planner as a reader: 1 is the one that plans for the controller, 2 the one that plans for it."""
    return "planner" if level == 1 else f"planner_{level}"


def readers(layout: Layout) -> dict[str, tuple[Field, ...]]:
    """Returns who reads what: "planner" (nothing, where there is none), "controller", and the planners above the planner,
    "planner_2", "planner_3" and so on, each of which plans for the one before it."""
    above = {planner_name(level): fields for level, fields in enumerate(layout.above, start=2)}
    return {"planner": layout.planner, "controller": layout.controller} | above


def observed(layout: Layout) -> tuple[Field, ...]:
    """Returns every field that is read, once for each of its readers."""
    return tuple(field for fields in readers(layout).values() for field in fields)


def _ordered(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    return tuple(sorted(fields, key=lambda field: (_rank(field), field.name)))


def _rank(field: Field) -> int:
    if field.spoken:
        return 0 if isinstance(field.codec, Image) else 2 if isinstance(field.codec, Text) else 1
    return 3 if isinstance(field.codec, Discrete | Piece) else 4


def numbers(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """Returns the fields that every reading holds."""
    return tuple(field for field in fields if not field.spoken)


def words(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """Returns the fields that are read when they change: images, spoken numbers and text."""
    return tuple(field for field in fields if field.spoken)


def images(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """Returns the fields of pixels."""
    return tuple(field for field in fields if isinstance(field.codec, Image))


def followed(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """Returns the fields that an update reads for every tick since the one before."""
    return tuple(field for field in fields if field.every_tick)


def scalars(fields: tuple[Field, ...]) -> int:
    """Returns how many scalars one reading of these fields' numbers has, all frames counted."""
    return sum(field.size * field.frames for field in numbers(fields))


def names(fields: tuple[Field, ...]) -> int:
    """Returns how many pieces and discrete ids one reading of these fields has, all frames counted."""
    return sum(field.size * field.frames for field in numbers(fields) if isinstance(field.codec, Discrete | Piece))


def tokens_per_update(layout: Layout, planner: str = "planner") -> int:
    """Returns how many tokens of numbers one update of a planner reads; words come on top when they are due."""
    fields = readers(layout)[planner]
    if not fields:
        return 0
    return 1 if layout.pooled else scalars(fields)


def tokens_between(layout: Layout) -> int:
    """Returns how many tokens the planner reads for each tick between its updates: those of the fields it follows."""
    if not followed(layout.planner):
        return 0
    return 1 if layout.pooled else scalars(followed(layout.planner))


def tokens_per_reading(layout: Layout) -> int:
    """Returns how many observation tokens a tick has, the separator with them."""
    return 1 if layout.pooled else scalars(layout.controller) + 1


def single_rate(layout: Layout) -> Layout:
    """Returns the layout of Gato's way: no planner, and the controller reads at every tick what any of the models reads."""
    by_name = {field.name: field for field in layout.controller}
    for fields in (*reversed(layout.above), layout.planner):
        by_name |= {field.name: dataclasses.replace(field, every_tick=False) for field in fields}
    return dataclasses.replace(layout, planner=(), above=(), controller=tuple(by_name.values()), lifetime=False)


def ahead(layout: Layout, late: int, chunk: int) -> Layout:
    """Returns the single-rate layout that decodes the actions of `chunk` ticks, `late` ticks ahead, from one reading."""
    action, codec = layout.action, layout.action.codec
    if isinstance(codec, Bounded):
        codec = dataclasses.replace(codec, low=codec.low * chunk, high=codec.high * chunk)
    action = dataclasses.replace(action, codec=codec, size=action.size * chunk)
    name = layout.name + (f", {late} late" if late else "") + (f", in chunks of {chunk}" if chunk > 1 else "")
    return dataclasses.replace(single_rate(layout), name=name, action=action, late=late, chunk=chunk, predicted=())


def tick_action(layout: Layout) -> Field:
    """Returns the action field of one tick."""
    action, size = layout.action, layout.action.size // layout.chunk
    codec = action.codec
    if isinstance(codec, Bounded):
        codec = dataclasses.replace(codec, low=codec.low[:size], high=codec.high[:size])
    return dataclasses.replace(action, codec=codec, size=size)


@dataclasses.dataclass(frozen=True)
class Schema:
    """The layouts that one set of weights serves, and the number of text pieces; sizes every table and head.

    Every scalar of every field, frame and layout has a field id of its own; so have the words of a text field, the separator and
    every element of an action.
    """

    layouts: tuple[Layout, ...]
    text_pieces: int = 0

    def __post_init__(self) -> None:
        names = [layout.name for layout in self.layouts]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a schema has at least one layout and no name twice: {names}")
        if not 0 <= self.text_pieces <= TEXT_IDS:
            raise ValueError(f"{self.text_pieces} text pieces: there is room for {TEXT_IDS}")
        fields = [field for layout in self.layouts for field in (*observed(layout), layout.action)]
        if self.text_pieces == 0 and any(isinstance(field.codec, Text | Piece) for field in fields):
            raise ValueError("a layout has text, and the schema has no text pieces: train a tokenizer first")
        kinds = {(field.codec.patch, field.codec.channels) for field in images(tuple(fields))}
        if len(kinds) > 1:
            raise ValueError(f"patches of {sorted(kinds)} (side, channels): one set of weights embeds one kind")
        above = {layout.name: len(layout.above) for layout in self.layouts}
        if len(set(above.values())) > 1:
            raise ValueError(f"planners above the planner are {above}: the layouts of one schema have as many of them")

    def __getitem__(self, name: str) -> Layout:
        for layout in self.layouts:
            if layout.name == name:
                return layout
        raise KeyError(f"no layout {name!r}; there are {[layout.name for layout in self.layouts]}")

    def field_ids(self, name: str) -> dict[tuple[str, str], int]:
        """Returns, for one layout, (reader, field name) to the first of that field's ids.

        The readers are those of `readers`, and "action"; ("controller", "separator") is the separator's. A field's ids run frame
        by frame and, within a frame, element by element; a text field has one (its size is 1).
        """
        if name not in self._field_ids:
            raise KeyError(f"no layout {name!r}; there are {list(self._field_ids)}")
        return self._field_ids[name]

    @functools.cached_property
    def _field_ids(self) -> dict[str, dict[tuple[str, str], int]]:
        first, found = 0, {}
        for layout in self.layouts:
            ids = found[layout.name] = {}
            for reader, fields in readers(layout).items():
                for field in fields:
                    ids[reader, field.name] = first
                    first += field.size * field.frames
            ids["controller", "separator"] = first
            ids["action", layout.action.name] = first + 1
            first += 1 + layout.action.size
        return found

    def own_fields(self, reader: str) -> tuple[tuple[int, ...], ...]:
        """Returns the field ids that tokens of a reader's stream may have, one layout's after another's: those of what it reads,
        and in the controller's stream the separator's and the action's."""
        found = []
        for layout in self.layouts:
            ids = self.field_ids(layout.name)
            runs = [(ids[reader, field.name], field.size * field.frames) for field in readers(layout)[reader]]
            if reader == "controller":
                runs += [(ids["controller", "separator"], 1), (ids["action", layout.action.name], layout.action.size)]
            found.append(tuple(first + i for first, count in runs for i in range(count)))
        return tuple(found)

    def predictions(self, name: str) -> tuple[tuple[int, int], ...]:
        """Returns, for one layout, (first class, number of classes) of each scalar that its controller predicts, in order.

        All of them, of all layouts, are classes of one head.
        """
        first = 0
        for layout in self.layouts:
            own = []
            for field in layout.predicted:
                classes = field.codec.values if isinstance(field.codec, Discrete) else field.codec.bins
                own += [(first + i * classes, classes) for i in range(field.size)]
                first += field.size * classes
            if layout.name == name:
                return tuple(own)
        raise KeyError(f"no layout {name!r}; there are {[layout.name for layout in self.layouts]}")

    @property
    def fields(self) -> int:
        """Number of field ids."""
        return sum(
            scalars(observed(layout)) + sum(field.size for field in words(observed(layout))) + 1 + layout.action.size
            for layout in self.layouts
        )

    @property
    def patch_values(self) -> int:
        """Number of values in a patch of an image, all channels counted; 0 without images."""
        fields = [field for layout in self.layouts for field in images(observed(layout))]
        return max([field.codec.patch**2 * field.codec.channels for field in fields] + [0])

    @property
    def says(self) -> bool:
        """Whether a layout's action is text."""
        return any(isinstance(layout.action.codec, Piece) for layout in self.layouts)

    @property
    def above(self) -> int:
        """How many planners there are above the planner."""
        return len(self.layouts[0].above)

    @functools.cached_property
    def planner_atoms(self) -> int:
        """Most scalars that one token of a planner's stream sums over."""
        return max([scalars(fields) for layout in self.layouts if layout.pooled for fields in _planned(layout)] + [1])

    @functools.cached_property
    def controller_atoms(self) -> int:
        """Most scalars that one token of the controller's stream sums over, the separator counted."""
        return max([scalars(layout.controller) + 1 for layout in self.layouts if layout.pooled] + [1])

    @property
    def planner_names(self) -> int:
        """Most text or discrete ids that one token of a planner's stream sums over; they come first in it."""
        return max([names(fields) for layout in self.layouts if layout.pooled for fields in _planned(layout)] + [1])

    @property
    def controller_names(self) -> int:
        """Most text or discrete ids that one token of the controller's stream sums over; they come first in it."""
        return max([names(layout.controller) for layout in self.layouts if layout.pooled] + [1])


def _planned(layout: Layout) -> tuple[tuple[Field, ...], ...]:
    """What each planner reads."""
    return (layout.planner, *layout.above)


NEWER = {"every_tick": False, "late": 0, "chunk": 1, "at_once": False, "predicted": [], "lifetime": False, "above": []}
"""What fields and layouts had no word for at first, and what it was."""


def describe(schema: Schema) -> dict[str, Any]:
    """Returns the schema as plain JSON values, to store beside what was trained on it and to compare."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            facts = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
            # Said only where it is so: runs from before there was such a thing are described alike.
            for name, usual in NEWER.items():
                if facts.get(name) == usual:
                    del facts[name]
            return {"kind": type(value).__name__} | facts
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(schema)
