"""Words to piece ids and back: SentencePiece (Kudo and Richardson, arXiv 1808.06226), trained on our own text."""

import collections
import hashlib
import io
import os
import pathlib
from collections.abc import Iterable

import sentencepiece

from hierarchy.layout import TEXT_IDS

# Unknown, begin, end and the 256 bytes; and with a few letters on top.
CONTROLS = 259
LEAST = 280


class Tokenizer:
    """A trained SentencePiece model. pieces: the number of ids. hash: sha256 of the model file's bytes."""

    def __init__(self, model: bytes):
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.pieces = self._processor.vocab_size()
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


def _spellable(lines: list[str], letters: int) -> list[str]:
    """The lines with all but the commonest `letters` characters blanked: the trainer wants a piece for every character."""
    counts = collections.Counter("".join(lines))
    rare = sorted(counts, key=lambda letter: (-counts[letter], letter))[letters:]
    return [line.translate(dict.fromkeys(map(ord, rare), " ")) for line in lines] if rare else lines
