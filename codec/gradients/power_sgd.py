"""PowerSGD: low-rank factors by one step of subspace iteration, warm-started.

Vogels, Karimireddy, Jaggi: PowerSGD: Practical Low-Rank Gradient Compression for Distributed
Optimization, NeurIPS 2019, algorithms 1 and 2. Factors are not averaged between workers: each
client's message stands alone, and the server averages what it decodes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from codec.coding.floats import decode_floats, encode_floats
from codec.errors import CodecError, PayloadError
from codec.gradients.frame import Frame, read_frame
from codec.gradients.tensors import MAX_COORDINATES, Array, Memory, Shapes, flatten, unflatten


@dataclass(frozen=True)
class PowerSGD:
    """Rank-`rank` factors of each matrix ``gradient + memory``, in float32.

    A tensor of shape (a, b, c, ...) is the matrix (a, b * c * ...). Vectors, and matrices that
    have no fewer coordinates than their factors, are sent whole. The memory holds a residual per
    tensor (``decoded + residual == gradient + previous residual``), then the right factor of
    each compressed matrix, with which the next step starts.

    Parameters
    ----------
    rank : int
        >= 1.
    """

    name: ClassVar[str] = "powersgd"
    identifier: ClassVar[int] = 7

    rank: int = 2

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise CodecError(f"rank is {self.rank}, must be >= 1")

    def compress(
        self, gradient: Sequence[Array], memory: Memory | None, generator: np.random.Generator
    ) -> tuple[bytes, Memory]:
        """See `codec.gradients.GradientCompressor`."""
        residuals = None if memory is None else memory[: len(gradient)]
        vector, shapes = flatten(gradient, residuals)
        if memory is None:
            starts = _random_starts(shapes, self.rank, generator)
        else:
            starts = _checked_starts(memory[len(gradient) :], shapes, self.rank)
        tensors = unflatten(vector, shapes)
        sent: list[Array] = [np.empty(0, np.float32)]
        right_factors: list[Array] = []
        for tensor in tensors:
            matrix = _as_matrix(tensor, self.rank)
            if matrix is None:
                sent.append(tensor.flatten())
                tensor[...] = 0
                continue
            left, right = _factors(matrix, starts[len(right_factors)])
            matrix -= left @ right.T
            sent += [left.ravel(), right.ravel()]
            right_factors.append(right)
        section = encode_floats(np.concatenate(sent))
        data = Frame(self.identifier, shapes, (self.rank,), (section,)).to_bytes()
        return data, tensors + right_factors

    def decompress(
        self,
        data: bytes,
        shapes: Sequence[tuple[int, ...]] | None = None,
        limit: int = MAX_COORDINATES,
    ) -> list[Array]:
        """See `codec.gradients.GradientCompressor`."""
        frame = read_frame(
            data, self.identifier, parameters=1, sections=1, shapes=shapes, limit=limit
        )
        (rank,) = frame.parameters
        if rank < 1:
            raise PayloadError(f"rank is {rank}, must be >= 1")
        vector = np.zeros(frame.coordinates, np.float32)
        sent = decode_floats(frame.sections[0], _coordinates_sent(frame.shapes, rank), np.float32)
        start = 0
        for tensor in unflatten(vector, frame.shapes):
            matrix = _as_matrix(tensor, rank)
            if matrix is None:
                tensor[...] = sent[start : start + tensor.size].reshape(tensor.shape)
                start += tensor.size
                continue
            rows, columns = matrix.shape
            middle, stop = start + rows * rank, start + (rows + columns) * rank
            left, right = sent[start:middle], sent[middle:stop]
            with np.errstate(over="ignore", invalid="ignore"):
                matrix[...] = left.reshape(rows, rank) @ right.reshape(columns, rank).T
            start = stop
        return unflatten(vector, frame.shapes)


def _matrix_shape(shape: tuple[int, ...], rank: int) -> tuple[int, int] | None:
    """Return (rows, columns), or None where factors would not be smaller."""
    if len(shape) < 2:
        return None
    rows, columns = shape[0], math.prod(shape[1:])
    return (rows, columns) if rank * (rows + columns) < rows * columns else None


def _as_matrix(tensor: Array, rank: int) -> Array | None:
    shape = _matrix_shape(tensor.shape, rank)
    return None if shape is None else tensor.reshape(shape)


def _matrix_shapes(shapes: Shapes, rank: int) -> list[tuple[int, int]]:
    found = [_matrix_shape(shape, rank) for shape in shapes]
    return [shape for shape in found if shape is not None]


def _coordinates_sent(shapes: Shapes, rank: int) -> int:
    total = 0
    for shape in shapes:
        matrix = _matrix_shape(shape, rank)
        total += math.prod(shape) if matrix is None else rank * sum(matrix)
    return total


def _random_starts(shapes: Shapes, rank: int, generator: np.random.Generator) -> list[Array]:
    return [
        generator.standard_normal((columns, rank), np.float32)
        for _, columns in _matrix_shapes(shapes, rank)
    ]


def _checked_starts(starts: Memory, shapes: Shapes, rank: int) -> Memory:
    expected = [(columns, rank) for _, columns in _matrix_shapes(shapes, rank)]
    found = [start.shape for start in starts]
    if found != expected:
        raise CodecError(f"memory of right factors {found}, must be {expected}")
    return starts


def _factors(matrix: Array, start: Array) -> tuple[Array, Array]:
    """One step of subspace iteration; QR spans what the paper's Gram-Schmidt does."""
    with np.errstate(over="ignore", invalid="ignore"):
        left = np.linalg.qr(matrix @ start)[0]
        return left, matrix.T @ left
