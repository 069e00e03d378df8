"""Tests of fl_app.augment."""

import pytest
import torch
from torch import nn

from fl_app.augment import cutout, make_augmentation, random_crop, random_flip


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


def test_cutout_hides_a_square_and_nothing_else() -> None:
    images = torch.rand(64, 3, 32, 32)
    hidden = cutout(images, torch.Generator().manual_seed(0))
    mean = images.mean(dim=(0, 2, 3))
    sizes = []
    for image, whole in zip(hidden, images, strict=True):
        changed = (image != whole).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
        size = [int(found.max() - found.min()) + 1 for found in (rows, columns)]
        assert int(changed.sum()) == size[0] * size[1]
        torch.testing.assert_close(image[:, changed], mean[:, None].expand(-1, size[0] * size[1]))
        sizes += size
    assert max(sizes) == 8 and min(sizes) >= 4  # part of a square may be outside
    assert sizes.count(8) > 64


@pytest.mark.parametrize("name", ["crop-flip", "crop-flip-cutout"])
def test_augmentation_is_reproducible(name: str) -> None:
    images = torch.rand(8, 3, 32, 32)
    augment = make_augmentation(name, "cifar10")
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
