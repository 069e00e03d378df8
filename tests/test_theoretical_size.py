"""Serialized size of every compressor beside the theoretical one, on a real gradient."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from codec import PayloadError, generator
from codec.gradients import GradientCompressor, make_compressor
from codec.gradients.joined import joined
from codec.gradients.majority_vote import Ballot
from codec.gradients.tensors import Array
from fl_app.data import load
from fl_app.models import SmallResNet
from sim.compare.theoretical_size import entropy_bits, theoretical_size

COMPRESSORS = [
    make_compressor("fp32"),
    make_compressor("fp16"),
    *[make_compressor("qsgd", levels=2**bits - 1) for bits in (1, 2, 4, 7)],
    *[make_compressor("qsgd", levels=2**bits - 1, bucket=0) for bits in (6, 10)],
    make_compressor("terngrad"),
    make_compressor("sign"),
    *[make_compressor("top-k", density=density) for density in (0.001, 0.01, 0.1)],
    *[make_compressor("top-k", density=0.01, bits=bits) for bits in (2, 16)],
    make_compressor("rand-k", density=0.01),
    *[make_compressor("powersgd", rank=rank) for rank in (1, 2, 4)],
    *[make_compressor("eden", bits=bits) for bits in (0.1, 1, 2, 4)],
    Ballot(),
]


@pytest.fixture(scope="module")
def gradient() -> list[Array]:
    """Gradient of 64 digits after a few steps, of as many coordinates as ResNet-20 has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = SmallResNet(1, 10, width=30)
    images = load("mnist5k", "train", "")
    samples = torch.from_numpy(images.samples[:320]).float() / 255
    targets = torch.from_numpy(images.labels[:320].astype(np.int64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for start in range(0, 320, 64):
        optimizer.zero_grad()
        batch = slice(start, start + 64)
        nn.functional.cross_entropy(model(samples[batch]), targets[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.set_num_threads(threads)
    return [p.grad.numpy() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_serialized_size_is_near_the_theoretical(
    compressor: GradientCompressor, gradient: list[Array]
) -> None:
    n = sum(part.size for part in gradient)
    assert 230_000 < n < 310_000
    compressor = joined(compressor)
    data, _ = compressor.compress(gradient, None, generator(1))
    theory = theoretical_size(compressor, data, [part.shape for part in gradient])
    print(
        f"{compressor!r}: {len(data)} bytes, textbook {theory.textbook:.0f} "
        f"({len(data) / theory.textbook:.3f}), entropy {theory.entropy:.0f} "
        f"({len(data) / theory.entropy:.3f})"
    )
    assert len(data) <= 1.05 * theory.textbook
    # 50 bytes of headers weigh in a message of a kilobyte.
    share = 0.12 if "TopK(density=0.01, bits=2)" in repr(compressor) else 0.05  # mostly indices
    assert abs(len(data) - theory.entropy) <= share * theory.entropy + 50


@pytest.mark.parametrize(
    ("name", "options", "bits"),
    [
        ("fp32", {}, lambda n: 32 * n),
        ("fp16", {}, lambda n: 16 * n + 16),
        ("sign", {}, lambda n: n + 32),
        ("top-k", {"density": 0.1}, lambda n: 32 * n // 10 + math.log2(math.comb(n, n // 10))),
        ("rand-k", {"density": 0.1}, lambda n: 32 * n // 10 + 32),
    ],
)
def test_textbook_sizes(name: str, options: dict[str, float], bits: object) -> None:
    compressor = make_compressor(name, **options)
    vector = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    data, _ = compressor.compress([vector], None, generator(1))
    assert callable(bits)
    assert 8 * theoretical_size(compressor, data).textbook == pytest.approx(bits(5000), rel=1e-9)


def test_textbook_size_of_powersgd_counts_its_factors() -> None:
    shapes = [(16, 3, 3, 3), (16,), (64, 16, 3, 3), (10, 64), (2, 2), (8, 0)]
    random = np.random.default_rng(0)
    gradient = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    compressor = make_compressor("powersgd", rank=2)
    data, _ = compressor.compress(gradient, None, generator(1))
    floats = 2 * (16 + 27) + 16 + 2 * (64 + 144) + 2 * (10 + 64) + 4
    assert theoretical_size(compressor, data).textbook == 4 * floats


def test_discrete_values_are_counted_at_their_entropy() -> None:
    vector = np.zeros(1 << 16, np.float32)
    vector[: 1 << 14] = 1  # a quarter of them, all sent: entropy 0.8113 bits
    compressor = make_compressor("terngrad", clip=math.inf)
    data, _ = compressor.compress([vector], None, generator(1))
    expected = 0.811278 * (1 << 16) + (1 << 14) + 32
    assert 8 * theoretical_size(compressor, data).textbook == pytest.approx(expected, rel=1e-5)
    assert entropy_bits(np.zeros(0, np.int64)) == entropy_bits(np.ones(9, np.int64)) == 0
    assert entropy_bits(np.arange(256)) == 8 * 256


def test_malformed_bytes_are_refused() -> None:
    data, _ = make_compressor("fp32").compress([np.ones(9, np.float32)], None, generator(1))
    with pytest.raises(PayloadError):
        theoretical_size(make_compressor("fp32"), data[:-1])
    with pytest.raises(PayloadError):
        theoretical_size(make_compressor("sign"), data)
