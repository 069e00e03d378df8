"""Run a Flower app in Flower's own simulation engine, isolated, and say truly how it ended.

``flwr run`` on its own leaves a SuperLink running whose folder and environment later runs
inherit, may be answered by somebody else's SuperLink on the same port, installs the app's
dependencies anew and exits with 0 when a run fails.
"""

import json
import re
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import tomli_w

from sim.run_config import ConfigValue, read_defaults
from sim.superlink import CONNECTION, SuperLink, SuperLinkError, running_superlink

COMPLETED = "finished:completed"
KEYED_BY = "client-key"

_KEPT_LINES = 200
_CAUSE_LINES = 12
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class RunError(RuntimeError):
    """A run that did not complete; the message ends with the cause."""


def launch(
    app: Path,
    run_config: Mapping[str, ConfigValue],
    clients: int,
    echo: Callable[[str], None] = print,
) -> None:
    """Run an app on simulated clients and wait for its end.

    Nothing that was started is left when this returns or raises, `KeyboardInterrupt` included.

    Parameters
    ----------
    app : Path
        Folder of the Flower app.
    run_config : Mapping
        Overrides of the app's run config; paths must be absolute, as the app runs elsewhere.
    clients : int
        Simulated clients (SuperNodes), one CPU each.
    echo : callable
        Called with each line of the log.

    Raises
    ------
    RunError
        If the run was refused, failed or was stopped; with its last traceback or log lines.
    """
    if KEYED_BY in read_defaults(app):  # node ids differ from run to run, partitions do not
        run_config = {KEYED_BY: "partition", **run_config}
    options = ("--federation-config", f"num-supernodes={clients} client-resources-num-cpus=1")
    try:
        with running_superlink(["--simulation"]) as superlink:
            run_app(superlink, app, run_config, options, echo)
    except SuperLinkError as error:
        raise RunError(str(error)) from error


def run_app(
    superlink: SuperLink,
    app: Path,
    run_config: Mapping[str, ConfigValue],
    options: Sequence[str] = (),
    echo: Callable[[str], None] = print,
) -> None:
    """Run an app on a SuperLink that has had no run yet; `options` are those of ``flwr run``.

    Raises
    ------
    RunError
        If the run did not complete.
    """
    config_file = Path(superlink.env["FLWR_HOME"]) / "run-config.toml"
    config_file.write_text(tomli_w.dumps(run_config), encoding="utf-8")
    command = ["flwr", "run", str(app), CONNECTION, "--stream", "--run-config", str(config_file)]
    process = superlink.start([*command, *options], stdout=subprocess.PIPE)
    assert process.stdout is not None
    last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
    for line in process.stdout:
        last_lines.append(_ANSI.sub("", line.rstrip("\n")))
        echo(line.rstrip("\n"))
    if process.wait() != 0:
        raise RunError("\n".join([*_cause(list(last_lines)), "flwr refused the run"]))
    run = describe_run(superlink)
    if run["status"] != COMPLETED:
        end = f"run {run['status']}: {run['status-details']}"
        raise RunError("\n".join([*_cause(list(last_lines)), end]))


def describe_run(superlink: SuperLink) -> dict[str, object]:
    """Return what ``flwr ls`` knows of the SuperLink's only run."""
    command = ["flwr", "ls", CONNECTION, "--format", "json"]
    text = superlink.start(command, stdout=subprocess.PIPE).communicate()[0]
    try:
        run: dict[str, object] = json.loads(text)["runs"][0]
    except (ValueError, LookupError):
        raise RunError(f"flwr ls does not say how the run ended: {text}") from None
    return run


def _cause(lines: list[str]) -> list[str]:
    """Return the last traceback of a log, or its last lines."""
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent")]
    if not starts:
        return lines[-_CAUSE_LINES:]
    ends = [i for i, line in enumerate(lines) if "Exit Code" in line]
    return lines[starts[-1] : ends[-1] if ends and ends[-1] > starts[-1] else None]
