"""The scripted analysis that the experiment rests on, and its calibration on a model that has learnt nothing."""

import jax
import numpy as np
import pytest

from experiments.evaluate import Trained
from experiments.need_rows import TASK, draw, load_rows, updates_of, write_rows
from experiments.tasks import schema_of
from experiments.updates_by_need import Closed, base_rate, calibrated, held_out, reference, row_of
from hierarchy.model.config import PRESETS
from hierarchy.model.network import build

HELD_OUT = 8


@pytest.fixture(scope="module")
def untrained() -> Trained:
    schema = schema_of((TASK,), 0, "two_rate")
    network = build(PRESETS["debug"], schema)
    return Trained("two_rate", "", (), network, schema, None, network.init(jax.random.key(0)), {})


@pytest.mark.parametrize("latency", [0, 2])
def test_the_oracle_is_worth_twenty_points_and_chance_less_than_nothing(latency):
    rows = {row.way: row for row in reference(13, latency, 256)}
    assert rows["oracle"].updates <= rows["fixed"].updates == updates_of(13)
    assert rows["oracle"].gain_low > (20.0 if latency == 0 else 15.0)
    assert rows["random"].updates == pytest.approx(rows["fixed"].updates, rel=0.05)
    assert rows["random"].gain_high < 0


@pytest.mark.parametrize("way", ["fixed", "random", "oracle"])
def test_a_way_spends_what_the_fixed_period_spends(untrained, way):
    tried = held_out(untrained, HELD_OUT)
    closed = tried(calibrated(tried, way, 26, 0), 0)
    # A model that has learnt nothing fails all the time: its oracle can but wait, and its updates come by their age alone.
    spread = 3.0 if way == "random" else 0.0
    assert closed.updates.mean() == pytest.approx(updates_of(26), abs=spread)
    assert closed.updates.max() > 1
    assert ((closed.right >= 0) & (closed.right <= 100)).all()


def test_rows_are_read_back_and_drawn(tmp_path):
    rows = reference(13, 0, 32)
    write_rows(tmp_path / "rows.jsonl", rows)
    assert load_rows(tmp_path / "rows.jsonl") == rows
    assert load_rows(tmp_path / "none.jsonl") == []
    draw(rows, 0).savefig(tmp_path / "need.png")
    assert (tmp_path / "need.png").stat().st_size > 5000


def test_a_gain_is_over_the_same_episodes(untrained):
    fixed = Closed(np.array([50.0, 90.0, 10.0]), np.array([4, 4, 4]))
    asked = []
    row = row_of(
        "learned", "entropy", 32, 0, None, 0, Closed(fixed.right + 5.0, fixed.updates + 1), lambda k: asked.append(k) or fixed
    )
    # Five updates in 128 ticks: every 26 to 31 ticks is as many, every 32 is one fewer; 26 is the most even.
    assert asked == [26] == [row.beside]
    assert (row.gain, row.gain_low, row.gain_high) == (5.0, 5.0, 5.0)
    assert row.right == pytest.approx(55.0)


def test_a_base_rate_is_the_entropy_of_what_was_seen_and_counts_what_was_cut_short():
    seen = np.array([0] * 50 + [1] * 25 + [3] * 25)
    assert base_rate(seen, 4) == pytest.approx(1.5 * np.log(2))
    # Lives that were cut short before they could end say nothing more.
    again = base_rate(np.concatenate([seen, np.full(100, 4)]), 4)
    assert again == pytest.approx(0.75 * np.log(2))
