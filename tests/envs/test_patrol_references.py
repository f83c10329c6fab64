import numpy as np
import pytest

from envs import lqr
from envs.patrol import Patrol, Rules
from envs.patrol_experts import Regulator
from envs.patrol_references import BLIND, Past, hierarchy, scripted_returns
from envs.recording import record

SEEDS = range(500, 532)


@pytest.fixture(scope="module")
def expert():
    return scripted_returns("hierarchy", 1, 0, SEEDS).mean()


@pytest.fixture(scope="module")
def random():
    return scripted_returns("random", 1, 0, SEEDS).mean()


def test_the_full_rate_hierarchy_is_the_expert():
    scripted = scripted_returns("hierarchy", 1, 0, range(8))
    recorded = [record(Patrol(), Regulator(), seed, "patrol").info["return"] for seed in range(8)]
    # The expert's actions are rounded to float32 on their way; that moves no visit here.
    assert scripted.tolist() == recorded


@pytest.mark.parametrize("reference", ["held", "chunks", "late", "compensated"])
def test_at_ratio_one_and_no_latency_every_reference_is_the_expert(reference):
    same = scripted_returns(reference, 1, 0, SEEDS[:6])
    np.testing.assert_array_equal(same, scripted_returns("hierarchy", 1, 0, SEEDS[:6]))


@pytest.mark.parametrize(
    ("reference", "ratio"),
    [
        ("centre", 1),
        ("start", 1),
        ("search", 1),
        *(("sweep", k) for k in (96, 256, 512)),
        *(("stops", k) for k in (24, 32, 42)),
    ],
)
def test_no_goal_blind_policy_passes_a_tenth_of_the_expert(reference, ratio, random, expert):
    """Random is 0 and the expert 1."""
    assert reference in BLIND
    score = (scripted_returns(reference, ratio, 0, SEEDS).mean() - random) / (expert - random)
    assert score < 0.1


def test_without_the_price_of_a_miss_a_blind_search_would_pass():
    """The control of the test above: it is the price that keeps goal-blind policies down."""
    free = Rules(miss=0.0)
    search, expert = (scripted_returns(name, 1, 0, SEEDS[:24], free).mean() for name in ("search", "hierarchy"))
    assert search > 0.3 * expert


def test_seldom_or_late_goals_cost_little_and_late_actions_nearly_all(expert):
    def score(reference, ratio, latency):
        return scripted_returns(reference, ratio, latency, SEEDS).mean() / expert

    assert score("hierarchy", 8, 0) > 0.85
    assert score("hierarchy", 8, 8) > 0.65
    assert score("held", 16, 0) < 0.2
    assert score("late", 1, 4) < 0.05
    assert score("late", 1, 2) + 0.3 < score("compensated", 1, 2)
    assert score("compensated", 1, 8) < 0.5


@pytest.mark.parametrize(("ratio", "latency"), [(1, 0), (4, 2), (8, 20)])
def test_the_hierarchy_knows_goals_when_its_timeline_says(monkeypatch, ratio, latency):
    """The goal of tick t is t here, and the place to stay until the first is known is -1."""
    monkeypatch.setattr(lqr, "act", lambda states, goals: goals)
    act, ticks = hierarchy(ratio, latency, Rules()), np.arange(64.0)
    states = np.full((64, 1, 4), -1.0)
    for tick in range(64):
        (known,) = act(Past(tick, states[: tick + 1], ticks[: tick + 1, None], np.zeros((1, 4))))
        assert known == ((tick - latency) // ratio * ratio if tick >= latency else -1)


def test_unknown_names_and_ranges_are_refused():
    with pytest.raises(ValueError, match="no reference 'psychic'; there are hierarchy"):
        scripted_returns("psychic", 1, 0, [0])
    with pytest.raises(ValueError, match="at least 1"):
        scripted_returns("held", 0, 0, [0])
