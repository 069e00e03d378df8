"""Images side by side on pictures, and back."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.upload.formats import ImageCodec, Pixels

Images = NDArray[np.uint8]  # (N, C, H, W)

_MOST_PIXELS = 1 << 24  # of a picture: bounds the memory of its encoder


@dataclass(frozen=True)
class Grid:
    """How many images a full picture holds.

    Attributes
    ----------
    rows, columns : int
    """

    rows: int
    columns: int


def sheet_grid(codec: ImageCodec, height: int, width: int) -> Grid:
    """Return the largest sheet of images of height x width pixels that a codec takes."""
    columns = max(1, codec.sheet_width // width)
    rows = min(codec.max_side // height, _MOST_PIXELS // (columns * height * width))
    return Grid(max(1, rows), columns)


def lay_out(images: Images, grid: Grid) -> list[Pixels]:
    """Return pictures with the images (N, C, H, W) in reading order; what is left over is black.

    The last picture has as many rows as it needs.
    """
    most = grid.rows * grid.columns
    return [
        _lay_out(images[start : start + most], grid.columns)
        for start in range(0, len(images), most)
    ]


def cut_out(pictures: list[Pixels], shape: tuple[int, int, int, int], grid: Grid) -> Images:
    """Return the images, of `shape` (N, C, H, W), from the pictures that hold them."""
    count, channels, height, width = shape
    images = np.empty((0, channels, height, width), np.uint8)
    cells = [
        picture.reshape(-1, height, grid.columns, width, channels)
        .transpose(0, 2, 4, 1, 3)
        .reshape(-1, channels, height, width)
        for picture in pictures
    ]
    return np.concatenate([images, *cells])[:count]


def _lay_out(images: Images, columns: int) -> Pixels:
    _, channels, height, width = images.shape
    blank = np.zeros((-len(images) % columns, *images.shape[1:]), np.uint8)
    cells = np.concatenate([images, blank]).reshape(-1, columns, channels, height, width)
    picture = cells.transpose(0, 3, 1, 4, 2).reshape(-1, columns * width, channels)
    return np.ascontiguousarray(picture[..., 0] if channels == 1 else picture)
