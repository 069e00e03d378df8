"""A test bed on Flower's own processes: a SuperLink with a database, and SuperNodes."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import tomli_w

from sim.faults.bed import Bed, Device, Size, environment, wait_until
from sim.keys import LOOPBACK, KeyFolder, make_keys, register
from sim.launcher import RunError
from sim.run_config import ConfigValue
from sim.superlink import (
    CONNECTION,
    Certificates,
    SuperLink,
    free_port,
    running_superlink,
    superlink_command,
)

SERVER_APP, CLIENT_APP = "flwr-serverapp", "flwr-clientapp"  # programs

_PATIENCE = 900.0  # seconds that a run may take
_GONE_SECONDS = 40.0  # after which a server's app that is not there is started again
_POLL = 0.5
_LISTENING = "Uvicorn running on"
# Instead of a second: Flower's programs look for work as often as this.
_HASTE = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}


class Deployment(Bed):
    """A test bed on a running SuperLink; all that is started is of its process group.

    Parameters
    ----------
    superlink : SuperLink
    options : sequence of str
        What it was started with.
    app : Path
        Folder of the Flower app.
    keys : KeyFolder or None
        Keys of the devices, by which their nodes are known when they come again; None: a node
        that comes again is another one.
    root, rng, size, config
        See `Bed`.
    """

    def __init__(
        self,
        superlink: SuperLink,
        options: Sequence[str],
        app: Path,
        keys: KeyFolder | None,
        root: Path,
        rng: np.random.Generator,
        size: Size | None = None,
        config: Mapping[str, ConfigValue] | None = None,
    ) -> None:
        # A round takes seconds, on a busy machine many, as each message starts a Python process.
        super().__init__(root, rng, size, {"round-timeout": 120.0, **(config or {})})
        self._superlink, self._options, self._app, self._keys = superlink, options, app, keys
        # A group ends with its last process, and the SuperLink that leads it will be killed.
        self._hold = superlink.start(["sleep", "infinity"])
        self._link = superlink.group
        self._programs: list[subprocess.Popen[str]] = []
        self._supernodes: dict[int, subprocess.Popen[str]] = {}
        for device in self.devices:
            self.start_device(device)

    # Devices

    def start_device(self, device: Device) -> None:
        """Start a device's SuperNode."""
        told = " ".join(
            f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}"
            for key, value in device.node_config().items()
        )
        key: list[str] = []
        if self._keys is not None:
            key = ["--auth-supernode-private-key", str(self._keys.device(device.number))]
        self._supernodes[device.number] = self._start(
            f"device{device.number}.log",
            *("flower-supernode", "--superlink", self._superlink.address),
            *(*self._superlink.trust(), *key),
            *("--port", str(free_port()), "--node-config", told),
        )

    def kill_device(self, device: Device) -> None:
        """Kill a SuperNode and all that it has started."""
        kill_tree(self._supernodes[device.number].pid)
        self.client_kills += 1
        self.injected += 1

    def restart_device(self, device: Device, *, state: bool = True) -> None:
        """Start a killed SuperNode again.

        One with a key is refused, and ends, until the SuperLink knows that the killed one is gone;
        whoever waits for the run starts it again until then.
        """
        if not state:
            device.forget()
        self.start_device(device)

    def kill_client(self, seconds: float = 60.0) -> None:
        """Kill the process that handles a message on a device, as soon as there is one."""
        wait_until(lambda: bool(self._pids_of(CLIENT_APP)), "no client runs", seconds)
        time.sleep(self.rng.uniform(0.0, 3.0))  # it takes seconds to start
        for pid in self._pids_of(CLIENT_APP)[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.client_kills += 1
                self.injected += 1

    # Server

    def submit(self, *, resume: bool = False) -> None:
        """Start the run, or go on with it."""
        config = {**self.config, "resume": resume}
        file = self.root / "run-config.toml"
        file.write_text(tomli_w.dumps(config), encoding="utf-8")
        command = ["flwr", "run", str(self._app), CONNECTION, "--run-config", str(file)]
        process = self._superlink.start(command, stdout=subprocess.PIPE)
        told = process.communicate()[0]
        if process.returncode:
            raise RunError(f"flwr refused the run: {told}")

    def kill_superlink(self) -> None:
        """Kill the SuperLink alone: the server's app, and the SuperNodes, look for it."""
        os.kill(self._link, signal.SIGKILL)
        self.server_kills += 1
        self.injected += 1

    def kill_server_app(self) -> None:
        """Kill the process that runs the server's app."""
        for pid in self._pids_of(SERVER_APP):
            os.kill(pid, signal.SIGKILL)
        self.server_kills += 1
        self.injected += 1

    def kill_server(self) -> None:
        """Kill all of the server's machine: SuperLink, SuperExec and the app."""
        nodes = {process.pid for process in self._supernodes.values()}
        kept = {pid for node in nodes for pid in tree_of(node)} | {self._hold.pid}
        for pid in self._processes():
            if pid not in kept:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.server_kills += 1
        self.injected += 1

    def restart_superlink(self) -> None:
        """Start the SuperLink again, on its port and with its database."""
        link, log = self._superlink, self.root / "superlink.log"
        log.write_text("")
        command = superlink_command(link.address, link.certificates, self._options)
        self._link = self._start(log.name, *command).pid
        wait_until(lambda: _LISTENING in log.read_text(errors="replace"), "no SuperLink")

    def restart_server(self) -> None:
        """Start SuperLink and SuperExec again."""
        self.restart_superlink()
        link = self._superlink
        address = ("--runtime-api-address", link.address)
        self._start("superexec.log", "flower-superexec", *link.trust(), *address)

    # The run

    def wait_for_round(self, server_round: int) -> None:
        """Wait until the run folder tells of a round."""
        self._wait_for(
            lambda: (self.out / "rounds.jsonl").exists() and self.rounds() >= server_round,
            f"round {server_round} is not over",
        )

    def finish(self) -> None:
        """Wait for the run's end."""
        self._wait_for((self.out / "result.json").exists, "the run is not over")

    def _wait_for(self, condition: Callable[[], bool], otherwise: str) -> None:
        """Wait for something, and see that SuperNodes and the server's app run meanwhile.

        While its SuperLink is away for long, Flower takes the app for dead: what watches over a
        deployment then resumes the run.
        """
        deadline = time.monotonic() + _PATIENCE
        seen = time.monotonic()
        while not condition():
            now = time.monotonic()
            if now > deadline:
                raise RunError(f"{otherwise} after {_PATIENCE:g} s")
            for device in self.devices:
                if self._supernodes[device.number].poll() is not None:
                    self.start_device(device)
            if self._pids_of(SERVER_APP):
                seen = now
            elif now - seen > _GONE_SECONDS:
                self.submit(resume=True)
                seen = time.monotonic()
            time.sleep(_POLL)

    # Details

    def _start(self, log: str, *command: str) -> "subprocess.Popen[str]":
        with (self.root / log).open("a") as file:
            process = self._superlink.start(command, stdout=file)
        self._programs.append(process)
        return process

    def _processes(self) -> dict[int, str]:
        """Return the command lines of the group's processes."""
        group = self._superlink.group
        return {pid: line for pid, (_, own, line) in _table().items() if own == group}

    def _pids_of(self, program: str) -> list[int]:
        return [pid for pid, line in self._processes().items() if f"/{program} " in line]


@contextmanager
def deployed(
    app: Path,
    root: Path,
    rng: np.random.Generator,
    size: Size,
    config: Mapping[str, ConfigValue],
    *,
    with_keys: bool = False,
) -> Iterator[Deployment]:
    """Yield a test bed on a SuperLink of its own; stop all that was started.

    With keys, the SuperLink speaks TLS and takes no other devices.
    """
    options = ["--database", str(root / "superlink.db")]
    keys = certificates = None
    if with_keys:
        keys = KeyFolder(root / "keys")
        make_keys(keys, LOOPBACK, size.devices)
        certificates = Certificates(keys.ca_certificate, keys.server_certificate, keys.server_key)
        options.append("--enable-supernode-auth")
    with (
        _environment(_HASTE | environment(root)),
        running_superlink(options, certificates) as superlink,
    ):
        if keys is not None:
            register(superlink.env, keys.public_keys(), CONNECTION)
        yield Deployment(superlink, options, app, keys, root, rng, size, config)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def kill_tree(pid: int) -> None:
    """Kill a process and all that it has started."""
    for each in tree_of(pid):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def tree_of(pid: int) -> list[int]:
    """Return a process and all that it has started, itself first."""
    children: dict[int, list[int]] = {}
    for each, (parent, _, _) in _table().items():
        children.setdefault(parent, []).append(each)
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def _table() -> dict[int, tuple[int, int, str]]:
    """Return parent, group and command line of all processes."""
    command = ["ps", "-eo", "pid=,ppid=,pgid=,args="]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 3) for line in text.splitlines())
    return {int(row[0]): (int(row[1]), int(row[2]), row[3]) for row in rows if len(row) > 3}
