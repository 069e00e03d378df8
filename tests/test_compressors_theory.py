"""What the papers prove, and how near the bytes are to their lower bounds."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from codec import generator
from codec.coding.floats import decode_words, encode_floats
from codec.coding.symbols import decode_integers
from codec.gradients import GradientCompressor, Memory, make_compressor
from codec.gradients.frame import read_frame
from codec.gradients.tensors import Array


def normal(size: int | tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def layered(seed: int = 0) -> list[Array]:
    """Tensors whose scales differ by orders of magnitude, as those of layers do."""
    shapes = [(64, 27), (64,), (128, 576), (128,), (10, 512), (10,)]
    return [
        np.float32(10.0 ** -(i % 4)) * normal(math.prod(s), seed + i).reshape(s)
        for i, s in enumerate(shapes)
    ]


def entropy_bytes(symbols: NDArray[np.int32]) -> float:
    frequency = np.bincount(symbols) / len(symbols)
    frequency = frequency[frequency > 0]
    return float(-len(symbols) * (frequency * np.log2(frequency)).sum() / 8)


def round_trip(
    compressor: GradientCompressor,
    gradient: list[Array],
    seed: int = 0,
    memory: Memory | None = None,
) -> tuple[bytes, list[Array], Memory]:
    data, memory = compressor.compress(gradient, memory, generator(seed))
    return data, compressor.decompress(data), memory or []


def relative_error(decoded: Array, truth: Array) -> float:
    difference = np.square(decoded - truth, dtype=np.float64).sum()
    return float(difference / np.square(truth, dtype=np.float64).sum())


@pytest.mark.parametrize(("levels", "bucket"), [(1, 64), (4, 512), (16, 512), (255, 128)])
def test_qsgd_variance_bound(levels: int, bucket: int) -> None:
    """Lemma 3.1: at most min(d / s^2, sqrt(d) / s) times the squared norm."""
    truth, compressor = normal(4096), make_compressor("qsgd", levels=levels, bucket=bucket)
    errors = [
        relative_error(round_trip(compressor, [truth], seed)[1][0], truth) for seed in range(100)
    ]
    assert np.mean(errors) <= min(bucket / levels**2, math.sqrt(bucket) / levels)


def test_qsgd_values_lie_on_the_grid() -> None:
    truth = normal(1000)
    data, (decoded,), _ = round_trip(make_compressor("qsgd", levels=5, bucket=1000), [truth])
    words = decode_words(read_frame(data, 1, parameters=2, sections=3).sections[0], 1, 2)
    norm = float((words.astype(np.uint32) << 16).view(np.float32)[0])
    assert np.linalg.norm(truth) <= norm <= np.linalg.norm(truth) * (1 + 2**-7)
    steps = decoded / (norm / 5)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-5)
    assert np.all(np.abs(decoded - truth) <= norm / 5 * (1 + 1e-6))


@pytest.mark.parametrize("levels", [1, 4, 16, 255])
@pytest.mark.parametrize("gradient", [layered(), [normal(200_000)]], ids=["layered", "normal"])
def test_qsgd_size_is_near_the_entropy(levels: int, gradient: list[Array]) -> None:
    data, _, _ = round_trip(make_compressor("qsgd", levels=levels), gradient)
    frame = read_frame(data, 1, parameters=2, sections=3)
    symbols = decode_integers(frame.sections[1], frame.coordinates, levels)
    buckets = sum(-(-tensor.size // 512) for tensor in gradient)
    bound = entropy_bytes(symbols) + np.count_nonzero(symbols) / 8 + 2 * buckets
    assert len(data) <= 1.05 * bound + 64


def test_qsgd_whole_levels_are_exact() -> None:
    """A vector that the grid holds is decoded exactly, whatever the random numbers."""
    truth = np.zeros(64, np.float32)
    truth[:16] = [4, -4] * 8  # norm 16, representable; level 4 of 16
    for seed in range(20):
        _, (decoded,), _ = round_trip(make_compressor("qsgd", levels=16, bucket=64), [truth], seed)
        assert np.array_equal(decoded, truth)


@pytest.mark.parametrize("bits", [16, 32])
def test_top_k_sends_the_largest(bits: int) -> None:
    gradient = layered()
    _, decoded, _ = round_trip(make_compressor("top-k", density=0.02, bits=bits), gradient)
    truth = np.concatenate([a.ravel() for a in gradient])
    found = np.concatenate([a.ravel() for a in decoded])
    count = math.ceil(0.02 * len(truth))
    expected = np.argsort(-np.abs(truth))[:count]
    assert set(np.flatnonzero(found)) == set(expected)
    np.testing.assert_allclose(found[expected], truth[expected], rtol=2**-11 if bits == 16 else 0)


@pytest.mark.parametrize(("size", "density"), [(10_000, 0.001), (200_000, 0.01), (200_000, 0.3)])
def test_top_k_indices_cost_near_log2_of_the_binomial(size: int, density: float) -> None:
    truth = normal(size)
    data, (decoded,), _ = round_trip(make_compressor("top-k", density=density), [truth])
    sent = decoded[decoded != 0]
    index_bytes = len(data) - len(encode_floats(sent))
    count = len(sent)
    log_binomial = math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)
    assert index_bytes <= 1.05 * log_binomial / math.log(2) / 8 + 64


def test_top_k_of_equal_magnitudes_takes_the_first() -> None:
    _, (decoded,), memory = round_trip(
        make_compressor("top-k", density=0.5), [np.array([1, -1, 1, -1, 0, 1], np.float32)]
    )
    assert decoded.tolist() == [1, -1, 1, 0, 0, 0]
    assert memory[0].tolist() == [0, 0, 0, -1, 0, 1]


def test_top_k_of_everything_in_float32_is_lossless() -> None:
    gradient = layered()
    _, decoded, memory = round_trip(make_compressor("top-k", density=1.0), gradient)
    assert all(np.array_equal(a, b) for a, b in zip(decoded, gradient, strict=True))
    assert not any(a.any() for a in memory)


def test_fp32_saves_on_exponents_and_fp16_keeps_eleven_bits() -> None:
    gradient = layered()
    count = sum(a.size for a in gradient)
    data, _, _ = round_trip(make_compressor("fp32"), gradient)
    assert len(data) <= 27.5 / 8 * count
    data, decoded, _ = round_trip(make_compressor("fp16"), gradient)
    assert len(data) <= 14.5 / 8 * count
    for found, truth in zip(decoded, gradient, strict=True):
        np.testing.assert_allclose(found, truth, rtol=2**-11, atol=2**-29 * np.abs(truth).max())


def test_terngrad_is_ternary_and_clipped() -> None:
    gradient = layered()
    data, decoded, _ = round_trip(make_compressor("terngrad"), gradient)
    symbols = []
    for found, truth in zip(decoded, gradient, strict=True):
        largest = min(np.abs(truth).max(), 2.5 * math.sqrt(np.square(truth).mean()))
        np.testing.assert_allclose(np.abs(found[found != 0]), largest, rtol=1e-6)
        symbols.append((found != 0).ravel())
    sent = np.concatenate(symbols)
    bound = entropy_bytes(sent.astype(int)) + sent.sum() / 8 + 4 * len(gradient)
    assert len(data) <= 1.05 * bound + 64


def test_sign_contracts_by_the_density_of_the_tensor() -> None:
    """Karimireddy 2019: the error is (1 - |p|_1^2 / (d |p|_2^2)) |p|_2^2."""
    gradient = layered()
    data, decoded, _ = round_trip(make_compressor("sign"), gradient)
    for found, truth in zip(decoded, gradient, strict=True):
        wide = truth.astype(np.float64)
        density = np.abs(wide).sum() ** 2 / (wide.size * np.square(wide).sum())
        assert relative_error(found, truth) == pytest.approx(1 - density, rel=1e-4)
    assert len(data) <= sum(a.size for a in gradient) / 8 + 5 * len(gradient) + 64


def test_rand_k_variance_and_size() -> None:
    """(n / k - 1) times the squared norm; the indices cost a seed."""
    truth, compressor = normal(5000), make_compressor("rand-k", density=0.1)
    errors, places = [], np.zeros(5000)
    for seed in range(300):
        data, (decoded,), _ = round_trip(compressor, [truth], seed)
        errors.append(relative_error(decoded, truth))
        places += decoded != 0
    assert np.mean(errors) == pytest.approx(9, rel=0.02)
    assert len(data) <= 4 * 500 + 40
    # Every coordinate is drawn with probability 0.1: binomial(300, 0.1) over 5000 of them.
    assert np.square(places - 30).mean() == pytest.approx(300 * 0.1 * 0.9, rel=0.15)


def test_powersgd_recovers_low_rank_in_one_step() -> None:
    truth = normal((60, 3)) @ normal((3, 90), seed=1)
    gradient = [truth.reshape(60, 9, 10)]
    data, (decoded,), memory = round_trip(make_compressor("powersgd", rank=3), gradient)
    np.testing.assert_allclose(decoded, gradient[0], atol=1e-4)
    assert np.abs(memory[0]).max() < 1e-4
    assert len(data) <= 4 * 3 * (60 + 90) + 64


def test_powersgd_warm_start_converges_to_the_best_rank() -> None:
    """Theorem I: on a constant matrix the warm start is subspace iteration."""
    left, right = np.linalg.qr(normal((50, 50)))[0], np.linalg.qr(normal((40, 40)))[0]
    spectrum = 0.6 ** np.arange(40)
    truth = ((left[:, :40] * spectrum) @ right.T).astype(np.float32)
    best = math.sqrt(np.square(spectrum[2:]).sum())
    compressor, errors = make_compressor("powersgd", rank=2), []
    memory: Memory | None = None
    for seed in range(12):
        _, (decoded,), memory = round_trip(compressor, [truth], seed, memory)
        errors.append(np.linalg.norm(decoded - truth))
        memory[0][...] = 0  # without feedback the input stays the same
    assert errors[0] > 1.05 * best
    assert errors[-1] == pytest.approx(best, rel=1e-3)


def test_powersgd_decodes_the_projection_on_its_left_factor() -> None:
    truth = normal((50, 40))
    _, (decoded,), memory = round_trip(make_compressor("powersgd", rank=4), [truth])
    assert np.linalg.matrix_rank(decoded, tol=1e-3) == 4
    assert abs((decoded * memory[0]).sum()) < 1e-3 * np.square(truth).sum()


@pytest.mark.parametrize(("bits", "error"), [(1, 0.571), (2, 0.133), (3, 0.0358), (4, 0.00959)])
def test_eden_error_and_size_on_normal_input(bits: int, error: float) -> None:
    truth, compressor = normal(65536), make_compressor("eden", bits=bits)
    errors = [
        relative_error(round_trip(compressor, [truth], seed)[1][0], truth) for seed in range(5)
    ]
    assert np.mean(errors) == pytest.approx(error, rel=0.03)
    entropy = {1: 1.0, 2: 1.9111, 3: 2.8249, 4: 3.7653}[bits]
    data, _, _ = round_trip(compressor, [truth])
    assert len(data) <= 1.01 * entropy * 65536 / 8 + 64


def test_eden_error_does_not_depend_on_the_distribution() -> None:
    """The rotation makes heavy tails look normal."""
    draw = normal(65536).astype(np.float64)
    truth = (np.sign(draw) * np.exp(1.5 * np.abs(draw))).astype(np.float32)
    compressor = make_compressor("eden", bits=2)
    errors = [
        relative_error(round_trip(compressor, [truth], seed)[1][0], truth) for seed in range(5)
    ]
    assert np.mean(errors) == pytest.approx(0.133, rel=0.03)


@pytest.mark.parametrize("bits", [0.1, 0.5, 0.9])
def test_eden_below_one_bit_is_one_bit_of_a_share_of_the_coordinates(bits: float) -> None:
    """The error is (1 + 0.571) / bits - 1 times the squared norm; the indices cost a seed."""
    truth, compressor = normal(65536), make_compressor("eden", bits=bits)
    results = [round_trip(compressor, [truth], seed) for seed in range(5)]
    errors = [relative_error(decoded, truth) for _, (decoded,), _ in results]
    assert np.mean(errors) == pytest.approx(1.571 / bits - 1, rel=0.05)
    count = math.ceil(bits * len(truth))
    assert 0.99 * count <= np.count_nonzero(results[0][1][0]) <= count
    assert len(results[0][0]) <= 1.01 * bits * 65536 / 8 + 64


def test_qsgd_with_a_norm_a_tensor_takes_fewer_bytes_at_less_error() -> None:
    """Where a tensor's rows are of different scales, as those of filters are."""
    scales = np.exp(np.random.default_rng(4).uniform(-6, 0, (256, 1))).astype(np.float32)
    gradient = [scales * normal((256, 1152), 1), scales[:10] * normal((10, 512), 2)]
    truth = np.concatenate([part.ravel() for part in gradient])

    def found(levels: int, bucket: int) -> tuple[int, float]:
        compressor = make_compressor("qsgd", levels=levels, bucket=bucket)
        data, decoded, _ = round_trip(compressor, gradient)
        return len(data), relative_error(np.concatenate([d.ravel() for d in decoded]), truth)

    size, error = found(63, 0)
    other_size, other_error = found(3, 512)
    assert size < other_size and error < other_error
    worst = max(part.size for part in gradient)
    assert error <= min(worst / 63**2, math.sqrt(worst) / 63)


def test_two_bits_of_a_value_are_the_best_two_magnitudes() -> None:
    gradient = [normal(4000, 3)]
    data, (decoded,), _ = round_trip(make_compressor("top-k", density=0.05, bits=2), gradient)
    _, (exact,), _ = round_trip(make_compressor("top-k", density=0.05), gradient)
    assert np.array_equal(np.sign(decoded), np.sign(exact))
    sent = np.sort(np.abs(exact[exact != 0]))
    pair = np.unique(np.abs(decoded[decoded != 0]))
    assert len(pair) == 2
    least = min(
        np.square(part - part.mean()).sum() + np.square(rest - rest.mean()).sum()
        for cut in range(1, len(sent))
        for part, rest in [(sent[:cut].astype(np.float64), sent[cut:].astype(np.float64))]
    )
    error = np.square(decoded.astype(np.float64) - exact).sum()
    assert error == pytest.approx(least, rel=1e-5)
    # Indices near log2 of the binomial, and at most two bits a value.
    count, size = len(sent), 4000
    log_binomial = math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)
    assert len(data) <= 1.05 * log_binomial / math.log(2) / 8 + 2 * count / 8 + 64


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [3.0], [2.0, -2.0], [1.0, -1.0, 5.0]])
def test_few_values_of_two_bits_are_exact(values: list[float]) -> None:
    truth = np.array(values, np.float32)
    _, (decoded,), memory = round_trip(make_compressor("top-k", density=1.0, bits=2), [truth])
    assert np.array_equal(decoded, truth) and not memory[0].any()
