"""Runs that can be killed and go on: strategies with all their state, and devices with a disk."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.serverapp.strategy import Result
from inprocess_grid import InProcessGrid
from small_task import CLASSES, SHAPE, batch_norm_model, make_model, random_sources
from torch import nn

from clients import ArraySource, train
from clients.baselines import train_gradient, train_local
from codec import Compression, SampleSpec
from codec.gradients.compression import Downlink
from sim.direct_grid import Client
from strategies import QuantizedDataReplay, QuantizedDataStreaming, ServerStrategy
from strategies.baselines import CompressedFedAvg, GradientCompression
from strategies.checkpoint import read_checkpoint

ROUNDS = 6
SIZES = (50, 40, 30, 20)
SPEC = SampleSpec(SHAPE, "uint8", 0, 255, CLASSES)
# What a process draws before it trains is not what it draws when it goes on.
NOISE = iter(range(1, 1000))


def dropout_model() -> nn.Module:
    """Draws from torch's own random numbers in each step."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 4)
    )


def _momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True)


def _one_cycle(steps: int) -> Callable[[Any], Any]:
    return partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=steps + 1)


def make_strategy(kind: str, folder: Path, **options: Any) -> ServerStrategy:
    """Return a new strategy of a kind, with what lasts in a folder."""
    common: dict[str, Any] = {"device": "cpu", "seed": 3, "client_key": "partition", **options}
    if kind == "replay":
        return QuantizedDataReplay(
            dropout_model,
            _momentum,
            scheduler=_one_cycle(8 * ROUNDS),
            bank=folder / "bank.sqlite",
            samples_per_round=9,
            server_steps=8,
            server_batch_size=16,
            memory_limit=4000,  # so that some samples are on the disk
            samples=SPEC,
            ema_decay=0.9,
            **common,
        )
    if kind == "described":
        return QuantizedDataReplay(
            dropout_model,
            torch.optim.Adam,
            bank=folder / "bank.sqlite",
            samples_per_round=12,
            importance="loss",
            server_steps=5,
            **common,
        )
    if kind in ("scout", "described scout"):
        return QuantizedDataReplay(
            dropout_model,
            _momentum,
            bank=folder / "bank.sqlite",
            samples_per_round=8,
            importance="loss",
            scorer="scout",
            scout_steps=4,
            server_steps=4,
            server_batch_size=16,
            samples=SPEC if kind == "scout" else None,
            **common,
        )
    if kind == "streaming":
        return QuantizedDataStreaming(
            dropout_model, _momentum, samples=SPEC, batch_size=8, scheduler=_one_cycle(ROUNDS),
            **common,
        )  # fmt: skip
    if kind == "gradient":
        return GradientCompression(
            batch_norm_model, torch.optim.AdamW, batch_size=8, compression="qsgd", **common
        )
    rates = [0.1 / (1 + k) for k in range(ROUNDS)]
    if kind == "outer":
        common |= {
            "compression": Compression("eden", bits=4),
            "outer_learning_rate": 0.7,
            "outer_momentum": 0.9,
            "downlink": Downlink("top-k", density=0.05, value_bits=2),
        }
    else:
        assert kind == "fedavg"
    return CompressedFedAvg(
        make_model, learning_rate=lambda number: rates[number - 1], local_steps=2, **common
    )


def client(kind: str, source: ArraySource, folder: Path) -> Client:
    """Return a device of a strategy; its disk is the folder."""

    def answer(message: Message, context: Context) -> Message:
        with torch.random.fork_rng():  # a device's random numbers are not the server's
            if kind == "gradient":
                return train_gradient(message, context, source, batch_norm_model)
            if kind in ("fedavg", "outer"):
                return train_local(message, context, source, make_model)
            return train(message, context, source, dropout_model, state_dir=folder)

    return answer


def make_grid(
    kind: str, folder: Path, wrap: Callable[[int, Client], Client] | None = None, seed: int = 0
) -> InProcessGrid:
    """Return a grid with devices that keep nothing but their disks, under ids of this process."""
    clients = []
    for k, source in enumerate(random_sources(SIZES)):
        one = client(kind, source, folder / f"device-{k}")
        clients.append(one if wrap is None else wrap(k, one))
    return InProcessGrid(clients, seed=seed)


def start(
    strategy: ServerStrategy, grid: InProcessGrid, folder: Path, *, resume: bool, **options: Any
) -> Result:
    """Run, or go on."""
    torch.manual_seed(next(NOISE) if resume else 0)
    settings: dict[str, Any] = {"num_rounds": ROUNDS, "checkpoint": folder, **options}
    return strategy.start(grid, resume=folder if resume else None, **settings)


def outcome(folder: Path) -> dict[str, Any]:
    """Return what must be equal: model, optimizer, scheduler, scout, and where the epoch is."""
    state = read_checkpoint(folder).state
    kept = ("replies", "position", "parameters", "scout")
    own = {key: state["own"].get(key) for key in kept}
    return {**state["model"], **own, "random": state["random"]}


def assert_equal(one: Any, other: Any, place: str = "") -> None:
    """Fail unless two states are equal, bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for k, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{place}.{k}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), place
    elif hasattr(one, "tolist"):
        assert one.tolist() == other.tolist(), place
    else:
        assert one == other, place
