"""Optimizer and learning-rate schedule of a run, for the server and for central baselines."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from fl_app.config import RunConfig


def optimizer_factory(config: RunConfig) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Return a factory of the optimizer; SGD with momentum is Nesterov's."""

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        rate, momentum, decay = config.learning_rate, config.momentum, config.weight_decay
        if config.optimizer == "sgd":
            nesterov = momentum > 0
            return SGD(parameters, rate, momentum, weight_decay=decay, nesterov=nesterov)
        kind = AdamW if config.optimizer == "adamw" else Adam
        return kind(parameters, rate, betas=(momentum, 0.999), weight_decay=decay)

    return make


def scheduler_factory(config: RunConfig, steps: int) -> Callable[[Optimizer], LRScheduler] | None:
    """Return a factory of the schedule over so many optimizer steps; None for a constant rate."""

    def make(optimizer: Optimizer) -> LRScheduler:
        if config.schedule == "cosine":
            return CosineAnnealingLR(optimizer, steps)
        # The momentum stays what the config says.
        return OneCycleLR(optimizer, config.learning_rate, steps, cycle_momentum=False)

    return None if config.schedule == "constant" else make


def round_learning_rates(config: RunConfig) -> list[float]:
    """Return the learning rate at the first step of each round of local training."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = SGD([weight], config.learning_rate)
    steps = config.num_rounds * config.local_steps
    factory = scheduler_factory(config, steps)
    scheduler = None if factory is None else factory(optimizer)
    rates = []
    for step in range(steps):
        if step % config.local_steps == 0:
            rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return rates
