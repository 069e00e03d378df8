"""Samples as the rows of a table, quantized value by value: for tables, and as a yardstick.

::

    samples -> quantizer -> width | steps, which are wide, first symbols | columns, one by one

Every column has a step of its own, relative to its spread; with ``relative_to = "range"`` all
share one, and the lowest symbol. A column is *wide* if its symbols differ by more than 8 bits, as
they do where there are outliers: it is coded as distances from the median.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec.coding import cursor
from codec.coding.columns import code_columns, code_integers
from codec.coding.entropy import line_entropy
from codec.coding.range_coder import BitCoder, BitDecoder, BitEncoder, Ints
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
from codec.samples.spread import COARSEST, FINEST, column_exponents, column_steps

if TYPE_CHECKING:
    from codec.samples.options import CodecOptions
    from codec.samples.spec import SampleSpec

Mask = NDArray[np.bool_]

_NARROW_BITS = 8


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

    def encode(
        self,
        samples: NDArray[Any],
        spec: "SampleSpec",
        key: Key,
        like: NDArray[Any] | None = None,
    ) -> bytes:
        """See `codec.samples.sample_codec.SampleCodec`."""
        grid = Grid.of(samples, spec, like)
        table = grid.quantized(samples, spec, key)
        if grid.exponents is None:
            return _encode_alike(table)
        return _encode_each(table, grid.exponents)

    def decode(
        self, data: bytes, count: int, spec: "SampleSpec", key: Key
    ) -> tuple[Array, float | None]:
        """See `codec.samples.sample_codec.SampleCodec`."""
        columns = math.prod(spec.shape)
        if spec.codec.relative_to == "range":
            grid, table = Grid(), _decode_alike(data, count, columns)
        else:
            table, exponents = _decode_each(data, count, columns)
            grid = Grid(exponents)
        return grid.dequantized(table, spec, key), line_entropy(table.T)

    def reconstruct(
        self,
        samples: NDArray[Any],
        spec: "SampleSpec",
        key: Key,
        like: NDArray[Any] | None = None,
    ) -> Array:
        """See `codec.samples.sample_codec.SampleCodec`."""
        grid = Grid.of(samples, spec, like)
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
    def of(
        cls, samples: NDArray[Any], spec: "SampleSpec", like: NDArray[Any] | None = None
    ) -> "Grid":
        """Return the grid of samples (N, *spec.shape), for the spread of others if there are."""
        if spec.codec.relative_to == "range":
            return cls()
        table = samples.astype(np.float64).reshape(len(samples), -1)
        others = table if like is None else like.astype(np.float64).reshape(len(like), -1)
        integers = spec.dtype != "float32"
        return cls(column_exponents(table, spec.codec.step, integers=integers, like=others))

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


# One step and one lowest symbol


def _encode_alike(table: Ints) -> bytes:
    check_magnitude(int(np.abs(table).max()))
    lowest = int(table.min())
    width = int(table.max() - lowest).bit_length()
    coder = BitEncoder()
    code_columns(coder, width, len(table), table.shape[1], table - lowest)
    return bytes([width]) + cursor.zigzag(lowest) + coder.finish()


def _decode_alike(data: bytes, count: int, columns: int) -> Ints:
    reader = cursor.Reader(data)
    width = _checked_width(reader.byte("width"), MAX_MAGNITUDE.bit_length() + 1)
    lowest = reader.zigzag("lowest symbol")
    if abs(lowest) > MAX_MAGNITUDE:
        raise PayloadError(f"lowest symbol {lowest}; legal: up to +-{MAX_MAGNITUDE}")
    return code_columns(BitDecoder(reader.rest()), width, count, columns, None) + lowest


# A step for each column


def _encode_each(table: Ints, exponents: Ints) -> bytes:
    lowest = table.min(axis=0)
    reach = table.max(axis=0) - lowest
    check_magnitude(int(reach.max()))
    wide = reach >> _NARROW_BITS > 0
    first = np.where(wide, np.sort(table, axis=0)[len(table) // 2], lowest)
    width = int(reach[~wide].max(initial=0)).bit_length()
    coder = BitEncoder()
    _code_head(coder, len(first), (exponents, wide, first))
    _code_table(coder, width, wide, len(table), table - first)
    return bytes([width]) + coder.finish()


def _decode_each(data: bytes, count: int, columns: int) -> tuple[Ints, Ints]:
    reader = cursor.Reader(data)
    width = _checked_width(reader.byte("width"), _NARROW_BITS)
    coder = BitDecoder(reader.rest())
    exponents, wide, first = _code_head(coder, columns, None)
    if exponents.min() < FINEST or exponents.max() > COARSEST:
        raise PayloadError(f"exponent of a step outside [{FINEST}, {COARSEST}]")
    return _code_table(coder, width, wide, count, None) + first, exponents


def _code_head(
    coder: BitCoder, columns: int, head: tuple[Ints, Mask, Ints] | None
) -> tuple[Ints, Mask, Ints]:
    """Code each column's exponent, whether it is wide, and the symbol that it counts from."""
    if head is None:
        moves = code_integers(coder, columns, 1, None)
        wide = code_columns(coder, 1, columns, 1, None)
        first = code_integers(coder, columns, 1, None)
        return np.cumsum(moves), wide[:, 0] == 1, first[:, 0]
    exponents, is_wide, symbols = head
    code_integers(coder, columns, 1, np.diff(exponents, prepend=0)[:, None])
    code_columns(coder, 1, columns, 1, is_wide.astype(np.int64)[:, None])
    code_integers(coder, columns, 1, symbols[:, None])
    return head


def _code_table(coder: BitCoder, width: int, wide: Mask, rows: int, table: Ints | None) -> Ints:
    """Code the narrow columns of a table, (rows, d), then the wide ones."""
    decoded = np.zeros((rows, len(wide)), np.int64)
    narrow, outlying = (None, None) if table is None else (table[:, ~wide], table[:, wide])
    columns = int(wide.sum())
    decoded[:, ~wide] = code_columns(coder, width, rows, len(wide) - columns, narrow)
    decoded[:, wide] = code_integers(coder, rows, columns, outlying)
    return decoded


def _checked_width(width: int, most: int) -> int:
    if width > most:
        raise PayloadError(f"symbols of {width} bits; at most {most} bits")
    return width
