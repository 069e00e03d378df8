"""Seconds, memory and bytes of a run on the direct engine, against the number of clients."""

import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_app.data import load
from sim import tables
from sim.direct_engine import run_server
from sim.direct_job import DirectJob
from sim.figures import BLUE, GREEN, ORANGE, PURPLE, bare
from sim.in_process import flower_task
from sim.jsonl import append_points, read_points
from sim.launcher import NOTHING_KEPT, of_simulated_clients
from sim.resident import resident_peak
from sim.run_config import ConfigValue, RunConfigError, read_defaults

FILE, FIGURE = "scale.jsonl", "scale.png"
SAMPLES_PER_ROUND = 2  # of a client
# As little as can be beside what is measured: a codec that takes no time, a model that is small.
CONFIG: Mapping[str, ConfigValue] = {
    "dataset": "fashion-mnist",  # by the format of the files
    "model": "logistic",
    "codec": "jpeg",
    "samples-per-round": SAMPLES_PER_ROUND,
    "server-steps": 10,
    "round-timeout": 86_400.0,  # seconds: as long as it takes
    **NOTHING_KEPT,
}
_SHIFTS = [(x, y) for y in range(-4, 5) for x in range(-4, 5)]  # pixels; the first are the farthest
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
_LOOK_SECONDS = 0.5  # how often is looked which rounds are done
_BUSY = 0.5  # load of the machine, in processes that run, from which it is no longer idle
_FITTED = {
    "seconds of the rounds": "seconds",
    "seconds in round trips": "round_trip_seconds",
    "CPU seconds": "cpu_seconds",
    "uplink bytes": "uplink_bytes",
    "peak memory": "peak_bytes",
}


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes
    ----------
    clients, rounds, processes : int
    start_seconds : float
        Until the run folder is open: packages.
    seconds : float
        From then to the end of the last round.
    round_trip_seconds, decode_seconds, train_seconds : float
        Of the stages of the rounds.
    cpu_seconds : float
        User and system, of all processes, start included.
    uplink_bytes, downlink_bytes : int
        Content of all messages.
    server_bytes, client_bytes : int
        Peak resident memory of the server's process, and of the largest of the clients'.
    load : float
        Processes that wanted a core before the run, of the machine's `cores`.
    cores : int
    machine : str
    """

    clients: int
    rounds: int
    processes: int
    start_seconds: float
    seconds: float
    round_trip_seconds: float
    decode_seconds: float
    train_seconds: float
    cpu_seconds: float
    uplink_bytes: int
    downlink_bytes: int
    server_bytes: int
    client_bytes: int
    load: float
    cores: int
    machine: str

    @property
    def peak_bytes(self) -> int:
        """Memory of all processes together, at most: pages that they share count for each."""
        return self.server_bytes + self.processes * self.client_bytes


def measure_scale(
    folder: Path,
    app: Path,
    sizes: Iterable[int],
    rounds: int,
    processes: int = 0,
    overrides: Mapping[str, ConfigValue] | None = None,
    echo: Callable[[str], None] = print,
) -> None:
    """Run the app with numbers of clients, and add a row for each to ``scale.jsonl``.

    Parameters
    ----------
    folder : Path
        Created with its parents; what it has rows of is not measured again.
    app : Path
        Folder of the app.
    sizes : iterable of int
        Numbers of clients.
    rounds : int
    processes : int
        That the clients share; 0: as many as there are cores.
    overrides : Mapping, optional
        Of the app's run config, beyond `CONFIG`.
    echo : callable
        Called with each line.

    Raises
    ------
    RunConfigError
        If there are not enough digits for so many clients and rounds.
    RunFailed
        If a run fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processes = processes or os.cpu_count() or 1
    known = {(row.clients, row.rounds, row.processes) for row in read_rows(folder)}
    for clients in sizes:
        if (clients, rounds, min(processes, clients)) in known:
            continue
        echo(f"{clients:,} clients, {rounds} rounds, in {min(processes, clients)} processes")
        with tempfile.TemporaryDirectory() as scratch:
            write_digits(Path(scratch), clients * rounds * SAMPLES_PER_ROUND)
            values = {
                **read_defaults(app),
                **CONFIG,
                "num-rounds": rounds,
                "eval-every": rounds,
                **(overrides or {}),
                "data-dir": scratch,
                "out-dir": str(Path(scratch) / "run"),
            }
            whole = of_simulated_clients(values, values)
            job = DirectJob.of(app, whole, clients, min(processes, clients))
            row = _measured(job, echo)
        append_points(folder / FILE, [row])
        for line in report([row]):
            echo(line)


def read_rows(folder: Path) -> list[Row]:
    """Return the rows in a folder, by rounds and clients."""
    rows = read_points(folder / FILE, Row)
    return sorted(rows, key=lambda row: (row.rounds, row.clients))


def write_digits(folder: Path, count: int) -> None:
    """Write so many different images, as Fashion-MNIST's training files are written.

    Each is one of the 4,000 digits that come with the installation, shifted by up to four pixels.

    Raises
    ------
    RunConfigError
        If there are not so many.
    """
    digits = load("mnist5k", "train")
    if count > len(digits.labels) * len(_SHIFTS):
        raise RunConfigError(
            f"{count} samples must be at most {len(digits.labels) * len(_SHIFTS)}: fewer clients, "
            "or fewer rounds"
        )
    times = -(-count // len(digits.labels))
    samples = [np.roll(digits.samples[:, 0], shift, (2, 1)) for shift in _SHIFTS[:times]]
    labels = np.tile(digits.labels.astype(np.uint8), times)
    _write_idx(folder / "train-images-idx3-ubyte", np.concatenate(samples)[:count])
    _write_idx(folder / "train-labels-idx1-ubyte", labels[:count])


def _write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(head + array.tobytes())


def _measured(job: DirectJob, echo: Callable[[str], None]) -> Row:
    """Run a job in a process of its own, whose memory is that of the server alone."""
    told, rounds = 0, int(job.run_config["num-rounds"])
    load_before = os.getloadavg()[0]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(job, theirs, time.time(), load_before))
    process.start()
    theirs.close()
    try:
        while not ours.poll(_LOOK_SECONDS):
            if (done := _rounds_done(job)) > told:
                told = done
                echo(f"  round {done}/{rounds}")
        row: Row = ours.recv()
    except EOFError:
        raise RuntimeError(f"the run with {job.clients} clients failed") from None
    finally:
        process.terminate()  # whether it has told all, or who waits for it is interrupted
        process.join()
    return row


def _rounds_done(job: DirectJob) -> int:
    """Return the last round that the run has written of."""
    with suppress(OSError):  # not begun
        text = (Path(str(job.run_config["out-dir"])) / "rounds.jsonl").read_text(encoding="utf-8")
        *whole, _ = text.split("\n")
        return int(json.loads(whole[-1])["round"]) if whole else 0
    return 0


def _run(job: DirectJob, connection: Connection, started: float, load_before: float) -> None:
    # The images are of no use to anybody else, and their clients share them.
    os.environ["XDG_CACHE_HOME"] = str(Path(str(job.run_config["data-dir"])) / "cache")
    with flower_task():
        client_bytes = run_server(job)
    folder = Path(str(job.run_config["out-dir"]))
    opened = (folder / "config.json").stat().st_mtime
    ended = (folder / "rounds.jsonl").stat().st_mtime
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    taken = result["seconds"]
    own, children = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    row = Row(
        job.clients,
        int(job.run_config["num-rounds"]),
        job.processes,
        start_seconds=opened - started,
        seconds=ended - opened,
        round_trip_seconds=taken["round_trip"],
        decode_seconds=taken["decode"],
        train_seconds=taken["train"],
        cpu_seconds=sum(use.ru_utime + use.ru_stime for use in (own, children)),
        uplink_bytes=result["uplink_bytes"],
        downlink_bytes=result["downlink_bytes"],
        server_bytes=resident_peak(),
        client_bytes=client_bytes,
        load=load_before,
        cores=os.cpu_count() or 1,
        machine=platform.machine(),
    )
    connection.send(row)


def report(rows: Sequence[Row]) -> list[str]:
    """Return a table of rows, and how seconds, bytes and memory grow with the clients."""
    table = tables.numbers(
        *("clients", "rounds", "processes", "s", "CPU s", "ms a reply", "up kB", "up B a reply"),
        *("server MB", "clients MB", "load before"),
    )
    for row in rows:
        replies = row.clients * row.rounds
        table.add_row(
            *(f"{row.clients:,}", str(row.rounds), str(row.processes), f"{row.seconds:.1f}"),
            *(f"{row.cpu_seconds:.0f}", f"{1e3 * row.seconds / replies:.1f}"),
            *(f"{row.uplink_bytes / 1e3:,.0f}", f"{row.uplink_bytes / replies:.0f}"),
            *(f"{row.server_bytes / 1e6:.0f}", f"{row.client_bytes / 1e6:.0f}"),
            f"{row.load:.1f}{' (busy)' * (row.load > _BUSY)}",
        )
    found = tables.lines(table)
    for rounds in sorted({row.rounds for row in rows}):
        same = [row for row in rows if row.rounds == rounds]
        if len({row.clients for row in same}) > 1:
            found += ["", *_growth(same)]
    return found


def _growth(rows: Sequence[Row]) -> Iterable[str]:
    clients = [row.clients for row in rows]
    last = sorted(set(clients))[-2:]
    yield (
        f"{rows[0].rounds} rounds, {min(clients):,} to {max(clients):,} clients: "
        "exponents of the growth"
    )
    for title, name in _FITTED.items():
        values = [float(getattr(row, name)) for row in rows]
        ends = [(c, v) for c, v in zip(clients, values, strict=True) if c in last]
        yield (
            f"  {title}: {exponent(clients, values):.2f}; from {last[0]:,} to {last[1]:,} "
            f"{exponent(*zip(*ends, strict=True)):.2f}"
        )


def exponent(clients: Sequence[int], values: Sequence[float]) -> float:
    """Return b of the least-squares fit ``log value = a + b log clients``."""
    return float(np.polyfit(np.log(clients), np.log(values), 1)[0])


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw seconds, bytes and memory against the clients, a line for each number of rounds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator

    panels: Mapping[str, tuple[str, Callable[[Row], float]]] = {
        "time of the rounds": ("s", lambda row: row.seconds),
        "CPU time": ("s", lambda row: row.cpu_seconds),
        "uplink": ("B", lambda row: row.uplink_bytes),
        "peak memory, all processes": ("B", lambda row: row.peak_bytes),
    }
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    for number, (title, (unit, value)) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(2, 2, number, title=title, xlabel="clients")
        for colour, rounds in zip(_COLOURS, sorted({row.rounds for row in rows}), strict=False):
            same = [row for row in rows if row.rounds == rounds]
            label = f"{rounds} round{'s' * (rounds > 1)}"
            places = [row.clients for row in same]
            axes.plot(places, [value(row) for row in same], "o-", color=colour, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high < 10 * low:  # no power of ten but one, perhaps
            axes.set_yscale("linear")
            axes.set_ylim(0)
        else:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(EngFormatter(unit))
        axes.xaxis.set_major_formatter(EngFormatter())
        bare(axes)
    figure.axes[0].legend(frameon=False)
    figure.savefig(path)
