"""Prediction from neighbouring blocks: causal, exact, the best linear one, and what it gains."""

import numpy as np
import pytest
from numpy.typing import NDArray

from codec import CodecOptions, SampleSpec, encode_samples
from codec.coding.range_coder import Ints
from codec.samples.block_dct.codec import Plan
from codec.samples.block_dct.prediction import (
    ONE,
    Prediction,
    Regression,
    block_means,
    predictable,
    regression,
)
from codec.samples.block_dct.transform import Transform, _inverse_blocks, forward, transform_for

BLOCKS = [(8, 8), (4, 4), (16, 16), (8, 5), (128,), (2, 2), (7,)]


def markov_field(count: int, side: int, seed: int) -> NDArray[np.float32]:
    """Gaussian fields (count, 1, side, side) of correlation 0.9**distance, standard deviation 1."""
    places = np.indices((side, side)).reshape(2, -1).T
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    factor = np.linalg.cholesky(0.9**distance + 1e-9 * np.eye(len(places)))
    normal = np.random.default_rng(seed).standard_normal((len(places), count))
    return (factor @ normal).T.reshape(count, 1, side, side).astype(np.float32)


def predictions(level: Transform, table: Ints, means: Ints) -> Ints:
    """Predictions of all frequencies of a level, order by order."""
    orders = np.tile(regression(level.block_shape).orders, level.channels)
    around = Prediction(level, means, np.ones(level.coefficients))
    result = np.zeros_like(table)
    for order in range(1, int(orders.max()) + 1):
        wave = np.flatnonzero(orders == order)
        result[wave] = around.of(wave, table)
    return result


@pytest.mark.parametrize("shape", BLOCKS)
def test_slopes_are_causal(shape: tuple[int, ...]) -> None:
    fit = regression(shape)
    not_below = fit.orders[fit.regressors][None] >= fit.orders[:, None]
    assert not fit.coefficients[:, not_below].any()
    assert not fit.coefficients[:, 0].any()
    assert not fit.means[0].any()


@pytest.mark.parametrize("shape", BLOCKS)
def test_slopes_are_whole_numbers_that_no_rounding_error_can_change(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = regression(shape)
    solve = np.linalg.solve
    noise = np.random.default_rng(0)

    def disturbed(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        solved: NDArray[np.float64] = solve(a, b)
        return solved * (1 + 1e-9 * noise.standard_normal(solved.shape))

    monkeypatch.setattr(np.linalg, "solve", disturbed)
    again: Regression = regression.__wrapped__(shape)
    assert np.array_equal(fit.means, again.means)
    assert np.array_equal(fit.coefficients, again.coefficients)
    assert (fit.coefficients == np.round(fit.coefficients)).all()


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 24, 40), (1, 30, 19), (2, 300)])
def test_what_is_not_yet_known_has_no_influence(shape: tuple[int, ...]) -> None:
    level = transform_for(shape, 128 if len(shape) == 2 else 0)
    rng = np.random.default_rng(0)
    table = rng.integers(-3, 4, (level.coefficients, 5 * level.blocks))
    means = rng.integers(-500, 500, (level.channels, 5, *level.grid))
    orders = np.tile(regression(level.block_shape).orders, level.channels)
    around = Prediction(level, means, np.ones(level.coefficients))
    for order in (1, 2, 5):
        wave = np.flatnonzero(orders == order)
        unknown = table.copy()
        unknown[orders >= order] = 12345
        assert np.array_equal(around.of(wave, table), around.of(wave, unknown))


def test_prediction_is_the_conditional_mean_of_the_field() -> None:
    # Fine steps: quantization hardly matters, and the noise that the slopes allow for is small.
    step = 0.02
    fields = markov_field(400, 32, seed=1)
    level = transform_for((1, 32, 32), 8)
    tables = [np.round(table / step).astype(np.int64) for table in forward(fields, level)]
    means = block_means(level.levels[1], tables[1], None)
    predicted = predictions(level, tables[0], means) / ONE
    for row, column, explained in ((0, 1, 0.25), (1, 0, 0.25), (1, 1, 0.05), (0, 2, 0.1)):
        actual, guess = (t[8 * row + column].astype(np.float64) for t in (tables[0], predicted))
        left = np.mean((actual - guess) ** 2) / np.mean(actual**2)
        assert left < 1 - explained
        slope = (actual * guess).sum() / (guess**2).sum()  # 1 for a conditional mean
        assert slope == pytest.approx(1, abs=0.15)


def test_transposed_pictures_have_transposed_predictions() -> None:
    level = transform_for((1, 32, 32), 8)
    rng = np.random.default_rng(2)
    table = rng.integers(-3, 4, (8, 8, 6, 4, 4))
    means = rng.integers(-500, 500, (1, 6, 4, 4))
    turned = table.transpose(1, 0, 2, 4, 3)
    straight = predictions(level, table.reshape(64, -1), means).reshape(table.shape)
    other = predictions(level, turned.reshape(64, -1), means.swapaxes(2, 3)).reshape(table.shape)
    # The slopes of both are rounded from solutions that differ in the last place alone.
    assert np.abs(straight - other.transpose(1, 0, 2, 4, 3)).max() <= 1


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 30, 19), (2, 300), (1, 200, 90)])
def test_block_means_in_integers_are_those_of_the_inverse_transform(
    shape: tuple[int, ...],
) -> None:
    level = transform_for(shape, 8)
    samples = np.random.default_rng(3).normal(0, 40, (4, *shape)).astype(np.float32)
    levels = level.levels
    tables = [np.round(table).astype(np.int64) for table in forward(samples, level)]
    means = None
    for number in range(len(levels) - 1, 0, -1):
        means = block_means(levels[number], tables[number], means)
    assert means is not None
    expected = _float_means(level, tables)
    assert np.abs(means / 64 - expected).max() < 0.1


def _float_means(level: Transform, tables: list[Ints]) -> NDArray[np.float32]:
    """Means of the blocks of `level`, float32 (channels, N, *grid), by the inverse transform."""
    values = None
    for coarser, table in reversed(list(zip(level.levels[1:], tables[1:], strict=True))):
        whole = table.astype(np.float32)
        if values is not None:
            whole[coarser.means] = np.moveaxis(values, 1, 0).reshape(coarser.channels, -1)
        values = _inverse_blocks(whole, coarser)
    assert values is not None
    return np.moveaxis(values, 1, 0)


def test_absurd_values_neither_overflow_nor_warn() -> None:
    level = transform_for((3, 32, 32), 8)
    table = np.full((192, 16), np.int64(2) ** 45)
    table[:, ::2] *= -1
    coarser = level.levels[1]
    means = block_means(coarser, np.full((48, 1), np.int64(2) ** 45), None)
    around = Prediction(level, means, np.full(192, 1e9))
    with np.errstate(all="raise"):
        assert around.of(np.array([1, 8]), table).shape == (2, 16)


def test_only_small_blocks_with_neighbours_are_predicted() -> None:
    assert predictable(transform_for((3, 32, 32), 8))
    assert not predictable(transform_for((3, 8, 8), 8))
    assert not predictable(transform_for((3, 64, 64), 32))


def test_prediction_saves_signs_on_a_smooth_field() -> None:
    # Of independent signs each costs a bit. The field's blocks go on into one another.
    fields = np.clip(127.5 + 40 * markov_field(300, 32, seed=4), 0, 255).astype(np.uint8)
    spec = SampleSpec((1, 32, 32), classes=2, codec=CodecOptions(step=0.3))
    shuffled = fields.reshape(300, 1, 4, 8, 4, 8).transpose(0, 1, 2, 4, 3, 5).reshape(-1, 8, 8)
    mirrored = np.where(
        np.random.default_rng(5).random((len(shuffled), 1, 1)) < 0.5, shuffled[..., ::-1], shuffled
    )  # half of the blocks mirrored: the same magnitudes, means and own contexts
    broken = mirrored.reshape(300, 1, 4, 4, 8, 8).transpose(0, 1, 2, 4, 3, 5)
    labels = np.zeros(300, np.int64)
    sizes = [
        len(encode_samples(np.ascontiguousarray(x).reshape(fields.shape), labels, spec).to_bytes())
        for x in (fields, broken)
    ]
    tables = Plan.of(fields, spec).quantized(fields, spec, (0, 0, 0))
    nonzero = sum(np.count_nonzero(table) for table in tables)
    assert sizes[1] - sizes[0] > 0.03 * nonzero / 8
    assert sizes[0] < 0.98 * sizes[1]
