"""The loss gradient at a batch equals the one autograd takes of the plain mean loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codec import CodecOptions, SampleSpec, batch_gradient, decode_samples, encode_samples

SPEC = SampleSpec((3, 8, 8), classes=4)
TABLE = SampleSpec((5,), "float32", -2.0, 3.0, 0, 2)
PER_SAMPLE = nn.CrossEntropyLoss(reduction="none")


def network(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    middle: nn.Module = nn.BatchNorm2d(4) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, 4, 3), middle, nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 4))


def images(count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8), rng.integers(0, 4, count)


def ones(count: int) -> NDArray[np.float32]:
    return np.ones(count, np.float32)


def plain_gradient(model: nn.Module, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_close(one: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", [False, True])
def test_equals_autograd_of_the_mean_loss(norm: bool) -> None:
    samples, targets = images(16)
    gradient = batch_gradient(
        network(norm), PER_SAMPLE, samples, targets, ones(16), spec=SPEC, batch_size=16
    )
    reference = network(norm)
    inputs = torch.from_numpy(samples).float() / 255
    loss = nn.CrossEntropyLoss()(reference(inputs), torch.from_numpy(targets))
    assert_close(gradient, plain_gradient(reference, loss))


def test_gradients_are_left_as_they_were() -> None:
    samples, targets = images(4)
    model = network()
    batch_gradient(model, PER_SAMPLE, samples, targets, ones(4), spec=SPEC, batch_size=4)
    assert all(p.grad is None for p in model.parameters())


def test_weights_and_batch_size_scale_each_sample() -> None:
    samples, targets = images(6)
    weights = np.array([1, 4, 0, 2, 0.5, 8], np.float32)
    gradient = batch_gradient(
        network(), PER_SAMPLE, samples, targets, weights, spec=SPEC, batch_size=10
    )
    one_by_one = [
        batch_gradient(
            network(), PER_SAMPLE, samples[i : i + 1], targets[i : i + 1], ones(1), spec=SPEC,
            batch_size=1,
        )
        for i in range(6)
    ]  # fmt: skip
    expected = [
        sum((g * w for g, w in zip(column, weights.tolist(), strict=True)), torch.tensor(0.0)) / 10
        for column in zip(*one_by_one, strict=True)
    ]
    assert_close(gradient, expected)


def test_inverse_probability_weights_give_the_whole_batch_on_average() -> None:
    samples, targets = images(8)
    whole = batch_gradient(
        network(), PER_SAMPLE, samples, targets, ones(8), spec=SPEC, batch_size=8
    )
    inclusion = np.array([256, 128, 64, 256, 128, 128, 64, 256])
    rng = np.random.default_rng(0)
    mean = torch.zeros_like(whole[0])
    square = torch.zeros_like(whole[0])
    draws = 400
    for _ in range(draws):
        kept = rng.integers(0, 256, 8) < inclusion
        weights = (256 / inclusion[kept]).astype(np.float32)
        gradient = batch_gradient(
            network(), PER_SAMPLE, samples[kept], targets[kept], weights, spec=SPEC, batch_size=8
        )[0]
        mean += gradient / draws
        square += gradient**2 / draws
    spread = torch.sqrt((square - mean**2) / draws)
    assert ((mean - whole[0]).abs() <= 5 * spread + 1e-6).all()


def test_no_samples_give_zeros() -> None:
    samples, targets = images(0)
    model = network()
    gradient = batch_gradient(
        model, PER_SAMPLE, samples, targets, ones(0), spec=SPEC, batch_size=32
    )
    assert [g.shape for g in gradient] == [p.shape for p in model.parameters()]
    assert not any(g.any() for g in gradient)


def test_frozen_parameters_are_left_out() -> None:
    samples, targets = images(5)
    arguments: dict[str, Any] = {"spec": SPEC, "batch_size": 5}
    every = batch_gradient(network(), PER_SAMPLE, samples, targets, ones(5), **arguments)
    model = network()
    model[0].requires_grad_(False)  # type: ignore[index]
    assert_close(
        batch_gradient(model, PER_SAMPLE, samples, targets, ones(5), **arguments), every[2:]
    )
    model.requires_grad_(False)
    assert batch_gradient(model, PER_SAMPLE, samples, targets, ones(5), **arguments) == []


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(3))
        self.body = network()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs)
        return outputs


def test_a_parameter_that_takes_no_part_has_a_zero() -> None:
    samples, targets = images(5)
    gradient = batch_gradient(
        Unused(), PER_SAMPLE, samples, targets, ones(5), spec=SPEC, batch_size=5
    )
    assert not gradient[0].any()
    assert gradient[1].any()


def test_regression() -> None:
    rng = np.random.default_rng(0)
    samples = rng.uniform(-2, 3, (9, 5)).astype(np.float32)
    targets = rng.normal(size=(9, 2)).astype(np.float32)
    torch.manual_seed(0)
    model = nn.Linear(5, 2)
    gradient = batch_gradient(
        model, nn.MSELoss(reduction="none"), samples, targets, ones(9), spec=TABLE, batch_size=9
    )
    inputs = torch.from_numpy((samples + 2) / 5)
    loss = nn.MSELoss()(model(inputs), torch.from_numpy(targets))
    assert_close(gradient, plain_gradient(model, loss))


def test_the_range_is_mapped_to_zero_and_one() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs)
            return super().forward(inputs)

    samples = np.array([[-2, 3, 0.5, -2, 3]], np.float32)
    batch_gradient(
        Spy(5, 2), nn.MSELoss(reduction="none"), samples, np.zeros((1, 2), np.float32), ones(1),
        spec=TABLE, batch_size=1,
    )  # fmt: skip
    assert seen[0].tolist() == [[0, 1, 0.5, 0, 1]]


def test_what_was_decoded_is_taken_as_it_is() -> None:
    # Lossless coding and no filter: the gradient of the original samples.
    samples, targets = images(12)
    spec = SampleSpec((3, 8, 8), classes=4, codec=CodecOptions("lossless"))
    decoded = decode_samples(encode_samples(samples, targets, spec))
    arguments: dict[str, Any] = {"spec": spec, "batch_size": 12}
    ours = batch_gradient(
        network(True), PER_SAMPLE, decoded.samples, decoded.targets, decoded.weights, **arguments
    )
    original = batch_gradient(network(True), PER_SAMPLE, samples, targets, ones(12), **arguments)
    for a, b in zip(ours, original, strict=True):
        assert torch.equal(a, b)
