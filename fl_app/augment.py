"""Augmentation of a minibatch, whole and on its own device."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from codec import Augmentation
from fl_app.data import DATASETS


def make_augmentation(name: str, dataset: str) -> Augmentation | None:
    """Return what minibatches of a data set go through; None for nothing.

    Parameters
    ----------
    name : str
        "none", "crop", "crop-flip", "crop-flip-cutout", or "auto": "crop" for digits, whose mirror
        images are no digits, else "crop-flip".
    dataset : str
        For "auto"; digits, which are centred, are also shifted less than others: by 2 pixels.
    """
    digits = DATASETS[dataset].digits
    if name == "auto":
        name = "crop" if digits else "crop-flip"
    crop = partial(random_crop, padding=2) if digits else random_crop

    def crop_flip(images: Tensor, generator: Generator) -> Tensor:
        return random_flip(crop(images, generator), generator)

    def crop_flip_cutout(images: Tensor, generator: Generator) -> Tensor:
        return cutout(crop_flip(images, generator), generator)

    return {
        "none": None,
        "crop": crop,
        "crop-flip": crop_flip,
        "crop-flip-cutout": crop_flip_cutout,
    }[name]


def random_crop(images: Tensor, generator: Generator, padding: int = 0) -> Tensor:
    """Shift each image by up to `padding` pixels each way, filling by reflection.

    Parameters
    ----------
    images : Tensor, shape (N, C, H, W)
    generator : torch.Generator
        Draws the N shifts.
    padding : int
        Less than H and W; 0 means an eighth of the smaller, 4 for images of 32x32.
    """
    count, _, height, width = images.shape
    padding = padding or min(height, width) // 8
    padded = F.pad(images, [padding] * 4, mode="reflect")
    shifts = torch.randint(
        2 * padding + 1, (2, count), generator=generator, device=generator.device
    )
    rows, columns = shifts.to(images.device)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, rows, columns]


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2.

    Parameters
    ----------
    images : Tensor, shape (N, C, H, W)
    generator : torch.Generator
        Draws the N bits.
    """
    bits = torch.randint(2, (len(images), 1, 1, 1), generator=generator, device=generator.device)
    return torch.where(bits.to(images.device, torch.bool), images.flip(3), images)


def cutout(images: Tensor, generator: Generator, size: int = 0) -> Tensor:
    """Hide a square of each image (DeVries and Taylor 2017, arXiv:1708.04552).

    What is hidden becomes the minibatch's mean colour. The square's centre is anywhere in the
    image, so that part of the square may be outside.

    Parameters
    ----------
    images : Tensor, shape (N, C, H, W)
    generator : torch.Generator
        Draws the N centres.
    size : int
        Side in pixels; 0 means a quarter of the smaller of H and W, 8 for images of 32x32.
    """
    count, _, height, width = images.shape
    size = size or min(height, width) // 4
    hidden = []
    for length in (height, width):
        middle = torch.randint(length, (count, 1), generator=generator, device=generator.device)
        start = middle.to(images.device) - size // 2
        place = torch.arange(length, device=images.device)
        hidden.append((place >= start) & (place < start + size))
    rows, columns = hidden
    mean = images.mean(dim=(0, 2, 3), keepdim=True)
    return torch.where((rows[:, None, :, None] & columns[:, None, None, :]), mean, images)
