"""Which lossy codec suits pictures: each codes a few of them at one rate, and the best is kept.

The rate is that of the block transform at the step that is asked for. Image files meet it with
their quality; what is compared is the error that a network feels, see `codec.samples.task_error`.
"""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.coding import cursor
from codec.errors import CodecError, PayloadError
from codec.options import Range
from codec.samples.coding import decode_samples, encode_samples
from codec.samples.options import AUTO, CodecOptions
from codec.samples.registry import SAMPLE_CODECS, codec_of_identifier
from codec.samples.spec import SampleSpec
from codec.samples.task_error import task_error

TRANSFORM = "dct"
# The faster a decoder, the earlier: of two codecs that are as good, the earlier one is kept.
IMAGE_CANDIDATES = ("webp", "avif", "jpeg-xl")
CANDIDATES = (*IMAGE_CANDIDATES, TRANSFORM)
SMALLEST_SIDE = 16  # pixels; below it, the container of a file outweighs what is in it
AS_GOOD = 0.02  # of the error
# From this side on, pixels, the block transform is kept only where no file meets the rate: at 224
# pixels its decoder takes 30 times as long as AVIF's, for an error of 92 % to 98 % (steps 0.25 to
# 0.8, eight photographs).
LARGE_SIDE = 128
MOST_OFF = 0.05  # of the asked rate: how far a file may be above it

MOST_SAMPLES, _MOST_PIXELS, _FEWEST = 64, 1 << 18, 8
_QUALITIES, _SPEEDS = Range(1, 100), Range(0, 10)
_AVIF = "avif"
# Speed of AVIF that is tried beside the one asked for: a slower encoder has less squared error, but
# smooths more, which networks feel in photographs.
_FAST = 6
_FASTEST = 8  # in the search, whose rates are those of slower ones to a few percent


@dataclass(frozen=True)
class Candidate:
    """What a codec makes of the pictures.

    Attributes
    ----------
    codec : str
    quality : int
        Of an image file, nearest to the asked rate, and hardly above; 0 of the block transform.
    bytes_per_sample : float
        At that quality, serialized, with labels and everything around.
    error : float
        At the asked rate, between the qualities around it; see `codec.samples.task_error`.
    avif_speed : int or None
        Of AVIF alone, which is tried at two.
    """

    codec: str
    quality: int
    bytes_per_sample: float
    error: float
    avif_speed: int | None = None

    @property
    def name(self) -> str:
        """The codec, with its speed."""
        return self.codec if self.avif_speed is None else f"{self.codec} (speed {self.avif_speed})"

    def to_bytes(self) -> bytes:
        """Return the candidate as it travels, its figures right to 0.4 %."""
        speed = b"" if self.avif_speed is None else cursor.varint(self.avif_speed)
        head = bytes([SAMPLE_CODECS[self.codec].identifier]) + cursor.varint(self.quality) + speed
        return head + cursor.short_number(self.bytes_per_sample) + cursor.short_number(self.error)

    @classmethod
    def read(cls, reader: cursor.Reader) -> "Candidate":
        """Read what `to_bytes` wrote.

        Raises
        ------
        PayloadError
            If the bytes are no candidate.
        """
        codec, quality = codec_of_identifier(reader.byte("codec")), reader.varint("quality")
        speed = reader.varint("speed") if codec.name == _AVIF else None
        found = cls(
            codec.name, quality, reader.short_number("rate"), reader.short_number("error"), speed
        )
        if not (
            found.codec in CANDIDATES
            and (quality == 0 if found.codec == TRANSFORM else quality in _QUALITIES)
            and (speed is None or speed in _SPEEDS)
            and 0 < found.bytes_per_sample < math.inf
            and 0 <= found.error < math.inf
        ):
            raise PayloadError(f"choice of a codec: {found}")
        return found


@dataclass(frozen=True)
class Choice:
    """A choice of codec, with what it was made by.

    Attributes
    ----------
    place : int
        Of the best among the candidates.
    candidates : tuple of Candidate
        All that were tried, the block transform first: it sets the rate.
    """

    place: int
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The one that is kept."""
        return self.candidates[self.place]

    @property
    def codec(self) -> str:
        """The codec that is kept."""
        return self.best.codec

    @property
    def rate(self) -> float:
        """The asked rate, bytes per sample."""
        return self.candidates[0].bytes_per_sample

    def options(self, asked: CodecOptions) -> CodecOptions:
        """Return the options that are coded with, where `asked` were asked for."""
        best, speed = self.best, self.best.avif_speed
        return replace(
            asked,
            codec=best.codec,
            quality=best.quality or asked.quality,
            avif_speed=asked.avif_speed if speed is None else speed,
        )

    def to_bytes(self) -> bytes:
        """Return the choice in 6 or 7 bytes a candidate."""
        head = bytes([self.place, len(self.candidates)])
        return head + b"".join(candidate.to_bytes() for candidate in self.candidates)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Choice":
        """Read what `to_bytes` wrote.

        Raises
        ------
        PayloadError
            If the bytes are no choice.
        """
        reader = cursor.Reader(data)
        place, count = reader.byte("chosen codec"), reader.byte("number of codecs")
        candidates = tuple(Candidate.read(reader) for _ in range(count))
        reader.finish()
        if place >= count or candidates[0].codec != TRANSFORM:
            raise PayloadError(f"choice {place} of {count} codecs")
        return cls(place, candidates)

    def __str__(self) -> str:
        """Return the choice in words, for a log."""
        tried = ", ".join(
            f"{c.name} {c.bytes_per_sample:.1f} B error {c.error:.1f}" for c in self.candidates
        )
        return f"{self.best.name} at {self.rate:.1f} B a sample, of {tried}"


def is_open(asked: CodecOptions, spec: SampleSpec) -> bool:
    """Whether ``auto`` leaves it to a measurement how samples of a spec are coded.

    Pictures that image files hold; an unbiased quantizer is the block transform's alone.
    """
    return (
        asked.codec == AUTO
        and asked.quantizer == "nearest"
        and spec.dtype == "uint8"
        and len(spec.shape) == 3
        and spec.shape[0] in (1, 3)
        and min(spec.shape[1:]) >= SMALLEST_SIDE
        and (spec.low, spec.high) == (0, 255)
    )


def codecs_at_hand() -> tuple[str, ...]:
    """Return the image files among the candidates that this machine codes and decodes."""
    shape = (1, SMALLEST_SIDE, SMALLEST_SIDE)
    black, found = np.zeros((1, *shape), np.uint8), []
    for name in IMAGE_CANDIDATES:
        spec = SampleSpec(shape, codec=CodecOptions(name))
        with suppress(CodecError):
            spec.sample_codec.reconstruct(black, spec, (0, 0, 0))
            found.append(name)
    return tuple(found)


def samples_to_try(shape: tuple[int, ...]) -> int:
    """Return how many pictures of a shape (C, H, W) are enough to choose by."""
    return min(MOST_SAMPLES, max(_FEWEST, _MOST_PIXELS // (shape[1] * shape[2])))


def choose(
    samples: NDArray[np.uint8],
    targets: NDArray[Any],
    spec: SampleSpec,
    asked: CodecOptions,
    codecs: Collection[str] = IMAGE_CANDIDATES,
) -> tuple[Choice, tuple[str, ...]]:
    """Choose the codec of pictures.

    Parameters
    ----------
    samples : uint8 (N, C, H, W)
        N >= 1, as many as will be in a payload, or `samples_to_try`.
    targets : (N,) or (N, target_size) array
    spec : SampleSpec
        Of the samples, coded by the block transform.
    asked : CodecOptions
        Their step sets the rate, their ``avif_speed`` holds for AVIF.
    codecs : collection of str
        Image files that may be chosen, such as those that the server can decode.

    Returns
    -------
    Choice
    tuple of str
        Which codecs this machine lacks, in words.
    """
    trial = _Trial(samples, targets, spec, asked)
    transform = trial.of(replace(asked, codec=TRANSFORM))
    candidates = [Candidate(TRANSFORM, 0, transform.rate, transform.error)]
    missing = []
    for name in IMAGE_CANDIDATES:
        if name not in codecs:
            continue
        try:
            candidates += trial.fitted(name, transform.rate)
        except CodecError as error:
            missing.append(f"codec auto goes without {name}: {error}")
    best = _best(candidates, is_large=min(spec.shape[1:]) >= LARGE_SIDE)
    return Choice(best, tuple(candidates)), tuple(missing)


def speeds(asked: int) -> tuple[int, ...]:
    """Return the speeds at which AVIF is tried where one was asked for."""
    return (asked,) if asked >= _FAST else (asked, _FAST)


def _best(candidates: Sequence[Candidate], *, is_large: bool) -> int:
    """Return the place of the candidate of the least error, or of a faster one that is as good."""
    most = (1 + MOST_OFF) * candidates[0].bytes_per_sample
    fitting = [c for c in candidates if c.bytes_per_sample <= most]
    if is_large and len(fitting) > 1:
        fitting = fitting[1:]
    least = min(c.error for c in fitting)
    good = [c for c in fitting if c.error <= (1 + AS_GOOD) * least]
    return candidates.index(
        min(good, key=lambda c: (CANDIDATES.index(c.codec), -(c.avif_speed or 0)))
    )


@dataclass(frozen=True)
class _Coded:
    """What options make of the pictures: bytes per sample, and how to measure their error."""

    rate: float
    measure: Callable[[], float]

    @cached_property
    def error(self) -> float:
        return self.measure()


@dataclass(frozen=True)
class _Trial:
    """Pictures that are coded in several ways."""

    samples: NDArray[np.uint8]
    targets: NDArray[Any]
    spec: SampleSpec
    asked: CodecOptions

    def of(self, options: CodecOptions) -> _Coded:
        """Code the pictures."""
        payload = encode_samples(self.samples, self.targets, replace(self.spec, codec=options))
        rate = len(payload.to_bytes()) / len(self.samples)
        return _Coded(rate, lambda: task_error(self.samples, decode_samples(payload).samples))

    def fitted(self, name: str, rate: float) -> list[Candidate]:
        """Return an image file at the quality that is nearest to a rate; AVIF at its speeds.

        Raises
        ------
        CodecError
            If this machine lacks the codec.
        """
        near = self._search(name, rate)
        if name != _AVIF:
            return [self._nearest(replace(self.asked, codec=name), rate, near)]
        return [
            replace(self._nearest(options, rate, near), avif_speed=options.avif_speed)
            for speed in speeds(self.asked.avif_speed)
            for options in [replace(self.asked, codec=name, avif_speed=speed)]
        ]

    def _nearest(self, options: CodecOptions, rate: float, above: int) -> Candidate:
        """Return options at the quality that is nearest to a rate; `above` is about there."""
        name, tried = options.codec, dict[int, _Coded]()

        def at(quality: int) -> _Coded:
            if quality not in tried:
                tried[quality] = self.of(replace(options, quality=quality))
            return tried[quality]

        lowest, highest = int(_QUALITIES.low), int(_QUALITIES.high)
        while above > lowest and at(above - 1).rate > rate:
            above -= 1
        while above <= highest and at(above).rate <= rate:
            above += 1
        if not lowest < above <= highest:  # the rate is out of reach
            end = min(max(above, lowest), highest)
            return Candidate(name, end, at(end).rate, at(end).error)
        below = above - 1
        share = math.log(rate / at(below).rate) / math.log(at(above).rate / at(below).rate)
        error = at(below).error ** (1 - share) * at(above).error ** share
        is_near = share >= 0.5 and at(above).rate <= (1 + MOST_OFF) * rate
        quality = above if is_near else below  # so that coarse qualities rule no file out
        return Candidate(name, quality, at(quality).rate, error)

    def _search(self, name: str, rate: float) -> int:
        """Return about the lowest quality that takes more than a rate, by bisection."""
        fast = replace(self.asked, codec=name, avif_speed=max(_FASTEST, self.asked.avif_speed))
        low, high = int(_QUALITIES.low), int(_QUALITIES.high)
        while low < high:
            middle = (low + high) // 2
            if self.of(replace(fast, quality=middle)).rate > rate:
                high = middle
            else:
                low = middle + 1
        return low
