"""Segments in rows: nothing is passed over for its size, little is left empty, and each batch is the same every time."""

import dataclasses

import numpy as np
import pytest

from hierarchy.corpus import packing as packing_module
from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.packing import FILL, draw_offers, pack
from hierarchy.corpus.placing import Offer, place
from hierarchy.corpus.segment import encode_episode
from hierarchy.layout import single_rate
from tests.hierarchy.corpus.corpus_toys import Letters, toy_episode, toy_layout, toy_schema
from tests.hierarchy.corpus.test_said import SCHEMA as SAID
from tests.hierarchy.corpus.test_said import document

PACKING = Packing(
    rows=4,
    controller_tokens=256,
    planner_tokens=208,
    plans=256,
    action_targets=1024,
    sub_goal_targets=1024,
    segment_ticks=48,
    lead_in=6,
    planner_lead_in=0,
    ratios=(1, 4, 4, 16, 16),
)


def toys(layout, *lengths):
    """A schema of one layout and the ids of episodes of these lengths."""
    schema = toy_schema(layout)
    return schema, [encode_episode(schema, "toy", toy_episode(i, ticks), Letters()) for i, ticks in enumerate(lengths)]


def packed(schema, episodes, packing, batches=60, seed=0):
    """The figures of batches, and how often each episode was drawn and found in them, by its number."""
    number = schema.field_ids("toy")["controller", "number"]
    drawn, found, figures = np.zeros((2, len(episodes)), int), None, []
    drawn, found = drawn
    for step in range(batches):

        def following(rng):
            which = int(rng.integers(len(episodes)))
            drawn[which] += 1
            return episodes[which]

        batch, said = pack(np.random.default_rng([seed, step]), following, schema, packing)
        figures.append(said)
        for b in range(packing.rows):
            own = batch.controller.segment[b]
            ids = np.where(batch.controller.field[b] == number, batch.controller.value[b], -1).max(axis=1)
            for segment in range(1, own.max() + 1):
                found[ids[own == segment].max()] += 1
    return figures, drawn, found


@pytest.mark.parametrize("kind", ["two rates", "single rate"])
def test_what_is_drawn_is_learnt_whatever_its_size(kind):
    layout = toy_layout() if kind == "two rates" else single_rate(toy_layout())
    schema, episodes = toys(layout, 9, 30, 140)
    packing = PACKING if kind == "two rates" else dataclasses.replace(PACKING, segment_ticks=None, lead_in=0, planner_tokens=1)
    figures, drawn, found = packed(schema, episodes, packing)
    assert np.mean([each["left_out"] for each in figures]) < 0.02
    assert drawn.sum() > 300
    np.testing.assert_allclose(found / drawn, 1, atol=0.04)
    # Drawn alike; the number drawn is a stopping time, so that the shares are those of the draw.
    np.testing.assert_allclose(found / found.sum(), 1 / 3, atol=0.07)


def test_a_packer_that_leaves_out_what_does_not_fit_learns_less_of_what_is_long(monkeypatch):
    """The mistake that the test above would find."""
    schema, episodes = toys(single_rate(toy_layout()), 9, 30, 140)
    packing = dataclasses.replace(PACKING, segment_ticks=None, lead_in=0, planner_tokens=1)
    monkeypatch.setattr("hierarchy.corpus.placing.shortened", lambda offer, room: None)
    _, drawn, found = packed(schema, episodes, packing)
    assert found[2] / drawn[2] < 0.93 < found[0] / drawn[0]


@pytest.mark.parametrize("kind", ["two rates", "single rate", "documents"])
def test_little_of_either_stream_is_left_empty(kind):
    if kind == "documents":
        words = "the quick brown fox jumps over the lazy dog "
        schema, planned = SAID, True
        episodes = [encode_episode(SAID, "said", document(words * n, n % 2), Letters()) for n in (1, 3, 40)]
        packing = dataclasses.replace(PACKING, text_targets=400, patches=200, planner_tokens=200, segment_ticks=24)
    else:
        planned = kind == "two rates"
        schema, episodes = toys(toy_layout() if planned else single_rate(toy_layout()), 60, 90, 140)
        packing = PACKING if planned else dataclasses.replace(PACKING, segment_ticks=None, lead_in=0, planner_tokens=1)
    figures = [pack(np.random.default_rng(i), lambda rng: episodes[rng.integers(3)], schema, packing)[1] for i in range(30)]
    mean = {name: np.mean([each[name] for each in figures]) for name in figures[0]}
    assert mean["controller_padding"] < 0.15
    assert mean["planner_padding"] < 0.15 or not planned


def test_rows_hold_no_more_than_their_budgets_and_all_that_was_offered():
    rng = np.random.default_rng(0)
    budgets = np.array([100, 80, 30])
    for _ in range(200):
        least = rng.integers(1, 12, (14, 3))
        whole = least + rng.integers(0, 9, (14, 3)) * [0, 1, 1]
        offers = [Offer(more, less) for more, less in zip(whole, least)]
        rows, left_out = place(offers, budgets, 3, True)
        held = [placed.offer for row in rows for placed in row]
        assert len(held) + left_out == 14
        for row in rows:
            taken = sum((placed.offer.least for placed in row), np.zeros(3, int))
            assert (taken <= budgets).all()
            assert sum(placed.tokens for placed in row) <= budgets[1]
            assert all(placed.offer.least[1] <= placed.tokens <= placed.offer.whole[1] for placed in row)


def test_windows_grow_into_what_a_row_has_left():
    schema, episodes = toys(toy_layout(), 200)
    packing = dataclasses.replace(PACKING, rows=1, segment_ticks=16, ratios=(1,), latencies=(0,), planner_tokens=400)
    before, after = (
        pack(np.random.default_rng(5), lambda rng: episodes[0], schema, dataclasses.replace(packing, controller_tokens=tokens))[1]
        for tokens in (40, 256)
    )
    assert after["loss_ticks"] > 3 * before["loss_ticks"]


def test_segments_are_drawn_until_one_stream_would_be_full_and_no_longer():
    _, episodes = toys(toy_layout(), 30)
    offers = draw_offers(np.random.default_rng(0), lambda rng: episodes[0], PACKING)
    room = PACKING.rows * np.array([PACKING.controller_tokens, PACKING.planner_tokens]) * FILL[True]
    drawn = np.cumsum([offer.whole[:2] for offer in offers], axis=0)
    assert (drawn[-1] >= room).any()
    assert (drawn[-2] < room).all()


def test_a_window_that_no_row_can_hold_is_drawn_again(monkeypatch):
    schema, episodes = toys(toy_layout(), 30)
    real, calls = packing_module.outline, []

    def sometimes(*arguments, **named):
        calls.append(1)
        if len(calls) % 3 == 1:
            raise packing_module.NoLoss("no tick")
        return real(*arguments, **named)

    monkeypatch.setattr(packing_module, "outline", sometimes)
    batch, figures = pack(np.random.default_rng(0), lambda rng: episodes[0], schema, PACKING)
    assert figures["episodes"] > 3
    assert batch.controller.segment.max() > 0
