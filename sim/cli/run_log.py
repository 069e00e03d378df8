"""Where the log of a run goes: all of it to a file, what people read to the terminal."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sim.launcher import RunError, plain

# What Flower says of itself at each start, and empty lines.
_NOISE = re.compile(
    r"(INFO|DEBUG) *: *$"
    r"|.*(Starting logstream for|default simulated SuperNodes changed|To change federation size)"
    r"|.*flwr federation simulation-config|Using SuperLink: "
    r"|.*(Starting Flower Simulation|Federation `.*simulated SuperNodes)"
)


@contextmanager
def kept_log(
    path: Path, echo: Callable[[str], None], *, more: bool = False
) -> Iterator[Callable[[str], None]]:
    """Yield an ``echo`` that also keeps each line in a file, without colours.

    The file is made with the first line, unless there is `more` of one; a `RunError` from the
    block says where it is.
    """
    kept = more

    def keep(line: str) -> None:
        nonlocal kept
        with path.open("a" if kept else "w", encoding="utf-8") as file:
            file.write(plain(line) + "\n")
        kept = True
        if not _NOISE.match(plain(line)):
            echo(line)

    try:
        yield keep
    except RunError as error:
        raise RunError(f"{error}; log: {path}" if kept else str(error)) from error


def print_line(line: str) -> None:
    """Print a line, in colour only where somebody sees it."""
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(line if coloured else plain(line), flush=True)
