"""Clients that send compressed gradients, their server and plain SGD beside it, for tests."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord
from inprocess_grid import InProcessGrid
from small_task import BATCH, CLIENTS, SEED, SIZES, grid_of, make_model, random_sources
from torch import Tensor, nn

from clients.baselines import train_gradient
from strategies.baselines import GradientCompression


def batch_norm_dropout_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *[nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()],
        *[nn.Dropout(0.2), nn.Linear(216, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)],
    )


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def make_grid(
    model: Callable[[], nn.Module] = make_model, sizes: tuple[int, ...] = SIZES, **options: Any
) -> InProcessGrid:
    return grid_of(random_sources(sizes), train_gradient, model, **options)


def make_strategy(
    model: Callable[[], nn.Module] = make_model, optimizer: Any = sgd, **options: Any
) -> GradientCompression:
    settings = {"batch_size": BATCH, "min_available_nodes": CLIENTS, "device": "cpu", "seed": SEED}
    return GradientCompression(model(), optimizer, **{**settings, **options})


def gradient_of(model: nn.Module, samples: Tensor, targets: Tensor) -> list[Tensor]:
    loss = nn.functional.cross_entropy(model(samples), targets)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, gradient: list[Tensor]) -> None:
    for parameter, part in zip(model.parameters(), gradient, strict=True):
        parameter.grad = part.clone()
    optimizer.step()


def payloads(grid: InProcessGrid, server_round: int | None = None) -> list[ConfigRecord]:
    """What the clients sent, in all rounds or in one, counted from 0."""
    rounds = [replies for replies in grid.replies if replies]
    chosen = rounds if server_round is None else rounds[server_round : server_round + 1]
    records = [reply.content["payload"] for replies in chosen for reply in replies]
    return [record for record in records if isinstance(record, ConfigRecord)]


def flat(parts: Any) -> Any:
    return np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])
