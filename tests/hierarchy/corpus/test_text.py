import pytest

from hierarchy.corpus.text import Tokenizer, train

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
