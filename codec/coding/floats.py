"""Lossless coding of floating-point arrays, and rounding to half precision.

The exponents of a gradient are few and skewed, its mantissas are noise. So exponents are
entropy-coded and mantissas are sent as they are.
"""

import zlib
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from codec.coding.runs import runs
from codec.coding.symbols import LARGE, decode_symbols, encode_symbols
from codec.errors import CodecError, PayloadError

Float = TypeVar("Float", np.float16, np.float32)

_EXPONENT_BIAS = 149  # frexp exponents of float32 lie in [-148, 128]
_LARGEST_EXPONENT = _EXPONENT_BIAS + 128
_ROUNDS_TO_INFINITY = 2.0**128 * (1 - 2.0**-12)
_DEFLATE_LEVEL = 1  # higher ones gain nothing on exponents
_HALF_EXPONENT = 15  # values are scaled to just below 2**15; float16 ends at 65504


def encode_floats(values: NDArray[Float]) -> bytes:
    """Code floats (N,) bit for bit.

    Raises
    ------
    CodecError
        If a value is not finite.
    """
    if not np.isfinite(values).all():
        raise CodecError("values to send must be finite, NaN or infinity found (overflow)")
    return encode_words(values.view(f"u{values.itemsize}"))


def decode_floats(data: bytes, count: int, dtype: type[Float]) -> NDArray[Float]:
    """Return the floats (count,) of `encode_floats`, in `dtype`; `PayloadError` if malformed."""
    return decode_words(data, count, np.dtype(dtype).itemsize).view(dtype)


def encode_words(words: NDArray[Any]) -> bytes:
    """Code the bit patterns of floats, uint16 or uint32 (N,), sign bit first.

    The sign is rotated to the bottom, so that the top byte is the exponent (and what else fits):
    it is coded adaptively, the bytes below it follow unchanged. Of a large array it is deflated
    instead: 1 to 3 % more bytes in all, in a tenth of the time.
    """
    bits = 8 * words.itemsize
    rotated = (words << 1) | (words >> (bits - 1))
    planes = rotated.astype(f">u{words.itemsize}").view(np.uint8).reshape(-1, words.itemsize)
    return _encode_bytes(planes[:, 0]) + planes[:, 1:].tobytes()


def decode_words(data: bytes, count: int, itemsize: int) -> NDArray[Any]:
    """Return the unsigned words (count,) of `encode_words`; `PayloadError` if malformed."""
    tail = count * (itemsize - 1)
    if len(data) < tail:
        raise PayloadError(f"{len(data)} bytes for {count} floats, at least {tail} are needed")
    planes = np.empty((count, itemsize), np.uint8)
    planes[:, 0] = _decode_bytes(data[: len(data) - tail], count)
    planes[:, 1:] = np.frombuffer(data[len(data) - tail :], np.uint8).reshape(count, itemsize - 1)
    rotated = planes.view(f">u{itemsize}").ravel().astype(f"u{itemsize}")
    words: NDArray[Any] = (rotated >> 1) | (rotated << (8 * itemsize - 1))
    return words


def _encode_bytes(values: NDArray[np.uint8]) -> bytes:
    if len(values) < LARGE:
        return encode_symbols(values, 256)
    deflate = zlib.compressobj(_DEFLATE_LEVEL, wbits=-zlib.MAX_WBITS)
    return deflate.compress(values.tobytes()) + deflate.flush()


def _decode_bytes(data: bytes, count: int) -> NDArray[np.integer]:
    if count < LARGE:
        return decode_symbols(data, count, 256)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        values = inflate.decompress(data, count + 1)
    except zlib.error as error:
        raise PayloadError(f"deflated section does not decode: {error}") from error
    if len(values) != count or not inflate.eof or inflate.unused_data:
        raise PayloadError(f"deflated section does not hold {count} bytes and nothing else")
    return np.frombuffer(values, np.uint8)


def half_exponents(largest: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the exponents >= 0 that scale magnitudes up to `largest` to the top of float16.

    Raises
    ------
    CodecError
        If half precision rounds a magnitude to infinity.
    """
    if largest.max(initial=0) >= _ROUNDS_TO_INFINITY:
        raise CodecError(f"magnitude is {largest.max()}, must be below {_ROUNDS_TO_INFINITY}")
    return np.frexp(largest)[1].astype(np.int64) + _EXPONENT_BIAS


def to_half(values: NDArray[np.float32], exponent: int) -> NDArray[np.float16]:
    """Scale by the power of two of `exponent` and round to nearest float16.

    The relative error is at most 2**-11 down to 2**-29 of the largest magnitude.
    """
    scale = 2.0 ** (_EXPONENT_BIAS + _HALF_EXPONENT - exponent)  # exact, as is every product
    halves = np.empty(len(values), np.float16)
    for run in runs(len(values)):
        halves[run] = values[run] * np.float64(scale)
    return halves


def from_half(halves: NDArray[np.float16], exponent: int) -> NDArray[np.float32]:
    """Undo `to_half`.

    Raises
    ------
    PayloadError
        If an exponent is not one that `half_exponent` returns.
    """
    if exponent > _LARGEST_EXPONENT:
        raise PayloadError(f"exponent {exponent}, must be 0..{_LARGEST_EXPONENT}")
    scale = 2.0 ** (exponent - (_EXPONENT_BIAS + _HALF_EXPONENT))
    values = np.empty(len(halves), np.float32)
    with np.errstate(over="ignore", under="ignore"):
        for run in runs(len(halves)):
            values[run] = halves[run] * np.float64(scale)
    return values


def encode_bits(bits: NDArray[np.bool_]) -> bytes:
    """Pack booleans (N,), eight a byte."""
    return np.packbits(bits).tobytes()


def decode_bits(data: bytes, count: int) -> NDArray[np.bool_]:
    """Return the booleans (count,) of `encode_bits`; `PayloadError` on another length."""
    if len(data) != -(-count // 8):
        raise PayloadError(f"{len(data)} bytes for {count} bits, must be {-(-count // 8)}")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count).astype(np.bool_)
