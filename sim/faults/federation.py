"""A server and devices as processes of this machine that are killed and started again."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import numpy as np

from sim.faults.bed import Bed, Device, Size, environment
from sim.faults.serverapp import ServerJob, run_serverapp
from sim.faults.spool import Spool
from sim.faults.supernode import KILLS, Mishap, NodeJob, happened, plan, planned, run_supernode
from sim.launcher import RunError
from sim.run_config import ConfigValue

_PRELOADED = (
    "fl_app.server_app",
    "fl_app.client_app",
    "sim.faults.serverapp",
    "sim.faults.supernode",
)
_POLL = 0.01
_PATIENCE = 600.0  # seconds that a server without faults may take, on a machine that is busy
_LOG_LINES = 30


class Federation(Bed):
    """A test bed whose server and SuperNodes are processes of ours, see `spool`.

    Attributes
    ----------
    node_ids : dict of int to int
        Node ids by the devices' numbers.
    serverapp : callable
        What the server's process runs.
    """

    def __init__(
        self,
        root: Path,
        rng: np.random.Generator,
        size: Size | None = None,
        config: Mapping[str, ConfigValue] | None = None,
    ) -> None:
        super().__init__(root, rng, size, config)
        self.spool = Spool(root / "spool")
        self.server: ForkServerProcess | None = None
        self.serverapp: Callable[[ServerJob], None] = run_serverapp
        self.node_ids = {device.number: self._new_node_id() for device in self.devices}
        self._supernodes: dict[int, ForkServerProcess] = {}
        self._context = _processes()

    # Devices

    def start_device(self, device: Device) -> None:
        """Start a device's SuperNode."""
        job = NodeJob(
            self.spool.root,
            self.node_ids[device.number],
            device.node_config(),
            self.config,
            self.mishaps_of(device),
            self.root / f"device{device.number}.log",
            environment(self.root),
        )
        process = self._context.Process(target=run_supernode, args=(job,), daemon=True)
        process.start()
        self._supernodes[device.number] = process

    def restart_device(self, device: Device, *, key: bool = True, state: bool = True) -> None:
        """Start a device again after its SuperNode was killed.

        Parameters
        ----------
        device : Device
        key : bool
            Whether it still has its key, and so its node id.
        state : bool
            Whether its disk remembers what it has sent.
        """
        self.stop_device(device)
        self.spool.disconnect(self.node_ids[device.number])
        if not key:
            self.node_ids[device.number] = self._new_node_id()
        if not state:
            device.forget()
        self.start_device(device)

    def stop_device(self, device: Device) -> None:
        """Kill a SuperNode and the client that it may be running."""
        _kill(self._supernodes.get(device.number))

    def revive(self, restart: Mapping[str, bool] | None = None) -> None:
        """Restart the devices whose SuperNode has died by a mishap."""
        for device in self.devices:
            if not self._supernodes[device.number].is_alive():
                self.restart_device(device, **(restart or {}))

    def mishaps_of(self, device: Device) -> Path:
        """Return the folder of what is to befall a device."""
        return self.root / f"mishaps{device.number}"

    def plan(self, device: Device, *mishaps: Mishap) -> None:
        """Let something befall the next requests for samples that a device gets."""
        for mishap in mishaps:
            plan(self.mishaps_of(device), mishap)

    def to_come(self) -> int:
        """Return how many mishaps have not happened yet."""
        return sum(planned(self.mishaps_of(device)) for device in self.devices)

    def book(self) -> None:
        """Count the mishaps that happened."""
        for device in self.devices:
            kinds = happened(self.mishaps_of(device))
            self.injected += len(kinds)
            self.client_kills += sum(kind in KILLS for kind in kinds)

    # Server

    def start_server(
        self,
        *,
        resume: bool = False,
        death: tuple[str, int] | None = None,
        largest_file: int = 0,
        config: Mapping[str, ConfigValue] | None = None,
    ) -> ForkServerProcess:
        """Start the server.

        Parameters
        ----------
        resume : bool
            Whether it goes on with the run of its folder.
        death, largest_file
            See `ServerJob`.
        config : mapping
            Run config, before the federation's.
        """
        config = {**self.config, **(config or {})}
        config["resume"] = resume and self.out.is_dir()  # killed earlier, there is no run yet
        log = self.root / "server.log"
        job = ServerJob(self.spool.root, config, log, environment(self.root), death, largest_file)
        process = self._context.Process(target=self.serverapp, args=(job,), daemon=True)
        process.start()
        self.server = process
        return process

    def kill_server(self) -> None:
        """Kill the server, if it has not ended by itself."""
        alive = self.server is not None and self.server.is_alive()
        _kill(self.server)
        self.server_kills += alive
        self.injected += alive

    def stop_server(self) -> None:
        """Kill the server without counting it."""
        _kill(self.server)

    def wait_for_server(self, seconds: float) -> bool:
        """Wait for the server's end at most so long; whether it has ended."""
        assert self.server is not None
        self.server.join(seconds)
        return not self.server.is_alive()

    def finish(self, restart: Mapping[str, bool] | None = None) -> None:
        """Let the run come to its end, devices that die being restarted.

        Parameters
        ----------
        restart : mapping
            How, see `restart_device`.

        Raises
        ------
        RunError
            If it fails, or does not end.
        """
        assert self.server is not None
        deadline = time.monotonic() + _PATIENCE
        while self.server.is_alive():
            self.revive(restart)
            if time.monotonic() > deadline:
                raise RunError(f"the server does not end:\n{self.log_tail()}")
            time.sleep(_POLL)
        if self.server.exitcode:
            raise RunError(f"the server ended with {self.server.exitcode}:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """Return the last lines of the server's log."""
        with suppress(FileNotFoundError):
            text = (self.root / "server.log").read_text(errors="replace")
            return "\n".join(text.splitlines()[-_LOG_LINES:])
        return ""

    def shift_clock(self, seconds: float) -> None:
        """Set the clock of all processes wrong."""
        part = self.spool.root / ".clock"
        part.write_text(str(seconds))
        os.rename(part, self.spool.root / "clock")

    def close(self) -> None:
        """Kill everything."""
        _kill(self.server)
        for device in self.devices:
            self.stop_device(device)

    def _new_node_id(self) -> int:
        """Return an id as Flower gives them."""
        return int(self.rng.integers(2**64 - 1, dtype=np.uint64))


@contextmanager
def running(federation: Federation) -> Iterator[Federation]:
    """Start the devices of a federation; kill all its processes at the end."""
    try:
        for device in federation.devices:
            federation.start_device(device)
        yield federation
    finally:
        federation.close()


def _processes() -> ForkServerContext:
    """Return what starts processes that have everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def _kill(process: ForkServerProcess | None) -> None:
    """Kill a process and its children."""
    if process is None or process.pid is None:
        return
    if process.is_alive():
        # A process that has not yet made its group is killed alone.
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError):
                kill(process.pid, signal.SIGKILL)
    process.join()
