"""Samples as the rows of a table, quantized value by value: for tables, and as a yardstick.

::

    samples -> quantizer -> lowest symbol and width | columns, entropy-coded one by one
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec.coding import cursor
from codec.coding.columns import code_columns
from codec.coding.entropy import line_entropy
from codec.coding.range_coder import BitDecoder, BitEncoder, Ints
from codec.errors import PayloadError
from codec.samples.quantizer import (
    MAX_MAGNITUDE,
    UNBIASED,
    check_magnitude,
    dequantize,
    quantize,
    within_range,
)
from codec.samples.sample_codec import Array, Key

if TYPE_CHECKING:
    from codec.samples.options import CodecOptions
    from codec.samples.spec import SampleSpec


class Columns:
    """A quantizer of every value by itself, a distribution of every column."""

    name = "columns"
    identifier = 2
    uses = ("quantizer", "step")
    lossless = False

    def is_unbiased(self, options: "CodecOptions") -> bool:
        """Whether the quantizer is."""
        return options.quantizer in UNBIASED

    def needs_key(self, options: "CodecOptions") -> bool:
        """Whether the decoder subtracts a dither."""
        return options.quantizer == "dithered"

    def check(self, spec: "SampleSpec") -> None:
        """Accept all samples."""

    def decoded_values(self, spec: "SampleSpec") -> int:
        """Values of a sample."""
        return math.prod(spec.shape)

    def encode(self, samples: NDArray[Any], spec: "SampleSpec", key: Key) -> bytes:
        """See `codec.samples.sample_codec.SampleCodec`."""
        table = _quantized(samples, spec, key)
        check_magnitude(int(np.abs(table).max()))
        lowest = int(table.min())
        width = int(table.max() - lowest).bit_length()
        coder = BitEncoder()
        code_columns(coder, width, len(table), table.shape[1], table - lowest)
        return _pack_bounds(lowest, width) + coder.finish()

    def decode(
        self, data: bytes, count: int, spec: "SampleSpec", key: Key
    ) -> tuple[Array, float | None]:
        """See `codec.samples.sample_codec.SampleCodec`."""
        reader = cursor.Reader(data)
        lowest, width = _read_bounds(reader)
        coder = BitDecoder(reader.rest())
        table = code_columns(coder, width, count, math.prod(spec.shape), None) + lowest
        return _dequantized(table, spec, key), line_entropy(table.T)

    def reconstruct(self, samples: NDArray[Any], spec: "SampleSpec", key: Key) -> Array:
        """See `codec.samples.sample_codec.SampleCodec`."""
        return _dequantized(_quantized(samples, spec, key), spec, key)


def _quantized(samples: NDArray[Any], spec: "SampleSpec", key: Key) -> Ints:
    values = samples.astype(np.float32).reshape(len(samples), -1) - np.float32(spec.low)
    # Transposed for the order in which the random numbers are drawn.
    return quantize(values.T / _step(spec), spec.codec.quantizer, key=(*key, 0)).T


def _dequantized(table: Ints, spec: "SampleSpec", key: Key) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):  # `decode_samples` refuses the result
        scaled = dequantize(table.T, spec.codec.quantizer, key=(*key, 0)) * _step(spec)
        values = np.ascontiguousarray(scaled.T).reshape(-1, *spec.shape) + np.float32(spec.low)
    return within_range(values, spec)


def _step(spec: "SampleSpec") -> np.float32:
    with np.errstate(over="ignore"):
        return np.float32(spec.codec.step * (spec.high - spec.low))


def _pack_bounds(lowest: int, width: int) -> bytes:
    return bytes([width]) + cursor.varint(2 * lowest if lowest >= 0 else -2 * lowest - 1)


def _read_bounds(reader: cursor.Reader) -> tuple[int, int]:
    width, zigzag = reader.byte("width"), reader.varint("lowest symbol")
    if width > MAX_MAGNITUDE.bit_length() + 1 or zigzag > 2 * MAX_MAGNITUDE:
        raise PayloadError(
            f"symbols of {width} bits above {zigzag} (zigzag); "
            f"at most {MAX_MAGNITUDE.bit_length() + 1} bits above {2 * MAX_MAGNITUDE}"
        )
    return (zigzag >> 1) if zigzag % 2 == 0 else -((zigzag + 1) >> 1), width
