import dataclasses
import time

import numpy as np
import pytest

from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.mixture import Loader, Mixture, Part
from hierarchy.corpus.store import write_source
from tests.hierarchy.corpus.corpus_toys import Letters, toy_episode, toy_layout, toy_schema

PACKING = Packing(rows=2, controller_tokens=256, planner_tokens=256)


def mirrored(episode, rng):
    if rng.random() < 0.5:
        return episode
    return dataclasses.replace(episode, action=1 - episode.action, label=1 - episode.label)


def mixture(transform=mirrored, weights=(1.0, 3.0), cache=4096):
    schema = toy_schema(toy_layout("arm"), toy_layout("maze", discrete=True))
    arms = [toy_episode(number, 50) for number in range(8)]
    mazes = [toy_episode(number, 70, discrete=True) for number in range(8, 24)]
    parts = [Part(arms, "arm", weights[0], transform), Part(mazes, "maze", weights[1])]
    return Mixture(schema, PACKING, parts, Letters(), cache)


def leaves(batch):
    for value in batch:
        yield from value if isinstance(value, tuple) else [value]


def same(one, other):
    return all(np.array_equal(left, right) for left, right in zip(leaves(one[0]), leaves(other[0]))) and one[1] == other[1]


def test_a_batch_is_a_function_of_seed_and_step_alone():
    fresh, used = mixture(), mixture(cache=3)
    for step in (9, 2, 5, 2):
        used.batch(1, step)
    assert same(fresh.batch(1, 7), used.batch(1, 7))
    assert not same(fresh.batch(1, 7), fresh.batch(1, 8))
    assert not same(fresh.batch(1, 7), fresh.batch(2, 7))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupted_loader_goes_on_with_the_very_same_batches(threads):
    loader = Loader(mixture(), 4, threads=threads)
    whole = [next(loader) for _ in range(9)]
    loader.close()
    again = Loader(mixture(), 4, first_step=5, threads=1, ahead=1)
    assert all(same(next(again), batch) for batch in whole[5:])
    again.close()
    assert same(mixture().batch(4, 6), whole[6])


def test_the_loader_counts_the_seconds_that_its_consumer_waits():
    class Slow:
        def batch(self, seed, step):
            time.sleep(0.3)
            return step

    loader = Loader(Slow(), 0)
    assert next(loader) == 0
    assert loader.wait_s > 0.3
    waited = loader.wait_s
    time.sleep(1)
    assert next(loader) == 1
    assert loader.wait_s - waited < 0.3
    loader.close()


def test_weights_say_how_often_a_part_is_drawn():
    mixed, rng = mixture(), np.random.default_rng(0)
    drawn = [mixed.draw(rng).history.layout.name for _ in range(2000)]
    assert drawn.count("maze") / 2000 == pytest.approx(0.75, abs=0.04)
    never = mixture(weights=(0.0, 1.0))
    assert {never.draw(rng).history.layout.name for _ in range(200)} == {"maze"}


def test_transforms_are_drawn_anew_and_other_parts_are_encoded_once():
    mixed, rng = mixture(weights=(1.0, 0.0)), np.random.default_rng(0)
    labels = {}
    for _ in range(300):
        encoded = mixed.draw(rng)
        number = int(encoded.history._held["number", encoded.history.layout.controller[1].codec][0, 0, 0])
        labels.setdefault(number, set()).add(encoded.label.tobytes())
    assert all(len(kinds) == 2 for kinds in labels.values())
    assert mixed._encode(1, mixed.parts[1].episodes[0]) is not mixed._encoded(1, 0)
    assert mixed._encoded(1, 0) is mixed._encoded(1, 0)


def test_a_mixture_reads_from_disk(tmp_path):
    episodes = [toy_episode(number, 50) for number in range(6)]
    source = write_source(tmp_path, episodes, name="toy", tick_s=0.04, licence="", expert="", shard_size=4)
    schema = toy_schema(toy_layout())
    read, kept = (Mixture(schema, PACKING, [Part(part, "toy")], Letters()) for part in (source, episodes))
    assert same(read.batch(0, 3), kept.batch(0, 3))


def test_a_wrong_mixture_is_refused():
    schema = toy_schema(toy_layout())
    with pytest.raises(ValueError, match="not all 0"):
        Mixture(schema, PACKING, [Part([toy_episode(0, 5)], "toy", 0.0)], Letters())
    with pytest.raises(KeyError, match="no layout 'other'"):
        Mixture(schema, PACKING, [Part([toy_episode(0, 5)], "other")], Letters())
    with pytest.raises(ValueError, match="layout 'toy': its part of the mixture has no episodes"):
        Mixture(schema, PACKING, [Part([], "toy")], Letters())
