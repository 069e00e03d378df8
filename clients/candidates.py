"""Which samples a client considers in a round."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.source import SampleSource, fetch
from codec import SampleSpec


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


@dataclass
class Candidates:
    """Samples in the order of consideration, fetched from the source as far as needed.

    Attributes
    ----------
    source : SampleSource
    spec : SampleSpec
    order : (N,) int64 array
        Indices into the source.
    """

    source: SampleSource
    spec: SampleSpec
    order: NDArray[np.int64]
    _samples: NDArray[Any] = field(init=False)
    _targets: NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        spec = self.spec
        self._samples = np.empty((0, *spec.shape), spec.dtype)
        self._targets = (
            np.empty(0, np.int64) if spec.classes else np.empty((0, spec.target_size), np.float32)
        )

    def first(self, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return samples (count, *shape) and targets of the first `count` candidates."""
        missing = self.order[len(self._samples) : count]
        if len(missing):
            samples, targets = fetch(self.source, missing, self.spec)
            self._samples = np.concatenate([self._samples, samples])
            self._targets = np.concatenate([self._targets, targets])
        return self._samples[:count], self._targets[:count]
