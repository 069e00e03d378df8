"""Minibatch SGD on quantized samples beside plain SGD on the same minibatches, for tests."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message
from inprocess_grid import InProcessGrid
from numpy.typing import NDArray
from torch import nn

from clients import ArraySource, train
from codec import CodecOptions
from strategies import QuantizedDataSGD

SHAPE, CLASSES, CLIENTS, BATCH = (1, 8, 8), 4, 3, 12
IDENTITY = CodecOptions(quantizer="identity")
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


def make_sources(sizes: tuple[int, ...] = (50, 40, 30)) -> list[RecordingSource]:
    rng = np.random.default_rng(1)
    return [
        RecordingSource(
            rng.integers(0, 256, (size, *SHAPE), dtype=np.uint8),
            rng.integers(0, CLASSES, size),
            CLASSES,
            0.0,
            255.0,
        )
        for size in sizes
    ]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def make_scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)


def make_grid(
    sources: list[RecordingSource], model: Callable[[], nn.Module] = make_model
) -> InProcessGrid:
    def client(source: RecordingSource) -> Callable[[Message, Context], Message]:
        return lambda message, context: train(message, context, source, model)

    return InProcessGrid([client(source) for source in sources])


def make_strategy(**options: Any) -> QuantizedDataSGD:
    settings = {"batch_size": BATCH, "min_available_nodes": CLIENTS, "device": "cpu", "seed": 5}
    return QuantizedDataSGD(make_model(), sgd, scheduler=make_scheduler, **{**settings, **options})


def central_states(
    sources: list[RecordingSource], num_rounds: int
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
        nn.functional.cross_entropy(model(samples), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        states.append(copy.deepcopy(model.state_dict()))
    return states


def run_and_record(
    strategy: QuantizedDataSGD, num_rounds: int, grid: InProcessGrid | None = None
) -> list[dict[str, torch.Tensor]]:
    """Parameters after each round."""
    states: list[dict[str, torch.Tensor]] = []
    strategy.start(
        grid or make_grid(make_sources()),
        num_rounds=num_rounds,
        evaluate_fn=lambda _, arrays: states.append(arrays.to_torch_state_dict()),
    )
    return states[1:]


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)
