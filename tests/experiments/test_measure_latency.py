"""What the latency command measures: ways that give the same actions, a floor that is its formula, and parts that run."""

import dataclasses
import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import measure_latency, ways_to_tick
from experiments.measure_latency import AT_ONCE, OURS, LatencyConfig, _largest, agree, floor_ms
from experiments.turns import TIMED_FROM, interleave, paced
from experiments.ways_to_tick import SHAPES, Point, of_parameters, sized
from hierarchy.model.flops import Pass, parameters
from modules.transformer import TransformerConfig

POINT = Point(planner_tokens=3, observation=4, action=3, window=3, plan_vectors=2)
PLANNER = TransformerConfig(32, 1, 1, 64, window=3)


def model(point: Point = POINT, layers: int = 2, at_once: bool = False) -> ways_to_tick.Model:
    return ways_to_tick.two_rate(point, PLANNER, TransformerConfig(32, layers, 2, 64, point.window), at_once)


def test_the_floor_is_the_longer_of_operations_and_bytes_pass_by_pass():
    passes = [Pass(20, 4_000_000, 1000), Pass(1, 1000, 6_000_000), Pass(1, 1000, 6_000_000)]
    assert floor_ms(passes, rate=1e9, bandwidth=2e9) == pytest.approx(4.0 + 3.0 + 3.0)


@pytest.mark.parametrize("read", ["prefix", "cross_attention"])
def test_all_ways_with_a_cache_give_the_same_actions(read):
    made = model(dataclasses.replace(POINT, plan_read=read))
    ways = {
        OURS: ways_to_tick.one_call_a_tick(made),
        "call": ways_to_tick.call_by_call(made, False),
        "token": ways_to_tick.call_by_call(made, True),
    }
    assert max(agree(ways, OURS, 9).values()) < 1e-5
    actions = np.stack([ways[OURS](tick) for tick in range(9, 15)])
    assert np.abs(np.diff(actions, axis=0)).max() > 1e-3


def test_without_a_cache_one_layer_sees_the_same():
    """More layers reach further back through a cache than the window that is recomputed."""
    for layers, same in ((1, True), (2, False)):
        made = model(layers=layers)
        apart = agree({OURS: ways_to_tick.one_call_a_tick(made), "again": ways_to_tick.recomputing(made)}, OURS, 9)
        assert (apart["again"] < 1e-5) == same


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("read", ["prefix", "cross_attention"])
def test_pytorch_gives_the_same_actions(read, at_once):
    pytest.importorskip("torch")
    made = model(dataclasses.replace(POINT, plan_read=read), at_once=at_once)
    ways = {OURS: ways_to_tick.one_call_a_tick(made), "torch": ways_to_tick.in_torch(made, False)}
    assert agree(ways, OURS, 9)["torch"] < 1e-5


def test_sizes_are_what_they_are_called():
    for name in SHAPES:
        of = sized(name, 16)
        count = of.layers * (4 * of.width**2 + of.width * of.feed_forward * 3 // 2)
        assert count == pytest.approx(float(name[:-1]) * 1e6, rel=0.07)
    with pytest.raises(ValueError, match="no size '3M': there are"):
        sized("3M", 16)
    for count in (5e6, 17e6, 21e6, 101e6):
        of = of_parameters(int(count), 16)
        assert 10 * of.layers * of.width**2 == pytest.approx(count, rel=0.03)


def test_one_model_of_the_same_size_has_it():
    both = ways_to_tick.two_rate(Point(), sized("16M", 16), sized("5M", 16))
    alone = ways_to_tick.single(Point(), of_parameters(parameters(both.network), 16))
    assert parameters(alone.network) == pytest.approx(parameters(both.network), rel=0.03)


def test_ways_take_turns():
    calls = []

    def way(name: str):
        return lambda tick: (calls.append((name, tick)), time.sleep(0.001))

    timed = interleave({name: way(name) for name in "ab"}, 0.2, "calls", rounds=5)
    turns = "".join(name for name, _ in calls)
    assert len([1 for one, other in itertools.pairwise(turns) if one != other]) >= 5
    assert [tick for name, tick in calls if name == "a"] == [TIMED_FROM + i for i in range(turns.count("a"))]
    assert {*timed} == {*"ab"}


def test_a_paced_tick_is_timed_without_its_wait():
    done = []

    class Quick:
        def __call__(self, tick: int) -> None:
            done.append(tick)

        def rehearse(self, tick: int) -> None:
            done.append(f"rehearsal of {tick}")

    timed = paced({"a": Quick()}, 100.0, 0.3)["a"]
    assert len(timed) == 100
    assert np.median(timed) < 1.0
    assert done == list(range(100))
    paced({"a": Quick()}, 100.0, 0.3, rehearsed=True)
    assert done[100:103] == [0, "rehearsal of 1", 1]


def test_the_largest_that_fits_is_found():
    counts = {name: 10 * width**2 * layers for name, (width, layers, _) in SHAPES.items()}
    tried = _largest(lambda name: np.full(3, counts[name] / 1e6), 25.0)
    fitting = [one["size"] for one in tried if one["fits"]]
    assert max(fitting, key=counts.get) == "20M"
    assert {"size": "50M", "fits": False}.items() <= next(one for one in tried if one["size"] == "50M").items()


def test_a_soaked_agent_neither_compiles_nor_keeps_anything():
    config = LatencyConfig(parts=("soak",), point=POINT, controller="0.5M", soak=120)
    found = measure_latency.measure_soak(config, episode=30)
    assert (found["compiled_since"], found["arrays_since"]) == (0, 0)
    assert found["holds"]


def test_an_agent_that_keeps_what_it_acted_on_does_not_pass_for_one_that_does_not(monkeypatch):
    kept, step = [], measure_latency.Agent.step

    def keeping(agent, state, seen):
        action, after = step(agent, state, seen)
        kept.append(after.decoded)
        return action, after

    monkeypatch.setattr(measure_latency.Agent, "step", keeping)
    config = LatencyConfig(parts=("soak",), point=POINT, controller="0.5M", soak=90)
    found = measure_latency.measure_soak(config, episode=30)
    assert found["arrays_since"] >= 30
    assert not found["holds"]


def test_an_agent_is_soaked_for_three_episodes_at_least():
    with pytest.raises(ValueError, match="soak 89: at least 90 ticks, three episodes of 30"):
        measure_latency.measure_soak(LatencyConfig(parts=("soak",), point=POINT, controller="0.5M", soak=89), episode=30)


def test_bfloat16_gives_nearly_the_same_actions_and_not_the_same():
    made = model(at_once=True)
    ways = {OURS: ways_to_tick.one_call_a_tick(made), "rounded": ways_to_tick.one_call_a_tick(made, "bfloat16")}
    assert 1e-6 < agree(ways, OURS, 9)["rounded"] < 0.05


@pytest.mark.parametrize(("wrong", "said"), [({"action": 0}, "action is 0: it is at least 1"), ({"window": -1}, "window is -1")])
def test_a_point_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(POINT, **wrong)


def test_an_action_of_one_element_has_its_ways_too():
    made = model(dataclasses.replace(POINT, action=1), layers=1)
    ways = {OURS: ways_to_tick.one_call_a_tick(made), "call": ways_to_tick.call_by_call(made, False)}
    assert max(agree(ways | {"again": ways_to_tick.recomputing(made)}, OURS, 9).values()) < 1e-5


@pytest.mark.long
def test_the_command_writes_what_it_prints(tmp_path):
    options = ["--parts", "ways", "paced", "--seconds", "0.5", "--planner", "0.5M", "--controller", "0.5M"]
    command = [sys.executable, "-m", "experiments.measure_latency", *options, "--json", str(tmp_path / "latency.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "latency.json").read_text())
    rows = {row["way"]: row for row in found["ways"]["rows"]}
    assert f"{rows[OURS]['p50_ms']:.2f}" in done.stdout
    assert AT_ONCE in rows
    assert all(row["p50_ms"] > row["floor_ms"] > 0 for row in rows.values())
    assert found["ways"]["same"]
    assert {row["way"] for row in found["paced"]} == {OURS, AT_ONCE}
