"""What is handed to the process of a run on the direct engine, see `sim.direct_engine`."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from sim.run_config import ConfigValue, RunConfigError

CAUSE = "cause.txt"  # what ended the run, in the job's folder
_JOB = "job.json"


@dataclass(frozen=True)
class DirectJob:
    """A run.

    Attributes
    ----------
    app : str
        Folder of the Flower app.
    server_app, client_app : str
        Its components, ``module:attribute``.
    run_config : dict
        All of it.
    clients : int
        Nodes.
    processes : int
        That the nodes share; 0: as many as there are cores.
    """

    app: str
    server_app: str
    client_app: str
    run_config: dict[str, ConfigValue]
    clients: int
    processes: int = 0

    @classmethod
    def of(
        cls, app: Path, run_config: Mapping[str, ConfigValue], clients: int, processes: int = 0
    ) -> "DirectJob":
        """Return the job of an app.

        Raises
        ------
        RunConfigError
            If its ``pyproject.toml`` names no components.
        """
        file = app / "pyproject.toml"
        try:
            project = tomllib.loads(file.read_text(encoding="utf-8"))
            parts = project["tool"]["flwr"]["app"]["components"]
            names = str(parts["serverapp"]), str(parts["clientapp"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RunConfigError(
                f"{file} names no serverapp and clientapp in [tool.flwr.app.components]"
            ) from error
        return cls(str(app.absolute()), *names, dict(run_config), clients, processes)

    @classmethod
    def read(cls, folder: Path) -> "DirectJob":
        """Return the job that was written to a folder."""
        return cls(**json.loads((folder / _JOB).read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        """Write it to a folder."""
        (folder / _JOB).write_text(json.dumps(asdict(self)), encoding="utf-8")
