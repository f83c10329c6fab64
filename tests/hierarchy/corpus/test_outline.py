"""What is said of a segment before it is made, against what is made."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hierarchy.corpus.budgets import AbovePacking, Packing
from hierarchy.corpus.outline import TAKEN, NoLoss, outline, window_at
from hierarchy.corpus.segment import cut, encode_episode, make, taken, trim
from hierarchy.layout import EMPTY, Discrete, Field, ahead, single_rate
from hierarchy.timeline import draw, periodic
from tests.hierarchy.corpus.corpus_toys import Letters, toy_episode, toy_layout, toy_schema
from tests.hierarchy.corpus.test_said import SCHEMA as SAID
from tests.hierarchy.corpus.test_said import document

SAYS = {"say": ((0, "go"), (7, "left"), (31, "right")), "hint": ((5, "mind the gap"), (6, ""))}
PREDICTED = (Field("chime", Discrete(3)),)


def above(layout):
    """The layout with a planner above the planner, which hears what is said in its place."""
    fields = {field.name: field for field in layout.planner}
    own = tuple(field for name, field in fields.items() if name != "say")
    return dataclasses.replace(layout, planner=own, above=((fields["counter"], fields["say"]),))


LAYOUTS = {
    "pooled": toy_layout(elements=2),
    "scalars": toy_layout(pooled=False, discrete=True),
    "single_rate": single_rate(toy_layout()),
    "chunked": ahead(toy_layout(), 0, 4),
    "late": ahead(toy_layout(), 3, 1),
    "predicted": dataclasses.replace(toy_layout(), predicted=PREDICTED, lifetime=True),
    "three_rates": above(toy_layout()),
}


def encoded(kind: str, ticks: int):
    """The ids of an episode of a kind, some of its labels and sub-goals missing."""
    if kind == "document":
        return encode_episode(SAID, "said", document("the quick brown fox " * (1 + ticks // 8), ticks % 2), Letters())
    layout, discrete = LAYOUTS[kind], kind == "scalars"
    episode = toy_episode(3, ticks, elements=2 if kind == "pooled" else 1, discrete=discrete, says=SAYS)
    goal = np.where(np.arange(ticks) % 5 == 2, EMPTY, np.arange(ticks) // 4)
    label = episode.label.copy()
    label[::7] = EMPTY if discrete else np.nan
    episode = dataclasses.replace(episode, label=label, privileged={"goal": goal})
    return encode_episode(toy_schema(layout), layout.name, episode, Letters())


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*LAYOUTS, "document"]), st.integers(1, 90), st.data())
def test_an_outline_takes_what_its_segment_does(kind, ticks, data):
    whole = encoded(kind, ticks)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    packing = Packing(
        controller_tokens=data.draw(st.sampled_from([60, 150, 2000])),
        planner_tokens=data.draw(st.sampled_from([60, 150, 2000])),
        segment_ticks=data.draw(st.sampled_from([3, 24, None])),
        lead_in=data.draw(st.integers(0, 8)),
        planner_lead_in=data.draw(st.integers(0, 20)),
        planner_reread=data.draw(st.integers(1, 40)),
        ratios=(1, 4, 16) if kind != "chunked" else (4,),
        above=(AbovePacking(100, 64, 4, 9),) if kind == "three_rates" else (),
    )
    timelines = [draw(rng, whole.ticks, packing.ratios, (0, 3, 20)) for _ in range(1 + len(packing.above))]
    try:
        drawn = outline(whole, timelines[0], window_at(rng.random(), whole, packing), packing, timelines[1:], rng.random())
    except ValueError:
        return
    segment = make(rng, drawn)
    np.testing.assert_array_equal(drawn.whole, taken(segment))
    least, trimmed = dict(zip(TAKEN, drawn.least)), dict(zip(TAKEN, taken(trim(segment))))
    assert least == trimmed
    assert (drawn.least <= drawn.whole).all()
    assert taken(segment)[0] <= packing.controller_tokens
    assert taken(segment)[1] <= packing.planner_tokens


def test_a_trimmed_segment_may_keep_whole_ticks_of_what_no_tick_sees():
    whole = encoded("scalars", 80)
    segment = cut(np.random.default_rng(0), whole, periodic(80, 4), (0, 9), Packing(controller_tokens=2000, planner_tokens=2000))
    length = len(segment.planner.tick)
    for tokens in range(length + 3):
        kept = trim(segment, tokens)
        count = len(kept.planner.tick)
        assert segment.needed <= count <= max(tokens, segment.needed)
        assert count == length or segment.planner.tick[count] != segment.planner.tick[count - 1]
        assert kept.sub_goal.slot.max(initial=-1) < count
        np.testing.assert_array_equal(kept.controller.value, segment.controller.value)
    assert len(trim(segment, length).planner.tick) == length


@pytest.mark.parametrize("segment_ticks", [1, 7, 30])
@pytest.mark.parametrize("longer", [0, 1, 13, 60])
def test_a_longer_window_holds_the_shorter_one_and_every_tick_as_often(segment_ticks, longer):
    whole = encoded("pooled", 50)
    packing = Packing(segment_ticks=segment_ticks)
    counts, places = np.zeros(50), (np.arange(5000) + 0.5) / 5000
    for place in places:
        a, b = window_at(place, whole, packing)
        first, last = window_at(place, whole, packing, longer)
        assert 0 <= first <= a < b <= last <= 50
        assert last - first <= b - a + longer
        counts[first:last] += 1
    assert counts.min() > 0.95 * counts.max()


def test_where_no_tick_could_bear_loss_it_says_so():
    with pytest.raises(NoLoss, match="raise planner_tokens"):
        outline(encoded("pooled", 90), periodic(90, 1), (60, 61), Packing(planner_tokens=30, planner_lead_in=40))
