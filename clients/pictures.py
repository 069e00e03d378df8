"""A PIL image as an array."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def picture_array(image: Any) -> NDArray[Any]:
    """Return the pixels of a PIL image, channels first."""
    gray = image.mode in ("1", "L")
    pixels = np.asarray(image.convert("L" if gray else "RGB"))
    return pixels[np.newaxis] if gray else pixels.transpose(2, 0, 1)
