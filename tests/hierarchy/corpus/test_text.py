import dataclasses

import numpy as np
import pytest

from hierarchy.corpus.text import Tokenizer, spell, train
from hierarchy.episode import check
from hierarchy.layout import EMPTY, Field, Piece
from tests.hierarchy.corpus.corpus_toys import Letters, toy_episode

WORDS = ["patrol green after blue after red", "patrol red, then blue, then green", "go to the yellow pad"]


@pytest.mark.parametrize("texts", [["a"], WORDS, ["".join(map(chr, range(0x300, 0x900)))], ["éü" * 3000], WORDS * 500])
@pytest.mark.parametrize("pieces", [280, 32000])
def test_any_corpus_trains_and_any_words_come_back(texts, pieces, tmp_path):
    tokenizer = train(texts, pieces, tmp_path / "words.model")
    assert 259 < tokenizer.pieces <= pieces
    for words in ["patrol green", "Zürich 漢字 🤖", texts[0]]:
        ids = tokenizer.encode(words)
        assert all(0 <= piece < tokenizer.pieces for piece in ids)
        assert tokenizer.decode(ids) == words
    assert tokenizer.encode("") == []


def test_training_is_deterministic_and_the_file_is_the_tokenizer(tmp_path):
    first, second = (train(WORDS, 400, tmp_path / name) for name in ("a", "b"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = Tokenizer.load(tmp_path / "a")
    assert loaded.hash == first.hash == second.hash
    assert loaded.encode(WORDS[0]) == first.encode(WORDS[0])
    assert train(WORDS[:1], 400, tmp_path / "c").hash != first.hash


def test_a_caller_cannot_spoil_the_pieces_of_words(tmp_path):
    tokenizer = train(WORDS, 400, tmp_path / "a")
    tokenizer.encode("go").append(-1)
    assert -1 not in tokenizer.encode("go")


def test_what_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "bad").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a SentencePiece model: train it again"):
        Tokenizer.load(tmp_path / "bad")
    with pytest.raises(ValueError, match="train one first"):
        Tokenizer.load(tmp_path / "none")
    with pytest.raises(ValueError, match="there is no text"):
        train(["", " \n"], 400, tmp_path / "c")
    with pytest.raises(ValueError, match="40000 pieces"):
        train(WORDS, 40000, tmp_path / "c")


@pytest.mark.parametrize("words", ["", "a", "four", "seventeen letters", "five5"])
@pytest.mark.parametrize("begin", [0, 1, 3])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_words_become_pieces_from_their_tick_on_with_an_end(words, begin, size):
    stored = dataclasses.replace(toy_episode(0, 3), text={"words": ((begin, words),), "say": ((0, "go"),)})
    episode = check(spell(stored, Field("words", Piece(), size), Letters()))
    assert episode.action.shape == (begin + -(-(len(words) + 1) // size), size)
    said = episode.label.ravel()
    assert (said[: begin * size] == EMPTY).all()
    after = said[begin * size :].tolist()
    assert after[: len(words) + 1] == [*map(ord, words), Letters.end]
    assert set(after[len(words) + 1 :]) <= {EMPTY}
    assert len(after) - len(words) - 1 < size
    assert episode.text == {"say": ((0, "go"),)}
    np.testing.assert_array_equal(episode.action, episode.label)
    for name, values in stored.observation.items():
        for tick in range(episode.ticks + 1):
            np.testing.assert_array_equal(episode.observation[name][tick], values[min(tick, 3)])


def test_a_document_is_one_text():
    stored = dataclasses.replace(toy_episode(0, 3), text={"words": ((0, "a"), (1, "b"))})
    with pytest.raises(ValueError, match="2 texts in 'words'; a document has one"):
        spell(stored, Field("words", Piece(), 2), Letters())


def test_the_end_of_a_text_is_a_piece_that_no_words_have(tmp_path):
    tokenizer = train(WORDS, 400, tmp_path / "a")
    assert 0 <= tokenizer.end < tokenizer.pieces
    assert all(tokenizer.end not in tokenizer.encode(words) for words in [*WORDS, "</s>", "\x02"])
