"""Somebody's own environment, from the first line to an agent that acts."""

from pathlib import Path

import pytest

from experiments import own_environment


def test_it_is_short():
    assert len(Path(own_environment.__file__).read_text().splitlines()) < 60


@pytest.mark.long
def test_it_learns():
    returns = own_environment.main(steps=250, count=16)
    zero, agent = returns["random"], returns["agent"]
    assert returns["expert"] > 25
    assert (agent - zero) / (returns["expert"] - zero) > 0.6
