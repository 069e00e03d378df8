"""What the samples of a payload are, and how they are coded."""

import math
from dataclasses import dataclass, field

from codec.coding import cursor
from codec.errors import CodecError, OptionError, PayloadError
from codec.options import OneOf, Options, Range, option
from codec.samples.options import CodecOptions
from codec.samples.registry import SAMPLE_CODECS
from codec.samples.sample_codec import SampleCodec

VERSION = 7  # of payloads that are written
READABLE = (6, VERSION)
DTYPES = OneOf(("uint8", "float32", "int32"))
MAX_AXES, MAX_VALUES_PER_SAMPLE = 4, 1 << 24
_VALUES = Range(-1e30, 1e30)


@dataclass(frozen=True)
class SampleSpec(Options):
    """Everything a decoder must know of the samples.

    Attributes
    ----------
    shape : tuple of int
        One sample, channels first: (C, H, W), (C, T) or (d,).
    dtype : str
        ``uint8``, ``float32`` or ``int32`` (tokens, within +-2**24): what the client holds.
    low, high : float
        Range of the values; biased codecs decode into it.
    classes : int
        Number of classes; 0 when targets are floats.
    target_size : int
        Floats in a target when `classes` is 0; 0 for single floats.
    codec : CodecOptions
        How samples are coded; ``auto`` becomes the codec that it means for the shape.
    version : int
        Version of the payload, which says how: one of `READABLE`. It does not stand in the spec's
        own bytes, and specs of the same samples are equal whatever it is.

    Raises
    ------
    CodecError
        If a value is not legal, or samples like these cannot be coded so.
    """

    shape: tuple[int, ...]
    dtype: str = option("uint8", "type of the client's values", DTYPES)
    low: float = option(0.0, "lowest value", _VALUES, float32=True)
    high: float = option(255.0, "highest value", _VALUES, float32=True)
    classes: int = option(0, "number of classes", Range(0, 1 << 24))
    target_size: int = option(0, "floats in a target", Range(0, 1 << 20))
    codec: CodecOptions = field(default_factory=CodecOptions)
    version: int = field(default=VERSION, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shape", _checked_shape(self.shape))
        object.__setattr__(self, "codec", self.codec.resolved(self.shape, self.dtype))
        if not self.low < self.high:
            raise CodecError(f"value range is [{self.low}, {self.high}]; low must be below high")
        if self.classes and self.target_size:
            raise CodecError(
                f"classes is {self.classes} and target_size {self.target_size}; "
                "at most one of them may be positive"
            )
        if self.version not in READABLE:
            known = " or ".join(map(str, READABLE))
            raise OptionError("version", f"= {self.version} must be {known}")
        self.sample_codec.check(self)

    @property
    def sample_codec(self) -> SampleCodec:
        """What codes the samples."""
        return SAMPLE_CODECS[self.codec.codec]

    @property
    def target_kind(self) -> str:
        """What the targets are, in words."""
        if self.classes:
            return f"{self.classes} classes"
        return f"vectors of {self.target_size}" if self.target_size else "single floats"

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one target."""
        return (self.target_size,) if self.target_size else ()

    def to_bytes(self) -> bytes:
        """Return the spec as it travels."""
        return (
            self.codec.to_bytes()
            + bytes([DTYPES.index(self.dtype), len(self.shape)])
            + b"".join(map(cursor.varint, self.shape))
            + cursor.number(self.low)
            + cursor.number(self.high)
            + cursor.varint(self.classes)
            + cursor.varint(self.target_size)
        )

    @classmethod
    def read(cls, reader: cursor.Reader, version: int = VERSION) -> "SampleSpec":
        """Read a spec at a cursor, of a payload of a version.

        Raises
        ------
        PayloadError
            If the bytes are not a spec.
        """
        codec = CodecOptions.read(reader)
        dtype, axes = reader.byte("dtype"), reader.byte("axes")
        if dtype >= len(DTYPES) or not 1 <= axes <= MAX_AXES:
            raise PayloadError(f"unknown dtype {dtype} or number of axes {axes}")
        shape = tuple(reader.varint("shape") for _ in range(axes))
        low, high = reader.number("low"), reader.number("high")
        classes, target_size = reader.varint("classes"), reader.varint("target size")
        try:
            kind = DTYPES[dtype]
            return cls(shape, kind, low, high, classes, target_size, codec, version)
        except CodecError as error:
            raise PayloadError(str(error)) from error


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    sides = tuple(int(side) for side in shape if side == int(side))
    if len(sides) != len(shape) or not 1 <= len(sides) <= MAX_AXES or min(sides) < 1:
        raise OptionError("shape", f"= {shape} must be 1 to {MAX_AXES} whole numbers >= 1")
    if math.prod(sides) > MAX_VALUES_PER_SAMPLE:
        raise OptionError(
            "shape", f"= {shape} must hold at most {MAX_VALUES_PER_SAMPLE} values per sample"
        )
    return sides
