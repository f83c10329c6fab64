import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from experiments import checks, figures, report
from experiments.rows import append
from experiments.video import write_video
from tests.experiments.invented_rows import invent, patrol_rows, scripted, write_run


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The page of an invented run with everything there."""
    folder = write_run(tmp_path_factory.mktemp("run"))
    write_video((np.full((32, 32, 3), 9 * tick, np.uint8) for tick in range(8)), folder / "patrol.mp4", hz=25)
    path = report.write_report(folder)
    assert path == folder / "report.html"
    assert not list(folder.glob("*.draft"))
    return path.read_text()


def verdicts(rows):
    """The verdict of every claim."""
    return {check.claim: check.verdict for check in checks.checks(rows)}


def test_the_page_needs_no_other_file_and_no_network(html):
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "http" not in html
    assert "url(" not in html
    assert "<script" not in html


def test_the_page_shows_every_plot_the_video_and_all_rows(html):
    assert html.count("data:image/svg+xml") == 5
    assert html.count("data:video/mp4") == 1
    assert "Not measured yet" not in html
    assert f"All {len(patrol_rows())} rows" in html
    for name in (
        "point mass easy",
        "0.10.2",
        "python -m experiments.demo",
        "1000000 to 1000127",
        "820.5",
        "4000 resamples",
        "at least 128",
    ):
        assert name in html
    assert "&lt;unknown &amp; old&gt;" in html


def test_cells_of_ratios_2_and_8_are_marked_as_never_trained_on(html):
    assert html.count('class="unseen"') == 8
    assert re.findall(r"ratio (\d+)<small>never trained on", html) == ["2", "8"]


def test_an_empty_folder_gives_a_page_that_says_what_is_missing(tmp_path):
    html = report.write_report(tmp_path).read_text()
    assert "Not measured yet" in html
    assert "The video is not drawn yet" in html
    assert set(verdicts([]).values()) == {checks.UNMEASURED}


@pytest.mark.parametrize("seed", range(4))
def test_any_part_of_the_rows_gives_a_page(tmp_path, seed):
    rng = np.random.default_rng(seed)
    for row in patrol_rows():
        if rng.random() < (0.05, 0.2, 0.5, 0.8)[seed]:
            append(tmp_path / "rows.jsonl", dataclasses.replace(row, returns=() if rng.random() < 0.3 else row.returns))
    assert "What holds" in report.write_report(tmp_path).read_text()


def test_a_cell_measured_again_counts_once_and_newest(tmp_path):
    for mean in (30, 77):
        append(tmp_path / "rows.jsonl", invent(mean, agent="two_rate", ratio=8, latency=0))
    html = report.write_report(tmp_path).read_text()
    assert "All 1 rows" in html
    assert "<b>77.0</b>" in html


def test_facts_that_are_not_json_are_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json"):
        report.write_report(tmp_path)


def test_every_claim_holds_on_rows_made_to_hold():
    assert set(verdicts(patrol_rows()).values()) == {checks.HOLDS}


def replaced(mean, **where):
    """The invented rows, with those of these fields at another return."""
    rows = []
    for row in patrol_rows():
        hit = all(getattr(row, name) == value for name, value in where.items())
        rows.append(dataclasses.replace(row, normalised_return=mean, ci_low=mean - 1, ci_high=mean + 1) if hit else row)
    return rows


PLAIN = {"task": "patrol", "agent": "two_rate", "control": "none"}


@pytest.mark.parametrize(
    ("rows", "claim"),
    [
        (replaced(59, **PLAIN, ratio=8, latency=0), "the return is above 60"),
        (replaced(49, **PLAIN, ratio=8, latency=8), "ticks late it is above 50"),
        (replaced(66, agent="controller_only"), "the controller trained alone"),
        (replaced(66, control="zeroed"), "plans zeroed"),
        (replaced(66, control="shuffled"), "plans of other episodes"),
        (replaced(66, control="random"), "random plans"),
        (replaced(66, agent="held_action", variant="two_rate", ratio=8), "actions held"),
        (replaced(60, agent="late_action", latency=8), "late actions"),
        (replaced(70, **PLAIN, ratio=4, latency=2), "75%"),
        (replaced(104, **PLAIN, ratio=32, latency=0), "leak"),
        (replaced(49, agent="two_rate", task="reacher_easy"), "three bodies"),
        (replaced(84, **PLAIN, ratio=8, latency=0), "at least 90%"),
    ],
)
def test_a_claim_that_the_rows_break_does_not_hold(rows, claim):
    broken = [name for name, verdict in verdicts(rows).items() if verdict == checks.FAILS]
    assert claim in broken[0]


def test_a_tick_of_more_than_a_third_of_the_flops_does_not_hold():
    rows = [dataclasses.replace(row, flops_per_tick=10e6) if row.agent == "single_rate" else row for row in patrol_rows()]
    assert [claim for claim, verdict in verdicts(rows).items() if verdict == checks.FAILS] == [checks.cheap([]).claim]


def test_a_poor_baseline_is_called_untrained():
    rows = replaced(50, agent="single_rate", task="patrol")
    assert checks.keeps_up(rows).verdict == checks.UNTRAINED
    assert checks.UNTRAINED in verdicts(rows).values()


def test_one_missing_cell_leaves_the_flatness_unmeasured():
    rows = [row for row in patrol_rows() if not (row.agent == "two_rate" and row.ratio == 16 and row.latency == 4)]
    assert checks.flat(rows).verdict == checks.UNMEASURED


def test_the_lead_is_paired_by_episode():
    ours = invent(90, agent="two_rate", ratio=8, latency=0)
    easier = dataclasses.replace(
        ours, control="zeroed", normalised_return=40, ci_low=38, ci_high=42, returns=np.subtract(ours.returns, 2)
    )
    ends = [scripted("random", 0), scripted("expert", 100)]
    lead = checks.difference([ours, easier, *ends], ours, easier)
    np.testing.assert_allclose(lead, (50, 50, 50))


def test_a_curve_is_of_one_group_and_held_out_where_it_can_be():
    train = [{"step": step, "group": "train", "action_loss": 5.0, "loss": 6.0} for step in (0, 10, 20)]
    held_out = [{"step": step, "group": "held_out", "action_loss": 4.0} for step in (0, 20)]
    assert figures.series(train + held_out, "action_loss") == ([0, 20], [4.0, 4.0])
    assert figures.series(train + held_out, "loss") == ([0, 10, 20], [6.0, 6.0, 6.0])
    assert figures.series(train, "action_loss", beside="accuracy") == ([], [])


def test_labels_are_moved_apart_in_their_order():
    placed = figures.spread([90, 10, 91, 92, 11], gap=5, low=0, high=100)
    assert np.argsort(placed).tolist() == [1, 4, 0, 2, 3]
    assert np.diff(np.sort(placed)).min() >= 5 - 1e-9
    assert figures.spread([20, 60], gap=5, low=0, high=100) == [20, 60]
    assert max(figures.spread([99, 99, 99], gap=5, low=0, high=100)) <= 100


def test_the_picture_of_the_readme_is_drawn_from_rows(tmp_path):
    path = report.write_readme_figure(patrol_rows(), tmp_path / "pictures" / "ratio.png")
    with Image.open(path) as picture:
        assert picture.width > 1500
        assert np.ptp(np.asarray(picture.convert("L"))) > 150
    with pytest.raises(ValueError, match="run the demo first"):
        report.write_readme_figure([], tmp_path / "none.png")
