"""How much of the processors' time was used, by one process and by all: what a measurement was disturbed by. None where the
system does not tell (it does on Linux)."""

import os
from pathlib import Path


def process_s(process: int) -> float | None:
    """Returns CPU seconds that a process has used so far, its threads' together; None once it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_s() -> float | None:
    """Returns CPU seconds that all programs have used so far, on all cores together."""
    found = _all()
    if found is None:
        return None
    user, nice, system, _, _, irq, soft, _ = found
    return user + nice + system + irq + soft


def stolen_s() -> float | None:
    """Returns the seconds so far in which a virtual machine's cores were to run, and its host ran others; 0 on a real machine."""
    found = _all()
    return None if found is None else found[-1]


def _all() -> tuple[float, ...] | None:
    """CPU seconds of all cores: user, nice, system, idle, waiting for disks, interrupts, soft ones, stolen."""
    try:
        ticks = Path("/proc/stat").read_text().split()[1:9]
    except OSError:
        return None
    return tuple(int(each) / os.sysconf("SC_CLK_TCK") for each in ticks)
