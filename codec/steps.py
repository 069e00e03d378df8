"""Quantization step of every coefficient: where the bits of a sample go."""

import numpy as np
from numpy.typing import NDArray

from codec.transform import Transform


def coefficient_steps(
    transform: Transform, step: float, tilt: float, chroma: float
) -> NDArray[np.float32]:
    """Return the step of each coefficient, float32 (coefficients, 1), in sample units.

    Parameters
    ----------
    transform : Transform
        The transform; ``identity`` takes one step throughout.
    step : float
        Step of the lowest frequency of the first channel, in sample units.
    tilt : float
        Growth towards high frequencies: the step at the top of the band of one axis is
        ``(1 + tilt)`` times that at its bottom.
    chroma : float
        Factor of the colour-difference channels.
    """
    if transform.kind == "identity":
        return np.full((transform.coefficients, 1), step, np.float32)
    axes = [np.arange(size) / size for size in transform.block_shape]
    squared = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij"))
    radius = np.sqrt(squared)  # 1 = top of the band of one axis
    channel = np.ones(transform.channels)
    if transform.channels == 3:
        channel[1:] = chroma
    steps = step * np.multiply.outer(channel, 1 + tilt * radius)
    return steps.reshape(-1, 1).astype(np.float32)
