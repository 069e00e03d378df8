"""TernGrad: each coordinate to one of -s, 0, +s, with s per tensor.

Wen, Xu, Yan, Wu, Wang, Chen, Li: TernGrad: Ternary Gradients to Reduce Communication in
Distributed Deep Learning, NeurIPS 2017, with its layer-wise ternarizing and gradient clipping.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from codec.coding.floats import decode_bits, decode_floats, encode_bits, encode_floats
from codec.coding.runs import runs
from codec.coding.symbols import decode_symbols, encode_symbols
from codec.errors import CodecError
from codec.gradients.frame import Frame, read_frame
from codec.gradients.tensors import (
    MAX_COORDINATES,
    Array,
    Memory,
    flatten,
    largest_magnitudes,
    sizes,
    unflatten,
)


@dataclass(frozen=True)
class TernGrad:
    """Unbiased ternary values of the clipped gradient.

    A coordinate becomes ``s * sign`` with probability ``|g| / s``, where s is the tensor's
    largest magnitude after clipping; zeros are entropy-coded, signs cost one bit each.

    Parameters
    ----------
    clip : float
        Magnitudes are cut at `clip` standard deviations of their tensor, > 0. The paper's 2.5
        trades a bias for less variance; ``math.inf`` clips nothing and is unbiased.
    """

    name: ClassVar[str] = "terngrad"
    identifier: ClassVar[int] = 4

    clip: float = 2.5

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise CodecError(f"clip is {self.clip}, must be > 0")

    def compress(
        self, gradient: Sequence[Array], memory: Memory | None, generator: np.random.Generator
    ) -> tuple[bytes, None]:
        """See `codec.gradients.GradientCompressor`."""
        vector, shapes = flatten(gradient)
        if math.isfinite(self.clip):
            self._clip(unflatten(vector, shapes))
        scales = largest_magnitudes(vector, shapes)
        scale = np.repeat(scales, sizes(shapes))
        sent = np.empty(len(vector), np.bool_)
        for run in runs(len(vector)):
            draws = generator.random(run.stop - run.start)
            sent[run] = draws * scale[run] < np.abs(vector[run])
        sections = (
            encode_floats(scales),
            encode_symbols(sent.view(np.uint8), 2),
            encode_bits(vector[sent] < 0),
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
            data, self.identifier, parameters=0, sections=3, shapes=shapes, limit=limit
        )
        scales = decode_floats(frame.sections[0], len(frame.shapes), np.float32)
        vector = np.repeat(scales, sizes(frame.shapes))
        sent = decode_symbols(frame.sections[1], frame.coordinates, 2).astype(np.bool_)
        vector[~sent] = 0
        negative = decode_bits(frame.sections[2], int(sent.sum()))
        vector[np.flatnonzero(sent)[negative]] *= -1
        return unflatten(vector, frame.shapes)

    def _clip(self, tensors: list[Array]) -> None:
        """Clip each tensor in place."""
        for tensor in tensors:
            # Deviation from zero and not from the mean: a constant tensor must not vanish.
            power = np.square(tensor, dtype=np.float64).sum() / max(tensor.size, 1)
            bound = np.float32(self.clip * np.sqrt(power))
            np.clip(tensor, -bound, bound, out=tensor)
