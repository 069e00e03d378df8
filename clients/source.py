"""Where a client's samples come from: one small interface, and what people have behind it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from clients.items import (
    TARGET_KEYS,
    class_number,
    numbers,
    sample_array,
    split_item,
    target_array,
)
from codec import CodecError

_MOST_LAYERS = 100  # data sets around a data set


@runtime_checkable
class SampleSource(Protocol):
    """Samples of one client, addressed by index; what to implement for a device of one's own.

    It may also have ``class_names``, a sequence of str; ``skipped``, a mapping of reasons to
    numbers of samples that were left out before, such as unreadable files; ``growing``, true if
    more may come when there is nothing left to send; and ``item_keys(indices)``, which returns a
    str or bytes for each of some items: equal keys are equal samples for ever, as path, time of
    change and size of a file. What has a key is read once; other items are known by their content.
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
    """Samples of a map-style data set; made by `as_source`.

    Attributes
    ----------
    dataset : IndexedDataset
    classes, low, high, class_names
        See `SampleSource`.
    keys : (str, str) or ()
        Of sample and target in an item that is a mapping, as the user says.
    likely_keys : (str, str) or ()
        What the data set declares; goes after `keys`.
    collate : callable or None
        A ``DataLoader``'s own, from a list of items to a batch; None: items are taken as they are.
    """

    dataset: IndexedDataset
    classes: int | None = None
    low: float | None = None
    high: float | None = None
    class_names: Sequence[str] = ()
    keys: Sequence[str] = ()
    likely_keys: Sequence[str] = ()
    collate: Callable[[list[Any]], Any] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def growing(self) -> bool:
        """Whether the data set says that more may come."""
        return bool(getattr(self.dataset, "growing", False))

    @property
    def skipped(self) -> Mapping[str, int]:
        """What the data set says that it has left out, by reason."""
        skipped = getattr(self.dataset, "skipped", None)
        counts = skipped if isinstance(skipped, Mapping) else {}
        return {str(why): count for why, count in counts.items() if type(count) is int}

    def item_keys(self, indices: NDArray[np.int64]) -> Sequence[str | bytes] | None:
        """Return the data set's own keys of some items, if it has any."""
        give = getattr(self.dataset, "item_keys", None)
        return give(indices) if callable(give) else None

    def get_item(self, index: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return one sample and its target.

        Raises
        ------
        ItemError
            If the item is not what a data set may hold; or whatever reading it raises.
        """
        item = self.dataset[index]
        if self.collate is None:
            sample, target = split_item(item, self.keys, self.likely_keys)
        else:
            samples, targets = split_item(self.collate([item]), self.keys, self.likely_keys)
            sample, target = samples[0], targets[0]
        return sample_array(sample), target_array(target, self.class_names)

    def get_items(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return samples and targets at `indices`, stacked.

        Raises
        ------
        CodecError
            If the samples, or the targets, do not all have one shape.
        """
        items = [self.get_item(int(index)) for index in indices]
        samples = _stack("sample", indices, [sample for sample, _ in items])
        return samples, _stack("target", indices, [target for _, target in items])


def as_source(
    dataset: Any,
    *,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
    keys: Sequence[str] = (),
) -> SampleSource:
    """Return what people have as a `SampleSource`.

    Parameters
    ----------
    dataset : SampleSource, or a map-style data set
        A torch ``Dataset`` (``Subset``, ``ConcatDataset``, ``TensorDataset``, ...), a
        ``DataLoader`` (its data set, or the part that its sampler names; its own collate function
        is called with one item at a time), a Hugging Face ``Dataset``, a list of pairs, or two
        arrays ``(samples, targets)``. Items are ``(sample, target)`` pairs or mappings.
    classes : int, optional
        Number of classes, 0 for float targets. Default: what the data set says; else labels are
        classes of the server's model.
    class_names : sequence of str, optional
        Names of the classes in the order of the labels. Default: what the data set says.
    value_range : (float, float), optional
        Lowest and highest value of a sample; what lies beyond is clipped, and counted. Default:
        0 to 255 for 8-bit images, measured for others.
    keys : (str, str), optional
        Of sample and target, where items are mappings.

    Raises
    ------
    CodecError
        If it has no length or no items by index, or the arguments are not legal.
    """
    if isinstance(keys, str) or len(keys) not in (0, 2):
        raise CodecError(f"keys = {keys!r} must be two names: of the sample and of the target")
    low, high = _checked_range(value_range)
    if isinstance(dataset, SampleSource):
        given = {"classes": classes, "low": low, "high": high, "class_names": class_names}
        return _altered(dataset, {k: v for k, v in given.items() if v is not None})
    if _is_pair_of_arrays(dataset):
        samples, targets = dataset
        return _array_source(samples, targets, classes, low, high, tuple(class_names or ()))
    data, collate = _behind_loader(dataset)
    _check_indexed(data)
    declared, count = known_classes(data, keys)
    names = () if classes == 0 else tuple(class_names or declared)
    classes = (len(names) or count) if classes is None else classes
    _check_names(names, classes)
    return DatasetSource(data, classes, low, high, names, keys, known_keys(data), collate)


def _checked_range(
    value_range: tuple[float, float] | None,
) -> tuple[float | None, float | None]:
    if value_range is None:
        return None, None
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not -np.inf < low < high < np.inf:
        raise CodecError(f"value_range = {value_range!r} must be two numbers, the lower one first")
    return low, high


def _check_names(names: Sequence[str], classes: int | None) -> None:
    if len(set(names)) < len(names):
        raise CodecError(f"class names repeat: {', '.join(names)}; each must be another")
    if classes and names and len(names) != classes:
        raise CodecError(
            f"classes = {classes}, but there are {len(names)} class names; pass class_names= with "
            f"{classes}"
        )


def _altered(source: SampleSource, given: Mapping[str, Any]) -> SampleSource:
    """Return a source with what the user says of it in the place of what it says itself."""
    if not given:
        return source
    if isinstance(source, ArraySource | DatasetSource):
        names = given.get("class_names")
        counted = {} if names is None else {"classes": len(names)}
        altered = replace(source, **counted | dict(given))
        _check_names(altered.class_names, altered.classes)
        return altered
    names = ", ".join(given)
    raise CodecError(
        f"{names} given for {type(source).__name__}: a sample source says so itself; set its "
        f"attributes {names}"
    )


# Two arrays


def _is_pair_of_arrays(dataset: Any) -> bool:
    return (
        isinstance(dataset, tuple | list)
        and len(dataset) == 2
        and all(hasattr(part, "shape") and len(part.shape) for part in dataset)
    )


def _array_source(
    samples: Any,
    targets: Any,
    classes: int | None,
    low: float | None,
    high: float | None,
    names: tuple[str, ...],
) -> ArraySource:
    found = np.asarray(targets) if not hasattr(targets, "detach") else None
    if found is not None and found.dtype.kind in "OUS":  # names of classes
        labels = np.array([class_number(str(name), names) for name in found.reshape(-1)], np.int64)
    else:
        labels = numbers(targets, "target")
    classes = (len(names) or None) if classes is None else classes
    _check_names(names, classes)
    return ArraySource(numbers(samples, "sample"), labels, classes, low, high, names)


# Data sets


def _check_indexed(dataset: Any) -> None:
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        raise CodecError(
            f"data set is a {kind} with keys {', '.join(map(str, dataset))}; legal: one of its "
            "parts, such as dataset['train'], or two arrays (samples, targets)"
        )
    if hasattr(dataset, "iloc"):
        raise CodecError(
            f"data set is a {kind}; legal: two arrays (samples, targets), such as "
            "(table[columns].to_numpy(), table[column].to_numpy())"
        )
    iterable = any(base.__name__ == "IterableDataset" for base in type(dataset).__mro__)
    if iterable or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise CodecError(
            f"data set is a {kind} without length or items by index; legal: a map-style data set, "
            "or list(...) of an iterable one"
        )


@dataclass(frozen=True)
class _Part:
    """Some items of a data set, as a sampler names them."""

    dataset: Any
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]


_WHOLE = ("SequentialSampler", "RandomSampler", "WeightedRandomSampler")


def _behind_loader(dataset: Any) -> tuple[Any, Callable[[list[Any]], Any] | None]:
    """Return the data set of a ``DataLoader`` and the collate function, if it has one of its own.

    Whatever is no loader is returned as it is.
    """
    if not (hasattr(dataset, "dataset") and hasattr(dataset, "batch_sampler")):
        return dataset, None
    loader, data = dataset, dataset.dataset
    collate = loader.collate_fn
    if str(getattr(collate, "__module__", "")).startswith("torch."):
        collate = None
    sampler = type(getattr(loader, "sampler", None)).__name__
    if hasattr(loader.sampler, "indices"):
        data = _Part(data, loader.sampler.indices)
    elif sampler not in _WHOLE and not sampler.startswith("_"):
        raise CodecError(
            f"DataLoader has a {sampler}, which may leave samples out; legal: its data set "
            "itself, or a torch.utils.data.Subset"
        )
    return data, collate


def _layers(dataset: Any) -> Iterator[Any]:
    """Yield a data set and what it is a part of, outermost first."""
    for _ in range(_MOST_LAYERS):
        if dataset is None:
            return
        yield dataset
        dataset = getattr(dataset, "dataset", None)  # torch's Subset


def known_classes(dataset: Any, keys: Sequence[str] = ()) -> tuple[tuple[str, ...], int | None]:
    """Return the names of the classes that a data set says it has, and their number.

    Parameters
    ----------
    dataset : object
        Or a part of it, or several in a row.
    keys : (str, str), optional
        Of sample and target in the items of a Hugging Face data set.

    Raises
    ------
    CodecError
        If parts of it say different things.
    """
    for layer in _layers(dataset):
        classes = getattr(layer, "classes", None)
        if isinstance(classes, Sequence) and not isinstance(classes, str):
            return tuple(map(str, classes)), len(classes)
        if isinstance(classes, int) and not isinstance(classes, bool):
            return (), classes
        labels = _label_features(layer)
        known = [key for key in TARGET_KEYS if key in labels]
        key = keys[1] if keys else next(iter(known or labels), None)
        if key in labels:
            names = tuple(map(str, labels[key].names))
            return names, len(names)
        parts = getattr(layer, "datasets", None)  # torch's ConcatDataset
        if parts:
            return _classes_of_parts([known_classes(part, keys) for part in parts])
    return (), None


def _classes_of_parts(
    found: Sequence[tuple[tuple[str, ...], int | None]],
) -> tuple[tuple[str, ...], int | None]:
    different = list(dict.fromkeys(found))
    if len(different) > 1:
        said = " and ".join(", ".join(names) or str(count) for names, count in different[:2])
        raise CodecError(
            f"the parts of the data set have different classes: {said}. Map their labels to common "
            "classes and pass class_names="
        )
    return different[0]


def _label_features(dataset: Any) -> dict[str, Any]:
    """Return the columns of classes that a Hugging Face data set declares."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return {}
    return {
        name: kind
        for name, kind in features.items()
        if hasattr(kind, "num_classes") and hasattr(kind, "names")
    }


def known_keys(dataset: Any) -> tuple[str, ...]:
    """Return the columns of image and class that a Hugging Face data set declares; else none."""
    for layer in _layers(dataset):
        labels = list(_label_features(layer))
        if not labels:
            continue
        images = [n for n, kind in layer.features.items() if type(kind).__name__ == "Image"]
        return (images[0], labels[0]) if len(images) == len(labels) == 1 else ()
    return ()


def _stack(what: str, indices: NDArray[np.int64], arrays: list[NDArray[Any]]) -> NDArray[Any]:
    for index, array in zip(indices, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise CodecError(
                f"{what} {index} has shape {array.shape}, {what} {indices[0]} has "
                f"{arrays[0].shape}: all must have one shape"
            )
    return np.stack(arrays) if arrays else np.empty(0)
