import numpy as np
import pytest
import torch
from torch import nn

from codec import PayloadError
from codec.learning.batch_norm import (
    decode_statistics,
    encode_statistics,
    fresh_statistics,
    pooled_statistics,
    statistics,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Dropout(0.5),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.Flatten(),
        nn.BatchNorm1d(16),
    )


def batch(count: int, seed: int = 0) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return 3 * torch.rand(count, 3, 4, 4, generator=stream) + 1


def test_statistics_are_those_that_batch_normalization_keeps() -> None:
    model = network()
    found = statistics(model)
    assert [tuple(tensor.shape) for tensor in found] == [(3,), (3,), (16,), (16,)]
    assert found[0] is model[0].running_mean and found[1] is model[0].running_var
    assert statistics(nn.Linear(2, 2)) == []


def test_fresh_statistics_are_the_average_over_the_batches() -> None:
    model = network()
    model[0].running_mean.fill_(100)
    batches = [batch(8, seed) for seed in range(3)]
    with torch.no_grad(), fresh_statistics(model):
        assert model[6].training and not model[1].training
        for part in batches:
            model(part)
    mean, variance = statistics(model)[:2]
    torch.testing.assert_close(mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(variance, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    assert model[0].momentum == 0.1


def test_momentum_comes_back_after_an_error() -> None:
    model = network()
    with pytest.raises(RuntimeError), fresh_statistics(model):
        model(torch.zeros(2, 5, 4, 4))
    assert model[0].momentum == 0.1


def test_half_precision_is_enough_and_tight() -> None:
    random = np.random.default_rng(0)
    arrays = [
        part
        for _ in range(20)
        for part in (
            random.standard_normal(64).astype(np.float32),
            (10.0 ** random.uniform(-3, 5, 64)).astype(np.float32),
        )
    ]
    data = encode_statistics(arrays)
    shapes = [part.shape for part in arrays]
    for found, truth in zip(decode_statistics(data, shapes), arrays, strict=True):
        np.testing.assert_allclose(found, truth, rtol=2**-11)
    assert len(data) <= 2 * 64 * 40 + 4 * 40 + 20


def test_bad_statistics_are_refused() -> None:
    good = [np.zeros(3, np.float32), np.ones(3, np.float32)]
    data = encode_statistics(good)
    with pytest.raises(PayloadError):
        decode_statistics(data[:-1], [(3,), (3,)])
    with pytest.raises(PayloadError, match="shapes"):
        decode_statistics(data, [(3,), (4,)])
    with pytest.raises(PayloadError, match="variance of -1"):
        decode_statistics(encode_statistics([good[0], -good[1]]), [(3,), (3,)])


def test_pooled_statistics_are_those_of_the_union() -> None:
    random = np.random.default_rng(0)
    sets = [random.normal(k, k + 1, (10 * (k + 1), 5)).astype(np.float32) for k in range(3)]
    parts = [[part.mean(0), part.var(0)] for part in sets]
    mean, variance = pooled_statistics(parts, [len(part) for part in sets])
    union = np.concatenate(sets)
    np.testing.assert_allclose(mean, union.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, union.var(0), rtol=1e-4)
    assert mean.dtype == np.float32
