"""A bank's samples as files that other programs read."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.errors import BankError
from strategies.sample_bank.dataset import BankDataset

_PART = 1024  # samples that are converted at once


def export(dataset: BankDataset, folder: Path, kind: str) -> Path:
    """Write a data set for others.

    Parameters
    ----------
    dataset : BankDataset
    folder : Path
        Made if it is not there; must hold nothing of the same name.
    kind : str
        Key of `FORMATS`: ``folder``, one of PNG files for each class; ``npz``, ``parquet``;
        ``datasets``, a folder for `datasets.load_from_disk` of Hugging Face.

    Returns
    -------
    Path
        What was written.

    Raises
    ------
    BankError
        If samples cannot be written so, a package is missing, or something is in the way.
    """
    if kind not in FORMATS:
        raise BankError(f"format = {kind!r} must be one of {', '.join(FORMATS)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FORMATS[kind](dataset, folder)
    except OSError as error:
        raise BankError(f"cannot write to {folder}: {error.strerror or error}") from error


def _to_folder(dataset: BankDataset, folder: Path) -> Path:
    """Write ``<class>/<number>.png``."""
    from PIL import Image

    if not dataset.classes:
        raise BankError("format = 'folder' needs classes, and these targets are floats: take npz")
    digits = len(str(len(dataset) - 1))
    names = _folder_names(dataset)
    for name in names:
        if (folder / name).exists():
            raise _in_the_way(folder / name)
    for start, pictures, labels in _pictures(dataset, "folder"):
        for place, (picture, label) in enumerate(zip(pictures, labels, strict=True), start=start):
            file = folder / names[label] / f"{place:0{digits}}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(picture).save(file)
    return folder


def _to_npz(dataset: BankDataset, folder: Path) -> Path:
    """Write arrays: samples, targets, weights, and what is known of them."""
    place = folder / f"{dataset.path.stem}.npz"
    arrays = {"samples": dataset.samples, "targets": dataset.targets, "weights": dataset.weights}
    if dataset.bounds is not None:
        arrays["range"] = np.array(dataset.bounds)  # that models see as [0, 1]
    if dataset.class_names:
        arrays["class_names"] = np.array(dataset.class_names)
    with _whole(place) as written, written.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return place


def _to_parquet(dataset: BankDataset, folder: Path) -> Path:
    """Write a table of flat samples, their shape in the metadata."""
    arrow, parquet = _needed("pyarrow", "parquet"), _needed("pyarrow.parquet", "parquet")
    place = folder / f"{dataset.path.stem}.parquet"
    shape = dataset.samples.shape[1:]
    values = arrow.list_(arrow.from_numpy_dtype(dataset.samples.dtype), int(np.prod(shape)))
    single = arrow.from_numpy_dtype(dataset.targets.dtype)
    inner = dataset.targets.shape[1:]
    told = {
        "shape": list(shape),
        "range": dataset.bounds,
        "class_names": list(dataset.class_names),
        "bank": dataset.id.hex(),
    }
    schema = arrow.schema(
        [
            ("sample", values),
            ("target", arrow.list_(single, inner[0]) if inner else single),
            ("weight", arrow.float32()),
        ],
        {"quantized-data": json.dumps(told)},
    )
    with _whole(place) as written, parquet.ParquetWriter(written, schema) as writer:
        for _, part in dataset.parts(_PART):
            flat = np.ascontiguousarray(part.samples).reshape(-1)
            samples = arrow.FixedSizeListArray.from_arrays(arrow.array(flat), type=values)
            targets = arrow.array(part.targets.reshape(-1))
            if inner:
                targets = arrow.FixedSizeListArray.from_arrays(targets, inner[0])
            columns = [samples, targets, arrow.array(part.weights)]
            writer.write_table(arrow.table(columns, schema=schema))
    return place


def _to_datasets(dataset: BankDataset, folder: Path) -> Path:
    """Write a Hugging Face data set: images and class labels where they are such."""
    datasets = _needed("datasets", "datasets")
    place = folder / dataset.path.stem
    if place.exists():
        raise _in_the_way(place)
    pictured = dataset.is_8bit and _is_picture(dataset.samples.shape[1:])
    features: dict[str, Any] = {}
    if pictured:
        features["image"] = datasets.Image()
    else:
        inner = dataset.samples.shape[1:]
        arrays = {2: datasets.Array2D, 3: datasets.Array3D, 4: datasets.Array4D}
        kind = str(dataset.samples.dtype)
        features["sample"] = (
            datasets.Sequence(datasets.Value(kind), inner[0])
            if len(inner) == 1
            else arrays[len(inner)](inner, kind)
        )
    if dataset.classes:
        names = list(dataset.class_names) or [str(k) for k in range(dataset.classes)]
        features["label"] = datasets.ClassLabel(names=names)
    elif dataset.targets.ndim == 1:
        features["target"] = datasets.Value("float32")
    else:
        features["target"] = datasets.Sequence(datasets.Value("float32"), dataset.targets.shape[1])
    features["weight"] = datasets.Value("float32")

    def rows() -> Iterator[dict[str, Any]]:
        weights = dataset.weights.tolist()
        targets = dataset.targets.tolist()
        key = "label" if dataset.classes else "target"
        if pictured:
            found = (p for _, pictures, _ in _pictures(dataset, "datasets") for p in pictures)
        else:
            found = (sample for _, part in dataset.parts(_PART) for sample in part.samples)
        for sample, target, weight in zip(found, targets, weights, strict=True):
            yield {"image" if pictured else "sample": sample, key: target, "weight": weight}

    told = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            made = datasets.Dataset.from_generator(
                rows, features=datasets.Features(features), cache_dir=cache
            )
            made.save_to_disk(str(place))
    finally:
        if not told:
            datasets.enable_progress_bars()
    return place


FORMATS: Mapping[str, Callable[[BankDataset, Path], Path]] = MappingProxyType(
    {"folder": _to_folder, "npz": _to_npz, "parquet": _to_parquet, "datasets": _to_datasets}
)


def _needed(module: str, kind: str) -> Any:
    """Import what only an export needs."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise BankError(f"format = {kind!r} needs a package: pip install {package}") from error


def _in_the_way(place: Path) -> BankError:
    return BankError(f"{place} is there already: name another folder, or remove it")


@contextmanager
def _whole(place: Path) -> Iterator[Path]:
    """Yield where to write a file that is there only once it is whole."""
    if place.exists():
        raise _in_the_way(place)
    part = place.with_name(f".{place.name}.part")
    try:
        yield part
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)


def _is_picture(shape: tuple[int, ...]) -> bool:
    """Whether a shape is (H, W), or (C, H, W) or (H, W, C) of 1 or 3 channels."""
    return len(shape) == 2 or (len(shape) == 3 and (shape[0] in (1, 3) or shape[2] in (1, 3)))


def _pictures(
    dataset: BankDataset, kind: str
) -> Iterator[tuple[int, NDArray[np.uint8], list[int]]]:
    """Yield pictures (N, H, W) or (N, H, W, 3) and labels, with the number of the first."""
    shape = dataset.samples.shape[1:]
    if not dataset.is_8bit or not _is_picture(shape):
        raise BankError(
            f"format = {kind!r} needs 8-bit pictures, grey or RGB; these samples have the shape "
            f"{shape}: take npz or parquet"
        )
    for start, part in dataset.parts(_PART):
        samples = part.samples
        if part.bounds is None and samples.dtype == np.float32 and dataset.scale != "none":
            samples = 255 * samples  # of several ranges: as a model sees them
        if samples.dtype != np.uint8:
            samples = np.clip(np.rint(samples), 0, 255).astype(np.uint8)
        if len(shape) == 3 and shape[0] in (1, 3):
            samples = np.moveaxis(samples, 1, -1)
        if samples.ndim == 4 and samples.shape[-1] == 1:
            samples = samples[..., 0]
        yield start, np.ascontiguousarray(samples), part.targets.astype(int).tolist()


def _folder_names(dataset: BankDataset) -> list[str]:
    """Return a name for the folder of each class."""
    digits = len(str(dataset.classes - 1))
    plain = [f"{k:0{digits}}" for k in range(dataset.classes)]
    names = [
        "".join(c if c.isalnum() or c in " ._-" else "_" for c in name).strip(" .")
        for name in dataset.class_names
    ]
    usable = len(names) == dataset.classes and all(names) and len(set(names)) == len(names)
    return names if usable else plain
