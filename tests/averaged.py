"""Federated averaging of a small task."""

from collections.abc import Callable
from typing import Any

from inprocess_grid import InProcessGrid
from small_task import CLIENTS, SEED, grid_of, random_sources, smooth_model
from torch import nn

from clients.baselines import train_local
from strategies.baselines import CompressedFedAvg

SIZES, BATCH, RATE = (40, 30, 20), 10, 0.1


def averaged_grid(
    model: Callable[[], nn.Module] = smooth_model, sizes: tuple[int, ...] = SIZES
) -> InProcessGrid:
    """Return a grid of clients that train locally, a source of each size."""
    return grid_of(random_sources(sizes), train_local, model)


def averaging(model: Callable[[], nn.Module] = smooth_model, **options: Any) -> CompressedFedAvg:
    """Return the strategy, of plain SGD at one rate but for what `options` say."""
    settings = {
        "local_steps": 3,
        "learning_rate": lambda _: RATE,
        "batch_size": BATCH,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "min_available_nodes": CLIENTS,
        "device": "cpu",
        "seed": SEED,
    }
    return CompressedFedAvg(model(), **{**settings, **options})
