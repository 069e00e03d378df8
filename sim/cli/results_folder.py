"""The folder that a run writes to."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from sim.cli.options import absolute
from sim.run_config import ConfigValue, RunConfigError

REPORT = "report.html"
RESULTS = (
    *("result.json", "rounds.jsonl", "accuracy_vs_uplink.png", "model.safetensors", REPORT),
    *("config.json", "checkpoint.safetensors"),
    *("bank.sqlite", "bank.sqlite-wal", "bank.sqlite-shm", "bank.sqlite.lock"),
)
CONFIG, STARTED = "config.json", ("rounds.jsonl", "log.txt")
DEVICES = "devices"  # folder of what simulated devices remember
TENSORBOARD = "tensorboard"
LOCK, LOG = ".lock", "log.txt"
LEAST_FREE = 200_000_000  # bytes: logs, what Flower unpacks, and results


@contextmanager
def results_folder(
    out: str, config: Mapping[str, ConfigValue], *, overwrite: bool | None = None
) -> Iterator[Path]:
    """Create a folder for results and keep others out; remove it if a run fails without any.

    Parameters
    ----------
    out : str
        The folder; empty for a new one under ``runs``.
    config : Mapping
        Run config, whose data set and strategy name a new folder.
    overwrite : bool, optional
        Whether results of an earlier run are removed, or refused; left alone by default.

    Raises
    ------
    RunConfigError
        If the folder cannot be written to, is in use by another command, or holds results that
        are refused, or the disk is almost full.
    """
    folder, new = _make_folder(out, config)
    try:
        _check_space(folder)
        with _locked(folder):
            if overwrite is not None:
                _clear(folder, overwrite=overwrite)
            yield folder
    except BaseException:
        if new:
            if not any((folder / name).exists() for name in STARTED):
                (folder / CONFIG).unlink(missing_ok=True)
            with suppress(OSError):  # what was written before the failure stays
                folder.rmdir()
        raise


def _make_folder(out: str, config: Mapping[str, ConfigValue]) -> tuple[Path, bool]:
    """Return the folder, and whether it was made here."""
    try:
        if out:
            folder = absolute(out)
            new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            return folder, new
        return _new_folder(
            [str(config[key]) for key in ("dataset", "strategy") if key in config]
        ), True
    except OSError as error:
        raise _unwritable(absolute(out or "runs"), error) from error


def _new_folder(labels: list[str]) -> Path:
    name = "-".join([f"{datetime.now():%Y%m%d-%H%M%S}", *labels])
    attempt = 1
    while True:
        folder = Path("runs", name if attempt == 1 else f"{name}-{attempt}").absolute()
        with suppress(FileExistsError):  # another launcher in the same second
            folder.mkdir(parents=True)
            return folder
        attempt += 1


def _unwritable(folder: Path, error: OSError) -> RunConfigError:
    """Return what to tell of a folder that cannot be written to."""
    files = [place for place in (folder, *folder.parents) if place.is_file()]
    what = f"{files[0]} is a file" if files else str(error.strerror or error)
    return RunConfigError(
        f"--out {folder} must be a folder that can be written to: {what}; name another"
    )


def _check_space(folder: Path) -> None:
    remedies = {folder: "name another folder with --out", Path(tempfile.gettempdir()): "set TMPDIR"}
    for place, remedy in remedies.items():
        free = shutil.disk_usage(place).free
        if free < LEAST_FREE:
            raise RunConfigError(
                f"{place} has {free / 1e6:.0f} MB free, and a run needs {LEAST_FREE / 1e6:.0f} MB: "
                f"make room, or {remedy}"
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which ends with this process whatever becomes of it."""
    path = folder / LOCK
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise _unwritable(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise RunConfigError(
                f"--out {folder} is in use by process {file.read().strip() or '?'}; wait until it "
                "has ended, or name another folder"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _clear(folder: Path, *, overwrite: bool) -> None:
    """Remove the results of an earlier run, if that is wanted."""
    found = [folder / name for name in RESULTS if (folder / name).exists()]
    if found and not overwrite:
        raise RunConfigError(
            f"--out {folder} holds the {found[0].name} of another run; name a new folder, or add "
            "--overwrite"
        )
    for file in [*found, folder / LOG]:
        file.unlink(missing_ok=True)
    for name in (DEVICES, TENSORBOARD):
        shutil.rmtree(folder / name, ignore_errors=True)
