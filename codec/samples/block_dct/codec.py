"""The block-transform codec, the default for images and series.

::

    samples -> stretch -> colour and cosine transform -> quantizer -> entropy-coded coefficients

The stretch is what makes the step relative to the samples' own spread; see
`codec.samples.spread`.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec.coding import cursor
from codec.coding.entropy import line_entropy
from codec.coding.range_coder import BitCoder, BitDecoder, BitEncoder, Ints
from codec.errors import CodecError
from codec.samples.block_dct.coefficients import (
    CoefficientModel,
    code_coefficients,
    layout,
)
from codec.samples.block_dct.prediction import Prediction, block_means, predictable
from codec.samples.block_dct.steps import coefficient_steps
from codec.samples.block_dct.transform import Transform, forward, inverse, transform_for
from codec.samples.quantizer import (
    UNBIASED,
    check_magnitude,
    dequantize,
    quantize,
    within_range,
)
from codec.samples.sample_codec import Array, Key
from codec.samples.spread import Stretch

if TYPE_CHECKING:
    from codec.samples.options import CodecOptions
    from codec.samples.spec import SampleSpec

_MAX_COEFFICIENTS = 1 << 20  # of a block, all channels


class BlockDCT:
    """Cosine transform of blocks, a pyramid of their means, adaptive entropy coding."""

    name = "dct"
    identifier = 1
    uses = ("block", "quantizer", "step", "relative_to", "tilt", "chroma")
    lossless = False

    def is_unbiased(self, options: "CodecOptions") -> bool:
        """Whether the quantizer is."""
        return options.quantizer in UNBIASED

    def needs_key(self, options: "CodecOptions") -> bool:
        """Whether the decoder subtracts a dither."""
        return options.quantizer == "dithered"

    def check(self, spec: "SampleSpec") -> None:
        """Raise `CodecError` unless samples are (C, H, W) or (C, T), of blocks not too large."""
        if len(spec.shape) not in (2, 3):
            raise CodecError(
                f"codec = 'dct' codes samples (C, H, W) or (C, T), not {spec.shape}; "
                "use codec = 'columns'"
            )
        size = transform_of(spec).coefficients
        if size > _MAX_COEFFICIENTS:
            raise CodecError(
                f"a block of samples {spec.shape} has {size} values in all channels; "
                f"legal: up to {_MAX_COEFFICIENTS}. Use a smaller block"
            )

    def decoded_values(self, spec: "SampleSpec") -> int:
        """Coefficients of a sample, those of padded blocks among them."""
        transform = transform_of(spec)
        return transform.coefficients * transform.blocks

    def encode(self, samples: NDArray[Any], spec: "SampleSpec", key: Key) -> bytes:
        """See `codec.samples.sample_codec.SampleCodec`."""
        coder, stretch = BitEncoder(), stretch_of(samples, spec)
        tables = quantized_tables(samples, spec, key, stretch)
        check_magnitude(max(int(np.abs(table).max()) for table in tables))
        _code_pyramid(coder, spec, len(samples), tables)
        head = stretch.to_bytes() if spec.codec.relative_to == "spread" else b""
        return head + coder.finish()

    def decode(
        self, data: bytes, count: int, spec: "SampleSpec", key: Key
    ) -> tuple[Array, float | None]:
        """See `codec.samples.sample_codec.SampleCodec`."""
        reader, stretch = cursor.Reader(data), Stretch()
        if spec.codec.relative_to == "spread":
            stretch = Stretch.read(reader, spec.shape[0], images=len(spec.shape) == 3)
        tables = _code_pyramid(BitDecoder(reader.rest()), spec, count, None)
        values = _dequantized(tables, spec, key, stretch)
        return values, sum(line_entropy(table) for table in tables)

    def reconstruct(self, samples: NDArray[Any], spec: "SampleSpec", key: Key) -> Array:
        """See `codec.samples.sample_codec.SampleCodec`."""
        stretch = stretch_of(samples, spec)
        return _dequantized(quantized_tables(samples, spec, key, stretch), spec, key, stretch)


def transform_of(spec: "SampleSpec") -> Transform:
    """Return the transform that the options mean for the shape of a spec."""
    return transform_for(spec.shape, spec.codec.block)


def stretch_of(samples: NDArray[Any], spec: "SampleSpec") -> Stretch:
    """Return how samples (N, *spec.shape) are stretched before they are transformed."""
    if spec.codec.relative_to != "spread":
        return Stretch()
    centred = samples.astype(np.float32) - _middle(spec)
    return Stretch.of(centred, spec.high - spec.low, images=len(spec.shape) == 3)


def quantized_tables(
    samples: NDArray[Any], spec: "SampleSpec", key: Key, stretch: Stretch | None = None
) -> list[Ints]:
    """Return the integers that stand for samples (N, *spec.shape), before entropy coding.

    `stretch` is by default what `stretch_of` returns.

    Returns
    -------
    list of int64 (coefficients, N * blocks)
        One table for each level of the transform.
    """
    transform = transform_of(spec)
    stretch = stretch or stretch_of(samples, spec)
    centred = samples.astype(np.float32) - _middle(spec)
    coefficients = forward(stretch.forward(centred), transform)
    tables = [
        quantize(table / steps, spec.codec.quantizer, key=(*key, number))
        for number, (table, steps) in enumerate(zip(coefficients, _steps(spec), strict=True))
    ]
    for level, table in zip(transform.levels[:-1], tables, strict=False):
        table[level.means] = 0  # the next level holds them, and dither is not wanted here
    return tables


def _dequantized(tables: list[Ints], spec: "SampleSpec", key: Key, stretch: Stretch) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):  # `decode_samples` refuses the result
        coefficients = [
            dequantize(table, spec.codec.quantizer, key=(*key, number)) * steps
            for number, (table, steps) in enumerate(zip(tables, _steps(spec), strict=True))
        ]
        values = stretch.inverse(inverse(coefficients, transform_of(spec))) + _middle(spec)
    return within_range(values, spec)


def _code_pyramid(
    coder: BitCoder, spec: "SampleSpec", count: int, tables: list[Ints] | None
) -> list[Ints]:
    """Code the tables of all levels, coarsest first; None when decoding."""
    levels, model = transform_of(spec).levels, CoefficientModel.start()
    factors = [steps[:, 0] / steps[0, 0] for steps in _steps(spec)]
    coded: list[Ints] = []
    means: Ints | None = None  # of the level's blocks
    for number in reversed(range(len(levels))):
        level = levels[number]
        plan = layout(level.channels, level.block_shape)
        table = None if tables is None else tables[number]
        around = None
        if means is not None and predictable(level):
            around = Prediction(level, means, factors[number])
        values = code_coefficients(coder, model, plan, count * level.blocks, table, around)
        coded.insert(0, values)
        if number:
            means = block_means(level, values, means)
    return coded


def _steps(spec: "SampleSpec") -> list[Array]:
    """Return the steps of each level's coefficients, in units of the samples."""
    options = spec.codec
    step = options.step * (spec.high - spec.low)
    return [
        coefficient_steps(level, step, options.tilt, options.chroma)
        for level in transform_of(spec).levels
    ]


def _middle(spec: "SampleSpec") -> np.float32:
    """Return the value that is coded as zero."""
    return np.float32((spec.low + spec.high) / 2)
