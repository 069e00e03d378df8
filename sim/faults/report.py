"""All kinds of fault, one after the other, and the table that they give."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sim.faults.bed import Bed
from sim.faults.deployment import deployed
from sim.faults.fault import FLOWER, Fault
from sim.faults.federation import Federation, running
from sim.faults.flower_kinds import OF_FLOWER
from sim.faults.kinds import OF_PROCESSES
from sim.launcher import RunError
from sim.superlink import SuperLinkError

RESULTS = "faults.json"
FAULTS = (*OF_PROCESSES, *OF_FLOWER)

_APP = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """What became of the samples under one kind of fault.

    Attributes
    ----------
    fault : str
    engine : str
        ``flower`` (SuperLink, SuperNodes and the processes that they start) or ``processes``
        (server and clients of the app in processes of ours, over messages in files).
    injected : int
        How often it happened.
    server_kills, client_kills : int
        Processes killed with SIGKILL: of the server (SuperLinks among them), and of the devices
        (SuperNodes among them).
    rounds, samples : int
        That the run took, and that exist.
    lost, doubled : int
        Samples that are not in the bank, and copies too many in what it trains on.
    unknown : int
        Samples in the bank that are nobody's.
    dropped : int
        Samples that came again and were dropped: bytes that were paid twice.
    seconds : float
    """

    fault: str
    engine: str
    injected: int
    server_kills: int
    client_kills: int
    rounds: int
    samples: int
    lost: int
    doubled: int
    unknown: int
    dropped: int
    seconds: float

    @property
    def is_exact(self) -> bool:
        """Whether each sample is in the bank once, and nothing else."""
        return not (self.lost or self.doubled or self.unknown)


def run_faults(
    folder: Path,
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    seed: int = 0,
    echo: Callable[[str], None] = print,
    faults: Sequence[Fault] = FAULTS,
) -> list[Row]:
    """Run every kind of fault that the results lack; write ``faults.json`` after each.

    Parameters
    ----------
    folder : Path
        Of the results; created with its parents.
    quick : bool
        Few faults of each kind.
    only : sequence of str
        Kinds to run, even if the results have them; default: all that they lack.
    seed : int
        Of what is random.
    echo : callable
        Called with each line.
    faults : sequence of Fault

    Returns
    -------
    list of Row

    Raises
    ------
    RunError
        If samples were lost or doubled, or a run did not come to its end; all kinds are tried
        first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULTS
    rows = {row.fault: row for row in read_rows(path)}
    failed: list[str] = []
    for place, fault in enumerate(faults):
        number = fault.quick if quick else fault.number
        done = fault.name in rows and rows[fault.name].is_exact
        if not number or (fault.name not in only if only else done):
            continue
        try:
            row = measure(fault, number, seed)
        except (RunError, SuperLinkError) as error:
            failed.append(fault.name)
            echo(f"{fault.name}: failed: {error}")
            continue
        rows[fault.name] = row
        ordered = [rows[f.name] for f in faults if f.name in rows]
        _write(path, ordered)
        echo(f"[{place + 1}/{len(faults)}] {line(row)}")
        if not row.is_exact:
            failed.append(fault.name)
    found = [rows[fault.name] for fault in faults if fault.name in rows]
    echo(total(found))
    if failed:
        raise RunError("not every sample was kept exactly once: " + "; ".join(failed))
    return found


def measure(fault: Fault, number: int, seed: int) -> Row:
    """Run one kind of fault in a scratch folder, and count."""
    started = time.perf_counter()
    rng = np.random.default_rng([seed, *fault.name.encode()])
    with _scratch_folder() as scratch:
        with _bed(fault, number, Path(scratch), rng) as bed:
            fault.inject(bed, number)
            bed.book()
        bed.check_rounds()
        counted = bed.count()
        return Row(
            fault.name,
            fault.engine,
            bed.injected,
            bed.server_kills,
            bed.client_kills,
            bed.rounds(),
            counted.samples,
            counted.lost,
            counted.doubled,
            counted.unknown,
            counted.dropped,
            round(time.perf_counter() - started, 1),
        )


def _scratch_folder() -> "tempfile.TemporaryDirectory[str]":
    # What was killed may, for a moment, not be gone.
    return tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True)


@contextmanager
def _bed(fault: Fault, number: int, root: Path, rng: np.random.Generator) -> Iterator[Bed]:
    """Yield what a fault is injected into; all its processes end with this."""
    size = fault.size(number)
    if fault.engine == FLOWER:
        keys = fault.with_keys
        with deployed(_APP, root, rng, size, fault.config, with_keys=keys) as deployment:
            yield deployment
    else:
        with running(Federation(root, rng, size, fault.config)) as federation:
            yield federation


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a results file; none if there is no such file."""
    if not path.exists():
        return []
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def _write(path: Path, rows: Iterable[Row]) -> None:
    part = path.with_name(f".{path.name}")
    text = ",\n".join(f" {json.dumps(asdict(row))}" for row in rows)
    part.write_text(f"[\n{text}\n]\n", encoding="utf-8")
    os.replace(part, path)


def line(row: Row) -> str:
    """Return a row as a line of a log."""
    unknown = f", {row.unknown} unknown" if row.unknown else ""
    return (
        f"{row.fault} ({row.engine}): {row.injected} injected, {row.rounds} rounds, "
        f"{row.samples} samples: {row.lost} lost, {row.doubled} doubled{unknown}, "
        f"{row.dropped} sent again and dropped; {row.seconds} s"
    )


def total(rows: Sequence[Row]) -> str:
    """Return the sum of all rows as a line of a log."""
    return (
        f"{len(rows)} kinds of fault, {sum(row.injected for row in rows)} injected: "
        f"{sum(row.server_kills for row in rows)} kills of the server, "
        f"{sum(row.client_kills for row in rows)} of clients; "
        f"{sum(row.lost for row in rows)} samples lost, "
        f"{sum(row.doubled for row in rows)} doubled"
    )


def table(rows: Iterable[Row]) -> list[str]:
    """Return the lines of the table, in Markdown."""
    head = (
        *("fault", "engine", "injected", "rounds", "samples", "lost", "doubled", "dropped"),
        "seconds",
    )
    lines = [_joined(head), _joined(["---"] * len(head))]
    for row in rows:
        values = asdict(row)
        values["seconds"] = f"{row.seconds:.0f}"
        lines.append(_joined(f"{values[name]}" for name in head))
    return lines


def _joined(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
