"""What both ends need of a disk: the user's cache, locks that end with their process, folders."""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there files are not locked
    fcntl = None  # type: ignore[assignment]


def user_cache() -> Path:
    """Return the folder of what a user's programs can make again.

    Raises
    ------
    OSError
        If the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base) if base else Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(str(error)) from error


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
