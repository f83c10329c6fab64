"""Documents and captioned images in packed rows, against the raw episodes: who reads which piece when, and what is predicted."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hierarchy.batch import Batch
from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.codecs import intervals, patches
from hierarchy.corpus.packing import fill, pack
from hierarchy.corpus.segment import cut, encode_episode, trim
from hierarchy.layout import EMPTY, PATCH, SEPARATOR, Field, Image, Layout, Piece, Schema
from hierarchy.timeline import periodic, visible
from tests.hierarchy.corpus.corpus_toys import Letters, toy_episode

SIZE = 3
SAID = Field("previous_action", Piece(), SIZE)
PICTURE = Field("picture", Image(32, 16, patch=8))
LAYOUT = Layout(
    "said",
    planner=(PICTURE, dataclasses.replace(SAID, every_tick=True)),
    controller=(SAID,),
    action=Field("words", Piece(), SIZE),
    pooled=False,
)
SCHEMA = Schema((LAYOUT,), text_pieces=Letters.pieces)
BUDGETS = Packing(rows=1, controller_tokens=2000, planner_tokens=2000, plans=300, text_targets=1000, patches=500, lead_in=0)


def document(words: str, begin: int, number: int = 0):
    """An episode as it is stored: one tick, a picture, and the words."""
    shown = np.random.default_rng(number).integers(256, size=(32, 16, 3), dtype=np.uint8)
    episode = toy_episode(number, 1)
    return dataclasses.replace(
        episode,
        observation={"picture": np.stack([shown, shown])},
        text={"words": ((begin, words),)} if begin < 2 else {},
        action=np.full(1, EMPTY),
        label=np.full(1, EMPTY),
    )


def one_row(words: str, begin: int, timeline, window, packing: Packing = BUDGETS) -> tuple[Batch, int, list[list[int]]]:
    """A packed row of one document, its ticks, and its pieces by tick (EMPTY where none is said)."""
    encoded = encode_episode(SCHEMA, "said", document(words, begin), Letters())
    segment = cut(np.random.default_rng(0), encoded, timeline(encoded.ticks), window or (0, encoded.ticks), packing)
    said = [EMPTY] * (SIZE * begin) + [*map(ord, words), Letters.end]
    said += [EMPTY] * (-len(said) % SIZE)
    return fill([[segment]], SCHEMA, packing), encoded.ticks, [said[i : i + SIZE] for i in range(0, len(said), SIZE)]


@settings(deadline=None, max_examples=60)
@given(
    st.text("abcdefgh ", min_size=0, max_size=60),
    st.sampled_from([0, 1]),
    st.integers(1, 12),
    st.integers(0, 9),
    st.integers(1, 30),
)
def test_the_planner_reads_every_piece_up_to_its_update_once_at_its_own_tick(words, begin, ratio, latency, reread):
    packing = dataclasses.replace(BUDGETS, planner_reread=reread)
    batch, ticks, said = one_row(words, begin, lambda t: periodic(t, ratio, latency), None, packing)
    timeline, slow = periodic(ticks, ratio, latency), batch.planner
    assert len(said) == ticks
    here = slow.segment[0] == 1
    value, tick = slow.value[0, here, 0], slow.tick[0, here]
    image, read = value == PATCH, {}
    for number, (piece, at) in enumerate(zip(value[~image], tick[~image])):
        read.setdefault(int(at), []).append(int(piece))
        assert number // SIZE == at
    last = int(timeline.observed[-1])
    # At tick t it reads what was said at t - 1, and so nothing that is still to be said.
    assert read == {t: said[t - 1] if t else [EMPTY] * SIZE for t in range(last + 1)}
    assert (np.diff(tick) >= 0).all()
    for update in range(len(timeline.observed)):
        observed = timeline.observed[update]
        shows = tick[image] == observed
        assert shows.sum() in (0, PICTURE.codec.patches)
    # A plan is read where all of the update's tick has been read.
    for j, slot in enumerate(batch.plan_slot[0][batch.plan_slot[0] >= 0]):
        seen = np.unique(visible(timeline, np.arange(ticks)))
        observed = timeline.observed[seen[seen >= 0][j]]
        assert tick[slot] == observed
        assert slot + 1 == len(tick) or tick[slot + 1] > observed


@pytest.mark.parametrize("begin", [0, 1])
@pytest.mark.parametrize("ratio", [1, 4, 50])
def test_both_models_predict_each_piece_once_from_what_came_before(begin, ratio):
    words = "the quick brown fox jumps"
    batch, ticks, said = one_row(words, begin, lambda t: periodic(t, ratio), None)
    flat = [piece for row in said for piece in row if piece != EMPTY]
    for stream, targets, last in ((batch.controller, batch.text, ticks), (batch.planner, batch.planner_text, None)):
        used = targets.weight[0] > 0
        slots, labels = targets.slot[0][used], targets.label[0][used]
        if last is None:
            # The planner's stream ends at its last update: the first piece of that tick is its last target.
            seen = periodic(ticks, ratio).observed[-1]
            expected = [piece for row in said[:seen] for piece in row if piece != EMPTY]
            expected += [piece for piece in said[seen][:1] if piece != EMPTY]
        else:
            expected = flat
        assert labels.tolist() == expected
        assert set(targets.limit[0][used].tolist()) <= {Letters.pieces}
        for slot, label in zip(slots, labels):
            own = stream.value[0, slot, 0]
            before = flat[: flat.index(label)] if flat.count(label) == 1 else None
            if before:
                shown = [p for p in stream.value[0, : slot + 1, 0].tolist() if p not in (EMPTY, PATCH, SEPARATOR)]
                assert shown[-1] == before[-1]
                assert label not in shown
            assert own != PATCH
    assert batch.continuous.slot.shape[1] == batch.discrete.slot.shape[1] == 0


def test_the_controller_sees_the_pieces_of_the_tick_before_and_those_stay():
    batch, _, said = one_row("the quick brown fox", 0, lambda t: periodic(t, 4), None)
    fast = batch.controller
    for tick in range(1, len(said)):
        own = (fast.segment[0] == 1) & (fast.tick[0] == tick)
        value, lasting = fast.value[0, own, 0], fast.lasting[0, own]
        assert value.tolist() == [*said[tick - 1], SEPARATOR, *said[tick][: SIZE - 1]]
        assert lasting.tolist() == [True] * (SIZE + 1) + [False] * (SIZE - 1)


@pytest.mark.parametrize("drawn", [True, False])
def test_an_image_is_its_patches_in_raster_order_at_its_own_places(drawn):
    packing = dataclasses.replace(BUDGETS, draw_places=drawn, planner_reread=5)
    batch, _, _ = one_row("a" * 40, 1, lambda t: periodic(t, 3), None, packing)
    own = batch.patches
    used = own.slot[0] >= 0
    shown = patches(PICTURE.codec, document("", 1).observation["picture"][0])
    times = used.sum() // len(shown)
    assert times == 3
    np.testing.assert_array_equal(own.pixels[0][used], np.tile(shown, (times, 1)))
    assert (batch.planner.value[0, own.slot[0][used], 0] == PATCH).all()
    assert (batch.planner.field[0, own.slot[0][used], 0] == SCHEMA.field_ids("said")["planner", "picture"]).all()
    assert set(np.flatnonzero(batch.planner.value[0, :, 0] == PATCH)) == set(own.slot[0][used].tolist())
    places = np.tile(np.array(intervals(PICTURE.codec, None)), (1, times))
    same = (own.row[0][used] == places[0]) & (own.column[0][used] == places[1])
    assert same.all() != drawn


def test_a_trimmed_segment_loses_what_only_its_later_updates_had():
    encoded = encode_episode(SCHEMA, "said", document("the quick brown fox jumps over", 1), Letters())
    segment = cut(np.random.default_rng(0), encoded, periodic(encoded.ticks, 1, 2), (0, 5), BUDGETS)
    short = trim(segment)
    assert len(short.planner.tick) == segment.needed < len(segment.planner.tick)
    assert max(short.planner_text.slot) < segment.needed <= max(segment.planner_text.slot)
    np.testing.assert_array_equal(short.patches.slot, segment.patches.slot[segment.patches.slot < segment.needed])


@pytest.mark.parametrize("ratio", [2, 9, 40])
def test_a_long_document_is_read_from_a_drawn_tick_on_with_its_lead_in(ratio):
    packing = dataclasses.replace(BUDGETS, controller_tokens=100, planner_tokens=200, lead_in=3, segment_ticks=9)
    packing = dataclasses.replace(packing, planner_lead_in=6, ratios=(ratio,), latencies=(0, 4), draw_places=False)
    encoded = encode_episode(SCHEMA, "said", document("ab" * 400, 0), Letters())
    for seed in range(20):
        batch, figures = pack(np.random.default_rng(seed), lambda rng: encoded, SCHEMA, packing)
        assert figures["loss_ticks"] > 0
        slow, read = batch.planner, {}
        for tick in slow.tick[0][(slow.segment[0] == 1) & (slow.value[0, :, 0] != PATCH)].tolist():
            read[tick] = read.get(tick, 0) + 1
        # Every piece from the first tick on, none left out, none twice.
        assert list(read) == list(range(min(read), max(read) + 1))
        assert set(read.values()) == {SIZE}
        used = batch.planner_text.slot[0][batch.planner_text.weight[0] > 0]
        assert min(read) == 0 or slow.tick[0][used[slow.segment[0, used] == 1]].min(initial=10**6) >= min(read) + 6
        bearing = batch.text.slot[0][batch.text.weight[0] > 0]
        for slot in bearing[batch.controller.segment[0, bearing] == 1]:
            plan = batch.plan[0, slot]
            assert plan < 0 or min(read) == 0 or slow.tick[0, batch.plan_slot[0, plan]] >= min(read) + 6


def test_what_is_too_small_for_text_or_images_is_named():
    encoded = encode_episode(SCHEMA, "said", document("the quick brown fox", 1), Letters())
    for name, value in {"text_targets": 5, "patches": 3}.items():
        with pytest.raises(ValueError, match=f"and a row has {value}: raise {name}"):
            pack(np.random.default_rng(0), lambda rng: encoded, SCHEMA, dataclasses.replace(BUDGETS, **{name: value}))
    with pytest.raises(ValueError, match="says text: a tokenizer is needed"):
        encode_episode(SCHEMA, "said", document("the", 1))
