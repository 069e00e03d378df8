"""The block-transform codec, the default for images and series.

::

    samples -> stretch -> colour and cosine transform -> quantizer -> entropy-coded coefficients

The stretch is what makes the step relative to the samples' own spread; see
`codec.samples.spread`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec.coding import cursor
from codec.coding.entropy import line_entropy
from codec.coding.range_coder import BitDecoder, BitEncoder, Ints
from codec.compilation import is_compiled
from codec.errors import CodecError, PayloadError
from codec.samples.block_dct.coefficients import (
    CoefficientModel,
    code_coefficients,
    layout,
)
from codec.samples.block_dct.prediction import Prediction, block_means, predictable
from codec.samples.block_dct.steps import coefficient_steps
from codec.samples.block_dct.transform import Transform, forward, inverse, transform_for
from codec.samples.channel_axis import ChannelAxis, channel_axis_of
from codec.samples.quantizer import (
    UNBIASED,
    check_magnitude,
    dequantize,
    quantize,
    within_range,
)
from codec.samples.sample_codec import Array, Key
from codec.samples.spread import Moments, Stretch

if TYPE_CHECKING:
    from codec.samples.options import CodecOptions
    from codec.samples.spec import SampleSpec

_MAX_COEFFICIENTS = 1 << 20  # of a block, all channels
# Steps are halved, a few times at most, where they would erase much of what is to be kept: noise,
# which no transform gathers in a few coefficients.
_MOST_LOST, _MOST_HALVED = 0.4, 4
_MOST_PROBED = 1 << 20  # values that are looked at
_AXIS_UNIT = 64  # the channel axis stands above the first exponent of the stretch


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
        """Raise `CodecError` unless samples have one to three axes and blocks are not too large."""
        legal = (2, 3) if spec.codec.relative_to == "range" else (1, 2, 3)
        if len(spec.shape) not in legal:
            raise CodecError(
                "codec = 'dct' codes samples (C, H, W), (H, W, C), (H, W), (C, T) or (T,), not "
                f"{spec.shape}; use codec = 'columns'"
            )
        size = max(transform_of(spec, axis).coefficients for axis in _channel_axes(spec))
        if size > _MAX_COEFFICIENTS:
            raise CodecError(
                f"a block of samples {spec.shape} has {size} values in all channels; "
                f"legal: up to {_MAX_COEFFICIENTS}. Use a smaller block"
            )

    def decoded_values(self, spec: "SampleSpec") -> int:
        """Coefficients of a sample, those of padded blocks among them."""
        transforms = [transform_of(spec, axis) for axis in _channel_axes(spec)]
        return max(transform.coefficients * transform.blocks for transform in transforms)

    def encode(
        self,
        samples: NDArray[Any],
        spec: "SampleSpec",
        key: Key,
        like: NDArray[Any] | None = None,
    ) -> bytes:
        """See `codec.samples.sample_codec.SampleCodec`."""
        plan = Plan.of(samples, spec, like)
        tables = plan.quantized(samples, spec, key)
        check_magnitude(max(int(np.abs(table).max()) for table in tables))
        coder = _coder()
        _code_pyramid(coder, spec, plan, len(samples), tables)
        stream: bytes = coder.finish()
        return plan.to_bytes(spec) + stream

    def decode(
        self, data: bytes, count: int, spec: "SampleSpec", key: Key
    ) -> tuple[Array, float | None]:
        """See `codec.samples.sample_codec.SampleCodec`."""
        reader = cursor.Reader(data)
        plan = Plan.read(reader, spec)
        tables = _code_pyramid(_coder(reader.rest()), spec, plan, count, None)
        return plan.dequantized(tables, spec, key), sum(line_entropy(table) for table in tables)

    def reconstruct(
        self,
        samples: NDArray[Any],
        spec: "SampleSpec",
        key: Key,
        like: NDArray[Any] | None = None,
    ) -> Array:
        """See `codec.samples.sample_codec.SampleCodec`."""
        plan = Plan.of(samples, spec, like)
        return plan.dequantized(plan.quantized(samples, spec, key), spec, key)


@dataclass(frozen=True)
class Plan:
    """What is decided for the samples of a payload, and sent ahead of them.

    Attributes
    ----------
    axis : ChannelAxis
        Where the channels are.
    stretch : Stretch
        What makes the step relative to the samples' spread.
    """

    axis: ChannelAxis
    stretch: Stretch

    @classmethod
    def of(
        cls, samples: NDArray[Any], spec: "SampleSpec", like: NDArray[Any] | None = None
    ) -> "Plan":
        """Return the plan of samples (N, *spec.shape), for the spread of others if there are."""
        middle, width = _range(spec)
        if spec.codec.relative_to == "range":
            return cls(ChannelAxis.FIRST, Stretch(middle, width))
        axis = channel_axis_of(samples if like is None else like)
        coded, others = axis.coded(samples), None if like is None else axis.coded(like)
        images = coded.ndim == 4
        finest = spec.codec.step * min(1.0, spec.codec.chroma)
        moments = Moments.of(coded, images=images, like=others)
        plan = cls(axis, Stretch.of(coded, moments, middle, width, finest, images=images))
        measured = coded if others is None else others
        some = measured[:: -(-measured.size // _MOST_PROBED)]
        variance = moments.variance
        for _ in range(_MOST_HALVED):
            erased = plan._lost(some, spec, len(variance)) > _MOST_LOST * variance
            moments = moments.finer(erased)
            finer = Stretch.of(coded, moments, middle, width, finest, images=images)
            if finer.exponents == plan.stretch.exponents:
                break
            plan = cls(axis, finer)
        return plan

    def _lost(self, coded: NDArray[Any], spec: "SampleSpec", groups: int) -> NDArray[np.float64]:
        """Return the mean squared error of each channel, or of all, at the default options."""
        usual = _at_default_options(spec, coded.shape[1:], spec.version)
        plan = replace(self, axis=ChannelAxis.FIRST)
        decoded = plan.dequantized(plan.quantized(coded, usual, (0, 0, 0)), usual, (0, 0, 0))
        squared = np.square(decoded - coded.astype(np.float64)).reshape(len(coded), groups, -1)
        error: NDArray[np.float64] = squared.mean(axis=(0, 2))
        return error

    def to_bytes(self, spec: "SampleSpec") -> bytes:
        """Return the plan as it travels: nothing for steps relative to the range."""
        if spec.codec.relative_to == "range":
            return b""
        shape = self.axis.coded_shape(spec.shape)
        first, *rest = self.stretch.to_bytes(shape[0], images=len(shape) == 3)
        return bytes([self.axis * _AXIS_UNIT + first, *rest])

    @classmethod
    def read(cls, reader: cursor.Reader, spec: "SampleSpec") -> "Plan":
        """Read what `to_bytes` wrote.

        Raises
        ------
        PayloadError
            If the bytes are not a plan for samples of the spec.
        """
        middle, width = _range(spec)
        if spec.codec.relative_to == "range":
            return cls(ChannelAxis.FIRST, Stretch(middle, width))
        number, exponent = divmod(reader.byte("channel axis"), _AXIS_UNIT)
        if number not in [axis.value for axis in _channel_axes(spec)]:
            raise PayloadError(f"channel axis {number} does not fit samples {spec.shape}")
        axis = ChannelAxis(number)
        shape = axis.coded_shape(spec.shape)
        images = len(shape) == 3
        return cls(axis, Stretch.read(exponent, reader, shape[0], middle, width, images=images))

    def quantized(self, samples: NDArray[Any], spec: "SampleSpec", key: Key) -> list[Ints]:
        """Return the integers that stand for samples (N, *spec.shape), before entropy coding.

        Returns
        -------
        list of int64 (coefficients, N * blocks)
            One table for each level of the transform.
        """
        transform = transform_of(spec, self.axis)
        coefficients = forward(self.stretch.forward(self.axis.coded(samples)), transform)
        tables = [
            quantize(table / steps, spec.codec.quantizer, key=(*key, number))
            for number, (table, steps) in enumerate(
                zip(coefficients, _steps(spec, transform), strict=True)
            )
        ]
        for level, table in zip(transform.levels[:-1], tables, strict=False):
            table[level.means] = 0  # the next level holds them, and dither is not wanted here
        return tables

    def dequantized(self, tables: list[Ints], spec: "SampleSpec", key: Key) -> Array:
        """Return the samples that tables stand for, float32 (N, *spec.shape)."""
        transform = transform_of(spec, self.axis)
        with np.errstate(over="ignore", invalid="ignore"):  # `decode_samples` refuses the result
            coefficients = [
                dequantize(table, spec.codec.quantizer, key=(*key, number)) * steps
                for number, (table, steps) in enumerate(
                    zip(tables, _steps(spec, transform), strict=True)
                )
            ]
            values = self.stretch.inverse(inverse(coefficients, transform))
        return within_range(self.axis.restored(values), spec)


@lru_cache(maxsize=64)
def _at_default_options(
    spec: "SampleSpec", shape: tuple[int, ...], version: int
) -> "SampleSpec":  # specs are equal whatever their versions
    options = type(spec.codec)("dct", block=spec.codec.block)
    return replace(spec, shape=shape, codec=options, version=version)


def transform_of(spec: "SampleSpec", axis: ChannelAxis = ChannelAxis.FIRST) -> Transform:
    """Return the transform that the options mean for the shape of a spec."""
    shape = axis.coded_shape(spec.shape)
    return transform_for(shape, spec.codec.block, fitting=spec.version >= 7)


def _channel_axes(spec: "SampleSpec") -> list[ChannelAxis]:
    """Return where samples of a spec may have their channels."""
    if spec.codec.relative_to == "range":
        return [ChannelAxis.FIRST]
    return {
        1: [ChannelAxis.NONE],
        2: [ChannelAxis.FIRST, ChannelAxis.NONE],
        3: [ChannelAxis.FIRST, ChannelAxis.LAST],
    }[len(spec.shape)]


def _code_pyramid(
    coder: Any, spec: "SampleSpec", plan: Plan, count: int, tables: list[Ints] | None
) -> list[Ints]:
    """Code the tables of all levels, coarsest first; None when decoding."""
    transform, code = transform_of(spec, plan.axis), _coefficient_coder(coder, spec)
    levels = transform.levels
    factors = [steps[:, 0] / steps[0, 0] for steps in _steps(spec, transform)]
    coded: list[Ints] = []
    means: Ints | None = None  # of the level's blocks
    for number in reversed(range(len(levels))):
        level = levels[number]
        order = layout(level.channels, level.block_shape)
        table = None if tables is None else tables[number]
        around = None
        if means is not None and predictable(level):
            around = Prediction(level, means, factors[number])
        values = code(order, count * level.blocks, table, around)
        coded.insert(0, values)
        if number:
            means = block_means(level, values, means)
    return coded


def _coder(data: bytes | None = None) -> Any:
    """Return an encoder, or a decoder of data; compiled, if it can be."""
    if is_compiled():
        from codec.coding.compiled import Coder
        from codec.samples.block_dct.compiled import prepare

        prepare()
        return Coder(data)
    return BitEncoder() if data is None else BitDecoder(data)


def _coefficient_coder(coder: Any, spec: "SampleSpec") -> Callable[..., Ints]:
    """Return `code_coefficients` of a coder, compiled if it is, with tables to start from."""
    learned = spec.version >= 7
    if isinstance(coder, BitEncoder | BitDecoder):
        model = CoefficientModel.start(learned=learned)
        return partial(code_coefficients, coder, model, learned=learned)
    from codec.samples.block_dct import compiled

    tables = compiled.CompiledModel.start(learned=learned)
    return partial(compiled.code_coefficients, coder, tables, learned=learned)


def _steps(spec: "SampleSpec", transform: Transform) -> list[Array]:
    """Return the steps of each level's coefficients, in units of the stretched samples."""
    options = spec.codec
    step = options.step * (spec.high - spec.low)
    return [
        coefficient_steps(level, step, options.tilt, options.chroma) for level in transform.levels
    ]


def _range(spec: "SampleSpec") -> tuple[float, float]:
    """Return the value that is coded as zero where nothing is stretched, and the range's width."""
    return (spec.low + spec.high) / 2, spec.high - spec.low
