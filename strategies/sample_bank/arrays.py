"""Decoded samples as a bank holds them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codec import DecodedSamples, SampleSpec
from codec.learning.inputs import Bounds, in_units, mapped_range, sees_floats

DEFAULT_MEMORY_LIMIT = 4 << 30
"""Bytes of decoded samples that are held in memory."""


@dataclass(frozen=True)
class Arrays:
    r"""Samples that are decoded, or were never coded.

    Attributes
    ----------
    samples : ndarray
        (N, \*shape) uint8, float32, or integers that stay so.
    targets : ndarray
        (N,) int64, (N,) float32 or (N, t) float32.
    weights : ndarray
        (N,) float32.
    bounds : (float, float), optional
        Range that the model sees as [0, 1]; None: samples are as it sees them.
    """

    samples: NDArray[Any]
    targets: NDArray[Any]
    weights: NDArray[np.float32]
    bounds: Bounds | None

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def is_float(self) -> bool:
        """Whether the model sees floats."""
        return self.samples.dtype in (np.uint8, np.float32)

    @property
    def kind(self) -> "Kind":
        """What samples of a bank must have in common."""
        inner = self.targets.shape[1:]
        # Vectors of one float and single floats are the same to a criterion.
        shape = () if inner == (1,) else inner
        return Kind(self.samples.shape[1:], self.is_float, shape, self.targets.dtype.kind == "f")

    def in_floats(self) -> "Arrays":
        """Return the samples as float32 as the model sees them."""
        return replace(self, samples=as_seen(self.samples, self.bounds), bounds=None)

    def take(self, index: NDArray[Any] | slice) -> "Arrays":
        """Return some of the samples, copied unless `index` is a slice."""
        return Arrays(self.samples[index], self.targets[index], self.weights[index], self.bounds)


@dataclass(frozen=True)
class Kind:
    """What samples of a bank must have in common: shape, and kind of values and targets."""

    shape: tuple[int, ...]
    is_float: bool
    target_shape: tuple[int, ...]
    float_targets: bool

    def __str__(self) -> str:
        values = "floats or 8-bit values" if self.is_float else "integers"
        targets = "float targets" if self.float_targets else "class labels"
        return f"{values} of shape {self.shape} with {targets} of shape {self.target_shape}"


def as_seen(samples: NDArray[Any], bounds: Bounds | None) -> NDArray[np.float32]:
    """Return samples as float32 as the model sees them."""
    if bounds is None:
        return samples.astype(np.float32, copy=False)
    seen: NDArray[np.float32] = in_units(torch.tensor(samples), bounds).numpy()
    return seen


def held_type(spec: SampleSpec) -> type[np.generic]:
    """Return the type in which a bank holds the samples of a payload."""
    if not sees_floats(spec):
        return np.int32
    # Biased anyway, or exact: rounding what it decodes to costs nothing.
    roundable = spec.sample_codec.lossless or not spec.sample_codec.is_unbiased(spec.codec)
    return np.uint8 if spec.dtype == "uint8" and roundable else np.float32


def held(spec: SampleSpec, decoded: DecodedSamples, scale: str) -> Arrays:
    """Return a payload's samples as they are held."""
    samples, dtype = decoded.samples, held_type(spec)
    if dtype is np.int32:
        samples = np.rint(samples).astype(np.int32)
    elif dtype is np.uint8:
        samples = np.clip(np.rint(samples), 0, 255).astype(np.uint8)
    return Arrays(samples, decoded.targets, decoded.weights, mapped_range(spec, scale))


def nothing_like(spec: SampleSpec, scale: str) -> Arrays:
    """Return no samples, but all that those of a payload have in common, without decoding it."""
    targets = np.empty((0, *spec.target_shape), np.int64 if spec.classes else np.float32)
    samples = np.empty((0, *spec.shape), held_type(spec))
    return Arrays(samples, targets, np.empty(0, np.float32), mapped_range(spec, scale))
