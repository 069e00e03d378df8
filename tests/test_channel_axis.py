"""Where the channels of samples are taken to be, and that a misreading costs no more than bytes."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from images import digits, fields
from numpy.typing import NDArray

from codec import (
    CodecOptions,
    SamplePayload,
    SampleSpec,
    decode_samples,
    encode_samples,
)
from codec.samples.block_dct.codec import Plan
from codec.samples.channel_axis import ChannelAxis, channel_axis_of, is_series

FIRST, NONE, LAST = ChannelAxis.FIRST, ChannelAxis.NONE, ChannelAxis.LAST


def waves(count: int, channels: int, length: int = 120, seed: int = 0) -> NDArray[np.float32]:
    phase = np.random.default_rng(seed).uniform(0, 6, (count, channels, 1))
    return np.sin(np.arange(length) / 9 + phase).astype(np.float32)


def table(count: int = 200, columns: int = 20) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(count, columns)).astype(np.float32)


def size(samples: NDArray[Any], **options: Any) -> int:
    low, high = float(samples.min()), float(samples.max())
    if samples.dtype == np.uint8:
        low, high = 0, 255
    spec = SampleSpec(
        samples.shape[1:], str(samples.dtype), low, high, 2, codec=CodecOptions(**options)
    )
    payload = encode_samples(samples, np.zeros(len(samples), np.int64), spec)
    data = payload.to_bytes()
    decoded = decode_samples(SamplePayload.from_bytes(data)).samples
    assert decoded.shape == samples.shape
    share = 1 - np.square(decoded - samples, dtype=np.float64).mean() / samples.var()
    assert share > 0.5, share  # the samples themselves, not others' order
    return len(data)


# Views


@pytest.mark.parametrize(
    ("axis", "shape", "coded"),
    [
        (FIRST, (3, 5, 6), (3, 5, 6)),
        (LAST, (5, 6, 3), (3, 5, 6)),
        (NONE, (5, 6), (1, 5, 6)),
        (FIRST, (2, 9), (2, 9)),
        (NONE, (9,), (1, 9)),
    ],
)
def test_views_are_undone(axis: ChannelAxis, shape: tuple[int, ...], coded: Any) -> None:
    samples = np.arange(4 * np.prod(shape)).reshape(4, *shape)
    assert axis.coded_shape(shape) == coded
    seen = axis.coded(samples)
    assert seen.shape == (4, *coded) and seen.flags.c_contiguous
    np.testing.assert_array_equal(axis.restored(seen), samples)


# What is recognised


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((3, 32, 32), FIRST), ((1, 28, 28), FIRST), ((32, 32, 3), LAST), ((28, 28, 1), LAST),
        ((64, 48, 4), LAST), ((4, 48, 64), FIRST), ((3, 3, 3), FIRST), ((2, 2, 2), FIRST),
        ((5, 5, 3), LAST), ((13, 4, 4), FIRST), ((64, 8, 8), FIRST), ((1, 1, 1), FIRST),
        ((9, 1, 1), FIRST), ((1, 40, 3), FIRST), ((40, 40, 33), FIRST), ((2, 50, 2), FIRST),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_three_axes_are_read_by_their_lengths(
    shape: tuple[int, ...], axis: ChannelAxis, dtype: str
) -> None:
    noise = np.random.default_rng(0).uniform(0, 255, (3, *shape)).astype(dtype)
    assert channel_axis_of(noise) is axis


def test_many_channels_are_where_values_do_not_go_on() -> None:
    mix = np.random.default_rng(0).normal(size=(13, 3))
    images = np.einsum("bc,nchw->nbhw", mix, fields(20, (3, 24, 30))).astype(np.float32)
    assert channel_axis_of(images) is FIRST
    assert channel_axis_of(np.moveaxis(images, 1, -1)) is LAST
    tall = images[:, :, :, :11]  # as short at its end as channels are
    assert channel_axis_of(tall) is FIRST


@pytest.mark.parametrize("images", [digits(50)[0][:, 0], fields(20, (1, 28, 28))[:, 0]])
def test_grey_images(images: NDArray[np.uint8]) -> None:
    assert channel_axis_of(images) is NONE
    floats = images.astype(np.float32) / 255
    assert channel_axis_of(floats) is NONE
    assert channel_axis_of((floats - 0.13) / 0.31) is NONE
    assert channel_axis_of(floats[:1]) is NONE


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 30])
def test_series(channels: int) -> None:
    series = waves(40, channels)
    assert channel_axis_of(series) is FIRST
    scales = 10.0 ** np.linspace(-3, 3, channels)[:, None]
    assert channel_axis_of((series * scales).astype(np.float32)) is FIRST
    assert channel_axis_of(series[:1]) is FIRST


def test_correlated_channels_of_different_scale_are_no_image() -> None:
    together = waves(40, 1) * 2.0 ** np.arange(10)[:, None]
    assert channel_axis_of(together.astype(np.float32)) is FIRST
    levels = waves(40, 10) + 100 * np.arange(10)[:, None]
    assert channel_axis_of(levels.astype(np.float32)) is FIRST


def test_a_single_axis() -> None:
    assert channel_axis_of(waves(40, 1)[:, 0]) is NONE
    assert is_series(waves(40, 1)[:, 0])
    assert not is_series(waves(40, 1)[:, 0, :15])  # too short to be worth it
    assert not is_series(waves(1, 1)[:, 0])  # of one sample, nobody knows
    assert not is_series(table())


def test_tables_are_no_series() -> None:
    scales = 10.0 ** np.random.default_rng(1).integers(-3, 4, 20)
    assert not is_series((table() * scales).astype(np.float32))
    steps = np.where(np.arange(20) < 10, 1000, 0)  # two groups of columns
    assert not is_series((table() + steps).astype(np.float32))
    ramp = table() + 100 * np.arange(20)
    assert not is_series(ramp.astype(np.float32))
    constant = np.tile(np.arange(20, dtype=np.float32), (30, 1))
    assert not is_series(constant)


# What it saves


def test_channels_last_cost_what_channels_first_do() -> None:
    images = fields(60)
    assert size(np.ascontiguousarray(images.transpose(0, 2, 3, 1))) == size(images)


def test_grey_images_without_an_axis_of_channels_cost_what_those_with_one_do() -> None:
    images = digits(300)[0]
    assert size(images[:, 0]) <= size(images)
    floats = images.astype(np.float32)
    assert size(floats[:, 0]) <= size(floats)


def test_series_without_an_axis_of_channels_cost_what_those_with_one_do() -> None:
    series = waves(60, 1)
    assert size(series[:, 0], codec="dct") <= size(series)
    assert size(series[:, 0], codec="dct") < size(series[:, 0], codec="columns") / 4


# Misreadings


@pytest.mark.parametrize("shape", [(3, 16, 24), (16, 24, 3), (13, 8, 6), (16, 24), (6, 40), (40,)])
@pytest.mark.parametrize("quantizer", ["nearest", "dithered"])
def test_any_reading_is_undone_by_the_decoder(
    shape: tuple[int, ...], quantizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    samples = np.cumsum(rng.normal(size=(30, *shape)), axis=-1).astype(np.float32)
    low, high = float(samples.min()), float(samples.max())
    codec = CodecOptions("dct", quantizer=quantizer, step=0.05)
    spec = SampleSpec(shape, "float32", low, high, 2, codec=codec)
    legal = {1: [NONE], 2: [FIRST, NONE], 3: [FIRST, LAST]}[len(shape)]
    for axis in legal:
        monkeypatch.setattr(
            "codec.samples.block_dct.codec.channel_axis_of", lambda _, axis=axis: axis
        )
        assert Plan.of(samples, spec).axis is axis
        payload = encode_samples(samples, np.zeros(30, np.int64), spec, key=(1, 2, 3))
        decoded = decode_samples(SamplePayload.from_bytes(payload.to_bytes())).samples
        error = np.square(decoded - samples).mean() / samples.var()
        assert error < 0.06, axis


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_smallest_samples(count: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    for dtype, last in product(["uint8", "float32"], [(), (1,), (3,)]):
        samples = rng.uniform(0, 255, (count, *shape, *last)).astype(dtype)
        spec = SampleSpec(samples.shape[1:], dtype, 0, 255, 2)
        payload = encode_samples(samples, np.zeros(count, np.int64), spec)
        assert decode_samples(payload).samples.shape == samples.shape
