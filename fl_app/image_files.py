"""One image file to pixels, or the reason why not.

- Turned upright as EXIF says; of an animated file, the first frame.
- 8-bit files become RGB, whatever their mode: grey, palette, 1-bit, CMYK. Transparent pixels are
  composited on a background. Embedded colour profiles are not applied.
- Files of 16 or 32 bits a pixel (grey, all that Pillow reads) become float32, one channel, in their
  own units. 16-bit *colour* is read by Pillow as 8-bit, which is reported.
- Then resized so that the shorter side fits, and the centre is cut out.
"""

import contextlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from clients.pictures import EIGHT_BIT, deep_pixels, depth, opaque, upright
from codec import CodecError
from fl_app.images import COLOUR_DEPTH_LOST, FURTHER_FRAMES


class UnusableFile(Exception):
    """A file that no image can be had from; its text is the reason, the same for its like."""


@dataclass(frozen=True)
class Picture:
    """Pixels of one file.

    Attributes
    ----------
    pixels : ndarray, (3, side, side) uint8 or (1, side, side) float32
    remarks : tuple of str
        What was lost.
    """

    pixels: NDArray[Any]
    remarks: tuple[str, ...] = ()


def file_depth(source: Path) -> str:
    """Return the depth of a file's pixels, see `clients.pictures`, from its first bytes.

    Raises
    ------
    UnusableFile
        If it is no image file that Pillow reads.
    """
    with _reasons():
        _check_file(source)
        with Image.open(source) as image:
            return depth(image)


def read_picture(source: Path, side: int, background: str) -> Picture:
    """Return a file's pixels, resized and cropped to a square.

    Raises
    ------
    UnusableFile
        If the file is absent, unreadable, damaged, too large, or of a mode Pillow cannot convert.
    """
    with _reasons():
        _check_file(source)
        with Image.open(source) as image:
            remarks = _remarks(image)
            turned = upright(image)
            if depth(turned) == EIGHT_BIT:
                rgb = opaque(turned, "RGB", background)
                pixels = np.asarray(_fitted(rgb, side)).transpose(2, 0, 1)
            else:
                pixels = _deep(deep_pixels(turned), side)[np.newaxis]
    return Picture(pixels, remarks)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


def _deep(pixels: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    if not np.isfinite(pixels).all():
        raise UnusableFile("image with NaN or infinite pixels")
    resized = np.asarray(_fitted(Image.fromarray(pixels), side))
    # bicubic overshoots at edges; 8-bit images are clipped by Pillow
    clipped: NDArray[np.float32] = np.clip(resized, pixels.min(), pixels.max())
    return clipped


def _remarks(image: Image.Image) -> tuple[str, ...]:
    found = []
    # a multi-picture JPEG is a photograph with previews
    if image.format != "MPO" and _is_animated(image):
        found.append(FURTHER_FRAMES)
    tiles = getattr(image, "tile", [])
    if depth(image) == EIGHT_BIT and any(";16" in str(tile.args) for tile in tiles):
        found.append(COLOUR_DEPTH_LOST)
    return tuple(found)


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except (EOFError, OSError, ValueError):  # the file ends in its second frame
        return False


def _check_file(source: Path) -> None:
    """Refuse what is no ordinary file, such as a pipe that would never end."""
    found = source.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UnusableFile("pipe, socket or device")
    if not found.st_size:
        raise UnusableFile("empty file")


class _reasons(contextlib.AbstractContextManager[None]):  # noqa: N801
    """Turns whatever reading a file raises into `UnusableFile`: Pillow raises a dozen types."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UnusableFile):
            raise UnusableFile(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "file that is gone"
    if isinstance(error, PermissionError):
        return "file without permission to read it"
    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow reads"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "image of more pixels than Pillow allows (PIL.Image.MAX_IMAGE_PIXELS)"
    if isinstance(error, CodecError):
        return str(error).partition(";")[0]
    if isinstance(error, MemoryError):
        return "image too large for the memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "damaged or truncated image"
