"""Images side by side on one picture, a sheet, and back."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]  # (N, C, H, W)
Pixels = NDArray[np.uint8]  # (H, W), or (H, W, 3)

_MOST_PIXELS = 1 << 24  # of a sheet: bounds the memory of its encoder


@dataclass(frozen=True)
class SheetLayout:
    """Where images stand on a sheet: in reading order, as many to a row on every sheet.

    Attributes
    ----------
    shape : (int, int, int)
        Channels, height and width of an image.
    rows, columns : int
        Of a full sheet, in images. A sheet has no more rows than it needs.
    """

    shape: tuple[int, ...]
    rows: int
    columns: int

    @classmethod
    def fit(cls, shape: tuple[int, ...], sheet_width: int, max_side: int) -> "SheetLayout":
        """Return the largest sheet of images of `shape` (C, H, W).

        Parameters
        ----------
        shape : (int, int, int)
            Channels, height and width of an image.
        sheet_width, max_side : int
            Width and height not to go beyond, in pixels; one image always has its place.
        """
        _, height, width = shape
        columns = max(1, sheet_width // width)
        rows = min(max_side // height, _MOST_PIXELS // (columns * height * width))
        return cls(shape, max(1, rows), columns)

    @property
    def capacity(self) -> int:
        """How many images a full sheet holds."""
        return self.rows * self.columns

    def picture_shape(self, count: int) -> tuple[int, ...]:
        """Return the shape of the sheet of `count` images, (H, W), or (H, W, C) in colour."""
        channels, height, width = self.shape
        sides = (-(-count // self.columns) * height, self.columns * width)
        return sides if channels == 1 else (*sides, channels)

    def lay_out(self, images: Images) -> Pixels:
        """Return the sheet of images (N, C, H, W), 1 <= N <= capacity; what is left is black."""
        blank = np.zeros((-len(images) % self.columns, *self.shape), np.uint8)
        cells = np.concatenate([images, blank]).reshape(-1, self.columns, *self.shape)
        picture = cells.transpose(0, 3, 1, 4, 2).reshape(self.picture_shape(len(images)))
        return np.ascontiguousarray(picture)

    def cut_out(self, picture: Pixels, count: int) -> Images:
        """Return the first `count` images (N, C, H, W) of the sheet that holds them."""
        channels, height, width = self.shape
        cells = picture.reshape(-1, height, self.columns, width, channels)
        return cells.transpose(0, 2, 4, 1, 3).reshape(-1, *self.shape)[:count]
