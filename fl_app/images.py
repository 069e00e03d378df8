"""Labelled images, what of a data set was passed over, and what can be wrong with its data."""

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.common import log
from numpy.typing import NDArray


class DataError(RuntimeError):
    """Data that are absent or unreadable; names the place and what brings them."""


class MissingSplit(DataError):
    """A split that is not there, as is usual where there is nothing to evaluate on.

    Attributes
    ----------
    split : str
        "train" or "test".
    other : bool
        Whether the data set's other split is there: what is missing then was left out on purpose.
    """

    def __init__(self, message: str, split: str, *, other: bool) -> None:
        super().__init__(message)
        self.split, self.other = split, other


# What is counted, but is no sample lost.
HIDDEN, SYSTEM = "hidden file or folder", "file or folder of the operating system"
FURTHER_FRAMES = "animated, of which the first frame is used"
COLOUR_DEPTH_LOST = "of 16-bit colour, which Pillow reads as 8-bit"
EMPTY_CLASS = "class folder without usable images"

_DEBRIS = {HIDDEN, SYSTEM}
_REMARKS = {FURTHER_FRAMES, COLOUR_DEPTH_LOST, EMPTY_CLASS}


@dataclass
class Skipped:
    """What a data set holds beside its samples, and what of them is not used, by reason.

    Attributes
    ----------
    counts : dict of str to int
        Number by reason.
    examples : dict of str to str
        First file of each reason, relative to the split's folder.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def lost(self) -> dict[str, int]:
        """Number by reason of the files that might have been samples."""
        return {k: v for k, v in self.counts.items() if k not in _DEBRIS | _REMARKS}

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __add__(self, other: "Skipped") -> "Skipped":
        counts = Counter(self.counts) + Counter(other.counts)
        return Skipped(dict(counts), {**other.examples, **self.examples})

    def add(self, reason: str, example: str) -> None:
        """Count one more."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, printable(example))

    def __str__(self) -> str:
        return "; ".join(map(self._line, self._reasons())) or "nothing"

    def log(self, place: str) -> None:
        """Log a line per reason; in one process, each line once."""
        for reason in self._reasons():
            level = INFO if reason in _DEBRIS else WARNING
            verb = "" if reason in _REMARKS else "skipped "
            _log_once(level, f"{place}: {verb}{self._line(reason)}")

    def _reasons(self) -> list[str]:
        return sorted(self.counts, key=lambda reason: (-self.counts[reason], reason))

    def _line(self, reason: str) -> str:
        return f"{self.counts[reason]} x {reason} ({self.examples[reason]})"


@cache
def _log_once(level: int, line: str) -> None:
    log(level, line)


def printable(text: str) -> str:
    """Return a file's name fit for a line of a log, whatever bytes it is made of."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True)
class ImageKind:
    """What the images of a data set are like.

    Attributes
    ----------
    shape : tuple of int
        Of an image: channels, height, width.
    dtype : str
        "uint8" or "float32".
    classes : int
    class_names : tuple of str
    value_range : tuple of float
        As in `Images`.
    """

    shape: tuple[int, int, int]
    dtype: str
    classes: int
    class_names: tuple[str, ...] = ()
    value_range: tuple[float, float] = (0.0, 255.0)

    @property
    def nbytes(self) -> int:
        """Bytes of an image as raw values."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes
    ----------
    samples : ndarray of uint8 or float32, shape (N, C, H, W)
        float32 where pixels have more than 8 bits, in the units of the files.
    labels : ndarray of int64, shape (N,)
    classes : int
        Labels are in [0, classes).
    class_names : tuple of str
        Names in the order of the labels; empty where the format numbers its classes itself.
    value_range : tuple of float
        Lowest and highest value that samples may hold.
    skipped : Skipped
        What the data set holds beside these.
    """

    samples: NDArray[Any]
    labels: NDArray[np.int64]
    classes: int
    class_names: tuple[str, ...] = ()
    value_range: tuple[float, float] = (0.0, 255.0)
    skipped: Skipped = field(default_factory=Skipped)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def kind(self) -> ImageKind:
        """What the images are like."""
        return ImageKind(
            self.samples.shape[1:],
            self.samples.dtype.name,
            self.classes,
            self.class_names,
            self.value_range,
        )

    def select(self, indices: NDArray[np.int64]) -> "Images":
        """Return the images at `indices`, in that order, copied."""
        return Images(
            self.samples[indices],
            self.labels[indices],
            self.classes,
            self.class_names,
            self.value_range,
            self.skipped,
        )
