"""A task small enough to repeat by hand, for tests: random images, models, rounds and states."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message
from inprocess_grid import Client, InProcessGrid
from numpy.typing import NDArray
from torch import Tensor, nn

from clients import ArraySource
from clients.baselines.minibatches import epoch_minibatch
from strategies import ServerStrategy

SHAPE, CLASSES, CLIENTS, BATCH, SEED = (1, 8, 8), 4, 3, 12, 5
SIZES = (50, 40, 30)


def random_images(sizes: tuple[int, ...] = SIZES) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Samples and targets of each client."""
    rng = np.random.default_rng(1)
    return [
        (rng.integers(0, 256, (size, *SHAPE), dtype=np.uint8), rng.integers(0, CLASSES, size))
        for size in sizes
    ]


def random_sources(sizes: tuple[int, ...] = SIZES) -> list[ArraySource]:
    return [
        ArraySource(samples, targets, CLASSES, 0.0, 255.0)
        for samples, targets in random_images(sizes)
    ]


def minibatch(
    source: ArraySource, client: int, step: int, size: int = BATCH
) -> tuple[Tensor, Tensor]:
    """What a client draws without replacement in one of its steps."""
    indices = epoch_minibatch(len(source), size, step, SEED, client)
    samples = torch.from_numpy(source.samples[indices]).float() / 255
    return samples, torch.from_numpy(source.targets[indices])


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def smooth_model() -> nn.Module:
    """Without zeros among its gradients, whose votes are random."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 4))


def batch_norm_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)
    )


def grid_of(
    sources: Sequence[ArraySource],
    handler: Callable[..., Message],
    model: Callable[[], nn.Module],
    **options: Any,
) -> InProcessGrid:
    """One client for each source, which answers by the handler."""

    def client(source: ArraySource) -> Client:
        return lambda message, context: handler(message, context, source, model, **options)

    return InProcessGrid([client(source) for source in sources])


def raising_client(message: Message, context: Context) -> Message:
    raise MemoryError("device is full")


def states_after_rounds(
    strategy: ServerStrategy, grid: InProcessGrid, rounds: int
) -> list[dict[str, Tensor]]:
    """State of the model after each round."""
    states: list[dict[str, Tensor]] = []
    strategy.start(
        grid,
        num_rounds=rounds,
        evaluate_fn=lambda _, arrays: states.append(arrays.to_torch_state_dict()),
    )
    return states[1:]


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)
