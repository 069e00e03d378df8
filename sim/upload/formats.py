"""The image codecs: a picture to its file and back, and the file without what is derivable.

The settings are not the defaults, but those that least change the output of a network trained
on the originals, at equal bytes. Filters in the decoding loop (AV1's deblocking and CDEF, JPEG
XL's Gabor-like and edge-preserving ones) are off, since they blur fine detail, and images of a
sheet into one another; Pillow cannot switch WebP's off. AV1 also quantizes all frequencies alike,
and so does ``jpeg-flat``. Colour is at half resolution, 4:2:0; JPEG XL knows only full resolution.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from codec import CodecError
from sim.upload.containers import (
    restore_avif,
    restore_jpeg,
    restore_png,
    restore_webp,
    strip_avif,
    strip_jpeg,
    strip_png,
    strip_webp,
)

Pixels = NDArray[np.uint8]  # (H, W), or (H, W, 3)
Encoder = Callable[[Pixels, int], bytes]

LOSSLESS = -1  # stands for the quality of a lossless codec
_FLAT_TABLE = 32  # entry of the flat quantization table at quality 50


@dataclass(frozen=True)
class ImageCodec:
    """A standard image codec.

    Attributes
    ----------
    encoders : tuple of callable
        Each makes a file from a picture and a quality. They differ in entropy coding alone, not
        in the decoded pixels: the smallest result counts.
    decode : callable
        Makes a picture from a file and the number of channels, 1 or 3.
    strip, restore : callable
        Take from a file what can be derived from the rest, and put it back; `containers`.
    lossy, lossless : bool
        Whether qualities 1 to 100 are legal, and whether `LOSSLESS` is.
    max_side : int
        Largest height of a picture, pixels.
    sheet_width : int
        Pixels side by side on a sheet of many images; at least one image.
    """

    encoders: tuple[Encoder, ...]
    decode: Callable[[bytes, int], Pixels]
    strip: Callable[[bytes], bytes]
    restore: Callable[[bytes], bytes]
    lossy: bool = True
    lossless: bool = False
    max_side: int = 65500
    sheet_width: int = 1


def codec_named(name: str) -> ImageCodec:
    """Return a codec of `CODECS`.

    Raises
    ------
    CodecError
        If there is none of this name.
    """
    if name not in CODECS:
        raise CodecError(f"codec is {name!r}; legal: {', '.join(CODECS)}")
    return CODECS[name]


# Pictures


def _save(kind: str, picture: Pixels, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def _lossy(kind: str, **options: Any) -> Encoder:
    return lambda picture, quality: _save(kind, picture, quality=quality, **options)


def _fixed(kind: str, **options: Any) -> Encoder:
    return lambda picture, _: _save(kind, picture, **options)


def _flat(**options: Any) -> Encoder:
    def encode(picture: Pixels, quality: int) -> bytes:
        # Scaled with the quality as the standard tables are by libjpeg.
        percent = 5000 / quality if quality < 50 else 200 - 2 * quality
        entry = min(255, max(1, round(_FLAT_TABLE * percent / 100)))
        return _save("JPEG", picture, qtables=[[entry] * 64] * 2, **options)

    return encode


def _load(file: bytes, channels: int) -> Pixels:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("L" if channels == 1 else "RGB"))


def _imagecodecs() -> Any:
    try:
        import imagecodecs
    except ImportError as error:
        raise CodecError(
            "codec is 'jpeg-xl', which needs a package: pip install imagecodecs"
        ) from error
    return imagecodecs


def _jpeg_xl(picture: Pixels, quality: int) -> bytes:
    options: dict[str, Any] = {"effort": 5, "lossless": True}
    if quality != LOSSLESS:
        # Effort 3 is ahead of higher ones on such pictures; at decoding speed 4 filters are off.
        options = {"effort": 3, "decodingspeed": 4, "distance": jpeg_xl_distance(quality)}
    file = _imagecodecs().jpegxl_encode(picture, usecontainer=False, numthreads=1, **options)
    return bytes(file)


def _load_jpeg_xl(file: bytes, _: int) -> Pixels:
    picture: Pixels = _imagecodecs().jpegxl_decode(file, numthreads=1)
    return picture


def _whole(file: bytes) -> bytes:
    return file


def jpeg_xl_distance(quality: int) -> float:
    """Return the Butteraugli distance of a JPEG quality (libjxl's ``DistanceFromQuality``)."""
    if quality >= 30:
        return 0.1 + (100 - quality) * 0.09
    return 53 / 3000 * quality**2 - 23 / 20 * quality + 25


_CODINGS: tuple[dict[str, bool], ...] = ({}, {"optimize": True}, {"progressive": True})
_JPEG = partial(ImageCodec, decode=_load, strip=strip_jpeg, restore=restore_jpeg)
_WEBP = partial(ImageCodec, decode=_load, strip=strip_webp, restore=restore_webp, max_side=16383)
_AV1 = {"loopfilter-control": "0", "enable-cdef": "0", "enable-qm": "0", "deltaq-mode": "0"}

# Sheets are as wide as makes them smallest: one image, of whose rows the next image's follow.
CODECS: dict[str, ImageCodec] = {
    "jpeg": _JPEG(tuple(_lossy("JPEG", subsampling=2, **coding) for coding in _CODINGS)),
    "jpeg-flat": _JPEG(tuple(_flat(subsampling=2, **coding) for coding in _CODINGS)),
    "webp": _WEBP((_lossy("WEBP", method=6),)),
    "avif": ImageCodec(
        (_lossy("AVIF", speed=6, max_threads=1, autotiling=False, advanced=_AV1),),
        _load,
        strip_avif,
        restore_avif,
        max_side=32768,
        sheet_width=64,
    ),
    "png": ImageCodec(
        (_fixed("PNG", optimize=True),), _load, strip_png, restore_png, lossy=False,
        lossless=True,
    ),
    "webp-lossless": _WEBP(
        (_fixed("WEBP", lossless=True, method=6, quality=75),), lossy=False, lossless=True
    ),
    "jpeg-xl": ImageCodec(
        (_jpeg_xl,), _load_jpeg_xl, _whole, _whole, lossless=True, sheet_width=512
    ),
}  # fmt: skip
