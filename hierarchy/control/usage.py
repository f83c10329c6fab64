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
    try:
        user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    except OSError:
        return None
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")
