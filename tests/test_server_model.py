"""The server's model takes the same steps as plain PyTorch."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from codec import per_sample_criterion
from strategies.server_model import ServerModel


def _mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))


def _sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)  # type: ignore[arg-type]


def _batch(size: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    samples = torch.rand(size, 3, 2, 2, generator=g)
    return samples, torch.randint(0, 3, (size,), generator=g), torch.ones(size)


def test_steps_equal_plain_torch() -> None:
    reference = _mlp()
    server = ServerModel(copy.deepcopy(reference), _sgd, device="cpu")
    optimizer = _sgd(reference.parameters())
    for seed in range(5):
        samples, targets, weights = _batch(seed=seed)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(reference(samples), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert float(server.step((samples, targets, weights))) == pytest.approx(loss.item())
    for own, other in zip(server.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own, other)
    assert server.steps_taken == 5


def test_weights_scale_losses_over_the_batch_size() -> None:
    server = ServerModel(_mlp(), _sgd, device="cpu")
    samples, targets, _ = _batch()
    weights = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 6.0])
    expected = nn.functional.cross_entropy(server.model(samples[5:]), targets[5:])
    assert float(server.step((samples, targets, weights))) == pytest.approx(expected.item())


def test_apply_gradient_equals_step() -> None:
    one = ServerModel(_mlp(), _sgd, device="cpu")
    other = ServerModel(_mlp(), _sgd, device="cpu")
    samples, targets, weights = _batch()
    loss = nn.functional.cross_entropy(one.model(samples), targets)
    one.apply_gradient(torch.autograd.grad(loss, one.trainable()))
    other.step((samples, targets, weights))
    for own, same in zip(one.trainable(), other.trainable(), strict=True):
        torch.testing.assert_close(own, same)


def test_objects_and_factories() -> None:
    model = _mlp()
    optimizer = _sgd(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    server = ServerModel(model, optimizer, None, scheduler, device="cpu")
    assert server.model is model and server.optimizer is optimizer
    server.step(_batch())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    made = ServerModel(
        _mlp, _sgd, None, lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5), device="cpu"
    )
    made.step(_batch())
    made.apply_gradient([torch.zeros_like(p) for p in made.trainable()])
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.025)


def test_foreign_optimizer_and_scheduler_are_refused() -> None:
    with pytest.raises(ValueError, match="parameters of another model"):
        ServerModel(_mlp(), _sgd(_mlp().parameters()))
    model = _mlp()
    scheduler = torch.optim.lr_scheduler.StepLR(_sgd(model.parameters()), 1)
    with pytest.raises(ValueError, match="another optimizer"):
        ServerModel(model, _sgd(model.parameters()), None, scheduler)
    with pytest.raises(ValueError, match=r"^amp = 'sometimes' must be 'auto', True or False$"):
        ServerModel(_mlp(), _sgd, amp="sometimes")


def test_frozen_parameters_stay() -> None:
    model = _mlp()
    first = next(model.parameters())
    first.requires_grad_(False)
    before = first.clone()
    server = ServerModel(model, _sgd, device="cpu")
    assert len(server.trainable()) == len(list(model.parameters())) - 1
    server.step(_batch())
    server.apply_gradient([torch.ones_like(p) for p in server.trainable()])
    assert torch.equal(first, before)


def test_criterion_gives_a_loss_per_sample() -> None:
    outputs, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    module = nn.CrossEntropyLoss(label_smoothing=0.1)
    losses = per_sample_criterion(module)(outputs, targets)
    assert losses.shape == (4,)
    assert float(losses.mean()) == pytest.approx(float(module(outputs, targets)))
    assert module.reduction == "mean"
    values = torch.randn(4, 3)
    torch.testing.assert_close(
        per_sample_criterion(None)(outputs, values), ((outputs - values) ** 2).mean(dim=1)
    )
    with pytest.raises(ValueError, match="one loss per sample"):
        per_sample_criterion(nn.functional.cross_entropy)(outputs, targets)


def test_evaluate_counts_every_sample_once() -> None:
    server = ServerModel(_mlp(), _sgd, device="cpu")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (25, 3, 2, 2), dtype=np.uint8)
    labels = rng.integers(0, 3, 25)
    loss, accuracy = server.evaluate(pixels, labels, batch_size=7, low=0, high=255)
    server.model.eval()
    outputs = server.model(torch.from_numpy(pixels).float() / 255)
    target = torch.from_numpy(labels)
    assert loss == pytest.approx(nn.functional.cross_entropy(outputs, target).item(), rel=1e-5)
    assert accuracy == pytest.approx(float((outputs.argmax(1) == target).float().mean()))


def test_evaluate_float_targets() -> None:
    server = ServerModel(nn.Linear(4, 2), _sgd, device="cpu")
    samples, targets = torch.rand(9, 4), torch.rand(9, 2)
    loss, accuracy = server.evaluate(samples, targets)
    expected = nn.functional.mse_loss(server.model(samples), targets)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert np.isnan(accuracy)


def test_state_round_trip_and_channels_last() -> None:
    def convolution() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 2))

    source = ServerModel(convolution, _sgd, device="cpu", channels_last=True)
    source.step((torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 0, 1]), torch.ones(4)))
    target = ServerModel(convolution, _sgd, device="cpu")
    target.load_arrays(source.state_arrays())
    for name, value in source.model.state_dict().items():
        assert torch.equal(value, target.model.state_dict()[name]), name


def test_bf16_autocast_stays_close() -> None:
    exact = ServerModel(_mlp(), _sgd, device="cpu")
    half = ServerModel(_mlp(), _sgd, device="cpu", amp=True)
    assert not exact.amp
    loss = float(exact.step(_batch()))
    assert float(half.step(_batch())) == pytest.approx(loss, rel=0.02)
    assert all(p.dtype == torch.float32 for p in half.trainable())


def test_probe_gives_the_output_shape() -> None:
    server = ServerModel(_mlp(), _sgd, device="cpu")
    assert server.probe((3, 2, 2)) == (3,)
    with pytest.raises(RuntimeError):
        server.probe((5,))
