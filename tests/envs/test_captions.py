"""Captions say what the picture shows; documents are prose of CPython's; the camera shows where the pads are."""

import numpy as np
import pytest

from envs import captions, documents, drawing
from envs.patrol import Patrol
from envs.patrol_camera import PatrolCamera, augment
from envs.patrol_experts import Regulator
from envs.recording import record


def share(picture: np.ndarray, colour: tuple) -> np.ndarray:
    """bool [H, W]: the pixels of this colour."""
    return np.abs(picture / 255 - np.array(colour)).max(axis=2) < 0.02


@pytest.mark.parametrize("seed", range(60))
def test_a_caption_states_the_attributes_of_its_scene_and_nothing_else(seed):
    episode = captions.episode(seed)
    ((tick, words),) = episode.text[documents.TEXT]
    assert tick == 1
    stated = captions.attributes(words)
    assert stated == {name: episode.info[name] for name in captions.slots(episode.info["template"])}
    assert set(stated) | {"kind", "template"} == set(episode.info)


@pytest.mark.parametrize("seed", range(60))
def test_a_picture_shows_what_its_caption_states(seed):
    episode = captions.episode(seed)
    stated, picture = captions.attributes(episode.text[documents.TEXT][0][1]), episode.observation["picture"][0]
    if episode.info["kind"] == "patrol":
        row = picture[56:62]
        columns = [np.nonzero(share(row, captions.PAINTS[stated[f"pad_{i}"]]))[1].mean() for i in range(1, 5)]
        assert columns == sorted(columns)
        cart = np.nonzero(share(picture, drawing.INK))[1].mean()
        assert {"on the left": cart < 24, "in the middle": 24 < cart < 40, "on the right": cart > 40}[stated["cart"]]
        lean = np.nonzero(share(picture, drawing.POLE))[1].mean() - cart
        assert {"leans left": lean < -2, "stands upright": abs(lean) < 2, "leans right": lean > 2}[stated["lean"]]
        return
    axis = 1 if stated["relation"] == "left of" else 0
    halves = np.split(picture, 2, axis=axis)
    for which, half in zip("ab", halves):
        own = share(half, captions.PAINTS[stated[f"colour_{which}"]])
        assert own.any()
        tall = np.ptp(np.nonzero(own)[0])
        assert (tall > 14) == (stated[f"size_{which}"] == "large")
        filled = own.sum() / (np.ptp(np.nonzero(own)[0]) + 1) / (np.ptp(np.nonzero(own)[1]) + 1)
        assert {"square": filled > 0.88, "circle": 0.6 < filled < 0.88, "ring": filled < 0.6}[stated[f"shape_{which}"]]


def test_captioned_pictures_follow_from_their_seeds_and_differ():
    one, again, other = captions.episode(3), captions.episode(3), captions.episode(4)
    np.testing.assert_array_equal(one.observation["picture"], again.observation["picture"])
    assert one.text == again.text
    assert one.text != other.text
    said = {captions.episode(seed).text[documents.TEXT][0][1] for seed in range(50)}
    assert len(said) > 45


@pytest.mark.parametrize(
    "words", ["", "a red circle", "a large red circle left of a small green square, too", "a large mauve ring"]
)
def test_words_that_are_no_caption_state_nothing(words):
    assert captions.attributes(words) == {}


def test_documents_are_the_languages_own_prose_once_each():
    found = documents.documents()
    assert len(found) == len(set(found)) > 300
    assert all(len(words) >= documents.LEAST and words == " ".join(words.split()) for words in found)
    assert any("The comparison" in words or "comparison operators" in words for words in found)
    assert "CPython 3.11" in documents.origin()
    assert documents.LICENCE == "PSF-2.0"


def test_passages_are_the_documents_one_after_another_in_about_equal_parts():
    assert " ".join(documents.passages()) == " ".join(documents.documents())
    for words in documents.documents():
        lengths = [len(passage) for passage in documents.passages_of(words)]
        assert max(lengths) - min(lengths) < documents.MOST // 5
        assert len(lengths) == -(-len(words) // documents.MOST)


@pytest.mark.parametrize("words", ["x" * 5000, "a " + "x" * 5000, "x" * 5000 + " b", "a " * 100 + "x" * 9000 + " b" * 100, "a"])
def test_a_word_is_never_cut_however_long(words):
    found = documents.passages_of(words)
    assert " ".join(found) == words
    assert all(found)


def test_docstrings_are_read_without_running_anything(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""Top."""\nraise SystemExit\n\n\ndef go(): "Goes."\n\n\nclass A:\n    "An A."\n')
    assert documents.docstrings(path) == "Top.\ngo: Goes.\nA: An A."
    path.write_text("this is not Python")
    assert documents.docstrings(path) == ""


def test_a_document_waits_for_its_tokenizer():
    episode = documents.episode(0)
    assert episode.text == {documents.TEXT: ((0, documents.passages()[0]),)}
    assert episode.action.tolist() == [-1]


def columns_of(camera: np.ndarray) -> list[float]:
    """Where each pad's colour stands in the picture, in m."""
    width = camera.shape[1]
    return [(np.nonzero(share(camera, colour))[1].mean() + 0.5 - width / 2) * 2.4 / width for colour in drawing.PADS]


def test_the_camera_shows_where_the_pads_lie_and_the_task_is_the_same():
    camera = record(PatrolCamera(), Regulator(), 7, "patrol_camera", max_ticks=40)
    plain = record(Patrol(), Regulator(), 7, "patrol", max_ticks=40)
    np.testing.assert_array_equal(camera.action, plain.action)
    assert (camera.observation["camera"] == camera.observation["camera"][:1]).all()
    np.testing.assert_allclose(columns_of(camera.observation["camera"][0]), camera.observation["pads"][0], atol=0.01)


@pytest.mark.parametrize("seed", range(6))
def test_an_augmented_episode_shows_its_own_pads(seed):
    episode = record(PatrolCamera(), Regulator(), 7, "patrol_camera", max_ticks=5)
    changed = augment(episode, np.random.default_rng(seed))
    np.testing.assert_allclose(columns_of(changed.observation["camera"][-1]), changed.observation["pads"][0], atol=0.01)
