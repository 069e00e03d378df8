"""What neighbouring blocks say of a coefficient: its linear prediction, as a context.

A block's edge goes on in the block beside it. The prediction is the linear one of least squared
error, from the block means and the low frequencies of the block itself and of those beside it,
for an isotropic first-order Markov field, whose values at distance r have the correlation
``0.9**r`` (the usual model of photographs; Jain, Fundamentals of Digital Image Processing, 1989,
section 2.9): nothing is learned, nothing is sent. It tells the coder the likely sign of a
coefficient and a part of its magnitude; nothing is subtracted, so a wrong prediction costs little.

All arithmetic is in integers, the same on every platform; so are the slopes of the regression, once
rounded.
"""

from dataclasses import dataclass
from functools import lru_cache
from types import EllipsisType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from codec.coding.range_coder import Ints
from codec.samples.block_dct.transform import Transform, dct_matrix

Index: TypeAlias = tuple[slice | EllipsisType, ...]

ONE = 256  # fixed point of predictions, in steps of the coefficient

# In brackets, what half and twice the value cost in bytes: see the constants of `coefficients`.
_CORRELATION = 0.9  # at distance 1 (0.2 %, 0: half and twice its logarithm)
# Of a quantized coefficient, over the variance of a value: step**2 / 12 for a step of a third of
# the range and a standard deviation of a quarter (-0.1 %, 0.1 %)
_NOISE = 0.14
_NOISE_OF_MEANS = 0.003  # too small beside their variance to matter (0, 0)
_HIGHEST_ORDER = 4  # of the frequencies that predict; more of them take time (1.2 %, 0)
_LARGEST_BLOCK = 256  # values of a block that is predicted
_SLOPE = 128  # fixed point of the regression's slopes
_UNIT = 64  # fixed point of dequantized coefficients, in steps of a block mean
_COSINE = 1 << 12  # fixed point of the cosine transform
_LARGEST_FACTOR = 1 << 12  # of a step, in 1 / _UNIT of that of a block mean
_MOST_STEPS = 1 << 15  # larger coefficients are clipped: sums must stay below 2**53


@dataclass(frozen=True)
class Regression:
    """The linear prediction within one channel: of each frequency, its slopes on what is known.

    Directions are the block itself, then the block before and the one after it along each axis.

    Attributes
    ----------
    regressors : int64 (p,)
        Frequencies that predict, ascending in order.
    orders : int64 (K,)
        Order of each frequency of a block.
    means : float64 (K, directions - 1)
        Slope on a neighbour's mean less the block's own; integers.
    coefficients : float64 (directions, K, p)
        Slope on each regressor; integers, zero where its order is not below the frequency's.
    """

    regressors: Ints
    orders: Ints
    means: NDArray[np.float64]
    coefficients: NDArray[np.float64]


@lru_cache(maxsize=16)
def regression(block_shape: tuple[int, ...]) -> Regression:
    """Return the regression for blocks of one or two axes."""
    axes, size = len(block_shape), int(np.prod(block_shape))
    orders = np.indices(block_shape).reshape(axes, -1).sum(axis=0)
    regressors = np.flatnonzero((orders > 0) & (orders <= _HIGHEST_ORDER))
    regressors = regressors[np.argsort(orders[regressors], kind="stable")]
    directions = 1 + 2 * axes
    covariance = _covariance(block_shape)
    means = np.zeros((size, directions - 1))
    coefficients = np.zeros((directions, size, len(regressors)))
    for order in range(1, int(orders.max()) + 1):
        frequencies = np.flatnonzero(orders == order)
        used = regressors[orders[regressors] < order]
        from_means = [direction * size for direction in range(directions)]
        known = np.concatenate(
            [from_means, *(direction * size + used for direction in range(directions))]
        ).astype(np.int64)
        noise = np.full(len(known), _NOISE)
        noise[:directions] = _NOISE_OF_MEANS
        joint = covariance[np.ix_(known, known)] + np.diag(noise)
        solved = np.linalg.solve(joint, covariance[np.ix_(known, frequencies)])
        rounded = np.round(solved * _SLOPE)
        # That of the block's own mean is left out: means count by their differences from it.
        means[frequencies] = rounded[1:directions].T
        by_direction = rounded[directions:].reshape(directions, len(used), len(frequencies))
        coefficients[:, frequencies, : len(used)] = by_direction.transpose(0, 2, 1)
    return Regression(regressors, orders, means, coefficients)


def _covariance(block_shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Covariance of the coefficients of a block and of those beside it, direction by direction."""
    axes, size = len(block_shape), int(np.prod(block_shape))
    inside = np.indices(block_shape).reshape(axes, -1).T
    shifts = [np.zeros(axes, np.int64)]
    for axis in range(axes):
        step = block_shape[axis] * np.eye(axes, dtype=np.int64)[axis]
        shifts += [-step, step]
    places = np.concatenate([inside + shift for shift in shifts])
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    field = _CORRELATION**distance
    basis: NDArray[np.floating] = np.ones((1, 1))
    for side in block_shape:
        basis = np.kron(basis, dct_matrix(side))
    split = field.reshape(len(shifts), size, len(shifts), size)
    transformed: NDArray[np.float64] = np.einsum(
        "ki,aibj,lj->akbl", basis, split, basis, optimize=True
    )
    return transformed.reshape(len(places), len(places))


class Prediction:
    """Predictions of the coefficients of one level of a payload.

    Parameters
    ----------
    level : Transform
        One that has several blocks.
    means : int64 (channels, N, *grid)
        Its block means, as `block_means` returns them.
    factors : float (coefficients,)
        Step of each coefficient over that of a block mean.

    Attributes
    ----------
    level, means
        As given.
    """

    def __init__(self, level: Transform, means: Ints, factors: NDArray[np.floating]) -> None:
        self.level = level
        self._regression = regression(level.block_shape)
        self._factors = np.clip(np.round(factors.astype(np.float64) * _UNIT), 1, _LARGEST_FACTOR)
        self.means = means

    def of(self, wave: Ints, decoded: Ints) -> Ints:
        """Predict coefficients in units of their step / `ONE`.

        Parameters
        ----------
        wave : int64 (m,)
            Indices of coefficients, all of one order.
        decoded : int64 (coefficients, rows)
            Those of lower order are known.

        Returns
        -------
        int64 (m, rows)
        """
        size = self.level.coefficients // self.level.channels
        predicted = np.empty((len(wave), decoded.shape[1]), np.int64)
        channels = wave // size
        for channel in dict.fromkeys(channels.tolist()):
            own = channels == channel
            frequencies = wave[own] % size
            sums = self._sums(channel, frequencies, decoded[channel * size :][:size])
            unit = _SLOPE / ONE * self._factors[wave[own], None]
            predicted[own] = np.trunc(sums / unit)
        return predicted

    def _sums(self, channel: int, frequencies: Ints, decoded: Ints) -> NDArray[np.float64]:
        fit, grid = self._regression, self.level.grid
        lower = fit.regressors[fit.orders[fit.regressors] < fit.orders[frequencies[0]]]
        factors = self._factors[channel * fit.orders.size :][lower, None]
        known = np.clip(decoded[lower], -_MOST_STEPS, _MOST_STEPS) * factors
        own = self.means[channel]
        terms = fit.coefficients[:, frequencies, : len(lower)] @ known
        directions = terms.reshape(*terms.shape[:2], -1, *grid)
        total: NDArray[np.float64] = directions[0]
        for direction in range(1, len(directions)):
            axis = (direction - 1) // 2 - len(grid)
            here, there = _beside(len(grid), axis, after=direction % 2 == 0)
            total[here] += directions[direction][there]
            difference = np.zeros(own.shape)
            difference[here] = own[there] - own[here]
            total += np.multiply.outer(fit.means[frequencies, direction - 1], difference)
        return total.reshape(len(frequencies), -1)


def _beside(axes: int, axis: int, *, after: bool) -> tuple[Index, Index]:
    """Return the blocks that have one after (or before) them along an axis, and those ones."""
    head, tail = slice(None, -1), slice(1, None)
    here, there = (head, tail) if after else (tail, head)
    rest = [slice(None)] * axes

    def index(part: slice) -> Index:
        where = rest.copy()
        where[axis] = part
        return (..., *where)

    return index(here), index(there)


def predictable(level: Transform) -> bool:
    """Whether a level's blocks have neighbours, and are small enough to be predicted."""
    return level.blocks > 1 and int(np.prod(level.block_shape)) <= _LARGEST_BLOCK


def block_means(coarser: Transform, table: Ints, means: Ints | None) -> Ints:
    """Return the block means of a level from the quantized next coarser one.

    Parameters
    ----------
    coarser : Transform
        The level that holds the means as its samples.
    table : int64 (coarser.coefficients, N * coarser.blocks)
        Its quantized coefficients.
    means : int64 (channels, N, *coarser.grid), optional
        Its own block means; None if they are in the table.

    Returns
    -------
    int64 (channels, N, *coarser.shape[1:])
        In units of the step of a block mean / 64.
    """
    values = np.clip(table, -_MOST_STEPS, _MOST_STEPS) * _UNIT
    if means is not None:
        values[coarser.means] = means.reshape(coarser.channels, -1)
    shape = (coarser.channels, *coarser.block_shape, -1, *coarser.grid)
    split = values.reshape(shape).astype(np.float64)
    for axis, size in enumerate(coarser.block_shape):
        cosine = np.round(dct_matrix(size) * _COSINE)
        split = np.moveaxis(np.tensordot(cosine.T, split, axes=(1, 1 + axis)), 0, 1 + axis)
        split = np.floor(split / _COSINE)
    return _joined(split.astype(np.int64), coarser)


def _joined(split: Ints, transform: Transform) -> Ints:
    """(C, block..., N, grid...) -> (C, N, sides...), what was repeated to fill cut off."""
    axes = len(transform.grid)
    order = [0, 1 + axes]
    for axis in range(axes):
        order += [2 + axes + axis, 1 + axis]
    sides = [g * b for g, b in zip(transform.grid, transform.block_shape, strict=True)]
    whole = split.transpose(order).reshape(transform.channels, -1, *sides)
    cut: Index = (..., *(slice(side) for side in transform.shape[1:]))
    return whole[cut]
