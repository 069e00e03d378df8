"""Lists of tensors as one vector and back, with what error feedback adds to them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError, PayloadError

# Bound of what is coded and, by default, of what decoding may allocate: 512 MiB of float32.
MAX_COORDINATES = 2**27

_SAMPLING = 64

Array = NDArray[np.float32]
Memory = list[Array]
Shapes = tuple[tuple[int, ...], ...]


def flatten(gradient: Sequence[Array], memory: Memory | None = None) -> tuple[Array, Shapes]:
    """Return ``gradient + memory`` as one vector, and the shapes.

    Parameters
    ----------
    gradient : sequence of float32 arrays
        One per parameter tensor, any shapes.
    memory : list of float32 arrays, optional
        What earlier rounds left unsent, of the same shapes; zeros if None.

    Returns
    -------
    vector : float32 (n,)
        A new array, in the order of the tensors.
    shapes : tuple of tuple of int

    Raises
    ------
    CodecError
        If a dtype is not float32, a value is not finite, `memory` does not fit or there are
        more than `MAX_COORDINATES`.
    """
    vector, shapes = _concatenate(gradient, "gradient"), tuple(a.shape for a in gradient)
    if memory is not None:
        kept = tuple(a.shape for a in memory)
        if kept != shapes:
            raise CodecError(f"memory of shapes {kept}, the gradient has {shapes}")
        with np.errstate(over="ignore"):
            vector += _concatenate(memory, "memory")
        _require_finite(vector, "gradient + memory")
    return vector, shapes


def unflatten(vector: Array, shapes: Shapes) -> list[Array]:
    """Return views of `vector`, float32 (n,), in the given shapes.

    Raises
    ------
    PayloadError
        If a value is not finite: no compressor writes such bytes.
    """
    if not np.isfinite(vector).all():
        raise PayloadError("a decoded gradient must be finite, NaN or infinity found")
    tensors, start = [], 0
    for shape in shapes:
        stop = start + math.prod(shape)
        tensors.append(vector[start:stop].reshape(shape))
        start = stop
    return tensors


def _concatenate(tensors: Sequence[Array], what: str) -> Array:
    for tensor in tensors:
        if tensor.dtype != np.float32:
            raise CodecError(f"{what} of dtype {tensor.dtype}, must be float32")
    coordinates = sum(tensor.size for tensor in tensors)
    if coordinates > MAX_COORDINATES:
        raise CodecError(f"{what} of {coordinates} coordinates, at most {MAX_COORDINATES}")
    vector = np.concatenate([np.empty(0, np.float32), *(tensor.ravel() for tensor in tensors)])
    _require_finite(vector, what)
    return vector


def _require_finite(vector: Array, what: str) -> None:
    if not np.isfinite(vector).all():
        raise CodecError(f"{what} must be finite, NaN or infinity found")


def sizes(shapes: Shapes) -> list[int]:
    """Return the coordinates of each tensor."""
    return [math.prod(shape) for shape in shapes]


def largest_magnitudes(vector: Array, shapes: Shapes) -> Array:
    """Return the largest magnitude in each tensor, float32 (tensors,); 0 for an empty one."""
    return np.array(
        [np.abs(tensor).max(initial=0) for tensor in unflatten(vector, shapes)], np.float32
    )


def largest_indices(
    values: NDArray[np.float32] | NDArray[np.uint32], count: int
) -> NDArray[np.int64]:
    """Return the increasing indices of the `count` largest values; of equals, the first ones."""
    if not count:
        return np.empty(0, np.int64)
    # Many equal values, such as zeros, are slow to partition: a sample's quantile leaves them out.
    sample = values[::_SAMPLING]
    bound = _nth_largest(sample, min(len(sample), 1 + 2 * count * len(sample) // len(values)))
    candidates = values[values >= bound]
    threshold = _nth_largest(candidates if len(candidates) >= count else values, count)
    chosen = values > threshold
    equals = np.flatnonzero(values == threshold)
    chosen[equals[: count - int(chosen.sum())]] = True
    return np.flatnonzero(chosen)


def _nth_largest(values: NDArray[Any], rank: int) -> Any:
    place = len(values) - rank
    return np.partition(values, place)[place]
