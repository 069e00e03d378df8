"""The process of a run on the direct engine: ``python -m sim.direct_engine FOLDER``.

The app's ServerApp runs here, and its ClientApp in the processes of a `ProcessGrid`: Flower's
messages and contexts, without Ray and SuperLink.
"""

import sys
import traceback
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.clientapp.client_app import LoadClientAppError
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp.server_app import LoadServerAppError, ServerApp
from flwr.supercore.object_ref import load_app
from flwr.supercore.task_identity import TaskIdentity

from sim.direct_grid import RUN_ID
from sim.direct_job import CAUSE, DirectJob
from sim.node_worker import Nodes
from sim.process_grid import ProcessGrid


def run_server(job: DirectJob) -> int:
    """Run an app's ServerApp, with nodes that run its ClientApp.

    Returns
    -------
    int
        Most memory, in bytes, that one of the clients' processes has had.

    Raises
    ------
    Exception
        Whatever the ServerApp raises, or hinders the apps from being loaded.
    """
    TaskIdentity.task_id = TaskIdentity.run_id = RUN_ID
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    nodes = Nodes(job.clients, job.app, job.client_app, job.run_config)
    with ProcessGrid(nodes, job.processes) as grid:  # first: they start meanwhile
        load_app(job.client_app, LoadClientAppError, job.app)  # what fails here fails at once
        server = load_app(job.server_app, LoadServerAppError, job.app)
        if not isinstance(server, ServerApp):
            raise LoadServerAppError(f"{job.server_app} is no ServerApp")
        context = Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), dict(job.run_config))
        server(grid, context)
    return grid.peak_bytes


def main(folder: Path) -> int:
    """Run the job in a folder; leave there what was raised, and return the exit code."""
    try:
        run_server(DirectJob.read(folder))
    except Exception as error:
        traceback.print_exc()
        (folder / CAUSE).write_text(str(error), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
