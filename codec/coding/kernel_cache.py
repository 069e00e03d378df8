"""Where compiled kernels are kept: by what the codec's sources say, not by where they lie.

Numba keeps what it has compiled beside the source, or under its path, and compiles again when that
one file has changed. An app that Flower unpacks lies somewhere else in each run, and would compile
for half a minute each time; and a kernel holds those of other files that it calls, and would be
out of date when they have changed.
"""

import contextlib
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Self

from codec.disk import user_cache

_SOURCES = Path(__file__).parents[1]  # this package: whatever kernels are made of
_KEPT_DAYS = 30  # of sources that are no longer used


class ByContent:
    """Locator of Numba's cache files, in a folder of the user's cache.

    Parameters
    ----------
    function : callable
        What is compiled.
    file : str
        That it stands in.
    """

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        self._place = f"{Path(file).parent.name}-{function.__code__.co_firstlineno}"

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> Self | None:
        """Return the locator of a function; None if the folder cannot be written to."""
        locator = cls(function, file)
        try:
            locator.ensure_cache_path()
        except OSError:
            return None
        return locator

    def ensure_cache_path(self) -> None:
        """Make the folder.

        Raises
        ------
        OSError
            If it cannot be made, or nothing be written there.
        """
        folder = Path(self.get_cache_path())
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _remove_old(folder)
        tempfile.TemporaryFile(dir=folder).close()

    def get_cache_path(self) -> str:
        """Return the folder."""
        kernels = user_cache() / "flwr-quantized-data-kernels"
        return str(kernels / digest_of_sources(_SOURCES))

    def get_source_stamp(self) -> str:
        """Return what changes with the sources."""
        return digest_of_sources(_SOURCES)

    def get_disambiguator(self) -> str:
        """Return what tells functions of one name apart."""
        return self._place


@contextlib.contextmanager
def kept_by_content() -> Iterator[None]:
    """Within the block, what Numba is told to keep is kept so, unless the user has said where."""
    import numba

    config: Any = numba.config
    said = config.CACHE_LOCATOR_CLASSES or config.CACHE_DIR
    if not said:
        own = f"{__name__}.{ByContent.__name__}"
        config.CACHE_LOCATOR_CLASSES = f"{own},InTreeCacheLocator,UserWideCacheLocator"
    try:
        yield
    finally:
        if not said:
            config.CACHE_LOCATOR_CLASSES = ""


@cache
def digest_of_sources(folder: Path) -> str:
    """Return what all Python files in a folder and below are known by, 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _remove_old(folder: Path) -> None:
    """Remove what kernels of other sources, long not made, have left."""
    for other in folder.parent.iterdir():
        if other != folder and time.time() - other.stat().st_mtime > _KEPT_DAYS * 86_400:
            shutil.rmtree(other, ignore_errors=True)
