"""The decoded samples of a bank: in memory up to a limit, what comes then on the disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.learning.inputs import Bounds
from strategies.sample_bank.arrays import Arrays, as_seen
from strategies.sample_bank.scratch import ScratchRows, new_scratch, read_ahead


class MemoryRows:
    """Rows in memory; the first are kept by reference, room for more is doubled.

    Parameters
    ----------
    rows : ndarray
    """

    def __init__(self, rows: NDArray[Any]) -> None:
        self._buffer, self._count = rows, len(rows)

    @property
    def array(self) -> NDArray[Any]:
        """All rows."""
        return self._buffer[: self._count]

    def append(self, rows: NDArray[Any], most: int | None = None) -> None:
        """Add rows; `most` is for how many there will ever be room."""
        end = self._count + len(rows)
        if end > len(self._buffer):
            doubled = 2 * self._count if most is None else min(2 * self._count, most)
            buffer = np.empty((max(end, doubled), *rows.shape[1:]), rows.dtype)
            buffer[: self._count] = self.array
            self._buffer = buffer
        self._buffer[self._count : end] = rows
        self._count = end


@dataclass(frozen=True)
class _Area:
    """Samples one after the other that are alike, from a place in the bank on."""

    start: int
    rows: MemoryRows | ScratchRows
    bounds: Bounds | None

    def holds(self, arrays: Arrays) -> bool:
        """Whether samples of such a type and range may be added to it."""
        return (self.rows.array.dtype, self.bounds) == (arrays.samples.dtype, arrays.bounds)


class SampleStore:
    """Decoded samples in their order, each decoded once.

    Samples stay in memory while they fit in the limit; from the first that do not on, all go to
    temporary files, see `scratch`. Targets and weights are in memory. What is given back is the
    same, bit for bit, wherever it was. Once samples differ in type or range, all are given back as
    floats, as a model sees them.

    Parameters
    ----------
    memory_limit : int
        Bytes of samples in memory.
    owner : str
        Whose samples they are, for messages.
    beside : Path, optional
        Folder of the bank's file, for want of another.

    Attributes
    ----------
    resident_bytes : int
        Samples in memory.
    """

    def __init__(self, memory_limit: int, owner: str, beside: Path | None = None) -> None:
        self.memory_limit = memory_limit
        self.resident_bytes = 0
        self._owner, self._beside = owner, beside
        self._areas: list[_Area] = []
        self._in_floats = False
        self._targets = self._weights = MemoryRows(np.empty(0, np.float32))

    def __len__(self) -> int:
        return len(self._weights.array)

    @property
    def on_disk(self) -> bool:
        """Whether there are samples that memory had no room for."""
        return any(isinstance(area.rows, ScratchRows) for area in self._areas)

    def append(self, arrays: Arrays, *, by_reference: bool = False) -> None:
        """Add samples behind all others.

        Parameters
        ----------
        arrays : Arrays
            Of the shape and kind of those before, and as many as there are targets.
        by_reference : bool
            Whether they are in memory anyway: the first of a store are then kept as they are.

        Raises
        ------
        BankError
            If there is no room on a disk; nothing is added.
        """
        first = not self._areas
        in_floats = self._in_floats or not (first or self._areas[-1].holds(arrays))
        if in_floats:
            arrays = arrays.in_floats()
        samples = arrays.samples
        last = None if first or not self._areas[-1].holds(arrays) else self._areas[-1].rows
        if (first and by_reference) or (
            not self.on_disk and self.resident_bytes + samples.nbytes <= self.memory_limit
        ):
            if isinstance(last, MemoryRows):
                room = self.memory_limit - self.resident_bytes
                last.append(samples, len(last.array) + room // max(1, samples[0].nbytes))
            else:
                self._begin(MemoryRows(samples), arrays.bounds)
            self.resident_bytes += samples.nbytes
        else:
            self._to_disk(last, arrays)
        self._in_floats = in_floats
        if first:
            self._targets, self._weights = MemoryRows(arrays.targets), MemoryRows(arrays.weights)
        else:
            self._targets.append(arrays.targets)
            self._weights.append(arrays.weights)

    def take(self, index: NDArray[np.int64]) -> Arrays:
        """Return the samples at some places, copied."""
        targets, weights = self._targets.array[index], self._weights.array[index]
        first = self._areas[0].rows.array
        bounds = None if self._in_floats else self._areas[0].bounds
        if len(self._areas) == 1:
            return Arrays(first[index], targets, weights, bounds)
        dtype = np.dtype(np.float32) if self._in_floats else first.dtype
        samples = np.empty((len(index), *first.shape[1:]), dtype)
        for area, rows, within in self._parts(index):
            found = area.rows.array[within]
            samples[rows] = as_seen(found, area.bounds) if self._in_floats else found
        return Arrays(samples, targets, weights, bounds)

    def part(self, start: int, count: int) -> Arrays:
        """Return samples that were added together, as they are held and not copied."""
        ((area, _, _),) = self._parts(np.array([start]))
        within = slice(start - area.start, start - area.start + count)
        whole = slice(start, start + count)
        return Arrays(
            area.rows.array[within],
            self._targets.array[whole],
            self._weights.array[whole],
            area.bounds,
        )

    def expect(self, index: NDArray[np.int64]) -> None:
        """Have samples read that will be taken soon, while something else is done."""
        for area, _, within in self._parts(index):
            read_ahead(area.rows.array, within)

    def _parts(
        self, index: NDArray[np.int64]
    ) -> list[tuple[_Area, NDArray[np.int64], NDArray[np.int64]]]:
        """Return the areas that places are in: which of the places, and where in the area."""
        if len(self._areas) == 1:
            return [(self._areas[0], np.arange(len(index)), index)]
        starts = [area.start for area in self._areas]
        which = np.searchsorted(starts, index, "right") - 1
        found = []
        for number in np.unique(which).tolist():
            rows = np.flatnonzero(which == number)
            found.append((self._areas[number], rows, index[rows] - starts[number]))
        return found

    def _begin(self, rows: MemoryRows | ScratchRows, bounds: Bounds | None) -> None:
        self._areas.append(_Area(len(self), rows, bounds))

    def _to_disk(self, last: MemoryRows | ScratchRows | None, arrays: Arrays) -> None:
        """Write samples to the last file, or to one in another folder if that has no room."""
        samples, full = arrays.samples, set()
        if isinstance(last, ScratchRows):
            try:
                last.append(samples)
                return
            except OSError:
                full.add(last.folder)
        scratch = new_scratch(
            samples, samples.nbytes, owner=self._owner, beside=self._beside, without=full
        )
        self._begin(scratch, arrays.bounds)
