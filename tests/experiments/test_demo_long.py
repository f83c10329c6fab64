"""The long demo on the debug preset: the same stages, smaller numbers; and how its minutes are divided."""

import dataclasses
import json

import pytest

from experiments import checks, rows
from experiments.demo_long import ALONE, COMPILING, MINUTES, PROBE_STEPS, WHOLE, budget, demo_long, loops
from experiments.demo_long_trainings import (
    BASELINES,
    SAID,
    WITHOUT,
    DemoLongConfig,
    alone,
    baseline,
    pace_of,
    probes,
    sources,
    whole_mix,
)
from experiments.stages import Stages
from experiments.tasks import schema_of
from experiments.train import check_warm_up, model_config
from hierarchy.model.network import build

SMALL = DemoLongConfig(
    minutes=0.5,
    preset="debug",
    patrol_episodes=8,
    scripted=("reacher_easy",),
    scripted_episodes=4,
    planned=(),
    documents=80,
    captions=70,
    text_pieces=400,
    seeds=(0, 1),
    baselines=("two_rate", "chunked", "late_action_no_sub_goal", "frozen", "controller_only"),
    rows=2,
    most_steps=4,
    episodes=2,
    scripted_evaluations=2,
    documents_read=2,
    pictures=2,
    ratios=(1, 8),
    latencies=(0, 8),
)


def test_every_training_alone_is_as_its_name_says_and_has_a_warm_up_only_where_it_learns():
    config = DemoLongConfig()
    assert set(config.baselines) == {name + how for name in BASELINES for how in ("", WITHOUT)} | {"controller_only"}
    assert set(alone(config)) - set(config.baselines) == {
        "single_rate",
        *(f"{agent}_{seed}" for agent in ("two_rate", "single_rate") for seed in (1, 2)),
    }
    for name, each in alone(config).items():
        trained = baseline(config, name, 100)
        assert trained.learner.weights.sub_goal == (0 if WITHOUT in name else 1)
        drawn = ((1,), (0,)) if "fixed" in name else (whole_mix(config).ratios, tuple(range(9)))
        assert (trained.mix.ratios, trained.mix.latencies) == drawn
        assert trained.learner.planner == next((how for how in ("detached", "frozen") if name.startswith(how)), "joint")
        assert f"baseline_{pace_of(each)}" in probes(config)
        two_rate = schema_of(("patrol",), 400, "two_rate")
        schema = schema_of(("patrol",), 400, trained.agent, (2, 4))
        check_warm_up(trained, build(model_config(trained, schema, two_rate), schema))


def test_shares_add_up_and_name_what_is_recorded():
    for config in (DemoLongConfig(), SMALL):
        mix = whole_mix(config)
        assert set(mix.tasks) == set(sources(config))
        assert sum(mix.weights) == pytest.approx(1)
        patrol, captions = (mix.weights[mix.tasks.index(task)] for task in ("patrol", "captions"))
        assert patrol / captions == pytest.approx(config.patrol_share / SAID["captions"])


def test_seeds_differ_in_their_folder_and_seed_alone():
    for agent in ("two_rate", "single_rate"):
        first, second = (baseline(DemoLongConfig(), folder, 50) for folder in (agent, f"{agent}_1"))
        assert first.out != second.out
        assert dataclasses.replace(second, out=first.out, learner=first.learner) == first
        assert dataclasses.replace(second.learner, seed=0) == first.learner != second.learner


def test_too_little_text_is_said_before_anything_is_trained(tmp_path):
    few = dataclasses.replace(SMALL, out=tmp_path, patrol_episodes=2, scripted=(), documents=2)
    with pytest.raises(ValueError, match="1 of the 1 held-out documents of 'text' can be measured, and 2 are needed"):
        demo_long(few)
    assert not (tmp_path / "two_rate").exists()


def test_each_group_has_what_is_left_of_the_minutes_when_its_turn_comes(tmp_path):
    config = DemoLongConfig(out=tmp_path, minutes=90)
    for name in probes(config):
        (tmp_path / f"pace_{name}.json").write_text(json.dumps({"warm_up_s": 0.2, "joint_s": 0.4}))
    scale = 90 / sum(MINUTES.values())
    stages = Stages(tmp_path, {name: scale * minutes for name, minutes in MINUTES.items()})
    stages.took_s |= {"record experts": 400.0, "measure paces": 300.0}
    pace, own = (share * 0.2 + (1 - share) * 0.4 for share in (config.warm_up, config.baseline_warm_up))

    first = budget(config, stages, ALONE)
    lanes = -(-len(alone(config)) // 2) * first["each_s"]
    later = sum(MINUTES[name] for name in (WHOLE, "close loops", "read text and captions", "film and report"))
    assert 700 + lanes + 60 * scale * (later + COMPILING[ALONE]) == pytest.approx(90 * 60)
    assert first["steps"]["baselines/frozen"] * own == pytest.approx(first["each_s"], rel=0.01)
    # Without a warm-up every step is a joint one: fewer fit into the same time.
    assert first["steps"]["baselines/chunked"] * 0.4 == pytest.approx(first["each_s"], rel=0.01)

    # It ends early, and what it has not used goes to those after it.
    stages.took_s[ALONE] = lanes - 200
    second = budget(config, stages, WHOLE)
    assert second["each_s"] == pytest.approx(60 * scale * (MINUTES[WHOLE] + COMPILING[ALONE] - COMPILING[WHOLE]) + 200)
    assert second["steps"]["two_rate"] == second["steps"]["single_rate"]
    assert second["steps"]["two_rate"] * pace == pytest.approx(second["each_s"], rel=0.01)

    # Decided once: neither a stage that takes for ever nor another start changes it.
    stages.took_s[WHOLE] = 1e6
    assert budget(config, stages, ALONE) == first
    assert budget(config, Stages(tmp_path, MINUTES), WHOLE) == second


def test_every_cell_of_every_agent_is_measured_once():
    config = DemoLongConfig()
    found = [(each.run, each.task) for half in loops(config).values() for each in half]
    assert len(set(found)) == len(found)
    runs = {run for run, _ in found}
    assert len(runs) == 2 + len(alone(config))
    patrol = [each for half in loops(config).values() for each in half if each.task == "patrol"]
    assert {each.episodes for each in patrol} == {256}
    assert len({task for _, task in found}) == 1 + len(config.scripted) + len(config.planned)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = dataclasses.replace(SMALL, out=tmp_path_factory.mktemp("demo_long"))
    demo_long(config)
    return config


@pytest.mark.long
def test_the_long_demo_leaves_a_page_with_every_table(finished):
    page = (finished.out / "report.html").read_text()
    for title in ("Other training seeds", "Baselines, trained alike", "What is said", "waiting for batches"):
        assert title in page
    assert "Not measured yet" not in page
    assert 'src="http' not in page


@pytest.mark.long
def test_every_agent_has_its_rows(finished):
    table = rows.load(finished.out / "rows.jsonl")
    assert {row.train_seed for row in table if row.task == checks.PATROL and row.agent == "two_rate"} == {0}
    own = rows.load(finished.out / "baselines" / "rows.jsonl")
    found = {(row.agent, row.variant) for row in own if row.train_seed == 0}
    others = {("chunked", ""), ("late_action", "no_sub_goal"), ("frozen", ""), ("controller_only", "")}
    assert found == {("two_rate", ""), ("single_rate", "")} | others
    assert {(row.agent, row.variant) for row in own if row.train_seed == 1} == {("two_rate", ""), ("single_rate", "")}
    assert json.loads((finished.out / "text.json").read_text())["two_rate"].keys() == {"text", "captions"}
    groups = json.loads((finished.out / "budget.json").read_text()).values()
    steps = {name: count for group in groups for name, count in group["steps"].items()}
    assert {json.loads((finished.out / name / "trained.json").read_text())["steps"] for name in steps} == set(steps.values())
    assert PROBE_STEPS > 3


@pytest.mark.long
def test_run_again_it_repeats_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.out.glob("**/trained.json")}
    table = (finished.out / "rows.jsonl").read_bytes()
    demo_long(finished)
    assert {path: path.stat().st_mtime_ns for path in finished.out.glob("**/trained.json")} == before
    assert (finished.out / "rows.jsonl").read_bytes() == table
