"""The app's data sets by name, as arrays and without torch.

Decoded arrays are cached and shared by processes, see `fl_app.cache`. Nothing is ever downloaded
here: what is missing is reported with the command that brings it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import ImageColor

from clients.pictures import BACKGROUND
from codec.options import did_you_mean
from fl_app.image_folder import SPLITS, ImageFolder
from fl_app.images import DataError, ImageKind, Images, MissingSplit, Skipped
from fl_app.raw_files import (
    cifar_files,
    fashion_mnist_files,
    load_cifar,
    load_fashion_mnist,
    load_mnist5k,
    mnist5k_file,
)

__all__ = [
    "DATASETS",
    "DataError",
    "DataSet",
    "ImageKind",
    "Images",
    "MissingSplit",
    "Skipped",
    "describe",
    "extent",
    "image_folder",
    "load",
]


def load(
    dataset: str,
    split: str,
    data_dir: str = "",
    image_size: int = 64,
    *,
    class_names: Sequence[str] | None = None,
    background: str = BACKGROUND,
) -> Images:
    """Load one split of a data set.

    Parameters
    ----------
    dataset : str
        Key of `DATASETS`.
    split : str
        "train" or "test".
    data_dir : str
        Folder of the data set; empty means ``data`` under the working directory.
    image_size : int
        Side in pixels that "imagefolder" images are resized (bicubic, the shorter side) and
        centre-cropped to.
    class_names : sequence of str, optional
        Image folders: what defines the labels, such as the server's classes. Class folders are
        mapped by name; some may be absent. Default: the names of the train split's folders.
    background : str
        Image folders: colour that transparent pixels are composited on.

    Raises
    ------
    MissingSplit
        If the split is not there; a server may do without "test".
    DataError
        If the data cannot be read, or an argument is not legal.
    """
    if split not in SPLITS:
        raise DataError(f"split = {split!r} must be one of {', '.join(SPLITS)}")
    images = _known(dataset).load(
        split, image_folder(data_dir, image_size, tuple(class_names or ()), background)
    )
    if class_names and images.classes != len(class_names):
        raise DataError(
            f"{dataset} has {images.classes} classes, numbered by its format; {len(class_names)} "
            "class names are given"
        )
    return images


def describe(dataset: str, data_dir: str = "", image_size: int = 64) -> ImageKind:
    """Return what the images of a data set are like, if possible without its files.

    An image folder needs one of its splits, and is described by "train" if that is there. Of the
    other data sets nothing needs to be there.

    Raises
    ------
    DataError
        If an image folder has neither split, or cannot be read.
    """
    return _known(dataset).describe(image_folder(data_dir, image_size))


def extent(dataset: str, split: str, data_dir: str = "", image_size: int = 64) -> tuple[int, int]:
    """Return how many images and classes a split has, after a look at what files there are.

    Raises
    ------
    MissingSplit
        If the split is not there.
    DataError
        If an image folder cannot be listed.
    """
    return _known(dataset).extent(split, image_folder(data_dir, image_size))


def _known(dataset: str) -> "DataSet":
    if dataset not in DATASETS:
        hint = did_you_mean(dataset, DATASETS)
        raise DataError(f"dataset = {dataset!r} must be one of {', '.join(DATASETS)}; {hint}")
    return DATASETS[dataset]


def image_folder(
    data_dir: str,
    image_size: int,
    class_names: tuple[str, ...] = (),
    background: str = BACKGROUND,
) -> ImageFolder:
    """Return where an image folder is, and what is made of its images; see `load`.

    Raises
    ------
    DataError
        If an argument is not legal.
    """
    if image_size < 1:
        raise DataError(f"image_size = {image_size} must be >= 1")
    try:
        ImageColor.getrgb(background)
    except ValueError as error:
        raise DataError(
            f"background = {background!r} must be a colour such as white or #ffffff"
        ) from error
    path = Path(data_dir or "data").expanduser().absolute()
    return ImageFolder(path, image_size, class_names, background)


@dataclass(frozen=True)
class DataSet:
    """One value of the key ``dataset``.

    Attributes
    ----------
    load : callable
        ``(split, folder) -> Images``.
    describe : callable
        ``(folder) -> ImageKind``.
    extent : callable
        ``(split, folder) -> (images, classes)``, by the files' names alone.
    digits : bool
        Centred digits, whose mirror images are none.
    """

    load: Callable[[str, ImageFolder], Images]
    describe: Callable[[ImageFolder], ImageKind]
    extent: Callable[[str, ImageFolder], tuple[int, int]]
    digits: bool = False


def _cifar_folder(images: ImageFolder) -> ImageFolder | None:
    """Return CIFAR as a folder of images, if it is one."""
    if not any(images.root(split) for split in SPLITS):
        return None
    return ImageFolder(images.folder, 32, images.class_names, images.background)


def _load_cifar(dataset: str, split: str, images: ImageFolder) -> Images:
    folder = _cifar_folder(images)
    return folder.load(split) if folder else load_cifar(dataset, split, images.folder)


def _describe_cifar(classes: int, images: ImageFolder) -> ImageKind:
    folder = _cifar_folder(images)
    return folder.describe() if folder else ImageKind((3, 32, 32), "uint8", classes)


def _cifar_extent(dataset: str, classes: int, split: str, images: ImageFolder) -> tuple[int, int]:
    folder = _cifar_folder(images)
    if folder:
        return folder.extent(split)
    cifar_files(dataset, split, images.folder)
    return {"train": 50_000, "test": 10_000}[split], classes


def _fashion_mnist_extent(split: str, images: ImageFolder) -> tuple[int, int]:
    fashion_mnist_files(split, images.folder)
    return {"train": 60_000, "test": 10_000}[split], 10


def _mnist5k_extent(split: str, _: ImageFolder) -> tuple[int, int]:
    mnist5k_file()
    return {"train": 4_000, "test": 1_000}[split], 10


_GREY_28 = ImageKind((1, 28, 28), "uint8", 10)


def _cifar(dataset: str, classes: int) -> DataSet:
    return DataSet(
        partial(_load_cifar, dataset),
        partial(_describe_cifar, classes),
        partial(_cifar_extent, dataset, classes),
    )


# A new data set is a few functions in one of the modules above and an entry here.
DATASETS: Mapping[str, DataSet] = {
    "mnist5k": DataSet(
        lambda split, _: load_mnist5k(split), lambda _: _GREY_28, _mnist5k_extent, digits=True
    ),
    "fashion-mnist": DataSet(
        lambda split, images: load_fashion_mnist(split, images.folder),
        lambda _: _GREY_28,
        _fashion_mnist_extent,
    ),
    "cifar10": _cifar("cifar10", 10),
    "cifar100": _cifar("cifar100", 100),
    "imagefolder": DataSet(
        lambda split, images: images.load(split),
        lambda images: images.describe(),
        lambda split, images: images.extent(split),
    ),
}
