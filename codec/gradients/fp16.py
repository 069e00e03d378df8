"""Gradient in half precision (Micikevicius et al.: Mixed Precision Training, ICLR 2018)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from codec.coding.floats import (
    decode_floats,
    encode_floats,
    from_half,
    half_exponents,
    to_half,
)
from codec.errors import PayloadError
from codec.gradients.frame import Frame, read_frame
from codec.gradients.tensors import (
    MAX_COORDINATES,
    Array,
    Memory,
    Shapes,
    flatten,
    largest_magnitudes,
    sizes,
    unflatten,
)


@dataclass(frozen=True)
class Float16:
    """Float16 times a power of two per tensor, rounded to nearest, with coded exponents.

    The power of two does what loss scaling does: the largest coordinate neither overflows nor
    leaves the small ones without precision. Relative error at most 2**-11 for coordinates down
    to 2**-29 of the tensor's largest.
    """

    name: ClassVar[str] = "fp16"
    identifier: ClassVar[int] = 3

    def compress(
        self, gradient: Sequence[Array], memory: Memory | None, generator: np.random.Generator
    ) -> tuple[bytes, None]:
        """See `codec.gradients.GradientCompressor`."""
        vector, shapes = flatten(gradient)
        exponents = half_exponents(largest_magnitudes(vector, shapes))
        halves = [to_half(*pair) for pair in _by_tensor(vector, shapes, exponents)]
        sections = (
            exponents.astype("<u2").tobytes(),
            encode_floats(np.concatenate([np.empty(0, np.float16), *halves])),
        )
        return Frame(self.identifier, shapes, (), sections).to_bytes(), None

    def decompress(
        self,
        data: bytes,
        shapes: Sequence[tuple[int, ...]] | None = None,
        limit: int = MAX_COORDINATES,
    ) -> list[Array]:
        """See `codec.gradients.GradientCompressor`."""
        frame = read_frame(
            data, self.identifier, parameters=0, sections=2, shapes=shapes, limit=limit
        )
        scales, coded = frame.sections
        if len(scales) != 2 * len(frame.shapes):
            raise PayloadError(f"{len(scales)} bytes of exponents for {len(frame.shapes)} tensors")
        exponents = np.frombuffer(scales, "<u2").astype(np.int64)
        halves = decode_floats(coded, frame.coordinates, np.float16)
        parts = [from_half(*pair) for pair in _by_tensor(halves, frame.shapes, exponents)]
        return unflatten(np.concatenate([np.empty(0, np.float32), *parts]), frame.shapes)


def _by_tensor(
    vector: NDArray[Any], shapes: Shapes, exponents: NDArray[np.int64]
) -> Iterator[tuple[NDArray[Any], int]]:
    """Yield each tensor's coordinates and exponent."""
    ends = np.cumsum(sizes(shapes))[:-1]
    return zip(np.split(vector, ends), map(int, exponents), strict=False)
