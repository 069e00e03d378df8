"""Samples as the rows of a table, quantized value by value: for tables, and as a yardstick.

::

    samples -> quantizer -> steps, lowest symbols and width | columns, entropy-coded one by one

Every column has a step of its own, relative to its spread; with ``relative_to = "range"`` all
share one, and the lowest symbol.
"""

import math
from dataclasses import dataclass
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
from codec.samples.spread import code_integers, column_exponents, column_steps

if TYPE_CHECKING:
    from codec.samples.options import CodecOptions
    from codec.samples.spec import SampleSpec

_EXPONENT_BITS, _LOWEST_BITS = 9, MAX_MAGNITUDE.bit_length() + 1


class Columns:
    """A quantizer of every value by itself, a distribution of every column."""

    name = "columns"
    identifier = 2
    uses = ("quantizer", "step", "relative_to")
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
        grid = Grid.of(samples, spec)
        table = grid.quantized(samples, spec, key)
        check_magnitude(int(np.abs(table).max()))
        lowest = table.min(axis=0) if grid.exponents is not None else table.min()
        table = table - lowest
        width = int(table.max()).bit_length()
        coder = BitEncoder()
        if grid.exponents is None:
            head = _pack_bounds(int(lowest), width)
        else:
            head = bytes([width])
            code_integers(coder, grid.exponents, table.shape[1], _EXPONENT_BITS)
            code_integers(coder, lowest, table.shape[1], _LOWEST_BITS)
        code_columns(coder, width, len(table), table.shape[1], table)
        return head + coder.finish()

    def decode(
        self, data: bytes, count: int, spec: "SampleSpec", key: Key
    ) -> tuple[Array, float | None]:
        """See `codec.samples.sample_codec.SampleCodec`."""
        reader, columns = cursor.Reader(data), math.prod(spec.shape)
        lowest: Ints | int
        if spec.codec.relative_to == "range":
            grid = Grid()
            lowest, width = _read_bounds(reader)
            coder = BitDecoder(reader.rest())
        else:
            width = _checked_width(reader.byte("width"))
            coder = BitDecoder(reader.rest())
            grid = Grid(code_integers(coder, None, columns, _EXPONENT_BITS))
            lowest = code_integers(coder, None, columns, _LOWEST_BITS)
        table = code_columns(coder, width, count, columns, None) + lowest
        return grid.dequantized(table, spec, key), line_entropy(table.T)

    def reconstruct(self, samples: NDArray[Any], spec: "SampleSpec", key: Key) -> Array:
        """See `codec.samples.sample_codec.SampleCodec`."""
        grid = Grid.of(samples, spec)
        return grid.dequantized(grid.quantized(samples, spec, key), spec, key)


@dataclass(frozen=True)
class Grid:
    """Where the values of each column are rounded to.

    Attributes
    ----------
    exponents : int64 (d,) or None
        Of each column's step, see `column_exponents`; None: a fraction of the declared range, and
        counted from its bottom.
    """

    exponents: Ints | None = None

    @classmethod
    def of(cls, samples: NDArray[Any], spec: "SampleSpec") -> "Grid":
        """Return the grid of samples (N, *spec.shape)."""
        if spec.codec.relative_to == "range":
            return cls()
        table = samples.astype(np.float64).reshape(len(samples), -1)
        return cls(column_exponents(table, spec.codec.step))

    def quantized(self, samples: NDArray[Any], spec: "SampleSpec", key: Key) -> Ints:
        """Return the symbols of samples, int64 (N, d)."""
        flat = samples.astype(np.float32).reshape(len(samples), -1)
        # Transposed for the order in which the random numbers are drawn.
        if self.exponents is None:
            scaled = (flat - np.float32(spec.low)).T / _step(spec)
        else:
            scaled = flat.astype(np.float64).T / column_steps(self.exponents)[:, None]
        return quantize(scaled, spec.codec.quantizer, key=(*key, 0)).T

    def dequantized(self, table: Ints, spec: "SampleSpec", key: Key) -> Array:
        """Return the samples of symbols (N, d)."""
        scaled = dequantize(table.T, spec.codec.quantizer, key=(*key, 0))
        with np.errstate(over="ignore", invalid="ignore"):  # `decode_samples` refuses the result
            if self.exponents is None:
                values = scaled * _step(spec) + np.float32(spec.low)
            else:
                values = (scaled * column_steps(self.exponents)[:, None]).astype(np.float32)
        return within_range(np.ascontiguousarray(values.T).reshape(-1, *spec.shape), spec)


def _step(spec: "SampleSpec") -> np.float32:
    with np.errstate(over="ignore"):
        return np.float32(spec.codec.step * (spec.high - spec.low))


def _pack_bounds(lowest: int, width: int) -> bytes:
    return bytes([width]) + cursor.varint(2 * lowest if lowest >= 0 else -2 * lowest - 1)


def _read_bounds(reader: cursor.Reader) -> tuple[int, int]:
    width, zigzag = _checked_width(reader.byte("width")), reader.varint("lowest symbol")
    if zigzag > 2 * MAX_MAGNITUDE:
        raise PayloadError(f"lowest symbol {zigzag} (zigzag); at most {2 * MAX_MAGNITUDE}")
    return (zigzag >> 1) if zigzag % 2 == 0 else -((zigzag + 1) >> 1), width


def _checked_width(width: int) -> int:
    most = MAX_MAGNITUDE.bit_length() + 1
    if width > most:
        raise PayloadError(f"symbols of {width} bits; at most {most} bits")
    return width
