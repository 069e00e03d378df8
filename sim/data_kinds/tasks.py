"""Samples and targets of each kind: made of real digits and tables, and of signals.

All tasks are ``(seed, train) -> Task``: so many samples to learn from, and half as many to be
judged by. Tables are taken whole, two thirds and a third.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.raw_files import load_mnist5k

Array = NDArray[Any]
Convert = Callable[[Array, np.random.Generator], Array]
Signal = Callable[[int, np.random.Generator], tuple[Array, Array]]


@dataclass(frozen=True)
class Task:
    """Samples to learn from, and to be judged by.

    Attributes
    ----------
    samples, targets : ndarray
        What clients have.
    test_samples, test_targets : ndarray
        Never coded.
    """

    samples: Array
    targets: Array
    test_samples: Array
    test_targets: Array

    @classmethod
    def split(cls, samples: Array, targets: Array, train: int) -> "Task":
        """Return the first samples to learn from, and the others to be judged by."""
        return cls(samples[:train], targets[:train], samples[train:], targets[train:])


# Images made of digits


def digit_task(convert: Convert, seed: int, train: int) -> Task:
    """Return MNIST digits as something makes them of uint8 (N, 28, 28), and their classes."""
    pixels, labels, rng = _shuffled(seed, train)
    return Task.split(convert(pixels, rng), labels, train)


def pair_task(seed: int, train: int) -> Task:
    """Return two digits side by side, and which digits are there, float32 (N, 10)."""
    pixels, labels, rng = _shuffled(seed, train)
    partner = np.concatenate([rng.permutation(train), train + rng.permutation(train // 2)])
    samples = np.concatenate([pixels, pixels[partner]], axis=2)[:, None]
    present = np.maximum(np.eye(10)[labels], np.eye(10)[labels[partner]])
    return Task.split(samples, present.astype(np.float32), train)


def grey(pixels: Array, _: np.random.Generator) -> Array:
    """Return digits with an axis for their channel, uint8 (N, 1, 28, 28)."""
    return pixels[:, None]


def plain(pixels: Array, _: np.random.Generator) -> Array:
    """Return digits as they are, uint8 (N, 28, 28)."""
    return pixels


def coloured(pixels: Array, rng: np.random.Generator) -> Array:
    """Return digits in ink of one colour on paper of another, uint8 (N, 28, 28, 3)."""
    share = pixels[..., None] / 255
    colours = (len(pixels), 1, 1, 3)
    ink, paper = rng.uniform(0, 110, colours), rng.uniform(145, 255, colours)
    return np.rint(share * ink + (1 - share) * paper).astype(np.uint8)


def low_contrast(pixels: Array, _: np.random.Generator) -> Array:
    """Return digits of 12 grey levels, as of fog, heat or X-rays, uint8 (N, 1, 28, 28)."""
    return (118 + pixels[:, None] // 21).astype(np.uint8)


def photographed(bits: int, pixels: Array, rng: np.random.Generator) -> Array:
    """Return digits as a camera of so many bits counts them, uint16 (N, 1, 28, 28).

    With a dark level, the shot noise of the light and the noise of reading.
    """
    full = 2**bits - 1
    electrons = rng.poisson(20 + 8000 * (pixels[:, None] / 255))
    counted = full * (0.05 + 0.8 * electrons / 8000 + rng.normal(0, 1 / 2000, electrons.shape))
    images: NDArray[np.uint16] = np.clip(np.rint(counted), 0, full).astype(np.uint16)
    return images


def normalized(pixels: Array, rng: np.random.Generator) -> Array:
    """Return digits as torchvision's ``Normalize`` makes them, float32 (N, 1, 28, 28)."""
    return unit(pixels - np.float32(0.1307 * 255), rng) / np.float32(0.3081)


def unit(pixels: Array, _: np.random.Generator) -> Array:
    """Return digits as torchvision's ``ToTensor`` makes them, float32 (N, 1, 28, 28)."""
    return (pixels[:, None] / 255).astype(np.float32)


def _shuffled(seed: int, train: int) -> tuple[Array, Array, np.random.Generator]:
    rng = np.random.default_rng(seed)
    pixels, labels = _digits()
    chosen = rng.permutation(len(pixels))[: train + train // 2]
    return pixels[chosen], labels[chosen], rng


@cache
def _digits() -> tuple[Array, Array]:
    parts = [load_mnist5k(split) for split in ("train", "test")]
    pixels = np.concatenate([part.samples[:, 0] for part in parts])
    return pixels, np.concatenate([part.labels for part in parts])


# Signals and tables


def signal_task(make: Signal, seed: int, train: int) -> Task:
    """Return signals of `sim.data_kinds.signals`."""
    return Task.split(*make(train + train // 2, np.random.default_rng(seed)), train)


def wine_task(seed: int, train: int, *, standardized: bool) -> Task:
    """Return what 178 wines consist of, float32 (N, 13), and their cultivar."""
    table, train = _rows("wine.csv", seed)
    samples = table[:, :-1]
    if standardized:
        samples = (samples - samples[:train].mean(axis=0)) / samples[:train].std(axis=0)
    return Task.split(samples.astype(np.float32), table[:, -1].astype(np.int64), train)


def house_task(seed: int, train: int) -> Task:
    """Return what 506 quarters of Boston are like, float32 (N, 13), and prices, standardized."""
    table, train = _rows("boston_housing.csv", seed)
    prices = table[:, -1]
    prices = (prices - prices[:train].mean()) / prices[:train].std()
    return Task.split(table[:, :-1].astype(np.float32), prices.astype(np.float32), train)


def _rows(name: str, seed: int) -> tuple[Array, int]:
    table = _table(name)
    order = np.random.default_rng(seed).permutation(len(table))
    return table[order], 2 * len(table) // 3


@cache
def _table(name: str) -> Array:
    """Return a table that mlxtend carries, its last column the target."""
    # mlxtend.data itself is not imported: it would bring scikit-learn along.
    path = Path(str(resources.files("mlxtend"))) / "data" / "data" / name
    with path.open(encoding="utf-8") as file:
        return np.array([row for row in csv.reader(file) if row], np.float64)
