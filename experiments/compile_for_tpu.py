"""Compile the real training step for a slice of TPUs on this computer, and say what it would need there.

    python -m experiments.compile_for_tpu --preset 1b --slice v4:4x4x4 --mesh 1x64x1 8x8x1

Nothing runs on a TPU, and none is needed: the TPU's compiler (libtpu, see requirements-extras.txt) is an ordinary library. It
says exactly whether the step fits into a chip's memory and what is sent between chips; its times are estimates, and so is what is
made of them. Fails unless every mesh fits and divides the parameters. One compilation at a time (libtpu locks itself). Minutes
and about 4 GB of memory for the largest preset; `--effort -1` compiles several times faster, with nearly the same memory but
without times.
"""

import dataclasses
import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import tyro
from rich.console import Console
from rich.table import Table

from experiments.optimised_program import Work, work
from experiments.tasks import schema_of
from hierarchy.batch import Batch
from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.packing import fill
from hierarchy.layout import TEXT_IDS, Schema
from hierarchy.model.config import PRESETS, ModelConfig, sizes
from hierarchy.model.network import Network, build
from hierarchy.training.learner import LearnerConfig, TrainState, make_step, spread_state
from hierarchy.training.sharding import MeshConfig, bytes_a_device, spread_over
from hierarchy.training.step_flops import pair_flops, step_flops
from modules.compute import Compute, Spread
from modules.flash import lanes_of, pairs, picked_pairs
from modules.transformer import TransformerConfig

GIB = 2**30


class Chip(NamedTuple):
    """One generation of TPU, from its maker's documentation: memory in bytes, bfloat16 operations a second, bytes a second
    through all its links in one direction, and cycles a second. options: what its compiler is asked."""

    memory: float
    flops: float
    links: float
    hz: float
    options: tuple[tuple[str, str], ...] = ()


CHIPS = {
    # Without megacore the two cores of a v4 would be two devices with half the memory each.
    "v4": Chip(32 * GIB, 275e12, 300e9, 1.05e9, (("chip_config_name", "megacore"),)),
    "v5e": Chip(16 * GIB, 197e12, 200e9, 1.5e9),
    "v5p": Chip(95 * GIB, 459e12, 600e9, 1.75e9),
    "v6e": Chip(32 * GIB, 918e12, 400e9, 1.75e9),
}
"""Cycles follow from the peak: products of 128 x 128 (v6e: 256 x 256) units, of which every chip has 4 a core."""

Preset = Literal["debug", "79m", "364m", "1b"]
NAMES: dict[str, str] = {"debug": "debug", "79m": "79M", "364m": "364M", "1b": "1.18B"}
KERNEL_SHARE = 0.5
"""Share of the peak that our kernels are taken to reach: the compiler gives no estimate for them."""


@dataclasses.dataclass(frozen=True)
class CompileConfig:
    """preset: size of the model. slice: kind of chip and arrangement, such as v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:16x16.
    mesh: data x fsdp x tensor [x expert], one or more; by default fsdp over all chips. position: of the planner's attention;
    "rotary" has a kernel, "preset" is what the preset says. experts, chosen: of the planner, 0 for one dense block a layer.
    rows, planner_tokens, controller_tokens, plans, text_targets: of a batch. accumulate: parts that its rows are gone through in.
    effort: of the compiler, -1 to 1. json: file for all figures."""

    preset: Preset = "debug"
    slice: str = "v4:4x4x4"
    mesh: tuple[str, ...] = ()
    position: Literal["rotary", "preset"] = "rotary"
    experts: int = 0
    chosen: int = 2
    rows: int = 512
    planner_tokens: int = 1024
    controller_tokens: int = 2048
    plans: int = 128
    text_targets: int = 1024
    accumulate: int = 1
    compute: Compute = Compute("bfloat16", scan=True, remat="full", attention="flash", text_chunk=256, expert_capacity=1.25)
    effort: float = 0.0
    json: Path | None = None


class Refused(Exception):
    """The compiler says that the step does not fit."""


def devices_of(name: str) -> tuple[Chip, list[Any]]:
    """Returns the kind of chip and the devices of a slice, which need not be there.

    Raises:
        ValueError: there is no such slice, or no compiler for it.
    """
    kind, _, arrangement = name.partition(":")
    if kind not in CHIPS or not arrangement:
        raise ValueError(f"no slice {name!r}: KIND:SHAPE with a kind of {', '.join(CHIPS)}, such as v4:4x4x4")
    from jax.experimental import topologies

    try:
        slice_ = topologies.get_topology_desc(platform="tpu", topology_name=name, **dict(CHIPS[kind].options))
    except Exception as error:  # whatever the compiler's library says
        said = str(error).strip().splitlines()[0][:200]
        raise ValueError(f"no compiler for {name}: {said}; install libtpu (requirements-extras.txt)") from error
    return CHIPS[kind], list(slice_.devices)


def meshes_of(config: CompileConfig, devices: int) -> list[MeshConfig]:
    """Returns the meshes that are asked for. Raises ValueError where one is none, or the rows do not go round."""
    meshes = []
    for name in config.mesh or (f"1x{devices}x1",):
        parts = name.split("x")
        if len(parts) not in (3, 4) or not all(part.isdecimal() for part in parts):
            raise ValueError(f"no mesh {name!r}: data x fsdp x tensor [x expert], such as 1x{devices}x1")
        mesh = MeshConfig(*map(int, parts))
        if config.rows % (mesh.data * mesh.fsdp * config.accumulate):
            raise ValueError(
                f"{config.rows} rows in {config.accumulate} parts over {mesh.data} x {mesh.fsdp}: give rows a multiple"
            )
        meshes.append(mesh)
    return meshes


def model_of(config: CompileConfig) -> tuple[ModelConfig, Schema]:
    """Returns the preset's model, and a schema of control and of text with all of Gato's pieces."""
    model = PRESETS[NAMES[config.preset]]
    planner = dataclasses.replace(model.planner, experts=config.experts, chosen=config.chosen)
    if config.position == "rotary":
        planner = dataclasses.replace(planner, position="rotary")
    model = dataclasses.replace(model, planner=planner)
    return model, schema_of(("patrol", "text"), TEXT_IDS, "two_rate")


def packing_of(config: CompileConfig) -> Packing:
    """Returns the budgets of a batch."""
    return Packing(
        rows=config.rows,
        controller_tokens=config.controller_tokens,
        planner_tokens=config.planner_tokens,
        plans=config.plans,
        action_targets=config.controller_tokens,
        sub_goal_targets=config.planner_tokens,
        text_targets=config.text_targets,
        patches=0,
    )


def batch_shapes(schema: Schema, packing: Packing) -> Batch:
    """Returns the shapes of a batch."""
    one = fill([[]], schema, packing)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((packing.rows, *x.shape[1:]), x.dtype), one)


def compiled(config: CompileConfig, network: Network, spread: Spread, like: TrainState, batch: Batch) -> Any:
    """Returns the compiled step. Raises Refused where it does not fit."""
    learner = LearnerConfig(accumulate=config.accumulate)
    step = make_step(network, learner, learner.weights, config.compute, spread)
    options = {"exec_time_optimization_effort": config.effort} if config.effort else None
    try:
        return step.trace(like, batch).lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        line = next(line for line in str(error).splitlines() if "hbm" in line.lower() or "memory" in line)
        raise Refused(line.strip()[:200]) from error


def figures(chip: Chip, chips: int, done: Work, flops: float, of_kernels: float) -> dict[str, float]:
    """Returns the estimates of a step: seconds of products and the like, of kernels, of communication and of that what is not
    hidden behind computing; and utilisation, the model's operations, none counted twice, over what the chips could do."""
    computing, kernels = done.cycles / chip.hz, of_kernels / chips / chip.flops / KERNEL_SHARE
    sending, waiting = sum(done.sent.values()) / chip.links, done.waiting / chip.hz
    step = computing + kernels + waiting
    return {
        "compute_s": computing,
        "kernels_s": kernels,
        "communication_s": sending,
        "waiting_s": waiting,
        "step_s": step,
        "utilisation": flops / (chips * chip.flops * step),
    }


def kernel_flops(config: CompileConfig, model: ModelConfig, schema: Schema, packing: Packing) -> float:
    """Returns the operations of the attention kernels as they run, on whole blocks and whole lanes: 2 products a pair forward,
    that again where it is computed anew, and 5 backward."""
    if config.compute.attention != "flash":
        return 0.0
    slow, fast, reach = model.planner, model.controller, sizes(schema).reach(model.controller.window)
    count = 0.0
    for part, tokens, back in (slow, packing.planner_tokens, None), (fast, packing.controller_tokens, reach):
        if part.position == "rotary":
            count += _in_lanes(part) * pairs(tokens, back)
    if model.plan_read == "cross_attention":
        # One plan more than there is room for: the one that stands while there is none.
        count += _in_lanes(fast) * picked_pairs(packing.controller_tokens, (packing.plans + 1) * model.plan_vectors)
    return packing.rows * (2 if config.compute.remat == "full" else 1) * count + packing.rows * 5 / 2 * count


def _in_lanes(part: TransformerConfig) -> float:
    """Returns the operations of one query over one key in all layers, with heads filled up to whole lanes."""
    size = part.width // part.heads
    return pair_flops(part) * lanes_of(size) / size


def examine(config: CompileConfig, chip: Chip, devices: list[Any], mesh: MeshConfig) -> dict[str, Any]:
    """Returns all figures of one mesh."""
    model, schema = model_of(config)
    network, packing, spread = build(model, schema), packing_of(config), spread_over(mesh, devices)
    _, like = spread_state(network, LearnerConfig(), spread, config.compute)
    held = jax.tree.map(lambda leaf: leaf.sharding, like)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
    row: dict[str, Any] = {
        "mesh": "x".join(map(str, dataclasses.astuple(mesh)[: None if mesh.expert > 1 else 3])),
        "chips": len(devices),
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like.params)),
        "planner_parameters": sum(
            math.prod(leaf.shape) for name, each in like.params.items() if name.startswith("planner") for leaf in each.values()
        ),
        "state_bytes": total,
        "state_bytes_a_chip": bytes_a_device(held, like),
        "flops": step_flops(model, schema, packing),
    }
    began, cpu = time.perf_counter(), time.process_time()
    try:
        program = compiled(config, network, spread, like, batch_shapes(schema, packing))
    except Refused as error:
        return row | {"fits": False, "refused": str(error), "compile_s": time.perf_counter() - began}
    memory = program.memory_analysis()
    argument = memory.argument_size_in_bytes
    own_rows = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(batch_shapes(schema, packing)))
    own_rows //= mesh.data * mesh.fsdp
    # Exactly sharded, up to what is too small or too odd to divide.
    parts = mesh.fsdp * mesh.tensor * mesh.expert
    divided = parts > 1 or len(devices) == 1
    row |= {
        "fits": True,
        "sharded": divided and argument - own_rows < 1.25 * total / parts + 2**20,
        "compile_s": time.perf_counter() - began,
        "compile_cpu_s": time.process_time() - cpu,
        "host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "argument_bytes": argument,
        "temporary_bytes": memory.temp_size_in_bytes,
        "chip_bytes": argument + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
        "chip_memory_bytes": chip.memory,
    }
    done = work(program.as_text(), chip.links / chip.hz)
    row |= {"sent_bytes": dict(done.sent), "collectives": dict(done.collectives), "kernels": dict(done.kernels)}
    if config.effort >= 0:
        row["cycles"] = done.cycles
        of_kernels = kernel_flops(config, model, schema, packing)
        row |= figures(chip, len(devices), done, row["flops"], of_kernels)
    return row


def table_of(config: CompileConfig, rows: list[dict[str, Any]]) -> Table:
    """Returns the meshes side by side."""
    title = f"{config.preset} on {config.slice}: {rows[0]['planner_parameters'] / 1e6:.0f}M planner, "
    title += f"{rows[0]['parameters'] / 1e6:.0f}M in all, {rows[0]['flops'] / 1e15:.2f} PFLOP a step"
    table = Table(title=title)
    columns = "mesh", "GiB a chip", "of it state", "compile s (CPU s)", "GB sent a step", "collectives", "compute s", "kernels s"
    for name in (*columns, "sending s (not hidden)", "step s", "utilisation"):
        table.add_column(name, justify="right")
    for row in rows:
        if not row["fits"]:
            table.add_row(row["mesh"], "does not fit", "", f"{row['compile_s']:.0f}")
            continue
        estimated = "step_s" in row
        times = (
            [f"{row[name]:.3f}" for name in ("compute_s", "kernels_s")]
            + [f"{row['communication_s']:.3f} ({row['waiting_s']:.3f})", f"{row['step_s']:.3f}", f"{row['utilisation']:.0%}"]
            if estimated
            else [""] * 5
        )
        table.add_row(
            row["mesh"],
            f"{row['chip_bytes'] / GIB:.2f} of {row['chip_memory_bytes'] / GIB:.0f}",
            f"{row['state_bytes_a_chip'] / GIB:.2f}" + ("" if row["sharded"] else " not sharded"),
            f"{row['compile_s']:.0f} ({row['compile_cpu_s']:.0f})",
            f"{sum(row['sent_bytes'].values()) / 1e9:.1f}",
            ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items()),
            *times,
        )
    return table


def run(config: CompileConfig) -> list[dict[str, Any]]:
    """Returns the figures of every mesh, and prints and writes them one by one."""
    chip, devices = devices_of(config.slice)
    rows, console = [], Console(width=160)
    meshes = meshes_of(config, len(devices))
    for number, mesh in enumerate(meshes, 1):
        console.print(f"compiling {number} of {len(meshes)}: {dataclasses.asdict(mesh)}")
        rows.append(examine(config, chip, devices, mesh))
        if rows[-1].get("refused"):
            console.print(rows[-1]["refused"], markup=False)
        if config.json:
            config.json.parent.mkdir(parents=True, exist_ok=True)
            given = dataclasses.asdict(config) | {"json": str(config.json)}
            config.json.write_text(json.dumps({"config": given, "jax": jax.__version__, "meshes": rows}, indent=1))
    console.print(table_of(config, rows))
    console.print("memory, bytes and numbers of collectives are the compiler's own; times and utilisation are estimates")
    return rows


def keep_to_one_heap() -> None:
    """Starts this command anew where memory is handed out from one heap: with one a thread, as Linux has it, what the compiler's
    threads have given back stays with them."""
    if "MALLOC_ARENA_MAX" not in os.environ:
        command = [sys.executable, "-m", "experiments.compile_for_tpu", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | {"MALLOC_ARENA_MAX": "1"})


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(CompileConfig, description=__doc__)
    keep_to_one_heap()
    # This computer's own devices are the CPU; libtpu is here for its compiler.
    jax.config.update("jax_platforms", "cpu")
    try:
        rows = run(config)
    except (ValueError, OSError) as error:
        print(f"compile_for_tpu: {error}", file=sys.stderr)
        return 1
    wrong = [row["mesh"] for row in rows if not (row["fits"] and row["sharded"])]
    if wrong:
        print(
            f"compile_for_tpu: {', '.join(wrong)}: does not fit, or every chip holds parameters that could be divided",
            file=sys.stderr,
        )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
