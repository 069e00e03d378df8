"""What is done to a process from within, so that it dies, or errs, at a moment of interest."""

import os
import resource
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATEMENT, SYNC, RENAME = "statement", "sync", "rename"


def die_at(event: str, number: int) -> None:
    """Kill this process, as ``kill -9`` does, just before the so-manieth event.

    Parameters
    ----------
    event : str
        `STATEMENT` (of SQLite), `SYNC` (a file is flushed to disk) or `RENAME`.
    number : int
        Which one, from 1.
    """
    left = number

    def count() -> None:
        nonlocal left
        left -= 1
        if not left:
            die()

    if event == STATEMENT:
        connect = sqlite3.connect

        def connected(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*args, **kwargs)
            connection.set_trace_callback(lambda _: count())
            return connection

        sqlite3.connect = connected  # type: ignore[assignment]
        return
    for name in {SYNC: ("fsync", "fdatasync"), RENAME: ("rename", "replace")}[event]:
        setattr(os, name, _counted(getattr(os, name), count))


def die() -> None:
    """Kill this process: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal may reach another thread first


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond a size, as on a full disk; 0: no limit."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft = size or resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))


def shift_clock(file: Path) -> None:
    """Let `time.time` be off by the seconds that a file names, now and whenever it changes."""
    true_time, true_nanoseconds = time.time, time.time_ns

    def shift() -> float:
        try:
            return float(file.read_text())
        except (OSError, ValueError):
            return 0.0

    time.time = lambda: true_time() + shift()
    time.time_ns = lambda: true_nanoseconds() + int(1e9 * shift())


def _counted(function: Callable[..., Any], count: Callable[[], None]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        count()
        return function(*args, **kwargs)

    return wrapped
