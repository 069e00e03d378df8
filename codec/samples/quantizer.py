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

from codec.errors import CodecError, PayloadError
from codec.random import uniform
from codec.samples.sample_codec import Array, Key

if TYPE_CHECKING:
    from codec.samples.spec import SampleSpec

Symbols = NDArray[np.int64]

QUANTIZERS = ("nearest", "stochastic", "dithered")
UNBIASED = ("stochastic", "dithered")
MAX_MAGNITUDE = 1 << 22
_STEPS_BEYOND = 8
_ROUNDING_OF_CONSTANT = 2.0**-8  # of a column of one value, relative to it


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


def most_beyond(spec: "SampleSpec") -> float:
    """Return how far an unbiased quantizer may decode outside the declared range.

    Errors are below a step for each coefficient, and a value's is a mean of many: a few times the
    largest step, measured against the range, is more than any encoder gets to. A column of a
    single value has a step of its own.
    """
    options = spec.codec
    largest = max(abs(spec.low), abs(spec.high))
    step = options.step * (spec.high - spec.low)
    if "tilt" in spec.sample_codec.uses:
        step *= (1 + options.tilt) ** 2 * max(1.0, options.chroma)
    least = 0.0 if spec.dtype == "float32" else 1.0  # step of whole numbers
    return _STEPS_BEYOND * (step + least) + largest * _ROUNDING_OF_CONSTANT


def check_range(values: Array, spec: "SampleSpec") -> None:
    """Raise `PayloadError` if decoded samples lie where none of a spec can be."""
    beyond = most_beyond(spec)
    low, high = float(values.min(initial=spec.low)), float(values.max(initial=spec.high))
    if low >= spec.low - beyond and high <= spec.high + beyond:
        return
    raise PayloadError(
        f"samples decode to [{low:g}, {high:g}]; of range [{spec.low:g}, "
        f"{spec.high:g}] and step {spec.codec.step:g} they lie within {beyond:g} of it"
    )


def within_range(values: Array, spec: "SampleSpec") -> Array:
    """Return decoded samples within the range of their source, unless clipping would bias them."""
    if spec.codec.quantizer in UNBIASED:
        return values
    clipped: Array = np.clip(values, spec.low, spec.high)
    return clipped
