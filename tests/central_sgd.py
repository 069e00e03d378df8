"""Minibatch SGD on quantized samples beside plain SGD on the same minibatches, for tests."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from inprocess_grid import InProcessGrid
from numpy.typing import NDArray
from small_task import (
    BATCH,
    CLASSES,
    CLIENTS,
    SEED,
    SHAPE,
    SIZES,
    grid_of,
    make_model,
    random_images,
)
from torch import nn

from clients import ArraySource, train
from codec import CodecOptions, SampleSpec
from strategies import QuantizedDataStreaming

LOSSLESS = CodecOptions("lossless")
SAMPLES = SampleSpec(SHAPE, "uint8", 0, 255, CLASSES)
COARSE = CodecOptions(quantizer="dithered", step=0.5)


@dataclass(frozen=True)
class RecordingSource(ArraySource):
    """Source that remembers the minibatches its client drew."""

    drawn: list[tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=list)

    def get_items(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        items = super().get_items(indices)
        if len(indices) > 1:  # one sample alone is a look at its shape
            self.drawn.append(items)
        return items


def make_sources(sizes: tuple[int, ...] = SIZES) -> list[RecordingSource]:
    return [
        RecordingSource(samples, targets, CLASSES, 0.0, 255.0)
        for samples, targets in random_images(sizes)
    ]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def make_scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)


def make_grid(
    sources: list[RecordingSource], model: Callable[[], nn.Module] = make_model
) -> InProcessGrid:
    return grid_of(sources, train, model)


def make_strategy(**options: Any) -> QuantizedDataStreaming:
    settings: dict[str, Any] = {
        "batch_size": BATCH,
        "min_available_nodes": CLIENTS,
        "device": "cpu",
        "seed": SEED,
        "samples": SAMPLES,
    }
    return QuantizedDataStreaming(
        make_model(), sgd, scheduler=make_scheduler, **{**settings, **options}
    )


def central_states(
    sources: list[RecordingSource],
    num_rounds: int,
    augment: Callable[[torch.Tensor], torch.Tensor] = lambda samples: samples,
) -> list[dict[str, torch.Tensor]]:
    """Parameters after each step of plain SGD on what the clients drew, joined by round."""
    model = make_model()
    optimizer = sgd(model.parameters())
    scheduler = make_scheduler(optimizer)
    states = []
    assert [len(source.drawn) for source in sources] == [num_rounds] * len(sources)
    for drawn in zip(*(source.drawn for source in sources), strict=True):
        samples = torch.from_numpy(np.concatenate([x for x, _ in drawn])).float() / 255
        targets = torch.from_numpy(np.concatenate([y for _, y in drawn]))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(augment(samples)), targets).backward()  # type: ignore[no-untyped-call]  # torch
        optimizer.step()
        scheduler.step()
        states.append(copy.deepcopy(model.state_dict()))
    return states
