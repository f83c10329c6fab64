"""Targets for triggers: how long a sub-goal stands, what the next tick shows; and segments cut under recorded timelines."""

import dataclasses

import numpy as np
import pytest

from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.packing import draw_offer, draw_timeline_of, pack
from hierarchy.corpus.segment import encode_episode, lives, make, next_classes
from hierarchy.episode import Episode
from hierarchy.layout import (
    CONTINUOUS_START,
    EMPTY,
    LIVES,
    Bounded,
    Discrete,
    Field,
    Layout,
    Schema,
    ahead,
    describe,
    single_rate,
)
from hierarchy.timeline import PLAN_READY, marks, recorded
from tests.hierarchy.corpus.corpus_toys import Letters, toy_episode, toy_layout, toy_schema

TICKS = 40
PREDICTED = (Field("chime", Discrete(3)), Field("state", Bounded((-9.0, -9.0), (9.0, 9.0), bins=16), 2))
LAYOUT = dataclasses.replace(toy_layout(), predicted=PREDICTED, lifetime=True)
LINE = recorded([0, 3, 4, 20], [2, 9, 6, 20])


def told() -> Episode:
    episode = toy_episode(3, TICKS)
    return dataclasses.replace(episode, privileged={"goal": np.arange(TICKS) // 9, PLAN_READY: marks(LINE, TICKS)})


def encoded(schema=None):
    return encode_episode(toy_schema(LAYOUT) if schema is None else schema, "toy", told(), Letters())


def test_lives_are_counted_to_the_next_change_by_hand():
    goal = np.array([4, 4, 4, 1, 1, EMPTY, EMPTY, 2, 2, 2, 2], np.int32)
    n = len(LIVES)
    expected = [2, 1, 0, 1, 0, EMPTY, EMPTY, n + 3, n + 2, n + 1, n + 0]
    assert lives(goal).tolist() == expected


def test_lives_agree_with_a_plain_loop():
    rng = np.random.default_rng(0)
    goal = np.cumsum(rng.random(300) < 0.04).astype(np.int32)
    for tick, found in enumerate(lives(goal)):
        later = [t for t in range(tick, 300) if goal[t] != goal[tick]]
        lasted = (later[0] if later else 300) - tick
        first = max(i for i, edge in enumerate(LIVES) if edge <= lasted)
        assert found == first + (0 if later else len(LIVES))


def test_the_next_tick_is_what_is_predicted_in_bins_of_the_predictions_own():
    schema, episode = toy_schema(dataclasses.replace(LAYOUT, name="other"), LAYOUT), told()
    found = next_classes(schema, LAYOUT, episode)
    # Three chimes and twice 16 bins of the other layout come first.
    first = 3 + 2 * 16
    np.testing.assert_array_equal(found[:, 0], first + episode.observation["chime"][1:])
    bins = np.floor((episode.observation["state"][1:] + 9.0) / 18.0 * 16)
    np.testing.assert_array_equal(found[:, 1:], first + 3 + np.array([0, 16]) + bins)
    assert schema.predictions("toy") == ((35, 3), (38, 16), (54, 16))


def test_a_batch_holds_the_targets_where_their_tokens_are():
    schema = toy_schema(LAYOUT)
    packing = Packing(rows=2, planner_tokens=400, ratios=(4,), latencies=(0,), recorded_timelines=1.0, segment_ticks=20)
    batch, _ = pack(np.random.default_rng(0), lambda rng: encoded(schema), schema, packing)
    goal, expected = told().privileged["goal"], next_classes(schema, LAYOUT, told())
    for row in range(2):
        used = batch.following.weight[row] > 0
        slots, labels = batch.following.slot[row][used].reshape(-1, 3), batch.following.label[row][used].reshape(-1, 3)
        ticks = batch.controller.tick[row][slots[:, 0]]
        assert len(ticks)
        np.testing.assert_array_equal(labels, expected[ticks])
        used = batch.lifetime.weight[row] > 0
        observed = batch.planner.tick[row][batch.lifetime.slot[row][used]]
        assert set(observed.tolist()) <= set(LINE.observed.tolist())
        np.testing.assert_array_equal(batch.lifetime.label[row][used], lives(goal.astype(np.int32))[observed])


def test_a_segment_is_cut_under_the_timeline_of_its_recording():
    whole, rng = encoded(), np.random.default_rng(0)
    packing = Packing(segment_ticks=None, recorded_timelines=1.0, ratios=(1,))
    assert draw_timeline_of(rng, whole, packing) is whole.timeline
    np.testing.assert_array_equal(whole.timeline.ready, LINE.ready)
    segment = make(rng, draw_offer(rng, whole, packing).outline)
    last = segment.planner.tick[segment.plan_slot]
    assert set(last.tolist()) <= set(LINE.observed.tolist())
    untold = dataclasses.replace(whole, timeline=None)
    assert len(draw_timeline_of(rng, untold, packing).observed) == TICKS


def test_shares_of_timelines_are_drawn_and_shares_of_nothing_draw_nothing():
    whole = dataclasses.replace(encoded(), timeline=None)
    packing = Packing(ratios=(4,), latencies=(0,), irregular=0.5)
    gaps = [np.diff(draw_timeline_of(np.random.default_rng(i), whole, packing).observed[1:]) for i in range(200)]
    regular = np.mean([bool((each == 4).all()) for each in gaps])
    assert 0.35 < regular < 0.65
    plain, other = (np.random.default_rng(5) for _ in range(2))
    draw_timeline_of(plain, whole, dataclasses.replace(packing, irregular=0.0))
    draw_timeline_of(other, encoded(), dataclasses.replace(packing, irregular=0.0))
    assert plain.random() == other.random()
    with pytest.raises(ValueError, match="irregular is 2"):
        Packing(irregular=2)


def test_layouts_that_cannot_predict_are_refused_and_others_described_as_ever():
    with pytest.raises(ValueError, match="lifetime is of a planner's sub-goal"):
        dataclasses.replace(LAYOUT, sub_goal=())
    with pytest.raises(ValueError, match="of single ticks, and Bounded or Discrete"):
        dataclasses.replace(LAYOUT, predicted=(dataclasses.replace(PREDICTED[0], summed="episode"),))
    assert not single_rate(LAYOUT).lifetime
    assert ahead(LAYOUT, 0, 4).predicted == ()
    plain = describe(Schema((toy_layout(planner=False),), Letters.pieces))
    assert {"predicted", "lifetime"}.isdisjoint(plain["layouts"][0])
    assert {"predicted", "lifetime"} <= set(describe(toy_schema(LAYOUT))["layouts"][0])
    missing = dataclasses.replace(LAYOUT, predicted=(Field("smell", Discrete(2)),))
    with pytest.raises(ValueError, match="no observation 'smell'"):
        encode_episode(toy_schema(missing), "toy", told(), Letters())


def test_bins_of_a_prediction_are_counted_from_nought():
    labels = next_classes(toy_schema(LAYOUT), LAYOUT, told())
    assert labels.max() < 35 < CONTINUOUS_START
    assert isinstance(LAYOUT, Layout)
