"""What was used last is kept at hand, within a size."""

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class LastUsed(Generic[T]):
    """Values by number, of which the last that were used are kept.

    Parameters
    ----------
    capacity : int
        Sum of the sizes that are kept; the value that came last is, whatever its size.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity, self._size = capacity, 0
        self._kept: OrderedDict[int, tuple[T, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, number: int) -> T | None:
        """Return a value, if it is still at hand."""
        if number not in self._kept:
            return None
        self._kept.move_to_end(number)
        return self._kept[number][0]

    def put(self, number: int, value: T, size: int) -> T:
        """Keep a value under a number that has none, and return it."""
        self._kept[number] = value, size
        self._size += size
        while self._size > self._capacity and len(self._kept) > 1:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._size -= dropped
        return value
