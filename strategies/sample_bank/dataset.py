"""A finished bank, or one that still grows, as a data set for anything that torch trains."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from codec import CodecError, DecodeLimits, SamplePayload, SampleSpec, decode_samples
from codec.learning.inputs import in_units
from strategies.errors import BankError
from strategies.sample_bank.arrays import (
    DEFAULT_MEMORY_LIMIT,
    Arrays,
    held,
    nothing_like,
)
from strategies.sample_bank.file import BankFile, PayloadRow
from strategies.sample_bank.scratch import ScratchRows, map_rows, new_scratch, read_ahead

Item = tuple[torch.Tensor, torch.Tensor]
# Whoever put a payload into the bank has checked it against limits of their own.
STORED_LIMITS = DecodeLimits(samples=1 << 32, values=1 << 40)


class BankDataset(Dataset[Item]):
    r"""What a bank's file held when it was opened, decoded once; `SampleBank.open` makes it.

    A map-style data set: ``dataset[k]`` is the k-th sample as a model sees it and its target, and
    a `DataLoader` takes it with any number of workers, forked or spawned. Another process may
    write to the bank meanwhile.

    Parameters
    ----------
    path : Path
        The bank's file.
    scale : str, optional
        What a model sees, see `codec.messages.ClientOptions`; by default what the bank was made
        for.
    memory_limit : int
        Decoded bytes beyond which they are kept in a temporary file instead, in the first folder
        that has room of ``TMPDIR``, ``/var/tmp`` and that of the bank.

    Attributes
    ----------
    path : Path
    id : bytes
        Of the bank.
    samples : ndarray
        (N, \*shape) uint8 or float32 in the units of the data set, float32 as a model sees it if
        payloads differ in that, or int32.
    targets : ndarray
        (N,) int64, (N,) float32 or (N, t) float32.
    weights : ndarray
        (N,) float32 importance weights.
    bounds : (float, float) or None
        Range of `samples` that a model sees as [0, 1]; None: it sees them as they are.
    scale : str
    class_names : tuple of str
        In the order of the labels, if they were told.
    classes : int
        Number of classes; 0 if targets are floats.
    is_8bit : bool
        Whether all samples come from 8-bit sources.
    uplink_bytes : int
        Content of the replies that brought the samples.

    Raises
    ------
    BankError
        If there is no such bank, it is damaged, or holds no sample, or there is neither memory nor
        disk for what it decodes to.
    """

    samples: NDArray[Any]

    def __init__(
        self, path: Path, *, scale: str | None = None, memory_limit: int = DEFAULT_MEMORY_LIMIT
    ) -> None:
        file = BankFile(path, writable=False)
        try:
            with file.snapshot():
                self._read(file, scale, memory_limit)
        finally:
            file.close()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Item:
        """Return a sample as a model sees it, float32 or int64, and its target."""
        place = int(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"sample {place} of {len(self)}")
        ((sample, target),) = self.__getitems__([place])
        return sample, target

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Return several samples: what a `DataLoader` asks for a batch."""
        samples, targets = self.batch(np.asarray(indices, np.int64))
        return list(zip(samples.unbind(), targets.unbind(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """Return what a spawned worker is made of: not the samples, if they are in a file."""
        state = dict(self.__dict__)
        if self._file is not None:
            state["samples"] = (self.samples.dtype, self.samples.shape)
            state["_scratch"] = None  # the file is not the worker's
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the file of the samples, if they are in one."""
        self.__dict__.update(state)
        if self._file is not None:
            self.samples = map_rows(self._file, *state["samples"])

    def batch(self, indices: NDArray[np.int64]) -> Item:
        r"""Return samples (B, \*shape) as a model sees them, and targets."""
        read_ahead(self.samples, indices)
        samples = torch.from_numpy(self.samples[indices])
        targets = torch.from_numpy(self.targets[indices])
        if self.samples.dtype == np.int32:
            return samples.long(), targets
        return in_units(samples, self.bounds), targets

    def parts(self, size: int = 1024) -> Iterator[tuple[int, Arrays]]:
        """Yield all samples in order, some at a time, with the number of the first."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield (
                start,
                Arrays(self.samples[part], self.targets[part], self.weights[part], self.bounds),
            )

    def _read(self, file: BankFile, scale: str | None, memory_limit: int) -> None:
        self.path, self.id = file.path, file.id
        self.scale = scale or file.told("scale") or "auto"
        self.class_names = file.class_names
        self.uplink_bytes = sum(reply.origin.content_bytes for reply in file.replies())
        rows = [row for row in file.payloads() if not row.dropped.all()]
        if not rows:
            raise BankError(f"bank {file.path} holds no sample yet: nothing can be read from it")
        self._allocate([row.spec for row in rows], sum(_count(row) for row in rows), memory_limit)
        start = 0
        for row in rows:
            arrays = _decoded(file, row, self.scale)
            if self._as_seen:
                arrays = arrays.in_floats()
            end = start + len(arrays)
            if self._scratch is None:
                self.samples[start:end] = arrays.samples
            else:
                self._to_disk(self._scratch, arrays.samples)
            self.targets[start:end] = arrays.targets.reshape(len(arrays), *self.targets.shape[1:])
            self.weights[start:end] = arrays.weights
            start = end
        if self._scratch is not None:
            self.samples = self._scratch.array

    def _to_disk(self, scratch: ScratchRows, samples: NDArray[Any]) -> None:
        try:
            scratch.append(samples)
        except OSError as error:
            raise BankError(
                f"bank {self.path}: decoded samples find no room in {scratch.folder}: "
                f"{error.strerror}; make room, or set TMPDIR to a folder on a disk that has it"
            ) from error

    def _allocate(self, specs: Sequence[SampleSpec], count: int, memory_limit: int) -> None:
        """Make arrays for what payloads of these specs decode to."""
        kinds = {
            (spec.dtype, spec.low, spec.high, spec.classes, spec.codec): spec for spec in specs
        }
        likes = [nothing_like(spec, self.scale) for spec in kinds.values()]
        first = likes[0]
        one = len({(like.samples.dtype, like.bounds) for like in likes}) == 1
        self._as_seen = first.is_float and not one
        self.bounds = first.bounds if one else None
        self.classes = max(spec.classes for spec in specs)
        self.is_8bit = all(spec.dtype == "uint8" for spec in specs)
        dtype = np.dtype(np.float32) if self._as_seen else first.samples.dtype
        shape = (count, *first.samples.shape[1:])
        self.targets = np.empty((count, *first.targets.shape[1:]), first.targets.dtype)
        self.weights = np.empty(count, np.float32)
        self._scratch: ScratchRows | None = None
        self._file: Path | None = None  # that other processes map
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes <= memory_limit:
            self.samples = np.empty(shape, dtype)
            return
        self._scratch = new_scratch(
            np.empty((0, *shape[1:]), dtype),
            nbytes,
            owner=f"bank {self.path}",
            beside=self.path.parent,
            prefix=f"{self.path.name}-",
        )
        self._file = self._scratch.path


def _count(row: PayloadRow) -> int:
    return row.count - int(row.dropped.sum())


def _decoded(file: BankFile, row: PayloadRow, scale: str) -> Arrays:
    """Return the samples of a payload that are not dropped."""
    try:
        payload = SamplePayload.from_bytes(file.data(row.id), STORED_LIMITS)
        arrays = held(payload.spec, decode_samples(payload), scale)
    except BankError:
        raise
    except CodecError as error:
        raise file.damaged(f"payload {row.id}: {error}") from error
    return arrays.take(~row.dropped) if row.dropped.any() else arrays
