"""Scalar quantizers: real values in units of the step to integers, and back.

`nearest`
    Rounds to the closest level, with an optional dead zone around zero; biased, and the
    cheapest in bits. Error at most half a step outside the dead zone.
`stochastic`
    Rounds up with probability equal to the fraction: unbiased, variance at most step^2 / 4.
`dithered`
    Subtractive dither: a uniform that both ends know is added before rounding and subtracted
    after (Roberts, 1962; Schuchman, 1964): unbiased, variance step^2 / 12 whatever the value,
    and no bits spent on the dither.
"""

import numpy as np
from numpy.typing import NDArray

from codec.random import uniform

Array = NDArray[np.float32]
Symbols = NDArray[np.int64]
Key = tuple[int, ...]

QUANTIZERS = ("nearest", "stochastic", "dithered", "identity")
UNBIASED = ("stochastic", "dithered", "identity")


def quantize(scaled: Array, kind: str, *, dead_zone: float, key: Key) -> Symbols:
    """Quantize values given in units of the step.

    Parameters
    ----------
    scaled : float32, any shape
        Values divided by their step.
    kind : str
        ``nearest``, ``stochastic`` or ``dithered``.
    dead_zone : float
        For ``nearest``: how much of a step the zero bin is wider on each side, in [0, 0.5).
    key : tuple of int
        Seed, client, payload and level: the key of the generator.

    Returns
    -------
    int64, same shape
        Symbols.
    """
    if kind == "nearest":
        return (np.sign(scaled) * np.floor(np.abs(scaled) + (0.5 - dead_zone))).astype(np.int64)
    # floor(scaled + uniform), for both stochastic rounding and rounding after the dither
    # `uniform - 1/2`; by parts, since float32 would round the sum of a large value up.
    floor = np.floor(scaled)
    up = uniform(scaled.shape, *key) >= 1 - (scaled - floor)
    return floor.astype(np.int64) + up


def dequantize(symbols: Symbols, kind: str, *, offsets: tuple[float, float], key: Key) -> Array:
    """Return the values, in units of the step, that `symbols` stand for.

    Parameters
    ----------
    symbols : int64, any shape
        What `quantize` returned.
    kind : str
        As in `quantize`.
    offsets : (float, float)
        For ``nearest``: how far magnitudes of one, and of two or more, lie towards zero.
    key : tuple of int
        As in `quantize`.
    """
    values = symbols.astype(np.float32)
    if kind == "dithered":
        return values - (uniform(symbols.shape, *key) - np.float32(0.5))
    if kind == "nearest" and any(offsets):
        magnitude = np.abs(symbols)
        values -= np.sign(values) * np.choose(
            np.minimum(magnitude, 2), np.array([0, *offsets], np.float32)
        )
    return values


def centroid_offsets(scaled: Array, symbols: Symbols) -> tuple[float, float]:
    """Return how far the mean of the values lies from their level, towards zero.

    Separately for magnitudes of one and of two or more; the decoder that moves its levels
    there has the least mean squared error (Lloyd, 1982).
    """
    coded = np.flatnonzero(symbols)
    magnitude = np.abs(symbols.ravel()[coded])
    towards_zero = magnitude - np.abs(scaled.ravel()[coded])
    ones = magnitude == 1
    return _mean(towards_zero[ones]), _mean(towards_zero[~ones])


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else 0.0
