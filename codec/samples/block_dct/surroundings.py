"""How large a coefficient is likely to be, from all that is known around it.

A small network, whose weights are shipped, reads the logarithms of what both ends know when a wave
is coded: the magnitudes beside a coefficient in its block, in the blocks around and in the channels
before; how far the means of blocks lie apart, and from the darkest and brightest; the prediction
from the blocks around (`prediction`); how large coefficients are in this place of other samples, in
this sample, and at this frequency. Its *score* is the logit of a value other than zero on the data
that it was fitted to. The coder takes it as a context and counts what it is worth, so that a score
that is off for some samples costs little.

All numbers are integers below 2**24, which float32 holds: the same sums on every platform, in any
order.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.coding.range_coder import Ints
from codec.samples.block_dct import network
from codec.samples.block_dct.transform import Transform

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

UNIT = 8  # fixed point of the network's inputs, which are in octaves
HIGHEST_HIDDEN = (1 << 14) - 1
SCORES, LOWEST_SCORE = 64, -40  # bins of the score, a quarter of a logit wide
DECISIONS = 14  # magnitudes are unary up to here, beyond escape

_SCORE_SHIFT = 11  # of a score, to a quarter of a logit
_MOST_CHANNELS = 8  # that are coded one by one
_LARGEST_SCALE = 6  # a larger mean magnitude, of 8, is beyond the network
_CAP = 15  # a magnitude counts for at most
_AT_A_TIME = 1 << 14  # values of lines that are scored at a time
_LARGEST = (1 << 12) - 1  # sum of magnitudes that is told apart

# Frequency offsets of neighbours in a block besides the two next to it; the first counts twice.
_WIDE = (
    (-1, -1), (-1, -1), (0, -2), (-2, 0), (-2, 1), (1, -2), (-1, -2), (-2, -1), (0, -3), (-3, 0),
)  # fmt: skip
BLOCK_INPUTS = (
    "lower orders", "order before", "vertical", "horizontal", "diagonal", "vertical mean",
    "horizontal mean", "extreme", "place", "sample", "first channel", "channel before",
)  # fmt: skip
LINE_INPUTS = (
    "next", "wide", "vertical next", "horizontal next", "prediction", "in first channel",
    "in channel before",
)  # fmt: skip
STATIC_INPUTS = (
    "scale", "vertical order", "horizontal order", "larger order", "edge", "first of several",
    "second", "third or later", "bias",
)  # fmt: skip


def is_known(level: Transform, scales: Ints) -> bool:
    """Whether the network knows a level: of pixels, of few channels, not too finely quantized."""
    few = len(level.block_shape) == 2 and level.channels <= _MOST_CHANNELS
    return few and level.stride == 1 and int(scales.max()) <= _LARGEST_SCALE


class Surroundings:
    """What is known around the coefficients of a level, as they are coded.

    Parameters
    ----------
    level : Transform
        Two axes, up to `_MOST_CHANNELS` channels, several blocks.
    means : int64 (channels, N, *grid)
        Its block means, as `codec.samples.block_dct.prediction.block_means` returns them.
    scales : int64 (coefficients,)
        Half octaves of the mean magnitude of each frequency, at most `_LARGEST_SCALE`.
    """

    def __init__(self, level: Transform, means: Ints, scales: Ints) -> None:
        self.level, self._scales = level, scales
        rows = means[0].size
        self._grid = (-1, *level.grid)
        # Capped magnitudes; the last line is none.
        self._magnitude = np.zeros((level.coefficients + 1, rows), np.uint8)
        self._sum = np.zeros((level.channels, rows), np.int32)  # of a channel of a block
        self._last = np.zeros((level.channels, rows), np.int32)  # of its latest order
        self._means = [self._of_means(mean) for mean in means]
        self._statics = self.static()

    def learn(self, wave: Ints, values: Ints) -> None:
        """Take note of a wave: values (m, rows) of the coefficients of one order and channel."""
        magnitude = np.minimum(np.abs(values), _CAP).astype(np.uint8)
        self._magnitude[wave] = magnitude
        channel = int(wave[0]) // self._size
        self._last[channel] = magnitude.sum(axis=0, dtype=np.int32)
        self._sum[channel] += self._last[channel]

    def pass_over(self, wave: Ints) -> None:
        """Take note of a wave that is zero throughout."""
        self._last[int(wave[0]) // self._size] = 0

    def scores(self, wave: Ints, predicted: Ints) -> Bytes:
        """Return the bin of each coefficient's score, (m, rows), in [0, SCORES)."""
        common = network.OF_BLOCK @ self.of_blocks(int(wave[0]) // self._size)
        rows = common.shape[1]
        bins = np.empty((len(wave), rows), np.uint8)
        # Many lines at a time where they are short, as each step takes its time then.
        some = max(1, _AT_A_TIME // rows)
        for start in range(0, len(wave), some):
            part = slice(start, start + some)
            hidden = network.OF_LINE @ self.of_lines(wave[part], predicted[part])
            hidden += common
            hidden += (self._statics[wave[part]] @ network.STATIC.T)[:, :, None]
            np.clip(hidden, 0, HIGHEST_HIDDEN, out=hidden)
            bins[part] = bins_of(network.OUT @ hidden + network.OUT_BIAS)
        return bins

    def of_blocks(self, channel: int) -> Floats:
        """Return the inputs of all coefficients of the next order, (BLOCK_INPUTS, rows)."""
        own = self._sum[channel].reshape(self._grid)
        vertical = _beside(own, 1)
        rows = [own, self._last[channel], vertical, _beside(own, 2), _beside(vertical, 2)]
        logs = [_log(row).ravel() for row in rows]
        logs += self._means[channel]
        place = _log(4 * own.sum(axis=0) // len(own))
        logs.append(np.broadcast_to(place, own.shape).ravel())
        sample = _log(4 * own.sum(axis=(1, 2), keepdims=True) // own[0].size)
        logs.append(np.broadcast_to(sample, own.shape).ravel())
        none = np.zeros(own.size, np.float32)
        logs.append(_log(self._sum[0]) if channel else none)
        logs.append(_log(self._sum[channel - 1]) if channel > 1 else none)
        return np.stack(logs)

    def of_lines(self, wave: Ints, predicted: Ints) -> Floats:
        """Return the inputs of some coefficients of all blocks, (m, LINE_INPUTS, rows).

        Parameters
        ----------
        wave : int64 (m,)
            Coefficients of one order and channel.
        predicted : int64 (m, rows)
        """
        known, size = self._magnitude, self._size
        channel, frequencies = int(wave[0]) // size, wave % size
        near = _neighbours(self.level.block_shape)[frequencies]
        first, second, *wide = np.where(near < 0, near, near + channel * size).T
        one, other = known[first], known[second]
        # Where there is but one of the two, it counts twice.
        both = np.where(first[:, None] < 0, other, one) + np.where(second[:, None] < 0, one, other)
        around = known[wide[0]]
        for each in wide[1:]:
            around += known[each]
        table, inputs = _logs(), np.zeros((len(wave), len(LINE_INPUTS), known.shape[1]), np.float32)
        split = both.reshape(self._grid)
        inputs[:, 0] = table[both]
        inputs[:, 1] = table[around]
        inputs[:, 2] = table[_beside(split, 1)].reshape(both.shape)
        inputs[:, 3] = table[_beside(split, 2)].reshape(both.shape)
        inputs[:, 4] = table[np.minimum(np.abs(predicted) >> 6, _LARGEST)]
        if channel:
            inputs[:, 5] = table[2 * known[frequencies]]
        if channel > 1:
            inputs[:, 6] = table[2 * known[wave - size]]
        return inputs

    def static(self) -> Floats:
        """Return the inputs that all blocks have in common, (coefficients, STATIC_INPUTS)."""
        shape = self.level.block_shape
        channel, frequency = np.divmod(np.arange(self.level.coefficients), self._size)
        orders = np.unravel_index(frequency, shape)
        parts = [2 * UNIT * order // side for order, side in zip(orders, shape, strict=True)]
        several = self.level.channels > 1
        edge = np.minimum(*orders) == 0
        flags = [edge, (channel == 0) & several, channel == 1, channel > 1, channel >= 0]
        # Absent frequencies are asked for nothing.
        scale = UNIT // 2 * np.maximum(self._scales, -_LARGEST)
        columns = [scale, *parts, np.maximum(*parts), *(UNIT * flag for flag in flags)]
        return np.stack(columns, axis=1).astype(np.float32)

    @property
    def _size(self) -> int:
        return self.level.coefficients // self.level.channels

    def _of_means(self, mean: Ints) -> list[Floats]:
        """Return the inputs of the block means of a channel, int64 (N, *grid)."""
        extreme = np.minimum(mean - mean.min(), mean.max() - mean)
        apart = [_beside(mean, axis, difference=True) for axis in (1, 2)]
        return [_log(part >> 4).ravel() for part in (*apart, extreme)]


def bins_of(scores: Floats) -> Bytes:
    """Return the bins, uint8 in [0, SCORES), of whole scores (N,), in 1/8192 of a logit."""
    quarters = np.floor(scores * np.float32(2.0**-_SCORE_SHIFT))
    bins: Bytes = np.clip(quarters - LOWEST_SCORE, 0, SCORES - 1).astype(np.uint8)
    return bins


@lru_cache(maxsize=8)
def _neighbours(block_shape: tuple[int, ...]) -> Ints:
    """Return the frequencies beside each one of a block, -1 for none, int64 (size, neighbours)."""
    height, width = block_shape
    size = height * width
    at = np.full((size, 2 + len(_WIDE)), -1, np.int64)
    for frequency in range(size):
        row, column = divmod(frequency, width)
        for number, (down, right) in enumerate(((0, -1), (-1, 0), *_WIDE)):
            y, x = row + down, column + right
            if 0 <= y < height and 0 <= x < width and (y or x):
                at[frequency, number] = y * width + x
    return at


def _beside(values: NDArray[np.integer], axis: int, *, difference: bool = False) -> NDArray[Any]:
    """Sum what stands before and after along an axis of the grid; at its ends, one counts twice.

    With `difference`, sum the absolute differences from them.
    """
    total = np.zeros_like(values)
    if values.shape[axis] == 1:
        return total
    head, tail = (_part(values.ndim, axis, part) for part in (slice(None, -1), slice(1, None)))
    if difference:
        step = np.abs(values[tail] - values[head])
        total[head] += step
        total[tail] += step
    else:
        total[head] += values[tail]
        total[tail] += values[head]
    for end in (slice(None, 1), slice(-1, None)):
        total[_part(values.ndim, axis, end)] *= 2
    return total


def _part(axes: int, axis: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if each == axis else slice(None) for each in range(axes))


@lru_cache(maxsize=1)
def _logs() -> Floats:
    """Return 8 * log2(1 + x), rounded; none lies near enough to a half for platforms to differ."""
    logs: Floats = np.round(UNIT * np.log2(np.arange(1.0, _LARGEST + 2))).astype(np.float32)
    return logs


def _log(values: NDArray[np.integer]) -> Floats:
    logs: Floats = _logs()[np.minimum(values, _LARGEST)]
    return logs
