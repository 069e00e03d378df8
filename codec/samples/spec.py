"""What the samples of a payload are, and how they are coded."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from codec.coding import cursor as wire
from codec.errors import CodecError, PayloadError
from codec.samples.block_dct.transform import MAX_BLOCK, Transform, resolve
from codec.samples.quantizer import QUANTIZERS

TRANSFORMS = ("auto", "identity", "dct1", "dct2")
RECONSTRUCTIONS = ("midpoint", "centroid")
DTYPES = ("uint8", "float32")
MAX_AXES, MAX_VALUES_PER_SAMPLE, MAX_COEFFICIENTS = 4, 1 << 24, 1 << 20


def _check_choice(name: str, value: str, legal: Sequence[str]) -> None:
    if value not in legal:
        raise CodecError(f"{name} is {value!r}; legal values: {', '.join(legal)}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    # Floats as they travel: the float32 next to a bound is legal although it may lie beyond.
    cast = float if isinstance(value, int) else _float32
    if not cast(low) <= cast(value) <= cast(high):  # False for NaN
        raise CodecError(f"{name} is {value}; legal range: [{low}, {high}]")


def _float32(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


@dataclass(frozen=True)
class CodecOptions:
    """The knobs of rate and distortion. Floats are kept in float32, as they travel.

    Attributes
    ----------
    transform : str
        ``dct2`` for images (C, H, W), ``dct1`` for series (C, T), ``identity`` for tables
        (d,); ``auto`` chooses by the number of axes.
    block : int
        Block size of the transform; 0 takes 8x8 pixels of an image, a whole series up to 256
        points.
    quantizer : str
        ``nearest`` (cheapest), ``stochastic`` or ``dithered`` (unbiased), ``identity``
        (lossless).
    step : float
        Quantization step as a fraction of the value range, in an orthonormal domain. With
        transform ``identity``, ``1 / (2**b - 1)`` is a b-bit quantizer.
    tilt : float
        Growth of the step in the upper half of the frequencies, see
        `codec.samples.block_dct.steps`.
    chroma : float
        Factor of the step in the colour-difference channels.
    dead_zone : float
        Widening of the zero bin on each side, in steps, for ``nearest`` after a cosine
        transform. Saves bytes at equal squared error, but networks miss the fine detail.
    reconstruction : str
        Where ``nearest`` puts a value within its bin after a cosine transform: ``midpoint``, or
        ``centroid``, the mean of the payload's values (least squared error, less contrast).
    """

    transform: str = "auto"
    block: int = 0
    quantizer: str = "nearest"
    step: float = 0.5
    tilt: float = 0.55
    chroma: float = 2.0
    dead_zone: float = 0.0
    reconstruction: str = "midpoint"

    def __post_init__(self) -> None:
        _check_choice("transform", self.transform, TRANSFORMS)
        _check_choice("quantizer", self.quantizer, QUANTIZERS)
        _check_choice("reconstruction", self.reconstruction, RECONSTRUCTIONS)
        if self.block:
            _check_range("block", self.block, 2, MAX_BLOCK)
        _check_range("step", self.step, 1e-5, 100.0)
        _check_range("tilt", self.tilt, 0.0, 1000.0)
        _check_range("chroma", self.chroma, 0.01, 1000.0)
        _check_range("dead_zone", self.dead_zone, 0.0, 0.49)
        for name in ("step", "tilt", "chroma", "dead_zone"):
            object.__setattr__(self, name, _float32(getattr(self, name)))

    def to_bytes(self) -> bytes:
        """Return the options as they travel."""
        return (
            bytes([TRANSFORMS.index(self.transform), QUANTIZERS.index(self.quantizer)])
            + wire.varint(self.block)
            + b"".join(map(wire.number, (self.step, self.tilt, self.chroma, self.dead_zone)))
            + bytes([RECONSTRUCTIONS.index(self.reconstruction)])
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "CodecOptions":
        """Read what `to_bytes` wrote.

        Raises
        ------
        PayloadError
            If the bytes are not options.
        """
        reader = wire.Reader(data)
        options = cls.read(reader)
        reader.finish()
        return options

    @classmethod
    def read(cls, reader: wire.Reader) -> "CodecOptions":
        """Read options at a cursor."""
        transform, quantizer = reader.byte("transform"), reader.byte("quantizer")
        if transform >= len(TRANSFORMS) or quantizer >= len(QUANTIZERS):
            raise PayloadError(f"unknown transform {transform} or quantizer {quantizer}")
        block = reader.varint("block")
        step, tilt, chroma, dead_zone = (
            reader.number(name) for name in ("step", "tilt", "chroma", "dead_zone")
        )
        reconstruction = reader.byte("reconstruction")
        if reconstruction >= len(RECONSTRUCTIONS):
            raise PayloadError(f"unknown reconstruction {reconstruction}")
        try:
            return cls(
                TRANSFORMS[transform],
                block,
                QUANTIZERS[quantizer],
                step,
                tilt,
                chroma,
                dead_zone,
                RECONSTRUCTIONS[reconstruction],
            )
        except CodecError as error:
            raise PayloadError(str(error)) from error


@dataclass(frozen=True)
class SampleSpec:
    """Everything a decoder must know of the samples.

    Attributes
    ----------
    shape : tuple of int
        One sample, channels first: (C, H, W), (C, T) or (d,).
    dtype : str
        ``uint8`` or ``float32``: what the client holds.
    low, high : float
        Range of the values.
    classes : int
        Number of classes; 0 when targets are float vectors.
    target_size : int
        Floats in a target when `classes` is 0, else 0.
    codec : CodecOptions
        How samples are coded.
    """

    shape: tuple[int, ...]
    dtype: str = "uint8"
    low: float = 0.0
    high: float = 255.0
    classes: int = 0
    target_size: int = 0
    codec: CodecOptions = field(default_factory=CodecOptions)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(map(operator.index, self.shape)))
        for name in ("classes", "target_size"):
            object.__setattr__(self, name, operator.index(getattr(self, name)))
        _check_choice("dtype", self.dtype, DTYPES)
        _check_range("number of axes", len(self.shape), 1, MAX_AXES)
        _check_range("smallest side of shape", min(self.shape), 1, MAX_VALUES_PER_SAMPLE)
        _check_range("values per sample", math.prod(self.shape), 1, MAX_VALUES_PER_SAMPLE)
        for name in ("low", "high"):
            object.__setattr__(self, name, _float32(getattr(self, name)))
        _check_range("low", self.low, -1e30, 1e30)
        _check_range("high", self.high, -1e30, 1e30)
        if not self.low < self.high:
            raise CodecError(f"value range is [{self.low}, {self.high}]; low must be below high")
        _check_range("classes", self.classes, 0, 1 << 24)
        _check_range("target_size", self.target_size, 0, 1 << 20)
        if (self.classes == 0) == (self.target_size == 0):
            raise CodecError(
                f"classes is {self.classes} and target_size {self.target_size}; "
                "exactly one of them must be positive"
            )
        if self.transform.kind != "identity":
            size = self.transform.coefficients
            _check_range("channels times values of a block", size, 1, MAX_COEFFICIENTS)

    @property
    def transform(self) -> Transform:
        """The transform that the options mean for this shape."""
        return resolve(self.codec.transform, self.shape, self.codec.block)

    def to_bytes(self) -> bytes:
        """Return the spec as it travels."""
        return (
            bytes([DTYPES.index(self.dtype), len(self.shape)])
            + b"".join(map(wire.varint, self.shape))
            + wire.number(self.low)
            + wire.number(self.high)
            + wire.varint(self.classes)
            + wire.varint(self.target_size)
            + self.codec.to_bytes()
        )

    @classmethod
    def read(cls, reader: wire.Reader) -> "SampleSpec":
        """Read a spec at a cursor.

        Raises
        ------
        PayloadError
            If the bytes are not a spec.
        """
        dtype, axes = reader.byte("dtype"), reader.byte("axes")
        if dtype >= len(DTYPES) or not 1 <= axes <= MAX_AXES:
            raise PayloadError(f"unknown dtype {dtype} or number of axes {axes}")
        shape = tuple(reader.varint("shape") for _ in range(axes))
        low, high = reader.number("low"), reader.number("high")
        classes, target_size = reader.varint("classes"), reader.varint("target size")
        codec = CodecOptions.read(reader)
        try:
            return cls(shape, DTYPES[dtype], low, high, classes, target_size, codec)
        except CodecError as error:
            raise PayloadError(str(error)) from error
