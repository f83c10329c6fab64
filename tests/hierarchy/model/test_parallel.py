"""The parallel pass does not care where in a batch a segment stands; and time is in it."""

import dataclasses

import numpy as np
import pytest

from hierarchy.batch import Batch
from hierarchy.corpus.packing import fill
from hierarchy.timeline import periodic, recorded
from tests.hierarchy.model.two_rate_toys import UNTOLD, Toy, packed, segments, toy, windows, world

TIMELINE = periodic(64, 4, 2)


def logits_of(made: Toy, batch: Batch) -> np.ndarray:
    return np.asarray(made.forward(made.params, batch).continuous)


def made_and_parts(kind: str = "film"):
    made = toy(kind)
    return made, segments(made, world(made), TIMELINE, windows(made.ticks))


def test_rows_are_independent_and_in_any_order():
    made, parts = made_and_parts()
    before = logits_of(made, packed(made, parts))
    turned = logits_of(made, packed(made, [parts[2], parts[0], parts[1]]))
    np.testing.assert_allclose(turned[[1, 2, 0]], before, atol=1e-5)
    other = packed(made, [parts[0], parts[2], parts[1]])
    np.testing.assert_array_equal(logits_of(made, other)[0], before[0])


def test_segments_are_independent_and_in_any_order():
    made, parts = made_and_parts()
    before = logits_of(made, packed(made, parts))[1]
    first, second = parts[1]
    turned = logits_of(made, packed(made, [parts[0], [second, first], parts[2]]))[1]
    sizes = [len(part.continuous.slot) for part in (first, second)]
    np.testing.assert_allclose(turned[sizes[1] : sum(sizes)], before[: sizes[0]], atol=2e-5)
    np.testing.assert_allclose(turned[: sizes[1]], before[sizes[0] : sum(sizes)], atol=2e-5)


def test_padding_is_not_seen():
    made, parts = made_and_parts()
    wide = dataclasses.replace(
        made.packing,
        controller_tokens=made.packing.controller_tokens + 37,
        planner_tokens=made.packing.planner_tokens + 41,
        plans=made.packing.plans + 3,
    )
    before, after = (logits_of(made, fill(parts, made.schema, packing)) for packing in (made.packing, wide))
    np.testing.assert_allclose(after, before, atol=2e-5)


def test_what_stands_in_padding_is_not_seen():
    made, parts = made_and_parts()
    batch = packed(made, parts)
    empty = batch.controller.segment == 0
    assert empty.any()
    used = batch.continuous.weight > 0
    noisy = batch.controller._replace(
        value=np.where(empty[:, :, None], 32_100, batch.controller.value),
        field=np.where(empty[:, :, None], 1, batch.controller.field),
        tick=np.where(empty, 7, batch.controller.tick),
        lasting=batch.controller.lasting | empty,
    )
    before, after = logits_of(made, batch), logits_of(made, batch._replace(controller=noisy))
    np.testing.assert_array_equal(after[used], before[used])


def gaps_in_a_still_world(kind: str) -> np.ndarray:
    """How far the logits of late ticks are from each other. Nothing changes in the world, every window is full and plans have one
    age: only the time itself can tell ticks apart."""
    made = toy(kind)
    still = [
        dataclasses.replace(
            episode,
            observation={name: np.repeat(values[:1], 65, axis=0) for name, values in episode.observation.items()},
            action=np.repeat(episode.action[:1], 64, axis=0),
            label=np.repeat(episode.label[:1], 64, axis=0),
            text={"say": (), "hint": ()},
        )
        for episode in world(made)
    ]
    timeline = TIMELINE if made.network.config.planner is not None else recorded([], [])
    parts = segments(made, still, timeline, windows(64), planner_reread=1000)
    logits = logits_of(made, packed(made, parts))[0].reshape(-1, made.layout.action.size, 1024)[:64, :, :512]
    late = logits[[47, 51, 55, 59, 63]]
    return np.abs(np.diff(late, axis=0)).max(axis=(1, 2))


@pytest.mark.parametrize("kind", ["pooled", "film", "single_rate"])
def test_the_same_tick_at_another_time_is_another_tick(kind):
    assert (gaps_in_a_still_world(kind) > 1e-4).all()


@pytest.mark.parametrize("kind", UNTOLD)
def test_and_is_the_same_to_a_model_that_is_not_told_the_tick(kind):
    assert (gaps_in_a_still_world(kind) < 1e-5).all()


def test_a_head_has_the_classes_of_the_layouts_and_is_there_only_if_one_needs_it():
    film, scalars = (
        {name.rsplit("/", 1)[-1]: leaves for name, leaves in toy(kind).params.items() if name.startswith("controller")}
        for kind in ("film", "scalars")
    )
    assert scalars["discrete"]["w"].shape == (12, 9)
    assert "discrete" not in film
