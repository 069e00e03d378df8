"""How long a minibatch of a bank takes, in memory and beyond the memory limit."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from fl_app.words import size
from sim import tables
from strategies.sample_bank import BankDataset, SampleBank

RATIOS = (1.2, 3.0)  # decoded bytes over the memory limit
_PARTS = 100  # in which samples come


@dataclass(frozen=True)
class Speed:
    """Milliseconds of the minibatches of one way to draw them.

    Attributes
    ----------
    name : str
    median, least, most : float
    """

    name: str
    median: float
    least: float
    most: float


def measure_speed(
    path: Path, batch_size: int, epochs: int, echo: Callable[[str], None]
) -> list[Speed]:
    """Draw minibatches of a bank's samples, with all in memory and with less; print the times.

    The first epoch of each, in which memory and files are touched for the first time, is not
    counted.

    Parameters
    ----------
    path : Path
        The bank's file.
    batch_size, epochs : int
        Samples in a minibatch, and epochs that are counted, >= 1.
    echo : callable
        Called with each line of the result.

    Raises
    ------
    BankError
        If there is no such bank, it is damaged, or neither memory nor disk has room.
    """
    started = time.perf_counter()
    dataset = SampleBank.open(path)
    seconds = time.perf_counter() - started
    total = dataset.samples.nbytes
    echo(f"{len(dataset):,} samples, {size(total)} decoded in {seconds:.1f} s")
    limits = {"in memory": total}
    limits |= {f"{ratio:g} times the limit": int(total / ratio) for ratio in RATIOS}
    found = []
    for name, limit in limits.items():
        found.append(_speed(f"bank, {name}", _drawn(dataset, limit, batch_size), epochs))
    on_disk = SampleBank.open(path, memory_limit=total - 1)
    for name, one in (("in memory", dataset), ("on disk", on_disk)):
        order = torch.Generator().manual_seed(0)
        loader = DataLoader(one, min(batch_size, len(one)), shuffle=True, generator=order)
        found.append(_speed(f"DataLoader, {name}", loader, epochs))
    for line in report(found):
        echo(line)
    return found


def report(speeds: Sequence[Speed]) -> list[str]:
    """Return the lines of the table."""
    table = tables.numbers("minibatches", "median ms", "min ms", "max ms")
    for one in speeds:
        table.add_row(one.name, *(f"{value:.2f}" for value in (one.median, one.least, one.most)))
    return tables.lines(table)


class _Drawn:
    """The minibatches of a bank, an epoch for each iteration."""

    def __init__(self, bank: SampleBank, batch_size: int) -> None:
        self._bank, self._size = bank, min(batch_size, len(bank))
        self._order = np.random.default_rng(0)

    def __iter__(self) -> Iterator[object]:
        steps = len(self._bank) // self._size
        return self._bank.minibatches(self._size, steps, self._order)


def _drawn(dataset: BankDataset, memory_limit: int, batch_size: int) -> _Drawn:
    bank = SampleBank(memory_limit, scale=dataset.scale)
    low, high = dataset.bounds or (None, None)
    # The first arrays of a bank stay in memory whatever the limit, so they are few.
    for _, part in dataset.parts(max(1, len(dataset) // _PARTS)):
        bank.add_arrays(part.samples, part.targets, low=low, high=high, weights=part.weights)
    return _Drawn(bank, batch_size)


def _speed(name: str, epoch: Iterable[object], epochs: int) -> Speed:
    """Return the milliseconds of each minibatch, after an epoch."""
    for _ in epoch:
        pass
    found = []
    for _ in range(epochs):
        last = time.perf_counter()
        for _ in epoch:
            now = time.perf_counter()
            found.append(1e3 * (now - last))
            last = now
    return Speed(name, statistics.median(found), min(found), max(found))
