"""Scaled sign with error feedback.

Karimireddy, Rebjock, Stich, Jaggi: Error Feedback Fixes SignSGD and other Gradient Compression
Schemes, ICML 2019, algorithm 1, with a scale per tensor as in its experiments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from codec.coding.floats import decode_bits, decode_floats, encode_bits, encode_floats
from codec.gradients.frame import Frame, read_frame
from codec.gradients.tensors import MAX_COORDINATES, Array, Memory, flatten, sizes, unflatten


@dataclass(frozen=True)
class Sign:
    """``mean(|p|) * sign(p)`` for each tensor of ``p = gradient + memory``.

    One bit per coordinate (a zero counts as positive) and a float32 per tensor; all-zero
    tensors cost the scale only. ``decoded + memory == gradient + previous memory``.
    """

    name: ClassVar[str] = "sign"
    identifier: ClassVar[int] = 5

    def compress(
        self, gradient: Sequence[Array], memory: Memory | None, generator: np.random.Generator
    ) -> tuple[bytes, Memory]:
        """See `codec.gradients.GradientCompressor`."""
        vector, shapes = flatten(gradient, memory)
        corrected = unflatten(vector, shapes)
        means = [np.abs(p).mean(dtype=np.float64) if p.size else 0.0 for p in corrected]
        scales = np.array(means, np.float32)
        scale = np.repeat(scales, sizes(shapes))
        negative = vector < 0
        sections = (encode_floats(scales), encode_bits(negative[scale > 0]))
        data = Frame(self.identifier, shapes, (), sections).to_bytes()
        vector -= np.where(negative, -scale, scale)
        return data, unflatten(vector, shapes)

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
        scales = decode_floats(frame.sections[0], len(frame.shapes), np.float32)
        vector = np.repeat(scales, sizes(frame.shapes))
        coded = np.flatnonzero(vector > 0)
        negative = decode_bits(frame.sections[1], len(coded))
        vector[coded[negative]] *= -1
        return unflatten(vector, frame.shapes)
