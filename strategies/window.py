"""How many requests are out at once: Flower's simulation engine is slow when there are many."""

import math
import os
import statistics
from collections import deque
from collections.abc import Iterable

from flwr.serverapp import Grid

_ENGINE = "InMemoryGrid"  # the simulation engine's, which is not a public name
_LEAST, _PER_CPU = 32, 16  # places where nothing was asked for
_HOLD, _HOLD_MEDIANS = 10.0, 4.0  # seconds, and median waits, after which a place is free again
_REMEMBERED = 64


class Window:
    """Counts the requests that may be sent now.

    A request takes a place until its reply comes, or until it has waited four times as long as
    replies do in the median, and ten seconds at least: nodes that are slow, or silent, keep no
    other from being asked.

    Parameters
    ----------
    size : int
        Places; 0: no limit.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._waits: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def is_open(self) -> bool:
        """Whether there is no limit."""
        return not self._size

    def heard(self, waited: float) -> None:
        """Take note of a reply that came after some seconds."""
        self._waits.append(waited)

    def places(self, waiting: Iterable[float]) -> float:
        """Return how many requests may be sent; infinity without a limit.

        Parameters
        ----------
        waiting : iterable of float
            Seconds since each request was sent that has no reply yet.
        """
        if self.is_open:
            return math.inf
        usual = statistics.median(self._waits) if self._waits else 0.0
        held = max(_HOLD, _HOLD_MEDIANS * usual)
        return max(0, self._size - sum(seconds < held for seconds in waiting))


def window_of(grid: Grid, size: int) -> Window:
    """Return the window of a grid.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    size : int
        As the option is; 0: in Flower's simulation engine, which looks at every message for every
        node ten times a second, some for each processor; elsewhere no limit, as devices work side
        by side.
    """
    simulates = any(kind.__name__ == _ENGINE for kind in type(grid).__mro__)
    if not size and simulates:
        size = max(_LEAST, _PER_CPU * (os.cpu_count() or 1))
    return Window(size)
