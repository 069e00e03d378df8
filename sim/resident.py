"""Resident memory of processes."""

import resource
from contextlib import suppress
from pathlib import Path


def resident_peak(process: int | str = "self") -> int:
    """Return the most bytes that a process has had in memory; of another one 0 if unknown."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if process != "self":
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
