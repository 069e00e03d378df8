"""Map-style data sets of other libraries as sources of samples.

Nothing here imports torch: a torch ``Dataset`` is used through its ``__getitem__``,
and its tensors through their ``.numpy()``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from codec import CodecError

_SAMPLE_KEYS = ("img", "image")
_TARGET_KEYS = ("label", "fine_label")


class IndexedDataset(Protocol):
    """What `as_source` needs of a data set: any map-style torch ``Dataset`` has it."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class DatasetSource:
    """Samples of a map-style data set; made by `as_source`."""

    dataset: IndexedDataset
    classes: int
    low: float
    high: float

    def __len__(self) -> int:
        return len(self.dataset)

    def get_items(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return samples and targets at `indices`, stacked.

        Raises
        ------
        CodecError
            If the samples, or the targets, do not all have one shape.
        """
        items = [_split_item(self.dataset[int(index)]) for index in indices]
        samples = _stack("sample", indices, [_to_array(sample) for sample, _ in items])
        targets = _stack("target", indices, [_to_array(target) for _, target in items])
        return samples, targets


def known_classes(dataset: Any) -> int:
    """Return how many classes a data set, or what it is a subset of, says it has.

    Raises
    ------
    CodecError
        If it does not say.
    """
    while dataset is not None:
        if hasattr(dataset, "classes"):
            return len(dataset.classes)
        features = getattr(dataset, "features", None)
        for key in _TARGET_KEYS:
            if isinstance(features, Mapping) and hasattr(features.get(key), "num_classes"):
                return int(features[key].num_classes)
        dataset = getattr(dataset, "dataset", None)  # torch's Subset
    raise CodecError("the data set does not name its classes: pass classes=, 0 for float targets")


def first_dtype(dataset: IndexedDataset) -> np.dtype[Any]:
    """Return the dtype of the first sample."""
    return _to_array(_split_item(dataset[0])[0]).dtype


def _split_item(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        return _first_of(item, _SAMPLE_KEYS), _first_of(item, _TARGET_KEYS)
    sample, target = item
    return sample, target


def _first_of(item: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    for key in keys:
        if key in item:
            return item[key]
    raise CodecError(f"item has keys {sorted(item)}, expected one of {', '.join(keys)}")


def _to_array(value: Any) -> NDArray[Any]:
    if hasattr(value, "getbands"):  # a PIL image
        gray = value.mode in ("1", "L")
        pixels = np.asarray(value.convert("L" if gray else "RGB"))
        return pixels[np.newaxis] if gray else pixels.transpose(2, 0, 1)
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def _stack(what: str, indices: NDArray[np.int64], arrays: list[NDArray[Any]]) -> NDArray[Any]:
    for index, array in zip(indices, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise CodecError(
                f"{what} {index} has shape {array.shape}, sample {indices[0]} has "
                f"{arrays[0].shape}: all must have one shape"
            )
    return np.stack(arrays)
