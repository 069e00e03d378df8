"""Which samples a client considers in a round."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.reading import Reader
from codec import CodecError


def draw_minibatch(
    length: int, batch_size: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return the indices of a minibatch, drawn without replacement.

    Parameters
    ----------
    length : int
        Number of samples to draw from.
    batch_size : int
        Samples drawn; all of them if there are fewer.
    generator : numpy.random.Generator
        `codec.random.client_generator` gives a client's own minibatch of a round.

    Returns
    -------
    (min(batch_size, length),) int64 array, in random order
    """
    return generator.permutation(length)[:batch_size].astype(np.int64)


_MOST_VALUES = 1 << 24  # of samples that are read ahead
_LEAST_ACCEPTED = 1 / 32

# From indices, samples and targets to which of them are considered at all.
Accept = Callable[[NDArray[np.int64], NDArray[Any], NDArray[Any]], NDArray[np.bool_]]


@dataclass
class Candidates:
    """Samples in the order of consideration, read from the source as far as needed.

    Those of no use are left out, and remembered.

    Attributes
    ----------
    reader : Reader
    order : (N,) int64 array
        Indices into the source; those found to be of no use are taken out.
    accept : callable, optional
        ``(indices, samples, targets) -> (M,) bool array``: which of those that were read are
        considered; others are left out.
    useless : list of int
        Indices of those that cannot be read or used.
    refused : list of int
        Indices of those that were read, but cannot be sent.
    skipped : Counter of str
        Their number, by reason.
    clipped : int
        Values clipped to the declared range.
    first_words : str
        What was wrong with the first of no use.
    """

    reader: Reader
    order: NDArray[np.int64]
    accept: Accept | None = None
    useless: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    clipped: int = 0
    first_words: str = ""
    _accepted: float = field(default=1.0, init=False)  # share of those last read
    _samples: NDArray[Any] = field(init=False)
    _targets: NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        kind = self.reader.kind
        self._samples = np.empty((0, *kind.shape), kind.dtype)
        self._targets = np.empty((0, *kind.target_shape), np.int64 if kind.classes else np.float32)

    def first(self, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return samples (M, *shape) and targets of the first candidates of use.

        M is `count`, or less if there are no more.
        """
        while len(self._samples) < min(count, len(self.order)):
            have = len(self._samples)
            wanted = self.order[have : have + self._likely_enough(count - have)]
            batch = self.reader.read(wanted)
            rest = np.setdiff1d(np.arange(len(wanted)), batch.positions)
            self.useless += wanted[np.setdiff1d(rest, batch.later)].tolist()
            samples, targets, good = batch.samples, batch.targets, batch.positions
            if self.accept is not None and len(good):
                accepted = self.accept(wanted[good], samples, targets)
                self._accepted = float(accepted.mean())
                samples, targets, good = samples[accepted], targets[accepted], good[accepted]
            rest = np.arange(len(wanted))
            self.order = np.delete(self.order, have + np.setdiff1d(rest, good))
            self.skipped += batch.skipped
            self.clipped += batch.clipped
            self.first_words = self.first_words or batch.first_words
            self._samples = np.concatenate([self._samples, samples])
            self._targets = np.concatenate([self._targets, targets])
        return self._samples[:count], self._targets[:count]

    def _likely_enough(self, missing: int) -> int:
        """Return how many to read next, as many of the last were not accepted."""
        most = max(missing, _MOST_VALUES // math.prod(self.reader.kind.shape))
        return min(most, math.ceil(missing / max(self._accepted, _LEAST_ACCEPTED)))

    def drop(self, positions: Sequence[int], reason: str) -> None:
        """Count candidates that were read, but cannot be sent, as of no use."""
        if len(positions):
            self.refused += self.order[list(positions)].tolist()
            self.skipped[reason] += len(positions)

    def check_any_left(self) -> None:
        """Raise `CodecError`, with what was wrong, if none that was read is of use."""
        if self.skipped and not len(self._samples):
            reasons = ", ".join(f"{number} {reason}" for reason, number in self.skipped.items())
            raise CodecError(f"no sample can be used: {reasons}; {self.first_words}")
