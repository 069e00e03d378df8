"""`python -m sim run` in a process of its own, for tests."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start_run(*arguments: str, cwd: Path) -> "subprocess.Popen[str]":
    """Start a run in a process group of its own, its errors among its output."""
    return subprocess.Popen(
        [sys.executable, "-m", "sim", "run", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        process_group=0,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
