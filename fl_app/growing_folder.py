"""A folder of images that a camera writes into: listed anew for each message, read as it is sent.

Nothing is decoded but what is sent, and nothing is kept: a process that starts anew lists the
folder, and knows by path, time of change and size what was read before (`clients.inventory`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.items import ItemError, ItemNotReady
from clients.pictures import BACKGROUND, EIGHT_BIT
from fl_app.image_files import UnusableFile, file_depth, read_picture
from fl_app.image_folder import ImageFolder

QUIET_SECONDS = 1.0  # a file that was changed since may still be written
_UNFINISHED_SECONDS = 10.0  # the same of a file that cannot be read
_LOOKED_AT = 32  # files whose depth is that of all
_DEEP = "of more than 8 bits among 8-bit ones"


@dataclass(frozen=True)
class ImageFile:
    """A file that looks like an image.

    Attributes
    ----------
    path : Path
    label : int
    changed : float
        Time of its last change, in seconds.
    key : str
        Its path, time of change and size.
    """

    path: Path
    label: int
    changed: float
    key: str


@dataclass(frozen=True)
class GrowingFolder:
    """The 8-bit images of a split as they are now; a map-style data set.

    Files that are being written are left for later: those that were changed a moment ago are not
    among the items, and one that cannot be read yet is no item of no use.

    Attributes
    ----------
    files : list of ImageFile
    class_names : tuple of str
    skipped : dict of str to int
        Files that are no images, by reason.
    side : int
        Side in pixels that images are resized and cropped to.
    background : str
        Colour that transparent pixels are composited on.
    now : float
        Time at which the folder was listed, in seconds.
    """

    files: Sequence[ImageFile]
    class_names: tuple[str, ...]
    skipped: Mapping[str, int]
    side: int
    background: str = BACKGROUND
    now: float = 0.0

    growing = True

    @classmethod
    def of(cls, folder: ImageFolder, split: str, now: float) -> "GrowingFolder | None":
        """List a split; None if its images are not of 8 bits, and so not known one by one.

        Parameters
        ----------
        folder : ImageFolder
        split : str
        now : float
            Time, in seconds.

        Raises
        ------
        DataError
            If there is no such folder, or its classes cannot be.
        """
        listing = folder.listing(split)
        listing.skipped.log(str(listing.root))
        files = []
        for path, label in listing.files:
            try:
                stat = path.stat()
            except OSError:  # gone since
                continue
            # A clock that was set back makes files of the future, and they are no younger.
            if 0 <= now - stat.st_mtime < QUIET_SECONDS:
                continue
            key = f"{path}\0{stat.st_mtime_ns}\0{stat.st_size}\0{folder.side}\0{folder.background}"
            files.append(ImageFile(path, label, stat.st_mtime, key))
        if files and not _are_eight_bit(files):
            return None
        return cls(files, listing.names, listing.skipped.lost, folder.side, folder.background, now)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image: channels, height, width."""
        return 3, self.side, self.side

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, as torchvision's data sets have them."""
        return self.class_names

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        """Return an image, (3, side, side) uint8, and its label.

        Raises
        ------
        ItemError
            If the file is of no use; `ItemNotReady` if it may be later.
        """
        file = self.files[index]
        try:
            pixels = read_picture(file.path, self.side, self.background).pixels
        except UnusableFile as error:
            unfinished = 0 <= self.now - file.changed < _UNFINISHED_SECONDS
            if unfinished or not file.path.exists():
                raise ItemNotReady(f"{file.path}: {error}", str(error)) from error
            raise ItemError(f"{file.path}: {error}", str(error)) from error
        if pixels.dtype != np.uint8:
            raise ItemError(f"{file.path} is {_DEEP}", _DEEP)
        return pixels, file.label

    def item_keys(self, indices: NDArray[np.int64]) -> list[str]:
        """Return what tells whether a file was read before."""
        return [self.files[index].key for index in indices.tolist()]


def _are_eight_bit(files: Sequence[ImageFile]) -> bool:
    """Whether most of some files, from everywhere in the listing, are of 8 bits."""
    places = np.linspace(0, len(files) - 1, min(_LOOKED_AT, len(files))).astype(int)
    found = []
    for place in dict.fromkeys(places.tolist()):
        try:
            found.append(file_depth(files[place].path) == EIGHT_BIT)
        except UnusableFile:
            continue
    return not found or 2 * sum(found) > len(found)
