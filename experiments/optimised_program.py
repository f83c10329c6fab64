"""What a program that was compiled for a TPU will do, read out of its optimised text: cycles, communication, kernels.

A loop's body stands there once: everything is counted as often as the loop runs, which XLA writes beside it. All of it is of one
device's program, which every device runs.
"""

import collections
import functools
import math
import re
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8, "f64": 8}
HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
SHAPE = re.compile(r"\b(" + "|".join(BYTES) + r")\[([\d,]*)\]")


class Instruction(NamedTuple):
    """One line: its name, the bytes of what it makes, what it does (opcode), and the rest of the line with its operands."""

    name: str
    shape: str
    opcode: str
    rest: str


class Work(NamedTuple):
    """What a computation does, loops gone through as often as they run.

    cycles: the compiler's estimate, of what is neither communication nor a kernel of ours. sent: bytes that one device sends, by
    kind of collective. collectives, kernels: how many run, by kind and by name. moves: each collective as (bytes that one device
    sends, cycles that are computed between its start and its end, how often it runs).
    """

    cycles: float
    sent: collections.Counter
    collectives: collections.Counter
    kernels: collections.Counter
    moves: tuple[tuple[float, float, int], ...]


def size_of(shape: str) -> int:
    """Returns the bytes of a shape as XLA writes it, of all parts of a tuple."""
    return sum(BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in SHAPE.findall(shape))


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns each computation's instructions in the order of the schedule, and the name of the one that is the program."""
    found: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = header[1]
            found[current] = []
            entry = current if line.startswith("ENTRY") else entry
        elif current and (instruction := INSTRUCTION.match(line)):
            found[current].append(Instruction(*instruction.groups()))
    return found, entry


def estimated_cycles(rest: str) -> float:
    """Returns the compiler's estimate for one instruction; 0 where it gives none."""
    found = re.search(r'"estimated_cycles":"?(\d+)', rest)
    return float(found[1]) if found else 0.0


def trips(rest: str) -> int:
    """Returns how often a loop runs. Raises ValueError where the compiler does not know."""
    found = re.search(r'"known_trip_count":\{"n":"?(\d+)', rest)
    if found is None:
        raise ValueError(f"a loop without a known number of rounds: {rest[:200]}")
    return int(found[1])


def group_size(rest: str) -> int:
    """Returns how many devices take part in a collective together."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(found[1].split(","))
    return 2


def through_links(kind: str, made: int, taken: int, devices: int) -> float:
    """Returns the bytes that one device sends in a collective on a ring, from the bytes that it takes and makes."""
    share = (devices - 1) / devices
    return {
        "all-gather": made * share,
        "reduce-scatter": taken * share,
        "all-reduce": 2 * made * share,
        "all-to-all": made * share,
        "collective-permute": float(made),
    }[kind]


def work(text: str) -> Work:
    """Returns what an optimised program does. Raises ValueError for a loop whose rounds are not known."""
    parts, entry = computations(text)

    @functools.cache
    def of(name: str) -> Work:
        return _work(parts[name], of)

    return of(entry)


def _work(instructions: list[Instruction], of) -> Work:
    """Returns what instructions do; of: what another computation does, by name."""
    cycles, sent, ran, kernels, moves = 0.0, collections.Counter(), collections.Counter(), collections.Counter(), []
    sizes = {each.name: size_of(each.shape) for each in instructions}
    begun: dict[str, tuple[float, float]] = {}
    for each in instructions:
        kind = each.opcode.removesuffix("-start").removesuffix("-done")
        inner, times = None, 1
        if each.opcode == "while":
            inner, times = of(re.search(r"body=%?([\w.\-]+)", each.rest)[1]), trips(each.rest)
        elif each.opcode in ("call", "conditional"):
            names = re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}", each.rest)
            called = [name.strip().lstrip("%") for pair in names for name in ",".join(pair).split(",") if name.strip()]
            inner = max(map(of, called), key=lambda other: other.cycles, default=None)
        elif kind in COLLECTIVES:
            operands = re.findall(r"%([\w.\-]+)", each.rest.split("), ")[0])
            if each.opcode.endswith("-done"):
                bytes_sent, before = begun.pop(operands[0])
                moves.append((bytes_sent, cycles - before, 1))
                continue
            taken = sum(sizes.get(name, 0) for name in operands)
            # The start of an asynchronous one makes a tuple that has its operands too.
            made = sizes[each.name] - (taken if each.opcode.endswith("-start") and kind != "all-reduce" else 0)
            bytes_sent = through_links(kind, made, taken, group_size(each.rest))
            sent[kind] += bytes_sent
            ran[kind] += 1
            if each.opcode.endswith("-start"):
                begun[each.name] = bytes_sent, cycles
            else:
                moves.append((bytes_sent, 0.0, 1))
            continue
        elif "tpu_custom_call" in each.rest and each.opcode == "custom-call":
            kernels[re.sub(r"\.\d+$", "", each.name)] += 1
            continue
        else:
            cycles += estimated_cycles(each.rest)
            continue
        if inner is not None:
            cycles += times * inner.cycles
            for ours, theirs in ((sent, inner.sent), (ran, inner.collectives), (kernels, inner.kernels)):
                ours.update({name: times * count for name, count in theirs.items()})
            moves += [(bytes_sent, hidden, times * count) for bytes_sent, hidden, count in inner.moves]
    return Work(cycles, sent, ran, kernels, tuple(moves))
