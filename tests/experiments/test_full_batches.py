"""Batches of recorded patrols, packed as the demo packs them: little of either stream is left empty."""

import dataclasses

import numpy as np
import pytest

from experiments.demo import DemoConfig, training
from experiments.train import assemble

LIMIT = 0.15


@pytest.mark.parametrize("agent", ["two_rate", "single_rate", "controller_only"])
def test_padding_is_below_the_limit(debug_run, agent):
    config = training(dataclasses.replace(DemoConfig(), suite=()), agent, 100)
    # The patrol alone has less for the controller to read than the bodies have.
    mix = dataclasses.replace(config.mix, controller_tokens=512)
    mixture = assemble(dataclasses.replace(config, corpus=debug_run / "corpus", mix=mix)).mixture
    figures = [mixture.batch(0, step)[1] for step in range(40)]
    assert np.mean([each["controller_padding"] for each in figures]) < LIMIT
    assert agent != "two_rate" or np.mean([each["planner_padding"] for each in figures]) < LIMIT
    assert np.mean([each["left_out"] for each in figures]) < 0.02
