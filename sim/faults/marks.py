"""Samples that can be told apart when they arrive: pictures that say whose they are."""

import hashlib
import os
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sim.launcher import RunError

SIDE = 8  # pixels
CLASSES = ("a", "b")

_SHAPE = (3, SIDE, SIDE)
_HEAD = struct.Struct("<HHI")  # magic, device, number
_MAGIC = 0xFA17

Mark = tuple[int, int]  # device, and the picture's number there


@dataclass(frozen=True)
class Count:
    """What became of the samples.

    Attributes
    ----------
    samples : int
        That exist.
    lost : int
        Of them, those that never arrived.
    doubled : int
        How often one more copy of a sample is there to train on.
    unknown : int
        Samples that are none of those that ever existed.
    dropped : int
        Samples that came once more, and were dropped.
    """

    samples: int
    lost: int
    doubled: int
    unknown: int = 0
    dropped: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether every sample is there once, and nothing else."""
        return not (self.lost or self.doubled or self.unknown)


def picture(mark: Mark) -> NDArray[np.uint8]:
    """Return the pixels, (3, `SIDE`, `SIDE`), that carry a mark; no two marks look alike."""
    head = _HEAD.pack(_MAGIC, *mark)
    size = int(np.prod(_SHAPE)) - len(head)
    rest = hashlib.shake_128(head).digest(size)
    return np.frombuffer(head + rest, np.uint8).reshape(_SHAPE)


def read_mark(pixels: NDArray[np.uint8]) -> Mark | None:
    """Return the mark of a picture; None if a single bit of it is another's."""
    magic, device, number = _HEAD.unpack(pixels.tobytes()[: _HEAD.size])
    mark = (device, number)
    intact = magic == _MAGIC and np.array_equal(pixels.reshape(_SHAPE), picture(mark))
    return mark if intact else None


def write_pictures(folder: Path, device: int, numbers: Iterable[int]) -> None:
    """Add a device's pictures to its folder, each at once or not at all."""
    for name in CLASSES:
        (folder / "train" / name).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        place = folder / "train" / CLASSES[number % len(CLASSES)] / f"{number:05}.png"
        part = place.with_name(f".{place.name}")
        save(part, (device, number))
        os.replace(part, place)


def save(place: Path, mark: Mark) -> None:
    """Write one picture, as PNG."""
    with place.open("wb") as file:
        Image.fromarray(np.moveaxis(picture(mark), 0, -1)).save(file, "png")


def marks_in(folder: Path) -> list[Mark]:
    """Return the marks of the pictures in a device's folder."""
    found = []
    for place in sorted((folder / "train").rglob("*.png")):
        if place.name.startswith("."):
            continue
        found.append(mark_of(place))
    return found


def mark_of(place: Path) -> Mark:
    """Return the mark of a picture's file."""
    with Image.open(place) as image:
        mark = read_mark(np.ascontiguousarray(np.moveaxis(np.asarray(image), -1, 0)))
    assert mark is not None, f"{place} is no picture of ours"
    return mark


def marks_received(bank: Path) -> list[Mark | None]:
    """Return the mark of every sample that a bank's file has to train on."""
    from strategies.sample_bank import SampleBank

    held = SampleBank.open(bank)
    samples = [np.asarray(held[index][0]) for index in range(len(held))]
    return [read_mark(np.rint(255 * sample).astype(np.uint8)) for sample in samples]


def dropped_in(bank: Path) -> int:
    """Check all of a bank's file; return how many samples it has dropped as duplicates.

    Raises
    ------
    RunError
        If it is damaged.
    """
    from strategies.sample_bank.integrity import inventory

    found = inventory(bank, thorough=True)
    if found.damaged:
        raise RunError(f"bank {bank} is damaged: {'; '.join(map(str, found.damaged))}")
    return found.duplicates


def count(existing: Iterable[Mark], gone: Iterable[Mark], received: Iterable[Mark | None]) -> Count:
    """Compare what arrived with what there is.

    Parameters
    ----------
    existing : iterable of Mark
        Samples of all devices; one that several devices have is one sample.
    gone : iterable of Mark
        Samples that were deleted: they may have arrived before, once.
    received : iterable of Mark or None
    """
    there, known = set(existing), Counter(received)
    legal = there | set(gone)
    unknown = sum(number for mark, number in known.items() if mark not in legal)
    return Count(
        len(there),
        sum(mark not in known for mark in there),
        sum(number - 1 for mark, number in known.items() if mark in legal),
        unknown,
    )
