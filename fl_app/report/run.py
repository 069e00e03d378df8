"""What a run folder tells of its run."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_app.config import ConfigError, RunConfig
from fl_app.run_folder import CONFIG, RUN_CONFIG, RoundRecord, read_rounds

_NO_LIMIT = 1 << 62
_FOLDERS = ("out-dir", "state-dir", "resume")  # of this very run: none that repeats it has them


class ReportError(ValueError):
    """A report that cannot be made; says why, and what to do."""


@dataclass(frozen=True)
class Run:
    """A run, as far as its folder tells.

    Attributes
    ----------
    name : str
        Of the folder; two of one name are told apart by `read_run`'s caller.
    folder : Path
    result : Mapping
        ``result.json``; empty for a run that has not ended.
    rounds : tuple of RoundRecord
    entries : Mapping
        The run config; empty where it is not known.
    config : RunConfig or None
        The same, checked; None where it is not known, or of another version of the app.
    clients : int or None
        Simulated clients; None for devices, and where it is not known.
    """

    name: str
    folder: Path
    result: Mapping[str, Any]
    rounds: tuple[RoundRecord, ...]
    entries: Mapping[str, Any]
    config: RunConfig | None
    clients: int | None

    @property
    def bank(self) -> Path:
        """File of the samples that arrived; it need not be there."""
        told = str(self.entries.get("bank", ""))
        return Path(told).expanduser() if told else self.folder / "bank.sqlite"

    @property
    def model(self) -> Path:
        """File of the trained model; it need not be there."""
        return self.folder / "model.safetensors"

    def command(self) -> str:
        """Return the shell command that repeats the run; empty where its config is not known."""
        if not self.entries:
            return ""
        pairs = [f"{key}={_typed(value)}" for key, value in self.changed().items()]
        config = f" --config {' '.join(map(shlex.quote, pairs))}" if pairs else ""
        if self.clients is not None:
            return f"python -m sim run --clients {self.clients}{config}"
        toml = " ".join(f"{key}={json.dumps(value)}" for key, value in self.changed().items())
        return "flwr run ." + (f" --run-config {shlex.quote(toml)}" if toml else "")

    def changed(self) -> dict[str, Any]:
        """Return the entries of the run config that are not the app's defaults."""
        defaults = RunConfig().to_run_config()
        if self.clients is not None:
            defaults["client-key"] = "partition"  # the launcher's own
        return {
            key: value
            for key, value in self.entries.items()
            if key not in _FOLDERS and defaults.get(key) != value
        }


def read_run(folder: Path) -> Run:
    """Read a run folder; what an older version did not write is empty.

    Raises
    ------
    ReportError
        If no run has written to it.
    """
    folder = folder.expanduser().absolute()
    kept, result = _read(folder / CONFIG), _read(folder / "result.json")
    rounds = tuple(read_rounds(folder, _NO_LIMIT)) if folder.is_dir() else ()
    if not rounds and not result:
        raise ReportError(
            f"{folder} is no run folder: it has neither rounds.jsonl nor result.json; name the "
            "folder that `python -m sim run` prints, such as runs/<time>-<dataset>-<strategy>"
        )
    entries = kept.get(RUN_CONFIG) or result.get("config") or {}
    # A deployment keeps the config, too, but only the launcher of a simulation counts clients.
    clients = kept.get("clients")
    if clients is None and entries.get("client-key") == "partition":
        clients = result.get("clients")
    return Run(folder.name, folder, result, rounds, entries, _checked(entries), clients)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"cannot read {path}: {error}; remove it, or run again") from error
    return dict(found) if isinstance(found, dict) else {}


def _checked(entries: Mapping[str, Any]) -> RunConfig | None:
    if not entries:
        return None
    known = RunConfig().to_run_config()  # keys that have gone since are of no use here
    own = {**{key: value for key, value in entries.items() if key in known}, "resume": False}
    try:
        return RunConfig.from_run_config(own)
    except ConfigError:
        return None


def _typed(value: object) -> str:
    """Return a value as it is typed after ``KEY=``."""
    return value if isinstance(value, str) else json.dumps(value)
