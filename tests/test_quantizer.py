"""Scalar quantizers: error bounds, unbiasedness and variance, measured."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from codec.samples.quantizer import dequantize, quantize
from codec.samples.sample_codec import Array, Key

KINDS = ("nearest", "stochastic", "dithered")
RANDOM = ("stochastic", "dithered")
DRAWS = 600
SIGMAS = 5.5  # of the most extreme of a few thousand values, with room


def passed(scaled: Array, kind: str, key: Key = (1, 2, 3)) -> Array:
    """`scaled` through the quantizer and back."""
    symbols = quantize(scaled, kind, key=key)
    return dequantize(symbols, kind, key=key)


def draws(scaled: Array, kind: str) -> Array:
    """Errors of many independent passes, (DRAWS, *scaled.shape)."""
    return np.stack([passed(scaled, kind, (7, 0, draw)) - scaled for draw in range(DRAWS)])


@pytest.mark.parametrize("kind", KINDS)
@given(level=st.integers(-(2**22) + 1, 2**22 - 1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_levels_are_their_own_symbols(kind: str, level: int) -> None:
    levels = np.full(1000, level, np.float32)
    assert (quantize(levels, kind, key=(1, 2, 3)) == level).all()


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_kept_however_often_they_are_drawn(kind: str) -> None:
    # Adding the uniform in float32 would carry some of these to the next level.
    levels = np.full(1_000_000, 255, np.float32)
    assert (quantize(levels, kind, key=(1, 2, 3)) == 255).all()


@pytest.mark.parametrize("kind", ["nearest", "stochastic"])
def test_representable_values_are_kept(kind: str) -> None:
    levels = np.arange(-300, 300, dtype=np.float32)
    assert np.array_equal(passed(levels, kind), levels)


def test_a_constant_between_levels() -> None:
    constant = np.full(1000, 0.3, np.float32)
    assert set(passed(constant, "nearest")) == {0.0}
    assert set(passed(constant, "stochastic")) == {0.0, 1.0}
    assert len(np.unique(passed(constant, "dithered"))) > 900


@pytest.mark.parametrize(
    ("kind", "bound"), [("nearest", 0.5), ("stochastic", 1), ("dithered", 0.5)]
)
@given(
    scaled=arrays(
        np.float32,
        st.integers(0, 50),
        elements=st.floats(-(2.0**20), 2.0**20, width=32) | st.floats(-2, 2, width=32),
    )
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_error_bound(kind: str, bound: float, scaled: Array) -> None:
    rounding = np.spacing(np.abs(scaled) + 1).astype(np.float64)
    error = np.abs(passed(scaled, kind).astype(np.float64) - scaled)
    assert (error <= bound + rounding).all()


def test_nearest_has_bins_of_one_step_that_are_odd_in_the_sign() -> None:
    scaled = np.linspace(-5, 5, 10_001).astype(np.float32)
    symbols = quantize(scaled, "nearest", key=(0, 0, 0))
    assert np.abs(scaled[symbols == 0]).max() == pytest.approx(0.5, abs=2e-3)
    assert scaled[symbols == 1].max() - scaled[symbols == 1].min() == pytest.approx(1, abs=3e-3)
    assert np.array_equal(symbols, -symbols[::-1])
    assert dequantize(symbols, "nearest", key=(0, 0, 0)).tolist() == symbols.tolist()


@pytest.mark.parametrize("kind", RANDOM)
def test_unbiased(kind: str) -> None:
    scaled = np.random.default_rng(0).normal(0, 3, 2000).astype(np.float32)
    errors = draws(scaled, kind).astype(np.float64)
    largest_sd = {"stochastic": 0.5, "dithered": np.sqrt(1 / 12)}[kind]
    assert np.abs(errors.mean(axis=0)).max() < SIGMAS * largest_sd / np.sqrt(DRAWS)
    assert abs(errors.mean()) < SIGMAS * largest_sd / np.sqrt(errors.size)


def test_nearest_is_biased() -> None:
    assert passed(np.full(10, 0.3, np.float32), "nearest").mean() == 0


def test_stochastic_variance_is_that_of_a_coin() -> None:
    fraction = np.linspace(0, 1, 501, dtype=np.float32)[:-1]
    variance = draws(fraction - 3, "stochastic").var(axis=0)
    coin = fraction * (1 - fraction)
    spread = np.sqrt(coin * (1 - 4 * coin) / DRAWS) + 1 / DRAWS  # of the variance of a coin
    assert (np.abs(variance - coin) < SIGMAS * spread).all()
    assert variance.mean() == pytest.approx(1 / 6, rel=0.02)
    assert variance.max() <= 1 / 4 + SIGMAS / DRAWS


def test_dithered_variance_is_a_twelfth_whatever_the_value() -> None:
    scaled = np.linspace(-2, 2, 801, dtype=np.float32)
    errors = draws(scaled, "dithered").astype(np.float64)
    spread = np.sqrt((1 / 80 - 1 / 144) / DRAWS)  # of the variance of a uniform
    assert np.abs(errors.var(axis=0) - 1 / 12).max() < SIGMAS * spread
    assert abs(errors.var() - 1 / 12) < SIGMAS * spread / np.sqrt(scaled.size)


def test_dithered_error_knows_nothing_of_the_input() -> None:
    scaled = np.random.default_rng(1).uniform(-2, 2, 400_000).astype(np.float32)
    error = passed(scaled, "dithered") - scaled
    fraction = scaled - np.floor(scaled)
    for feature in (scaled, scaled**2, fraction, np.abs(fraction - 0.5)):
        for moment in (error, error**2):
            assert abs(np.corrcoef(feature, moment)[0, 1]) < 5 / np.sqrt(scaled.size)


def test_stochastic_error_depends_on_the_input() -> None:
    # What dither is for: here the size of the error follows the value.
    scaled = np.random.default_rng(1).uniform(-2, 2, 100_000).astype(np.float32)
    error = passed(scaled, "stochastic") - scaled
    centre = np.abs(scaled - np.floor(scaled) - 0.5)
    assert np.corrcoef(centre, error**2)[0, 1] < -0.3


@pytest.mark.parametrize("kind", RANDOM)
def test_the_key_is_all_the_randomness(kind: str) -> None:
    scaled = np.random.default_rng(2).normal(0, 3, (30, 20)).astype(np.float32)
    first = quantize(scaled, kind, key=(1, 2, 3))
    assert np.array_equal(first, quantize(scaled, kind, key=(1, 2, 3)))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not np.array_equal(first, quantize(scaled, kind, key=other))


def test_a_wrong_key_spoils_the_dither() -> None:
    scaled = np.random.default_rng(2).normal(0, 3, 20_000).astype(np.float32)
    symbols = quantize(scaled, "dithered", key=(1, 2, 3))
    values = dequantize(symbols, "dithered", key=(1, 2, 4))
    # the coin of stochastic rounding, 1/6 over all fractions, and a uniform of its own
    assert (values - scaled).var() == pytest.approx(1 / 6 + 1 / 12, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_empty(kind: str, shape: tuple[int, ...]) -> None:
    symbols = quantize(np.zeros(shape, np.float32), kind, key=(1, 2, 3))
    assert symbols.shape == shape
    assert dequantize(symbols, kind, key=(1, 2, 3)).shape == shape
