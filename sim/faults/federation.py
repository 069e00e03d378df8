"""A server and devices as processes of this machine that are killed and started again."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import numpy as np

from sim.faults.marks import (
    CLASSES,
    SIDE,
    Count,
    Mark,
    count,
    marks_in,
    marks_received,
    write_pictures,
)
from sim.faults.serverapp import ServerJob, run_serverapp
from sim.faults.spool import Spool
from sim.faults.supernode import KILLS, Mishap, NodeJob, happened, plan, planned, run_supernode
from sim.launcher import RunError
from sim.run_config import ConfigValue

PER_ROUND = 6  # samples of a device
_PRELOADED = (
    "fl_app.server_app",
    "fl_app.client_app",
    "sim.faults.serverapp",
    "sim.faults.supernode",
)
_POLL = 0.01
_PATIENCE = 120.0  # seconds that a server without faults may take
_LOG_LINES = 30


def processes() -> ForkServerContext:
    """Return what starts processes that have everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


@dataclass(frozen=True)
class Size:
    """How large a federation is.

    Attributes
    ----------
    devices, samples : int
        Devices, and pictures that each has.
    rounds : int
        Of a run.
    """

    devices: int = 3
    samples: int = 24
    rounds: int = 12


@dataclass
class Device:
    """A device: its data, its memory, its identity, and its SuperNode while that runs.

    Attributes
    ----------
    number : int
    folder : Path
        Pictures.
    memory : Path
        What it remembers on disk.
    node_id : int
        Changes when it is started without its key.
    process : ForkServerProcess or None
    first_new : int
        Number of the next picture that it takes.
    deleted : list of Mark
        Pictures that it once had.
    """

    number: int
    folder: Path
    memory: Path
    node_id: int
    process: ForkServerProcess | None = None
    first_new: int = 0
    deleted: list[Mark] = field(default_factory=list)

    @property
    def is_running(self) -> bool:
        """Whether its SuperNode runs."""
        return self.process is not None and self.process.is_alive()


class Federation:
    """Devices with pictures of their own, and a server with a durable bank.

    Parameters
    ----------
    root : Path
        Scratch folder.
    rng : np.random.Generator
        Source of all that is random here.
    size : Size
    config : mapping
        Run config besides that of all.

    Attributes
    ----------
    server_kills : int
        So far.
    injected : int
        Faults so far, but for those that befell requests for samples.
    """

    def __init__(
        self,
        root: Path,
        rng: np.random.Generator,
        *,
        size: Size = Size(),
        config: Mapping[str, ConfigValue] | None = None,
    ) -> None:
        self.root, self.rng = root, rng
        self.spool = Spool(root / "spool")
        self.out, self.bank = root / "run", root / "bank.sqlite"
        self.server_kills = self.injected = 0
        self.server: ForkServerProcess | None = None
        self._env = {
            "XDG_CACHE_HOME": str(root / "cache"),
            "XDG_STATE_HOME": str(root / "state"),
            "OMP_NUM_THREADS": "1",
        }
        self._context = processes()
        server_data = root / "server"
        _write_test_pictures(server_data)
        self.config: dict[str, ConfigValue] = {
            "dataset": "imagefolder",
            "data-dir": str(server_data),
            "image-size": SIDE,
            "model": "logistic",
            "augment": "none",
            "schedule": "constant",
            "learning-rate": 0.01,
            "codec": "lossless",
            "samples-per-round": PER_ROUND,
            "server-steps": 2,
            "server-batch-size": 8,
            "eval-every": 1000,
            "num-rounds": size.rounds,
            "round-timeout": 20.0,
            "device": "cpu",
            "threads": 1,
            "client-key": "partition",
            "min-available-nodes": size.devices,
            "bank": str(self.bank),
            "out-dir": str(self.out),
            **(config or {}),
        }
        self.devices = []
        for number in range(size.devices):
            folder = root / f"device{number}"
            write_pictures(folder, number, range(size.samples))
            memory = root / f"memory{number}"
            memory.mkdir()
            self.devices.append(
                Device(number, folder, memory, self.new_node_id(), first_new=size.samples)
            )

    def new_node_id(self) -> int:
        """Return an id as Flower gives them."""
        return int(self.rng.integers(2**64 - 1, dtype=np.uint64))

    # Devices

    def start_device(self, device: Device) -> None:
        """Start a device's SuperNode."""
        job = NodeJob(
            self.spool.root,
            device.node_id,
            {
                "partition-id": device.number,
                "num-partitions": 1,
                "data-dir": str(device.folder),
                "state-dir": str(device.memory),
            },
            self.config,
            self.mishaps_of(device),
            self.root / f"device{device.number}.log",
            self._env,
        )
        process = self._context.Process(target=run_supernode, args=(job,), daemon=True)
        process.start()
        device.process = process

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
        self.spool.disconnect(device.node_id)
        if not key:
            device.node_id = self.new_node_id()
        if not state:
            for path in sorted(device.memory.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        self.start_device(device)

    def stop_device(self, device: Device) -> None:
        """Kill a SuperNode and the client that it may be running."""
        _kill(device.process)

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

    def happened(self) -> list[str]:
        """Return the kinds of the mishaps that happened."""
        return [kind for d in self.devices for kind in happened(self.mishaps_of(d))]

    @property
    def client_kills(self) -> int:
        """Clients and SuperNodes killed so far."""
        return sum(kind in KILLS for kind in self.happened())

    # Server

    def start_server(
        self,
        *,
        resume: bool = False,
        death: tuple[str, int] | None = None,
        largest_file: int = 0,
        config: Mapping[str, ConfigValue] | None = None,
    ) -> ForkServerProcess:
        """Start the server's process; returns it."""
        config = {**self.config, **(config or {})}
        if resume:
            config["resume"] = str(config["out-dir"])
        log = self.root / "server.log"
        job = ServerJob(self.spool.root, config, log, self._env, death, largest_file)
        process = self._context.Process(target=run_serverapp, args=(job,), daemon=True)
        process.start()
        self.server = process
        return process

    def kill_server(self) -> bool:
        """Kill the server; False if it had ended by itself."""
        alive = self.server is not None and self.server.is_alive()
        _kill(self.server)
        self.server_kills += alive
        self.injected += alive
        return alive

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

    def revive(self, restart: Mapping[str, bool] | None = None) -> None:
        """Restart the devices whose SuperNode has died by a mishap."""
        for device in self.devices:
            if device.process is not None and not device.process.is_alive():
                self.restart_device(device, **(restart or {}))

    def log_tail(self) -> str:
        """Return the last lines of the server's log."""
        with suppress(FileNotFoundError):
            text = (self.root / "server.log").read_text(errors="replace")
            return "\n".join(text.splitlines()[-_LOG_LINES:])
        return ""

    # The count

    def rounds(self) -> int:
        """Return the rounds that the run folder tells of."""
        lines = (self.out / "rounds.jsonl").read_text().splitlines()
        return max((json.loads(line)["round"] for line in lines), default=0)

    def count(self) -> Count:
        """Compare what is in the bank with what the devices have."""
        existing = [mark for device in self.devices for mark in marks_in(device.folder)]
        gone = [mark for device in self.devices for mark in device.deleted]
        return count(existing, gone, marks_received(self.bank))

    def shift_clock(self, seconds: float) -> None:
        """Set the clock of all processes wrong."""
        part = self.spool.root / ".clock"
        part.write_text(str(seconds))
        os.rename(part, self.spool.root / "clock")

    def close(self) -> None:
        """Kill everything."""
        _kill(self.server)
        for device in self.devices:
            _kill(device.process)


@contextmanager
def running(federation: Federation) -> Iterator[Federation]:
    """Start the devices of a federation; kill all its processes at the end."""
    try:
        for device in federation.devices:
            federation.start_device(device)
        yield federation
    finally:
        federation.close()


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


def _write_test_pictures(folder: Path) -> None:
    """Write what the server knows of the data: a picture of each class."""
    from sim.faults.marks import save

    for number, name in enumerate(CLASSES):
        place = folder / "test" / name
        place.mkdir(parents=True)
        save(place / "0.png", (2**16 - 1, number))


def wait_until(condition: Callable[[], bool], otherwise: str, seconds: float = 60.0) -> None:
    """Wait for something; `RunError` with the other text if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RunError(f"{otherwise} after {seconds:.0f} s")
        time.sleep(_POLL)
