"""Faults of a federation of processes, each as what is done to it while it trains."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sim.faults import supernode, tampering
from sim.faults.bed import Device
from sim.faults.fault import Fault
from sim.faults.federation import Federation
from sim.faults.marks import mark_of, write_pictures
from sim.faults.supernode import Mishap
from sim.launcher import RunError
from sim.run_config import ConfigValue

_AT_START = 0.3  # share of the server's kills
_BLOCK = 4096  # bytes
_SMALL_DISK = 8 << 20  # bytes
_FULL_SECONDS = 1.0  # that a disk stays full
_ENDING_SECONDS = 5.0  # that a server whose disk was full may take to end


# The server is killed


def server_killed(federation: Federation, number: int) -> None:
    """Kill the server at random moments, its start among them, and resume the run."""
    rng = federation.rng
    federation.start_server()
    for _ in range(number):
        if rng.random() < _AT_START:
            moment = rng.uniform(0.0, 2.0)
        else:
            wait_for_a_round(federation)
            moment = rng.uniform(0.0, 0.4)
        if federation.wait_for_server(moment):
            break
        federation.kill_server()
        federation.start_server(resume=True)
    federation.finish()


def server_killed_at(event: str, most: int) -> Callable[[Federation, int], None]:
    """Return what kills the server just before an event, and resumes the run."""

    def inject(federation: Federation, number: int) -> None:
        for attempt in range(number):
            death = (event, int(federation.rng.integers(1, most)))
            server = federation.start_server(resume=attempt > 0, death=death)
            server.join()
            if server.exitcode == 0:
                return
            if server.exitcode != -9:
                raise RunError(f"the server failed:\n{federation.log_tail()}")
            federation.server_kills += 1
            federation.injected += 1
        federation.start_server(resume=True)
        federation.finish()

    return inject


# Something befalls replies, or who makes them


def befalling(
    kinds: Sequence[str],
    amount: tuple[float, float] = (0.0, 1.0),
    restart: Mapping[str, bool] | None = None,
) -> Callable[[Federation, int], None]:
    """Return what lets something befall random requests, about every other one.

    Parameters
    ----------
    kinds : sequence of str
        Kinds of `supernode.Mishap`, in turn.
    amount : (float, float)
        Range of its amount.
    restart : mapping, optional
        How a SuperNode that died is restarted, see `Federation.restart_device`.
    """

    def inject(federation: Federation, number: int) -> None:
        plan_mishaps(federation, number, kinds, amount)
        federation.start_server()
        federation.finish(restart)

    return inject


def plan_mishaps(
    federation: Federation, number: int, kinds: Sequence[str], amount: tuple[float, float]
) -> None:
    """Plan mishaps, with requests without one in between; the first is without."""
    for index in range(number):
        device = federation.devices[index % len(federation.devices)]
        if index < len(federation.devices) or federation.rng.random() < 0.5:
            federation.plan(device, Mishap(supernode.NONE))
        kind = kinds[index % len(kinds)]
        federation.plan(device, Mishap(kind, float(federation.rng.uniform(*amount))))


# Disks


def full_bank_disk(federation: Federation, number: int) -> None:
    """Fill the disk of bank and run folder, and make room again; a run that ended is resumed."""
    disk = federation.root / "disk"
    with small_disk(disk, _SMALL_DISK) as is_disk:
        federation.place_run(disk)
        federation.start_server()
        for _ in range(number):
            if is_disk:
                wait_for_a_round(federation)
                fill(disk, leave=int(federation.rng.integers(0, 6)) * _BLOCK)
                federation.wait_for_server(_FULL_SECONDS)
                (disk / "filler").unlink()
            else:  # a limit of the process instead
                wait_for_a_round(federation)
                federation.stop_server()
                sizes = [path.stat().st_size for path in disk.glob(f"{federation.bank.name}*")]
                limit = max(sizes) + int(federation.rng.integers(4)) * _BLOCK
                federation.start_server(resume=True, largest_file=limit)
                federation.wait_for_server(2 * _FULL_SECONDS)
                federation.stop_server()
            federation.injected += 1
            if federation.wait_for_server(_ENDING_SECONDS):
                federation.start_server(resume=True)
        federation.finish()
        shutil.copytree(disk, federation.root / "kept")  # the disk goes
    federation.place_run(federation.root / "kept")


def full_device_disk(federation: Federation, number: int) -> None:
    """Fill the disks on which devices remember what they have sent, for some rounds."""
    disk = federation.root / "memories"
    with small_disk(disk, _SMALL_DISK) as is_disk:
        for device in federation.devices:
            device.memory = disk / str(device.number)
            device.memory.mkdir()
            federation.restart_device(device)
        federation.start_server()
        for _ in range(number):
            wait_for_a_round(federation)
            if is_disk:
                fill(disk, leave=int(federation.rng.integers(0, 4)) * _BLOCK)
            federation.wait_for_server(_FULL_SECONDS)
            (disk / "filler").unlink(missing_ok=True)
            federation.injected += is_disk
        federation.finish()


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """Make a folder a disk of its own, if this user may; yields whether it is one."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leave: int) -> None:
    """Fill a disk but for some bytes."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(_BLOCK))
        except OSError:
            file.truncate(max(0, file.tell() - leave))


def wait_for_a_round(federation: Federation, seconds: float = 60.0) -> None:
    """Wait until the run folder tells of one more round, if the server does not end before."""
    before = federation.rounds()
    deadline = time.monotonic() + seconds
    while federation.rounds() <= before and time.monotonic() < deadline:
        if federation.wait_for_server(0.02):
            return


# Clocks, data, other servers


def clock_jumps(federation: Federation, number: int) -> None:
    """Set the clocks of server and devices, and the files' times, far off and back."""
    federation.start_server()
    for _ in range(number):
        if federation.wait_for_server(federation.rng.uniform(0.1, 0.6)):
            break
        shift = float(federation.rng.choice([-1, 1]) * 10 ** federation.rng.uniform(1, 7))
        federation.shift_clock(shift)
        for device in federation.devices:
            for place in (device.folder / "train").rglob("[0-9]*.png"):
                os.utime(place, (time.time() + shift,) * 2)
        federation.injected += 1
    federation.finish()


def changing_sources(federation: Federation, number: int) -> None:
    """Add, delete and rename pictures while devices send; then a second run on the same bank."""
    federation.start_server()
    for index in range(number):
        if federation.wait_for_server(federation.rng.uniform(0.1, 0.5)):
            federation.start_server()
        device = federation.devices[int(federation.rng.integers(len(federation.devices)))]
        (grow, shrink, reorder)[index % 3](federation, device)
        federation.injected += 1
    federation.finish()
    federation.start_server()
    federation.finish()


def grow(federation: Federation, device: Device) -> None:
    """Add some pictures, before, among and after the others by name."""
    start = device.first_new
    device.first_new += 4
    write_pictures(device.folder, device.number, range(start, start + 4))
    shuffle_names(federation, sorted(_pictures(device))[-2:])


def shrink(federation: Federation, device: Device) -> None:
    """Delete some pictures, sent or not."""
    there = sorted(_pictures(device))
    for index in federation.rng.choice(len(there), 3, replace=False):
        device.deleted.append(mark_of(there[index]))
        there[index].unlink()


def reorder(federation: Federation, device: Device) -> None:
    """Give all pictures other names."""
    shuffle_names(federation, list(_pictures(device)))


def shuffle_names(federation: Federation, places: Sequence[Path]) -> None:
    """Rename pictures within their class, at random."""
    for place in places:
        os.rename(place, place.with_name(f"{federation.rng.integers(10**9):010}.png"))


def _pictures(device: Device) -> Iterator[Path]:
    return (device.folder / "train").rglob("[0-9]*.png")


def same_samples(federation: Federation, number: int) -> None:
    """Give a device the same samples as another."""
    first, *others = federation.devices
    for device in others[:number]:
        shutil.rmtree(device.folder)
        shutil.copytree(first.folder, device.folder)
        federation.injected += 1
    federation.start_server()
    federation.finish()


def one_after_the_other(federation: Federation, number: int) -> None:
    """Run more strategies on the same bank, each in a folder of its own."""
    federation.start_server()
    federation.finish()
    for index in range(number):
        other: dict[str, ConfigValue] = {
            "out-dir": str(federation.root / f"run-{index}"),
            "learning-rate": 0.02,
        }
        federation.start_server(config=other)
        federation.finish()
        federation.injected += 1


def at_the_same_time(federation: Federation, number: int) -> None:
    """Start more servers on a bank that is in use, of other runs and of the very run.

    Each must be refused, and the run that is going on be none the worse.
    """
    first = federation.start_server()
    for index in range(number):
        wait_for_a_round(federation)
        other = {} if index % 2 else {"out-dir": str(federation.root / f"run-{index}")}
        second = federation.start_server(config=other, resume=not other)
        second.join(60)
        federation.server = first
        if second.exitcode == 0 and not other and first.exitcode == 0:
            break  # the run had ended while it waited for the folder, and there was nothing to do
        if second.exitcode != 1:
            raise RunError(f"a second server on the bank ended with {second.exitcode}, not 1")
        federation.injected += 1
    federation.finish()


def everything(federation: Federation, number: int) -> None:
    """Kill and spoil whatever there is, at random, all at once."""
    rng = federation.rng
    kinds = [
        *(supernode.KILL, supernode.DUPLICATE, supernode.KILL_UNSENT, supernode.POWER_OFF),
        *(supernode.FLIP, supernode.STALE, supernode.POWER_OFF_UNSENT, supernode.TRUNCATE),
    ]
    plan_mishaps(federation, number, kinds, (0.0, 0.2))
    federation.start_server()
    end = time.monotonic() + 4.0 * number
    while federation.to_come() and time.monotonic() < end:
        ended = federation.wait_for_server(rng.uniform(0.5, 4.0))
        if ended:
            break
        federation.kill_server()
        restart = {"key": bool(rng.integers(2)), "state": bool(rng.integers(2))}
        federation.revive(restart)
        federation.start_server(resume=True)
    federation.finish({"key": False, "state": True})


def lasting(seconds: float) -> Mapping[str, ConfigValue]:
    """Return the config of a run whose rounds end after so many seconds, or with most replies."""
    return {"round-timeout": seconds, "quorum": 0.6}


OF_PROCESSES = (
    Fault("server killed at random moments", server_killed, 10, 2, rounds_each=3),
    Fault(
        "server killed in the bank's transactions",
        server_killed_at(tampering.STATEMENT, 60), 8, 2, rounds_each=2,
    ),
    Fault(
        "server killed while it syncs a file",
        server_killed_at(tampering.SYNC, 12), 5, 0, rounds_each=3,
    ),
    Fault(
        "server killed before it renames a checkpoint",
        server_killed_at(tampering.RENAME, 6), 5, 1, rounds_each=4,
    ),
    Fault("client killed at random moments", befalling([supernode.KILL], (0.0, 0.12)), 30, 3),
    Fault("client killed with its reply unsent", befalling([supernode.KILL_UNSENT]), 15, 2),
    Fault(
        "client killed in its memory's transactions",
        befalling([supernode.KILL_STATEMENT], (1, 20)), 15, 2,
    ),
    *(
        Fault(
            f"SuperNode killed, restarted {'with' if key else 'without'} key, "
            f"{'with' if state else 'without'} state",
            befalling(
                [supernode.POWER_OFF, supernode.POWER_OFF_UNSENT], (0.0, 0.12),
                {"key": key, "state": state},
            ), 6, int(key == state),
        )
        for key in (True, False)
        for state in (True, False)
    ),
    Fault("reply duplicated", befalling([supernode.DUPLICATE]), 12, 0),
    Fault("earlier reply repeated in place of the new one", befalling([supernode.STALE]), 12, 3),
    Fault("request handled twice", befalling([supernode.AGAIN]), 12, 0),
    Fault(
        "reply delayed past the round's end",
        befalling([supernode.DELAY], (1.2, 3.0)), 12, 2, slack=6, config=lasting(1.0),
    ),
    Fault("reply truncated", befalling([supernode.TRUNCATE]), 12, 0),
    Fault("bit of a reply flipped", befalling([supernode.FLIP]), 24, 3),
    Fault("disk of the bank full", full_bank_disk, 3, 1, rounds_each=8),
    Fault("disk of the devices full", full_device_disk, 4, 0, rounds_each=6),
    Fault("clock jumps", clock_jumps, 8, 0, rounds_each=2),
    Fault("source grows, shrinks, is reordered", changing_sources, 12, 3),
    Fault("devices with the same samples", same_samples, 2, 0),
    Fault("strategies on one bank, one after the other", one_after_the_other, 2, 0),
    Fault("strategies on one bank, at the same time", at_the_same_time, 4, 2, rounds_each=15),
    Fault("everything at once", everything, 24, 0, rounds=8),
)  # fmt: skip
