"""Decoded arrays on disk, bounded, shared by processes, and never in the way.

An entry is a folder in ``$XDG_CACHE_HOME/flwr-quantized-data`` (``~/.cache`` by default). It is
written under another name, by one process at a time, and renamed when it is whole; what a crash
leaves behind is removed by whoever comes next. Samples are memory-mapped, so that the many clients
of a simulation decode once and share the pages. Entries not used for longest go when the total
would exceed the limit; processes that map one keep it until they end, as files do on Unix.

``QUANTDATA_CACHE`` sets the limit ("10GB", "500MB", or a number of GB), or switches it "off".
Whatever the disk refuses, such as space or permission, costs a warning and the sharing, no more.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import numpy as np
from flwr.common import log
from numpy.typing import DTypeLike, NDArray

from codec.disk import user_cache
from fl_app.images import DataError

try:
    import fcntl
except ImportError:  # Windows: processes may decode the same twice
    fcntl = None  # type: ignore[assignment]

VARIABLE = "QUANTDATA_CACHE"
DEFAULT_GIGABYTES = 4.0

_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "": 1e9}
_VERSION = 2  # of what an entry holds; part of its name
_SAMPLES, _ROWS, _NOTES = "samples.npy", "rows.npy", "notes.json"
_LOCK, _PART, _GONE = ".lock", ".part", ".gone"

Allocate = Callable[[tuple[int, ...], DTypeLike], NDArray[Any]]


@dataclass(frozen=True)
class Decoded:
    """What an entry holds.

    Attributes
    ----------
    samples : ndarray, shape (N, ...)
    rows : ndarray of int64, shape (N,)
        What the caller keeps of each sample, such as its label.
    notes : dict
        Whatever else, as JSON holds it.
    """

    samples: NDArray[Any]
    rows: NDArray[np.int64]
    notes: dict[str, Any]


# Makes the samples in the first rows of an array that it allocates.
Build = Callable[[Allocate], Decoded]


def cached(name: str, key: object, build: Build) -> Decoded:
    """Return what `build` makes, from the cache if it was made before.

    Parameters
    ----------
    name : str
        First part of the entry's name, for people.
    key : object
        What the result depends on; its ``repr`` identifies the entry.
    build : callable
        ``(allocate) -> Decoded``.

    Raises
    ------
    DataError
        If ``QUANTDATA_CACHE`` is not legal, and whatever `build` raises.
    """
    limit = cache_limit()
    if not limit:
        return build(np.empty)
    try:
        entry = cache_folder() / f"{name}-{_digest(key)}"
        found = _open(entry)
        _remove_leftovers(entry.parent)
        if found is not None:
            return found
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(_hidden(entry, _LOCK)):
            # Another process may have been faster.
            return _open(entry) or _write(entry, build, limit)
    except OSError as error:
        log(WARNING, "%s: no cache, so every process decodes the data itself: %s", name, error)
        return build(np.empty)


def cache_folder() -> Path:
    """Return where entries are.

    Raises
    ------
    OSError
        If the user has no home.
    """
    return user_cache() / "flwr-quantized-data"


def cache_limit() -> int:
    """Return the bytes that all entries together may take; 0 if there is to be no cache.

    Raises
    ------
    DataError
        If ``QUANTDATA_CACHE`` is not legal.
    """
    text = os.environ.get(VARIABLE, "").strip().upper() or f"{DEFAULT_GIGABYTES}GB"
    if text == "OFF":
        return 0
    unit = text[-2:] if text[-2:] in _UNITS else ""
    with contextlib.suppress(ValueError):
        limit = float(text.removesuffix(unit)) * _UNITS[unit]
        if 0 <= limit < 1e18:
            return int(limit)
    raise DataError(
        f"{VARIABLE} = {os.environ[VARIABLE]!r} must be off, or a size such as 500MB or 10GB "
        f"(default {DEFAULT_GIGABYTES:g}GB)"
    )


def _digest(key: object) -> str:
    return hashlib.sha256(repr((_VERSION, key)).encode()).hexdigest()[:16]


def _hidden(entry: Path, end: str) -> Path:
    return entry.with_name(f".{entry.name}{end}")


# Entries


def _open(entry: Path) -> Decoded | None:
    """Return an entry; None if there is none, or it is not whole."""
    try:
        notes = json.loads((entry / _NOTES).read_text())
        rows = np.load(entry / _ROWS)
        samples = np.load(entry / _SAMPLES, mmap_mode="c")[: len(rows)]
        if len(samples) != len(rows) or len(rows) != notes.pop("count"):
            return None
    except Exception:  # bytes of any kind, where a disk failed
        return None
    with contextlib.suppress(OSError):  # a cache that others filled may be read-only
        os.utime(entry / _NOTES)
    return Decoded(samples, rows, notes)


def _write(entry: Path, build: Build, limit: int) -> Decoded:
    """Make an entry under another name, give it its own, and return it."""
    part = _hidden(entry, _PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    started = time.perf_counter()
    kept = True

    def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        nonlocal kept
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        kept = size <= limit
        if kept:
            _evict(entry.parent, limit - size)
            return _reserved(part / _SAMPLES, shape, dtype)
        log(
            WARNING,
            "%s: %s decoded, more than the cache's %s in all, so every process decodes them "
            "itself; to keep them: %s=%.0fGB",
            *(entry.name, _size(size), _size(limit), VARIABLE, np.ceil(1.1 * size / 1e9)),
        )
        with tempfile.NamedTemporaryFile(dir=part, delete=False) as file:
            return _reserved(Path(file.name), shape, dtype)

    try:
        decoded = build(allocate)
        if not kept:
            return decoded  # its file goes, and its pages stay for as long as they are mapped
        _finish(part, decoded)
        mapped = np.load(part / _SAMPLES, mmap_mode="c")[: len(decoded.rows)]
        shutil.rmtree(entry, ignore_errors=True)  # there may be one that is not whole
        part.rename(entry)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _evict(entry.parent, limit)
    log(
        INFO,
        "%s: decoded in %.1f s and kept in %s (%s=off: do not keep)",
        *(entry.name, time.perf_counter() - started, entry, VARIABLE),
    )
    return Decoded(mapped, decoded.rows, decoded.notes)


def _reserved(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return a new array on disk, whose space is sure: a full disk kills who writes to a hole."""
    array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    elif shutil.disk_usage(path).free < array.nbytes:
        raise OSError(f"{path.parent}: no space for {_size(array.nbytes)}")
    return array


def _finish(part: Path, decoded: Decoded) -> None:
    """Write what goes with the samples, to the disk itself: power may fail after the rename."""
    np.save(part / _ROWS, decoded.rows)
    notes = {**decoded.notes, "count": len(decoded.rows)}
    (part / _NOTES).write_text(json.dumps(notes))
    for name in (_SAMPLES, _ROWS, _NOTES):
        with (part / name).open("r+b") as file:
            os.fsync(file.fileno())


def _evict(base: Path, limit: int) -> None:
    """Remove entries, those not used for longest first, until all take at most `limit` bytes."""
    used: list[tuple[float, int, Path]] = []
    total = 0
    for folder in base.iterdir():
        with contextlib.suppress(OSError):  # no folder, or evicted by another process
            stats = [file.stat() for file in folder.iterdir()]
            size = sum(stat.st_size for stat in stats)
            total += size
            if not folder.name.startswith("."):
                used.append((max((stat.st_mtime for stat in stats), default=0.0), size, folder))
    for _, size, entry in sorted(used):
        if total <= limit:
            break
        # Renamed first: nobody is to see half of an entry.
        gone = _hidden(entry, _GONE)
        with contextlib.suppress(OSError):
            entry.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        total -= size


def _remove_leftovers(base: Path) -> None:
    """Remove what processes left that were killed while they wrote or evicted an entry."""
    with contextlib.suppress(OSError):
        for path in base.glob(".*"):
            if path.name.endswith(_GONE) or (path / "entry").is_dir():  # the latter: version 1
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.endswith(_PART):
                lock = path.with_name(path.name.removesuffix(_PART) + _LOCK)
                with contextlib.suppress(BlockingIOError), _locked(lock, wait=False):
                    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock that ends with the process; `BlockingIOError` if another has it, if not `wait`.

    Whoever holds it removes the file at the end, so the file counts only while it has its name.
    """
    if fcntl is None:
        yield
        return
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                log(INFO, "another process decodes the data; waiting for it (%s)", path)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
