"""Run a Flower app on simulated clients, isolated, and say truly how it ended.

``flwr run`` on its own leaves a SuperLink running whose folder and environment later runs
inherit, may be answered by somebody else's SuperLink on the same port, installs the app's
dependencies anew and exits with 0 when a run fails.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import tomli_w

from sim.bundle import staged
from sim.direct_job import CAUSE, DirectJob
from sim.run_config import ConfigValue, read_defaults
from sim.superlink import (
    CONNECTION,
    SuperLink,
    SuperLinkError,
    guarded,
    isolated_environment,
    running_superlink,
    scratch_folder,
    start,
    stop_group,
)

COMPLETED = "finished:completed"
# Of runs that are measured: what outlives a run takes time, and is of no use to them.
NOTHING_KEPT: Mapping[str, ConfigValue] = {"checkpoint-every": 0}
KEYED_BY, STATE = "client-key", "state-dir"

_SIM = Path(__file__).parent
_KEPT_LINES = 500
_CAUSE_LINES = 3
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*")
# Errors of these say all in their words; the name of another's may be half of what is said.
_OWN_PACKAGES = ("codec.", "clients.", "strategies.", "fl_app.")


class RunError(RuntimeError):
    """A run that did not complete; the message is one line that names the cause."""


def launch(
    app: Path,
    run_config: Mapping[str, ConfigValue],
    clients: int,
    echo: Callable[[str], None] = print,
) -> None:
    """Run an app on simulated clients of Flower's own engine and wait for its end.

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
        If the run was refused, failed or was stopped; names the cause.
    MissingPackage
        If Flower's simulation engine is not installed.
    """
    from codec.packages import require  # imports NumPy

    require("ray")
    run_config = of_simulated_clients(run_config, read_defaults(app))
    echo(f"starting Flower's simulation engine with {clients} clients")
    options = ("--federation-config", f"num-supernodes={clients} client-resources-num-cpus=1")
    try:
        with running_superlink(["--simulation"]) as superlink:
            run_app(superlink, app, run_config, options, echo)
    except SuperLinkError as error:
        *lines, reason = str(error).splitlines()
        for line in lines:
            echo(line)
        raise RunError(": ".join([reason, *_last(lines, 1)])) from error


def launch_directly(
    app: Path,
    run_config: Mapping[str, ConfigValue],
    clients: int,
    echo: Callable[[str], None] = print,
    processes: int = 0,
) -> None:
    """Run an app on simulated clients in a pool of processes, and wait for its end.

    The app's ServerApp and ClientApp exchange Flower's messages without Ray and SuperLink, see
    `sim.process_grid`; they are imported from the app's folder. Else as `launch`.

    Parameters
    ----------
    app, run_config, clients, echo
        As in `launch`.
    processes : int
        That the clients share; 0: as many as there are cores.

    Raises
    ------
    RunError
        If the run failed; names the cause.
    RunConfigError
        If the folder holds no Flower app.
    """
    known = read_defaults(app)
    values = {**known, **of_simulated_clients(run_config, known)}
    job = DirectJob.of(app, values, clients, processes)
    echo(f"starting the server, and processes for {clients} clients")
    with scratch_folder() as scratch:
        job.write(scratch)
        cwd = scratch / "cwd"  # empty: the app is not to import from where the user stands
        cwd.mkdir()
        env = isolated_environment(scratch)
        env["PYTHONPATH"] = os.pathsep.join([str(_SIM.parent), env.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "sim.direct_engine", str(scratch)]
        process = start(command, env, cwd, 0, subprocess.PIPE)
        try:
            with guarded(process.pid, scratch):
                last_lines = _follow(process, echo)
                code = process.wait()
        finally:
            stop_group(process.pid)
        if code != 0:
            told = scratch / CAUSE
            details = told.read_text(encoding="utf-8") if told.exists() else ""
            raise RunError(f"run failed: {_cause(details, last_lines) or f'exit code {code}'}")


def of_simulated_clients(
    run_config: Mapping[str, ConfigValue], known: Mapping[str, ConfigValue]
) -> Mapping[str, ConfigValue]:
    """Return overrides of an app's run config, and what simulated clients need beside them.

    Parameters
    ----------
    run_config : Mapping
        Overrides, which go first.
    known : Mapping
        The app's keys with their defaults.
    """
    own: dict[str, ConfigValue] = {}
    if KEYED_BY in known:  # node ids differ from run to run, partitions do not
        own[KEYED_BY] = "partition"
    return of_local_devices({**own, **run_config}, known)


def of_local_devices(
    run_config: Mapping[str, ConfigValue], known: Mapping[str, ConfigValue]
) -> Mapping[str, ConfigValue]:
    """Return overrides by which what the devices of this machine remember belongs to the run.

    See `of_simulated_clients`.
    """
    out = run_config.get("out-dir")
    own = {STATE: str(Path(str(out)) / "devices")} if STATE in known and out else {}
    return {**own, **run_config}


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
    home = Path(superlink.env["FLWR_HOME"])
    config_file = home / "run-config.toml"
    config_file.write_text(tomli_w.dumps(run_config), encoding="utf-8")
    bundle = staged(app, Path(tempfile.mkdtemp(dir=home)))
    command = ["flwr", "run", str(bundle), CONNECTION, "--stream", "--run-config", str(config_file)]
    process = superlink.start([*command, *options], stdout=subprocess.PIPE)
    last_lines = _follow(process, echo)
    if process.wait() != 0:
        raise RunError("flwr refused the run: " + " ".join(_last(last_lines, _CAUSE_LINES)))
    run = describe_run(superlink)
    if run["status"] != COMPLETED:
        cause = _cause(str(run["status-details"]), last_lines)
        raise RunError(f"run {run['status']}: {cause}")


def describe_run(superlink: SuperLink) -> dict[str, object]:
    """Return what ``flwr ls`` knows of the SuperLink's only run."""
    command = ["flwr", "ls", CONNECTION, "--format", "json"]
    text = superlink.start(command, stdout=subprocess.PIPE).communicate()[0]
    try:
        run: dict[str, object] = json.loads(text)["runs"][0]
    except (ValueError, LookupError):
        raise RunError(f"flwr ls does not say how the run ended: {text}") from None
    return run


def _follow(process: "subprocess.Popen[str]", echo: Callable[[str], None]) -> Sequence[str]:
    """Pass on what a process prints until it ends; return the last lines, without colours."""
    assert process.stdout is not None
    last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
    for line in process.stdout:
        last_lines.append(plain(line.rstrip("\n")))
        echo(line.rstrip("\n"))
    return last_lines


def plain(line: str) -> str:
    """Return a line without colour codes."""
    return _ANSI.sub("", line)


def _cause(details: str, lines: Iterable[str]) -> str:
    """Return as one line what ended a run, from Flower's details and the log's last lines."""
    told = details.partition("exception: ")[2] or details
    first = told.strip().split("\n")[0]
    for line in reversed(list(lines)):
        name, _, message = line.partition(": ")
        if first and message == first and _EXCEPTION.fullmatch(name):
            own = name.startswith(_OWN_PACKAGES)
            told = told if own else f"{name.rpartition('.')[2]}: {told}"
            break
    return " ".join(told.split()) or " ".join(_last(lines, _CAUSE_LINES))


def _last(lines: Iterable[str], number: int) -> list[str]:
    """Return the last lines of a log that are not empty."""
    return [line.strip() for line in lines if line.strip()][-number:]
