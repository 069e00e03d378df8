"""EDEN: randomized rotation, then a Lloyd-Max quantizer of the normal distribution.

Vargaftik, Ben Basat, Portnoy, Mendelson, Ben-Itzhak, Mitzenmacher: EDEN: Communication-Efficient
and Robust Distributed Mean Estimation for Federated Learning, ICML 2022; with one bit it is
DRIVE (the same authors, NeurIPS 2021).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from codec.coding.floats import decode_bits, decode_floats, encode_bits, encode_floats
from codec.coding.symbols import decode_symbols, encode_symbols
from codec.errors import CodecError, PayloadError
from codec.gradients.frame import Frame, read_frame
from codec.gradients.rand_k import drawn, scaled
from codec.gradients.tensors import MAX_COORDINATES, Array, Memory, flatten, unflatten
from codec.random import generator as keyed_generator

_BLOCK = 8192  # coordinates rotated together: enough to look normal, cheap to rotate
_SMALLEST_BLOCK = 128
_CACHED = 32 * _BLOCK  # coordinates rotated at a time: what a processor's cache holds
_ROUNDS = 2  # a single one leaves sparse gradients far from normal, and their estimate biased

# Lloyd-Max centroids of N(0, 1), the positive half (Max, 1960, table I).
_POSITIVE = {
    1: [0.79788456],
    2: [0.45278003, 1.51041761],
    3: [0.24509418, 0.75600528, 1.34390928, 2.1519457],
    4: [
        *[0.12839503, 0.3880483, 0.65675912, 0.94234046],
        *[1.2562312, 1.61804639, 2.06901723, 2.73258957],
    ],
}
LEGAL_BITS = f"1, 2, 3 or {max(_POSITIVE)}, or below 1"
_DRAWN = 1  # key of the coordinates that are sent, beside that of the signs

# Mean squared error over the squared norm, by bits (tables 1 and 2 of the paper, large d).
RELATIVE_ERROR = {1: 0.571, 2: 0.133, 3: 0.036, 4: 0.0096}


@dataclass(frozen=True)
class EDEN:
    """`bits` bits per coordinate, less what entropy coding saves, and a scale per block.

    Blocks of 8192 coordinates run over all the tensors; what is left is rotated in smaller
    powers of two, the last one padded. The scale ``norm**2 / <rotated, quantized>`` makes the
    estimate unbiased for a uniformly random rotation, for which two rounds of
    random signs and Hadamard transform stand in. The error, over the squared norm, is 0.571,
    0.133, 0.036 and 0.0096 with 1, 2, 3 and 4 bits.

    Below one bit a share `bits` of the coordinates, drawn by a seed and scaled up as by "rand-k",
    is sent with one bit each, as the authors have it: still unbiased, with an error of
    ``1.571 / bits - 1``.

    Parameters
    ----------
    bits : float
        1, 2, 3 or 4, or in (0, 1).
    """

    name: ClassVar[str] = "eden"
    identifier: ClassVar[int] = 8

    bits: float = 1

    def __post_init__(self) -> None:
        if not (0 < self.bits < 1 or self.bits in _POSITIVE):
            raise CodecError(f"bits is {self.bits}, must be {LEGAL_BITS}")

    def compress(
        self, gradient: Sequence[Array], memory: Memory | None, generator: np.random.Generator
    ) -> tuple[bytes, None]:
        """See `codec.gradients.GradientCompressor`."""
        vector, shapes = flatten(gradient)
        seed = int(generator.integers(2**32))
        bits, parameters = max(1, int(self.bits)), [seed]
        if self.bits < 1:
            count = math.ceil(self.bits * len(vector))
            vector = scaled(vector[drawn(len(vector), count, seed, _DRAWN)], len(vector))
            parameters.append(count)
        groups = _groups(len(vector))
        padded = np.zeros(_total(groups), np.float32)
        padded[: len(vector)] = vector
        scales, symbols = [np.empty(0, np.float32)], np.empty(len(padded), np.uint8)
        for rows, place, signs in _blocks(padded, groups, seed):
            scale, chosen = _quantized(rows, signs, _centroids(bits))
            scales.append(scale)
            symbols[place] = chosen.ravel()
        sections = (
            encode_floats(np.concatenate(scales)),
            _encode_chosen(symbols, bits),
        )
        return Frame(self.identifier, shapes, (bits, *parameters), sections).to_bytes(), None

    def decompress(
        self,
        data: bytes,
        shapes: Sequence[tuple[int, ...]] | None = None,
        limit: int = MAX_COORDINATES,
    ) -> list[Array]:
        """See `codec.gradients.GradientCompressor`."""
        frame = read_frame(
            data, self.identifier, parameters=2, optional=1, sections=2, shapes=shapes, limit=limit
        )
        bits, seed, *drawn_count = frame.parameters
        (count,) = drawn_count or [frame.coordinates]
        if bits not in _POSITIVE or count > frame.coordinates:
            raise PayloadError(
                f"{count} values of {bits} bits for {frame.coordinates} coordinates, must be of "
                f"{LEGAL_BITS}"
            )
        groups = _groups(count)
        scales = decode_floats(frame.sections[0], sum(count for count, _ in groups), np.float32)
        chosen = decode_chosen(frame.sections[1], _total(groups), bits)
        values = _centroids(bits).take(chosen)
        for rows, place, signs in _blocks(values, groups, seed):
            scale, scales = scales[: len(rows), np.newaxis], scales[len(rows) :]
            with np.errstate(over="ignore", invalid="ignore"):
                values[place] = (_rotated_back(rows, signs) * scale).ravel()
        if drawn_count:
            vector = np.zeros(frame.coordinates, np.float32)
            vector[drawn(frame.coordinates, count, seed, _DRAWN)] = values[:count]
            return unflatten(vector, frame.shapes)
        return unflatten(values[:count], frame.shapes)


def _encode_chosen(chosen: NDArray[np.uint8], bits: int) -> bytes:
    # Rotated signs are fair coins: packing them is as short as coding them, and faster.
    return encode_bits(chosen == 1) if bits == 1 else encode_symbols(chosen, 1 << bits)


def decode_chosen(data: bytes, count: int, bits: int) -> NDArray[np.integer]:
    """Return the centroid of each coordinate, (count,); `PayloadError` if malformed."""
    if bits == 1:
        return decode_bits(data, count).view(np.uint8)
    return decode_symbols(data, count, 1 << bits)


def _groups(coordinates: int) -> list[tuple[int, int]]:
    """Return (count, size) of runs of equal blocks that cover the coordinates."""
    padded = -(-coordinates // _SMALLEST_BLOCK) * _SMALLEST_BLOCK
    groups = [(padded // _BLOCK, _BLOCK)]
    size = _BLOCK // 2
    while size >= _SMALLEST_BLOCK:
        groups.append((int(padded & size > 0), size))
        size //= 2
    return [(count, size) for count, size in groups if count]


def _total(groups: list[tuple[int, int]]) -> int:
    return sum(count * size for count, size in groups)


def _blocks(
    vector: Array, groups: list[tuple[int, int]], seed: int
) -> Iterator[tuple[Array, slice, Array]]:
    """Yield runs of equal blocks (count, size), their place, and signs (_ROUNDS, count, size)."""
    # Raw words: NumPy keeps those of a seed for ever, unlike what Generator draws from them.
    words = keyed_generator(seed).bit_generator.random_raw(-(-_ROUNDS * len(vector) // 64))
    packed = words.astype("<u8").view(np.uint8)
    bits = np.unpackbits(packed, count=_ROUNDS * len(vector)).reshape(_ROUNDS, len(vector))
    start = 0
    for count, size in groups:
        end = start + count * size
        while start < end:
            place = slice(start, min(start + _CACHED, end))
            signs = (1 - 2 * bits[:, place].view(np.int8)).astype(np.float32)
            yield vector[place].reshape(-1, size), place, signs.reshape(_ROUNDS, -1, size)
            start = place.stop


def _quantized(rows: Array, signs: Array, centroids: Array) -> tuple[Array, NDArray[np.uint8]]:
    """Return the scale of each block (count,) and the centroid of each coordinate."""
    size = rows.shape[1]
    norms = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True))
    # Of norm sqrt(size): once rotated, each coordinate is near N(0, 1).
    normal = (rows * (np.sqrt(size) / np.where(norms > 0, norms, 1.0))).astype(np.float32)
    for sign in signs:
        normal = _hadamard(normal * sign)
    chosen = np.zeros(normal.shape, np.uint8)
    for boundary in (centroids[1:] + centroids[:-1]) / 2:
        chosen += normal >= boundary
    overlap = (normal * centroids.take(chosen)).sum(axis=1, dtype=np.float64)
    scale = np.sqrt(size) * norms[:, 0] / np.where(overlap > 0, overlap, 1.0)
    return scale.astype(np.float32), chosen


def _rotated_back(rows: Array, signs: Array) -> Array:
    for sign in signs[::-1]:
        rows = _hadamard(rows) * sign
    return rows


def _hadamard(rows: Array) -> Array:
    """Return the orthonormal Walsh-Hadamard transform of each row; it is its own inverse."""
    size = rows.shape[1]
    half = size // 2
    for _ in range(size.bit_length() - 1):
        # Sums, then differences, of neighbours: after log2(size) rounds the order is back.
        even, odd = rows[:, ::2], rows[:, 1::2]
        rows = np.empty_like(rows)
        np.add(even, odd, out=rows[:, :half])
        np.subtract(even, odd, out=rows[:, half:])
    return rows * np.float32(1 / np.sqrt(size))


def _centroids(bits: int) -> Array:
    positive = np.array(_POSITIVE[bits], np.float32)
    return np.concatenate([-positive[::-1], positive])
