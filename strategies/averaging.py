"""What bounds the part of a single client in an average."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

Arrays = list[NDArray[np.float32]]


def clip_factor(parts: Iterable[NDArray[Any]], most: float) -> float:
    """Return what scales arrays to a joint L2 norm of at most so much; 1 where they are shorter.

    Parameters
    ----------
    parts : iterable of float arrays
        Finite.
    most : float
        0: no limit.
    """
    if not most:
        return 1.0
    norm = math.sqrt(sum(float(np.square(part, dtype=np.float64).sum()) for part in parts))
    return min(1.0, most / norm) if norm else 1.0


def clipped(parts: Arrays, most: float) -> Arrays:
    """Return a gradient, or the change of a model, no longer than so much."""
    factor = np.float32(clip_factor(parts, most))
    return parts if factor == 1 else [part * factor for part in parts]


def clipped_tensors(parts: Sequence[Tensor], most: float) -> list[Tensor]:
    """Return what `clipped` does, of tensors."""
    if not most:
        return list(parts)
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]
    norm = float(torch.stack(norms).square().sum().sqrt())
    return [part * (most / norm) for part in parts] if norm > most else list(parts)


def clipped_model(arrays: ArrayRecord, sent: Mapping[str, Array], most: float) -> ArrayRecord:
    """Return a model whose change from the one that was sent is no longer than so much.

    Buffers that are floats, such as the statistics of batch normalization, are part of the change;
    integers stay as they are.
    """
    if not most:
        return arrays
    before = {name: own.numpy() for name, own in sent.items()}
    changes = {
        name: arrays[name].numpy().astype(np.float64) - old
        for name, old in before.items()
        if old.dtype.kind == "f"
    }
    factor = clip_factor(changes.values(), most)
    if factor == 1:
        return arrays
    moved = {
        name: Array(np.asarray(before[name] + factor * change, before[name].dtype))
        for name, change in changes.items()
    }
    return ArrayRecord({**arrays, **moved})
