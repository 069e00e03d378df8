"""Folders of images, ``split/<class>/**``, as people and file systems leave them.

What is read
    Files under the class folders, at any depth and through links, by their suffix
    (`IMAGE_SUFFIXES`, upper case too). Hidden files and folders, and those of operating systems,
    are none. `fl_app.image_files` says what becomes of one file. One that cannot be used is
    skipped, and counted by reason in `Images.skipped`.
Classes
    Folders are classes, numbered in the order of their names. If class names are given, those
    define the numbers: folders are mapped by name, some may be absent, and one that is not
    among them is refused. Without given names the train split defines them, for the test split
    too. Names are compared in Unicode's composed form, as file systems differ in it. A class
    folder without images keeps its number, and is counted.
Depth
    8-bit images become (3, side, side) uint8, deeper ones (1, side, side) float32 in their own
    units. If a split mixes them (8-bit, integer, float), the depth that most files have wins, the
    deeper one of two equals, and the other files are skipped: no conversion between, say, 8 bits
    and 12 bits stored in 16 is right without knowing the camera.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageFile

from clients.pictures import BACKGROUND, EIGHT_BIT, FLOAT, INTEGER
from fl_app.cache import Allocate, Decoded, cached
from fl_app.image_files import UnusableFile, file_depth, read_picture
from fl_app.images import (
    EMPTY_CLASS,
    HIDDEN,
    SYSTEM,
    DataError,
    ImageKind,
    Images,
    MissingSplit,
    Skipped,
    printable,
)

T = TypeVar("T")

IMAGE_SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".dib"),
        *(".webp", ".avif", ".tif", ".tiff", ".tga", ".jp2", ".j2k"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    ]
)
SPLITS = {"train": ("train",), "test": ("test", "val")}

_SYSTEM_NAMES = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir"),
    *("$recycle.bin", "system volume information", "lost+found"),
}
_DEPTHS = (EIGHT_BIT, INTEGER, FLOAT)  # the deeper, the later
_WORDS = {EIGHT_BIT: "8-bit", INTEGER: "16- or 32-bit", FLOAT: "float"}
_NAMES_SHOWN = 20


@dataclass(frozen=True)
class ImageFolder:
    """Where the images are, and what is made of them.

    Attributes
    ----------
    folder : Path
        Holds the splits' folders.
    side : int
        Side in pixels that images are resized and cropped to.
    class_names : tuple of str
        What defines the labels; empty: the folders of the train split.
    background : str
        Colour that transparent pixels are composited on.

    Raises
    ------
    DataError
        If a class name is given twice.
    """

    folder: Path
    side: int
    class_names: tuple[str, ...] = ()
    background: str = BACKGROUND

    def __post_init__(self) -> None:
        names = tuple(map(_composed, self.class_names))
        twice = [name for name, number in Counter(names).items() if number > 1]
        if twice:
            raise DataError(f"class_names has {twice[0]!r} twice; every class needs its own name")
        object.__setattr__(self, "class_names", names)

    def root(self, split: str) -> Path | None:
        """Return the folder of a split, if there is one."""
        places = (self.folder / name for name in SPLITS[split])
        return next((path for path in places if path.is_dir()), None)

    def load(self, split: str) -> Images:
        """Return the images of a split.

        Raises
        ------
        DataError
            If there are none, or classes that the names, or the other split, do not have.
        """
        listing = self._listing(split)
        sources = [source for source, _ in listing.files]
        stats = [(str(source), *_stamp(source)) for source in sources]
        # Pillow's version and limits, as what it refuses today it may read tomorrow
        pillow = (PIL.__version__, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
        key = (stats, self.side, self.background, pillow)
        name = f"imagefolder-{split}-{self.side}"
        decoded = cached(name, key, lambda allocate: self._decode(listing, allocate))
        skipped = listing.skipped + Skipped(decoded.notes["counts"], decoded.notes["examples"])
        labels = np.array([label for _, label in listing.files], np.int64)[decoded.rows]
        for label in sorted({label for _, label in listing.files} - set(labels.tolist())):
            skipped.add(EMPTY_CLASS, listing.names[label])
        skipped.log(str(listing.root))
        low, high = decoded.notes["range"]
        return Images(
            decoded.samples, labels, len(listing.names), listing.names, (low, high), skipped
        )

    def describe(self) -> ImageKind:
        """Return what the images of the train split are like; of the test split if it is alone.

        Raises
        ------
        DataError
            As `load`.
        """
        alone = self.root("test") is not None and self.root("train") is None
        listing = self._listing("test" if alone else "train")
        depth = _depth(self._depths(listing, Skipped()))
        names = listing.names
        if depth == EIGHT_BIT:
            return ImageKind((3, self.side, self.side), "uint8", len(names), names)
        return ImageKind((1, self.side, self.side), "float32", len(names), names)

    def extent(self, split: str) -> tuple[int, int]:
        """Return how many images and classes a split has by its files' names, none of them read.

        Raises
        ------
        DataError
            As `load`, but for what is wrong inside the files.
        """
        listing = self._listing(split)
        return len(listing.files), len(listing.names)

    def listing(self, split: str) -> "Listing":
        """Return the files of a split that look like images, none of them read; perhaps none.

        Raises
        ------
        DataError
            As `load`, but for what is wrong inside the files.
        """
        root = self._root(split)
        listing = Listing(root, self._names(root))
        _list(listing)
        return listing

    def _listing(self, split: str) -> "Listing":
        listing = self.listing(split)
        root = listing.root
        if not listing.files:
            hint = f"; beside images there are {listing.skipped}" if listing.skipped else ""
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            message = f"no images ({suffixes}) under {root}/<class>{hint}"
            raise MissingSplit(message, split, other=self._has_other(split))
        return listing

    def _root(self, split: str) -> Path:
        root = self.root(split)
        if root is None:
            raise MissingSplit(
                f"no folder {self.folder / SPLITS[split][0]}: an image folder holds "
                f"{self.folder}/train/<class>/*.jpg and {self.folder}/test/<class>/*.jpg (or val)",
                split,
                other=self._has_other(split),
            )
        return root

    def _has_other(self, split: str) -> bool:
        return self.root("train" if split == "test" else "test") is not None

    def _names(self, root: Path) -> tuple[str, ...]:
        """Return the names that define the labels, after a check that `root` has no others."""
        if self.class_names:
            _check_known(root, class_folders(root), self.class_names)
            return self.class_names
        train, test = self.root("train"), self.root("test")
        names = tuple(sorted(class_folders(train or root)))
        if train is not None and test is not None:
            extra = sorted(set(class_folders(test)) - set(names))
            if extra:
                raise DataError(
                    f"{train} and {test} do not hold the same class folders: {extra[0]!r} is only "
                    f"in {test}, and the classes are those of {train}: {_shown(names)}"
                )
        return names

    def _depths(self, listing: "Listing", skipped: Skipped) -> dict[int, str]:
        """Return the depths of the files by their number; count those that are no images."""
        depths: dict[int, str] = {}
        for number, found in _each(lambda n: file_depth(listing.files[n][0]), len(listing.files)):
            if isinstance(found, UnusableFile):
                skipped.add(str(found), listing.name(number))
            else:
                depths[number] = found
        if not depths:
            raise DataError(f"cannot decode any image under {listing.root}: skipped {skipped}")
        return depths

    def _decode(self, listing: "Listing", allocate: Allocate) -> Decoded:
        """Decode the files straight to disk: a folder of ImageNet's size does not fit in memory."""
        skipped = Skipped()
        depths = self._depths(listing, skipped)
        depth = _depth(depths)
        for number, other in depths.items():
            if other != depth:
                reason = f"{_WORDS[other]} image among more {_WORDS[depth]} ones"
                skipped.add(reason, listing.name(number))
        numbers = [number for number, own in depths.items() if own == depth]
        deep = depth != EIGHT_BIT
        shape = (len(numbers), 1 if deep else 3, self.side, self.side)
        samples = allocate(shape, np.float32 if deep else np.uint8)

        def decode(row: int) -> tuple[str, ...]:
            picture = read_picture(listing.files[numbers[row]][0], self.side, self.background)
            samples[row] = picture.pixels
            return picture.remarks

        kept: list[int] = []
        for row, found in _each(decode, len(numbers)):
            name = listing.name(numbers[row])
            if isinstance(found, UnusableFile):
                skipped.add(str(found), name)
                continue
            for remark in found:
                skipped.add(remark, name)
            if row != len(kept):
                samples[len(kept)] = samples[row]
            kept.append(numbers[row])
        if not kept:
            raise DataError(f"cannot decode any image under {listing.root}: skipped {skipped}")
        samples = samples[: len(kept)]
        notes = {
            "range": _value_range(depth, samples),
            "counts": skipped.counts,
            "examples": skipped.examples,
        }
        return Decoded(samples, np.array(kept, np.int64), notes)


def class_folders(root: Path) -> dict[str, list[Path]]:
    """Return the folders of each class by its name, hidden ones left out.

    Raises
    ------
    DataError
        If a name cannot be written in Unicode, or the folder not be read.
    """
    found: dict[str, list[Path]] = {}
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise DataError(f"cannot read the folder {root}: {error.strerror}") from error
    for entry in entries:
        if entry.is_dir() and not _debris(entry.name):
            name = _composed(entry.name)
            if printable(name) != name:
                raise DataError(
                    f"class folder '{printable(name)}' in {root}: its name cannot be printed; "
                    "rename it"
                )
            found.setdefault(name, []).append(entry)
    return found


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _check_known(root: Path, found: dict[str, list[Path]], known: tuple[str, ...]) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise DataError(
            f"class folder {unknown[0]!r}{more} in {root} is unknown; known classes: "
            f"{_shown(known)}; rename it, move it away, or add the class on the server"
        )


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{shown}, ... ({len(names)})" if len(names) > _NAMES_SHOWN else shown or "none"


# Listing


@dataclass
class Listing:
    """Files of a split that look like images, with their labels, and what else there is.

    Attributes
    ----------
    root : Path
        Folder of the split.
    names : tuple of str
        Classes in the order of the labels.
    files : list of (Path, int)
    skipped : Skipped
    """

    root: Path
    names: tuple[str, ...]
    files: list[tuple[Path, int]] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)

    def name(self, number: int) -> str:
        """Return a file's name under the split's folder."""
        return str(self.files[number][0].relative_to(self.root))


def _list(listing: Listing) -> None:
    folders = class_folders(listing.root)
    for entry in sorted(listing.root.iterdir()):
        reason = _debris(entry.name)
        if reason is None and not entry.is_dir():
            reason = _link_problem(entry) or "file outside the class folders"
        if reason is not None:
            listing.skipped.add(reason, entry.name)
    for label, name in enumerate(listing.names):
        before = len(listing.files)
        for folder in folders.get(name, ()):
            found = sorted(_walk(folder, listing.root, listing.skipped))
            listing.files += [(file, label) for file in found]
        if name in folders and len(listing.files) == before:
            listing.skipped.add(EMPTY_CLASS, name)


def _walk(folder: Path, root: Path, skipped: Skipped) -> Iterator[Path]:
    """Yield the files under a folder that look like images."""

    def unreadable(error: OSError) -> None:
        reason = "folder that cannot be read"
        skipped.add(reason, str(Path(error.filename).relative_to(root)))

    # A link back to a parent leads to the other classes.
    seen = {_identity(parent) for parent in (root, *folder.resolve().parents)}
    for place, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        here = Path(place)
        identity = _identity(here)
        if identity in seen:
            skipped.add("link to a folder read before", str(here.relative_to(root)))
            folders.clear()
            continue
        seen.add(identity)
        for name in sorted(folders):
            reason = _debris(name)
            if reason is not None:
                skipped.add(reason, str((here / name).relative_to(root)))
        folders[:] = sorted(name for name in folders if _debris(name) is None)
        for name in sorted(files):
            file = here / name
            reason = _debris(name) or _suffix_problem(file) or _link_problem(file)
            if reason is None:
                yield file
            else:
                skipped.add(reason, str(file.relative_to(root)))


def _identity(folder: Path) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _debris(name: str) -> str | None:
    if name.startswith("."):  # also macOS's ._x beside x
        return HIDDEN
    return SYSTEM if name.lower() in _SYSTEM_NAMES else None


def _suffix_problem(file: Path) -> str | None:
    suffix = file.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    return f"with the suffix {printable(suffix)}, which is not read" if suffix else "without suffix"


def _link_problem(file: Path) -> str | None:
    return "dangling link" if file.is_symlink() and not os.path.exists(file) else None


def _stamp(source: Path) -> tuple[int, int]:
    try:
        stat = source.stat()
    except OSError:  # gone since: decoding will say so
        return 0, 0
    # permission to read changes no time
    return stat.st_mtime_ns, stat.st_size if os.access(source, os.R_OK) else 0


# Decoding


def _each(work: Callable[[int], T], count: int) -> Iterator[tuple[int, T | UnusableFile]]:
    """Yield the numbers below `count` with what `work` returns, or why it does not, in order."""

    def safe(number: int) -> T | UnusableFile:
        try:
            return work(number)
        except UnusableFile as error:
            return error

    with ThreadPoolExecutor() as pool:
        yield from enumerate(pool.map(safe, range(count)))


def _depth(depths: dict[int, str]) -> str:
    """Return the depth that most files have, the deeper one of two equals."""
    counts = Counter(depths.values())
    return max(_DEPTHS, key=lambda depth: (counts[depth], _DEPTHS.index(depth)))


def _value_range(depth: str, samples: NDArray[np.generic]) -> tuple[float, float]:
    """Return the range of the files' format; where it has none, that of the samples."""
    if depth == EIGHT_BIT:
        return 0.0, 255.0
    chunks = [samples[start : start + 1024] for start in range(0, len(samples), 1024)]
    low = min(float(chunk.min()) for chunk in chunks)
    high = max(float(chunk.max()) for chunk in chunks)
    if depth == INTEGER and low >= 0 and high <= 65535:
        return 0.0, 65535.0
    return low, high if high > low else low + 1
