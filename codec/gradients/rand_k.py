"""Random-k sparsification: the indices are a seed.

Wangni, Wang, Liu, Zhang: Gradient Sparsification for Communication-Efficient Distributed
Optimization, NeurIPS 2018, with uniform probabilities; Konecny et al.: Federated Learning:
Strategies for Improving Communication Efficiency, 2016 (a random mask sent as a seed).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from codec.coding.floats import decode_floats, encode_floats
from codec.errors import CodecError, PayloadError
from codec.gradients.frame import Frame, read_frame
from codec.gradients.tensors import (
    MAX_COORDINATES,
    Array,
    Memory,
    flatten,
    largest_indices,
    unflatten,
)
from codec.random import generator as keyed_generator


@dataclass(frozen=True)
class RandK:
    """k coordinates drawn uniformly without replacement, times n / k: unbiased.

    The variance is ``(n / k - 1) * norm**2``. The indices cost the 32 bits of a seed, whatever
    n is; values are float32.

    Parameters
    ----------
    density : float
        Share of the coordinates sent, in (0, 1]; rounded up to a whole coordinate.
    """

    name: ClassVar[str] = "rand-k"
    identifier: ClassVar[int] = 6

    density: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise CodecError(f"density is {self.density}, must be in (0, 1]")

    def compress(
        self, gradient: Sequence[Array], memory: Memory | None, generator: np.random.Generator
    ) -> tuple[bytes, None]:
        """See `codec.gradients.GradientCompressor`."""
        vector, shapes = flatten(gradient)
        count, seed = math.ceil(self.density * len(vector)), int(generator.integers(2**32))
        values = vector[drawn(len(vector), count, seed)]
        section = encode_floats(scaled(values, len(vector)))
        return Frame(self.identifier, shapes, (count, seed), (section,)).to_bytes(), None

    def decompress(
        self,
        data: bytes,
        shapes: Sequence[tuple[int, ...]] | None = None,
        limit: int = MAX_COORDINATES,
    ) -> list[Array]:
        """See `codec.gradients.GradientCompressor`."""
        frame = read_frame(
            data, self.identifier, parameters=2, sections=1, shapes=shapes, limit=limit
        )
        count, seed = frame.parameters
        if count > frame.coordinates:
            raise PayloadError(f"{count} values for {frame.coordinates} coordinates")
        vector = np.zeros(frame.coordinates, np.float32)
        values = decode_floats(frame.sections[0], count, np.float32)
        vector[drawn(frame.coordinates, count, seed)] = values
        return unflatten(vector, frame.shapes)


def drawn(coordinates: int, count: int, seed: int, *key: int) -> NDArray[np.int64]:
    """Return `count` distinct indices of so many, int64 (count,), the same at both ends."""
    # Raw words: NumPy keeps those of a seed for ever, unlike what Generator draws from them.
    words = keyed_generator(seed, *key).bit_generator.random_raw(-(-coordinates // 2))
    return largest_indices(words.astype("<u8").view("<u4")[:coordinates], count)


def scaled(values: Array, coordinates: int) -> Array:
    """Return drawn values times n / k, which makes up for those that were not."""
    with np.errstate(over="ignore"):
        return values * np.float32(coordinates / max(len(values), 1))
