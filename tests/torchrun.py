"""Several processes, as torchrun starts them."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def torchrun(processes: int, *arguments: object) -> str:
    """Run a script or module in so many processes; return what they print."""
    command = [sys.executable, *TORCHRUN, processes, *arguments]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=HERE.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
