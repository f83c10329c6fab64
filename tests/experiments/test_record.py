"""What is recorded is worth imitating, and an interrupted recording goes on as if nothing had happened."""

import dataclasses

import pytest

from experiments import record
from experiments.record import RecordConfig, record_source
from experiments.tasks import TASKS, find
from hierarchy.corpus.store import MANIFEST, UNFINISHED

EPISODES = 9


@pytest.fixture
def recording(tmp_path, monkeypatch):
    """Swing-ups in shards of two, with a bar so high that many fall short of it."""
    monkeypatch.setattr(record, "SHARD", 2)
    monkeypatch.setitem(TASKS, "cartpole_swingup", dataclasses.replace(find("cartpole_swingup"), kept=450.0))
    return RecordConfig("cartpole_swingup", tmp_path / "source", EPISODES)


def told(source) -> list:
    return [(episode.seed, episode.action.tobytes(), episode.label.tobytes()) for episode in source]


def test_episodes_that_fall_short_are_dropped(recording):
    source = record_source(recording)
    seeds = [episode.seed for episode in source]
    assert len(source) == EPISODES
    assert min(episode.info["return"] for episode in source) >= 450.0
    assert seeds == sorted(set(seeds))
    assert seeds != list(range(EPISODES)), "the test is only worth something where an episode was dropped"


@pytest.mark.parametrize("calls", [1, 7, 9])
def test_interrupted_and_resumed_is_uninterrupted(recording, tmp_path, monkeypatch, calls):
    whole = record_source(dataclasses.replace(recording, out=tmp_path / "whole"))
    left, once = [calls], record.record

    def interrupted(*given, **named):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return once(*given, **named)

    monkeypatch.setattr(record, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record_source(recording)
    assert not (recording.out / MANIFEST).exists()
    assert (recording.out / UNFINISHED).exists() == (calls > 1)
    monkeypatch.setattr(record, "record", once)
    assert told(record_source(recording)) == told(whole)


def test_an_expert_that_never_does_it_is_reported(recording, monkeypatch):
    hopeless = dataclasses.replace(find("cartpole_swingup"), kept=1001.0)
    monkeypatch.setitem(TASKS, "cartpole_swingup", hopeless)
    monkeypatch.setattr(record, "PATIENCE", 3)
    with pytest.raises(ValueError, match=r"cartpole_swingup: 3 episodes in a row returned less than 1001.0"):
        record_source(recording)


def test_slow_recordings_are_saved_often():
    shard = {name: record.shard_size(task) for name, task in TASKS.items()}
    assert all(shard[name] * task.cost_s <= record.SHARD_S for name, task in TASKS.items())
    assert shard["patrol"] == record.SHARD
