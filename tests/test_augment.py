"""Tests of fl_app.augment."""

import pytest
import torch
from torch import nn

from fl_app.augment import make_augmentation, random_crop, random_flip


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
