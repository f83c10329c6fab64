"""English prose that every CPython has: the language reference of `pydoc_data.topics`, and the standard library's docstrings.

A document is a topic, or all docstrings of a module; an episode is a passage of one. Sources are parsed and never run. Licence:
PSF-2.0.
"""

import ast
import functools
import hashlib
import itertools
import pathlib
import platform
import sysconfig
from pydoc_data.topics import topics

import numpy as np

from hierarchy.episode import Episode, check

LICENCE = "PSF-2.0"
LEAST = 400
"""Characters of a document."""
MOST = 2000
"""Characters of a passage."""
TEXT = "words"
TICK_S = 1.0
"""Text has no rate of its own; a tick is given this length."""

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "pydoc_data"}


def origin() -> str:
    """Returns where the documents come from, version included."""
    return f"CPython {platform.python_version()}: pydoc_data.topics and docstrings of the standard library"


@functools.cache
def documents() -> tuple[str, ...]:
    """Returns all documents of at least `LEAST` characters, white space brought to single blanks, in an order that follows from
    their words alone; so the last ones are a fair sample to hold out."""
    found = [topics[name] for name in sorted(topics)] + [docstrings(path) for path in modules()]
    plain = {" ".join(words.split()) for words in found}
    return tuple(sorted((words for words in plain if len(words) >= LEAST), key=lambda w: hashlib.sha256(w.encode()).digest()))


@functools.cache
def passages() -> tuple[str, ...]:
    """Returns all documents, one after another, each cut at blanks into as few about equal passages as have `MOST` characters.

    Episodes are drawn alike: were a document one of them, a line of the shortest would be drawn a hundred times as often as one
    of the longest, and be known by heart before the other has been read once.
    """
    return tuple(passage for words in documents() for passage in passages_of(words))


def passages_of(words: str) -> list[str]:
    """Returns the passages of one document; joined by blanks they are the document. A word is never cut, however long."""
    count = -(-len(words) // MOST)
    cuts = {words.rfind(" ", 1, len(words) * part // count) for part in range(1, count)} - {-1}
    return [words[begin + 1 : end] for begin, end in itertools.pairwise([-1, *sorted(cuts), len(words)])]


def modules() -> list[pathlib.Path]:
    """Returns the standard library's sources, without its tests."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in root.rglob("*.py") if not LEFT_OUT & set(path.relative_to(root).parts))


def docstrings(path: pathlib.Path) -> str:
    """Returns a module's docstrings, outer ones before inner ones, each function's and class's after its name; what cannot be
    parsed has none."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return ""
    said = [ast.get_docstring(tree) or ""]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (doc := ast.get_docstring(node)):
            said.append(f"{node.name}: {doc}")
    return "\n".join(said)


def episode(number: int) -> Episode:
    """Returns a passage as it is stored: to be said from tick 0. How many ticks that takes is the tokenizer's."""
    return words_episode("text", passages()[number], 0, number, {}, {})


def words_episode(source: str, words: str, begin: int, seed: int, observation: dict, info: dict) -> Episode:
    """Returns an episode of one stored tick whose words begin at a tick; until pieces are made of them nothing (-1) is done."""
    nothing = np.full(1, -1, np.int32)
    return check(
        Episode(
            source=source,
            tick_s=TICK_S,
            observation={name: np.stack([value, value]) for name, value in observation.items()},
            text={TEXT: ((begin, words),)},
            action=nothing,
            label=nothing,
            reward=np.zeros(1, np.float32),
            discount=np.ones(1, np.float32),
            privileged={},
            terminated=False,
            truncated=True,
            seed=seed,
            info=info,
        )
    )
