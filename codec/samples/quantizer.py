"""Scalar quantizers: real values in units of the step to integers, and back.

`nearest`
    Rounds to the closest integer; biased, and the cheapest in bits. Error at most half a step.
`stochastic`
    Rounds up with probability equal to the fraction: unbiased, variance at most step^2 / 4.
`dithered`
    Subtractive dither: a uniform that both ends know is added before rounding and subtracted
    after (Roberts, 1962; Schuchman, 1964): unbiased, variance step^2 / 12 whatever the value,
    and no bits spent on the dither.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError
from codec.random import uniform
from codec.samples.sample_codec import Array, Key

if TYPE_CHECKING:
    from codec.samples.spec import SampleSpec

Symbols = NDArray[np.int64]

QUANTIZERS = ("nearest", "stochastic", "dithered")
UNBIASED = ("stochastic", "dithered")
MAX_MAGNITUDE = 1 << 22


def quantize(scaled: NDArray[np.floating], kind: str, *, key: Key) -> Symbols:
    """Quantize values given in units of the step.

    Parameters
    ----------
    scaled : float, any shape
        Values divided by their step.
    kind : str
        One of `QUANTIZERS`.
    key : tuple of int
        Seed, client, payload and level of the transform: the key of the generator.

    Returns
    -------
    int64, same shape
        Symbols.
    """
    if kind == "nearest":
        nearest: Symbols = (np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype(np.int64)
        return nearest
    # floor(scaled + uniform), for both stochastic rounding and rounding after the dither
    # `uniform - 1/2`; by parts, since float32 would round the sum of a large value up.
    floor = np.floor(scaled)
    up = uniform(scaled.shape, *key) >= 1 - (scaled - floor)
    symbols: Symbols = floor.astype(np.int64) + up
    return symbols


def dequantize(symbols: Symbols, kind: str, *, key: Key) -> Array:
    """Return the values, in units of the step, that `symbols` stand for.

    Parameters
    ----------
    symbols : int64, any shape
        What `quantize` returned.
    kind, key
        As in `quantize`.
    """
    values = symbols.astype(np.float32)
    if kind == "dithered":
        return values - (uniform(symbols.shape, *key) - np.float32(0.5))
    return values


def check_magnitude(largest: int) -> None:
    """Raise `CodecError` if a symbol is larger than the entropy coder takes."""
    if largest >= MAX_MAGNITUDE:
        raise CodecError(
            f"a quantized coefficient is {largest} steps; legal: below {MAX_MAGNITUDE}. "
            "Use a larger step"
        )


def within_range(values: Array, spec: "SampleSpec") -> Array:
    """Return decoded samples within the range of their source, unless clipping would bias them."""
    if spec.codec.quantizer in UNBIASED:
        return values
    clipped: Array = np.clip(values, spec.low, spec.high)
    return clipped
