"""What every gradient compressor promises."""

import hashlib
import math
from typing import Any

import numpy as np
import pytest

from codec import CodecError, generator
from codec.coding.floats import encode_floats
from codec.gradients import COMPRESSORS, GradientCompressor, Memory, eden, make_compressor
from codec.gradients.frame import Frame
from codec.gradients.tensors import Array, largest_indices

ALL = [
    *[make_compressor(name) for name in COMPRESSORS],
    make_compressor("qsgd", levels=63, bucket=0),
    make_compressor("top-k", density=0.05, bits=2),
    make_compressor("eden", bits=0.3),
]
UNBIASED = [
    make_compressor("qsgd", levels=1, bucket=64),
    make_compressor("qsgd", levels=15, bucket=512),
    make_compressor("qsgd", levels=15, bucket=0),
    make_compressor("terngrad", clip=math.inf),
    make_compressor("rand-k", density=0.1),
    make_compressor("eden", bits=1),
    make_compressor("eden", bits=3),
    make_compressor("eden", bits=0.9),
    make_compressor("eden", bits=0.25),
]
WITH_FEEDBACK = [
    make_compressor("top-k", density=0.05),
    make_compressor("top-k", density=0.05, bits=16),
    make_compressor("top-k", density=0.05, bits=2),
    make_compressor("sign"),
    make_compressor("powersgd", rank=2),
]
SHAPES: list[tuple[int, ...]] = [(), (7,), (0,), (3, 0, 2), (20, 30), (8, 4, 3, 3), (1, 1)]


def gradient_of(shapes: list[tuple[int, ...]], seed: int = 0, scale: float = 1e-2) -> list[Array]:
    random = np.random.default_rng(seed)
    return [np.asarray(scale * random.standard_normal(s), np.float32) for s in shapes]


def integer_gradient() -> list[Array]:
    """Values that need no generator, the same under every NumPy."""
    values = (np.arange(3000) * 7919 % 1009 - 504) / 256
    return [values[:2500].astype(np.float32).reshape(50, 50), values[2500:].astype(np.float32)]


@pytest.mark.parametrize("compressor", ALL, ids=repr)
@pytest.mark.parametrize("shapes", [SHAPES, [], [()], [(0,)], [(4096,)]], ids=str)
def test_shapes_survive(compressor: GradientCompressor, shapes: list[tuple[int, ...]]) -> None:
    gradient = gradient_of(shapes)
    data, _ = compressor.compress(gradient, None, generator(1))
    decoded = compressor.decompress(data, shapes)
    assert [a.shape for a in decoded] == [a.shape for a in gradient]
    assert all(a.dtype == np.float32 for a in decoded)


@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_zero_gradient_decodes_to_zero_with_zero_memory(compressor: GradientCompressor) -> None:
    gradient = [np.zeros(shape, np.float32) for shape in SHAPES]
    data, memory = compressor.compress(gradient, None, generator(1))
    assert not any(a.any() for a in compressor.decompress(data))
    assert memory is None or not any(a.any() for a in memory[: len(gradient)])


@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_same_generator_gives_same_bytes_and_input_is_left_alone(
    compressor: GradientCompressor,
) -> None:
    gradient = gradient_of(SHAPES)
    copies = [a.copy() for a in gradient]
    first, memory = compressor.compress(gradient, None, generator(1, 2))
    second, _ = compressor.compress(gradient, None, generator(1, 2))
    assert first == second
    kept = [a.copy() for a in memory or []]
    compressor.compress(gradient, memory, generator(3))
    assert all(np.array_equal(a, b) for a, b in zip(gradient, copies, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(memory or [], kept, strict=True))


@pytest.mark.parametrize("compressor", ALL, ids=repr)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(
    compressor: GradientCompressor, value: float
) -> None:
    gradient = gradient_of([(40, 10)])
    gradient[0][3, 4] = value
    with pytest.raises(CodecError, match="finite"):
        compressor.compress(gradient, None, generator(1))


@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_other_dtypes_are_refused(compressor: GradientCompressor) -> None:
    with pytest.raises(CodecError, match="float64"):
        compressor.compress([np.zeros(3)], None, generator(1))  # type: ignore[list-item]  # the point


@pytest.mark.parametrize("compressor", ALL, ids=repr)
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e30, 1e36])
def test_extreme_magnitudes_stay_finite(compressor: GradientCompressor, scale: float) -> None:
    data, _ = compressor.compress(gradient_of([(100, 30)], scale=scale), None, generator(1))
    assert np.isfinite(compressor.decompress(data)[0]).all()


def test_lossless_is_bit_exact() -> None:
    gradient = [*gradient_of(SHAPES), np.array([0.0, -0.0, 1e-45, -3.4e38], np.float32)]
    compressor = make_compressor("fp32")
    data, memory = compressor.compress(gradient, None, generator(1))
    assert memory is None
    for original, decoded in zip(gradient, compressor.decompress(data), strict=True):
        assert original.tobytes() == decoded.tobytes()


@pytest.mark.parametrize("compressor", WITH_FEEDBACK, ids=repr)
def test_decoded_plus_memory_is_the_input(compressor: GradientCompressor) -> None:
    memory: Memory | None = None
    total = [np.zeros(shape) for shape in SHAPES]
    for step in range(5):
        gradient = gradient_of(SHAPES, seed=step)
        old = memory or [np.zeros_like(a) for a in gradient]
        data, memory = compressor.compress(gradient, memory, generator(step))
        assert memory is not None
        decoded = compressor.decompress(data)
        for g, m, d, e, t in zip(gradient, old, decoded, memory, total, strict=False):
            if compressor.name == "top-k" and compressor.bits > 2:  # type: ignore[attr-defined]  # has them
                assert np.array_equal(d + e, g + m)
            else:
                np.testing.assert_allclose(d + e, g + m, rtol=0, atol=1e-8)
            t += g.astype(np.float64) - d
    # Nothing is ever lost: what was not sent in all the rounds is what the memory holds.
    for t, e in zip(total, memory or [], strict=False):
        np.testing.assert_allclose(t, e, rtol=0, atol=1e-7)


@pytest.mark.parametrize("compressor", WITH_FEEDBACK, ids=repr)
def test_memory_that_does_not_fit_is_refused(compressor: GradientCompressor) -> None:
    gradient = gradient_of([(20, 30), (5,)])
    _, memory = compressor.compress(gradient, None, generator(1))
    assert memory is not None
    for wrong in ([], memory[::-1], [*memory, np.zeros((2, 2, 2), np.float32)]):
        with pytest.raises(CodecError, match="memory"):
            compressor.compress(gradient, wrong, generator(1))


@pytest.mark.parametrize("compressor", UNBIASED, ids=repr)
@pytest.mark.parametrize("kind", ["normal", "heavy-tailed", "sparse"])
def test_unbiased(compressor: GradientCompressor, kind: str) -> None:
    """The mean of 300 draws is as near to the truth as the variance of one draw allows."""
    draws, random = 300, np.random.default_rng(7)
    truth = random.standard_normal(1100).astype(np.float32)
    if kind == "heavy-tailed":
        truth = np.sign(truth) * np.exp(2 * truth)
    elif kind == "sparse":
        truth[5:] = 0
    gradient = [truth[:1000].reshape(25, 40), truth[1000:]]
    errors = np.empty((draws, len(truth)))
    for draw in range(draws):
        data, memory = compressor.compress(gradient, None, generator(draw))
        assert memory is None
        errors[draw] = np.concatenate([a.ravel() for a in compressor.decompress(data)]) - truth
    variance = np.square(errors).sum(axis=1).mean()
    # E|mean error|^2 = variance / draws when there is no bias.
    assert np.square(errors.mean(axis=0)).sum() <= 2 * variance / draws
    along = errors @ truth / np.linalg.norm(truth)
    assert abs(along.mean()) <= 5 * along.std() / math.sqrt(draws) + 1e-6 * np.linalg.norm(truth)


GOLDEN = {
    "fp32": "6c15814610f9f5d7",
    "fp16": "f996958e898886ff",
    "qsgd": "59b0248a06701abd",
    "terngrad": "ea7f5d8b22e4a61e",
    "sign": "7f8a2e276b342fa8",
    "top-k": "691b66809ab92a5e",
    "rand-k": "c0979dc3f5cb490d",
    "eden": "7ca0cb0969bc3b23",
}


GOLDEN_VARIANTS = {
    ("qsgd", "bucket", 0): "847bdfaf0bf0a33f",
    ("top-k", "bits", 2): "8c144ba9427cecd0",
    ("top-k", "bits", 16): "2bd046587d9b9e88",
    ("eden", "bits", 0.25): "372775a33f4985c1",
}


@pytest.mark.parametrize(("name", "option", "value"), GOLDEN_VARIANTS)
def test_golden_bytes_of_other_layouts(name: str, option: str, value: float) -> None:
    compressor = make_compressor(name, **{option: value})
    data, _ = compressor.compress(integer_gradient(), None, generator(1, 2, 3))
    digest = hashlib.sha256(data).hexdigest()[:16]
    assert digest == GOLDEN_VARIANTS[name, option, value]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name: str) -> None:
    """A changed digest means a changed byte layout: raise `frame.VERSION`."""
    data, _ = make_compressor(name).compress(integer_gradient(), None, generator(1, 2, 3))
    assert hashlib.sha256(data).hexdigest()[:16] == GOLDEN[name]


def test_golden_bytes_powersgd() -> None:
    """From factors given by hand, as those of a matrix depend on the linear algebra library."""
    left, right, vector = np.arange(8.0), np.arange(6.0) - 2, np.arange(3.0)
    factors = np.concatenate([left, right, vector]).astype(np.float32)
    data = Frame(7, ((8, 2, 3), (3,)), (1,), (encode_floats(factors),)).to_bytes()
    decoded = make_compressor("powersgd").decompress(data)
    assert np.array_equal(decoded[0], np.outer(left, right).reshape(8, 2, 3))
    assert np.array_equal(decoded[1], vector)
    assert hashlib.sha256(data).hexdigest()[:16] == "1eb38d97ac6b3db1"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gzip", {}, "must be one of fp32"),
        ("qsgd", {"level": 3}, "no option 'level'"),
        ("qsgd", {"levels": 0}, "levels is 0"),
        ("qsgd", {"levels": 65537}, "levels is 65537"),
        ("qsgd", {"bucket": -1}, "bucket is -1"),
        ("top-k", {"density": 0.0}, "density is 0.0"),
        ("top-k", {"density": math.nan}, "density is nan"),
        ("top-k", {"bits": 8}, "bits is 8"),
        ("rand-k", {"density": 1.1}, "density is 1.1"),
        ("terngrad", {"clip": 0.0}, "clip is 0.0"),
        ("powersgd", {"rank": 0}, "rank is 0"),
        ("eden", {"bits": 5}, "bits is 5"),
        ("eden", {"bits": 0}, "bits is 0"),
        ("eden", {"bits": 1.5}, "bits is 1.5, must be 1, 2, 3 or 4, or below 1"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        make_compressor(name, **options)


@pytest.mark.parametrize("bits", [1, 4])
def test_eden_rotates_in_parts_of_any_size(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = [np.random.default_rng(2).standard_normal(3 * 8192 + 700).astype(np.float32)]
    compressor = make_compressor("eden", bits=bits)
    whole, _ = compressor.compress(gradient, None, generator(1))
    decoded = compressor.decompress(whole)
    monkeypatch.setattr(eden, "_CACHED", 8192)
    assert compressor.compress(gradient, None, generator(1))[0] == whole
    assert np.array_equal(compressor.decompress(whole)[0], decoded[0])


@pytest.mark.parametrize("zeros", [0.0, 0.6, 0.999])
@pytest.mark.parametrize("count", [1, 20, 1999, 2000])
def test_largest_indices_with_ties_are_the_first_ones(zeros: float, count: int) -> None:
    random = np.random.default_rng(4)
    values = random.integers(1, 50, 2000).astype(np.float32) * (random.random(2000) >= zeros)
    expected = np.sort(np.argsort(-values, kind="stable")[:count])
    assert np.array_equal(largest_indices(values, count), expected)
