"""Layouts that decode later actions, or several ticks' at once: which labels they have, and which ticks they read."""

import dataclasses

import numpy as np
import pytest

from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.packing import draw_offer, pack
from hierarchy.corpus.segment import cut, encode_episode, look_ahead
from hierarchy.layout import EMPTY, ahead, single_rate, tick_action
from hierarchy.timeline import periodic, recorded
from tests.hierarchy.corpus.corpus_toys import Letters, toy_episode, toy_layout, toy_schema

TICKS, CHUNK = 22, 4
PACKING = Packing(rows=2, controller_tokens=300, planner_tokens=1, plans=1, segment_ticks=None, lead_in=0, sub_goal_targets=300)


def encoded(late: int, chunk: int, elements: int = 2):
    layout = ahead(toy_layout(elements=elements), late, chunk)
    return encode_episode(toy_schema(layout), layout.name, toy_episode(3, TICKS, elements=elements), Letters())


@pytest.mark.parametrize("discrete", [False, True])
def test_looking_ahead_by_nothing_is_the_single_rate_layout(discrete):
    layout = toy_layout(elements=2, discrete=discrete)
    assert ahead(layout, 0, 1) == single_rate(layout)
    far = ahead(layout, 3, 5)
    assert far.action.size == 10
    assert tick_action(far) == layout.action
    assert dataclasses.replace(far, name=layout.name, action=layout.action, late=0, chunk=1) == single_rate(layout)


@pytest.mark.parametrize(("late", "chunk"), [(0, 1), (0, 4), (3, 1), (2, 3), (0, 30), (30, 1)])
def test_an_element_is_the_label_of_its_tick(late, chunk):
    """The first action of a chunk is the tick's own label; past the end of the episode there is nothing to predict."""
    plain, found = encoded(0, 1).label, encoded(late, chunk).label
    assert found.shape == (TICKS, 2 * chunk)
    for tick in range(TICKS):
        for i in range(chunk):
            at = tick + late + i
            expected = plain[at] if at < TICKS else [EMPTY, EMPTY]
            np.testing.assert_array_equal(found[tick, 2 * i : 2 * i + 2], expected)


def test_chunks_one_after_another_predict_every_action_once():
    episode = encoded(0, CHUNK)
    for phase in range(CHUNK):
        timeline = periodic(TICKS, CHUNK, phase=phase)
        segment = cut(np.random.default_rng(0), episode, timeline, (0, TICKS), PACKING)
        np.testing.assert_array_equal(np.unique(segment.controller.tick), timeline.observed)
        expected = np.concatenate([encoded(0, 1).label[tick : tick + CHUNK].reshape(-1) for tick in timeline.observed])
        np.testing.assert_array_equal(segment.continuous.label, expected)
        assert len(np.unique(segment.continuous.slot)) == len(expected)
        assert len(expected) == 2 * TICKS or phase


def test_what_happened_between_two_readings_is_summed():
    """The chime is counted since the previous reading, not since the previous tick."""
    episode = encoded(0, CHUNK)
    history = episode.history
    segment = cut(np.random.default_rng(0), episode, periodic(TICKS, CHUNK), (9, TICKS), PACKING)
    mine = segment.controller.field == history.field_ids["controller", "chime"]
    chime = toy_episode(3, TICKS, elements=2).observation["chime"]
    readings = segment.controller.tick[mine.any(axis=1)]
    assert readings.tolist() == [8, 12, 16, 20]
    np.testing.assert_array_equal(segment.controller.value[mine], [chime[t - 3 : t + 1].sum() for t in readings])


def test_a_window_between_two_readings_has_the_reading_that_acts_there():
    segment = cut(np.random.default_rng(0), encoded(0, CHUNK), periodic(TICKS, CHUNK), (10, 11), PACKING)
    assert np.unique(segment.controller.tick).tolist() == [8]
    assert len(segment.continuous.slot) == 2 * CHUNK


def test_chunks_are_drawn_at_every_phase_and_packed():
    episode = encoded(0, CHUNK)
    drawn = [draw_offer(np.random.default_rng(seed), episode, PACKING).outline for seed in range(40)]
    starts = {int(outline.ticks[-1]) % CHUNK for outline in drawn}
    assert starts == set(range(CHUNK))
    schema = toy_schema(*(ahead(toy_layout(elements=2), 0, chunk) for chunk in (1, CHUNK)))
    episodes = [encode_episode(schema, layout.name, toy_episode(3, TICKS, elements=2), Letters()) for layout in schema.layouts]
    batch, figures = pack(np.random.default_rng(1), lambda rng: episodes[rng.integers(2)], schema, PACKING)
    assert figures["controller_padding"] < 0.5
    used = batch.continuous.weight > 0
    assert (batch.continuous.label[used] != EMPTY).all()
    assert used.sum() > 0


@pytest.mark.parametrize("wrong", [dict(late=-1), dict(chunk=0), dict(chunk=3)])
def test_what_is_no_chunk_is_refused(wrong):
    with pytest.raises(ValueError, match="action elements are not those of"):
        dataclasses.replace(toy_layout(elements=2, planner=False), **wrong)


def test_chunks_under_a_planner_are_refused():
    with pytest.raises(ValueError, match="decodes one tick's action"):
        dataclasses.replace(toy_layout(elements=2), chunk=2)


def test_a_reading_late_to_start_is_used_as_it_is():
    assert look_ahead(np.arange(3)[:, None], 1, 2).tolist() == [[1, 2], [2, EMPTY], [EMPTY, EMPTY]]
    segment = cut(np.random.default_rng(0), encoded(0, CHUNK), recorded([0, 2, 5], [0, 2, 5]), (0, TICKS), PACKING)
    assert np.unique(segment.controller.tick).tolist() == [0, 2, 5]
