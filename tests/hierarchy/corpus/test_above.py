"""Planners above the planner in packed rows, against the raw episode and a naive event loop; and what is refused."""

import dataclasses

import numpy as np
import pytest

from hierarchy.corpus.budgets import AbovePacking, Packing
from hierarchy.corpus.packing import draw_offer, fill, pack
from hierarchy.corpus.segment import cut, encode_episode, make, trim
from hierarchy.layout import EMPTY, Schema
from hierarchy.timeline import periodic, recorded
from tests.hierarchy.corpus.corpus_toys import Letters, toy_episode, toy_layout, toy_schema
from tests.hierarchy.corpus.test_packing import naive_plans

SAYS = {"say": ((0, "go on"), (13, "to the left"), (29, "right"))}
ROOM = Packing(
    rows=3,
    controller_tokens=300,
    planner_tokens=160,
    lead_in=8,
    planner_lead_in=22,
    planner_reread=6,
    controller_reread=2,
    above=(AbovePacking(tokens=200, plans=64, lead_in=16, reread=4, ratios=(3, 8, 20), latencies=(0, 5)),),
)


def three_rates():
    """The toy layout whose planner_2 alone reads what is said, and the ids of an episode."""
    layout = toy_layout()
    fields = {field.name: field for field in layout.planner}
    own = tuple(fields[name] for name in ("counter", "hint", "chime", "number"))
    schema = toy_schema(dataclasses.replace(layout, planner=own, above=((fields["counter"], fields["say"], fields["state"]),)))
    return schema, encode_episode(schema, "toy", toy_episode(1, 64, says=SAYS), Letters())


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (periodic(64, 4, 2, 1), periodic(64, 16, 5)),
        (periodic(64, 9, 3), periodic(64, 2, 7)),
        (periodic(64, 1), recorded([5, 12, 13, 40], [60, 21, 14, 40])),
        (periodic(64, 4), recorded([], [])),
    ],
)
@pytest.mark.parametrize("window", [(0, 64), (20, 34)])
def test_each_update_sees_the_plan_that_an_event_loop_gives_it(lower, upper, window):
    _, encoded = three_rates()
    segment = cut(np.random.default_rng(0), encoded, lower, window, ROOM, (upper,))
    for part in (segment, trim(segment)):
        above, plans = part.above[0], naive_plans(upper, 64)
        assert len(above.plan) == len(above.age) == len(part.planner.tick)
        for token, tick in enumerate(part.planner.tick.tolist()):
            update, age = plans[tick]
            assert above.age[token] == age
            shown = above.stream.tick[above.plan_slot[above.plan[token]]] if above.plan[token] >= 0 else -1
            assert shown == (upper.observed[update] if update >= 0 else -1)
        # A plan is read off the last token of its update.
        ends = np.append(np.diff(above.stream.tick) != 0, True)
        assert ends[above.plan_slot].all()


def test_what_is_said_is_read_above_alone():
    schema, encoded = three_rates()
    segment = cut(np.random.default_rng(0), encoded, periodic(64, 4), (0, 64), ROOM, (periodic(64, 8),))
    ids = schema.field_ids("toy")
    said = segment.above[0].stream
    letters = said.value[said.field[:, 0] == ids["planner_2", "say"], 0]
    heard = "".join(map(chr, letters))
    # Said first at tick 0; at updates 16 and 32 anew; and again every other tick that is more than 4 after.
    assert heard.startswith("go ongo onto the left")
    assert not np.isin(segment.planner.field, ids["planner_2", "say"]).any()
    assert ("planner", "say") not in ids
    assert len(set(ids.values())) == len(ids)


def test_packed_rows_hold_what_their_segments_hold():
    schema, encoded = three_rates()
    rng = np.random.default_rng(3)
    parts = [make(rng, draw_offer(rng, encoded, ROOM).outline) for _ in range(2)]
    batch = fill([parts, [], parts[:1]], schema, ROOM)
    above = batch.above[0]
    assert above.plan.shape == batch.planner.tick.shape == (3, ROOM.planner_tokens)
    assert all((array[1] == EMPTY).all() for array in (above.plan, above.age, above.plan_slot, above.stream.value))
    for b, row in ((0, parts), (2, parts[:1])):
        for number, part in enumerate(row, start=1):
            mine = batch.planner.segment[b] == number
            wanted = part.above[0].stream.tick[part.above[0].plan_slot]
            seen = above.plan[b][mine]
            slots = above.plan_slot[b, seen]
            np.testing.assert_array_equal(above.age[b][mine], part.above[0].age)
            np.testing.assert_array_equal(
                np.where(seen >= 0, above.stream.tick[b, slots], -1), np.append(wanted, -1)[part.above[0].plan]
            )
            assert (above.stream.segment[b, slots[seen >= 0]] == number).all()


def test_a_batch_is_filled_within_every_budget_and_drawn_alike():
    schema, encoded = three_rates()
    first, figures = pack(np.random.default_rng(7), lambda rng: encoded, schema, ROOM)
    again, _ = pack(np.random.default_rng(7), lambda rng: encoded, schema, ROOM)
    assert 0 <= figures["planner_2_padding"] < 1
    np.testing.assert_array_equal(first.above[0].plan, again.above[0].plan)
    assert first.above[0].stream.tick.shape == (3, 200)
    assert (first.above[0].age.max(axis=1) > 0).all()


def test_budgets_that_are_too_small_or_lacking_are_named():
    schema, encoded = three_rates()

    def packed_with(**changed):
        above = (dataclasses.replace(ROOM.above[0], **changed),)
        return pack(np.random.default_rng(0), lambda rng: encoded, schema, dataclasses.replace(ROOM, above=above))

    with pytest.raises(ValueError, match="plans of planner_2, and a row has 1: raise plans of planner_2"):
        packed_with(plans=1, ratios=(1,))
    with pytest.raises(ValueError, match="raise the tokens of planner_2"):
        packed_with(tokens=4)
    without = dataclasses.replace(ROOM, above=())
    with pytest.raises(ValueError, match="1 planners above the planner; there are 0 timelines and 0 budgets"):
        pack(np.random.default_rng(0), lambda rng: encoded, schema, without)
    with pytest.raises(ValueError, match="0 budgets above the planner, and the layouts have 1"):
        fill([[]], schema, without)


def test_layouts_of_one_schema_have_as_many_planners():
    schema, _ = three_rates()
    with pytest.raises(ValueError, match="as many of them"):
        Schema((*schema.layouts, toy_layout("other")), Letters.pieces)
