"""The app's server as a process of its own, over a spool, to be killed at any moment."""

import os
import traceback
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from sim.faults import tampering
from sim.faults.spool import Spool, SpoolGrid
from sim.faults.supernode import redirect_output
from sim.run_config import ConfigValue


@dataclass(frozen=True)
class ServerJob:
    """What the server is started with.

    Attributes
    ----------
    spool : Path
    run_config : dict
    log : Path
    env : dict
    death : (str, int), optional
        Event before which the process kills itself, and which of them, see `tampering.die_at`.
    largest_file : int
        Most bytes of a file, as on a disk that is full; 0: no limit.
    """

    spool: Path
    run_config: dict[str, ConfigValue]
    log: Path
    env: dict[str, str]
    death: tuple[str, int] | None = None
    largest_file: int = 0


def run_serverapp(job: ServerJob) -> None:
    """Run the app's server to its end; the exit code says how it ended."""
    redirect_output(job.log)
    os.environ.update(job.env)
    tampering.shift_clock(job.spool / "clock")
    tampering.limit_files(job.largest_file)
    from fl_app.server_app import app

    if job.death is not None:
        tampering.die_at(*job.death)
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(job.run_config)
    )
    try:
        app(SpoolGrid(Spool(job.spool)), context)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
