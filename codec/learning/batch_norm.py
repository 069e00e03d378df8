"""Running statistics of batch normalization: gathered at one end, sent, and used at the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from codec.errors import PayloadError
from codec.gradients import Float16
from codec.gradients.tensors import Array
from codec.learning.forward import batch_norms, eager

if TYPE_CHECKING:
    from torch import Tensor, nn


def statistics(model: "nn.Module") -> "list[Tensor]":
    """Return the statistics themselves: mean, then variance, of each layer that keeps them.

    Layers come in the order of ``model.modules()``; empty without batch normalization.
    """
    tensors = []
    for norm in batch_norms(model):
        if norm.running_mean is not None and norm.running_var is not None:
            tensors += [norm.running_mean, norm.running_var]
    return tensors


@contextmanager
def fresh_statistics(model: "nn.Module") -> Iterator[None]:
    """Gather statistics anew from the batches that the model sees within the context.

    They are a plain average over those batches, whatever the layers' own momentum, and nothing
    else, such as dropout, acts as in training.
    """
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        with eager(model):
            yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def encode_statistics(arrays: Sequence[Array]) -> bytes:
    """Return statistics as bytes, in half precision.

    Parameters
    ----------
    arrays : sequence of float32 arrays
        Mean, variance, mean, variance, ...; finite.
    """
    data, _ = Float16().compress(arrays, None, np.random.default_rng(0))
    return data


def decode_statistics(data: bytes, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Return what `encode_statistics` wrote.

    Raises
    ------
    PayloadError
        If the bytes are malformed or of other shapes, or a variance is negative.
    """
    arrays = Float16().decompress(data, shapes)
    for variance in arrays[1::2]:
        if variance.min(initial=0) < 0:
            raise PayloadError(f"variance of {variance.min()}, must be >= 0")
    return arrays


def pooled_statistics(parts: Sequence[Sequence[Array]], weights: Sequence[float]) -> list[Array]:
    """Return the statistics of several sets of samples taken together.

    Parameters
    ----------
    parts : sequence of lists of float32 arrays
        Of each set, as from `statistics`: mean, variance, mean, variance, ...
    weights : sequence of float
        Size of each set, > 0.

    Returns
    -------
    list of float32 arrays
        Weighted means, and variances that include the spread of the sets' means.
    """
    share = np.asarray(weights, np.float64) / np.sum(weights)
    pooled = []
    for layer in range(0, len(parts[0]), 2):
        means = np.stack([part[layer].astype(np.float64) for part in parts])
        variances = np.stack([part[layer + 1].astype(np.float64) for part in parts])
        mean = share @ means
        pooled += [mean, share @ (variances + (means - mean) ** 2)]
    return [array.astype(np.float32) for array in pooled]
