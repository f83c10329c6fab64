"""The named sizes: what they are made of, counted from shapes alone, and what makes no model."""

import dataclasses
import functools
import math

import jax
import pytest

from experiments.tasks import schema_of
from hierarchy.layout import TEXT_IDS
from hierarchy.model.config import PRESETS
from hierarchy.model.network import build

PUBLISHED = {"79M": 78.1e6, "364M": 363.7e6, "1.18B": 1177e6}
"""What one family of parameters makes of the sizes in arXiv 2205.06175, table 5; the paper's names are these within 1.5%."""


@functools.cache
def shapes(preset: str, tasks: tuple[str, ...] = ("patrol",)) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The parameters of a preset that reads the patrol and as many pieces of text as Gato, as shapes: nothing is allocated."""
    return jax.eval_shape(build(PRESETS[preset], schema_of(tasks, TEXT_IDS, "two_rate")).init, jax.random.key(0))


def count(preset: str, part: str, tasks: tuple[str, ...] = ("patrol",)) -> int:
    modules = [leaves for name, leaves in shapes(preset, tasks).items() if name.startswith(part)]
    return sum(math.prod(leaf.shape) for leaves in modules for leaf in leaves.values())


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_planner_has_the_parameters_of_gato(preset):
    named = float(preset[:-1]) * {"M": 1e6, "B": 1e9}[preset[-1]]
    assert count(preset, "planner") == pytest.approx(PUBLISHED[preset], rel=0.015)
    assert count(preset, "planner") == pytest.approx(named, rel=0.015)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_layer_is_of_the_family_that_fits_the_published_counts(preset):
    """Queries, keys, values, output, distances, d x d each; GEGLU, the feed-forward size split in two; norms and biases."""
    planner = PRESETS[preset].planner
    d, wide = planner.width, planner.feed_forward
    per_layer = 5 * d * d + d * wide + (wide // 2) * d + 2 * d + 2 * d
    assert count(preset, "planner/transformer/layer_") == planner.layers * per_layer
    words = shapes(preset)["planner/embedding"]["names"].shape
    assert words == (TEXT_IDS + 1, d)
    assert [name for name, leaves in shapes(preset).items() for leaf in leaves.values() if leaf.shape[-1:] == (TEXT_IDS,)] == []


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_planner_that_says_text_has_them_too(preset):
    """What predicts a piece is the table that embeds it: with a matrix of its own there would be 32 000 rows more."""
    tasks = ("patrol", "text")
    named = float(preset[:-1]) * {"M": 1e6, "B": 1e9}[preset[-1]]
    assert count(preset, "planner", tasks) == pytest.approx(PUBLISHED[preset], rel=0.015)
    assert count(preset, "planner", tasks) == pytest.approx(named, rel=0.015)
    large = {
        (name, leaf): each.shape
        for name, leaves in shapes(preset, tasks).items()
        for leaf, each in leaves.items()
        if max(each.shape) >= TEXT_IDS
    }
    width = {model: getattr(PRESETS[preset], model).width for model in ("planner", "controller")}
    tables = {(f"{model}/embedding", "names"): (TEXT_IDS + 1, width[model]) for model in width}
    assert large == tables | {(f"{model}/embedding", "bias"): (TEXT_IDS,) for model in width}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_controller_is_small_beside_its_planner(preset):
    assert count(preset, "controller/transformer") < count(preset, "planner/transformer") / 10


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(plan_read="telepathy"), "cross_attention, film, prefix"),
        (dict(plan_levels=(3, 4, 5)), "stand in turn for 16 channels"),
        (dict(plan_levels=(1,)), "at least 2"),
        (dict(least_ratio=0), "least_ratio is 0: it counts ticks"),
    ],
)
def test_what_makes_no_model_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(PRESETS["debug"], **wrong)
