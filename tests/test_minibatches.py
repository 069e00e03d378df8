import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clients import ArraySource
from clients.baselines.minibatches import Minibatches, epoch_minibatch
from codec import CodecError, per_sample_criterion
from codec.learning.batch_norm import decode_statistics
from codec.messages import TrainingRequest


def source(count: int = 23) -> ArraySource:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)
    return ArraySource(samples, rng.integers(0, 3, count), 3, 0.0, 255.0)


def minibatches(count: int = 23, size: int = 5, **options: object) -> Minibatches:
    return Minibatches(source(count), 2, 7, size, per_sample_criterion(None), **options)  # type: ignore[arg-type]


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(dropout), nn.Linear(16, 3))


@pytest.mark.parametrize(("length", "size"), [(23, 5), (20, 5), (5, 5), (7, 1)])
def test_an_epoch_takes_no_sample_twice(length: int, size: int) -> None:
    per_epoch = length // size
    epochs = []
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        drawn = [epoch_minibatch(length, size, step, 7, 2) for step in steps]
        assert all(len(part) == size for part in drawn)
        indices = np.concatenate(drawn)
        assert len(np.unique(indices)) == len(indices) == per_epoch * size
        assert indices.min() >= 0 and indices.max() < length
        epochs.append(indices.tolist())
    assert epochs[0] != epochs[1] != epochs[2]


def test_every_sample_gets_its_turn_over_the_epochs() -> None:
    drawn = np.concatenate([epoch_minibatch(23, 5, step, 7, 2) for step in range(60)])
    assert set(drawn) == set(range(23))


def test_a_small_client_draws_all_it_has() -> None:
    assert sorted(epoch_minibatch(3, 8, 5, 7, 2)) == [0, 1, 2]


def test_minibatches_depend_on_seed_client_and_step_alone() -> None:
    first = epoch_minibatch(1000, 8, 4, 7, 2)
    assert np.array_equal(first, epoch_minibatch(1000, 8, 4, 7, 2))
    others = [epoch_minibatch(1000, 8, *key) for key in ((5, 7, 2), (4, 8, 2), (4, 7, 3))]
    assert not any(np.array_equal(first, other) for other in others)


def test_losses_are_those_of_the_minibatch() -> None:
    batches, model = minibatches(), network()
    losses = batches.losses(model, 3)
    indices = epoch_minibatch(23, 5, 3, 7, 2)
    samples = torch.from_numpy(source().samples[indices]).float() / 255
    expected = nn.functional.cross_entropy(
        network().train()(samples), torch.from_numpy(source().targets[indices]), reduction="none"
    )
    torch.testing.assert_close(losses, expected)
    assert losses.requires_grad


def test_dropout_and_augmentation_are_keyed_by_the_step() -> None:
    def noisy(samples: Tensor, stream: torch.Generator) -> Tensor:
        return samples + torch.rand(samples.shape, generator=stream)

    def sum_of(step: int, dropout: float, augment: object) -> float:
        return float(
            minibatches(5, 5, augment=augment).losses(network(dropout), step).detach().sum()
        )

    for dropout, augment in ((0.5, None), (0.0, noisy)):
        assert sum_of(1, dropout, augment) == sum_of(1, dropout, augment)
        assert sum_of(1, dropout, augment) != sum_of(2, dropout, augment)
        assert sum_of(1, dropout, augment) != sum_of(1, 0.0, None)


def test_torch_generator_is_left_alone() -> None:
    model = network(0.5)
    state = torch.random.get_rng_state()
    minibatches().losses(model, 1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_statistics_of_all_samples() -> None:
    model = network(0.5)
    mean, variance = minibatches(23, 5).statistics(model, 100, server_round=1)
    samples = source().samples.reshape(23, 16) / 255
    np.testing.assert_allclose(mean, samples.mean(axis=0), atol=0.02)  # parts of 5 and 6
    np.testing.assert_allclose(variance, samples.var(axis=0), rtol=0.5)
    whole, _ = minibatches(23, 23).statistics(network(), 1, server_round=1)
    np.testing.assert_allclose(whole, samples.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(("count", "size"), [(2, 1), (3, 2), (9, 4), (9, 1)])
def test_no_batch_of_one_is_normalized(count: int, size: int) -> None:
    arrays = minibatches(count, size).statistics(network(), 4, server_round=1)
    assert len(arrays) == 2 and np.isfinite(arrays[1]).all()


def test_statistics_need_batch_normalization_and_two_samples() -> None:
    assert minibatches().statistics(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 4, 1) == []
    assert minibatches(1).statistics(network(), 4, 1) == []


def test_buffers_are_sent_when_asked_for() -> None:
    asked = TrainingRequest(server_round=1, seed=7, batch_size=5, buffers=2)
    silent = TrainingRequest(server_round=1, seed=7, batch_size=5)
    batches = Minibatches.of(asked, 2, source(), None, None)
    assert batches.buffers(network(), silent) is None
    data = batches.buffers(network(), asked)
    assert data is not None
    mean, _ = decode_statistics(data, [(16,), (16,)])
    np.testing.assert_allclose(mean, batches.statistics(network(), 2, 1)[0], rtol=1e-3)


def test_an_empty_client_is_named() -> None:
    with pytest.raises(CodecError, match="the data set has 0 samples"):
        _ = minibatches(0).spec
