"""The server's model takes the same steps as plain PyTorch."""

import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn

from codec import OptionError, SampleSpec, per_sample_criterion
from strategies.errors import CheckpointError
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
    with pytest.raises(
        ValueError, match=r"^amp = 'sometimes' must be 'auto', 'fastest', True or False$"
    ):
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


@pytest.mark.parametrize("native", [True, False])
def test_fastest_takes_bf16_where_there_are_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, native: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    caplog.set_level(logging.WARNING, logger="flwr")
    assert ServerModel(_mlp(), _sgd, device="cpu", amp="fastest").amp is native
    assert not ServerModel(_mlp(), _sgd, device="cpu").amp  # auto
    assert "bf16" not in caplog.text
    assert ServerModel(_mlp(), _sgd, device="cpu", amp=True).amp
    assert ("cpu has no instructions for it" in caplog.text) is not native


def test_probe_gives_the_output_shape() -> None:
    server = ServerModel(_mlp(), _sgd, device="cpu")
    assert server.probe((3, 2, 2)) == (3,)
    with pytest.raises(RuntimeError):
        server.probe((5,))


def _bn_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def test_average_of_the_weights_is_what_is_evaluated_and_sent() -> None:
    server = ServerModel(_bn_model, _sgd, device="cpu", ema_decay=0.6)
    expected: dict[str, torch.Tensor] = {}
    for number in range(8):
        server.step(_batch(seed=number))
        kept = min(0.6, (1 + number) / (10 + number)) if expected else 0.0
        for name, value in server.model.state_dict().items():
            before = expected.get(name, value)
            whole = not value.is_floating_point()
            expected[name] = (
                value.clone() if whole else kept * before + (1 - kept) * value.detach().clone()
            )
    sent = server.state_arrays().to_torch_state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(sent[name], value)
        assert name.endswith("num_batches_tracked") or not torch.equal(
            value, server.model.state_dict()[name]
        )
    samples, targets, _ = _batch(50, seed=99)
    with torch.no_grad():
        outputs = server.inference_model.eval()(samples)
    loss, accuracy = server.evaluate(samples, targets)
    assert loss == pytest.approx(float(nn.functional.cross_entropy(outputs, targets)))
    assert accuracy == pytest.approx(float((outputs.argmax(1) == targets).float().mean()))


def test_calibration_is_that_of_torch_for_averaged_weights() -> None:
    server = ServerModel(_bn_model, _sgd, device="cpu", ema_decay=0.6, channels_last=True)
    for number in range(8):
        server.step(_batch(seed=number))
    trained = copy.deepcopy(server.model.state_dict())
    batches = [_batch(size, seed=90 + size)[0] for size in (5, 1, 7)]
    expected = copy.deepcopy(server.inference_model)
    torch.optim.swa_utils.update_bn([batches[0], batches[2]], expected)
    server.calibrate(batches)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(server.inference_model.state_dict()[name], value)
    assert not server.inference_model.training
    for name, value in trained.items():
        assert torch.equal(server.model.state_dict()[name], value), name
    server.calibrate([])
    server.calibrate([_batch(1)[0]])
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(server.inference_model.state_dict()[name], value)


def test_without_an_average_nothing_is_calibrated() -> None:
    server = ServerModel(_bn_model, _sgd, device="cpu")
    before = copy.deepcopy(server.model.state_dict())
    server.calibrate([_batch()[0]])
    assert all(torch.equal(server.model.state_dict()[name], before[name]) for name in before)
    assert not server.averages_normalization
    assert not ServerModel(_mlp(), _sgd, device="cpu", ema_decay=0.6).averages_normalization


def test_average_survives_a_checkpoint_and_is_part_of_it() -> None:
    server = ServerModel(_bn_model, _sgd, device="cpu", ema_decay=0.9)
    server.step(_batch())
    state = copy.deepcopy(server.state())
    server.step(_batch(seed=1))
    again = ServerModel(_bn_model, _sgd, device="cpu", ema_decay=0.9)
    again.restore(state)
    again.step(_batch(seed=1))
    own, other = (one.state_arrays().to_torch_state_dict() for one in (server, again))
    assert all(torch.equal(own[name], other[name]) for name in own)
    plain = ServerModel(_bn_model, _sgd, device="cpu")
    with pytest.raises(CheckpointError, match="averaged"):
        plain.restore(state)


def test_a_rehearsal_leaves_no_trace_in_the_average() -> None:
    server = ServerModel(_bn_model, _sgd, device="cpu", ema_decay=0.9)
    before = copy.deepcopy(server.state())
    server.rehearse(SampleSpec((3, 2, 2), "uint8", 0, 255, 3), "unit", 4, per_sample=False)
    after = server.state()
    assert all(
        torch.equal(before["averaged"][name], after["averaged"][name])
        for name in before["averaged"]
    )


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_decay_of_the_average_is_a_share(decay: float) -> None:
    with pytest.raises(OptionError, match="ema_decay"):
        ServerModel(_mlp(), _sgd, device="cpu", ema_decay=decay)


def test_flipped_evaluation_does_not_tell_an_image_from_its_mirror_image() -> None:
    server = ServerModel(_bn_model, _sgd, device="cpu")
    samples, targets, _ = _batch(40)
    once, _ = server.evaluate(samples, targets)
    mirrored, _ = server.evaluate(samples.flip(-1), targets)
    both = [server.evaluate(x, targets, flip=True)[0] for x in (samples, samples.flip(-1))]
    assert once != pytest.approx(mirrored)
    assert both[0] == pytest.approx(both[1])
    with torch.no_grad():
        model = server.model.eval()
        outputs = (model(samples) + model(samples.flip(-1))) / 2
    assert both[0] == pytest.approx(float(nn.functional.cross_entropy(outputs, targets)))
