import sys

import pytest

from experiments import experts


def command(monkeypatch, *given: str) -> int:
    monkeypatch.setattr(sys, "argv", ["experts", *given])
    return experts.main()


def test_the_table_is_that_of_the_episodes(monkeypatch, capsys):
    assert command(monkeypatch, "--tasks", "cue_recall", "reacher_easy", "--episodes", "2") == 0
    header, recall, reacher = capsys.readouterr().out.splitlines()
    assert header == experts.HEADER
    # Cue recall pays 1 for each of its 4 answers, and an expert that no noise carries away always knows them.
    assert recall.split()[:7] == ["cue_recall", "0.04", "44", "4.0", "0.0", "4.0", "0.0"]
    name, tick_s, ticks, clean, *_, kept, cost_s = reacher.split()
    assert (name, tick_s, ticks, kept) == ("reacher_easy", "0.02", "1000", "100%")
    assert float(clean) > 900
    assert float(cost_s) > 0


def test_an_unknown_task_is_named(monkeypatch, capsys):
    assert command(monkeypatch, "--tasks", "juggling") == 1
    assert "no task 'juggling'" in capsys.readouterr().err


def test_the_command_says_what_it_measures(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        command(monkeypatch, "--help")
    assert "--episodes" in capsys.readouterr().out
