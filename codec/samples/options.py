"""How samples are coded: the knobs of rate and distortion."""

from dataclasses import dataclass, fields, replace
from typing import Any

from codec.coding import cursor
from codec.errors import CodecError, PayloadError
from codec.options import OneOf, PackedOptions, Range, choice, option
from codec.samples.block_dct.transform import MAX_BLOCK
from codec.samples.quantizer import QUANTIZERS
from codec.samples.registry import FORMER_CODECS, SAMPLE_CODECS, codec_of_identifier

AUTO = "auto"
_AUTO_IDENTIFIER = 0


class _ZeroOr(Range):
    """A range of legal numbers, and zero beside it."""

    def __contains__(self, value: float) -> bool:
        return value == 0 or super().__contains__(value)

    def __str__(self) -> str:
        return f"0 or {super().__str__()}"


@dataclass(frozen=True)
class CodecOptions(PackedOptions):
    """How samples are coded; a codec ignores the options that it does not use.

    Attributes
    ----------
    codec : str
        Key of `codec.samples.registry.SAMPLE_CODECS`, or ``auto``: ``dct`` for images (C, H, W)
        and series (C, T), ``lossless`` for integers, ``columns`` for everything else.
    block : int
        ``dct``: size of a block; 0 takes 8x8 pixels of an image, or near to it what divides its
        sides, a whole series up to 256 points.
    quantizer : str
        ``dct`` and ``columns``: ``nearest`` (cheapest), ``stochastic`` or ``dithered`` (unbiased).
    step : float
        ``dct`` and ``columns``: quantization step, in an orthonormal domain, as a fraction of what
        `relative_to` says. With ``columns`` and ``range``, ``1 / (2**b - 1)`` is a b-bit
        quantizer.
    relative_to : str
        ``dct`` and ``columns``: what the step is a fraction of: the ``spread`` of the payload's
        samples (of each channel of a series or of many bands, of each column of a table), see
        `codec.samples.spread`, or the declared ``range`` of values.
    tilt : float
        ``dct``: growth of the step in the upper half of the frequencies, see
        `codec.samples.block_dct.steps`.
    chroma : float
        ``dct``: factor of the step in the colour-difference channels.
    quality : int
        Lossy image files: 1 (smallest) to 100.
    avif_speed : int
        ``avif``: what the encoder spends, 10 (fastest) to 0. On 64 images of CIFAR-10 and of
        Fashion-MNIST, speed 6 takes 10 % to 13 % more bytes than speed 3 at equal PSNR, and a
        sixth to a tenth of its time; below 3, 1 % is left to gain.
    """

    codec: str = choice("how samples are coded", AUTO, *SAMPLE_CODECS)
    block: int = option(
        0, "dct: block size (0: about 8x8 pixels, or a whole series)", _ZeroOr(2, MAX_BLOCK)
    )
    quantizer: str = choice("dct, columns: rounding to the step", *QUANTIZERS)
    step: float = option(
        0.5,
        "dct, columns: quantization step as a fraction of the samples' spread or range",
        Range(1e-5, 100),
        float32=True,
    )
    relative_to: str = choice("dct, columns: what the step is relative to", "spread", "range")
    tilt: float = option(
        0.55, "dct: growth of the step in the upper half of the frequencies", Range(0, 1000),
        float32=True,
    )  # fmt: skip
    chroma: float = option(
        2.0, "dct: factor of the step in the colour-difference channels", Range(0.01, 1000),
        float32=True,
    )  # fmt: skip
    quality: int = option(50, "jpeg, webp, avif, jpeg-xl: quality", Range(1, 100))
    avif_speed: int = option(
        3, "avif: speed of the encoder (10: fastest; 0: fewest bytes)", Range(0, 10)
    )

    def resolved(self, shape: tuple[int, ...], dtype: str) -> "CodecOptions":
        """Return the options with the codec that ``auto`` means for samples of a shape and type."""
        if self.codec != AUTO:
            return self
        if dtype == "int32":  # tokens and other codes, whose neighbours mean something else
            return replace(self, codec="lossless")
        return replace(self, codec="dct" if len(shape) in (2, 3) else "columns")

    def to_bytes(self) -> bytes:
        """Return the codec's identifier and the options that it uses."""
        if self.codec == AUTO:
            identifier, used = _AUTO_IDENTIFIER, _all_used()
        else:
            codec = SAMPLE_CODECS[self.codec]
            identifier, used = codec.identifier, codec.uses
        return bytes([identifier]) + b"".join(_write(name, getattr(self, name)) for name in used)

    @classmethod
    def from_bytes(cls, data: bytes) -> "CodecOptions":
        """Read what `to_bytes` wrote; options that the codec does not use take their default.

        Raises
        ------
        PayloadError
            If the bytes are not options.
        """
        reader = cursor.Reader(data)
        options = cls.read(reader)
        reader.finish()
        return options

    @classmethod
    def read(cls, reader: cursor.Reader) -> "CodecOptions":
        """Read options at a cursor."""
        identifier = reader.byte("codec")
        values: dict[str, Any] = {}
        if identifier == _AUTO_IDENTIFIER:
            name, used = AUTO, _all_used()
        elif identifier in FORMER_CODECS:
            former = FORMER_CODECS[identifier]
            name, used, values = former.name, former.uses, dict(former.implied)
        else:
            codec = codec_of_identifier(identifier)
            name, used = codec.name, codec.uses
        values |= {option: _read(option, reader) for option in used}
        try:
            return cls(name, **values)
        except CodecError as error:
            raise PayloadError(str(error)) from error


def _all_used() -> tuple[str, ...]:
    """Return all options but the codec: a server that says ``auto`` does not know the shape."""
    return tuple(f.name for f in fields(CodecOptions))[1:]


def _legal_names(name: str) -> tuple[str, ...]:
    legal = CodecOptions.__dataclass_fields__[name].metadata["legal"]
    assert isinstance(legal, OneOf)
    return legal


def _write(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        return bytes([_legal_names(name).index(value)])
    return cursor.number(value) if isinstance(value, float) else cursor.varint(value)


def _read(name: str, reader: cursor.Reader) -> Any:
    kind = CodecOptions.__dataclass_fields__[name].type
    if kind is float:
        return reader.number(name)
    if kind is int:
        return reader.varint(name)
    index, names = reader.byte(name), _legal_names(name)
    if index >= len(names):
        raise PayloadError(f"unknown {name} {index}; known: 0 to {len(names) - 1}")
    return names[index]
