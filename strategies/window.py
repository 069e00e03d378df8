"""How many requests are out at once: Flower's engines look at every message for every node."""

import math
import statistics
from collections import deque
from collections.abc import Iterable

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
