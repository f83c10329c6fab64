"""Experts against dense: nothing else differs, what must hold is told from what does not, and the whole job on a few steps."""

import dataclasses

import numpy as np
import pytest

from experiments.mixture_of_experts import ExpertsConfig, difference, draw, experts, tabulated, training, verdicts
from hierarchy.training.checkpoint import CheckpointError


def test_kinds_differ_in_their_experts_alone():
    config = ExpertsConfig()
    dense, routed = (dataclasses.asdict(training(config, kind, 1)) for kind in ("dense", "experts"))
    assert {name for name, value in dense.items() if routed[name] != value} == {"out", "experts", "compute"}
    assert (dense["experts"], routed["experts"], routed["chosen"]) == (0, 16, 2)


def test_a_difference_is_paired_by_seed():
    config, rng = ExpertsConfig(seeds=(0, 1, 2, 3)), np.random.default_rng(0)
    seed, gain = rng.normal(size=4), np.array([0.2, 0.3, 0.25, 0.25])
    found = {
        kind: [{"text_loss": 5.0 + value} for value in values] for kind, values in (("dense", seed), ("experts", seed - gain))
    }
    mean, low, high = difference(config, found, "text_loss")
    assert mean == pytest.approx(-0.25)
    # Student's t of 3 degrees of freedom at 0.975 is 3.182, the standard error 0.0204.
    assert (low, high) == pytest.approx((-0.25 - 0.065, -0.25 + 0.065), abs=1e-3)


@pytest.mark.parametrize(
    ("many", "flops", "entropy", "holds"),
    [(4.5, 1.02, 0.95, [1, 1, 1]), (3.9, 1.02, 0.95, [0, 1, 1]), (4.5, 1.06, 0.95, [1, 0, 1]), (4.5, 0.97, 0.85, [1, 1, 0])],
)
def test_what_experts_must_be(many, flops, entropy, holds):
    sizes = {"dense": (1000, 10_000), "experts": (round(1000 * many), round(10_000 * flops))}
    said = {"sizes": sizes, "held_out": {"experts": [{"load_entropy": 0.99}, {"load_entropy": entropy}]}}
    assert list(verdicts(said).values()) == [bool(each) for each in holds]


@pytest.mark.long
def test_the_whole_job_goes_on_where_it_was(tmp_path):
    config = ExpertsConfig(tmp_path, preset="debug", experts=4, steps=4, seeds=(0, 1))
    said = experts(config)
    again = experts(config)
    assert said == again
    assert all(np.isfinite(list(each.values())).all() for rows in said["held_out"].values() for each in rows)
    assert said["sizes"]["experts"][0] > said["sizes"]["dense"][0]
    assert tabulated(config, said).row_count == 4
    with pytest.raises(CheckpointError, match="steps"):
        experts(dataclasses.replace(config, steps=5))
    draw(config, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 1000
