"""Steps relative to the samples' own spread: what is kept, whatever scale the samples have."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import CIFAR_VARIABLE, digits, fields, photographs
from numpy.typing import NDArray

from codec import (
    CodecOptions,
    DecodeLimits,
    PayloadError,
    SamplePayload,
    SampleSpec,
    decode_samples,
    encode_samples,
    reconstruct_samples,
    variance_kept,
)
from codec.coding.cursor import Reader, zigzag
from codec.samples.block_dct.codec import Plan
from codec.samples.spread import MOST_HALVINGS, Moments, Stretch

Array = NDArray[Any]
RANGE = CodecOptions(relative_to="range")
COPIES, SIGMAS = 600, 5.5


def spec_of(samples: Array, low: float = 0, high: float = 255, **options: Any) -> SampleSpec:
    codec = CodecOptions(**options)
    return SampleSpec(samples.shape[1:], str(samples.dtype), low, high, 2, codec=codec)


def coded(samples: Array, spec: SampleSpec) -> tuple[int, Array]:
    """Bytes of a payload of samples, and what it decodes to."""
    data = encode_samples(samples, np.zeros(len(samples), np.int64), spec).to_bytes()
    erased = DecodeLimits(values_per_byte=1 << 20)  # some of them are, and take hardly a byte
    decoded = decode_samples(SamplePayload.from_bytes(data, erased)).samples
    np.testing.assert_array_equal(decoded, reconstruct_samples(samples, spec, (0, 0, 0)))
    return len(data), decoded


def kept(samples: Array, spec: SampleSpec) -> float:
    return variance_kept(samples, coded(samples, spec)[1])


def measured(samples: Array, **options: Any) -> SampleSpec:
    """Spec of floats whose range is their own."""
    return spec_of(samples, float(samples.min()), float(samples.max()), **options)


def waves(count: int, channels: int, length: int = 200) -> Array:
    """Noisy sines, float32 (count, channels, length), of standard deviation 0.7."""
    rng = np.random.default_rng(3)
    phase = rng.uniform(0, 6, (count, channels, 1))
    noise = 0.1 * rng.standard_normal((count, channels, length))
    return (np.sin(np.arange(length) / 10 + phase) + noise).astype(np.float32)


def bands(count: int = 100, number: int = 13) -> Array:
    """Images of many bands that are mixtures of three, float32 in [0, 1]."""
    rng = np.random.default_rng(0)
    mix = rng.uniform(0, 1, (number, 3))
    mix /= mix.sum(axis=1, keepdims=True)
    mixed = np.einsum("bc,nchw->nbhw", mix, fields(count) / 255.0)
    noise = 0.01 * rng.standard_normal(mixed.shape)
    return np.clip(mixed + noise, 0, 1).astype(np.float32)


# What fills its range is coded as it always was


def check_one_byte_more(images: Array) -> None:
    spec = spec_of(images)
    plain = replace(spec, codec=RANGE)
    labels = np.arange(len(images)) % 2
    new = encode_samples(images, labels, spec).sections["values"]
    old = encode_samples(images, labels, plain).sections["values"]
    assert new == b"\0" + old


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_digits_are_coded_as_ever(count: int) -> None:
    check_one_byte_more(digits(count)[0])


@pytest.mark.parametrize("count", [16, 32, 200])
def test_photographs_are_coded_as_ever(count: int) -> None:
    check_one_byte_more(photographs(count)[0])


@pytest.mark.skipif(CIFAR_VARIABLE not in os.environ, reason=f"{CIFAR_VARIABLE} names no file")
def test_every_minibatch_of_cifar_is_coded_as_ever() -> None:
    with np.load(Path(os.environ[CIFAR_VARIABLE])) as data:
        images = data["images"]
    for start in range(0, min(len(images), 2000), 32):
        check_one_byte_more(images[start : start + 32])


def test_a_single_photograph_costs_about_what_it_did() -> None:
    images = photographs(60)[0]
    spec = spec_of(images)
    sizes = np.array(
        [
            [len(encode_samples(image[None], np.zeros(1, int), s).to_bytes()) for image in images]
            for s in (spec, replace(spec, codec=RANGE))
        ]
    )
    assert sizes[0].mean() < 1.4 * sizes[1].mean()
    assert (sizes[0] >= sizes[1]).all()  # never coarser


# Scale does not matter


@pytest.mark.parametrize("scale", [1 / 20, 1e-4, 1e4])
@pytest.mark.parametrize("offset", [0.0, 0.4])
def test_images_of_another_scale_in_the_same_range(scale: float, offset: float) -> None:
    images = fields(80).astype(np.float32) / 255
    high = max(1.0, scale)
    faint = (images * scale + offset * high * (scale < 1)).astype(np.float32)
    size, decoded = coded(images, spec_of(images, 0, 1))
    faint_size, faint_decoded = coded(faint, spec_of(faint, 0, high))
    assert 0.8 * size < faint_size < 1.8 * size  # photographs at full contrast are just let be
    assert -0.01 < variance_kept(faint, faint_decoded) - variance_kept(images, decoded) < 0.12


@pytest.mark.parametrize("images", [fields(80), digits(500)[0]], ids=["photographs", "digits"])
def test_faint_images_of_8_bits(images: Array) -> None:
    faint = (118 + images // 20).astype(np.uint8)
    size, decoded = coded(images, spec_of(images))
    faint_size, faint_decoded = coded(faint, spec_of(faint))
    assert 0.9 * size < faint_size < (1.15 if images.shape[1] == 1 else 1.8) * size
    assert variance_kept(faint, faint_decoded) > variance_kept(images, decoded) - 0.05
    assert kept(faint, spec_of(faint, relative_to="range")) < 0.05  # what they would have been


def test_12_bits_in_the_range_of_16() -> None:
    images = fields(80).astype(np.float32) * 16
    assert kept(images, spec_of(images, 0, 65535)) > kept(images / 16, spec_of(images)) - 0.03
    assert kept(images, spec_of(images, 0, 65535, relative_to="range")) < 0.05


@pytest.mark.parametrize("shape", [(1, 64, 100), (64, 100)])
def test_spectrograms_in_decibels(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    slope = 10 * np.cos(np.arange(64) / 20)[:, None]
    walk = np.cumsum(rng.standard_normal((60, 64, 100)), axis=-1)
    levels = np.clip(-40 + 1.5 * walk + slope, -80, 0).astype(np.float32).reshape(60, *shape)
    assert kept(levels, spec_of(levels, -80, 0)) > 0.85
    assert kept(levels, spec_of(levels, -1e4, 1e4)) > 0.85
    power = (10 ** (levels / 10)).astype(np.float32)
    assert kept(power, measured(power)) > 0.9


def test_noise_is_not_erased() -> None:
    # No transform gathers it in a few coefficients: the step that suits images leaves nothing.
    noise = np.random.default_rng(0).standard_normal((50, 4, 128)).astype(np.float32)
    noise *= np.array([1, 10, 100, 0.1], np.float32)[:, None]
    size, decoded = coded(noise, measured(noise))
    assert variance_kept(noise, decoded) > 0.6
    assert size < noise.nbytes / 8
    uniform = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), np.uint8)
    assert kept(uniform, spec_of(uniform)) > 0.6


def test_the_step_still_decides() -> None:
    faint = (118 + fields(60) // 20).astype(np.uint8)
    noise = np.random.default_rng(0).standard_normal((30, 2, 100)).astype(np.float32)
    for samples, spec in ((faint, spec_of(faint)), (noise, measured(noise))):
        sizes, shares = [], []
        for step in (0.1, 0.4, 1.6, 6.4):
            size, decoded = coded(samples, replace(spec, codec=CodecOptions(step=step)))
            sizes.append(size)
            shares.append(variance_kept(samples, decoded))
        assert sizes == sorted(sizes, reverse=True) and sizes[0] > 4 * sizes[-1]
        assert shares == sorted(shares, reverse=True) and shares[0] > 0.93


# Channels


@pytest.mark.parametrize("scales", [(1, 1, 1), (1e-3, 1, 1e3), (1e-4, 1e-2, 1e4)])
@pytest.mark.parametrize("offsets", [(0, 0, 0), (101325, 0, 300), (0, -5, 1e5)])
def test_channels_of_a_series_keep_as_much_each(
    scales: tuple[float, ...], offsets: tuple[float, ...]
) -> None:
    plain = waves(60, 3)
    column = np.array([scales, offsets])[:, :, None]
    series = (plain * column[0] + column[1]).astype(np.float32)
    decoded = coded(series, measured(series))[1]
    for channel, (scale, offset) in enumerate(zip(scales, offsets, strict=True)):
        if scale < 1e-5 * abs(offset):
            continue  # float32 does not hold it
        one = series[:, channel : channel + 1]
        assert variance_kept(one, decoded[:, channel : channel + 1]) > 0.85, channel


def test_one_step_for_channels_of_different_scale_erased_the_small() -> None:
    series = waves(60, 3) * np.array([1e-3, 1, 1e3], np.float32)[:, None]
    assert kept(series, measured(series, relative_to="range")) < 0.4
    assert kept(series, measured(series)) > 0.9


def test_constant_channels_are_nearly_exact() -> None:
    series = waves(30, 5)
    series[:, 1], series[:, 2], series[:, 3] = 5.0, 0.0, -1234.5
    decoded = coded(series, measured(series))[1]
    for channel in (1, 2, 3):
        value = series[0, channel, 0]
        assert np.abs(decoded[:, channel] - value).max() <= 1e-3 * abs(value) + 1e-3
    assert variance_kept(series, decoded) > 0.9


def test_a_weak_channel_of_three_has_a_step_of_its_own() -> None:
    images = fields(80).astype(np.float32)
    images[:, 2] = images[:, 2] / 30 + 7
    spec = spec_of(images)
    assert len(Plan.of(images, spec).stretch.exponents) == 3
    assert kept(images, spec) > kept(fields(80), spec_of(fields(80))) - 0.05
    assert kept(images, spec_of(images, relative_to="range")) < 0.5


def test_channels_that_are_alike_share_a_step() -> None:
    images = fields(80) // np.array([1, 1, 2], np.uint8)[:, None, None]
    assert len(Plan.of(images, spec_of(images)).stretch.exponents) == 1


def test_many_bands_cost_at_most_half() -> None:
    images = bands()
    size, decoded = coded(images, spec_of(images, 0, 1))
    old_size, old_decoded = coded(images, spec_of(images, 0, 1, relative_to="range"))
    assert size <= old_size / 2
    assert variance_kept(images, decoded) >= variance_kept(images, old_decoded)


def test_bands_of_different_scale() -> None:
    scales = 10.0 ** np.linspace(-4, 4, 13)[:, None, None]
    images = (bands() * scales).astype(np.float32)
    size, decoded = coded(images, measured(images))
    assert variance_kept(images, decoded) > 0.8
    assert size < 1.8 * coded(bands(), spec_of(bands(), 0, 1))[0]


@pytest.mark.parametrize("number", [2, 4, 5, 32, 33])
def test_any_number_of_bands(number: int) -> None:
    images = bands(6, number)
    assert bool(Plan.of(images, spec_of(images, 0, 1)).stretch.mix) == (4 <= number <= 32)
    assert kept(images, spec_of(images, 0, 1)) > 0.6


def test_the_mix_is_orthonormal_and_the_same_at_both_ends() -> None:
    images = bands()
    spec = spec_of(images, 0, 1)
    plan = Plan.of(images, spec)
    again = Plan.read(Reader(plan.to_bytes(spec)), spec)
    assert again == plan
    matrix = plan.stretch.matrix
    assert matrix is not None and again.stretch.matrix is not None
    np.testing.assert_array_equal(matrix, again.stretch.matrix)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(13), atol=1e-6)
    mixed = plan.stretch.forward(images)
    energy = mixed.var(axis=(0, 2, 3))
    assert energy[:3].sum() > 0.98 * energy.sum()  # strongest first
    np.testing.assert_allclose(plan.stretch.inverse(mixed), images, atol=1e-5)


# Extremes


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 1, 1), (5, 1, 1), (2, 1), (1,), (3, 8, 8), (6, 50), (9, 7)]
)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("value", [0, 3, 255])
def test_constant_samples_are_nearly_exact(
    count: int, shape: tuple[int, ...], dtype: str, value: int
) -> None:
    samples = np.full((count, *shape), value, dtype)
    decoded = coded(samples, spec_of(samples, codec="dct"))[1]
    assert np.abs(decoded - value).max() <= 0.01


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (5, 1, 1), (4, 1), (1,)])
def test_a_pixel_a_sample(count: int, shape: tuple[int, ...]) -> None:
    samples = np.random.default_rng(0).uniform(0, 1, (count, *shape)).astype(np.float32)
    decoded = coded(samples, spec_of(samples, 0, 1, codec="dct"))[1]
    assert np.abs(decoded - samples).max() < 0.6


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-10, 1e10, 1e29])
@pytest.mark.parametrize("shape", [(3, 8, 8), (5, 8, 8), (3, 60)])
def test_values_of_any_size(scale: float, shape: tuple[int, ...]) -> None:
    count = 20
    smooth = np.cumsum(np.random.default_rng(0).normal(size=(count, *shape)), axis=-1)
    samples = (smooth / np.abs(smooth).max() * scale).astype(np.float32)
    assert kept(samples, spec_of(samples, -scale, scale)) > 0.6
    if 1e-10 < 1e-20 / scale < 1e30:
        assert kept(samples, spec_of(samples, -1e6 * scale, 1e6 * scale)) > 0.6


def test_no_peak_is_too_high_for_the_entropy_coder() -> None:
    # Faint but for one sample, far from the middle of the range, at the smallest of steps.
    samples = waves(20, 2, 250) * np.float32(1e-6)
    samples[3, 0, 7] = 1e5
    for step in (0.5, 0.01, 1e-4):
        decoded = coded(samples, spec_of(samples, -1, 2e5, step=step))[1]
        assert np.isfinite(decoded).all()
        assert decoded[3, 0, 7] == pytest.approx(1e5, rel=0.05)


def test_one_sample_far_out_does_not_erase_the_others() -> None:
    series = waves(40, 3)
    series[7] *= 1e4
    decoded = coded(series, measured(series))[1]
    others = np.arange(40) != 7
    assert variance_kept(series[others], decoded[others]) > 0.9
    assert variance_kept(series[7:8], decoded[7:8]) > 0.9


def test_a_few_real_images_among_blank_ones_rule() -> None:
    images = np.random.default_rng(0).integers(100, 104, (200, 1, 32, 32), np.uint8)
    images[::20] = fields(10, (1, 32, 32))
    assert kept(images[::20], spec_of(images)) > 0.6
    assert coded(images, spec_of(images))[0] < images.nbytes / 20


def test_a_pattern_that_all_samples_share_does_not_hide_what_differs() -> None:
    rng = np.random.default_rng(0)
    places = np.arange(128)
    shared = np.cos(places / 20)
    own = 0.01 * rng.standard_normal((60, 3)) @ np.cos(np.outer([1, 2, 3], places / 10))
    spectra = (shared + own).astype(np.float32)[:, None]
    decoded = coded(spectra, measured(spectra))[1]
    differing = spectra - spectra.mean(axis=0)
    assert variance_kept(differing, (decoded - spectra.mean(axis=0)).astype(np.float32)) > 0.5


# Random quantizers stay unbiased


@pytest.mark.parametrize("quantizer", ["stochastic", "dithered"])
@pytest.mark.parametrize("kind", ["faint", "weak band", "bands", "series", "grey"])
def test_unbiased_through_stretch_and_mix(quantizer: str, kind: str) -> None:
    image = {
        "faint": 0.5 + fields(1, (3, 13, 16)) / 255 / 20,
        "weak band": fields(1, (3, 13, 16)) / 255 / np.array([1, 1, 30])[:, None, None],
        "bands": bands(1, 6)[:, :, :13, :16] * np.array([1, 1, 2, 4, 1, 1e-3])[:, None, None] / 4,
        "series": waves(1, 3, 60) * np.array([1e-3, 0.1, 1])[:, None] / 2,
        "grey": fields(1, (1, 13, 16))[:, 0] / 255 / 10,
    }[kind].astype(np.float32)
    spec = spec_of(image, -1, 1, quantizer=quantizer)
    copies = np.repeat(image, COPIES, axis=0)
    assert any(Plan.of(copies, spec).stretch.exponents)
    decoded = reconstruct_samples(copies, spec, (3, 2, 1)).astype(np.float64)
    error = decoded.mean(axis=0) - image[0]
    axes = tuple(range(2, image.ndim))
    deviation = decoded.std(axis=0)
    floor = deviation.mean(axis=tuple(axis - 1 for axis in axes), keepdims=True)
    bound = SIGMAS * np.maximum(deviation, 0.1 * floor) / np.sqrt(COPIES) + 1e-6
    assert (np.abs(error) < bound).all()
    assert (deviation.mean(axis=tuple(axis - 1 for axis in axes)) > 1e-5).all()


# The bytes of a stretch


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 32, 33])
@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("separate", [True, False])
def test_a_stretch_is_read_back(channels: int, images: bool, separate: bool) -> None:
    rng = np.random.default_rng(channels)
    number = 1 if images and channels in (1, 3) and not separate else channels
    exponents = tuple(rng.integers(0, MOST_HALVINGS + 1, number).tolist())
    centres = tuple(
        int(c) if k else 0
        for c, k in zip(rng.integers(-(2**30), 2**30, number), exponents, strict=True)
    )
    mix = b""
    if images and 4 <= channels <= 32:
        orthonormal = np.linalg.qr(rng.normal(size=(channels, channels)))[0]
        mix = np.round(127 * orthonormal).astype(np.int8).tobytes()
    stretch = Stretch(2.0, 6.0, exponents, centres, mix)
    first, *rest = stretch.to_bytes(channels, images=images)
    reader = Reader(bytes(rest))
    assert Stretch.read(first, reader, channels, 2.0, 6.0, images=images) == stretch
    reader.finish()


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ((3, 8, 8), b"", "truncated channel axis"),
        ((3, 8, 8), bytes([64]), "channel axis 1 does not fit"),
        ((3, 8, 8), bytes([192]), "channel axis 3 does not fit"),
        ((6, 50), bytes([128]), "channel axis 2 does not fit"),
        ((50,), bytes([0]), "channel axis 0 does not fit"),
        ((3, 8, 8), bytes([61]), "spread of 61"),
        ((3, 8, 8), bytes([62]), "spread of 62"),
        ((3, 8, 8), bytes([63, 1]), "truncated spread"),
        ((3, 8, 8), bytes([63, 1, 255, 0]), "spread of 255"),
        ((6, 50), bytes([0] * 5), "truncated spread"),
        ((6, 50), bytes([0] * 5 + [61]), "spread of 61"),
        ((3, 8, 8), bytes([4]), "truncated centre"),
        ((3, 8, 8), bytes([4]) + zigzag(2**30 + 1), f"centre {2**30 + 1}; legal"),
        ((3, 8, 8), bytes([4]) + zigzag(-(2**40)), "centre .*; legal"),
        ((4, 8, 8), bytes([0] * 19), "truncated mix"),
        ((4, 8, 8), bytes([0] * 20), "mix of bands is not orthonormal"),
        ((4, 8, 8), bytes([0] * 4 + [127] * 16), "mix of bands is not orthonormal"),
    ],
)  # fmt: skip
def test_malformed_plans(kind: tuple[int, ...], values: bytes, message: str) -> None:
    spec = SampleSpec(kind, "float32", -1, 1, 2, codec=CodecOptions("dct"))
    payload = SamplePayload(spec, 3, {"targets": b"\0", "values": values})
    with pytest.raises(PayloadError, match=message):
        decode_samples(SamplePayload.from_bytes(payload.to_bytes()))


def test_moments_are_those_of_numpy() -> None:
    samples = np.random.default_rng(0).normal(5, 3, (7, 4, 9)).astype(np.float32)
    moments = Moments.of(samples, images=False)
    np.testing.assert_allclose(moments.level, samples.mean(axis=(0, 2)), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, samples.var(axis=2).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.reach, np.ptp(samples, axis=(0, 2)), rtol=1e-5)


def test_measuring_takes_little_memory() -> None:
    import tracemalloc

    images = np.random.default_rng(0).integers(0, 256, (400, 3, 64, 64), np.uint8)
    tracemalloc.start()
    Moments.of(images, images=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * images.nbytes + (8 << 20)


@pytest.mark.parametrize("codec", ["dct", "columns"])
@settings(max_examples=25)
@given(count=st.integers(1, 40), seed=st.integers(0, 2**16))
def test_payloads_of_one_spread_have_one_step(codec: str, count: int, seed: int) -> None:
    """Whichever samples they hold, they decode, and none takes a step of its own."""
    rng = np.random.default_rng(seed)
    contrast = rng.gamma(1.0, 30.0, (60, 1, 1, 1))
    samples = np.clip(128 + contrast * rng.standard_normal((60, 1, 8, 8)), 0, 255).astype(np.uint8)
    spec = SampleSpec((1, 8, 8), "uint8", 0, 255, 2, codec=CodecOptions(codec, step=0.3))
    targets = np.zeros(60, np.int64)
    some = rng.permutation(60)[:count]
    payload = encode_samples(samples[some], targets[some], spec, like=samples)
    whole = encode_samples(samples, targets, spec)
    decoded = decode_samples(SamplePayload.from_bytes(payload.to_bytes())).samples
    expected = decode_samples(SamplePayload.from_bytes(whole.to_bytes())).samples[some]
    assert (np.abs(decoded - expected) > 1e-3).mean() < 0.02  # ties, by rounding of sums
    known = reconstruct_samples(samples[some], spec, (0, 0, 0), samples)
    np.testing.assert_array_equal(decoded, known)


def test_channels_that_do_not_vary_where_the_spread_is_measured_have_their_own() -> None:
    rng = np.random.default_rng(0)
    like = rng.integers(0, 255, (20, 2, 8, 8)).astype(np.float32)
    like[:, 1] = 7.0
    samples = rng.integers(0, 255, (20, 2, 8, 8)).astype(np.float32)
    spec = SampleSpec((2, 8, 8), "float32", 0, 255, 2, codec=CodecOptions(step=0.5))
    targets = np.zeros(20, np.int64)
    size = len(encode_samples(samples, targets, spec, like=like).to_bytes())
    assert size == pytest.approx(len(encode_samples(samples, targets, spec).to_bytes()), rel=0.5)
