"""Decoded samples that do not fit in memory: temporary files, read through a mapping."""

import contextlib
import errno
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Collection
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import numpy as np
from flwr.common import log
from numpy.typing import DTypeLike, NDArray

from strategies.errors import BankError

_LEFT_FREE = 64 << 20  # bytes of a disk that are left to others, such as the bank's own file
_IN_MEMORY = ("tmpfs", "ramfs")
_MOUNTS = Path("/proc/self/mountinfo")  # of Linux
# For temporary files that are large; /tmp is in memory on many machines.
_LARGE = Path("/var/tmp")


class ScratchRows:
    r"""Rows of one shape in a temporary file, to whose end more are written.

    The file ends with the object, or with the process; where the system allows it has no name, so
    that nothing is left of a process that is killed.

    Parameters
    ----------
    folder : Path
    dtype : dtype
    shape : tuple of int
        Of a row, of at least one byte.
    prefix : str, optional
        What the file's name begins with, for others to map it; by default it has none.

    Attributes
    ----------
    folder : Path
    path : Path or None
        None: the file has no name.

    Raises
    ------
    OSError
        If there can be no file.
    """

    def __init__(
        self, folder: Path, dtype: DTypeLike, shape: tuple[int, ...], prefix: str = ""
    ) -> None:
        self.folder = folder
        self._array: NDArray[Any] = np.empty((0, *shape), dtype)
        self._count = 0
        self._file, name = tempfile.mkstemp(prefix=prefix, suffix=".samples", dir=folder)
        self.path: Path | None = Path(name)
        unnamed = not prefix and os.name == "posix"  # elsewhere an open file keeps its name
        if unnamed:
            self.path.unlink()
            self.path = None
        weakref.finalize(self, _end, self._file, self.path, os.getpid())

    def __len__(self) -> int:
        return self._count

    @property
    def array(self) -> NDArray[Any]:
        r"""All rows, (N, \*shape), to read; it is there for as long as it is referred to."""
        if len(self._array) < self._count:
            shape = self._array.shape[1:]
            self._array = _mapped(self._file, self._array.dtype, (self._count, *shape))
        return self._array

    def append(self, rows: NDArray[Any]) -> None:
        r"""Write (N, \*shape) rows to the end.

        Raises
        ------
        OSError
            If the disk does not take them, and then none of them.
        """
        end = self._count * self._array.dtype.itemsize * int(np.prod(self._array.shape[1:]))
        check_room(self.folder, rows.nbytes)
        left = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        try:
            os.lseek(self._file, end, os.SEEK_SET)
            while len(left):
                left = left[os.write(self._file, left) :]
        except OSError:
            os.truncate(self._file, end)
            raise
        self._count += len(rows)


def new_scratch(
    rows: NDArray[Any],
    nbytes: int,
    *,
    owner: str,
    beside: Path | None = None,
    prefix: str = "",
    without: Collection[Path] = (),
) -> ScratchRows:
    r"""Return rows in a new file, in the first folder that has room.

    Folders are those for temporary files (``TMPDIR``, ``/var/tmp``), then the bank's own: what can
    be decoded again is not to take the room of what is kept. Those in memory come last.

    Parameters
    ----------
    rows : ndarray
        (N, \*shape), N >= 0.
    nbytes : int
        What these and more that are to come take.
    owner : str
        Whose samples they are, for messages.
    beside : Path, optional
        Folder of the bank's file.
    prefix : str, optional
        See `ScratchRows`.
    without : collection of Path
        Folders that have turned out to be full.

    Raises
    ------
    BankError
        If there is none; names folders, reasons, and what to do.
    """
    problems = []
    for folder, in_memory in _folders(beside).items():
        try:
            check_room(folder, nbytes)
            if folder in without:
                raise OSError(errno.ENOSPC, "full")
            scratch = ScratchRows(folder, rows.dtype, rows.shape[1:], prefix)
            scratch.append(rows)
        except OSError as error:
            problems.append(f"{folder}: {error.strerror}")
            continue
        if in_memory:
            log(
                WARNING,
                "%s: decoded samples beyond memory_limit go to %s, which is in memory itself: set "
                "TMPDIR to a folder on a disk (%s)",
                *(owner, folder, "; ".join(problems) or "no other folder is there"),
            )
        else:
            log(INFO, "%s: decoded samples beyond memory_limit go to %s", owner, folder)
        return scratch
    raise BankError(
        f"{owner}: decoded samples beyond memory_limit find no room for {nbytes / 1e6:,.1f} MB "
        f"({'; '.join(problems) or 'there is no folder for temporary files'}): make room, set "
        "TMPDIR to a folder on a disk that has it, or raise memory_limit"
    )


def check_room(folder: Path, nbytes: int) -> None:
    """Raise `OSError` unless a folder's disk takes so many bytes and leaves some to others."""
    free = shutil.disk_usage(folder).free
    if free < nbytes + _LEFT_FREE:
        raise OSError(errno.ENOSPC, f"{free / 1e6:,.1f} MB free")


def map_rows(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return all rows of a named file, as another process sees them."""
    with path.open("rb") as file:
        return _mapped(file.fileno(), dtype, shape)


def read_ahead(rows: NDArray[Any], index: NDArray[np.int64]) -> None:
    r"""Have the disk read some of the rows of a mapped array, all at once and in the background.

    Without it a disk is asked for one page after the other. Arrays in memory are left alone.

    Parameters
    ----------
    rows : ndarray
        (N, \*shape), in memory or mapped from a file.
    index : int array
    """
    mapping = _mapping_of(rows)
    if mapping is None or not hasattr(mmap, "MADV_WILLNEED"):
        return
    start = rows.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
    begins = start + index % len(rows) * rows.strides[0]
    pages = begins - begins % mmap.PAGESIZE
    lengths = begins + rows.strides[0] - pages
    for page, length in zip(pages.tolist(), lengths.tolist(), strict=True):
        mapping.madvise(mmap.MADV_WILLNEED, page, length)


def _mapped(file: int, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    nbytes = np.dtype(dtype).itemsize * int(np.prod(shape))
    mapping = mmap.mmap(file, nbytes, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        # Else the system reads far around each sample, and more useful pages go.
        mapping.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapping, dtype).reshape(shape)


def _mapping_of(rows: NDArray[Any]) -> mmap.mmap | None:
    """Return what an array of contiguous rows is mapped by; None if it is in memory."""
    owner: Any = rows
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return owner if isinstance(owner, mmap.mmap) and rows.flags.c_contiguous else None


def _folders(beside: Path | None) -> dict[Path, bool]:
    """Return where temporary files may go, and whether it is in memory; such folders last."""
    candidates = [_LARGE, *([] if beside is None else [beside])]
    with contextlib.suppress(FileNotFoundError):  # none can be written to
        candidates.insert(0, Path(tempfile.gettempdir()))
    found = {place.resolve(): is_in_memory(place) for place in candidates if place.is_dir()}
    return dict(sorted(found.items(), key=lambda one: one[1]))


def is_in_memory(folder: Path) -> bool:
    """Whether what is written to a folder takes memory, as far as the system tells."""
    try:
        device = folder.stat().st_dev
        mounts = [line.split() for line in _MOUNTS.read_text().splitlines()]
    except OSError:
        return False
    name = f"{os.major(device)}:{os.minor(device)}"
    return any(mount[2] == name and mount[mount.index("-") + 1] in _IN_MEMORY for mount in mounts)


def _end(file: int, path: Path | None, owner: int) -> None:
    """Close a file and remove it, unless this is a forked worker's copy of who made it."""
    os.close(file)
    if path is not None and os.getpid() == owner:
        path.unlink(missing_ok=True)
