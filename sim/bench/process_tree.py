"""CPU time of a process and of all that it starts, those that outlive their parents included."""

import os
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class ProcessTree:
    """CPU time of a process and its descendants, as far as they are seen alive.

    Parameters
    ----------
    pid : int
        The first of them.

    Notes
    -----
    Reads ``/proc``, so Linux alone. What a process takes after it was last looked at is missed:
    look often.
    """

    def __init__(self, pid: int) -> None:
        self._seconds: dict[int, float] = {pid: 0.0}

    def look(self) -> None:
        """Note what all have taken by now, and who is new."""
        alive = {entry: _stat(entry) for entry in Path("/proc").glob("[0-9]*")}
        parents = {int(entry.name): stat[0] for entry, stat in alive.items() if stat}
        taken = {int(entry.name): stat[1] for entry, stat in alive.items() if stat}
        grown = True
        while grown:
            new = {pid for pid, parent in parents.items() if parent in self._seconds}
            grown = not new <= self._seconds.keys()
            self._seconds.update(dict.fromkeys(new - self._seconds.keys(), 0.0))
        for pid in self._seconds.keys() & taken.keys():
            self._seconds[pid] = max(self._seconds[pid], taken[pid])

    @property
    def seconds(self) -> float:
        """User and system time of all, in seconds."""
        return sum(self._seconds.values())


def _stat(entry: Path) -> tuple[int, float] | None:
    """Return parent and CPU seconds of a process; None if it has ended."""
    try:
        fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1]
    except OSError:
        return None
    values = fields.split()
    return int(values[1]), (int(values[11]) + int(values[12])) / _TICK
