"""One small model, trained here and now: asking for plans when they are needed beats the fixed period, and chance does not."""

import pytest

from experiments.need_rows import updates_of
from experiments.updates_by_need import NeedConfig, need

pytestmark = pytest.mark.long


def test_a_trigger_beats_the_period_by_ten_points_at_equal_updates_and_chance_does_not(tmp_path):
    rows = {(row.agent, row.way): row for row in need(NeedConfig(tmp_path, periods=(13,), latencies=(0,)))}
    assert rows["scripted", "oracle"].gain_low >= 20.0
    # Gains are over a fixed period that spends no fewer updates.
    assert all(row.updates <= 1.1 * updates_of(13) for row in rows.values())
    assert rows["learned", "entropy"].gain_low >= 10.0
    assert rows["learned", "prediction"].gain_low >= 10.0
    assert rows["learned", "random"].gain_high < 0.0
