"""Median and range of repeated measurements."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Spread:
    """What repeated measurements came to.

    Attributes
    ----------
    median, min, max : float
    repeats : int
    """

    median: float
    min: float
    max: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float], digits: int = 3) -> Self:
        """Return that of values, at least one, rounded."""
        median, least, most = statistics.median(values), min(values), max(values)
        return cls(round(median, digits), round(least, digits), round(most, digits), len(values))

    @classmethod
    def of_ratios(cls, own: Sequence[float], other: Sequence[float]) -> Self:
        """Return that of the ratios of measurements that were taken side by side."""
        return cls.of([one / two for one, two in zip(own, other, strict=True)])

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.min:.2f} to {self.max:.2f})"
