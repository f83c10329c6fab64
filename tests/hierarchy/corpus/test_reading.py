import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hierarchy.corpus.codecs import encode
from hierarchy.corpus.reading import History, controller_tokens, field_row, planner_tokens, read, words_due, words_read
from hierarchy.layout import EMPTY, SEPARATOR, Bounded, Continuous, Discrete, Field, Layout, Schema, single_rate
from tests.hierarchy.corpus.corpus_toys import Letters, toy_episode, toy_layout, toy_schema

SAYS = {"say": ((0, "go"), (7, "left"), (8, "right"), (20, "right"), (23, "")), "hint": ((5, "mind"),)}


def observations(episodes, tick):
    names = episodes[0].observation
    seen = {name: np.stack([episode.observation[name][tick] for episode in episodes]) for name in names}
    for name in episodes[0].text:
        said = [([""] + [words for at, words in episode.text[name] if at <= tick])[-1] for episode in episodes]
        seen[name] = np.array(said, object)
    return seen


def grown(schema, episodes):
    history = History(schema, "toy", len(episodes), Letters(), capacity=2)
    for tick in range(episodes[0].ticks + 1):
        action = np.stack([episode.action[tick - 1] for episode in episodes]) if tick else None
        history.append(observations(episodes, tick), action)
        yield tick, history


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("planner", [True, False])
def test_a_history_that_grows_reads_as_one_made_at_once(pooled, planner):
    schema = toy_schema(toy_layout(pooled=pooled, elements=3, planner=planner))
    episodes = [toy_episode(number, 30, elements=3, says=SAYS) for number in range(4)]
    whole = [History.from_episode(schema, "toy", episode, Letters()) for episode in episodes]
    for tick, history in grown(schema, episodes):
        for tokens in (controller_tokens, planner_tokens) if planner else (controller_tokens,):
            last = tick - 1 if tokens is controller_tokens else tick - tick % 3 - 1
            now = tokens(history, np.array([tick]), np.array([last]))
            for b in range(4):
                then = tokens(whole[b], np.array([tick]), np.array([last]))
                np.testing.assert_array_equal(now[0][b], then[0][0])
                np.testing.assert_array_equal(now[1][b], then[1][0])


def test_words_are_read_alike_by_the_agent_and_from_the_recording():
    schema = toy_schema(toy_layout())
    episode = toy_episode(0, 60, says=SAYS)
    whole = History.from_episode(schema, "toy", episode, Letters())
    ids = schema.field_ids("toy")
    updates = np.array([0, 6, 9, 10, 25, 31, 44, 59])
    for reread in (1, 5, 12, 100):
        due = [[] for _ in updates]
        for name in ("hint", "say"):
            changes = whole.spoken[name][0]
            for reading, wording in words_read([tick for tick, _ in changes], updates, reread):
                due[reading] += [(piece, ids["planner", name]) for piece in changes[wording][1]]
        last_read, heard = {"hint": -1, "say": -1}, []
        for tick, history in grown(schema, [episode]):
            if tick not in updates:
                continue
            heard.append([])
            for name, last in last_read.items():
                changes = history.spoken[name][0]
                if changes and words_due(changes[-1][0], last, tick, reread):
                    heard[-1] += [(piece, ids["planner", name]) for piece in changes[-1][1]]
                    last_read[name] = tick
        assert heard == due
    said = ["".join(chr(piece) for piece, field in words if field == ids["planner", "say"]) for words in due]
    assert said == ["go", "", "right", "", "", "", "", ""]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 100), min_size=1, unique=True).map(sorted),
    st.lists(st.integers(0, 100), min_size=1, unique=True).map(sorted),
    st.integers(1, 40),
)
def test_words_are_read_at_once_and_never_leave_the_window(changes, ticks, reread):
    due = dict(words_read(changes, np.array(ticks), reread))
    last_read = -1
    for reading, tick in enumerate(ticks):
        newest = max((change for change in changes if change <= tick), default=None)
        if newest is None:
            assert reading not in due
            continue
        assert (reading in due) == words_due(newest, last_read, tick, reread)
        if reading in due:
            assert changes[due[reading]] == newest
            last_read = tick
        assert newest <= last_read <= tick
        assert tick - last_read <= reread


def test_frames_before_the_episode_are_empty_not_copied():
    schema = toy_schema(toy_layout())
    history = History.from_episode(schema, "toy", toy_episode(0, 20), Letters())
    field = next(field for field in schema["toy"].planner if field.name == "state")
    value = read((field,), history, np.array([0, 3, 4, 9]), np.full(4, -1))[0].reshape(4, 3, 2)
    assert [(row == EMPTY).all(axis=1).tolist() for row in value] == [
        [False, True, True],
        [False, True, True],
        [False, False, True],
        [False, False, False],
    ]
    expected = encode(field.codec, history_state := toy_episode(0, 20).observation["state"])
    np.testing.assert_array_equal(value[3], expected[[9, 5, 1]])
    assert history_state.dtype == np.float32


def test_an_executed_action_is_seen_one_tick_later_and_never_at_tick_0():
    schema = toy_schema(toy_layout(elements=2))
    episode = toy_episode(3, 10, elements=2)
    history = History.from_episode(schema, "toy", episode, Letters())
    ids = schema.field_ids("toy")
    value, field = controller_tokens(history, np.arange(10), np.arange(10) - 1)
    start = np.flatnonzero(field_row(schema, "toy", "controller") == ids["controller", "previous_action"])[0]
    got = value[0, :, 0, start : start + 2]
    assert np.all(got[0] == EMPTY)
    assert np.all(field[0, 0, 0, start : start + 2] == EMPTY)
    np.testing.assert_array_equal(got[1:], encode(schema["toy"].action.codec, episode.action[:-1]))


@settings(deadline=None)
@given(st.lists(st.integers(0, 39), min_size=1, unique=True).map(sorted))
def test_a_summed_field_counts_each_tick_once(ticks):
    schema = toy_schema(toy_layout())
    episode = toy_episode(0, 40)
    history = History.from_episode(schema, "toy", episode, Letters())
    field = next(field for field in schema["toy"].planner if field.summed)
    chime = episode.observation["chime"]
    value = read((field,), history, np.array(ticks), np.array([-1, *ticks[:-1]]))[0, :, 0]
    assert value.tolist() == [chime[a + 1 : b + 1].sum() for a, b in zip([-1, *ticks[:-1]], ticks)]


@pytest.mark.parametrize("pooled", [True, False])
def test_the_separator_closes_every_reading_of_the_controller(pooled):
    schema = toy_schema(toy_layout(pooled=pooled))
    history = History.from_episode(schema, "toy", toy_episode(0, 9), Letters())
    value, field = controller_tokens(history, np.arange(9), np.arange(9) - 1)
    place = np.argwhere(value[0] == SEPARATOR)
    assert len(place) == 9
    assert np.all(place[:, 1] == value.shape[2] - 1)
    assert np.all(field[value == SEPARATOR] == schema.field_ids("toy")["controller", "separator"])
    assert np.array_equal(value == EMPTY, field == EMPTY)


def one_field(codec, size=1, name="x", summed=False):
    layout = Layout("one", (), (Field(name, codec, size, summed=summed),), Field("action", Discrete(3)))
    return Schema((layout,))


@pytest.mark.parametrize(
    ("schema", "seen", "message"),
    [
        (one_field(Continuous()), {"y": [0.0]}, r"layout 'one': no observation 'x'; there are \['y'\]"),
        (one_field(Continuous()), {"x": [np.nan]}, "layout 'one', field 'x', tick 1: nan is not a finite number"),
        (
            one_field(Continuous(), 2),
            {"x": [[1.0, 2.0, 3.0]]},
            r"field 'x': 3 scalars a tick \(shape \(3,\)\), and the layout states 2",
        ),
        (one_field(Bounded((0.0,), (1.0,))), {"x": [7.0]}, "field 'x', tick 1: element 0 is 7, outside its spec"),
        (one_field(Discrete(5)), {"x": [1, 2]}, "field 'x': 2 rows for 1 episodes"),
    ],
)
def test_a_wrong_observation_is_named_and_leaves_the_history_as_it_was(schema, seen, message):
    history = History(schema, "one", 1)
    size = schema["one"].controller[0].size
    history.append({"x": np.zeros((1, size))})
    with pytest.raises(ValueError, match=message):
        history.append({name: np.array(value) for name, value in seen.items()}, np.array([0]))
    assert history.ticks == 1
    history.append({"x": np.zeros((1, size))}, np.array([0]))
    assert controller_tokens(history, np.arange(2), np.arange(2) - 1)[0].shape == (1, 2, 1, size + 1)


def test_a_bad_tick_of_a_recording_is_named():
    episode = toy_episode(0, 12)
    counter = episode.observation["counter"].copy()
    counter[9] = 5000
    broken = dataclasses.replace(episode, observation=dict(episode.observation) | {"counter": counter})
    with pytest.raises(ValueError, match="layout 'toy', field 'counter', tick 9: 5000 is not one of"):
        History.from_episode(toy_schema(toy_layout()), "toy", broken, Letters())


def test_ticks_that_are_not_there_yet_cannot_be_read():
    schema = one_field(Continuous())
    history = History(schema, "one", 1)
    history.append({"x": np.zeros(1)})
    with pytest.raises(ValueError, match="ticks 0 to 0 are held"):
        controller_tokens(history, np.array([1]), np.array([0]))
    with pytest.raises(ValueError, match="there is a previous action at every tick but 0"):
        history.append({"x": np.zeros(1)})
    with pytest.raises(ValueError, match="a tokenizer is needed"):
        History(toy_schema(toy_layout()), "toy", 1)


def test_a_sum_out_of_its_range_is_named():
    schema = one_field(Discrete(3), summed="reading")
    history = History(schema, "one", 1)
    for tick in range(3):
        history.append({"x": np.ones(1)}, np.zeros(1, int) if tick else None)
    with pytest.raises(ValueError, match=r"field 'x', summed up to tick 2: 3\.0 is not one of the integers 0 to 2"):
        controller_tokens(history, np.array([2]), np.array([-1]))


def test_single_rate_layouts_read_what_either_model_reads():
    layout = single_rate(toy_layout())
    schema = toy_schema(layout)
    history = History.from_episode(schema, "toy", toy_episode(5, 10, says=SAYS), Letters())
    value, _ = controller_tokens(history, np.arange(10), np.arange(10) - 1)
    row = field_row(schema, "toy", "controller")
    counter = np.flatnonzero(row == schema.field_ids("toy")["controller", "counter"])[0]
    assert value[0, :, 0, counter].tolist() == list(range(10))


def test_reading_a_whole_episode_is_quick():
    schema = toy_schema(toy_layout())
    history = History.from_episode(schema, "toy", toy_episode(0, 256), Letters())
    ticks = np.arange(256)
    best = min(_seconds(lambda: planner_tokens(history, ticks, ticks - 1)) for _ in range(20))
    assert best < 2e-3


def _seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
