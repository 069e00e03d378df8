"""Uplink bytes of one client's round against the number of parameters of the model."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.client_round import ClientRound
from clients.source import ArraySource
from clients.streaming import streaming_round
from codec import CodecOptions, Refinement, batch_gradient, generator, per_sample_criterion
from codec.gradients import make_compressor
from codec.messages import StreamingRequest

if TYPE_CHECKING:
    from torch import nn

BATCH_SIZE = 256
BITS = 2  # of QSGD, as refinement and as baseline
LEVELS = 2**BITS - 1
_FEATURES, _CLASSES, _SAMPLES = 32, 10, 4096
_BITS = 4


def measure_bytes(parameters: int, seed: int) -> list[dict[str, Any]]:
    """Return a row per method: what a client sends for a minibatch and a model of this size.

    Every model size draws a minibatch of its own, as rounds do.

    Parameters
    ----------
    parameters : int
        Least number of parameters; a network with two hidden layers has a few more.
    seed : int
        Of the minibatch and the model.
    """
    import torch

    torch.manual_seed(seed)
    model = _network(parameters)
    size = sum(p.numel() for p in model.parameters())
    rng = generator(0)
    samples = np.clip(rng.normal(scale=0.3, size=(_SAMPLES, _FEATURES)), -1, 1).astype(np.float32)
    source = ArraySource(samples, rng.integers(_CLASSES, size=_SAMPLES), _CLASSES, -1.0, 1.0)
    return [
        {"method": method, "n": size, "uplink_bytes": uplink}
        for method, uplink in _uplinks(model, source, seed)
    ]


def _uplinks(model: "nn.Module", source: ArraySource, seed: int) -> Iterator[tuple[str, int]]:
    options = CodecOptions(
        "columns", quantizer="dithered", step=1 / (2**_BITS - 1), relative_to="range"
    )
    plain = StreamingRequest(server_round=1, seed=seed, codec=options, batch_size=BATCH_SIZE)
    sent = streaming_round(ClientRound(plain, 0, source, model))
    yield "quantized data", sum(map(len, sent.payloads))
    refined = replace(plain, refinement=Refinement("qsgd", bits=BITS))
    sent = streaming_round(ClientRound(refined, 0, source, model))
    yield (
        "quantized data, refined by qsgd",
        sum(map(len, sent.payloads)) + len(sent.refinement or b""),
    )
    work = ClientRound(plain, 0, source)
    spec, batch = work.spec, work.reader.read(sent.sent)
    samples, targets = batch.samples, batch.targets
    ones = np.ones(len(samples), np.float32)
    criterion = per_sample_criterion(None)
    gradient = [
        part.numpy()
        for part in batch_gradient(
            model, criterion, samples, targets, ones, spec=spec, batch_size=BATCH_SIZE
        )
    ]
    for name, compressor in (
        ("qsgd", make_compressor("qsgd", levels=LEVELS)),
        ("fp32", make_compressor("fp32")),
    ):
        yield name, len(compressor.compress(gradient, None, generator(seed))[0])


def _network(parameters: int) -> "nn.Module":
    from torch import nn

    # width**2 + linear * width + _CLASSES >= parameters
    linear = _FEATURES + _CLASSES + 2
    width = math.ceil(math.sqrt(linear**2 / 4 + parameters - _CLASSES) - linear / 2)
    return nn.Sequential(
        nn.Linear(_FEATURES, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
        nn.Linear(width, _CLASSES),
    )  # fmt: skip


def spread(rows: list[dict[str, Any]], method: str) -> float:
    """Return how much a method's bytes vary over n: largest over smallest, less one."""
    sizes = [row["uplink_bytes"] for row in rows if row["method"] == method]
    return float(max(sizes) / min(sizes) - 1)
