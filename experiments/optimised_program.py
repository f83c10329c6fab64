"""What a program that was compiled for a TPU will do, read out of its optimised text: cycles, communication, kernels.

A loop's body stands there once: everything is counted as often as the loop runs, which XLA writes beside it. All of it is of one
device's program, which every device runs.
"""

import collections
import functools
import math
import re
from collections.abc import Callable
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

    cycles: the compiler's estimate, of what is neither communication nor a kernel of ours. waiting: cycles beside these in which
    nothing but sending goes on. sent: bytes that one device sends, by kind of collective. collectives, kernels: how many run, by
    kind and by name.
    """

    cycles: float
    waiting: float
    sent: collections.Counter
    collectives: collections.Counter
    kernels: collections.Counter


class Schedule:
    """Goes through a computation in its order: the device computes, and its links send one thing after another beside that.

    rate: bytes that the links send in a cycle.
    """

    def __init__(self, rate: float):
        self._rate, self._now, self._idle = rate, 0.0, 0.0
        self.work = Work(0.0, 0.0, collections.Counter(), collections.Counter(), collections.Counter())

    def compute(self, cycles: float) -> None:
        """Computes."""
        self.work = self.work._replace(cycles=self.work.cycles + cycles)
        self._now += cycles

    def send(self, kind: str, size: float) -> float:
        """Gives the links something to send; returns when it will be there."""
        self.work.sent[kind] += size
        self.work.collectives[kind] += 1
        self._idle = max(self._idle, self._now) + size / self._rate
        return self._idle

    def wait(self, until: float) -> None:
        """Waits for what will be there by then."""
        late = max(0.0, until - self._now)
        self.work = self.work._replace(waiting=self.work.waiting + late)
        self._now += late

    def run(self, inner: Work, times: int = 1) -> None:
        """Does another computation so often, which has waited for all that it sent."""
        for own, others in zip(self.work[2:], inner[2:], strict=True):
            own.update({name: times * count for name, count in others.items()})
        cycles, waiting = times * inner.cycles, times * inner.waiting
        self.work = self.work._replace(cycles=self.work.cycles + cycles, waiting=self.work.waiting + waiting)
        self._now += cycles + waiting


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


def trips(loop: Instruction, parts: dict[str, list[Instruction]], beside: dict[str, Instruction]) -> int:
    """Returns how often a loop runs: to the number that its condition compares a counter with, from the counter's first value.

    beside: the instructions that it stands among, by name. Raises ValueError where no such numbers are found.
    """
    condition = {each.name: each for each in parts[re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]]}
    compared = next((each for each in condition.values() if each.opcode == "compare" and "direction=LT" in each.rest), None)
    counter, bound = (condition.get(name) for name in operands(compared)) if compared else (None, None)
    if bound is None or bound.opcode != "constant":
        raise ValueError(f"a loop without a known number of rounds: {loop.name}")
    index = int(re.search(r"index=(\d+)", counter.rest)[1])
    first = beside.get(operands(beside[operands(loop)[0]])[index])
    return number(bound) - (number(first) if first is not None and first.opcode == "constant" else 0)


def number(constant: Instruction) -> int:
    """Returns the value of a constant."""
    return int(constant.rest.partition(")")[0])


def operands(instruction: Instruction) -> list[str]:
    """Returns the names of what an instruction takes."""
    return re.findall(r"%([\w.\-]+)", instruction.rest.split("), ")[0])


def group_size(rest: str) -> int:
    """Returns how many devices take part in a collective together, however it is written. Raises ValueError for another way."""
    if found := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\([^{]*\))? \{(.*?)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(found[1].split(","))
    if "source_target_pairs=" in rest:
        return 2
    raise ValueError(f"a collective of unknown groups: {rest[:200]}")


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


def work(text: str, rate: float) -> Work:
    """Returns what an optimised program does on a device whose links send `rate` bytes a cycle.

    Raises:
        ValueError: a loop's rounds are not known.
    """
    parts, entry = computations(text)

    @functools.cache
    def of(name: str) -> Work:
        return _work(parts[name], parts, of, rate)

    return of(entry)


def _work(instructions: list[Instruction], parts: dict[str, list[Instruction]], of: Callable[[str], Work], rate: float) -> Work:
    """Returns what instructions do; of: what another computation does, by name."""
    schedule, beside = Schedule(rate), {each.name: each for each in instructions}
    sizes = {each.name: size_of(each.shape) for each in instructions}
    due: dict[str, float] = {}
    for each in instructions:
        kind = re.sub(r"-(start|done)$", "", each.opcode)
        if kind in COLLECTIVES or kind == "async":
            taken_from = operands(each)
            if each.opcode.endswith("-done"):
                schedule.wait(due.get(taken_from[0], 0.0))
                continue
            if kind == "async":
                due[each.name] = _send_what_is_sent_in(schedule, of(called(each.rest)[0]))
                continue
            taken = sum(sizes.get(name, 0) for name in taken_from)
            # The start of an asynchronous one makes a tuple that has its operands too.
            made = sizes[each.name] - (taken if each.opcode.endswith("-start") and kind != "all-reduce" else 0)
            there = schedule.send(kind, through_links(kind, made, taken, group_size(each.rest)))
            if each.opcode.endswith("-start"):
                due[each.name] = there
            else:
                schedule.wait(there)
        elif each.opcode == "while":
            schedule.run(of(re.search(r"body=%?([\w.\-]+)", each.rest)[1]), trips(each, parts, beside))
        elif each.opcode in ("call", "conditional"):
            schedule.run(max(map(of, called(each.rest)), key=lambda other: other.cycles))
        elif each.opcode == "custom-call" and "tpu_custom_call" in each.rest:
            schedule.work.kernels[re.sub(r"\.\d+$", "", each.name)] += 1
        else:
            # A fusion may send what it makes: both go on at the same time.
            inside = of(called(each.rest)[0]) if each.opcode == "fusion" else None
            there = _send_what_is_sent_in(schedule, inside) if inside and inside.sent else 0.0
            schedule.compute(estimated_cycles(each.rest))
            schedule.wait(there)
    return schedule.work


def _send_what_is_sent_in(schedule: Schedule, inner: Work) -> float:
    """Returns when all is there that another computation sends, and when the links are idle again."""
    return max([schedule.send(kind, size) for kind, size in inner.sent.items()], default=0.0)


def called(rest: str) -> list[str]:
    """Returns the names of the computations that an instruction calls."""
    one = r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)"
    found = re.findall(one + r"|branch_computations=\{([^}]*)\}", rest)
    return [name.strip().lstrip("%") for pair in found for name in ",".join(pair).split(",") if name.strip()]
