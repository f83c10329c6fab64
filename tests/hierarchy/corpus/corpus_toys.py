"""Toy episodes that say at every tick which episode and which tick they are of."""

import functools

import numpy as np

from hierarchy.episode import Episode, check
from hierarchy.layout import Bounded, Continuous, Discrete, Field, Layout, Schema, Text


class Letters:
    """A tokenizer of one piece a letter."""

    pieces = 128
    end = 3

    def encode(self, words: str) -> list[int]:
        return [ord(letter) for letter in words]


def toy_layout(
    name: str = "toy", *, pooled: bool = True, elements: int = 1, discrete: bool = False, planner: bool = True
) -> Layout:
    """A layout with every kind of field; without a planner the controller reads them all."""
    codec = Discrete(9) if discrete else Bounded((-2.0,) * elements, (3.0,) * elements, 512)
    slow = (
        Field("say", Text()),
        Field("hint", Text()),
        Field("counter", Discrete(1024)),
        Field("number", Discrete(64)),
        Field("state", Continuous(), 2, frames=3, stride=4),
        Field("chime", Discrete(1024), summed="reading"),
    )
    fast = (Field("counter", Discrete(1024)), Field("number", Discrete(64)), Field("previous_action", codec, elements))
    state = Field("state", Bounded((-9.0, -9.0), (9.0, 9.0)), 2, frames=2)
    return Layout(
        name,
        planner=slow if planner else (),
        controller=(*fast, state) if planner else (*fast, *(field for field in slow if field.name not in ("counter", "number"))),
        action=Field("action", codec, elements),
        sub_goal=Field("goal", Discrete(1024)),
        pooled=pooled,
    )


def toy_schema(*layouts: Layout) -> Schema:
    return Schema(layouts, text_pieces=Letters.pieces)


def toy_episode(number: int, ticks: int, *, elements: int = 1, discrete: bool = False, says: dict | None = None) -> Episode:
    """Episode `number`: counter and sub-goal are the tick; what is executed is not what is to be imitated."""
    rng = np.random.default_rng(number)
    if discrete:
        label, action = rng.integers(9, size=(2, ticks, 1))
    else:
        label, action = rng.uniform(-2, 3, (2, ticks, elements))
    observation = {
        "counter": np.arange(ticks + 1),
        "number": np.full((ticks + 1, 1), number),
        "state": rng.uniform(-8, 8, (ticks + 1, 2)).astype(np.float32),
        "chime": rng.integers(3, size=ticks + 1),
    }
    text = {"say": ((0, "go"),), "hint": ()} | (says or {})
    text = {name: tuple(change for change in changes if change[0] <= ticks) for name, changes in text.items()}
    goal = {"goal": np.arange(ticks)}
    facts = dict(terminated=False, truncated=True, seed=number, info={"success": number % 2 == 0})
    reward = np.full(ticks, 0.5)
    return check(Episode("toy", 0.04, observation, text, action, label, reward, np.ones(ticks), goal, **facts))


@functools.cache
def meanings(schema: Schema) -> dict[int, tuple[str, str, Field | None, int, int]]:
    """What each field id of a schema stands for: (layout, reader, field, frame, element), written out one by one."""
    found, first = {}, 0
    for layout in schema.layouts:
        for reader in ("planner", "controller"):
            for field in getattr(layout, reader):
                spans = [(0, 0)] if isinstance(field.codec, Text) else np.ndindex(field.frames, field.size)
                for frame, element in spans:
                    found[first] = (layout.name, reader, field, frame, element)
                    first += 1
        found[first] = (layout.name, "separator", None, 0, 0)
        first += 1
        for element in range(layout.action.size):
            found[first] = (layout.name, "action", layout.action, 0, element)
            first += 1
    return found
