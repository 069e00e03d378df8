"""The strategies of the app: what a server builds of a run config, and how long it trains."""

from dataclasses import replace

import pytest
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from codec import Refinement
from codec.messages import CALIBRATE, DESCRIBE, REQUESTS, FilterOptions, Minibatch, Seeded
from codec.options import values_of
from fl_app.config import RunConfig
from fl_app.images import ImageKind
from fl_app.registry import STRATEGIES, augmentation
from strategies import QuantizedDataReplay, QuantizedDataStreaming, ServerStrategy
from strategies.baselines import CompressedFedAvg, GradientCompression

KINDS: dict[str, type[ServerStrategy]] = {
    "replay": QuantizedDataReplay,
    "streaming": QuantizedDataStreaming,
    "gradient": GradientCompression,
    "fedavg": CompressedFedAvg,
}
CONFIG = RunConfig(num_rounds=3, server_steps=7, local_steps=5, device="cpu", model="logistic")


def built(config: RunConfig) -> ServerStrategy:
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    return STRATEGIES[config.strategy].build(
        config, network, ImageKind((1, 28, 28), "uint8", 10), None
    )


def test_every_kind_of_work_is_a_strategy() -> None:
    assert set(STRATEGIES) == set(KINDS) == set(REQUESTS) - {DESCRIBE, CALIBRATE}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_strategy_asks_for_what_the_config_says(name: str) -> None:
    config = replace(CONFIG, strategy=name, seed=9, importance="random", batch_size=11)
    strategy, asked = built(config), config.request()
    assert type(strategy) is KINDS[name]
    options = (FilterOptions, Minibatch, Seeded)
    shared = [group for group in options if isinstance(asked, group)]
    assert len(shared) >= 2
    assert values_of(strategy.request, *shared) == values_of(asked, *shared)


@pytest.mark.parametrize(
    ("name", "steps"), [("replay", 7), ("streaming", 1), ("gradient", 1), ("fedavg", 5)]
)
def test_steps_of_a_round(name: str, steps: int) -> None:
    assert STRATEGIES[name].steps_per_round(CONFIG) == steps


@pytest.mark.parametrize(("name", "steps"), [("replay", 21), ("streaming", 3), ("gradient", 3)])
def test_the_schedule_lasts_the_run(name: str, steps: int) -> None:
    scheduler = built(replace(CONFIG, strategy=name)).server_model.scheduler
    assert isinstance(scheduler, OneCycleLR) and scheduler.total_steps == steps


def test_nothing_is_augmented_with_a_refinement() -> None:
    """The server refuses to: a residual fits the plain samples that the client took it at."""
    assert augmentation(CONFIG) is not None
    strategy = built(replace(CONFIG, strategy="streaming", refinement=Refinement("fp32")))
    assert isinstance(strategy, QuantizedDataStreaming)
