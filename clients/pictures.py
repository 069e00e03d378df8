"""One PIL image as an array; what a pixel's mode, transparency and orientation mean here.

Used for the PIL images of a data set and for the app's image files. Pillow is imported only where
an image is at hand, so that devices without images need none.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec import CodecError

if TYPE_CHECKING:
    from PIL.Image import Image

BACKGROUND = "white"  # what transparent pixels are composited on
EIGHT_BIT, INTEGER, FLOAT = "8-bit", "integer", "float"  # depths of a pixel

_GREY_MODES = {"1", "L", "LA", "La"}
_ORIENTATION = 0x0112  # EXIF tag


def depth(image: "Image") -> str:
    """Return what a pixel's values are: 8-bit, wider integers, or floats."""
    if image.mode == "F":
        return FLOAT
    return INTEGER if image.mode.startswith("I") else EIGHT_BIT


def picture_array(image: "Image", background: str = BACKGROUND) -> NDArray[Any]:
    """Return an image as an array, channels first.

    Parameters
    ----------
    image : PIL.Image.Image
        Straight from ``Image.open`` it is turned upright as its EXIF says. An image that the data
        set has processed is taken as it is: it need not show any longer what its EXIF is about.
    background : str
        Colour, as Pillow names it, that transparent pixels are composited on.

    Returns
    -------
    ndarray, (1, H, W) or (3, H, W)
        8-bit images: uint8, one channel if grey (also 1-bit), else red, green and blue (palettes,
        CMYK). Images of 16 or 32 bits a pixel: float32, in their own units.

    Raises
    ------
    CodecError
        If Pillow cannot convert images of this mode.
    """
    from PIL.ImageFile import ImageFile

    if isinstance(image, ImageFile):
        image = upright(image)
    if depth(image) != EIGHT_BIT:
        return deep_pixels(image)[np.newaxis]
    gray = image.mode in _GREY_MODES
    pixels = np.asarray(opaque(image, "L" if gray else "RGB", background))
    return pixels[np.newaxis] if gray else pixels.transpose(2, 0, 1)


def upright(image: "Image") -> "Image":
    """Return an image turned as its EXIF says; itself if it says nothing, or nothing legible."""
    from PIL.Image import Transpose

    image.load()  # Pillow turns some formats on its own then, and forgets the tag
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF: any of a dozen errors, and the pixels are good
        return image
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def opaque(image: "Image", mode: str, background: str = BACKGROUND) -> "Image":
    """Return an 8-bit image in `mode`, "L" or "RGB", its transparent pixels on the background.

    Raises
    ------
    CodecError
        If Pillow cannot convert images of this mode.
    """
    from PIL import Image

    try:
        if image.has_transparency_data:
            # Pillow knows no way from premultiplied grey to RGBA
            image = image.convert("LA") if image.mode == "La" else image
            canvas = Image.new("RGBA", image.size, background)
            image = Image.alpha_composite(canvas, image.convert("RGBA"))
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise CodecError(
            f"PIL image of mode {image.mode!r}: Pillow cannot convert it to {mode!r}; convert it "
            "in the data set"
        ) from error


def deep_pixels(image: "Image") -> NDArray[np.float32]:
    """Return the pixels of an image of 16 or 32 bits a pixel, (H, W), in their own units."""
    return np.asarray(image).astype(np.float32)
