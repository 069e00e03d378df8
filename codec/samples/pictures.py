"""Pictures to files of image codecs, and back.

The settings are not the defaults, but those that least change the output of a network trained
on the originals, at equal bytes. Filters in the decoding loop (AV1's deblocking and CDEF, JPEG
XL's Gabor-like and edge-preserving ones) are off, since they blur fine detail, and images of a
sheet into one another; Pillow cannot switch WebP's off. AV1 also quantizes all frequencies alike,
and so does ``jpeg-flat``. Colour is at half resolution, 4:2:0; JPEG XL knows only full resolution.
"""

import io
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from codec.errors import CodecError, PayloadError
from codec.packages import needed_packages
from codec.samples.avif_size import frame_sizes
from codec.samples.sheets import Pixels

_FLAT_TABLE = 32  # entry of the flat quantization table at quality 50
_AV1 = {"loopfilter-control": "0", "enable-cdef": "0", "enable-qm": "0", "deltaq-mode": "0"}


# To a file: functions of a picture and, where there is a loss, a quality, 1 to 100


def jpeg(picture: Pixels, quality: int) -> bytes:
    """Return a JPEG file."""
    return _smallest_jpeg(picture, quality=quality)


def jpeg_flat(picture: Pixels, quality: int) -> bytes:
    """Return a JPEG file with all frequencies quantized alike."""
    # Scaled with the quality as the standard tables are by libjpeg.
    percent = 5000 / quality if quality < 50 else 200 - 2 * quality
    entry = min(255, max(1, round(_FLAT_TABLE * percent / 100)))
    return _smallest_jpeg(picture, qtables=[[entry] * 64] * 2)


def webp(picture: Pixels, quality: int) -> bytes:
    """Return a WebP file."""
    return _save("WEBP", picture, quality=quality, method=6)


def webp_lossless(picture: Pixels) -> bytes:
    """Return a WebP file of the very pixels."""
    return _save("WEBP", picture, lossless=True, method=6, quality=75)


def avif(picture: Pixels, quality: int, speed: int) -> bytes:
    """Return an AVIF file; at speed 0 the encoder tries most, at 10 least."""
    options = {"speed": speed, "max_threads": 1, "autotiling": False, "advanced": _AV1}
    return _save("AVIF", picture, quality=quality, **options)


def png(picture: Pixels) -> bytes:
    """Return a PNG file."""
    return _save("PNG", picture, optimize=True)


def jxl(picture: Pixels, quality: int) -> bytes:
    """Return a JPEG XL codestream."""
    # Effort 3 is ahead of higher ones on such pictures; at decoding speed 4 filters are off.
    return _save_jxl(picture, effort=3, decodingspeed=4, distance=_distance(quality))


def jxl_lossless(picture: Pixels) -> bytes:
    """Return a JPEG XL codestream of the very pixels."""
    return _save_jxl(picture, effort=5, lossless=True)


def _smallest_jpeg(picture: Pixels, **options: Any) -> bytes:
    """Return the smallest of three codings of the same pixels."""
    save = partial(_save, "JPEG", picture, subsampling=2, **options)
    files = [save()]
    with suppress(OSError):  # of noise, these two outgrow Pillow's buffer
        files += [save(optimize=True), save(progressive=True)]
    return min(files, key=len)


def _distance(quality: int) -> float:
    """Return the Butteraugli distance of a JPEG quality (libjxl's ``DistanceFromQuality``)."""
    if quality >= 30:
        return 0.1 + (100 - quality) * 0.09
    return 53 / 3000 * quality**2 - 23 / 20 * quality + 25


def _save(kind: str, picture: Pixels, **options: Any) -> bytes:
    file = io.BytesIO()
    _pillow(kind).fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def _save_jxl(picture: Pixels, **options: Any) -> bytes:
    encode = _imagecodecs().jpegxl_encode
    return bytes(encode(picture, usecontainer=False, numthreads=1, **options))


# From a file whose picture must have a shape, which is checked before pixels are decoded


def _load(kind: str, file: bytes, shape: tuple[int, ...]) -> Pixels:
    mode, size = "L" if len(shape) == 2 else "RGB", (shape[1], shape[0])
    with _pillow(kind).open(io.BytesIO(file), formats=[kind]) as image:
        if image.size != size or image.mode not in (mode, "RGB"):  # WebP, AVIF: grey as colour
            raise PayloadError(f"a picture is {image.mode} {image.size}; declared: {mode} {size}")
        # Only AVIF can lie here: its frame may be larger, and is scaled to what the file declares.
        if kind == "AVIF" and set(frame_sizes(file)) != {size}:
            raise PayloadError(f"frames of an AVIF file are {frame_sizes(file)}; declared: {size}")
        return np.asarray(image.convert(mode))


load_jpeg, load_webp = partial(_load, "JPEG"), partial(_load, "WEBP")
load_avif, load_png = partial(_load, "AVIF"), partial(_load, "PNG")


def load_jxl(file: bytes, shape: tuple[int, ...]) -> Pixels:
    """Return the picture of a JPEG XL codestream."""
    picture = np.empty(shape, np.uint8)  # must fit, else imagecodecs refuses
    _imagecodecs().jpegxl_decode(file, numthreads=1, out=picture)
    return picture


# Packages, not needed before they are used


def _pillow(kind: str) -> Any:
    with needed_packages():
        from PIL import Image

    Image.init()
    if kind not in Image.SAVE:
        raise CodecError(f"this Pillow was built without {kind}: pip install --upgrade pillow")
    return Image


def _imagecodecs() -> Any:
    try:
        import imagecodecs
    except ImportError as error:
        raise CodecError("JPEG XL needs a package: pip install imagecodecs") from error
    return imagecodecs
