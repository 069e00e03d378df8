"""Sample codecs that are standard image files: JPEG, WebP, AVIF, PNG and JPEG XL.

The images of a payload are coded together, side by side on sheets: a sheet has one header and
one set of statistics, which about halves the bytes at low qualities, although prediction and
interpolation of colour reach across the borders of images.

A payload of one sheet is its file and a few bytes::

    length of what all files begin with  these bytes  (length, bytes) of the rest of each file
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codec.coding import cursor
from codec.errors import CodecError, PayloadError
from codec.samples.pictures import (
    avif,
    jpeg,
    jpeg_flat,
    jxl,
    jxl_lossless,
    load_avif,
    load_jpeg,
    load_jxl,
    load_png,
    load_webp,
    png,
    webp,
    webp_lossless,
)
from codec.samples.sample_codec import Key
from codec.samples.sheets import Images, Pixels, SheetLayout

if TYPE_CHECKING:
    from codec.samples.options import CodecOptions
    from codec.samples.spec import SampleSpec

Encoder = Callable[..., bytes]
Decoder = Callable[[bytes, tuple[int, ...]], Pixels]

_LONGEST_BEGINNING = 1024  # bytes in which files of a payload are searched for what they share


@dataclass(frozen=True)
class ImageFile:
    """A standard image codec as a codec of samples.

    Attributes
    ----------
    name : str
        What options call it.
    identifier : int
        Its byte on the wire, never used again for another.
    encoder : callable
        Makes a file from a picture and the options that `uses` names.
    decoder : callable
        Makes a picture from a file and the shape it must have; raises anything on other bytes.
    uses : tuple of str
        Fields of `CodecOptions` that the encoder takes, in this order; none: it is lossless.
    max_side : int
        Largest height and width of a picture, pixels.
    sheet_width : int
        Pixels side by side on a sheet; at least one image. As makes sheets smallest.
    """

    name: str
    identifier: int
    encoder: Encoder
    decoder: Decoder
    uses: tuple[str, ...] = ("quality",)
    max_side: int = 65500
    sheet_width: int = 1

    @property
    def lossless(self) -> bool:
        """Whether samples come back exactly."""
        return not self.uses

    def is_unbiased(self, options: "CodecOptions") -> bool:
        """Return whether decoded samples have the mean of the originals."""
        return self.lossless

    def needs_key(self, options: "CodecOptions") -> bool:
        """Return False: nothing is random."""
        return False

    def check(self, spec: "SampleSpec") -> None:
        """Raise `CodecError` if samples of `spec` cannot be coded."""
        shape, dtype, bounds = spec.shape, spec.dtype, (spec.low, spec.high)
        if dtype != "uint8" or len(shape) != 3 or shape[0] not in (1, 3):
            raise CodecError(
                f"codec = {self.name!r} codes uint8 images of 1 or 3 channels, "
                f"not {dtype} {shape}; use codec = 'dct'"
            )
        if bounds != (0, 255):
            raise CodecError(
                f"codec = {self.name!r} codes values in [0, 255], "
                f"not in [{spec.low:g}, {spec.high:g}]; use codec = 'dct'"
            )
        if max(shape[1:]) > self.max_side:
            raise CodecError(
                f"codec = {self.name!r} codes images of up to {self.max_side} pixels a side, "
                f"not {shape}; use codec = 'dct'"
            )

    def decoded_values(self, spec: "SampleSpec") -> int:
        """Return how many numbers decoding one sample holds."""
        return int(np.prod(spec.shape))

    def encode(
        self, samples: Images, spec: "SampleSpec", key: Key, like: Images | None = None
    ) -> bytes:
        """Return the bytes of samples, uint8 (N, C, H, W), N >= 1."""
        layout = self._layout(spec)
        values = [getattr(spec.codec, name) for name in self.uses]
        starts = range(0, len(samples), layout.capacity)
        sheets = (layout.lay_out(samples[start : start + layout.capacity]) for start in starts)
        return pack([self.encoder(sheet, *values) for sheet in sheets])

    def decode(
        self, data: bytes, count: int, spec: "SampleSpec", key: Key
    ) -> tuple[NDArray[np.float32], None]:
        """Return samples, float32 (count, C, H, W) in [0, 255]; their entropy is not known.

        Raises
        ------
        PayloadError
            If the bytes are truncated, or not pictures of the declared size and colours.
        CodecError
            If a package is missing.
        """
        layout, reader = self._layout(spec), cursor.Reader(data)
        samples = np.empty((count, *spec.shape), np.float32)
        starts = range(0, count, layout.capacity)
        for start, file in zip(starts, unpack(reader, len(starts)), strict=True):
            part = samples[start : start + layout.capacity]
            sheet = self._open(file, layout.picture_shape(len(part)))
            part[:] = layout.cut_out(sheet, len(part))
        reader.finish()
        return samples, None

    def reconstruct(
        self, samples: Images, spec: "SampleSpec", key: Key, like: Images | None = None
    ) -> NDArray[np.float32]:
        """Return what `decode` makes of the bytes of samples, uint8 (N, C, H, W)."""
        if self.lossless or not len(samples):
            return samples.astype(np.float32)
        return self.decode(self.encode(samples, spec, key), len(samples), spec, key)[0]

    def _layout(self, spec: "SampleSpec") -> SheetLayout:
        return SheetLayout.fit(spec.shape, self.sheet_width, self.max_side)

    def _open(self, file: bytes, shape: tuple[int, ...]) -> Pixels:
        try:
            return self.decoder(file, shape)
        except CodecError:
            raise
        except Exception as error:  # decoders raise many kinds
            raise PayloadError(f"{len(file)} bytes are no {self.name} picture: {error}") from error


# Several files as one byte string


def pack(files: Sequence[bytes]) -> bytes:
    """Return the files, one at least, as one byte string, with their common beginning once."""
    beginnings = zip(*(file[:_LONGEST_BEGINNING] for file in files), strict=False)
    same = sum(1 for _ in takewhile(lambda values: len(set(values)) == 1, beginnings))
    parts = (files[0][:same], *(file[same:] for file in files))
    return b"".join(cursor.varint(len(part)) + part for part in parts)


def unpack(reader: cursor.Reader, count: int) -> Iterator[bytes]:
    """Read `count` files that `pack` wrote, each when it is asked for.

    One at a time, since many files with a long common beginning would fill the memory.

    Raises
    ------
    PayloadError
        If the bytes are truncated.
    """
    common = reader.take(reader.varint("length of the beginning"), "beginning of the files")
    for _ in range(count):
        yield common + reader.take(reader.varint("length of a file"), "file")


# The codecs

_AVIF_USES = ("quality", "avif_speed")

IMAGE_FILES = (
    ImageFile("jpeg", 16, jpeg, load_jpeg),
    ImageFile("jpeg-flat", 17, jpeg_flat, load_jpeg),
    ImageFile("webp", 18, webp, load_webp, max_side=16383),
    ImageFile("webp-lossless", 19, webp_lossless, load_webp, uses=(), max_side=16383),
    ImageFile("avif", 24, avif, load_avif, _AVIF_USES, max_side=32768, sheet_width=64),
    ImageFile("png", 21, png, load_png, uses=()),
    ImageFile("jpeg-xl", 22, jxl, load_jxl, sheet_width=512),
    ImageFile("jpeg-xl-lossless", 23, jxl_lossless, load_jxl, uses=(), sheet_width=512),
)
