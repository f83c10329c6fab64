"""Ids, orders and counts of layouts; the schema gives every scalar an id of its own."""

import dataclasses
import json

import pytest

from hierarchy.layout import (
    BINS,
    CONTINUOUS_START,
    SEPARATOR,
    Angle,
    Bounded,
    Continuous,
    Discrete,
    Field,
    Image,
    Layout,
    Piece,
    Schema,
    Text,
    describe,
    id_range,
    names,
    observed,
    readers,
    scalars,
    single_rate,
    tokens_between,
    tokens_per_reading,
    tokens_per_update,
)

MOTOR = Field("action", Bounded((-1.0, 0.0), (1.0, 2.0)), 2)
STATE = Field("state", Continuous(), 3, frames=2, stride=4)
COUNT = Field("count", Discrete(7), 2)
SAY, HINT = Field("say", Text()), Field("hint", Text())


def layout(**changed) -> Layout:
    return Layout(**(dict(name="toy", planner=(STATE, SAY, COUNT, HINT), controller=(COUNT, STATE), action=MOTOR) | changed))


def test_id_ranges_are_gatos():
    assert id_range(Text(), 500) == (0, 500)
    assert id_range(Discrete(7), 500) == (0, 7)
    assert id_range(Continuous(), 500) == id_range(Angle(), 500) == (32_000, 1024)
    assert id_range(Bounded((0.0,), (1.0,), 64), 500) == (32_000, 64)
    assert SEPARATOR == CONTINUOUS_START + BINS == 33_024


def test_fields_stand_in_gatos_order_whatever_order_they_are_given_in():
    assert [field.name for field in layout().planner] == ["hint", "say", "count", "state"]
    assert layout(planner=(COUNT, HINT, STATE, SAY)) == layout()


def test_counts():
    assert scalars(layout().planner) == 2 + 6
    assert names(layout().planner) == 2
    assert (tokens_per_update(layout()), tokens_per_reading(layout())) == (1, 1)
    assert (tokens_per_update(layout(pooled=False)), tokens_per_reading(layout(pooled=False))) == (8, 9)
    assert tokens_per_update(layout(planner=())) == 0


def test_every_scalar_has_a_field_id_of_its_own():
    schema = Schema((layout(), layout(name="other", planner=(), controller=(STATE,))), text_pieces=10)
    sizes = {"state": 6, "count": 2, "say": 1, "hint": 1, "separator": 1, "action": 2}
    spans = [
        range(first, first + sizes[name]) for each in ("toy", "other") for (_, name), first in schema.field_ids(each).items()
    ]
    taken = sorted(field for span in spans for field in span)
    assert taken == list(range(schema.fields))


def test_every_field_is_of_one_stream_and_one_layout():
    schema = Schema((layout(), layout(name="other", planner=(), controller=(STATE,))), text_pieces=10)
    groups = [group for reader in ("planner", "controller") for group in schema.own_fields(reader)]
    assert sorted(field for group in groups for field in group) == list(range(schema.fields))
    assert [len(group) for group in schema.own_fields("planner")] == [scalars(layout().planner) + 2, 0]
    ids, own = schema.field_ids("other"), schema.own_fields("controller")[1]
    assert {ids["controller", "separator"], ids["action", "action"], ids["action", "action"] + 1} <= set(own)


def test_atoms_are_counted_for_pooled_layouts_alone():
    schema = Schema((layout(), layout(name="other", pooled=False)), text_pieces=10)
    assert (schema.planner_atoms, schema.controller_atoms) == (8, 9)
    assert (schema.planner_names, schema.controller_names) == (2, 2)
    flat = Schema((layout(pooled=False),), text_pieces=10)
    assert (flat.planner_atoms, flat.controller_atoms, flat.planner_names, flat.controller_names) == (1, 1, 1, 1)


def test_single_rate_reads_everything_once_at_every_tick():
    alone = single_rate(layout(planner=(SAY, COUNT, STATE), controller=(Field("speed", Continuous()), COUNT)))
    assert alone.planner == ()
    assert [field.name for field in alone.controller] == ["say", "count", "speed", "state"]


def test_a_schema_is_found_by_name_and_described_in_json():
    schema = Schema((layout(),), text_pieces=10)
    assert schema["toy"] is schema.layouts[0]
    plain = json.loads(json.dumps(describe(schema)))
    assert plain["layouts"][0]["action"]["codec"] == {"kind": "Bounded", "low": [-1.0, 0.0], "high": [1.0, 2.0], "bins": 1024}
    assert describe(Schema((layout(pooled=False),), text_pieces=10)) != describe(schema)
    for ask in (schema.__getitem__, schema.field_ids):
        with pytest.raises(KeyError, match="no layout 'absent'"):
            ask("absent")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Discrete(0), "1 to 1024 values, not 0"),
        (lambda: Discrete(1025), "1 to 1024 values, not 1025"),
        (lambda: Continuous(mu=0.0), "must be above 0"),
        (lambda: Continuous(bound=-1.0), "must be above 0"),
        (lambda: Bounded((0.0,), (0.0,)), "finite and low below high"),
        (lambda: Bounded((0.0,), (float("inf"),)), "finite and low below high"),
        (lambda: Bounded((float("nan"),), (1.0,)), "finite and low below high"),
        (lambda: Bounded((0.0,), (1.0, 2.0)), "finite and low below high"),
        (lambda: Bounded((0.0,), (1.0,), 1), "2 to 1024 bins"),
        (lambda: Field("x", Continuous(), 0), "at least 1"),
        (lambda: Field("x", Continuous(), 1, stride=0), "at least 1"),
        (lambda: Field("x", Bounded((0.0,), (1.0,)), 2), "1 bounds for 2 elements"),
        (lambda: Field("x", Discrete(3), frames=2, summed="reading"), "frames are of numbers at single ticks"),
        (lambda: Field("x", Text(), frames=2), "frames are of numbers at single ticks"),
        (lambda: layout(controller=(COUNT, COUNT)), "the controller reads a field twice"),
        (lambda: layout(controller=(SAY,)), "the controller reads at least one field of numbers"),
        (lambda: layout(planner=(SAY,)), "the planner reads at least one field of numbers"),
        (lambda: layout(action=Field("action", Continuous())), "give an unbounded one bounds"),
        (lambda: layout(action=SAY), "Bounded, Discrete or Piece"),
        (lambda: Image(32, 40), "does not divide into patches"),
        (lambda: Image(0, 16), "does not divide into patches"),
        (lambda: Field("x", Discrete(3), every_tick=True, frames=2), "read for every tick has one frame"),
        (lambda: Field("x", Image(16, 16), every_tick=True), "read for every tick has one frame"),
        (lambda: layout(controller=(COUNT, Field("x", Discrete(3), every_tick=True))), "every_tick is the planner's"),
        (lambda: layout(controller=(COUNT, Field("x", Image(16, 16)))), "images are the planner's"),
        (lambda: Schema((layout(planner=(STATE,), action=Field("words", Piece(), 3)),)), "train a tokenizer first"),
        (
            lambda: Schema((layout(planner=(STATE, Field("x", Image(16, 16)), Field("y", Image(16, 16, 1)))),)),
            "one set of weights embeds one kind",
        ),
        (lambda: layout(above=((SAY,),)), "every planner has one below it, and reads at least one field of numbers"),
        (lambda: layout(planner=(), above=((STATE,),)), "every planner has one below it"),
        (lambda: layout(above=((STATE, STATE),)), "the planner_2 reads a field twice"),
        (lambda: layout(above=((STATE, Field("x", Image(16, 16))),)), r"the planner_2 reads \['x'\].*there are no images"),
        (lambda: layout(planner=(COUNT, Field("x", Discrete(3), every_tick=True)), above=((STATE,),)), "no every_tick"),
        (lambda: layout(action=Field("words", Piece(), 3), above=((STATE,),)), "text is said with one planner at most"),
        (lambda: Schema(()), "at least one layout"),
        (lambda: Schema((layout(), layout()), 10), "no name twice"),
        (lambda: Schema((layout(),)), "train a tokenizer first"),
        (lambda: Schema((layout(),), 32_001), "there is room for 32000"),
    ],
)
def test_what_is_no_layout_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_read_for_every_tick_is_counted_between_updates_too():
    said = Field("previous_action", Piece(), 5, every_tick=True)
    action = Field("words", Piece(), 5)
    flat = layout(planner=(COUNT, said, Field("camera", Image(32, 32))), action=action, pooled=False)
    assert (tokens_per_update(flat), tokens_between(flat)) == (7, 5)
    assert tokens_between(dataclasses.replace(flat, pooled=True)) == 1
    assert tokens_between(layout()) == 0
    assert [field.name for field in flat.planner] == ["camera", "count", "previous_action"]
    alone = single_rate(flat)
    assert not any(field.every_tick for field in alone.controller)
    schema = Schema((flat,), text_pieces=50)
    assert schema.patch_values == 16 * 16 * 3
    assert schema.says
    assert not Schema((layout(),), text_pieces=10).says


def test_planners_above_the_planner_have_ids_and_tokens_of_their_own():
    slower = layout(planner=(COUNT,), above=((STATE, SAY), (COUNT, STATE)), pooled=False)
    assert list(readers(slower)) == ["planner", "controller", "planner_2", "planner_3"]
    assert [tokens_per_update(slower, reader) for reader in ("planner", "planner_2", "planner_3")] == [
        scalars((COUNT,)),
        scalars((STATE,)),
        scalars((COUNT, STATE)),
    ]
    schema = Schema((slower,), text_pieces=10)
    ids = schema.field_ids("toy")
    assert schema.above == 2
    assert len(set(ids.values())) == len(ids)
    assert max(ids.values()) + slower.action.size <= schema.fields
    assert {field.name for field in single_rate(slower).controller} == {field.name for field in observed(slower)}


def test_a_run_from_before_there_was_a_flag_is_described_alike():
    plain = json.dumps(describe(Schema((layout(),), text_pieces=10)))
    assert not any(name in plain for name in ("every_tick", "late", "chunk", "above"))
    said = dataclasses.replace(COUNT, every_tick=True)
    assert "every_tick" in json.dumps(describe(Schema((layout(planner=(said,)),), text_pieces=10)))
