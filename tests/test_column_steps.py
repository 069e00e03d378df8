"""Tables: every column keeps its information, whatever its scale, its offset and its outliers."""

from typing import Any

import numpy as np
import pytest
from mlxtend.data import wine_data
from numpy.typing import NDArray

from codec import (
    CodecOptions,
    PayloadError,
    SamplePayload,
    SampleSpec,
    decode_samples,
    encode_samples,
    reconstruct_samples,
    variance_kept,
)
from codec.coding.columns import code_columns, code_integers
from codec.coding.range_coder import BitEncoder
from codec.samples.columns import Grid
from codec.samples.spread import COARSEST, FINEST, column_exponents

COPIES, SIGMAS = 600, 5.5


def spec_of(table: NDArray[Any], **options: Any) -> SampleSpec:
    low, high = float(table.min()), float(table.max())
    codec = CodecOptions("columns", **options)
    return SampleSpec(
        table.shape[1:], str(table.dtype), low, max(high, low + 1e-6 + abs(low) / 1000), 2,
        codec=codec,
    )  # fmt: skip


def coded(table: NDArray[Any], **options: Any) -> tuple[int, NDArray[np.float32]]:
    spec = spec_of(table, **options)
    payload = encode_samples(table, np.zeros(len(table), np.int64), spec, key=(1, 2, 3))
    data = payload.to_bytes()
    decoded = decode_samples(SamplePayload.from_bytes(data)).samples
    np.testing.assert_array_equal(decoded, reconstruct_samples(table, spec, (1, 2, 3)))
    return len(data), decoded


def shares(table: NDArray[Any], decoded: NDArray[np.float32]) -> NDArray[np.float64]:
    """Share of each column's variance that is kept."""
    error = np.square(decoded - table.astype(np.float64)).mean(axis=0)
    return 1 - error / table.astype(np.float64).var(axis=0)


def normal(count: int = 500, columns: int = 20, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, columns)).astype(np.float32)


def test_a_standardized_table() -> None:
    size, decoded = coded(normal())
    assert shares(normal(), decoded).min() > 0.99
    assert size < normal().nbytes / 6
    assert size < 500 * 20 * 4.6 / 8  # bits a value


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("quantizer", ["nearest", "stochastic", "dithered"])
def test_every_column_is_kept_whatever_its_scale_and_offset(seed: int, quantizer: str) -> None:
    rng = np.random.default_rng(seed)
    scale, offset = 10.0 ** rng.uniform(-12, 12, (2, 1, 20))
    offset = np.minimum(offset, 1e4 * scale)  # float32 must hold it
    table = (normal(seed=seed) * scale + offset * rng.choice([-1, 0, 1], 20)).astype(np.float32)
    size, decoded = coded(table, quantizer=quantizer)
    assert shares(table, decoded).min() > 0.98
    assert size < 1.15 * coded(normal(seed=seed), quantizer=quantizer)[0]


def test_wine() -> None:
    table = wine_data()[0].astype(np.float32)
    size, decoded = coded(table)
    assert shares(table, decoded).min() > 0.98
    assert variance_kept(table, decoded) > 0.98
    assert size < table.nbytes / 4
    assert shares(table, coded(table, relative_to="range")[1]).max() < 0.5


@pytest.mark.parametrize("value", [0.0, 7.3, -1e-8, 1e12, 255.0])
@pytest.mark.parametrize("quantizer", ["nearest", "stochastic", "dithered"])
def test_constant_columns_are_nearly_exact(value: float, quantizer: str) -> None:
    table = np.column_stack([normal(200, 3), np.full(200, value)]).astype(np.float32)
    size, decoded = coded(table, quantizer=quantizer)
    assert np.abs(decoded[:, 3] - table[:, 3]).max() <= 2.0**-12 * abs(value) + 1e-36
    assert shares(table[:, :3], decoded[:, :3]).min() > 0.98
    noise = 200 / 8 if quantizer != "nearest" else 0  # a bit says to which side it was rounded
    assert size < coded(table[:, :3], quantizer=quantizer)[0] + 20 + noise


def test_columns_that_differ_by_rounding_are_constant() -> None:
    table = normal(100, 2)
    table[:, 1] = np.where(np.arange(100) % 2, np.float32(0.1), np.nextafter(np.float32(0.1), 1))
    decoded = coded(table)[1]
    assert np.abs(decoded[:, 1] - 0.1).max() < 1e-4
    assert variance_kept(table, decoded) > 0.98  # of the other one


def test_one_hot_and_rare_columns() -> None:
    rng = np.random.default_rng(0)
    probability = np.r_[[0.3] * 3, [0.1 / 9] * 9]
    one_hot = np.eye(12, dtype=np.float32)[rng.choice(12, 500, p=probability)]
    table = np.column_stack([normal(), one_hot, np.zeros((500, 4), np.float32)])
    size, decoded = coded(table)
    there = one_hot.var(axis=0) > 0
    assert shares(one_hot[:, there], decoded[:, 20:32][:, there]).min() > 0.98
    assert (decoded[:, 32:] == 0).all()
    entropy = -500 * (probability * np.log2(probability)).sum() / 8
    assert size < coded(normal())[0] + 3 * entropy + 100


@pytest.mark.parametrize("count", [20, 200])
@pytest.mark.parametrize("outlier", [1e3, -1e9, 1e25])
@pytest.mark.parametrize("quantizer", ["nearest", "dithered"])
def test_outliers_do_not_erase_their_column(count: int, outlier: float, quantizer: str) -> None:
    table = normal(count)
    table[3, 2], table[count // 2, 5] = outlier, -outlier / 3
    size, decoded = coded(table, quantizer=quantizer)
    others = np.ones(count, bool)
    others[[3, count // 2]] = False
    steps = np.abs(outlier) / 2**20  # the entropy coder takes no more at once
    if steps < 0.1:
        assert shares(table[others], decoded[others]).min() > 0.98
        assert size < coded(normal(count), quantizer=quantizer)[0] + 0.6 * 2 * count + 40
    untouched = [column for column in range(20) if column not in (2, 5)]
    assert shares(table[:, untouched], decoded[:, untouched]).min() > 0.98
    assert decoded[3, 2] == pytest.approx(outlier, rel=0.01)


def test_heavy_tails() -> None:
    table = np.exp(2 * normal(1000, 8))
    decoded = coded(table)[1]
    below = table < np.quantile(table, 0.9, axis=0)
    error = np.where(below, np.square(decoded - table), 0).sum(axis=0)
    usual = np.where(below, np.square(table - np.median(table, axis=0)), 0).sum(axis=0)
    assert (error < 0.1 * usual).all()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("quantizer", ["nearest", "stochastic", "dithered"])
def test_few_rows(count: int, quantizer: str) -> None:
    table = normal(count, 30) * np.float32(1000)
    decoded = coded(table, quantizer=quantizer)[1]
    spread = table.std(axis=0)
    assert (np.abs(decoded - table) <= 0.26 * spread + 2.0**-11 * np.abs(table)).all()


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_whole_numbers_need_no_step_below_one(dtype: str) -> None:
    table = np.random.default_rng(0).integers(0, 4, (300, 6)).astype(dtype)
    assert (column_exponents(table.astype(float), 0.5, integers=True) == 0).all()
    assert np.array_equal(coded(table)[1], table)
    assert (column_exponents(table.astype(float), 0.5) < 0).all()


def test_integers_of_any_size() -> None:
    table = np.random.default_rng(0).integers(0, 2**31, (300, 4)).astype(np.int32)
    spec = SampleSpec((4,), "int32", 0, 2.0**31, 2, codec=CodecOptions("columns"))
    payload = encode_samples(table, np.zeros(300, np.int64), spec)
    assert shares(table, decode_samples(payload).samples).min() > 0.98


def test_bytes_fall_with_the_step_and_shares_too() -> None:
    sizes, kept = [], []
    for step in (0.01, 0.1, 0.5, 2.0, 8.0):
        size, decoded = coded(normal(), step=step)
        sizes.append(size)
        kept.append(shares(normal(), decoded).min())
    assert sizes == sorted(sizes, reverse=True) and kept == sorted(kept, reverse=True)
    assert kept[0] > 0.999 and sizes[-1] < sizes[0] / 8


@pytest.mark.parametrize("quantizer", ["stochastic", "dithered"])
def test_unbiased_in_the_samples(quantizer: str) -> None:
    # The same row again and again, among others that make it vary.
    others = normal(COPIES, 8) * 10.0 ** np.arange(-4, 4) + 10.0 ** np.arange(4, -4, -1)
    row = others[:1].astype(np.float32)
    table = np.concatenate([np.repeat(row, COPIES, axis=0), others.astype(np.float32)])
    decoded = coded(table, quantizer=quantizer, step=1.0)[1][:COPIES].astype(np.float64)
    step = np.exp2(column_exponents(table.astype(np.float64), 1.0) / 2)
    error = np.abs(decoded.mean(axis=0) - row[0])
    rounding = np.abs(row[0]) * 2.0**-23
    assert (error < SIGMAS * 0.5 * step / np.sqrt(COPIES) + rounding).all()
    assert (decoded.std(axis=0) > 0.05 * step).sum() >= 6


def test_volumes_are_tables() -> None:
    volumes = np.random.default_rng(0).normal(size=(40, 2, 3, 4, 5)).astype(np.float32)
    spec = SampleSpec((2, 3, 4, 5), "float32", -9, 9, 2)
    payload = encode_samples(volumes, np.zeros(40, np.int64), spec)
    assert variance_kept(volumes, decode_samples(payload).samples) > 0.98


def test_huge_and_tiny_columns() -> None:
    table = normal(100, 4) * np.array([1e-30, 1e30, 1e-38, 1], np.float32)
    table = np.clip(table, -1e30, 1e30)
    decoded = coded(table)[1]
    assert shares(table, decoded)[[0, 1, 3]].min() > 0.98
    assert np.isfinite(decoded).all()


# What no encoder writes


def table_payload(head: bytes, exponents: list[int], wide: list[int], first: list[int]) -> Any:
    coder, count = BitEncoder(), len(exponents)
    code_integers(coder, count, 1, np.diff(exponents, prepend=0)[:, None])
    code_columns(coder, 1, count, 1, np.array(wide)[:, None])
    code_integers(coder, count, 1, np.array(first)[:, None])
    spec = SampleSpec((count,), "float32", -1, 1, 2)
    return SamplePayload(spec, 2, {"values": head + coder.finish()})


def test_a_payload_of_zeros() -> None:
    decoded = decode_samples(table_payload(b"\0", [0, 3, -7], [0, 0, 0], [0, 0, 0]))
    assert (decoded.samples == 0).all()


@pytest.mark.parametrize(
    ("head", "exponents", "first", "message"),
    [
        (b"", [0, 0], [0, 0], "legal|truncated"),
        (b"\x09", [0, 0], [0, 0], "symbols of 9 bits; at most 8"),
        (b"\xff", [0, 0], [0, 0], "symbols of 255 bits"),
        (b"\0", [0, FINEST - 1], [0, 0], "exponent of a step outside"),
        (b"\0", [COARSEST + 1, 0], [0, 0], "exponent of a step outside"),
    ],
)
def test_malformed_tables(head: bytes, exponents: Any, first: Any, message: str) -> None:
    payload = table_payload(head, exponents, [0, 0], first)
    if not head:
        payload = SamplePayload(payload.spec, 2, {"values": b""})
    with pytest.raises(PayloadError, match=message):
        decode_samples(payload)


@pytest.mark.filterwarnings("error")
def test_values_that_overflow_are_refused_or_clipped() -> None:
    payload = table_payload(b"\0", [COARSEST, 0], [0, 0], [2**48, 0])
    assert (decode_samples(payload).samples <= 1).all()  # clipped to the range
    spec = SampleSpec((2,), "float32", -1, 1, 2, codec=CodecOptions(quantizer="stochastic"))
    with pytest.raises(PayloadError, match="not finite"):
        decode_samples(SamplePayload(spec, 2, payload.sections))


def test_the_grid_is_that_of_the_samples() -> None:
    table = normal(50, 3)
    assert Grid.of(table, spec_of(table)).exponents is not None
    assert Grid.of(table, spec_of(table, relative_to="range")).exponents is None
