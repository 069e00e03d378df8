"""Processes that a test has started, whatever group or session they are in by now."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

MARK = "STARTED_BY"  # an environment variable, which is inherited
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05


def started_with(mark: str) -> dict[int, str]:
    """Return the command lines of what runs with this mark in its environment."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or somebody else's
            if f"{MARK}={mark}\0".encode() in (process / "environ").read_bytes():
                command = (process / "cmdline").read_text()
                found[int(process.name)] = command.replace("\0", " ")
    return found


def stop_started_with(mark: str) -> None:
    """Terminate all of it, at last by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        told: set[int] = set()
        deadline = time.monotonic() + _STOP_SECONDS
        while (found := started_with(mark).keys()) and time.monotonic() < deadline:
            for process in found - told:
                with suppress(ProcessLookupError):
                    os.kill(process, number)
            told |= found
            time.sleep(_POLL_SECONDS)
