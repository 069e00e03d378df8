"""The coefficient coder: causal layout, round trips, overhead, and what contexts gain."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from codec import PayloadError
from codec.coding.entropy import line_entropy
from codec.coding.range_coder import BitDecoder, BitEncoder, Ints
from codec.samples.block_dct.coefficients import (
    _CAP,
    _PREDICTED,
    _PRIOR,
    CoefficientModel,
    Layout,
    _mean_magnitude,
    _share,
    code_coefficients,
    code_scales,
    layout,
)

PLANS = [
    (1, (1,)), (1, (64,)), (3, (40,)), (20, (9,)), (1, (1, 1)), (1, (8, 8)), (3, (8, 8)),
    (3, (5, 9)), (4, (6, 6)), (19, (3, 4)), (3, (32, 32)), (1, (256, 2)),
]  # fmt: skip


def encode(table: Ints, plan: Layout) -> bytes:
    coder = BitEncoder()
    assert np.array_equal(
        code_coefficients(coder, CoefficientModel.start(), plan, table.shape[1], table), table
    )
    return coder.finish()


def decode(data: bytes, plan: Layout, rows: int) -> Ints:
    return code_coefficients(BitDecoder(data), CoefficientModel.start(), plan, rows, None)


def magnitudes(plan: Layout) -> NDArray[np.float64]:
    """Mean magnitude of each coefficient, (size, 1), falling as spectra do."""
    return 8 / (1 + np.arange(plan.size)[:, None]) ** 0.7


def laplacian(mean: NDArray[np.float64], rows: int) -> Ints:
    """Rounded Laplacian values, each line (or value) with its mean magnitude."""
    values = np.random.default_rng(0).laplace(0, mean, (len(mean), rows))
    return np.round(values).astype(np.int64)


def laplacian_bits(table: Ints, mean: NDArray[np.float64]) -> float:
    """Ideal code length of `table` for a coder that knows the law."""
    rate = np.exp(-1 / mean)
    zero = 1 - np.exp(-0.5 / mean)
    other = np.exp(-(np.abs(table) - 0.5) / mean) * (1 - rate) / 2
    return float(-np.log2(np.where(table == 0, zero, other)).sum())


@pytest.mark.parametrize(("channels", "shape"), PLANS)
def test_waves_partition_the_coefficients(channels: int, shape: tuple[int, ...]) -> None:
    plan = layout(channels, shape)
    assert plan.size == channels * np.prod(shape)
    assert np.array_equal(np.sort(np.concatenate(plan.waves)), np.arange(plan.size))


@pytest.mark.parametrize(("channels", "shape"), PLANS)
def test_neighbours_lie_in_earlier_waves(channels: int, shape: tuple[int, ...]) -> None:
    plan = layout(channels, shape)
    wave_of = np.empty(plan.size + 1, np.int64)
    for number, wave in enumerate(plan.waves):
        wave_of[wave] = number
    wave_of[plan.size] = -1  # none
    assert (wave_of[plan.neighbours] < wave_of[:-1, None]).all()
    assert plan.neighbours.shape[1] == len(plan.influence)


def test_the_mean_of_a_block_does_not_predict_its_texture() -> None:
    assert not (layout(1, (8, 8)).neighbours == 0).any()
    assert 0 in layout(3, (8, 8)).neighbours[64]  # but the mean of another channel


@pytest.mark.parametrize(("channels", "shape"), PLANS)
def test_frequencies_are_coded_in_order(channels: int, shape: tuple[int, ...]) -> None:
    plan = layout(channels, shape)
    order = np.indices((channels, *shape))[1:].reshape(len(shape), -1).sum(axis=0)
    reached = [set(order[wave]) for wave in plan.waves]
    assert all(len(orders) == 1 for orders in reached)  # one order a wave
    flat = [orders.pop() for orders in reached]
    assert flat == sorted(flat)


def test_waves_do_not_grow_with_the_channels() -> None:
    assert len(layout(2000, (4, 4)).waves) == len(layout(8, (4, 4)).waves)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from(PLANS[:-2]), st.integers(1, 12))
def test_round_trip(data: st.DataObject, which: tuple[int, tuple[int, ...]], rows: int) -> None:
    plan = layout(*which)
    top = 2**22 - 1
    element = st.integers(-3, 3) | st.integers(-top, top) | st.sampled_from([-top, 0, 15, top])
    table = data.draw(arrays(np.int64, (plan.size, rows), elements=element, fill=st.just(0)))
    assert np.array_equal(decode(encode(table, plan), plan, rows), table)


@pytest.mark.parametrize("value", [0, 1, -1, 14, 15, 2**22 - 1, -(2**22) + 1])
@pytest.mark.parametrize("rows", [1, 3, 500])
def test_constant_tables(value: int, rows: int) -> None:
    plan = layout(3, (4, 4))
    table = np.full((plan.size, rows), value)
    assert np.array_equal(decode(encode(table, plan), plan, rows), table)


def test_one_outlier_among_zeros() -> None:
    plan = layout(3, (8, 8))
    table = np.zeros((plan.size, 2000), np.int64)
    table[-1, 1234] = 2**22 - 1
    assert np.array_equal(decode(encode(table, plan), plan, 2000), table)


@pytest.mark.parametrize("rows", [100, 2000])
def test_overhead_over_the_law_of_each_frequency(rows: int) -> None:
    # Independent samples: contexts have nothing to gain, and must lose little.
    plan = layout(1, (8, 8))
    table = laplacian(magnitudes(plan), rows)
    ideal = laplacian_bits(table, magnitudes(plan))
    assert 0.99 * ideal < 8 * len(encode(table, plan)) <= 1.03 * ideal + 8 * 64


def test_contexts_gain_on_samples_of_different_contrast() -> None:
    plan = layout(1, (8, 8))
    contrast = np.random.default_rng(1).choice([0.1, 2.0], 1000)
    table = laplacian(magnitudes(plan) * contrast, 1000)
    assert 8 * len(encode(table, plan)) < 0.85 * line_entropy(table)


def test_each_wave_has_a_law_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Magnitudes of the same mean, of laws that differ from wave to wave."""
    plan, rows = layout(1, (8, 8)), 4000
    rng = np.random.default_rng(5)
    place = np.indices((8, 8)).sum(axis=0).ravel()
    sparse = 4 * (rng.random((64, rows)) < 0.2)
    dense = rng.choice([0, 1], (64, rows), p=[0.2, 0.8])
    magnitude = np.where((place % 2 == 0)[:, None], sparse, dense)
    table = magnitude * rng.choice([-1, 1], magnitude.shape)
    size = len(encode(table, plan))
    monkeypatch.setattr("codec.samples.block_dct.coefficients._MEMORY", 1e9)
    assert size < 0.9 * len(encode(table, plan))


def test_sums_of_contexts_are_exact() -> None:
    """The largest legal values, of every scale: sums stay below 2**53, hence order-independent."""
    plan = layout(3, (8, 8))
    largest = 2**22 - 1
    rows = 64
    table = np.zeros((plan.size, rows), np.int64)
    table[:] = largest >> (np.arange(plan.size)[:, None] % 23)
    table[:, ::2] *= -1
    assert np.array_equal(decode(encode(table, plan), plan, rows), table)
    scales = np.arange(-44, 45)
    share, mean = _share(scales).astype(object), _mean_magnitude(scales).astype(object)
    heaviest = 2 * int(plan.influence.sum()) + _PREDICTED  # a neighbour may count twice
    assert _CAP * heaviest * int((share * mean).max()) + _PRIOR < 2**53


def test_shares_fall_with_the_scale_and_never_vanish() -> None:
    share = _share(np.arange(-60, 45))
    assert (np.diff(share) <= 0).all() and share.min() >= 40
    np.testing.assert_allclose(share[60 - 15 :: 3][:10], 2.0 ** (25 - np.arange(10)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 2000))
def test_scales_round_trip(data: st.DataObject, rows: int) -> None:
    plan = layout(3, (4, 4))
    line = data.draw(arrays(np.int64, plan.size, elements=st.sampled_from([0, 0, 1, 9, 2**22 - 1])))
    table = np.zeros((plan.size, rows), np.int64)
    table[:, 0] = line
    coder = BitEncoder()
    scales = code_scales(coder, plan, rows, table)
    assert np.array_equal(code_scales(BitDecoder(coder.finish()), plan, rows, None), scales)
    present = line > 0
    assert (scales[~present] == np.iinfo(np.int64).min).all()
    mean = np.log2(line[present] / rows)
    assert (np.abs(scales[present] / 2 - mean) <= 0.25 + 1e-9).all()


def test_scales_that_no_encoder_writes() -> None:
    with pytest.raises(PayloadError, match="scale outside"):
        code_scales(BitDecoder(b"\xf4" * 40), layout(1, (1,)), 5, None)


def test_line_entropy() -> None:
    table = np.array([[0, 0, 0, 0], [1, 1, 2, 2], [1, 2, 3, 4], [7, 7, 7, 7], [-5, -5, -5, 0]])
    skewed = 3 * np.log2(4 / 3) + np.log2(4)
    assert line_entropy(table) == pytest.approx(0 + 4 + 8 + 0 + skewed)
    assert line_entropy(np.zeros((3, 0), np.int64)) == 0
    assert line_entropy(np.zeros((0, 3), np.int64)) == 0
