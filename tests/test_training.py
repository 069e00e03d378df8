"""Tests of fl_app.training: optimizer and learning rates of a run."""

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from fl_app.config import RunConfig
from fl_app.training import optimizer_factory, round_learning_rates, scheduler_factory


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_optimizers_take_the_config(name: str, momentum: float) -> None:
    config = RunConfig(optimizer=name, learning_rate=0.01, momentum=momentum, weight_decay=0.1)
    (group,) = optimizer_factory(config)(nn.Linear(2, 2).parameters()).param_groups
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.1)
    assert momentum in (group.get("momentum"), group.get("betas", (None,))[0])


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
@pytest.mark.parametrize("steps", range(1, 13))
def test_schedules_last_exactly_the_run(schedule: str, steps: int) -> None:
    config = RunConfig(schedule=schedule, learning_rate=0.5)
    optimizer = optimizer_factory(config)(nn.Linear(2, 2).parameters())
    factory = scheduler_factory(config, steps)
    assert factory is not None
    scheduler = factory(optimizer)
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] <= 0.5
    assert optimizer.param_groups[0].get("momentum") == 0.9


def test_constant_schedule_is_none() -> None:
    assert scheduler_factory(RunConfig(schedule="constant"), 5) is None


def test_rounds_of_local_training_start_where_the_schedule_is() -> None:
    config = RunConfig(schedule="cosine", num_rounds=4, local_steps=3, learning_rate=0.5)
    expected = [0.25 * (1 + np.cos(np.pi * 3 * number / 12)) for number in range(4)]
    np.testing.assert_allclose(round_learning_rates(config), expected)
    assert round_learning_rates(replace(config, schedule="constant")) == [0.5] * 4
