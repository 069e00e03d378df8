"""Long arrays in runs, so that intermediate results stay in a processor's cache."""

from collections.abc import Iterator

_RUN = 2**16


def runs(coordinates: int) -> Iterator[slice]:
    """Cut so many coordinates into runs whose intermediate results fit in a processor's cache."""
    for start in range(0, coordinates, _RUN):
        yield slice(start, min(start + _RUN, coordinates))
