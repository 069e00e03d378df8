"""The whole path, samples to bytes and back: errors, bias, sizes against entropy."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from images import digits, fields, photographs
from numpy.typing import NDArray

from codec import (
    CodecError,
    CodecOptions,
    DecodedSamples,
    PayloadError,
    SamplePayload,
    SampleSpec,
    decode_samples,
    encode_samples,
    reconstruct_samples,
)

Array = NDArray[Any]
SHAPES: list[tuple[int, ...]] = [
    (1, 28, 28), (3, 32, 32), (4, 9, 7), (3, 1, 1), (6, 50), (1, 1), (13,), (1,), (2, 3, 4, 5),
]  # fmt: skip
# One for every kind of coding: a quantizer of coefficients, of columns, and none.
CODINGS: list[dict[str, Any]] = [
    {"quantizer": "nearest"},
    {"quantizer": "stochastic"},
    {"quantizer": "dithered"},
    {"codec": "columns", "quantizer": "nearest"},
    {"codec": "columns", "quantizer": "stochastic"},
    {"codec": "columns", "quantizer": "dithered"},
    {"codec": "lossless"},
    {"relative_to": "range"},
    {"relative_to": "range", "codec": "columns", "quantizer": "dithered"},
]
COPIES = 600
SIGMAS = 5.5


def over_the_wire(payload: SamplePayload) -> DecodedSamples:
    return decode_samples(SamplePayload.from_bytes(payload.to_bytes()))


def random_samples(spec: SampleSpec, count: int, seed: int = 0) -> Array:
    drawn = np.random.default_rng(seed).uniform(spec.low, spec.high, (count, *spec.shape))
    return drawn.astype(spec.dtype)


def labels(count: int) -> Array:
    return np.arange(count) % 10


def round_trip(samples: Array, spec: SampleSpec, **arguments: Any) -> DecodedSamples:
    decoded = over_the_wire(encode_samples(samples, labels(len(samples)), spec, **arguments))
    if len(samples):
        known = reconstruct_samples(samples, spec, arguments.get("key", (0, 0, 0)))
        np.testing.assert_array_equal(known, decoded.samples)
    return decoded


# What comes back


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("options", CODINGS, ids=str)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_every_kind_of_sample(
    shape: tuple[int, ...], dtype: str, options: dict[str, Any], count: int
) -> None:
    spec = SampleSpec(shape, dtype, 0, 200, 10, codec=CodecOptions(**options))
    decoded = round_trip(random_samples(spec, count), spec, key=(5, 6, 7))
    assert decoded.samples.shape == (count, *shape)
    assert decoded.samples.dtype == np.float32
    assert decoded.targets.dtype == np.int64
    assert np.array_equal(decoded.targets, labels(count))
    assert decoded.weights.dtype == np.float32
    assert np.array_equal(decoded.weights, np.ones(count))


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 33, 21), (2, 70), (7,)])
@pytest.mark.parametrize("block", [0, 8])
@pytest.mark.parametrize("quantizer", ["nearest", "stochastic", "dithered"])
def test_the_error_falls_with_the_step(shape: tuple[int, ...], block: int, quantizer: str) -> None:
    errors = []
    for step in (0.3, 0.1, 0.01, 1e-4):
        options = CodecOptions(quantizer=quantizer, step=step, block=block)
        spec = SampleSpec(shape, "float32", -1, 1, 10, codec=options)
        samples = random_samples(spec, 20)
        decoded = round_trip(samples, spec).samples
        errors.append(np.sqrt(((decoded - samples) ** 2).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_lossless_is_lossless(shape: tuple[int, ...], dtype: str) -> None:
    spec = SampleSpec(shape, dtype, 0, 255, 10, codec=CodecOptions("lossless"))
    samples = random_samples(spec, 4)
    assert np.array_equal(round_trip(samples, spec).samples, samples.astype(np.float32))


def test_lossless_keeps_every_bit_of_a_float() -> None:
    spec = SampleSpec((4,), "float32", -1e30, 1e30, 10, codec=CodecOptions("lossless"))
    samples = np.array([[-0.0, 1e-45, 1e30, np.float32(0.1)]], np.float32)
    assert round_trip(samples, spec).samples.tobytes() == samples.tobytes()


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("quantizer", ["nearest", "stochastic"])
def test_levels_of_a_pixel_quantizer_are_kept(bits: int, quantizer: str) -> None:
    step = 1 / (2**bits - 1)
    options = CodecOptions("columns", quantizer=quantizer, step=step, relative_to="range")
    spec = SampleSpec((3, 16, 16), classes=10, codec=options)
    level = np.random.default_rng(0).integers(0, 2**bits, (50, 3, 16, 16))
    samples = np.round(level * 255 * step).astype(np.uint8)
    np.testing.assert_allclose(round_trip(samples, spec).samples, samples, atol=0.01)


@pytest.mark.parametrize(
    ("quantizer", "bound"), [("nearest", 0.5), ("dithered", 0.5), ("stochastic", 1)]
)
def test_error_bound_of_a_pixel_quantizer(quantizer: str, bound: float) -> None:
    options = CodecOptions("columns", quantizer=quantizer, step=1 / 7, relative_to="range")
    spec = SampleSpec((1, 28, 28), classes=10, codec=options)
    images, _ = digits(50)
    error = np.abs(round_trip(images, spec).samples - images)
    assert bound * 0.9 * 255 / 7 < error.max() <= bound * 255 / 7 + 1e-3


def test_nearest_stays_in_the_range() -> None:
    spec = SampleSpec((3, 32, 32), classes=10, codec=CodecOptions(step=0.8))
    decoded = round_trip(np.where(fields(50) > 120, 255, 0).astype(np.uint8), spec).samples
    assert decoded.min() == 0
    assert decoded.max() == 255


def test_blocks_that_do_not_fill_the_image_leave_no_seam() -> None:
    images = fields(40, (3, 30, 27))
    spec = SampleSpec((3, 30, 27), classes=10, codec=CodecOptions(block=8, step=0.05))
    squared = ((round_trip(images, spec).samples - images) ** 2).mean(axis=(0, 1))
    assert squared[24:].mean() < 1.5 * squared[:24].mean()
    assert squared[:, 24:].mean() < 1.5 * squared[:, :24].mean()


def test_large_image() -> None:
    images = fields(2, (3, 224, 224))
    payload = encode_samples(images, labels(2), SampleSpec((3, 224, 224), classes=10))
    decoded = over_the_wire(payload)
    assert ((decoded.samples - images) ** 2).mean() < 0.3 * images.var()
    assert len(payload.to_bytes()) < images.size / 20


# Random quantizers, in the domain of the samples


def copies_of(quantizer: str, options: dict[str, Any]) -> tuple[Array, Array]:
    """One image, and the decoded copies of it: (shape), (COPIES, shape)."""
    codec = CodecOptions(quantizer=quantizer, **options)
    image = fields(1, (3, 13, 16))
    spec = SampleSpec((3, 13, 16), classes=10, codec=codec)
    copies = np.repeat(image, COPIES, axis=0)
    return image[0].astype(np.float64), round_trip(copies, spec, key=(3, 2, 1)).samples


@pytest.mark.parametrize("quantizer", ["stochastic", "dithered"])
@pytest.mark.parametrize("options", [{}, {"block": 8}, {"codec": "columns", "step": 1 / 3}])
def test_unbiased_in_the_samples(quantizer: str, options: dict[str, Any]) -> None:
    image, decoded = copies_of(quantizer, options)
    error = decoded.mean(axis=0, dtype=np.float64) - image
    spread = decoded.std(axis=0) / np.sqrt(COPIES) + 1e-3
    assert (np.abs(error) < SIGMAS * spread).all()
    assert decoded.std() > 1  # there was noise to average out


def test_nearest_is_biased_in_the_samples() -> None:
    image, decoded = copies_of("nearest", {})
    assert np.abs(decoded.mean(axis=0) - image).max() > 3


@pytest.mark.parametrize("quantizer", ["stochastic", "dithered"])
def test_variance_in_the_samples(quantizer: str) -> None:
    # tilt 0, chroma 1: one step everywhere, so that the rotation keeps the variance per pixel
    options = {"tilt": 0.0, "chroma": 1.0, "step": 0.2, "relative_to": "range"}
    _, decoded = copies_of(quantizer, options)
    step = 0.2 * 255
    variance = decoded.var(axis=0, dtype=np.float64)
    if quantizer == "stochastic":
        assert variance.max() < step**2 / 4 * (1 + SIGMAS * np.sqrt(2 / COPIES))
    else:
        assert np.abs(variance / (step**2 / 12) - 1).max() < SIGMAS * np.sqrt(2 / COPIES)


@pytest.mark.parametrize("quantizer", ["stochastic", "dithered"])
def test_the_key_decides_the_bytes(quantizer: str) -> None:
    spec = SampleSpec((3, 32, 32), classes=10, codec=CodecOptions(quantizer=quantizer))
    images = fields(4)

    def encode(key: tuple[int, int, int]) -> bytes:
        return encode_samples(images, labels(4), spec, key=key).to_bytes()

    assert encode((1, 2, 3)) == encode((1, 2, 3))
    assert len({encode((1, 2, 3)), encode((0, 2, 3)), encode((1, 0, 3)), encode((1, 2, 0))}) == 4


@pytest.mark.parametrize("key", [(-1, 0, 0), (0, 2**64, 0)])
def test_a_key_that_does_not_fit_the_wire(key: tuple[int, int, int]) -> None:
    spec = SampleSpec((4,), classes=10, codec=CodecOptions(quantizer="dithered"))
    with pytest.raises(CodecError, match="legal range"):
        encode_samples(np.zeros((1, 4), np.uint8), labels(1), spec, key=key)


# Targets and weights


@pytest.mark.parametrize("classes", [1, 2, 10, 257, 1000, 1 << 24])
def test_labels(classes: int) -> None:
    spec = SampleSpec((1,), classes=classes)
    drawn = np.random.default_rng(0).integers(0, classes, 200)
    drawn[:2] = 0, classes - 1
    payload = encode_samples(np.zeros((200, 1), np.uint8), drawn, spec)
    assert np.array_equal(over_the_wire(payload).targets, drawn)
    assert len(payload.sections["targets"]) <= 200 * np.log2(classes) / 8 * 1.15 + 64


@pytest.mark.parametrize("kind", ["uint8", "int32", "uint64"])
def test_labels_of_any_integer_type(kind: str) -> None:
    given = labels(30).astype(kind)
    payload = encode_samples(np.zeros((30, 1), np.uint8), given, SampleSpec((1,), classes=10))
    assert np.array_equal(over_the_wire(payload).targets, given)


@pytest.mark.parametrize("size", [1, 3])
def test_float_targets_are_exact(size: int) -> None:
    spec = SampleSpec((2,), "float32", -1, 1, 0, size)
    targets = np.random.default_rng(0).normal(0, 1e3, (50, size)).astype(np.float32)
    targets.flat[:2] = np.finfo(np.float32).max, -0.0
    decoded = over_the_wire(encode_samples(random_samples(spec, 50), targets, spec))
    assert decoded.targets.dtype == np.float32
    assert np.array_equal(decoded.targets, targets)


def test_no_samples_with_float_targets() -> None:
    spec = SampleSpec((2,), target_size=3)
    payload = encode_samples(np.zeros((0, 2), np.uint8), np.zeros((0, 3), np.float32), spec)
    assert over_the_wire(payload).targets.shape == (0, 3)


@pytest.mark.parametrize("wire", [over_the_wire, decode_samples])
@pytest.mark.parametrize("numerators", [[256] * 5, [1] * 5, [255] * 5, [1, 256, 128, 3, 255]])
def test_weights_are_exact_inverses(wire: Any, numerators: list[int]) -> None:
    spec = SampleSpec((2,), classes=10)
    payload = encode_samples(
        np.zeros((5, 2), np.uint8), labels(5), spec, inclusion=np.array(numerators)
    )
    assert wire(payload).weights.tolist() == [np.float32(256 / k) for k in numerators]


def test_weights_of_one_are_free() -> None:
    spec = SampleSpec((2,), classes=10)
    samples = np.zeros((500, 2), np.uint8)
    plain = encode_samples(samples, labels(500), spec)
    kept = encode_samples(samples, labels(500), spec, inclusion=np.full(500, 256, np.uint16))
    assert kept.to_bytes() == plain.to_bytes()


def test_skewed_weights_cost_their_entropy() -> None:
    spec = SampleSpec((2,), classes=10)
    inclusion = np.where(np.arange(1000) % 10 == 0, 64, 256)
    payload = encode_samples(np.zeros((1000, 2), np.uint8), labels(1000), spec, inclusion=inclusion)
    entropy = over_the_wire(payload).entropy_bits["weights"]
    assert entropy == pytest.approx(-1000 * (0.1 * np.log2(0.1) + 0.9 * np.log2(0.9)))
    assert len(payload.sections["weights"]) <= 1.05 * entropy / 8 + 64


# Sizes


OPTIONS: list[Any] = [
    {},
    {"step": 0.9},
]
OPTIONS += [
    pytest.param(options, marks=pytest.mark.slow)
    for options in (
        {"step": 0.05},
        {"block": 8},
        {"tilt": 0.0},
        {"quantizer": "stochastic"},
        {"quantizer": "dithered"},
        {"codec": "columns", "step": 1 / 3, "quantizer": "stochastic"},
        {"codec": "columns", "step": 1 / 3, "quantizer": "dithered"},
        {"codec": "lossless"},
    )
]


def check_sizes(images: Array, targets: Array, options: dict[str, Any]) -> None:
    spec = SampleSpec(images.shape[1:], classes=10, codec=CodecOptions(**options))
    payload = encode_samples(images, targets, spec, key=(1, 2, 3))
    entropy_bits = decode_samples(payload).entropy_bits
    sizes = payload.section_bytes()
    assert sizes.pop("header") < 64
    for section, size in sizes.items():
        assert size <= 1.05 * entropy_bits[section] / 8 + 64, section


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sections_are_near_their_entropy(options: dict[str, Any]) -> None:
    check_sizes(*photographs(1000), options)


@pytest.mark.parametrize("options", [{}, {"step": 0.05}], ids=str)
def test_sections_of_digits_are_near_their_entropy(options: dict[str, Any]) -> None:
    check_sizes(*digits(1000), options)


def test_entropy_is_of_what_was_coded() -> None:
    spec = SampleSpec((1,), classes=10, codec=CodecOptions("columns", step=1 / 255))
    samples = np.repeat(np.arange(4, dtype=np.uint8), 25).reshape(100, 1)
    bits = round_trip(samples, spec).entropy_bits
    assert bits["values"] == pytest.approx(100 * 2)
    assert bits["targets"] == pytest.approx(100 * np.log2(10))
    assert bits["weights"] == 0


def test_bytes_fall_with_the_step() -> None:
    images = fields(100)
    sizes = [
        len(
            encode_samples(
                images,
                labels(100),
                SampleSpec((3, 32, 32), classes=10, codec=CodecOptions(step=step)),
            ).to_bytes()
        )
        for step in (0.02, 0.1, 0.4, 1.6)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 10 * sizes[-1]


# What is refused


SPEC = SampleSpec((2, 4), "float32", -1, 1, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": np.zeros((3, 4, 2), np.float32)}, r"\(3, 4, 2\).*\(N, 2, 4\)"),
        ({"samples": np.zeros((3, 2, 4))}, "float64.*float32"),
        ({"samples": np.full((3, 2, 4), 1.5, np.float32)}, r"1\.5.*\[-1\.0, 1\.0\]"),
        ({"samples": np.full((3, 2, 4), np.nan, np.float32)}, "nan"),
        ({"samples": np.full((3, 2, 4), -np.inf, np.float32)}, "inf"),
        ({"targets": np.array([0, 1])}, r"\(2,\).*\(3,\)"),
        ({"targets": np.array([0, 1, 10])}, r"10.*\[0, 9\]"),
        ({"targets": np.array([0, -1, 9])}, r"-1.*\[0, 9\]"),
        ({"targets": np.array([0.0, 1, 2])}, "float64"),
        ({"inclusion": np.array([1, 2])}, r"\(2,\).*\(3,\)"),
        ({"inclusion": np.array([0, 2, 3])}, "256"),
        ({"inclusion": np.array([1, 2, 257])}, "256"),
        ({"inclusion": np.array([0.5, 1.0, 2.0])}, "float64"),
    ],
)
def test_arguments_that_do_not_fit(changes: dict[str, Array], message: str) -> None:
    legal: dict[str, Any] = {
        "samples": np.zeros((3, 2, 4), np.float32),
        "targets": np.array([0, 1, 2]),
        "inclusion": np.array([1, 2, 256]),
    }
    arguments = legal | changes
    with pytest.raises(CodecError, match=message):
        encode_samples(arguments.pop("samples"), arguments.pop("targets"), SPEC, **arguments)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_targets_that_float32_cannot_hold(value: float) -> None:
    spec = SampleSpec((1,), classes=0, target_size=1)
    with pytest.raises(CodecError, match="finite"):
        encode_samples(np.zeros((1, 1), np.uint8), np.array([[value]]), spec)


def test_a_step_too_small_for_the_coder() -> None:
    fine = CodecOptions(step=1e-5, tilt=0.0, relative_to="range")
    spec = SampleSpec((1, 64, 64), classes=10, codec=fine)
    bright = np.full((1, 1, 64, 64), 255, np.uint8)
    assert np.abs(round_trip(bright, spec).samples - 255).max() < 0.01  # just below the limit
    spec = SampleSpec((1, 256, 256), classes=10, codec=replace(fine, block=256))
    bright = np.full((1, 1, 256, 256), 255, np.uint8)
    with pytest.raises(CodecError, match="larger step"):
        encode_samples(bright, labels(1), spec)
    # Relative to the spread, what is constant is in the header.
    spec = replace(spec, codec=replace(fine, block=256, relative_to="spread"))
    assert np.abs(round_trip(bright, spec).samples - 255).max() < 0.01
    stripes = np.where(np.arange(256) % 2, 255, 0).astype(np.uint8)
    with pytest.raises(CodecError, match="larger step"):
        encode_samples(np.broadcast_to(stripes, bright.shape), labels(1), spec)


@pytest.mark.filterwarnings("error")
def test_numbers_that_overflow_are_refused_without_a_warning() -> None:
    fine = CodecOptions("dct", step=1e-5)
    coarse = CodecOptions("dct", step=100.0, tilt=1000.0, chroma=1000.0)
    payload = encode_samples(
        random_samples(SampleSpec((3, 4), "float32", -1, 1, 10), 5),
        labels(5),
        SampleSpec((3, 4), "float32", -1, 1, 10, codec=fine),
    )
    altered = replace(payload, spec=SampleSpec((3, 4), "float32", -1e30, 1e30, 10, codec=coarse))
    with pytest.raises(PayloadError, match="not finite"):
        decode_samples(altered)
