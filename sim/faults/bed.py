"""What both engines share: devices with pictures of their own, a run config, and the count."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sim.faults.marks import (
    CLASSES,
    SIDE,
    Count,
    Mark,
    count,
    dropped_in,
    marks_in,
    marks_received,
    save,
    write_pictures,
)
from sim.launcher import RunError
from sim.run_config import ConfigValue

PER_ROUND = 6  # samples of a device

_SERVERS_OWN = 2**16 - 1  # number of the device whose pictures the server has
_POLL = 0.05


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
    """A device: its data and its memory.

    Attributes
    ----------
    number : int
    folder : Path
        Pictures.
    memory : Path
        What it remembers on disk.
    first_new : int
        Number of the next picture that it takes.
    deleted : list of Mark
        Pictures that it once had.
    """

    number: int
    folder: Path
    memory: Path
    first_new: int = 0
    deleted: list[Mark] = field(default_factory=list)

    def node_config(self) -> dict[str, ConfigValue]:
        """Return what its SuperNode is told."""
        return {
            "partition-id": self.number,
            "num-partitions": 1,
            "data-dir": str(self.folder),
            "state-dir": str(self.memory),
        }

    def forget(self) -> None:
        """Lose the memory."""
        for path in sorted(self.memory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


class Bed:
    """Devices with pictures of their own, and a server with a durable bank; nothing runs yet.

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
    config : dict
        Run config.
    out, bank : Path
        Run folder, and file of the bank.
    devices : list of Device
    server_kills, client_kills : int
        Processes killed.
    injected : int
        Faults.
    """

    def __init__(
        self,
        root: Path,
        rng: np.random.Generator,
        size: Size | None = None,
        config: Mapping[str, ConfigValue] | None = None,
    ) -> None:
        size = size or Size()
        self.root, self.rng = root, rng
        self.server_kills = self.client_kills = self.injected = 0
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
            **(config or {}),
        }
        self.place_run(root)
        self.devices = []
        for number in range(size.devices):
            device = Device(
                number, root / f"device{number}", root / f"memory{number}", size.samples
            )
            write_pictures(device.folder, number, range(size.samples))
            device.memory.mkdir()
            self.devices.append(device)

    def place_run(self, folder: Path) -> None:
        """Let a folder hold the run folder and the bank."""
        self.out, self.bank = folder / "run", folder / "bank.sqlite"
        self.config |= {"bank": str(self.bank), "out-dir": str(self.out)}

    def book(self) -> None:
        """Count what has happened without the caller; called once, at the end."""

    def rounds(self) -> int:
        """Return the rounds that the run folder tells of so far."""
        return max((record["round"] for record in self._told()), default=0)

    def check_rounds(self) -> None:
        """Check that the run folder tells of every round once, and that the run was long enough.

        Raises
        ------
        RunError
            If not. What a device still had to send in the last round is no lost sample.
        """
        told, last = self._told(), int(self.config["num-rounds"])
        numbers = [record["round"] for record in told]
        if numbers != list(range(last + 1)):
            raise RunError(f"of {last} rounds, rounds.jsonl tells of {numbers}")
        if told[-1]["samples_sent"] != told[-2]["samples_sent"]:
            raise RunError(f"{last} rounds are too few: devices were still sending in the last")

    def _told(self) -> list[dict[str, Any]]:
        lines = self.out / "rounds.jsonl"
        whole, _, _ = (lines.read_text() if lines.exists() else "").rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def count(self) -> Count:
        """Compare what is in the bank with what the devices have."""
        existing = [mark for device in self.devices for mark in marks_in(device.folder)]
        gone = [mark for device in self.devices for mark in device.deleted]
        counted = count(existing, gone, marks_received(self.bank))
        return replace(counted, dropped=dropped_in(self.bank))


def environment(root: Path) -> dict[str, str]:
    """Return what keeps the processes' caches and memories in a scratch folder."""
    return {
        "XDG_CACHE_HOME": str(root / "cache"),
        "XDG_STATE_HOME": str(root / "state"),
        "OMP_NUM_THREADS": "1",
    }


def wait_until(condition: Callable[[], bool], otherwise: str, seconds: float = 60.0) -> None:
    """Wait for something; `RunError` with the other text if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RunError(f"{otherwise} after {seconds:.0f} s")
        time.sleep(_POLL)


def _write_test_pictures(folder: Path) -> None:
    """Write what the server knows of the data: a picture of each class."""
    for number, name in enumerate(CLASSES):
        place = folder / "test" / name
        place.mkdir(parents=True)
        save(place / "0.png", (_SERVERS_OWN, number))
