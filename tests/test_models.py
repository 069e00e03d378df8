"""Tests of fl_app.models, augment and training: what the server trains and with what."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fl_app.augment import make_augmentation, random_crop, random_flip
from fl_app.config import RunConfig
from fl_app.models import Normalize, build_model
from fl_app.training import optimizer_factory, round_learning_rates, scheduler_factory


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("small-resnet", (1, 28, 28)),
        ("small-resnet", (3, 32, 32)),
        ("resnet20", (3, 32, 32)),
        ("logistic", (1, 28, 28)),
        ("resnet18", (3, 32, 32)),
        ("resnet18", (1, 28, 28)),
        ("resnet34", (3, 65, 70)),
        ("resnet50", (3, 32, 32)),
    ],
)
@pytest.mark.parametrize("stem", ["imagenet", "3x3"])
def test_model_maps_unit_images_to_logits(name: str, shape: tuple[int, ...], stem: str) -> None:
    model = build_model(name, shape, 7, stem=stem).eval()
    with torch.no_grad():
        assert model(torch.rand(2, *shape)).shape == (2, 7)


def test_small_resnet_is_small() -> None:
    assert 70_000 < parameters(build_model("small-resnet", (1, 28, 28), 10)) < 300_000
    assert parameters(build_model("resnet20", (3, 32, 32), 10)) == 272_474


def test_auto_follows_the_size_of_the_images() -> None:
    digits, photographs, large = (
        build_model("auto", shape, 10) for shape in [(1, 28, 28), (3, 32, 32), (3, 128, 128)]
    )
    assert parameters(digits) == parameters(build_model("small-resnet", (1, 28, 28), 10))
    assert 11e6 < parameters(photographs) < 12e6
    assert photographs.state_dict()["1.conv1.weight"].shape == (64, 3, 7, 7)
    assert large.state_dict()["1.conv1.weight"].shape == (64, 3, 7, 7)


def test_seed_fixes_the_weights_and_leaves_torch_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (build_model("logistic", (1, 4, 4), 3, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    key = "1.1.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


def test_normalize_shifts_and_scales_each_channel_and_is_saved() -> None:
    layer = Normalize((0.5, 0.25), (0.5, 0.125))
    assert layer(torch.full((1, 2, 1, 1), 0.5)).flatten().tolist() == [0.0, 2.0]
    assert set(layer.state_dict()) == {"mean", "std"}


def test_crop_is_a_window_of_the_reflected_image() -> None:
    images = torch.rand(16, 3, 10, 12)
    cropped = random_crop(images, torch.Generator().manual_seed(0), padding=2)
    padded = nn.functional.pad(images, [2] * 4, mode="reflect")
    for crop, image in zip(cropped, padded, strict=True):
        windows = [image[:, y : y + 10, x : x + 12] for y in range(5) for x in range(5)]
        assert any(torch.equal(crop, window) for window in windows)
    assert not torch.equal(cropped, images)


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = torch.rand(200, 1, 4, 5)
    flipped = random_flip(images, torch.Generator().manual_seed(0))
    mirrored = sum(torch.equal(a, b.flip(2)) for a, b in zip(flipped, images, strict=True))
    kept = sum(torch.equal(a, b) for a, b in zip(flipped, images, strict=True))
    assert mirrored + kept == 200
    assert 70 < mirrored < 130


def test_augmentation_is_reproducible() -> None:
    images = torch.rand(8, 3, 32, 32)
    augment = make_augmentation("crop-flip", "cifar10")
    assert augment is not None
    first, again = (augment(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert make_augmentation("none", "cifar10") is None


@pytest.mark.parametrize(("dataset", "mirrored"), [("mnist5k", False), ("cifar10", True)])
def test_digits_are_not_mirrored(dataset: str, mirrored: bool) -> None:
    ramp = torch.arange(32.0).expand(64, 1, 32, 32)
    augment = make_augmentation("auto", dataset)
    assert augment is not None
    middle = augment(ramp, torch.Generator().manual_seed(0))[:, 0, 16, 10:20]
    assert bool((middle.diff(dim=1) < 0).any()) == mirrored


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
