"""Where a client's samples come from: one small interface, and how its items are checked."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from clients.dataset import DatasetSource, IndexedDataset, first_dtype, known_classes
from codec import CodecError, CodecOptions, SampleSpec


@runtime_checkable
class SampleSource(Protocol):
    """Samples of one client, addressed by index; what to implement for a device of one's own."""

    @property
    def classes(self) -> int:
        """Number of classes; 0 when the targets are floats (regression)."""
        ...

    @property
    def low(self) -> float:
        """Lowest value that a sample may hold, e.g. 0 for pixels."""
        ...

    @property
    def high(self) -> float:
        """Highest value that a sample may hold, e.g. 255 for pixels."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def get_items(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return samples and targets at `indices`.

        Parameters
        ----------
        indices : (N,) int64 array

        Returns
        -------
        samples : (N, *shape) uint8 or float array
            ``shape`` is (C, H, W), (C, T) or (d,), the same for all samples.
        targets : (N,) integer array, or (N,) or (N, t) float array when ``classes == 0``
        """
        ...


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
    classes: int
    low: float
    high: float

    def __post_init__(self) -> None:
        if len(self.samples) != len(self.targets):
            raise CodecError(f"{len(self.targets)} targets for {len(self.samples)} samples")

    def __len__(self) -> int:
        return len(self.samples)

    def get_items(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return samples and targets at `indices`."""
        return self.samples[indices], self.targets[indices]


def as_source(
    dataset: SampleSource | IndexedDataset,
    classes: int | None = None,
    low: float | None = None,
    high: float | None = None,
) -> SampleSource:
    """Return `dataset` as a `SampleSource`.

    Parameters
    ----------
    dataset : SampleSource, or anything with ``__len__`` and ``__getitem__``
        Items are ``(sample, target)`` pairs, or dicts with ``img``/``image`` and
        ``label``/``fine_label``. PIL images become (C, H, W); arrays and tensors are taken
        as channels first.
    classes : int, optional
        Default: what the data set says (``.classes``, or the label feature of a Hugging
        Face data set), also through ``Subset``.
    low, high : float, optional
        Value range. Default: 0 to 255 for uint8, 0 to 1 for floats.

    Raises
    ------
    CodecError
        If `classes` is neither given nor known to the data set.
    """
    if isinstance(dataset, SampleSource):
        return dataset
    if classes is None:
        classes = known_classes(dataset)
    if high is None:
        high = 255.0 if len(dataset) and first_dtype(dataset) == np.uint8 else 1.0
    return DatasetSource(dataset, classes, 0.0 if low is None else low, high)


def source_spec(source: SampleSource, codec: CodecOptions) -> SampleSpec:
    """Return what payloads of `source` look like, judged by its first sample.

    Raises
    ------
    CodecError
        If the source is empty, or its first sample is not legal (see `fetch`).
    """
    if len(source) == 0:
        raise CodecError("source has 0 samples, at least 1 is needed")
    samples, targets = source.get_items(np.zeros(1, np.int64))
    samples = _sample_dtype(samples)
    return SampleSpec(
        shape=tuple(samples.shape[1:]),
        dtype=samples.dtype.name,
        low=float(source.low),
        high=float(source.high),
        classes=int(source.classes),
        target_size=0 if source.classes else int(np.size(targets)),
        codec=codec,
    )


def fetch(
    source: SampleSource, indices: NDArray[np.int64], spec: SampleSpec
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return checked samples and targets at `indices`.

    Returns
    -------
    samples : (N, *spec.shape) array of spec.dtype
    targets : (N,) int64 labels, or (N, spec.target_size) float32

    Raises
    ------
    CodecError
        On a wrong shape or dtype, NaN, a value outside [low, high] or a label outside
        [0, classes); names the sample's index, the value and what is legal.
    """
    samples, targets = source.get_items(indices)
    samples = _sample_dtype(samples)
    if samples.shape != (len(indices), *spec.shape) or samples.dtype != spec.dtype:
        raise CodecError(
            f"samples {_name(indices)}: {samples.dtype} of shape {samples.shape}, "
            f"expected {spec.dtype} of shape {(len(indices), *spec.shape)}"
        )
    if samples.dtype != np.uint8 or spec.low > 0 or spec.high < 255:
        _check_range("sample", indices, samples, spec.low, spec.high)
    return samples, _check_targets(indices, np.asarray(targets), spec)


def _check_targets(
    indices: NDArray[np.int64], targets: NDArray[Any], spec: SampleSpec
) -> NDArray[Any]:
    if not spec.classes:
        targets = targets.astype(np.float32).reshape(len(indices), -1)
        if targets.shape[1] != spec.target_size:
            raise CodecError(
                f"targets of samples {_name(indices)}: {targets.shape[1]} floats each, "
                f"expected {spec.target_size}"
            )
        limit = float(np.finfo(np.float32).max)
        _check_range("target of sample", indices, targets, -limit, limit)
        return targets
    if targets.shape != (len(indices),) or not np.issubdtype(targets.dtype, np.integer):
        raise CodecError(
            f"targets of samples {_name(indices)}: {targets.dtype} of shape {targets.shape}, "
            f"expected integers of shape {(len(indices),)}"
        )
    _check_range("target of sample", indices, targets, 0, spec.classes - 1)
    return targets.astype(np.int64)


def _check_range(
    what: str, indices: NDArray[np.int64], values: NDArray[Any], low: float, high: float
) -> None:
    legal = (values >= low) & (values <= high)  # False for NaN
    if not legal.all():
        first = np.argwhere(~legal)[0]
        value = values[tuple(first)]
        raise CodecError(f"{what} {indices[first[0]]}: value {value} outside [{low:g}, {high:g}]")


def _sample_dtype(samples: NDArray[Any]) -> NDArray[Any]:
    samples = np.asarray(samples)
    if samples.dtype == np.uint8:
        return samples
    if np.issubdtype(samples.dtype, np.floating):
        return samples.astype(np.float32, copy=False)
    raise CodecError(f"samples have dtype {samples.dtype}; legal: uint8 and floating point")


def _name(indices: NDArray[np.int64]) -> str:
    return f"{indices.min()}..{indices.max()}" if len(indices) else "(none)"
