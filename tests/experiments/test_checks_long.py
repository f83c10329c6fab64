"""The long demo's claims on invented figures: they hold where they are made to, and break one by one."""

import dataclasses
import json

import pytest

from experiments import checks, checks_long, report
from experiments.rows import append
from tests.experiments.invented_rows import invent, patrol_rows, scripted, write_run

TEXT = {
    "two_rate": {
        "text": {
            "nats_own": {"mean": 2.9, "low": 2.8, "high": 3.0},
            "nats_trigram": {"mean": 3.1, "low": 2.8, "high": 3.4},
            "nats_below_trigram": {"mean": 0.2, "low": 0.05, "high": 0.35},
            "nats_saved": {"mean": 0.2, "low": 0.1, "high": 0.3},
        },
        "captions": {
            "attributes_own": {"mean": 0.93, "low": 0.91, "high": 0.95},
            "attributes_shuffled": {"mean": 0.2, "low": 0.15, "high": 0.25},
            "attributes_chance": {"mean": 0.18, "low": 0.15, "high": 0.22},
        },
    }
}
LINE = {"controller_padding": 0.05, "planner_padding": 0.1, "loader_wait_share": 0.001}
METRICS = {"two_rate": [LINE] * 4, "single_rate": [LINE | {"planner_padding": 1.0}] * 4}
TASKS = [f"{body}_{i}" for body in ("walker", "fish") for i in range(3)][:5]


def whole():
    """Rows of the whole corpus in which every claim holds."""
    return [*patrol_rows(), *(invent(70, agent="two_rate", task=task, ratio=8, latency=0) for task in TASKS)]


def alone():
    """Rows of what was trained on the patrol alone, with a second, poorer seed of the two-rate agent."""
    rows = [invent(80, agent="two_rate", ratio=ratio, latency=late) for ratio in (1, 8, 16) for late in (0, 8)]
    rows += [dataclasses.replace(row, train_seed=1, normalised_return=33, ci_low=0) for row in rows]
    rows += [invent(20, agent="chunked", ratio=ratio, latency=0) for ratio in (2, 16)]
    rows += [invent(90, agent="chunked", variant="no_sub_goal", ratio=16, latency=0)]
    return [*rows, invent(10, agent="late_action", ratio=1, latency=8), invent(5, agent="controller_only")]


def verdicts(rows=None, own=None, text=TEXT, metrics=METRICS):
    found = checks_long.checks(whole() if rows is None else rows, alone() if own is None else own, text, metrics)
    return {check.claim: check.verdict for check in found}


def test_every_claim_holds_on_figures_made_to_hold():
    assert set(verdicts().values()) == {checks.HOLDS}


def test_nothing_is_claimed_of_what_was_not_measured():
    assert set(verdicts([], [], {}, {}).values()) == {checks.UNMEASURED}


def changed(collection, figure, **values):
    """TEXT with one figure changed."""
    found = {name: dict(figures) for name, figures in TEXT["two_rate"].items()}
    found[collection][figure] = found[collection][figure] | values
    return {"two_rate": found}


def poorer(rows, mean, **where):
    """Rows, those of these fields at another return."""
    hit = [all(getattr(row, name) == value for name, value in where.items()) for row in rows]
    low = {"normalised_return": mean, "ci_low": mean - 1, "ci_high": mean + 1}
    return [dataclasses.replace(row, **low) if one else row for row, one in zip(rows, hit)]


PLAIN = {"task": "patrol", "agent": "two_rate", "ratio": 8, "control": "none"}


@pytest.mark.parametrize(
    ("given", "claim"),
    [
        ({"rows": poorer(whole(), 84, **PLAIN, latency=0)}, "above 85"),
        ({"rows": poorer(whole(), 74, **PLAIN, latency=8)}, "above 75"),
        ({"own": poorer(alone(), 60, agent="chunked", variant="", ratio=16)}, "above chunks"),
        ({"own": poorer(alone(), 60, agent="late_action")}, "trained to be late"),
        ({"rows": poorer(whole(), 40, agent="two_rate", task="walker_0", train_seed=0)}, "suite's tasks"),
        ({"text": changed("text", "nats_below_trigram", low=-0.01)}, "trigram"),
        ({"text": changed("text", "nats_saved", low=-0.01)}, "shuffled one"),
        ({"text": changed("captions", "attributes_own", mean=0.85)}, "90% of the attributes"),
        ({"text": changed("captions", "attributes_shuffled", low=0.3)}, "than chance"),
        ({"metrics": METRICS | {"baselines/frozen": [LINE | {"planner_padding": 0.16}]}}, "Padding"),
        ({"metrics": METRICS | {"baselines/two_rate_1": [LINE | {"loader_wait_share": 0.03}]}}, "waits"),
    ],
)
def test_a_claim_that_the_figures_break_does_not_hold(given, claim):
    broken = [name for name, verdict in verdicts(**given).items() if verdict == checks.FAILS]
    assert len(broken) == 1
    assert claim in broken[0]


def test_seeds_stand_beside_each_other_and_the_table_of_baselines_has_the_first():
    lines = checks_long.seeds(alone())
    assert [(line["agent"], line["ratio"], line["latency"], line["returns"]) for line in lines] == [
        ("two_rate", 8, 0, [80, 33]),
        ("two_rate", 8, 8, [80, 33]),
    ]
    assert {row.train_seed for row in checks_long.trained_alone(alone())} == {0}


def test_the_first_batches_are_left_out_of_the_filling():
    lines = [LINE | {"loader_wait_share": 0.5}, LINE | {"loader_wait_share": 0.5}, {"step": 5}, LINE, LINE]
    found = checks_long.filling(lines)
    assert found == checks_long.Filling(0.05, 0.1, pytest.approx(0.001))
    assert checks_long.filling([{"step": 1}]) is None
    assert checks_long.filling([LINE | {"planner_padding": 1.0}]).planner_padding is None


def test_the_page_of_the_long_demo_has_its_tables(tmp_path):
    folder = write_run(tmp_path)
    for row in whole():
        append(folder / "rows.jsonl", row)
    for row in alone():
        append(folder / "baselines" / "rows.jsonl", row)
    (folder / "text.json").write_text(json.dumps(TEXT))
    plain = report.write_report(folder).read_text()
    assert "above 85" not in plain
    (folder / report.LONG).write_text("{}")
    page = report.write_report(folder).read_text()
    for words in ("above 85", "Baselines, trained alike", "Other training seeds", "What is said", "late action", "no sub goal"):
        assert words in page


def test_the_picture_over_seeds_shows_their_mean_from_the_lowest_to_the_highest():
    rows = [invent(80, agent="two_rate", ratio=8, latency=0), invent(60, agent="two_rate", ratio=16, latency=0)]
    other = dataclasses.replace(invent(90, agent="two_rate", ratio=8, latency=0), train_seed=1)
    merged = report.over_seeds([*rows, other, scripted("random", 0)])
    assert len(merged) == 3
    both = next(row for row in merged if row.ratio == 8)
    assert (both.normalised_return, both.ci_low, both.ci_high) == pytest.approx((85, 80, 90))
    assert both.train_seed is None
