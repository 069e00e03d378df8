"""Whether the codec's kernels run compiled: faster, and the same bytes."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_WANTED = ContextVar("_WANTED", default=True)


def is_compiled() -> bool:
    """Return whether kernels run compiled: Numba (extra ``fast``) is there, and not left out."""
    return _WANTED.get() and importlib.util.find_spec("numba") is not None


@contextmanager
def compiled(wanted: bool) -> Iterator[None]:
    """Within the block, run compiled kernels where Numba is, or none."""
    token = _WANTED.set(wanted)
    try:
        yield
    finally:
        _WANTED.reset(token)
