"""A packed batch against the raw episodes, token by token, with timing re-made by a naive event loop."""

import bisect
import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.codecs import decode, encode
from hierarchy.corpus.outline import window_at
from hierarchy.corpus.packing import fill, pack
from hierarchy.corpus.segment import cut, encode_episode, trim
from hierarchy.layout import EMPTY, PREVIOUS_ACTION, SEPARATOR, Bounded, Text, id_range, single_rate, tokens_per_reading
from hierarchy.timeline import Timeline, periodic, recorded
from tests.hierarchy.corpus.corpus_toys import Letters, meanings, toy_episode, toy_layout, toy_schema

SAYS = {"say": ((0, "go"), (7, "left"), (31, "right")), "hint": ((5, "mind the gap"), (6, ""))}


def naive_plans(timeline: Timeline, ticks: int):
    """(update, age) at every tick, by letting plans arrive one by one."""
    newest, plans, arrivals = -1, [], {}
    for update, ready in enumerate(timeline.ready.tolist()):
        arrivals.setdefault(ready, []).append(update)
    for tick in range(ticks):
        newest = max([newest, *arrivals.get(tick, [])])
        plans.append((newest, tick - int(timeline.observed[newest]) if newest >= 0 else -1))
    return plans


def check_numbers(schema, value, field, tick, episode, previous):
    """Every atom of one token is the raw number that its field id names; sums run over the ticks after `previous`."""
    means, spec_ids = meanings(schema), {}
    for token, name in zip(value.tolist(), field.tolist()):
        assert (token == EMPTY) == (name == EMPTY)
        if token == EMPTY:
            continue
        _, kind, spec, frame, element = means[name]
        if kind == "separator":
            assert token == SEPARATOR
            continue
        assert not isinstance(spec.codec, Text)
        if kind == "action":
            raw = np.reshape(episode.label, (episode.ticks, -1))[tick]
        elif spec.name == PREVIOUS_ACTION:
            raw = np.reshape(episode.action, (episode.ticks, -1))[tick - 1]
            assert tick > 0
        else:
            held = np.reshape(episode.observation[spec.name], (episode.ticks + 1, -1))
            raw = held[previous + 1 : tick + 1].sum(axis=0) if spec.summed else held[tick - frame * spec.stride]
            assert tick - frame * spec.stride >= 0
        key = kind, spec.name, frame
        if key not in spec_ids:
            spec_ids[key] = encode(spec.codec, raw)
        assert spec_ids[key][element] == token
        if isinstance(spec.codec, Bounded):
            back = decode(spec.codec, np.full(spec.size, token))[element]
            assert abs(back - raw[element]) <= (spec.codec.high[element] - spec.codec.low[element]) / spec.codec.bins / 2 + 1e-5


def runs(keys):
    """(key, indices) of each run of equal keys."""
    return [(key, [i for i, _ in group]) for key, group in itertools.groupby(enumerate(keys), key=lambda pair: pair[1])]


def expected_words(episode, layout, reader, ticks, reread):
    """Tick to the letters that a reader at `ticks` reads there, field by field."""
    said = {}
    for spec in [spec for spec in getattr(layout, reader) if isinstance(spec.codec, Text)]:
        last_wording, last_read = None, -(10**9)
        for tick in ticks:
            standing = [entry for entry in episode.text[spec.name] if entry[0] <= tick]
            if standing and (standing[-1] != last_wording or tick - last_read > reread):
                last_wording, last_read = standing[-1], tick
                said.setdefault(tick, []).extend((ord(letter), spec.name) for letter in standing[-1][1])
    return {tick: words for tick, words in said.items() if words}


def check_words(schema, value, field, expected):
    means = meanings(schema)
    assert [(token, means[name][2].name) for token, name in zip(value[:, 0].tolist(), field[:, 0].tolist())] == expected
    assert np.all(value[:, 1:] == EMPTY)


def check_stream(schema, layout, reader, stream, at, episode, readings, reread, numbers):
    """One segment's tokens of one stream: words, then `numbers` tokens, at each tick. readings: all that the episode has."""
    words = expected_words(episode, layout, reader, readings, reread)
    for tick, tokens in runs(stream.tick[at].tolist()):
        tokens = np.array(at)[tokens]
        spoken = words.get(tick, [])
        assert len(tokens) == len(spoken) + numbers
        check_words(schema, stream.value[tokens[: len(spoken)]], stream.field[tokens[: len(spoken)]], spoken)
        earlier = bisect.bisect_left(readings, tick)
        previous = readings[earlier - 1] if earlier else -1
        for token in tokens[len(spoken) :]:
            check_numbers(schema, stream.value[token], stream.field[token], tick, episode, previous)


def check_segment(schema, layout, batch, b, number, episode, timeline, window, packing):
    """One segment of row b, against everything that `Batch` says."""
    fast, slow = (type(stream)(*(array[b] for array in stream)) for stream in (batch.controller, batch.planner))
    at, planner_at = (np.flatnonzero(stream.segment == number) for stream in (fast, slow))
    assert np.all(np.diff(at) == 1)
    assert np.all(np.diff(planner_at) == 1)
    elements, readings = layout.action.size, tokens_per_reading(layout)
    check_stream(
        schema, layout, "controller", fast, at, episode, range(episode.ticks), packing.controller_reread, readings + elements - 1
    )
    updates = sorted(set(slow.tick[planner_at].tolist()))
    observed = [tick for tick in timeline.observed.tolist() if tick < episode.ticks] if layout.planner else []
    each = 1 if layout.pooled else sum(spec.size * spec.frames for spec in layout.planner if not isinstance(spec.codec, Text))
    check_stream(schema, layout, "planner", slow, planner_at, episode, observed, packing.planner_reread, each)
    if updates:
        first = observed.index(updates[0])
        assert updates == observed[first : first + len(updates)]
    plans = naive_plans(timeline, episode.ticks) if layout.planner else [(-1, -1)] * episode.ticks
    sound = {t for t in updates if updates[0] == 0 or t >= updates[0] + packing.planner_lead_in}
    ticks = sorted(set(fast.tick[at].tolist()))
    assert ticks == list(range(ticks[0], ticks[-1] + 1))
    assert ticks[0] == max(0, window[0] - packing.lead_in)
    whole, absent = set(), set()
    for tick, tokens in runs(fast.tick[at].tolist()):
        update, age = plans[tick]
        for token in at[tokens]:
            if update >= 0 and observed[update] in updates:
                slot = batch.plan_slot[b, batch.plan[b, token]]
                assert slow.segment[slot] == number
                assert slow.tick[slot] == observed[update] == tick - age
                assert slot == planner_at[np.flatnonzero(slow.tick[planner_at] == observed[update])[-1]]
                assert batch.age[b, token] == age
            else:
                assert batch.plan[b, token] == batch.age[b, token] == -1
        if update >= 0 and observed[update] not in updates:
            absent.add(tick)
        if update < 0 or observed[update] in sound:
            whole.add(tick)
        last = at[tokens][-(elements - 1) :] if elements > 1 else []
        assert [token for token in at[tokens] if not fast.lasting[token]] == list(last)
    bears = {t for t in ticks if t >= window[0] and all(u in whole for u in range(max(0, t - packing.lead_in), t + 1))}
    assert not bears & absent
    check_targets(layout, batch, b, fast, at, episode, bears)
    return bears, updates, sound


def check_targets(layout, batch, b, fast, at, episode, bears):
    first, limit = id_range(layout.action.codec, 0)
    used, other = batch.continuous, batch.discrete
    if not isinstance(layout.action.codec, Bounded):
        used, other = other, used
    assert not np.isin(at, other.slot[b][other.weight[b] > 0]).any()
    mine = (used.weight[b] > 0) & np.isin(used.slot[b], at)
    entries = list(zip(used.slot[b][mine].tolist(), used.label[b][mine].tolist(), used.limit[b][mine].tolist()))
    assert {fast.tick[slot] for slot, _, _ in entries} == bears
    assert len(entries) == len(bears) * layout.action.size
    for tick, group in itertools.groupby(entries, key=lambda entry: fast.tick[entry[0]]):
        group = list(group)
        separators = [token for token in at if fast.tick[token] == tick and SEPARATOR in fast.value[token]]
        labels = encode(layout.action.codec, np.reshape(episode.label, (episode.ticks, -1))[tick]).tolist()
        assert [slot for slot, _, _ in group] == [separators[0] + i for i in range(layout.action.size)]
        assert [label for _, label, _ in group] == labels
        assert {limit_ for _, _, limit_ in group} == {limit}
        assert all(first <= label < first + limit for label in labels)
        for i, (slot, label, _) in enumerate(group):
            assert label not in fast.value[slot] or i == 0 or labels[i] == labels[i - 1]


@st.composite
def layouts(draw):
    discrete = draw(st.booleans())
    elements = 1 if discrete else draw(st.integers(1, 3))
    planner = draw(st.sampled_from([True, True, True, False]))
    return toy_layout(pooled=draw(st.booleans()), elements=elements, discrete=discrete, planner=planner)


@st.composite
def timelines(draw, ticks):
    if draw(st.booleans()):
        ratio = draw(st.integers(1, 40))
        phase, latency = draw(st.integers(0, ratio - 1)), draw(st.integers(0, 50))
        return periodic(ticks, ratio, latency, phase, wait_for_first=draw(st.booleans()))
    observed = sorted(draw(st.sets(st.integers(1, ticks + 3), max_size=20)) | {0})
    late = draw(st.lists(st.integers(0, 30), min_size=len(observed), max_size=len(observed)))
    return recorded(observed, np.array(observed) + late)


@settings(max_examples=150, deadline=None)
@given(layouts(), st.data())
def test_a_segment_is_the_raw_episode_under_its_timeline(layout, data):
    ticks = data.draw(st.integers(1, 70))
    elements = layout.action.size
    episode = toy_episode(9, ticks, elements=elements, discrete=not isinstance(layout.action.codec, Bounded), says=SAYS)
    schema = toy_schema(layout)
    timeline = data.draw(timelines(ticks))
    start = data.draw(st.one_of(st.integers(0, ticks - 1), st.just(ticks - 1)))
    window = start, data.draw(st.integers(start + 1, ticks))
    packing = Packing(
        rows=2,
        controller_tokens=4096,
        planner_tokens=4096,
        plans=4096,
        action_targets=4096,
        sub_goal_targets=4096,
        lead_in=data.draw(st.integers(0, 20)),
        planner_reread=data.draw(st.integers(1, 60)),
        controller_reread=data.draw(st.integers(1, 60)),
    )
    encoded = encode_episode(schema, "toy", episode, Letters())
    rng = np.random.default_rng(0)
    segment = cut(rng, encoded, timeline, window, packing)
    batch = fill([[], [segment, trim(segment), segment]], schema, packing)
    for number in (1, 2, 3):
        bears, updates, sound = check_segment(schema, layout, batch, 1, number, episode, timeline, window, packing)
        assert bears == set(range(*window))
        if layout.planner:
            seen = [update for update, _ in naive_plans(timeline, window[1])]
            needed = [t for t in timeline.observed.tolist() if t < ticks][: max(seen) + 1 if number == 2 else None]
            assert updates == needed
            assert sound == set(updates)
    check_padding(batch)
    check_sub_goals(layout, batch, episode)


def check_padding(batch):
    for stream in (batch.controller, batch.planner):
        padding = stream.segment == 0
        assert np.all(stream.value[padding] == EMPTY)
        assert np.all(stream.field[padding] == EMPTY)
        assert np.all(stream.tick[padding] == 0)
        assert not stream.lasting[padding].any()
    assert np.all(batch.plan[batch.controller.segment == 0] == -1)
    for row, targets in itertools.product(range(len(batch.plan)), (batch.continuous, batch.discrete)):
        slots = targets.slot[row][targets.weight[row] > 0]
        assert np.all(batch.controller.segment[row][slots] > 0)
        assert len(set(slots.tolist())) == len(slots)
    seen = np.sort(np.unique(batch.plan[1][batch.plan[1] >= 0]))
    used = batch.plan_slot[1] >= 0
    assert seen.tolist() == np.flatnonzero(used).tolist()


def check_sub_goals(layout, batch, episode):
    stream = batch.planner if layout.planner else batch.controller
    for b in range(len(batch.plan)):
        mine = batch.sub_goal.weight[b] > 0
        slots = batch.sub_goal.slot[b][mine]
        assert batch.sub_goal.label[b][mine].tolist() == [episode.privileged["goal"][t] for t in stream.tick[b][slots]]
        if layout.planner:
            ends = np.flatnonzero(np.diff(stream.tick[b] + 5000 * stream.segment[b], append=-1))
            assert sorted(slots.tolist()) == [i for i in ends if stream.segment[b][i]]
        else:
            assert all(SEPARATOR in stream.value[b][slot] for slot in slots)


def one_of_the_drawn(batch, b, number, ticks, packing):
    """The timelines that a segment of row b may have been cut with, judged by the ticks of its updates, plans and ages."""
    fast, slow = batch.controller, batch.planner
    at, planner_at = np.flatnonzero(fast.segment[b] == number), np.flatnonzero(slow.segment[b] == number)
    updates = sorted(set(slow.tick[b, planner_at].tolist()))
    ages = dict(zip(fast.tick[b, at].tolist(), batch.age[b, at].tolist()))
    for ratio, latency in itertools.product(packing.ratios, packing.latencies):
        for phase in range(ratio):
            timeline = periodic(ticks, ratio, latency, phase)
            observed = timeline.observed.tolist()
            if updates and (
                updates[0] not in observed or observed[(i := observed.index(updates[0])) : i + len(updates)] != updates
            ):
                continue
            plans = naive_plans(timeline, ticks)
            if all(age in (plans[tick][1], -1) for tick, age in ages.items()):
                yield timeline


def test_packed_rows_are_the_raw_episodes():
    layout = toy_layout(elements=2)
    schema = toy_schema(layout)
    episodes = [
        toy_episode(number, ticks, elements=2, says=SAYS) for number, ticks in enumerate([1, 5, 40, 64, 90, 200, 33, 300])
    ]
    encoded = [encode_episode(schema, "toy", episode, Letters()) for episode in episodes]
    packing = Packing(rows=4, controller_tokens=300, planner_tokens=150, segment_ticks=24, lead_in=6, planner_lead_in=40)
    packing = dataclasses.replace(packing, ratios=(1, 4, 16), latencies=(0, 3, 20), planner_reread=30)
    seen_last, segments = 0, 0
    for step in range(8):
        batch, figures = pack(np.random.default_rng(step), lambda rng: encoded[rng.integers(len(encoded))], schema, packing)
        check_padding(batch)
        counter, number = (schema.field_ids("toy")["controller", name] for name in ("counter", "number"))
        tokens = 0
        for b in range(4):
            for segment in range(1, batch.controller.segment[b].max() + 1):
                at = batch.controller.segment[b] == segment
                ids = batch.controller.field[b][at]
                which = batch.controller.value[b][at][ids == number]
                assert len(set(which.tolist())) == 1
                assert batch.controller.value[b][at][ids == counter].tolist() == sorted(
                    set(batch.controller.tick[b][at].tolist())
                )
                episode = episodes[which[0]]
                targets = batch.continuous.slot[b][batch.continuous.weight[b] > 0]
                bears = batch.controller.tick[b][targets[at[targets]]]
                begin = batch.controller.tick[b][at].min()
                start = begin + packing.lead_in if begin else bears.min()
                fitting = list(one_of_the_drawn(batch, b, segment, episode.ticks, packing))
                assert fitting
                assert any(agrees(schema, layout, batch, b, segment, episode, timeline, start, packing) for timeline in fitting)
                seen_last += bears.max() == episode.ticks - 1
                segments, tokens = segments + 1, tokens + at.sum()
        assert figures["controller_padding"] == pytest.approx(1 - tokens / 1200)
        assert figures["loss_ticks"] * 2 == batch.continuous.weight.sum()
        assert batch.discrete.slot.shape == (4, 0)
    assert seen_last > segments / 10


def agrees(schema, layout, batch, b, segment, episode, timeline, start, packing):
    try:
        check_segment(schema, layout, batch, b, segment, episode, timeline, (start, None), packing)
    except AssertionError:
        return False
    return True


def toy(ticks=60, **layout_options):
    layout = toy_layout(**layout_options)
    schema = toy_schema(layout)
    return schema, layout, encode_episode(schema, "toy", toy_episode(1, ticks), Letters())


@pytest.mark.parametrize("mutant", [(4, 3, 0), (4, 1, 0), (4, 2, 1), (5, 2, 0)])
def test_a_plan_one_tick_early_or_late_or_out_of_phase_would_be_caught(mutant):
    schema, layout, encoded = toy()
    packing = Packing(rows=2, lead_in=6)
    segment = cut(np.random.default_rng(0), encoded, periodic(60, 4, 2), (20, 44), packing)
    batch = fill([[], [segment]], schema, packing)
    check_segment(schema, layout, batch, 1, 1, toy_episode(1, 60), periodic(60, 4, 2), (20, 44), packing)
    with pytest.raises(AssertionError):
        check_segment(schema, layout, batch, 1, 1, toy_episode(1, 60), periodic(60, *mutant), (20, 44), packing)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 4]), st.integers(0, 40), st.integers(0, 60))
def test_a_long_episode_starts_its_planner_late_and_only_whole_context_bears_loss(seed, ratio, latency, planner_lead_in):
    schema, layout, encoded = toy(1000)
    packing = Packing(rows=1, planner_tokens=150, lead_in=10, planner_lead_in=planner_lead_in, planner_reread=30)
    rng = np.random.default_rng(seed)
    timeline = periodic(1000, ratio, latency, 0)
    window = draw_window(rng, encoded, packing)
    segment = cut(rng, encoded, timeline, window, packing)
    batch = fill([[segment]], schema, packing)
    assert len(segment.planner.tick) <= 150
    bears, updates, sound = check_segment(schema, layout, batch, 0, 1, toy_episode(1, 1000), timeline, window, packing)
    assert bears == set(range(*window))
    weighted = segment.planner.tick[segment.sub_goal.slot].tolist()
    assert weighted == [tick for tick in updates if tick in sound]


def test_where_the_planners_lead_in_has_no_room_fewer_ticks_bear_loss_and_at_last_it_says_so():
    schema, layout, encoded = toy(1000)
    timeline, window = periodic(1000, 1), (800, 832)
    packing = Packing(rows=1, planner_tokens=100, lead_in=10, planner_lead_in=70, planner_reread=1000)
    segment = cut(np.random.default_rng(0), encoded, timeline, window, packing)
    batch = fill([[segment]], schema, packing)
    bears, _, _ = check_segment(schema, layout, batch, 0, 1, toy_episode(1, 1000), timeline, window, packing)
    assert bears == set(range(832 - 100 + 70 + 10, 832))
    with pytest.raises(ValueError, match="lead-in of 200 ticks in 100 planner tokens: raise planner_tokens"):
        cut(np.random.default_rng(0), encoded, timeline, window, dataclasses.replace(packing, planner_lead_in=200))


def draw_window(rng, encoded, packing):
    return window_at(rng.random(), encoded, packing)


@pytest.mark.parametrize("segment_ticks", [1, 7, 49])
def test_every_tick_is_as_likely_to_bear_loss(segment_ticks):
    _, _, encoded = toy(50)
    rng, packing = np.random.default_rng(0), Packing(segment_ticks=segment_ticks)
    counts = np.zeros(50)
    for _ in range(40_000):
        a, b = draw_window(rng, encoded, packing)
        assert 0 <= a < b <= 50
        counts[a:b] += 1
    assert counts.min() > 0.85 * counts.mean()
    assert counts.max() < 1.15 * counts.mean()


def wherever_a_whole_window_fits(rng, encoded, packing):
    start = int(rng.integers(0, encoded.ticks - packing.segment_ticks))
    return start, start + packing.segment_ticks


@pytest.mark.parametrize(("windows", "found"), [(draw_window, True), (wherever_a_whole_window_fits, False)])
def test_the_last_step_of_an_episode_is_learnt(windows, found):
    """The mistake of others: a start drawn below T - length, so that no window ever holds the last step."""
    _, _, encoded = toy(50)
    rng, packing = np.random.default_rng(0), Packing(segment_ticks=7)
    assert any(windows(rng, encoded, packing)[1] == encoded.ticks for _ in range(2000)) == found


@pytest.mark.parametrize("planner", [True, False])
def test_without_segments_an_episode_is_read_whole_or_as_far_as_a_row_goes(planner):
    layout = toy_layout(planner=planner)
    schema = toy_schema(layout)
    packing = Packing(rows=1, controller_tokens=100, segment_ticks=None, lead_in=12, planner_tokens=400, controller_reread=20)
    short, long = (encode_episode(schema, "toy", toy_episode(1, ticks, says=SAYS), Letters()) for ticks in (40, 250))
    assert draw_window(np.random.default_rng(0), short, packing) == (0, 40)
    covered = np.zeros(250, bool)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        window = draw_window(rng, long, packing)
        timeline = periodic(250, 4, 2)
        segment = cut(rng, long, timeline, window, packing)
        batch = fill([[segment]], schema, packing)
        bears, _, _ = check_segment(schema, layout, batch, 0, 1, toy_episode(1, 250, says=SAYS), timeline, window, packing)
        assert len(segment.controller.tick) <= 100
        assert max(bears) == 249 or len(segment.controller.tick) > 80
        covered[list(bears)] = True
    assert covered.all()


def test_single_rate_has_no_plans_and_an_empty_planner_stream():
    layout = single_rate(toy_layout(elements=2))
    schema = toy_schema(layout)
    encoded = encode_episode(schema, "toy", toy_episode(2, 50, elements=2, says=SAYS), Letters())
    packing = Packing(rows=2, planner_tokens=4)
    batch, figures = pack(np.random.default_rng(0), lambda _: encoded, schema, packing)
    assert not batch.planner.segment.any()
    assert np.all(batch.plan == -1)
    assert np.all(batch.age == -1)
    assert np.all(batch.plan_slot == -1)
    assert figures["planner_padding"] == 1
    check_sub_goals(layout, batch, toy_episode(2, 50, elements=2))
    assert batch.sub_goal.weight.sum() == figures["loss_ticks"]


def test_a_mixed_batch_sends_each_action_to_its_own_head():
    layouts = toy_layout("arm", elements=2), toy_layout("maze", discrete=True, pooled=False)
    schema = toy_schema(*layouts)
    encoded = [
        encode_episode(schema, "arm", toy_episode(0, 40, elements=2), Letters()),
        encode_episode(schema, "maze", toy_episode(1, 40, discrete=True), Letters()),
    ]
    packing = Packing(rows=4, planner_tokens=800, controller_tokens=800)
    batch, _ = pack(np.random.default_rng(0), lambda rng: encoded[rng.integers(2)], schema, packing)
    continuous, discrete = batch.continuous, batch.discrete
    assert np.all((continuous.label >= 32000)[continuous.weight > 0])
    assert np.all((discrete.label < 9)[discrete.weight > 0])
    assert set(continuous.limit[continuous.weight > 0].tolist()) == {512}
    assert set(discrete.limit[discrete.weight > 0].tolist()) == {9}
    means = meanings(schema)
    for b, segment in itertools.product(range(4), range(1, 5)):
        at = batch.controller.segment[b] == segment
        names = {means[name][0] for name in batch.controller.field[b][at].ravel().tolist() if name != EMPTY}
        assert len(names) <= 1


@pytest.mark.parametrize("planner", [True, False])
def test_a_token_has_fields_of_one_layout_and_of_its_own_stream(planner):
    """What products over a stream's own fields take for granted, with readings, separators, actions and words."""
    schema = toy_schema(toy_layout("arm", elements=2, planner=planner), toy_layout("maze", pooled=False, planner=planner))
    episodes = [toy_episode(0, 40, elements=2, says=SAYS), toy_episode(1, 40, says=SAYS)]
    encoded = [encode_episode(schema, name, each, Letters()) for name, each in zip(("arm", "maze"), episodes)]
    packing = Packing(rows=4, planner_tokens=800, controller_tokens=800)
    batch, _ = pack(np.random.default_rng(0), lambda rng: encoded[rng.integers(2)], schema, packing)
    for reader, stream in (("planner", batch.planner), ("controller", batch.controller)):
        groups, seen = [set(fields) for fields in schema.own_fields(reader)], set()
        for token in stream.field.reshape(-1, stream.field.shape[-1]).tolist():
            fields = set(token) - {EMPTY}
            seen |= fields
            assert not fields or sum(fields <= own for own in groups) == 1
        unread = (set().union(*groups) - seen) if planner or reader == "controller" else set()
        # The last element of an action is no token, nor is a hint that the word before it stands for.
        assert len(unread) <= 2 * len(schema.layouts)


def test_a_budget_that_is_too_small_is_named():
    schema, _, encoded = toy()
    for name, value in {"plans": 3, "action_targets": 5, "sub_goal_targets": 1}.items():
        packing = dataclasses.replace(Packing(rows=1, ratios=(1,), latencies=(0,)), **{name: value})
        with pytest.raises(ValueError, match=f"and a row has {value}: raise {name}"):
            pack(np.random.default_rng(0), lambda _: encoded, schema, packing)
    with pytest.raises(ValueError, match="raise controller_tokens"):
        pack(np.random.default_rng(0), lambda _: encoded, schema, Packing(controller_tokens=8))
    with pytest.raises(ValueError, match=r"update . alone has .* tokens, and a row has 1: raise planner_tokens"):
        pack(np.random.default_rng(0), lambda _: encoded, schema, Packing(planner_tokens=1))
    with pytest.raises(ValueError, match="segment_ticks is 0"):
        Packing(segment_ticks=0)


def test_a_recording_without_its_sub_goal_is_refused():
    schema = toy_schema(toy_layout())
    episode = dataclasses.replace(toy_episode(0, 9), privileged={})
    with pytest.raises(ValueError, match="layout 'toy': no privileged 'goal'; there are"):
        encode_episode(schema, "toy", episode, Letters())


def test_the_label_is_the_target_and_the_executed_action_is_not():
    _, layout, encoded = toy()
    episode = toy_episode(1, 60)
    assert np.array_equal(encoded.label, encode(layout.action.codec, episode.label))
    assert (encoded.label != encode(layout.action.codec, episode.action)).mean() > 0.9


def test_where_there_is_nothing_to_predict_there_is_no_target_and_nothing_to_see():
    schema, episode = toy_schema(toy_layout(elements=3)), toy_episode(1, 60, elements=3)
    whole = encode_episode(schema, "toy", episode, Letters())
    label, goal = episode.label.copy(), episode.privileged["goal"].copy()
    absent = np.random.default_rng(0).random(label.shape) < 0.3
    absent[7] = True
    label[absent], goal[8] = np.nan, EMPTY
    encoded = encode_episode(schema, "toy", dataclasses.replace(episode, label=label, privileged={"goal": goal}), Letters())
    np.testing.assert_array_equal(encoded.label == EMPTY, absent)
    np.testing.assert_array_equal(encoded.label[~absent], whole.label[~absent])
    timeline, window = periodic(60, 4, 2), (5, 44)
    packing = Packing(rows=1, controller_tokens=400, lead_in=5)
    parted, full = (cut(np.random.default_rng(0), each, timeline, window, packing) for each in (encoded, whole))
    kept = ~absent[slice(*window)].ravel()
    for part, before in zip(parted.continuous, full.continuous):
        np.testing.assert_array_equal(part, before[kept])
    assert (parted.ticks, full.ticks) == (38, 39)
    assert parted.planner.tick[parted.sub_goal.slot].tolist() == [t for t in full.planner.tick[full.sub_goal.slot] if t != 8]
    tokens = ~full.controller.lasting
    hidden = absent[:44, :2].ravel()
    np.testing.assert_array_equal((parted.controller.value[tokens] == EMPTY).all(axis=1), hidden)
    np.testing.assert_array_equal((parted.controller.field[tokens] == EMPTY).all(axis=1), hidden)
    np.testing.assert_array_equal(parted.controller.value[~tokens], full.controller.value[~tokens])


def test_a_whole_number_of_minus_one_is_a_value_of_a_bounded_action_and_no_target_of_a_discrete_one():
    label = np.array([[-1], [3]])
    for discrete in (True, False):
        layout = toy_layout(discrete=discrete)
        schema = toy_schema(layout)
        episode = dataclasses.replace(toy_episode(1, 2, discrete=discrete), label=label)
        expected = [[EMPTY], [3]] if discrete else encode(layout.action.codec, label).tolist()
        assert encode_episode(schema, "toy", episode, Letters()).label.tolist() == expected
