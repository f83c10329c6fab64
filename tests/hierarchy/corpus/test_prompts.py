"""Prompts: whose ticks they are, where they stand in a row, and what they leave as it was."""

import collections
import dataclasses

import numpy as np
import pytest

from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.mixture import Loader, Mixture, Part
from hierarchy.corpus.prompts import NO_PROMPTS, Prompts, draw_excerpt, excerpt, is_prompted, lay_before
from hierarchy.corpus.segment import cut, encode_episode, trim
from hierarchy.episode import check
from hierarchy.layout import single_rate
from hierarchy.timeline import periodic
from tests.hierarchy.corpus.corpus_toys import Letters, toy_episode, toy_layout, toy_schema
from tests.hierarchy.corpus.test_mixture import mirrored, same
from tests.hierarchy.model.two_rate_toys import talking

SAYS = {"say": ((0, "go"), (7, "left"), (31, "right")), "hint": ((5, "mind the gap"), (6, ""))}
PACKING = Packing(rows=2, controller_tokens=256, planner_tokens=300, lead_in=14)
EPISODES = 12
QUARTER = Prompts(0.25, 9)


def mixture(prompts=QUARTER, transform=None, packing=PACKING, layout=None, episodes=EPISODES):
    layout = toy_layout("toy") if layout is None else layout
    recorded = [toy_episode(number, 40 + number, says=SAYS) for number in range(episodes)]
    return Mixture(toy_schema(layout), packing, [Part(recorded, "toy", 1.0, transform)], Letters(), prompts=prompts)


def read(stream, schema, name, reader="planner"):
    """What the field `name` of a stream says, and at which ticks; every reading has it once."""
    at = stream.field == schema.field_ids("toy")[reader, name]
    return stream.value[at], stream.tick[at.any(axis=-1)]


def number_of(encoded):
    """Which toy episode an encoded one is of."""
    return int(encoded.history._held["number", encoded.history.layout.controller[1].codec][0, 0, 0])


def test_an_excerpt_is_an_episode_of_its_own():
    episode = toy_episode(3, 40, says=SAYS)
    part = check(excerpt(episode, 6, 33))
    assert part.ticks == 27
    np.testing.assert_array_equal(part.observation["counter"], np.arange(6, 34))
    np.testing.assert_array_equal(part.action, episode.action[6:33])
    assert part.text == {"say": ((0, "go"), (1, "left"), (25, "right")), "hint": ((0, ""),)}
    np.testing.assert_equal(dataclasses.asdict(excerpt(episode, 0, 40)), dataclasses.asdict(episode))
    assert part.truncated
    ended = dataclasses.replace(episode, terminated=True, truncated=False)
    assert [excerpt(ended, *ticks).terminated for ticks in ((0, 39), (39, 40))] == [False, True]


@pytest.mark.parametrize("ticks", [(-1, 3), (4, 4), (5, 41)])
def test_there_are_no_ticks_but_an_episodes_own(ticks):
    with pytest.raises(ValueError, match="'toy' that has 40"):
        excerpt(toy_episode(0, 40), *ticks)


def test_half_of_the_prompts_are_the_end_of_an_episode_and_half_are_from_anywhere():
    rng, episode = np.random.default_rng(0), toy_episode(0, 30)
    starts = collections.Counter(int(draw_excerpt(rng, episode, 10).observation["counter"][0]) for _ in range(8000))
    assert set(starts) == set(range(21))
    anywhere = 0.5 / 21
    assert starts[20] / 8000 == pytest.approx(0.5 + anywhere, abs=0.03)
    assert max(starts[tick] for tick in range(20)) / 8000 == pytest.approx(anywhere, abs=0.01)
    assert draw_excerpt(rng, episode, 99).ticks == 30


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_prompt_is_of_another_episode_of_the_same_part(share):
    mixed, rng = mixture(Prompts(share, 9)), np.random.default_rng(0)
    drawn = [mixed.draw(rng) for _ in range(1500)]
    pairs = collections.Counter((number_of(each), number_of(each.prompt)) for each in drawn if each.prompt)
    assert sum(pairs.values()) / 1500 == pytest.approx(share, abs=0.04)
    assert not any(before == after for before, after in pairs)
    if share == 1:
        assert len(pairs) == EPISODES * (EPISODES - 1)


def test_a_prompt_of_the_very_episode_would_be_seen(monkeypatch):
    """The mistake of others: the window is drawn from any episode, its own among them."""
    mixed, rng = mixture(Prompts(1.0, 9)), np.random.default_rng(0)

    def of_any(rng, part, index, own):
        episode = mixed._episode(part, int(rng.integers(EPISODES)))
        return mixed._encode(part, draw_excerpt(rng, episode, 9))

    monkeypatch.setattr(mixed, "_prompt", of_any)
    drawn = [mixed.draw(rng) for _ in range(300)]
    assert any(number_of(each) == number_of(each.prompt) for each in drawn)


def test_a_prompt_is_transformed_like_an_episode():
    mixed, rng = mixture(Prompts(1.0, 99), mirrored), np.random.default_rng(0)
    labels = collections.defaultdict(set)
    for _ in range(300):
        encoded = mixed.draw(rng).prompt
        labels[number_of(encoded)].add(encoded.label.tobytes())
    assert len(labels) == EPISODES
    assert all(len(kinds) == 2 for kinds in labels.values())


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_step_is_the_same_batch_whatever_was_interrupted(threads):
    loader = Loader(mixture(transform=mirrored), 4, threads=threads)
    whole = [next(loader) for _ in range(6)]
    loader.close()
    again = Loader(mixture(transform=mirrored), 4, first_step=3)
    assert all(same(next(again), batch) for batch in whole[3:])
    again.close()
    assert any(figures["prompted"] for _, figures in whole)


def test_without_prompts_batches_are_what_they_were_before_there_were_any():
    plain, none = (mixture(given, mirrored) for given in (NO_PROMPTS, Prompts(0.0, 5)))
    # As a mixture drew before it knew of prompts: the part, the episode, the transform.
    rng, after = np.random.default_rng(3), np.random.default_rng(3)
    encoded = plain.draw(rng)
    after.random()
    index = int(after.integers(EPISODES))
    mirrored(plain.parts[0].episodes[index], after)
    assert encoded.prompt is None
    assert number_of(encoded) == index
    assert rng.random() == after.random()
    assert same(plain.batch(1, 5), none.batch(1, 5))
    assert plain.batch(1, 5)[1]["prompted"] == 0
    assert not same(plain.batch(1, 5), mixture(Prompts(1.0, 5), mirrored).batch(1, 5))


LAYOUTS = {
    "pooled": toy_layout(elements=2),
    "scalars": toy_layout(elements=2, pooled=False),
    "alone": single_rate(toy_layout(elements=2)),
}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize(("ratio", "latency", "phase"), [(1, 0, 0), (4, 3, 2), (16, 20, 5)])
@pytest.mark.parametrize("window", [(0, 40), (3, 20), (25, 40)])
def test_ticks_run_on_and_the_episode_stays_as_it_was(kind, ratio, latency, phase, window):
    layout = LAYOUTS[kind]
    schema, timeline, rng = toy_schema(layout), periodic(40, ratio, latency, phase), np.random.default_rng(0)
    packing = dataclasses.replace(PACKING, controller_tokens=4096, planner_tokens=4096)
    recorded = toy_episode(1, 40, elements=2, says=SAYS), excerpt(toy_episode(2, 50, elements=2, says=SAYS), 30, 50)
    encoded, prompt = (encode_episode(schema, "toy", episode, Letters()) for episode in recorded)
    segment = cut(rng, encoded, timeline, window, packing)
    joined = lay_before(rng, prompt, segment, timeline, packing)
    if kind == "alone" and segment.controller.tick[0] > 0:
        assert joined is segment
        return
    assert is_prompted(joined)
    assert not is_prompted(segment)
    for reader in ("planner", "controller") if layout.planner else ("controller",):
        stream, own = getattr(joined, reader), getattr(segment, reader)
        before = stream.tick < 0
        assert not before[before.sum() :].any()
        for after, was in zip(stream, own):
            np.testing.assert_array_equal(after[before.sum() :], was)
        numbers, ticks = read(stream, schema, "number", reader)
        np.testing.assert_array_equal(numbers, np.where(ticks < 0, 2, 1))
        counters, ticks = read(stream, schema, "counter", reader)
        # A prompt ends where the episode begins; the recorded ticks 30 to 49 are -20 to -1.
        np.testing.assert_array_equal(counters, np.where(ticks < 0, ticks + 50, ticks))
    observed = timeline.observed[timeline.observed < 20]
    if layout.planner:
        assert sorted(set(joined.planner.tick[joined.planner.tick < 0] + 20)) == observed.tolist()
        reach = packing.lead_in if segment.controller.tick[0] == 0 else 0
    else:
        reach = 20
    prompted = joined.controller.tick[joined.controller.tick < 0]
    assert sorted(set(prompted)) == list(range(-reach, 0))
    check_plans(joined, segment, timeline)
    check_targets(joined, segment, layout)
    kept = trim(joined).planner.tick
    np.testing.assert_array_equal(kept[kept >= 0], trim(segment).planner.tick)


def check_plans(joined, segment, timeline):
    """A tick of the prompt sees the prompt's newest plan, on time; one of the episode what it saw before, and no plan of the
    prompt's."""
    shown = (
        np.where(joined.plan >= 0, joined.planner.tick[joined.plan_slot[joined.plan]], -1000) if len(joined.plan_slot) else None
    )
    before = joined.controller.tick < 0
    count = before.sum()
    np.testing.assert_array_equal(joined.age[count:], segment.age)
    np.testing.assert_array_equal(joined.plan[count:] < 0, segment.plan < 0)
    if shown is None:
        return
    assert not (shown[~before] > -1000)[shown[~before] < 0].any()
    seen = segment.plan >= 0
    np.testing.assert_array_equal(shown[count:][seen], segment.planner.tick[segment.plan_slot[segment.plan[seen]]])
    ticks = joined.controller.tick[before]
    newest = [max(tick for tick in timeline.observed if tick <= own) for own in ticks + 20]
    np.testing.assert_array_equal(shown[before] + 20, newest)
    np.testing.assert_array_equal(joined.age[before], ticks - shown[before])


def check_targets(joined, segment, layout):
    """Nothing is predicted in a prompt, and what was predicted still is, at the same ticks."""
    for name in ("continuous", "discrete", "text", "sub_goal", "planner_text", "patches"):
        after, was = getattr(joined, name), getattr(segment, name)
        reader = "planner" if name in ("sub_goal", "planner_text", "patches") and layout.planner else "controller"
        ticks, expected = getattr(joined, reader).tick[after.slot], getattr(segment, reader).tick[was.slot]
        np.testing.assert_array_equal(ticks, expected)
        assert (ticks >= 0).all()
        if name != "patches":
            for left, right in zip(after[1:], was[1:]):
                np.testing.assert_array_equal(left, right)


def test_the_newest_word_of_a_prompt_is_read_in_it_and_the_episodes_own_after_it():
    schema, rng, timeline = toy_schema(toy_layout()), np.random.default_rng(0), periodic(40, 4)
    encoded = encode_episode(schema, "toy", toy_episode(1, 40, says=SAYS), Letters())
    prompt = encode_episode(schema, "toy", excerpt(toy_episode(2, 40, says=SAYS), 20, 40), Letters())
    segment = lay_before(rng, prompt, cut(rng, encoded, timeline, (0, 40), PACKING), timeline, PACKING)
    letters, ticks = read(segment.planner, schema, "say")
    said = collections.defaultdict(str)
    for letter, tick in zip(letters, ticks):
        said[int(tick)] += chr(letter)
    assert dict(said) == {-20: "left", -8: "right", 0: "go", 8: "left", 32: "right"}


def test_a_row_without_room_takes_less_of_the_episode_or_no_prompt():
    """The segment is trimmed first; a prompt that does not fit after that is left out, and the figures say so."""
    roomy = mixture(Prompts(1.0, 30), packing=dataclasses.replace(PACKING, ratios=(1,), planner_tokens=400, segment_ticks=10))
    assert roomy.batch(0, 0)[1]["prompted"] == 1
    tight = mixture(Prompts(1.0, 30), packing=dataclasses.replace(PACKING, ratios=(1,), planner_tokens=60, segment_ticks=10))
    batches = [tight.batch(0, step) for step in range(6)]
    shares = [figures["prompted"] for _, figures in batches]
    assert 0 < np.mean(shares) < 1
    assert all((batch.planner.segment > 0).sum(axis=1).max() <= 60 for batch, _ in batches)


def test_an_episode_that_is_not_read_from_its_start_has_no_prompt():
    schema, rng, timeline = toy_schema(toy_layout()), np.random.default_rng(0), periodic(400, 1)
    encoded = encode_episode(schema, "toy", toy_episode(1, 400), Letters())
    prompt = encode_episode(schema, "toy", toy_episode(2, 10), Letters())
    packing = dataclasses.replace(PACKING, planner_tokens=200, planner_lead_in=20)
    segment = cut(rng, encoded, timeline, (300, 320), packing)
    assert segment.planner.tick[0] > 0
    assert lay_before(rng, prompt, segment, timeline, packing) is segment


def test_what_says_text_has_no_prompts():
    said = np.repeat(toy_episode(0, 20, discrete=True).action, 3, axis=1)
    episode = dataclasses.replace(toy_episode(0, 20), action=said, label=said)
    mixed = Mixture(toy_schema(talking()), PACKING, [Part([episode], "toy")], Letters(), prompts=Prompts(1.0))
    assert mixed.draw(np.random.default_rng(0)).prompt is None


def test_prompts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="a prompt is of another episode, and its part has one: record more"):
        mixture(episodes=1)
    for wrong in (dict(share=1.5), dict(share=-0.1), dict(ticks=0)):
        with pytest.raises(ValueError, match="share lies in"):
            Prompts(**wrong)
