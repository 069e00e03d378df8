"""A small network that scores samples on a device: NumPy alone, whole numbers of 8 bits.

The server trains it beside the model (`strategies.scout`), and `codec.learning.scout_bytes` has how
it travels. Images go through 3x3 convolutions, are averaged over their places and end in a linear
layer; series and tables go through linear layers alone. ReLU follows every layer but the last.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError
from codec.samples.spec import SampleSpec

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

LINEAR = 0  # stands where a convolution has its stride
MAX_LAYERS = 8
MAX_WEIGHTS = 1 << 18
MAX_OPERATIONS = 1 << 28  # multiplications for one sample
LARGEST = 127  # of a weight
LARGEST_BIAS = 1 << 40
EXPONENTS = range(-120, 121)  # of a layer's outputs, in half octaves

_SIDE = 32  # pixels of an image as a scout looks at it; larger ones are averaged
_CONVOLUTIONS = ((2, 16), (2, 32), (1, 64))  # stride, outputs
_MOST_INPUTS = 4096  # of a network without convolutions
_FIRST_WEIGHTS = 49152
_NARROWEST, _WIDEST, _SECOND = 8, 64, 32
_FEW_CHANNELS = 4
_BATCH = 64  # images at a time: what they unfold to stays in the cache
_ROOTS = (1.0, math.sqrt(2.0))


class Layout(IntEnum):
    """What the axes of a sample are."""

    FLAT = 0  # values without neighbours, or a series
    FIRST = 1  # an image, (C, H, W)
    LAST = 2  # an image, (H, W, C)
    GREY = 3  # an image, (H, W)


@dataclass(frozen=True)
class Plan:
    """What a scout looks at, and how wide it is.

    Attributes
    ----------
    layout : Layout
    shape : tuple of int
        Of a sample.
    pool : int
        Side of the squares of pixels, or number of neighbouring values, that are averaged first.
    layers : tuple of (int, int)
        Stride of a convolution, or `LINEAR`; and outputs. Convolutions come first.

    Raises
    ------
    CodecError
        If such a network cannot be, or is larger than `MAX_WEIGHTS` or `MAX_OPERATIONS`.
    """

    layout: Layout
    shape: tuple[int, ...]
    pool: int
    layers: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        kinds = [stride == LINEAR for stride, _ in self.layers]
        axes = {Layout.FIRST: 3, Layout.LAST: 3, Layout.GREY: 2}.get(self.layout, len(self.shape))
        problem = None
        if len(self.shape) != axes or not self.shape or min(self.shape) < 1:
            problem = f"samples of shape {self.shape} where {axes} axes are needed"
        elif not 1 <= self.pool <= self._room():
            problem = f"{self.pool} values averaged; legal: 1 to {self._room()}"
        elif not 1 <= len(kinds) <= MAX_LAYERS or sorted(kinds) != kinds or not kinds[-1]:
            problem = f"layers {self.layers}; legal: convolutions, then 1 or more linear ones"
        elif kinds[0] == (self.layout is not Layout.FLAT):
            problem = f"layers {self.layers} for the layout {self.layout.name}"
        elif any(stride not in (0, 1, 2) or outputs < 1 for stride, outputs in self.layers):
            problem = f"layers {self.layers}; legal: strides 1 and 2, at least 1 output"
        elif self.weights > MAX_WEIGHTS or self.operations > MAX_OPERATIONS:
            problem = (
                f"{self.weights} weights and {self.operations} operations; legal: at most "
                f"{MAX_WEIGHTS} and {MAX_OPERATIONS}"
            )
        if problem:
            raise CodecError(f"scout: {problem}")

    @property
    def channels(self) -> int:
        """Numbers that one place of an image has, or all of a flat sample, after the averaging."""
        if self.layout is Layout.FIRST:
            return self.shape[0]
        if self.layout is Layout.LAST:
            return self.shape[2]
        return 1 if self.layout is Layout.GREY else math.prod(self.shape) // self.pool

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of an image after the averaging; (1, 1) for flat samples."""
        if self.layout is Layout.FLAT:
            return 1, 1
        start = 1 if self.layout is Layout.FIRST else 0
        height, width = self.shape[start : start + 2]
        return height // self.pool, width // self.pool

    @property
    def fan_ins(self) -> tuple[int, ...]:
        """Inputs of one output of each layer."""
        found, before = [], self.channels
        for stride, outputs in self.layers:
            found.append(before if stride == LINEAR else 9 * before)
            before = outputs
        return tuple(found)

    @property
    def weights(self) -> int:
        """Weights of all layers."""
        return sum(
            fan_in * outputs for fan_in, (_, outputs) in zip(self.fan_ins, self.layers, strict=True)
        )

    @property
    def operations(self) -> int:
        """Multiplications for one sample."""
        total, (height, width) = 0, self.sides
        for fan_in, (stride, outputs) in zip(self.fan_ins, self.layers, strict=True):
            if stride == LINEAR:
                height = width = 1
            else:
                height, width = -(-height // stride), -(-width // stride)
            total += height * width * fan_in * outputs
        return total

    def _room(self) -> int:
        if self.layout is Layout.FLAT:
            return math.prod(self.shape)
        start = 1 if self.layout is Layout.FIRST else 0
        return min(self.shape[start : start + 2])


def plan_of(spec: SampleSpec, outputs: int) -> Plan:
    """Return the scout for samples of a kind: 15,000 to 50,000 weights.

    Images are averaged to about 32 pixels a side, series and tables to at most 4,096 values.

    Parameters
    ----------
    spec : SampleSpec
        Three axes are an image, channels first, or last if these are few; two are a grey image if
        the values are of 8 bits, else a series.
    outputs : int
        Classes, or floats in a target.

    Raises
    ------
    CodecError
        If the samples are whole numbers such as tokens, or there are too many outputs.
    """
    if spec.dtype == "int32":
        raise CodecError(
            "scorer = 'scout' needs samples that are images, series or tables of floats, not "
            "whole numbers such as tokens; legal for those: scorer model"
        )
    shape = spec.shape
    if len(shape) == 3:
        last = shape[2] <= _FEW_CHANNELS < min(shape[:2])
        layout = Layout.LAST if last else Layout.FIRST
    elif len(shape) == 2 and spec.dtype == "uint8" and min(shape) > 1:
        layout = Layout.GREY
    else:
        pool = -(-math.prod(shape) // _MOST_INPUTS)
        width = _FIRST_WEIGHTS // (math.prod(shape) // pool)
        first = min(max(width, _NARROWEST), _WIDEST)
        layers = (LINEAR, first), (LINEAR, _SECOND), (LINEAR, outputs)
        return Plan(Layout.FLAT, shape, pool, layers)
    place = 1 if layout is Layout.FIRST else 0
    height, width = spec.shape[place], spec.shape[place + 1]
    pool = max(1, min(min(height, width), math.isqrt(height * width) // _SIDE))
    return Plan(layout, shape, pool, (*_CONVOLUTIONS, (LINEAR, outputs)))


@dataclass(frozen=True)
class Layer:
    """One layer in whole numbers: a weight is its number times its output's step.

    Attributes
    ----------
    weights : (outputs, fan-in) int64 array
        Of a convolution in the order of the filter's rows, columns and channels.
    biases : (outputs,) int64 array
    exponents : (outputs,) int64 array
        Steps, in half octaves: an output's is 2^(exponent / 2).
    """

    weights: Ints
    biases: Ints
    exponents: Ints

    def floats(self) -> tuple[Floats, Floats]:
        """Return weights (outputs, fan-in) and biases (outputs,)."""
        steps = step_sizes(self.exponents)
        weights = (self.weights * steps[:, None]).astype(np.float32)
        return weights, (self.biases * steps).astype(np.float32)


def step_sizes(exponents: Ints) -> NDArray[np.float64]:
    """Return 2^(exponents / 2), the same bits on every machine."""
    return np.asarray(np.ldexp(np.take(_ROOTS, exponents & 1), exponents >> 1))


@dataclass(frozen=True, eq=False)
class Scout:
    """A network in whole numbers.

    Attributes
    ----------
    plan : Plan
    centre, factor : (channels,) float32 array
        A sample as the model sees it is first lessened and multiplied by these.
    layers : tuple of Layer
    """

    plan: Plan
    centre: Floats
    factor: Floats
    layers: tuple[Layer, ...]

    def outputs(self, samples: NDArray[Any]) -> tuple[Floats, Floats]:
        """Run the network.

        Parameters
        ----------
        samples : (N, *shape) float array
            As the model sees them, see `codec.learning.inputs`.

        Returns
        -------
        logits : (N, K) float32 array
        features : (N, F) float32 array
            What goes into the last layer.

        Raises
        ------
        CodecError
            If the samples have another shape.
        """
        if samples.shape[1:] != self.plan.shape:
            raise CodecError(
                f"samples are of shape {samples.shape[1:]}; the scout takes {self.plan.shape}"
            )
        floats = [layer.floats() for layer in self.layers]
        inner, (last, bias) = floats[:-1], floats[-1]
        logits = np.empty((len(samples), len(bias)), np.float32)
        features = np.empty((len(samples), last.shape[1]), np.float32)
        for part in _batches(len(samples)):
            values = (viewed(samples[part], self.plan) - self.centre) * self.factor
            for (stride, _), (weights, biases) in zip(self.plan.layers, inner, strict=False):
                if stride == LINEAR:
                    values = _averaged(values) @ weights.T + biases
                else:
                    values = _convolved(values, weights, biases, stride)
                np.maximum(values, 0, out=values)
            features[part] = _averaged(values)
            logits[part] = features[part] @ last.T + bias
        return logits, features


def viewed(samples: NDArray[Any], plan: Plan) -> Floats:
    """Return samples (N, *shape) as a scout looks at them.

    Returns
    -------
    (N, H, W, C) or (N, channels) float32 array
    """
    values = np.asarray(samples, np.float32)
    if plan.layout is Layout.FLAT:
        kept = values.reshape(len(values), -1)[:, : plan.channels * plan.pool]
        return np.asarray(kept.reshape(len(values), -1, plan.pool).mean(axis=2, dtype=np.float32))
    if plan.layout is Layout.FIRST:
        values = np.moveaxis(values, 1, 3)
    elif plan.layout is Layout.GREY:
        values = values[..., None]
    if plan.pool == 1:
        return values
    (height, width), side = plan.sides, plan.pool
    kept = values[:, : height * side, : width * side]
    squares = kept.reshape(len(values), height, side, width, side, -1)
    return np.asarray(squares.mean(axis=(2, 4), dtype=np.float32))


def _batches(count: int) -> Iterator[slice]:
    for start in range(0, count, _BATCH):
        yield slice(start, min(count, start + _BATCH))


def _averaged(values: Floats) -> Floats:
    """Return the mean over the places of an image; flat values as they are."""
    return values if values.ndim == 2 else np.asarray(values.mean(axis=(1, 2)))


def _convolved(values: Floats, weights: Floats, biases: Floats, stride: int) -> Floats:
    """Convolve (N, H, W, C) with 3x3 filters over one pixel of zeros."""
    count, height, width, channels = values.shape
    padded = np.zeros((count, height + 2, width + 2, channels), np.float32)
    padded[:, 1:-1, 1:-1] = values
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    places = windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
    rows = places.reshape(-1, 9 * channels)
    return np.asarray((rows @ weights.T + biases).reshape(*places.shape[:3], -1))
