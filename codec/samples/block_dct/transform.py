"""Orthonormal transforms: colour, then a pyramid of cosine transforms, and their inverses.

Blocks are transformed, then the block means of all the sample, as a smaller picture, in blocks
again, until one block is left: what neighbouring blocks share is coded once.

Everything is orthonormal, so that an error keeps its energy on the way back and an unbiased
quantizer stays unbiased in the samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Networks learn more from 8x8 blocks than from larger ones of the same bytes, although their
# squared error is higher; and most photographs were JPEG once, whose blocks these are. But blocks
# that stand out over the edge are dear: of 28x28 pixels, 7x7 take 5 % to 10 % fewer bytes.
_IMAGE_BLOCKS = (8, 7, 9, 6, 10)  # by preference
_WHOLE_SERIES, _LONG_SERIES_BLOCK = 256, 128
MAX_BLOCK = 256

# Values of a block that is transformed by one matrix; more cost more than they save.
_MOST_AT_ONCE = 256

# Luma and two colour differences, orthonormal: the KLT of natural images, nearly.
_COLOUR = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]], np.float64)
_COLOUR /= np.linalg.norm(_COLOUR, axis=1, keepdims=True)


@dataclass(frozen=True)
class Transform:
    """A transform of samples of one shape.

    Attributes
    ----------
    kind : str
        ``dct2`` for samples (C, H, W), ``dct1`` for (C, T).
    shape : tuple of int
        Shape of a sample.
    block : int
        Block size along each transformed axis; the whole axis where that is smaller.
    stride : int
        Distance of neighbouring values in the sample: 1, or that of the blocks they are means of.
    """

    kind: str
    shape: tuple[int, ...]
    block: int
    stride: int = 1

    @cached_property
    def channels(self) -> int:
        """Channels of a block."""
        return self.shape[0]

    @cached_property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of one channel of a block."""
        return tuple(min(self.block, side) for side in self.shape[1:])

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """Blocks along each axis."""
        return tuple(
            -(-side // block) for side, block in zip(self.shape[1:], self.block_shape, strict=True)
        )

    @cached_property
    def blocks(self) -> int:
        """Blocks of a sample."""
        return int(np.prod(self.grid))

    @cached_property
    def coefficients(self) -> int:
        """Coefficients of a block, all channels."""
        return self.channels * int(np.prod(self.block_shape))

    @cached_property
    def levels(self) -> "tuple[Transform, ...]":
        """The transform itself and those of the block means above it, to a single block."""
        if self.blocks == 1:
            return (self,)
        stride = self.stride * max(self.block_shape)
        means = Transform(self.kind, (self.channels, *self.grid), self.block, stride)
        return (self, *means.levels)

    @cached_property
    def means(self) -> slice:
        """Which coefficients of a block are the means of its channels."""
        return slice(None, None, self.coefficients // self.channels)


@lru_cache(maxsize=64)
def transform_for(shape: tuple[int, ...], block: int, *, fitting: bool = True) -> Transform:
    """Return the transform of samples of a shape.

    Parameters
    ----------
    shape : tuple of int
        Shape of a sample, channels first: (C, H, W) or (C, T).
    block : int
        0 takes 8x8 pixels of an image, or, where 8 does not divide its sides, 6 to 10 pixels if one
        of these does; of a series the whole up to 256 points, else 128.
    fitting : bool
        Whether block 0 fits the sides so; it is 8x8 in payloads before version 7.
    """
    if len(shape) == 3:
        return Transform("dct2", shape, block or (_fitting_block(shape[1:]) if fitting else 8))
    length = shape[1]
    size = block or (length if length <= _WHOLE_SERIES else _LONG_SERIES_BLOCK)
    return Transform("dct1", shape, size)


def _fitting_block(sides: tuple[int, ...]) -> int:
    """Return the preferred block that no side cuts, 8 if there is none."""
    for block in _IMAGE_BLOCKS:
        if all(side <= block or side % block == 0 for side in sides):
            return block
    return _IMAGE_BLOCKS[0]


def forward(samples: Array, transform: Transform) -> list[Array]:
    """Return the coefficients of samples (N, *shape), one table for each level.

    Returns
    -------
    list of float32 (coefficients, N * blocks)
        For each of ``transform.levels``; block means are zero in all but the last, since the
        next level holds them.
    """
    values, tables = _mix(samples, _COLOUR), []
    for level in transform.levels:
        table = _forward_blocks(values, level)
        if level.blocks > 1:
            values = np.moveaxis(
                table[level.means].reshape(level.channels, -1, *level.grid), 0, 1
            ).copy()
            table[level.means] = 0
        tables.append(table)
    return tables


def inverse(tables: Sequence[Array], transform: Transform) -> Array:
    """Return samples, float32 (N, *shape), of the tables that `forward` returns."""
    *finer, last = zip(transform.levels, tables, strict=True)
    values = _inverse_blocks(last[1], last[0])
    for level, table in reversed(finer):
        whole = table.copy()
        whole[level.means] = np.moveaxis(values, 1, 0).reshape(level.channels, -1)
        values = _inverse_blocks(whole, level)
    return _mix(values, _COLOUR.T)


def _forward_blocks(values: Array, transform: Transform) -> Array:
    size, rows = _size(transform), len(values) * transform.blocks
    table = np.empty((transform.channels, size, rows), np.float32)
    split = _split(values, transform)
    for channel, into in enumerate(table):
        lines = split[:, channel].reshape(rows, size)
        if size <= _MOST_AT_ONCE:
            np.matmul(_basis(transform.block_shape), lines.T, out=into)
        else:
            into[:] = _along_axes(lines.reshape(rows, *transform.block_shape), inverse=False).T
    return table.reshape(-1, rows)


def _inverse_blocks(table: Array, transform: Transform) -> Array:
    size, rows = _size(transform), table.shape[1]
    samples = rows // transform.blocks
    whole = np.empty((samples, transform.channels, *_padded(transform)), np.float32)
    split = _split(whole, transform)
    for channel, of_channel in enumerate(table.reshape(transform.channels, size, rows)):
        if size <= _MOST_AT_ONCE:
            lines = of_channel.T @ _basis(transform.block_shape)
        else:
            blocks = np.ascontiguousarray(of_channel.T).reshape(rows, *transform.block_shape)
            lines = _along_axes(blocks, inverse=True)
        split[:, channel] = lines.reshape(samples, *transform.grid, *transform.block_shape)
    cut = tuple(slice(side) for side in transform.shape[1:])
    return whole[(slice(None), slice(None), *cut)]


def _size(transform: Transform) -> int:
    return transform.coefficients // transform.channels


@lru_cache(maxsize=16)
def _basis(block_shape: tuple[int, ...]) -> Array:
    """Return the transform of a whole block, float32 (size, size): faster than axis by axis."""
    basis: NDArray[np.float64] = np.ones((1, 1))
    for side in block_shape:
        basis = np.asarray(np.kron(basis, dct_matrix(side)), np.float64)
    return basis.astype(np.float32)


def _along_axes(blocks: Array, *, inverse: bool) -> Array:
    """Transform blocks (rows, *block_shape) axis by axis; return them flat, (rows, size)."""
    for axis in range(1, blocks.ndim):
        matrix = dct_matrix(blocks.shape[axis]).astype(np.float32)
        matrix = matrix.T if inverse else matrix
        blocks = np.moveaxis(np.moveaxis(blocks, axis, -1) @ matrix.T, -1, axis)
    return blocks.reshape(len(blocks), -1)


@lru_cache(maxsize=16)
def dct_matrix(size: int) -> NDArray[np.float64]:
    """Return the orthonormal DCT-II matrix, float64 (size, size); row = frequency."""
    k = np.arange(size)
    matrix: NDArray[np.float64] = np.sqrt(2 / size) * np.cos(
        np.pi * np.outer(k, 2 * k + 1) / (2 * size)
    )
    matrix[0] /= np.sqrt(2)
    return matrix


def _mix(samples: Array, matrix: NDArray[np.float64]) -> Array:
    """Apply the colour matrix to samples of three channels; others pass."""
    if samples.shape[1] != 3:
        return samples
    planes = samples.reshape(len(samples), 3, -1)
    mixed: Array = np.matmul(matrix.astype(np.float32), planes).reshape(samples.shape)
    return mixed


def _padded(transform: Transform) -> tuple[int, ...]:
    """Return the sides of a sample that blocks fill."""
    sides = zip(transform.grid, transform.block_shape, strict=True)
    return tuple(blocks * side for blocks, side in sides)


def _split(samples: Array, transform: Transform) -> Array:
    """View (N, C, H, W) as (N, C, gh, gw, bh, bw), the last rows and columns repeated to fill."""
    sides, filled = transform.shape[1:], _padded(transform)
    if samples.shape[2:] != filled:
        pad = [(0, whole - side) for whole, side in zip(filled, sides, strict=True)]
        samples = np.pad(samples, [(0, 0), (0, 0), *pad], mode="edge")
    pairs = [
        side for pair in zip(transform.grid, transform.block_shape, strict=True) for side in pair
    ]
    axes = len(sides)
    order = (0, 1, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2))
    return samples.reshape(len(samples), transform.channels, *pairs).transpose(order)
