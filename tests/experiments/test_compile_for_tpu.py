"""What is read out of a compiled program; and, where the compiler is installed, what fits, what does not, and what is divided."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from experiments.compile_for_tpu import CHIPS, CompileConfig, figures, meshes_of, model_of, packing_of
from experiments.optimised_program import Schedule, Work, called, group_size, through_links, work
from hierarchy.model.config import PRESETS
from hierarchy.training.step_flops import attention_flops, step_flops

PROGRAM = """HloModule jit_step, is_scheduled=true

%fused (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0} parameter(0)
  ROOT %m = f32[8,128]{1,0} multiply(%p, %p), backend_config={"estimated_cycles":"999"}
}

%body (arg: (s32[], bf16[16,128])) -> (s32[], bf16[16,128]) {
  %arg = (s32[], bf16[16,128]{1,0}) parameter(0)
  %x = bf16[16,128]{1,0} get-tuple-element(%arg), index=1
  %ag-start = (bf16[16,128]{1,0}, bf16[64,128]{1,0}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %f.1 = bf16[16,128]{1,0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"300"}
  %ag-done = bf16[64,128]{1,0} all-gather-done(%ag-start)
  %flash_forward.2 = bf16[16,128]{1,0} custom-call(%f.1), custom_call_target="tpu_custom_call"
  %f.2 = bf16[16,128]{1,0} fusion(%ag-done), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"200"}
  ROOT %t = (s32[], bf16[16,128]{1,0}) tuple(%x, %f.2)
}

%cond (arg.1: (s32[], bf16[16,128])) -> pred[] {
  %rounds = s32[]{:T(128)} constant(26), metadata={op_name="while"}
  %arg.1 = (s32[], bf16[16,128]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %c = pred[]{:T(512)} compare(%i, %rounds), direction=LT, metadata={op_name="while/cond/lt"}
}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %first = s32[]{:T(128)} constant(2)
  %both = (s32[]{:T(128)}, bf16[16,128]{1,0}) tuple(%first, %a)
  %w = (s32[]{:T(128)}, bf16[16,128]{1,0}) while(%both), condition=%cond, body=%body, metadata={op_name="while"}
  %r = f32[8,128]{1,0} all-reduce(%a), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%fused
  ROOT %out = f32[8,128]{1,0} fusion(%r), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"50"}
}
"""


def test_both_ways_to_write_the_branches_of_a_conditional_are_read():
    assert called("(%p, %a, %b), branch_computations={%first, %second.1}, metadata={}") == ["first", "second.1"]
    assert called("(%p, %a, %b), true_computation=%window.1, false_computation=%noop.1, metadata={}") == ["window.1", "noop.1"]


def test_groups_over_a_mesh_whose_devices_stand_in_another_order_are_counted():
    mesh = "replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([2,4]T(1,0)) {'axis_0','axis_2'}, to_apply=%sum"
    assert group_size(mesh) == 4


def test_loops_count_as_often_as_they_run():
    done = work(PROGRAM, rate=100.0)
    assert done.cycles == 24 * 500 + 50
    assert done.collectives == {"all-gather": 24, "all-reduce": 1}
    assert done.sent["all-gather"] == 24 * (64 * 128 * 2) * 3 / 4
    assert done.sent["all-reduce"] == 2 * 8 * 128 * 4 * 7 / 8
    assert done.kernels == {"flash_forward": 24}
    # A gather takes 122.88 cycles, and 300 are computed beside it; nothing is computed beside the sum.
    assert done.waiting == pytest.approx(2 * 8 * 128 * 4 * 7 / 8 / 100)
    slower = work(PROGRAM, rate=10.0)
    assert slower.waiting == pytest.approx(24 * (1228.8 - 300) + 716.8)


@pytest.mark.parametrize(
    "groups",
    [
        "replica_groups=[8,4]<=[8,4]T(1,0), dimensions={0}",
        "replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add",
        "replica_groups=mesh['axis_0'=8,'axis_1'=2,'axis_2'=2] {'axis_1','axis_2'}, to_apply=%add",
    ],
)
def test_groups_are_read_however_they_are_written(groups):
    assert group_size(f"%x), channel_id=1, {groups}") == 4


def test_links_send_one_thing_after_another():
    schedule = Schedule(rate=2.0)
    first, second = schedule.send("all-gather", 20), schedule.send("all-gather", 40)
    schedule.compute(12)
    schedule.wait(first)
    assert schedule.work.waiting == 0
    schedule.wait(second)
    assert schedule.work.waiting == (20 + 40) / 2 - 12
    assert schedule.work.sent == {"all-gather": 60}


def test_what_a_fusion_sends_is_hidden_behind_what_it_computes():
    fused = PROGRAM.replace("multiply(%p, %p)", "all-reduce(%p), replica_groups={{0,1}}")
    assert work(fused, 1e9).collectives["all-reduce"] == 24 * 2 + 2
    assert work(fused, 1e9).waiting == pytest.approx(7168 / 1e9)
    # 80 cycles a fusion, 240 a gather: a round waits 20 for its first fusion, which sends after the gather; the last waits 30.
    assert work(fused, 51.2).waiting == pytest.approx(24 * 20 + 7168 / 51.2 + 30)


def test_a_loop_of_unknown_rounds_is_refused():
    with pytest.raises(ValueError, match="without a known number of rounds"):
        work(PROGRAM.replace("direction=LT", "direction=NE"), 1.0)


def test_what_moves_behind_computing_costs_nothing():
    chip = CHIPS["v4"]
    hidden, bare = (Work(1e6, waiting, {"all-gather": 1e7}, {}, {}) for waiting in (0.0, 1e7 / chip.links * chip.hz))
    one, other = (figures(chip, 8, done, 1e12, 0.0) for done in (hidden, bare))
    assert one["waiting_s"] == 0.0 < one["communication_s"]
    assert one["step_s"] == one["compute_s"] == 1e6 / chip.hz
    assert other["waiting_s"] == other["communication_s"] == pytest.approx(1e7 / chip.links)
    assert other["utilisation"] == pytest.approx(1e12 / (8 * chip.flops * (1e6 / chip.hz + 1e7 / chip.links)))


def test_a_ring_sends_what_is_known_of_rings():
    assert through_links("all-gather", 800, 100, 8) == 700
    assert through_links("reduce-scatter", 100, 800, 8) == 700
    assert through_links("all-reduce", 800, 800, 8) == 1400


def test_a_step_costs_six_operations_a_parameter_and_token_and_the_attention():
    config = CompileConfig("1b", controller_tokens=1, text_targets=1, plans=1)
    model, schema = model_of(config)
    packing, width = packing_of(config), model.planner.width
    layers = model.planner.layers * (4 * width**2 + width * model.planner.feed_forward * 3 // 2)
    found = step_flops(model, schema, packing) - 3 * attention_flops(model, schema, packing)
    assert found == pytest.approx(6 * layers * packing.rows * packing.planner_tokens, rel=0.02)
    square = 4 * width * model.planner.layers * packing.rows * packing.planner_tokens**2
    assert attention_flops(model, schema, packing) == pytest.approx(square / 2, rel=0.02)


@pytest.mark.parametrize(
    ("mesh", "said"), [(("8x8",), "no mesh '8x8'"), (("7x1x1",), "512 rows in 1 parts over 7 x 1: give rows a multiple")]
)
def test_what_is_no_mesh_is_refused(mesh, said):
    with pytest.raises(ValueError, match=said):
        meshes_of(CompileConfig(mesh=mesh), 64)


def test_the_presets_are_those_of_the_model():
    from experiments.compile_for_tpu import NAMES

    assert set(NAMES.values()) <= set(PRESETS)


COMPILER = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (requirements-extras.txt)"
)


SMALL = ["--preset", "debug", "--slice", "v4:2x2x2", "--rows", "64", "--effort", "-1"]


def command(folder, *options: str) -> tuple[int, dict, str]:
    """The exit code, the figures and what was said."""
    path = folder / "figures.json"
    line = [sys.executable, "-m", "experiments.compile_for_tpu", "--json", str(path), *options]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, json.loads(path.read_text()) if path.exists() else {}, done.stdout + done.stderr


@COMPILER
@pytest.mark.long
def test_a_small_preset_fits_and_is_divided(tmp_path):
    code, found, said = command(tmp_path, *SMALL, "--mesh", "1x8x1")
    assert code == 0, said
    (row,) = found["meshes"]
    assert row["fits"]
    assert row["sharded"]
    assert row["chip_bytes"] < row["chip_memory_bytes"]
    assert sum(row["sent_bytes"].values()) > 0
    assert row["kernels"]


@COMPILER
@pytest.mark.long
def test_parameters_that_every_chip_holds_are_an_error(tmp_path):
    code, found, said = command(tmp_path, *SMALL, "--mesh", "8x1x1")
    assert code == 1
    assert found["meshes"][0]["fits"]
    assert not found["meshes"][0]["sharded"]
    assert "8x1x1: does not fit, or every chip holds parameters" in said


@COMPILER
@pytest.mark.long
def test_without_rematerialisation_the_largest_is_refused_for_memory(tmp_path):
    code, found, said = command(
        tmp_path, "--preset", "1b", "--effort", "-1", "--compute.remat", "none", "--compute.attention", "einsum"
    )
    assert code == 1
    assert not found["meshes"][0]["fits"]
    assert "hbm" in found["meshes"][0]["refused"].lower()
    assert "does not fit" in said
