"""What both ends need of a disk: locks that end with their process, folders that last."""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there files are not locked
    fcntl = None  # type: ignore[assignment]


def hold(handle: int, *, wait: bool = False) -> None:
    """Lock an open file for this process, until it is closed or the process ends.

    Parameters
    ----------
    handle : int
        Its descriptor.
    wait : bool
        Until another process lets go of it.

    Raises
    ------
    BlockingIOError
        If another process holds it, and is not waited for.
    """
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def sync_folder(folder: Path) -> None:
    """Have the disk keep which files a folder has, so that a power cut does not undo it."""
    if os.name != "posix":  # where folders cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
