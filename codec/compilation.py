"""Whether the codec's kernels run compiled: faster, and the same bytes."""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from logging import WARNING

# Flower's, by its name, as this package does without Flower.
LOGGER = logging.getLogger("flwr")

_WANTED = ContextVar("_WANTED", default=True)


def is_compiled() -> bool:
    """Return whether kernels run compiled: Numba (extra ``fast``) is there, and not left out."""
    return _WANTED.get() and _works()


@contextmanager
def compiled(wanted: bool) -> Iterator[None]:
    """Within the block, in this thread, run compiled kernels where Numba is, or none."""
    token = _WANTED.set(wanted)
    try:
        yield
    finally:
        _WANTED.reset(token)


@cache
def _works() -> bool:
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        import codec.samples.block_dct.compiled  # noqa: F401
    except Exception as error:  # of many kinds: a NumPy too new for it, no folder for its cache
        LOGGER.log(
            WARNING,
            "Numba is installed, but does not work here, so that samples are coded without it, at "
            "the same bytes, more slowly (%s). NUMBA_CACHE_DIR=<a folder that can be written to> "
            "helps if it is about caching.",
            error,
        )
        return False
    return True
