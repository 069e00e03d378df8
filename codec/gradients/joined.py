"""Gradients as one vector, so that the shapes of their tensors need not travel."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codec.errors import PayloadError
from codec.gradients import (
    COMPRESSORS,
    EDEN,
    Float32,
    GradientCompressor,
    Memory,
    RandK,
    TopK,
    make_compressor,
)
from codec.gradients.frame import identifier_of
from codec.gradients.tensors import MAX_COORDINATES, Array, flatten, sizes, unflatten

# Compressors that treat all the tensors as one vector anyway.
JOINABLE = (Float32.name, TopK.name, RandK.name, EDEN.name)


@dataclass(frozen=True)
class Joined:
    """Another compressor applied to the concatenated tensors.

    Where that one does not care for tensors, what is decoded is the same, and the header is
    shorter by some four bytes per tensor. The receiver has to know the shapes.

    Attributes
    ----------
    inner : GradientCompressor
    """

    inner: GradientCompressor

    @property
    def name(self) -> str:
        """Name of the inner compressor."""
        return self.inner.name

    @property
    def identifier(self) -> int:
        """Identifier of the inner compressor."""
        return self.inner.identifier

    def compress(
        self, gradient: Sequence[Array], memory: Memory | None, generator: np.random.Generator
    ) -> tuple[bytes, Memory | None]:
        """See `codec.gradients.GradientCompressor`; the memory is one vector."""
        vector, _ = flatten(gradient)
        return self.inner.compress([vector], memory, generator)

    def decompress(
        self,
        data: bytes,
        shapes: Sequence[tuple[int, ...]] | None = None,
        limit: int = MAX_COORDINATES,
    ) -> list[Array]:
        """See `codec.gradients.GradientCompressor`; without `shapes`, a single vector."""
        if shapes is None:
            return self.inner.decompress(data, None, limit)
        known = tuple(shapes)
        (vector,) = self.inner.decompress(data, [(sum(sizes(known)),)], limit)
        return unflatten(vector, known)


def joined(compressor: GradientCompressor) -> GradientCompressor:
    """Return the compressor for joined tensors, where that changes nothing but the header."""
    return Joined(compressor) if compressor.name in JOINABLE else compressor


def decoder_of(data: bytes) -> GradientCompressor:
    """Return what decodes bytes of a compressor, joined as `joined` has it, by what they say.

    Raises
    ------
    PayloadError
        If no known compressor wrote them.
    """
    found = identifier_of(data)
    for name in COMPRESSORS:
        compressor = make_compressor(name)
        if compressor.identifier == found:
            return joined(compressor)
    raise PayloadError(f"written by compressor {found}, which is not known here")
