"""Top-k sparsification with error feedback.

Stich, Cordonnier, Jaggi: Sparsified SGD with Memory, NeurIPS 2018, algorithm 1 (the learning
rate is left to the server's optimizer); values in half precision are ours. Values of two bits are
those of SparseLoCo (Sarfi, Thérien, Lidin, Belilovsky: Communication Efficient LLM Pre-training
with SparseLoCo, arXiv:2508.15706); two magnitudes that fit the whole gradient best are ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from codec.coding.floats import (
    decode_bits,
    decode_floats,
    encode_bits,
    encode_floats,
    from_half,
    half_exponents,
    to_half,
)
from codec.coding.symbols import (
    decode_integers,
    decode_symbols,
    encode_integers,
    encode_symbols,
)
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

VALUE_BITS = (2, 16, 32)
LEGAL_BITS = "2, 16 or 32"
_PAIR_BYTES = 8  # two float32


@dataclass(frozen=True)
class TopK:
    """The largest coordinates by magnitude, over all the tensors together.

    What is not sent, the rounding of values included, stays in the memory and is added to the
    next gradient: ``decoded + memory == gradient + previous memory``. Zeros are never sent.
    Indices are coded as gaps, near ``log2 C(n, k)`` bits, less where the chosen coordinates
    gather in some layers.

    Parameters
    ----------
    density : float
        Share of the coordinates sent, in (0, 1]; rounded up to a whole coordinate.
    bits : int
        Of a value: 32 (float32), 16 (float16 times a power of two per gradient) or 2 (a sign,
        and one of two magnitudes, which are those of the least squared error).
    """

    name: ClassVar[str] = "top-k"
    identifier: ClassVar[int] = 2

    density: float = 0.01
    bits: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise CodecError(f"density is {self.density}, must be in (0, 1]")
        if self.bits not in VALUE_BITS:
            raise CodecError(f"bits is {self.bits}, must be {LEGAL_BITS}")

    def compress(
        self, gradient: Sequence[Array], memory: Memory | None, generator: np.random.Generator
    ) -> tuple[bytes, Memory]:
        """See `codec.gradients.GradientCompressor`."""
        vector, shapes = flatten(gradient, memory)
        chosen = largest_indices(np.abs(vector), math.ceil(self.density * len(vector)))
        chosen = chosen[vector[chosen] != 0]
        gaps = np.diff(chosen, prepend=-1) - 1
        indices = encode_integers(gaps, max(len(vector) - 1, 0))
        values, sent, exponent = _encode_values(vector[chosen], self.bits)
        parameters = (len(chosen), self.bits, exponent)
        data = Frame(self.identifier, shapes, parameters, (indices, values)).to_bytes()
        vector[chosen] -= sent
        return data, unflatten(vector, shapes)

    def decompress(
        self,
        data: bytes,
        shapes: Sequence[tuple[int, ...]] | None = None,
        limit: int = MAX_COORDINATES,
    ) -> list[Array]:
        """See `codec.gradients.GradientCompressor`."""
        frame = read_frame(
            data, self.identifier, parameters=3, sections=2, shapes=shapes, limit=limit
        )
        count, bits, exponent = frame.parameters
        if count > frame.coordinates or bits not in VALUE_BITS:
            raise PayloadError(f"{count} values of {bits} bits for {frame.coordinates} coordinates")
        chosen = _indices(frame.sections[0], count, frame.coordinates)
        vector = np.zeros(frame.coordinates, np.float32)
        vector[chosen] = _decode_values(frame.sections[1], count, bits, exponent)
        return unflatten(vector, frame.shapes)


def _encode_values(values: Array, bits: int) -> tuple[bytes, Array, int]:
    """Return the coded values, what they decode to, and the exponent of halves (0: float32)."""
    if bits == 32:
        return encode_floats(values), values, 0
    if bits == 2:
        return *_encode_signed_pair(values), 0
    exponent = int(half_exponents(np.abs(values).max(initial=0, keepdims=True))[0])
    halves = to_half(values, exponent)
    return encode_floats(halves), from_half(halves, exponent), exponent


def _decode_values(data: bytes, count: int, bits: int, exponent: int) -> Array:
    if bits == 32:
        return decode_floats(data, count, np.float32)
    if bits == 2:
        return decode_signed_pair(data, count)
    return from_half(decode_floats(data, count, np.float16), exponent)


def _encode_signed_pair(values: Array) -> tuple[bytes, Array]:
    """Return signs, magnitudes and which is whose, coded, and the values that they stand for."""
    magnitudes = np.abs(values)
    pair, cut = _best_pair(magnitudes)
    larger, negative = magnitudes > cut, values < 0
    data = pair.astype("<f4").tobytes() + encode_bits(negative)
    decoded = pair[larger.view(np.uint8)]
    return data + encode_symbols(larger.view(np.uint8), 2), np.where(negative, -decoded, decoded)


def decode_signed_pair(data: bytes, count: int) -> Array:
    """Return values (count,) that are coded in two bits; `PayloadError` if malformed."""
    start = _PAIR_BYTES + -(-count // 8)
    if len(data) < start:
        raise PayloadError(f"{len(data)} bytes for {count} values, at least {start} are needed")
    pair = np.frombuffer(data[:_PAIR_BYTES], "<f4").astype(np.float32)
    negative = decode_bits(data[_PAIR_BYTES:start], count)
    decoded = pair[decode_symbols(data[start:], count, 2)]
    return np.where(negative, -decoded, decoded)


def _best_pair(magnitudes: Array) -> tuple[Array, float]:
    """Return the two numbers that magnitudes (N,) are nearest to, and the largest of the lower.

    Of all ways to cut the sorted magnitudes in two, that with the least squared error: the one
    where the squared sums of the parts, over their sizes, are largest together.
    """
    if not len(magnitudes):
        return np.zeros(2, np.float32), 0.0
    ordered = np.sort(magnitudes)
    sums = np.cumsum(ordered, dtype=np.float64)
    below = np.arange(1, len(ordered))
    above = len(ordered) - below
    parts = np.square(sums[:-1]) / below + np.square(sums[-1] - sums[:-1]) / above
    # A cut between equals is none.
    parts[ordered[1:] == ordered[:-1]] = 0.0
    if not parts.any():
        return np.repeat(np.float32(sums[-1] / len(ordered)), 2), float(ordered[-1])
    place = int(parts.argmax())
    means = sums[place] / (place + 1), (sums[-1] - sums[place]) / above[place]
    return np.array(means, np.float32), float(ordered[place])


def _indices(data: bytes, count: int, coordinates: int) -> NDArray[np.int64]:
    gaps = decode_integers(data, count, max(coordinates - 1, 0))
    chosen = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if count and chosen[-1] >= coordinates:
        raise PayloadError(f"index {chosen[-1]}, must be below {coordinates}")
    return chosen
