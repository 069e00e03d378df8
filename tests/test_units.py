"""A model sees what the data set returns, in its units, at both ends and in the bank."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from codec import CodecOptions, SamplePayload, SampleSpec, encode_samples
from codec.learning.inputs import model_inputs
from strategies import SampleBank, ServerModel

LOSSLESS = CodecOptions("lossless")
EIGHT_BIT = SampleSpec((1, 4, 4), classes=9, codec=LOSSLESS)


def payload(
    samples: NDArray[Any],
    low: float,
    high: float,
    codec: CodecOptions = LOSSLESS,
    targets: NDArray[Any] | None = None,
) -> SamplePayload:
    """Samples whose labels count them, unless targets are given."""
    labels = np.arange(len(samples)) if targets is None else targets
    size = labels.shape[1] if labels.ndim > 1 else 0
    kind = {"classes": 50} if targets is None else {"target_size": size}
    spec = SampleSpec(samples.shape[1:], str(samples.dtype), low, high, codec=codec, **kind)
    return encode_samples(samples, labels, spec)


def drawn(bank: SampleBank, steps: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return everything of an epoch, in the order of the targets."""
    parts = list(bank.minibatches(len(bank) // steps, steps, np.random.default_rng(0)))
    samples, targets = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    order = targets.flatten().argsort(stable=True)
    return samples[order], targets[order]


def pixels(count: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("scale", "dtype", "factor"),
    [
        ("auto", "uint8", 255),
        ("unit", "uint8", 255),
        ("none", "uint8", 1),
        ("auto", "float32", 1),
        ("none", "float32", 1),
        ("unit", "float32", 400),
    ],
)
def test_bank_and_inputs_agree_for_every_scale(scale: str, dtype: str, factor: float) -> None:
    samples = pixels().astype(dtype)
    sent = payload(samples, 0, 255 if dtype == "uint8" else 400)
    bank = SampleBank(scale=scale)
    bank.add_payload(sent)
    seen, _ = drawn(bank)
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen, torch.from_numpy(samples).float() / factor)
    assert torch.equal(seen, model_inputs(samples, sent.spec, scale))


def test_normalized_images_reach_the_model_as_they_are() -> None:
    samples = ((pixels() / 255 - 0.1307) / 0.3081).astype(np.float32)
    bank = SampleBank()
    # Ranges are measured by payload.
    for part in (samples[:3], samples[3:]):
        bank.add_payload(payload(part, float(part.min()), float(part.max())))
    seen, _ = drawn(bank)
    assert {tuple(row.flatten().tolist()) for row in seen} == {
        tuple(row.flatten().tolist()) for row in torch.from_numpy(samples)
    }


def test_tokens_stay_integers() -> None:
    tokens = np.random.default_rng(0).integers(0, 30_000, (6, 7)).astype(np.int32)
    for scale in ("auto", "unit", "none"):
        bank = SampleBank(scale=scale)
        bank.add_payload(payload(tokens, 0, 30_000, CodecOptions()))
        seen, _ = drawn(bank)
        assert seen.dtype == torch.int64 and torch.equal(seen, torch.from_numpy(tokens).long())
    with pytest.raises(ValueError, match=r"floats or 8-bit values of shape .* not integers"):
        bank.add_payload(payload(tokens.astype(np.float32), 0, 30_000))


def test_a_device_with_floats_joins_those_with_bytes() -> None:
    bank = SampleBank()
    bank.add_payload(payload(pixels(), 0, 255))
    bank.add_payload(payload((pixels() / 255).astype(np.float32), 0, 1))
    bank.add_payload(payload(pixels(), 0, 255))
    seen, labels = drawn(bank)
    assert labels.tolist() == sorted([*range(6)] * 3)
    expected = torch.from_numpy(pixels()).float() / 255
    torch.testing.assert_close(seen, expected.repeat_interleave(3, dim=0))


@pytest.mark.parametrize("limit", [1, 200, 700, 1 << 20])
@pytest.mark.parametrize("order", [(0, 1, 0, 0, 1), (1, 0, 0, 1, 0), (0, 0, 0, 0, 1)])
def test_memory_limits_hold_whatever_comes(limit: int, order: tuple[int, ...]) -> None:
    bank = SampleBank(limit)
    both = (pixels(), (pixels() / 255).astype(np.float32))
    generator = np.random.default_rng(0)
    for position, which in enumerate(order):
        bank.add_payload(payload(both[which], 0, (255, 1)[which]))
        for samples, labels, _ in bank.minibatches(4, 2 + position, generator):
            expected = torch.from_numpy(pixels()[labels.numpy()]).float() / 255
            torch.testing.assert_close(samples, expected)
        assert bank.resident_bytes <= limit
    # Once all have come, an epoch has every sample once.
    list(bank.minibatches(5, 12, generator))
    bank._undrawn = bank._undrawn[:0]
    counted = [
        label for _, labels, _ in bank.minibatches(5, 6, generator) for label in labels.tolist()
    ]
    assert sorted(counted) == sorted([*range(6)] * 5)


def test_single_floats_and_vectors_of_one_are_one_kind() -> None:
    values = np.linspace(0, 1, 6, dtype=np.float32)
    bank = SampleBank(1)
    bank.add_payload(payload(pixels(), 0, 255, targets=values))
    bank.add_payload(payload(pixels(), 0, 255, targets=values[:, None]))
    for _ in range(3):
        _, targets = drawn(bank)
        assert targets.shape == (12,)
    with pytest.raises(ValueError, match=r"class labels of shape .* not .* float targets"):
        bank.add_payload(payload(pixels(), 0, 255))
    with pytest.raises(ValueError, match=r"of shape \(2,\), not"):
        bank.add_payload(payload(pixels(), 0, 255, targets=np.zeros((6, 2), np.float32)))


def server(model: nn.Module | None = None) -> ServerModel:
    torch.manual_seed(0)
    built = model or nn.Sequential(nn.Flatten(), nn.Linear(16, 9))
    return ServerModel(built, lambda p: torch.optim.SGD(p, lr=0.1), device="cpu")


def test_evaluation_of_nothing_is_no_number() -> None:
    for targets in (np.zeros(0, np.int64), np.zeros((0, 2), np.float32)):
        found = server().evaluate(np.zeros((0, 1, 4, 4), np.float32), targets)
        assert np.isnan(found).all()


def test_evaluation_sees_what_training_saw() -> None:
    labels = np.arange(6)
    evaluated = server().evaluate(pixels(), labels)
    assert evaluated == server().evaluate((pixels() / 255).astype(np.float32), labels)
    assert evaluated == server().evaluate(pixels(), labels, high=255.0)
    assert evaluated == server().evaluate(pixels().astype(np.int64), labels, low=0, high=255)
    raw = server().evaluate(pixels().astype(np.float32), labels)
    assert raw != evaluated and raw == server().evaluate(pixels(), labels, low=0, high=1)


def test_evaluation_of_tokens_and_of_single_outputs() -> None:
    embedding = nn.Sequential(nn.Embedding(50, 2), nn.Flatten(), nn.Linear(6, 9))
    tokens = np.random.default_rng(0).integers(0, 50, (5, 3))
    assert np.isfinite(server(embedding).evaluate(tokens, np.arange(5))).all()
    assert server(embedding).probe((3,), "int32") == (9,)
    layer = nn.Linear(1, 1)
    binary = ServerModel(
        layer, lambda p: torch.optim.SGD(p, lr=0.1), nn.BCEWithLogitsLoss(), device="cpu"
    )
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.zero_()
    values = np.array([[-1], [2], [3], [-4]], np.float32)
    _, accuracy = binary.evaluate(values, np.array([0, 1, 0, 0]))
    assert accuracy == 0.75
