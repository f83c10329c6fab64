"""The trigram is a distribution; captions are scored by what they state; and the command measures a run from end to end."""

import json
import math
import sys
from unittest import mock

import numpy as np
import pytest

from envs import captions, documents
from experiments import evaluate_text, record, train
from experiments.evaluate_text import RUN, Trigram, attributes_right, unseen, until
from experiments.tasks import COLLECTIONS, find
from hierarchy.corpus.store import Source
from hierarchy.layout import EMPTY

TEXTS = [[1, 2, 3, 1, 2, 3, 1, 2, 4, 0], [1, 2, 3, 0]]


@pytest.mark.parametrize("before", [(EMPTY, EMPTY), (EMPTY, 1), (1, 2), (3, 4), (7, 7)])
def test_a_trigrams_probabilities_add_up_to_one(before):
    model = Trigram(TEXTS, 9)
    shares = [model.probability(before, piece) for piece in range(9)]
    assert min(shares) > 0
    assert math.isclose(sum(shares), 1.0)


def test_a_trigram_is_interpolated_as_witten_and_bell_say():
    model = Trigram(TEXTS, 9)
    # After 1, 2 came 3 three times and 4 once; after 2 the same; of 14 pieces three are 3, of five kinds.
    one = (3 + 5 / 9) / (14 + 5)
    two = (3 + 2 * one) / (4 + 2)
    assert math.isclose(model.probability((1, 2), 3), (3 + 2 * two) / (4 + 2))
    # What was never seen falls back on what is shorter.
    assert math.isclose(model.probability((8, 8), 3), one)


def test_a_trigram_is_surest_of_what_it_has_seen():
    model = Trigram(TEXTS, 9)
    assert model.nats(TEXTS[0]) < model.nats([5, 1, 7, 2]) - 1
    assert math.isclose(Trigram([], 9).nats([5, 1, 7]), math.log(9))


def test_a_text_ends_at_its_end():
    assert until(np.array([5, 6, 2, 7, 2]), 2).tolist() == [5, 6]
    assert until(np.array([5, 6]), 2).tolist() == [5, 6]


def test_a_document_that_repeats_a_training_one_is_seen():
    def document(*words: str):
        return documents.words_episode("text", " ".join(words), 0, 0, {}, {})

    known = [f"word{n}" for n in range(40)]
    held_out = [
        document(*known[5 : 5 + RUN]),
        document("before", *known[20 : 20 + RUN], "after"),
        document(*(word.upper() + "," for word in known)),
        document(*known[: RUN - 1], "other", *known[RUN:][: RUN - 1]),
        document(*reversed(known)),
        document("short"),
    ]
    assert unseen(held_out, [document("short"), document(*known)]).tolist() == [False, False, False, True, True, True]
    assert unseen(held_out, []).all()


def test_a_caption_is_scored_by_the_attributes_that_it_names_rightly():
    episodes = [captions.episode(seed) for seed in range(6)]
    right = [captions.caption(dict(episode.info)) for episode in episodes]
    np.testing.assert_array_equal(attributes_right(episodes, right), np.ones(6))
    np.testing.assert_array_equal(attributes_right(episodes, ["a thing"] * 6), np.zeros(6))
    one = next(episode for episode in episodes if episode.info["kind"] == "patrol")
    lean = next(word for word in captions.LEANS if word != one.info["lean"])
    assert attributes_right([one], [captions.caption({**one.info, "lean": lean})]) == pytest.approx(5 / 6)


@pytest.mark.parametrize("name", COLLECTIONS)
def test_a_collection_is_no_task_to_act_in(name):
    with pytest.raises(ValueError, match=f"'{name}' has no environment: `python -m experiments.evaluate_text`"):
        find(name).make()


def run(main, *options: object) -> int:
    with mock.patch.object(sys, "argv", ["command", *map(str, options)]):
        return main()


@pytest.mark.long
def test_text_and_captions_are_recorded_trained_on_and_measured(tmp_path, monkeypatch, capsys):
    # One sentence, in each document of a pair of names of its own; but the last document is one that was trained on.
    names = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida")
    said = [f"the quick brown fox jumps over {one} {other} " * 12 for one in names for other in names][:67]
    monkeypatch.setattr(documents, "documents", lambda: (*said, said[0]))
    corpus, out = tmp_path / "corpus", tmp_path / "run"
    for task, count in (("text", 1000), ("captions", 68)):
        assert run(record.main, "--task", task, "--episodes", count, "--out", corpus / task) == 0
    source = Source.open(corpus / "text")
    assert (len(source), source.manifest["licence"]) == (68, "PSF-2.0")
    assert source.manifest["expert"].startswith("CPython 3.11")
    options = ["--corpus", corpus, "--out", out, "--preset", "debug", "--mix.rows", "2", "--mix.wait-for-first", "1"]
    options += ["--learner.steps", "2", "--learner.planner-steps", "1", "--learner.rate-warm-up", "1", "--text-pieces", "300"]
    assert run(train.main, *options) == 0
    figures = tmp_path / "figures.json"
    assert run(evaluate_text.main, "--run", out, "--ticks", "10", "--rows", "2", "--json", figures) == 0
    found = json.loads(figures.read_text())
    assert set(found) == {"text", "captions"}
    nats = {"nats_own", "nats_shuffled", "nats_none", "nats_trigram", "nats_below_trigram", "nats_saved"}
    assert set(found["text"]) == nats | {"share_unseen"}
    assert found["text"]["share_unseen"]["mean"] == pytest.approx(2 / 3), "of three held out the last was trained on"
    assert set(found["captions"]) == nats | {"attributes_own", "attributes_shuffled", "attributes_chance"}
    assert all(row["low"] <= row["mean"] <= row["high"] for rows in found.values() for row in rows.values())
    assert "text nats_own" in capsys.readouterr().out
    # Untrained, every piece is about as likely; the trigram has learnt the only sentence there is.
    assert abs(found["text"]["nats_own"]["mean"] - math.log(300)) < 1.5
    assert found["text"]["nats_trigram"]["mean"] < 0.5
    assert found["text"]["nats_below_trigram"]["high"] < -3
