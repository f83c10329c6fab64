"""Words to piece ids and back: SentencePiece (Kudo and Richardson, arXiv 1808.06226), trained on our own text."""

import collections
import dataclasses
import hashlib
import io
import os
import pathlib
from collections.abc import Iterable

import numpy as np
import sentencepiece

from hierarchy.corpus.reading import Pieces
from hierarchy.episode import Episode
from hierarchy.layout import EMPTY, TEXT_IDS, Field

# Unknown, begin, end and the 256 bytes; and with a few letters on top.
CONTROLS = 259
LEAST = 280


class Tokenizer:
    """A trained SentencePiece model. pieces: the number of ids. end: the id that ends a text. hash: sha256 of the model file's
    bytes."""

    def __init__(self, model: bytes):
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.pieces = self._processor.vocab_size()
        self.end = self._processor.eos_id()
        self.hash = hashlib.sha256(model).hexdigest()
        self._known: dict[str, list[int]] = {}

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Returns the tokenizer of a model file; ValueError if the file is not one."""
        path = pathlib.Path(path)
        if not path.is_file():
            raise ValueError(f"no tokenizer at {path}: train one first")
        try:
            return cls(path.read_bytes())
        except RuntimeError:
            raise ValueError(f"{path} is not a SentencePiece model: train it again") from None

    def encode(self, words: str) -> list[int]:
        """Returns the piece ids of `words`; an empty list for none."""
        if words not in self._known:
            if len(self._known) > 100_000:
                self._known.clear()
            self._known[words] = self._processor.encode(words)
        return list(self._known[words])

    def decode(self, pieces: Iterable[int]) -> str:
        """Returns the words of piece ids."""
        return self._processor.decode([int(piece) for piece in pieces])


def train(texts: Iterable[str], pieces: int, path: str | os.PathLike) -> Tokenizer:
    """Returns a tokenizer trained on `texts`, written to `path`: the same texts give the same bytes.

    A small corpus cannot give many pieces: the vocabulary is the largest that trains, at most `pieces`. Characters that it has
    no room for are spelt in bytes, so nothing is ever unknown.

    Raises:
        ValueError: `pieces` lies outside [280, 32000], or there is no text.
    """
    if not LEAST <= pieces <= TEXT_IDS:
        raise ValueError(f"{pieces} pieces: {LEAST} (bytes, controls and a few letters) to {TEXT_IDS} are possible")
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("there is no text to train a tokenizer on")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_spellable(lines, pieces - CONTROLS - 1)),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        max_sentence_length=1_000_000,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(model.getvalue())
    partial.replace(path)
    return Tokenizer(model.getvalue())


def spell(episode: Episode, action: Field, tokenizer: Pieces) -> Episode:
    """Returns the episode whose actions are the pieces of the words that it holds as text under the action's name.

    On disk an episode holds words, and nothing that depends on a tokenizer. The words begin at the tick of their entry,
    `action.size` pieces a tick, with the end-of-text piece after the last; elements before and after are EMPTY. Ticks follow from
    that; whatever else was seen stays as it was last seen.

    Raises:
        ValueError: there is not exactly one entry.
    """
    said = episode.text[action.name]
    if len(said) != 1:
        raise ValueError(f"episode of {episode.source!r}: {len(said)} texts in {action.name!r}; a document has one")
    begin, words = said[0]
    pieces = [*tokenizer.encode(words), tokenizer.end]
    ticks = begin + -(-len(pieces) // action.size)
    ids = np.full(ticks * action.size, EMPTY, np.int32)
    ids[begin * action.size :][: len(pieces)] = pieces
    ids = ids.reshape(ticks, action.size)

    def stretched(values: np.ndarray, count: int) -> np.ndarray:
        if len(values) > 1 and not values.strides[0]:
            return np.broadcast_to(values[0], (count, *values.shape[1:]))
        return values[np.minimum(np.arange(count), len(values) - 1)]

    return dataclasses.replace(
        episode,
        observation={name: stretched(values, ticks + 1) for name, values in episode.observation.items()},
        text={name: changes for name, changes in episode.text.items() if name != action.name},
        action=ids,
        label=ids,
        reward=np.zeros(ticks, np.float32),
        discount=np.ones(ticks, np.float32),
        privileged={name: stretched(values, ticks) for name, values in episode.privileged.items()},
    )


def _spellable(lines: list[str], letters: int) -> list[str]:
    """The lines with all but the commonest `letters` characters blanked: the trainer wants a piece for every character."""
    counts = collections.Counter("".join(lines))
    rare = sorted(counts, key=lambda letter: (-counts[letter], letter))[letters:]
    return [line.translate(dict.fromkeys(map(ord, rare), " ")) for line in lines] if rare else lines
