"""Where a client's samples come from: one small interface, and what people have behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from clients.items import sample_array, split_item, target_array
from codec import CodecError


@runtime_checkable
class SampleSource(Protocol):
    """Samples of one client, addressed by index; what to implement for a device of one's own.

    It may also have ``class_names``, a sequence of str, and ``skipped``, a mapping of reasons to
    numbers of samples that were left out before, such as unreadable files.
    """

    @property
    def classes(self) -> int | None:
        """Number of classes; 0 when the targets are floats, None when it is not known."""
        ...

    @property
    def low(self) -> float | None:
        """Lowest value that a sample may hold, e.g. 0 for pixels; None: measured."""
        ...

    @property
    def high(self) -> float | None:
        """Highest value that a sample may hold, e.g. 255 for pixels; None: measured."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def get_items(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return samples and targets at `indices`; may raise for items that cannot be read.

        Parameters
        ----------
        indices : (N,) int64 array

        Returns
        -------
        samples : (N, *shape) array of numbers
            ``shape`` is (C, H, W), (H, W, C), (H, W), (C, T), (T,) or (d,).
        targets : (N,) array of labels or floats, or (N, t) float array
        """
        ...


class IndexedDataset(Protocol):
    """What `as_source` needs of a data set: any map-style torch ``Dataset`` has it."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class ArraySource:
    """Samples held in arrays; see `SampleSource` for shapes and attributes.

    Raises
    ------
    CodecError
        If there are not as many targets as samples.
    """

    samples: NDArray[Any]
    targets: NDArray[Any]
    classes: int | None = None
    low: float | None = None
    high: float | None = None
    class_names: Sequence[str] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.samples) != len(self.targets):
            raise CodecError(f"{len(self.targets)} targets for {len(self.samples)} samples")

    def __len__(self) -> int:
        return len(self.samples)

    def get_items(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return samples and targets at `indices`."""
        return self.samples[indices], self.targets[indices]


@dataclass(frozen=True)
class DatasetSource:
    """Samples of a map-style data set; made by `as_source`."""

    dataset: IndexedDataset
    classes: int | None = None
    low: float | None = None
    high: float | None = None
    class_names: Sequence[str] = ()
    keys: Sequence[str] = field(default=())

    def __len__(self) -> int:
        return len(self.dataset)

    def get_items(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return samples and targets at `indices`, stacked.

        Raises
        ------
        CodecError
            If the samples, or the targets, do not all have one shape.
        """
        items = [split_item(self.dataset[int(index)], self.keys) for index in indices]
        samples = _stack("sample", indices, [sample_array(sample) for sample, _ in items])
        targets = [target_array(target, self.class_names) for _, target in items]
        return samples, _stack("target", indices, targets)


def as_source(
    dataset: Any,
    classes: int | None = None,
    low: float | None = None,
    high: float | None = None,
    *,
    class_names: Sequence[str] | None = None,
    keys: Sequence[str] = (),
) -> SampleSource:
    """Return what people have as a `SampleSource`.

    Parameters
    ----------
    dataset : SampleSource, or a map-style data set
        A torch ``Dataset`` (``Subset``, ``ConcatDataset``, ``TensorDataset``, ...), a
        ``DataLoader`` (its data set is used), a Hugging Face ``Dataset``, a list of pairs, or two
        arrays ``(samples, targets)``. Items are ``(sample, target)`` pairs or mappings.
    classes : int, optional
        Number of classes, 0 for float targets. Default: what the data set says; else labels are
        classes of the server's model.
    low, high : float, optional
        Range of the values; what lies beyond is clipped, and counted. Default: 0 to 255 for uint8,
        measured for others.
    class_names : sequence of str, optional
        Names of the classes in the order of the labels. Default: what the data set says.
    keys : (str, str), optional
        Of sample and target, where items are mappings.

    Raises
    ------
    CodecError
        If it has no length or no items by index, or the arguments contradict each other.
    """
    if len(keys) not in (0, 2):
        raise CodecError(f"keys = {keys!r} must be two names: of the sample and of the target")
    if isinstance(dataset, SampleSource):
        return dataset
    if hasattr(dataset, "dataset") and hasattr(dataset, "batch_sampler"):  # a DataLoader
        dataset = dataset.dataset
    if _is_pair_of_arrays(dataset):
        return ArraySource(
            np.asarray(dataset[0]), np.asarray(dataset[1]), classes, low, high, class_names or ()
        )
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise CodecError(
            f"data set is a {type(dataset).__name__} without length or items by index; legal: a "
            "map-style data set, or list(...) of an iterable one"
        )
    names = tuple(class_names or known_class_names(dataset))
    if classes is None and names:
        classes = len(names)
    if classes and names and len(names) != classes:
        raise CodecError(f"classes = {classes}, but there are {len(names)} class names")
    return DatasetSource(dataset, classes, low, high, names, keys or known_keys(dataset))


def _is_pair_of_arrays(dataset: Any) -> bool:
    return (
        isinstance(dataset, tuple)
        and len(dataset) == 2
        and all(hasattr(part, "shape") and len(part.shape) for part in dataset)
        and len(dataset[0]) == len(dataset[1])
    )


def known_class_names(dataset: Any) -> tuple[str, ...]:
    """Return the class names that a data set, or what it is a part of, says it has."""
    seen = 0
    while dataset is not None and seen < 100:
        names = getattr(dataset, "classes", None)
        if isinstance(names, Sequence) and not isinstance(names, str):
            return tuple(map(str, names))
        features = getattr(dataset, "features", None)
        if isinstance(features, Mapping):
            for feature in features.values():
                if hasattr(feature, "num_classes") and hasattr(feature, "names"):
                    return tuple(map(str, feature.names))
        parts = getattr(dataset, "datasets", None)  # torch's ConcatDataset
        dataset = parts[0] if parts else getattr(dataset, "dataset", None)  # torch's Subset
        seen += 1
    return ()


def known_keys(dataset: Any) -> tuple[str, ...]:
    """Return the columns of image and class that a Hugging Face data set declares; else none."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return ()
    images = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    labels = [name for name, kind in features.items() if hasattr(kind, "num_classes")]
    return (images[0], labels[0]) if len(images) == 1 and len(labels) == 1 else ()


def _stack(what: str, indices: NDArray[np.int64], arrays: list[NDArray[Any]]) -> NDArray[Any]:
    for index, array in zip(indices, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise CodecError(
                f"{what} {index} has shape {array.shape}, sample {indices[0]} has "
                f"{arrays[0].shape}: all must have one shape"
            )
    return np.stack(arrays) if arrays else np.empty(0)
