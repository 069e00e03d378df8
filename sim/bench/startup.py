"""What a run costs before it does anything: one client, one round, one optimizer step."""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sim import tables
from sim.bench.process_tree import ProcessTree
from sim.bench.spread import Spread
from sim.compare.job import machine
from sim.launcher import RunError

ENGINES = ("flower", "direct")
_CONFIG = ("num-rounds=1", "server-steps=1", "samples-per-round=2", "max-train-samples=2")
_EVERY = 0.05  # seconds between two looks at the processes


@dataclass(frozen=True)
class Startup:
    """Time of a trivial run.

    Attributes
    ----------
    engine : str
        One of `ENGINES`.
    cpu : Spread
        CPU seconds of all processes.
    seconds : Spread
        To the end.
    first_line : Spread
        Seconds to the first line of output.
    machine : str
    """

    engine: str
    cpu: Spread
    seconds: Spread
    first_line: Spread
    machine: str


def measure(app: Path, engine: str, repeats: int) -> Startup:
    """Run the app so often, and return what it takes.

    Raises
    ------
    RunError
        If a run fails.
    """
    found = [_run(app, engine) for _ in range(repeats)]
    cpu, whole, first = (Spread.of(values) for values in zip(*found, strict=True))
    return Startup(engine, cpu, whole, first, machine())


def _run(app: Path, engine: str) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as scratch:
        config = [part for pair in _CONFIG for part in ("--config", pair)]
        command = [
            *(sys.executable, "-m", "sim", "run", "--app", str(app), "--engine", engine),
            *("--clients", "1", "--out", str(Path(scratch) / "run"), *config),
        ]
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=app
        )
        assert process.stdout is not None
        tree, over = ProcessTree(process.pid), threading.Event()
        watcher = threading.Thread(target=_watch, args=(tree, over), daemon=True)
        watcher.start()
        lines_read = [process.stdout.readline()]
        first_line = time.monotonic() - started
        lines_read += process.stdout.readlines()
        code = process.wait()
        whole = time.monotonic() - started
        over.set()
        watcher.join()
    if code:
        raise RunError(f"{' '.join(command)} ended with {code}: {''.join(lines_read[-5:])}")
    return tree.seconds, whole, first_line


def _watch(tree: ProcessTree, over: threading.Event) -> None:
    while not over.wait(_EVERY):
        tree.look()


def lines(rows: Sequence[Startup]) -> list[str]:
    """Return the table of rows, for a terminal."""
    table = tables.numbers("start-up, engine", "CPU s", "s", "first line after s")
    for row in rows:
        table.add_row(row.engine, *map(str, (row.cpu, row.seconds, row.first_line)))
    return tables.lines(table)
