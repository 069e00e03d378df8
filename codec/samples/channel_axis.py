"""Where the channels of a sample are, for a codec that transforms along its other axes.

A sample keeps the shape that its data set gives; only the codec looks at it differently: grey
images (H, W) and series (T,) have one channel, pictures of other libraries have theirs last.
"""

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEW_CHANNELS, _MANY_CHANNELS = 4, 32
_SMOOTH = 0.5  # energy of the steps between neighbours, relative to that of unrelated values
_LEAST_SPREAD = 1 / 8  # standard deviation of most places, relative to that of all values
_SHORTEST_SERIES = 16
_LOOKED_AT = 64  # samples


class ChannelAxis(IntEnum):
    """Where a sample has its channels."""

    FIRST = 0
    NONE = 1
    LAST = 2

    def coded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a sample with its channels first."""
        if self is ChannelAxis.NONE:
            return (1, *shape)
        return (shape[-1], *shape[:-1]) if self is ChannelAxis.LAST else shape

    def coded(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return samples (N, *shape) with their channels first, (N, *coded_shape)."""
        if self is ChannelAxis.NONE:
            return samples[:, None]
        if self is ChannelAxis.LAST:
            return np.ascontiguousarray(np.moveaxis(samples, -1, 1))
        return samples

    def restored(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Undo `coded`."""
        if self is ChannelAxis.NONE:
            return samples[:, 0]
        if self is ChannelAxis.LAST:
            return np.ascontiguousarray(np.moveaxis(samples, 1, -1))
        return samples


def channel_axis_of(samples: NDArray[Any]) -> ChannelAxis:
    """Return how samples (N, *shape) of one to three axes are read.

    Three axes are (H, W, C) if the last is short and both others are longer; of more than 4
    channels, if values go on more smoothly along the first axis than along the last. Two axes are
    a grey image (H, W) if the values are 8-bit or go on smoothly along the first, else a series
    (C, T). A single axis is a series (T,). A shape that is read wrongly costs bytes, nothing else.
    """
    shape = samples.shape[1:]
    if len(shape) == 1:
        return ChannelAxis.NONE
    if len(shape) == 3:
        return ChannelAxis.LAST if _channels_last(samples) else ChannelAxis.FIRST
    grey = samples.dtype == np.uint8 or goes_on(samples)
    return ChannelAxis.NONE if grey and min(shape) > 1 else ChannelAxis.FIRST


def measured_axis(samples: NDArray[Any]) -> ChannelAxis:
    """Return where samples (N, *shape) have what is measured by itself: channels, or columns."""
    table = samples.ndim == 2 and not is_series(samples)
    return ChannelAxis.FIRST if table or samples.ndim > 4 else channel_axis_of(samples)


def _channels_last(samples: NDArray[Any]) -> bool:
    *sides, last = samples.shape[1:]
    if last >= min(sides) or last > _MANY_CHANNELS:
        return False
    return last <= _FEW_CHANNELS or _roughness(samples, 1) < _roughness(samples, 3)


def _roughness(samples: NDArray[Any], axis: int) -> float:
    """Return the mean square of the steps between neighbours along an axis."""
    values = samples[:_LOOKED_AT].astype(np.float64)
    return float(np.square(np.diff(values, axis=axis)).mean())


def is_series(samples: NDArray[Any]) -> bool:
    """Whether samples (N, d) are series, whose neighbouring values go on smoothly; else tables."""
    return samples.shape[1] >= _SHORTEST_SERIES and len(samples) > 1 and goes_on(samples)


def goes_on(samples: NDArray[Any]) -> bool:
    """Whether samples (N, d, ...) are one signal along their first axis, not d of their own.

    Neighbours are more alike than values taken anywhere, and most places spread about as far as
    all do: a step that suits all then suits each.
    """
    if samples.shape[1] < 2:
        return False
    values = samples[:_LOOKED_AT].astype(np.float64)
    variance = values.var()
    if _roughness(samples, 1) >= 2 * _SMOOTH * variance:
        return False
    places = values.var(axis=(0, *range(2, values.ndim)))
    there = places[places > 0]
    return len(there) > 0 and bool(np.quantile(there, 0.25) >= _LEAST_SPREAD**2 * variance)
