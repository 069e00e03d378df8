"""Gradient in full precision: what every lossy compressor is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from codec.coding.floats import decode_floats, encode_floats
from codec.gradients.frame import Frame, read_frame
from codec.gradients.tensors import MAX_COORDINATES, Array, Memory, flatten, unflatten


@dataclass(frozen=True)
class Float32:
    """Lossless coding, bit for bit, negative zeros included.

    Exponents are entropy-coded, which saves some 15% of the 32 bits of a coordinate.
    """

    name: ClassVar[str] = "fp32"
    identifier: ClassVar[int] = 0

    def compress(
        self, gradient: Sequence[Array], memory: Memory | None, generator: np.random.Generator
    ) -> tuple[bytes, None]:
        """See `codec.gradients.GradientCompressor`."""
        vector, shapes = flatten(gradient)
        return Frame(self.identifier, shapes, (), (encode_floats(vector),)).to_bytes(), None

    def decompress(
        self,
        data: bytes,
        shapes: Sequence[tuple[int, ...]] | None = None,
        limit: int = MAX_COORDINATES,
    ) -> list[Array]:
        """See `codec.gradients.GradientCompressor`."""
        frame = read_frame(
            data, self.identifier, parameters=0, sections=1, shapes=shapes, limit=limit
        )
        (values,) = frame.sections
        vector = decode_floats(values, frame.coordinates, np.float32)
        return unflatten(vector, frame.shapes)
