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
_SHORTEST_SERIES = 16


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

    Three axes are (H, W, C) if the last is no longer than channels are and the first is. Two axes
    are a grey image (H, W) if the values are 8-bit or go on smoothly along the first, else a
    series (C, T). A single axis is a series (T,).
    """
    shape = samples.shape[1:]
    if len(shape) == 1:
        return ChannelAxis.NONE
    if len(shape) == 3:
        return ChannelAxis.LAST if _channels_last(shape) else ChannelAxis.FIRST
    grey = samples.dtype == np.uint8 or is_smooth(samples, axis=1)
    return ChannelAxis.NONE if grey and min(shape) > 1 else ChannelAxis.FIRST


def _channels_last(shape: tuple[int, ...]) -> bool:
    first, last = shape[0], shape[-1]
    return last <= _FEW_CHANNELS < first or last <= _MANY_CHANNELS < first


def is_series(samples: NDArray[Any]) -> bool:
    """Whether samples (N, d) are series, whose neighbouring values go on smoothly; else tables."""
    return samples.shape[1] >= _SHORTEST_SERIES and is_smooth(samples, axis=1)


def is_smooth(samples: NDArray[Any], axis: int) -> bool:
    """Whether neighbours along an axis are more alike than values taken anywhere."""
    if samples.shape[axis] < 2:
        return False
    values = samples[:256].astype(np.float64)
    variance = values.var()
    return bool(np.square(np.diff(values, axis=axis)).mean() < 2 * _SMOOTH * variance)
