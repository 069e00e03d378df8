"""What an encoder says of its own loss: every channel and column counts alike."""

import numpy as np
import pytest
from images import digits, fields

from codec import variance_kept

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (8, 9, 3), (9, 7), (4, 30), (30,), (5,), (2, 3, 4, 5)]
)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "int32"])
def test_all_or_nothing(shape: tuple[int, ...], dtype: str) -> None:
    samples = RNG.uniform(0, 255, (20, *shape)).astype(dtype)
    assert variance_kept(samples, samples.astype(np.float32)) == 1.0
    mean = samples.mean(axis=0, keepdims=True)
    nothing = np.broadcast_to(samples.mean(), samples.shape).astype(np.float32)
    assert variance_kept(samples, nothing) < 0.06
    assert variance_kept(samples, np.broadcast_to(mean, samples.shape).astype(np.float32)) < 0.2


def test_never_below_zero_nor_above_one() -> None:
    samples = RNG.normal(size=(20, 3, 8, 8)).astype(np.float32)
    assert variance_kept(samples, -10 * samples) == 0.0
    assert 0.98 < variance_kept(samples, samples * np.float32(0.9)) < 1.0


def test_a_channel_that_is_erased_shows_however_small_it_is() -> None:
    series = RNG.normal(size=(20, 4, 50)).astype(np.float32)
    series[:, 1] *= 1e-6
    erased = series.copy()
    erased[:, 1] = 0
    assert variance_kept(series, erased) == pytest.approx(0.75)


def test_a_column_that_is_erased_shows() -> None:
    table = RNG.normal(size=(50, 10)).astype(np.float32) * 10.0 ** np.arange(-5, 5)
    erased = table.copy()
    erased[:, :5] = 0
    assert variance_kept(table, erased) == pytest.approx(0.5, abs=0.02)


def test_what_is_constant_does_not_count() -> None:
    table = RNG.normal(size=(50, 4)).astype(np.float32)
    table[:, 1], table[:, 2] = 0.1, 0
    off = table.copy()
    off[:, 1:3] += 0.01
    assert variance_kept(table, off) == 1.0
    assert variance_kept(np.full((5, 3, 4, 4), 0.1, np.float32), np.zeros((5, 3, 4, 4), "f4")) == 1


def test_no_samples() -> None:
    assert variance_kept(np.zeros((0, 3, 4, 4), np.uint8), np.zeros((0, 3, 4, 4), "f4")) == 1.0


def test_one_sample() -> None:
    image = fields(1)
    assert variance_kept(image, image.astype(np.float32)) == 1.0
    assert variance_kept(np.ones((1, 5), "f4"), np.zeros((1, 5), "f4")) == 1.0  # nothing varies


def test_grey_images_are_one_channel_not_their_rows() -> None:
    # Rows at the border vary hardly at all, and nobody misses them.
    images = digits(100)[0].astype(np.float32)
    blurred = images.copy()
    blurred[:, :, :6] = 0
    blurred[:, :, -6:] = 0
    expected = variance_kept(images, blurred)
    assert expected > 0.8
    assert variance_kept(images[:, 0], blurred[:, 0]) == pytest.approx(expected)


def test_channels_last_are_the_channels() -> None:
    images = fields(20).astype(np.float32)
    worse = images.copy()
    worse[:, 1] = worse[:, 1].mean()
    last = [np.ascontiguousarray(x.transpose(0, 2, 3, 1)) for x in (images, worse)]
    assert variance_kept(*last) == pytest.approx(variance_kept(images, worse), abs=1e-6)
    assert variance_kept(*last) == pytest.approx(2 / 3, abs=0.01)
