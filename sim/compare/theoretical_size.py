"""Size of a compressed gradient in theory, to compare its actual size with."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from codec.coding.floats import decode_words
from codec.coding.symbols import decode_integers, decode_symbols
from codec.gradients import (
    EDEN,
    QSGD,
    Float16,
    Float32,
    GradientCompressor,
    PowerSGD,
    RandK,
    Sign,
    TernGrad,
    TopK,
)
from codec.gradients.eden import decode_chosen
from codec.gradients.frame import Frame, read_frame
from codec.gradients.joined import JOINABLE
from codec.gradients.qsgd import decode_levels
from codec.gradients.tensors import sizes
from codec.gradients.top_k import decode_signed_pair

_SEED_BITS = 32


@dataclass(frozen=True)
class TheoreticalSize:
    """Bytes of one message in theory, without any header.

    Attributes
    ----------
    textbook : float
        By the paper's count: floats at their full width, discrete values at their empirical
        entropy tensor by tensor, signs at a bit, k of n indices at ``log2 C(n, k)`` bits.
    entropy : float
        The same, with the exponents of floats at their empirical entropy and indices counted
        tensor by tensor: what an ideal coder of the same values would need.
    """

    textbook: float
    entropy: float


@dataclass
class _Bits:
    textbook: float = 0.0
    entropy: float = 0.0

    def exact(self, bits: float) -> None:
        """Add what both counts agree on."""
        self.textbook += bits
        self.entropy += bits

    def words(self, words: NDArray[np.unsignedinteger]) -> None:
        """Add floats, given by their bit patterns: a byte of each is sign-free exponent."""
        width = 8 * words.itemsize
        self.textbook += width * len(words)
        top = (words >> (width - 9)) & 0xFF
        self.entropy += (width - 8) * len(words) + entropy_bits(top)


def entropy_bits(symbols: NDArray[np.integer]) -> float:
    """Return the zero-order empirical entropy of symbols (N,) >= 0, in bits for all of them."""
    counts = np.bincount(symbols.astype(np.int64))
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / len(symbols))).sum()) if len(symbols) else 0.0


def theoretical_size(
    compressor: GradientCompressor,
    data: bytes,
    shapes: Sequence[tuple[int, ...]] | None = None,
) -> TheoreticalSize:
    """Return what a message would take in theory.

    Parameters
    ----------
    compressor : GradientCompressor
        What wrote it, with any options.
    data : bytes
        From its ``compress``; read for the very symbols that it holds.
    shapes : sequence of tuple of int, optional
        Shapes of the tensors, where the message may hold them joined.

    Raises
    ------
    PayloadError
        If the bytes are malformed.
    """
    bits = _Bits()
    parameters, sections, count = _COUNTS[compressor.name]
    frame = read_frame(
        data,
        compressor.identifier,
        parameters=parameters,
        optional=int(compressor.name == EDEN.name),
        sections=sections,
    )
    if shapes is not None and compressor.name in JOINABLE:
        frame = replace(frame, shapes=tuple(shapes))
    count(frame, bits)
    return TheoreticalSize(bits.textbook / 8, bits.entropy / 8)


def _floats(frame: Frame, bits: _Bits) -> None:
    bits.words(decode_words(frame.sections[0], frame.coordinates, 4))


def _halves(frame: Frame, bits: _Bits) -> None:
    bits.exact(8 * len(frame.sections[0]))
    bits.words(decode_words(frame.sections[1], frame.coordinates, 2))


def _qsgd(frame: Frame, bits: _Bits) -> None:
    finest, bucket = frame.parameters
    norms = sum(-(-size // (bucket or max(size, 1))) for size in sizes(frame.shapes))
    bits.words(decode_words(frame.sections[0], norms, 2))
    levels = decode_levels(frame, finest, bucket)
    bits.exact(_by_tensor(levels, frame) + np.count_nonzero(levels))


def _terngrad(frame: Frame, bits: _Bits) -> None:
    bits.words(decode_words(frame.sections[0], len(frame.shapes), 4))
    sent = decode_symbols(frame.sections[1], frame.coordinates, 2)
    bits.exact(_by_tensor(sent, frame) + int(sent.sum()))


def _sign(frame: Frame, bits: _Bits) -> None:
    bits.words(decode_words(frame.sections[0], len(frame.shapes), 4))
    bits.exact(frame.coordinates)


def _top_k(frame: Frame, bits: _Bits) -> None:
    count, width, _ = frame.parameters
    if width == 2:
        bits.exact(_signed_pair_bits(frame.sections[1], count))
    else:
        bits.words(decode_words(frame.sections[1], count, width // 8))
    gaps = decode_integers(frame.sections[0], count, max(frame.coordinates - 1, 0))
    tensors = np.cumsum(sizes(frame.shapes))
    owner = np.searchsorted(tensors, np.cumsum(gaps.astype(np.int64) + 1) - 1, side="right")
    chosen = np.bincount(owner, minlength=len(tensors)).tolist()
    bits.textbook += _log2_binomial(frame.coordinates, count)
    bits.entropy += sum(map(_log2_binomial, sizes(frame.shapes), chosen))


def _signed_pair_bits(data: bytes, count: int) -> float:
    """Bits of two magnitudes, and of signs, and which magnitude each value has."""
    values = decode_signed_pair(data, count)
    larger = np.abs(values) == np.abs(values).max(initial=0)
    return 64 + count + entropy_bits(larger.view(np.uint8))


def _rand_k(frame: Frame, bits: _Bits) -> None:
    count, _ = frame.parameters
    bits.words(decode_words(frame.sections[0], count, 4))
    bits.exact(_SEED_BITS)


def _power_sgd(frame: Frame, bits: _Bits) -> None:
    (rank,) = frame.parameters
    count = sum(_power_sgd_floats(shape, rank) for shape in frame.shapes)
    bits.words(decode_words(frame.sections[0], count, 4))


def _power_sgd_floats(shape: tuple[int, ...], rank: int) -> int:
    size = math.prod(shape)
    return min(size, rank * (shape[0] + math.prod(shape[1:]))) if len(shape) > 1 else size


def _eden(frame: Frame, bits: _Bits) -> None:
    width, _, *drawn = frame.parameters
    padded = -(-sum(drawn or [frame.coordinates]) // 128) * 128
    blocks = padded // 8192 + (padded % 8192 // 128).bit_count()
    bits.words(decode_words(frame.sections[0], blocks, 4))
    bits.exact(entropy_bits(decode_chosen(frame.sections[1], padded, width)) + _SEED_BITS)


def _by_tensor(symbols: NDArray[np.int32], frame: Frame) -> float:
    parts = np.split(symbols, np.cumsum(sizes(frame.shapes))[:-1])
    return sum(entropy_bits(part) for part in parts)


def _log2_binomial(size: int, count: int) -> float:
    chosen = math.lgamma(count + 1) + math.lgamma(size - count + 1)
    return (math.lgamma(size + 1) - chosen) / math.log(2)


# Parameters, sections and counting function of each compressor.
_COUNTS: Mapping[str, tuple[int, int, Callable[[Frame, _Bits], None]]] = {
    Float32.name: (0, 1, _floats),
    Float16.name: (0, 2, _halves),
    QSGD.name: (2, 3, _qsgd),
    TernGrad.name: (0, 3, _terngrad),
    Sign.name: (0, 2, _sign),
    TopK.name: (3, 2, _top_k),
    RandK.name: (2, 1, _rand_k),
    PowerSGD.name: (1, 1, _power_sgd),
    EDEN.name: (2, 2, _eden),
}
