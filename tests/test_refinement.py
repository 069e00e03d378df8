import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from clients.importance import score
from clients.refinement import forward_pass, gradient_residual
from clients.selection import Selection, probability_selector
from codec import (
    CodecError,
    CodecOptions,
    DecodedSamples,
    Refinement,
    SamplePayload,
    SampleSpec,
    batch_gradient,
    decode_samples,
    encode_samples,
    generator,
    per_sample_criterion,
)
from codec.gradients import EDEN, GradientCompressor

SPEC = SampleSpec((1, 8, 8), "uint8", 0, 255, classes=3, codec=CodecOptions(step=0.5))
SEED = 11
NOTHING = DecodedSamples(np.zeros((0, 1), "f4"), np.zeros(0), np.zeros(0, "f4"), {})


def compressor_of(kind: str) -> GradientCompressor:
    found = Refinement(kind, density=0.1).compressor()
    assert found is not None
    return found


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(32, 3),
    )


def minibatch(count: int = 24) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (count, 1, 8, 8)).astype(np.uint8), rng.integers(0, 3, count)


def payload_of(selection: Selection) -> bytes:
    if not len(selection):
        return b""
    samples, targets = (part[selection.positions] for part in minibatch())
    return encode_samples(samples, targets, SPEC, inclusion=selection.inclusion).to_bytes()


def selections() -> dict[str, Selection]:
    scores = np.random.default_rng(6).exponential(size=24)
    kept = probability_selector(scores, 0.2, np.random.default_rng(7))(9.0)
    assert kept.inclusion is not None and 1 < len(kept) < 24
    return {
        "everything": Selection(np.arange(24)),
        "weighted part": kept,
        "nothing": Selection(np.arange(0)),
    }


def server_gradient(model: nn.Module, payload: bytes) -> list[NDArray[np.float32]]:
    """Compute what the server can from the bytes alone."""
    if not payload:
        return [np.zeros(tuple(p.shape), np.float32) for p in model.parameters()]
    decoded = decode_samples(SamplePayload.from_bytes(payload))
    torch.manual_seed(SEED)
    parts = batch_gradient(
        model,
        per_sample_criterion(None),
        decoded.samples,
        decoded.targets,
        decoded.weights,
        spec=SPEC,
        batch_size=24,
    )
    return [part.numpy() for part in parts]


def true_gradient(model: nn.Module) -> list[NDArray[np.float32]]:
    """Plain autograd at the original minibatch."""
    samples, targets = minibatch()
    model.train()
    torch.manual_seed(SEED)
    output = model(torch.from_numpy(samples).float() / 255)
    loss = functional.cross_entropy(output, torch.from_numpy(targets))
    return [g.numpy() for g in torch.autograd.grad(loss, list(model.parameters()))]


def residual(model: nn.Module, payload: bytes) -> list[NDArray[np.float32]]:
    criterion = per_sample_criterion(nn.CrossEntropyLoss())
    original = forward_pass(model, criterion, *minibatch(), spec=SPEC, seed=SEED, record=False)
    kept = decode_samples(SamplePayload.from_bytes(payload)) if payload else NOTHING
    return gradient_residual(model, criterion, original, kept, spec=SPEC, seed=SEED)[0]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kept", ["everything", "weighted part", "nothing"])
def test_lossless_refinement_gives_the_minibatch_gradient(kept: str, dropout: float) -> None:
    payload = payload_of(selections()[kept])
    compressor = compressor_of("fp32")
    sent, _ = compressor.compress(residual(network(dropout), payload), None, generator(0))
    received = compressor.decompress(sent)
    for mine, correction, truth in zip(
        server_gradient(network(dropout), payload),
        received,
        true_gradient(network(dropout)),
        strict=True,
    ):
        np.testing.assert_allclose(mine + correction, truth, rtol=1e-4, atol=1e-6)


def test_the_residual_is_needed() -> None:
    payload = payload_of(selections()["weighted part"])
    error = [
        np.abs(mine - truth).max()
        for mine, truth in zip(
            server_gradient(network(), payload), true_gradient(network()), strict=True
        )
    ]
    assert max(error) > 1e-2


def test_model_state_and_global_random_state_are_left_alone() -> None:
    model = network(0.4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    residual(model, payload_of(selections()["everything"]))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_float_targets_use_squared_error() -> None:
    rng = np.random.default_rng(8)
    spec = SampleSpec((5,), "float32", -4, 4, classes=0, target_size=2)
    samples = rng.uniform(-4, 4, (7, 5)).astype(np.float32)
    targets = rng.normal(size=(7, 2)).astype(np.float32)
    model = nn.Linear(5, 2)
    criterion = per_sample_criterion(None)
    asked: dict[str, Any] = {"spec": spec, "scale": "unit", "seed": 0}
    original = forward_pass(model, criterion, samples, targets, record=False, **asked)
    whole, same = gradient_residual(model, criterion, original, NOTHING, **asked)
    assert all(np.array_equal(a, b) for a, b in zip(whole, same, strict=True))
    output = model((torch.from_numpy(samples) + 4) / 8)
    loss = functional.mse_loss(output, torch.from_numpy(targets))
    for part, truth in zip(whole, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        np.testing.assert_allclose(part, truth.numpy(), rtol=1e-5, atol=1e-6)


def test_error_feedback_memory_is_what_was_not_sent() -> None:
    model, payload = network(), payload_of(selections()["everything"])
    compressor = compressor_of("top-k")
    parts = residual(model, payload)
    sent, memory = compressor.compress(parts, None, generator(0))
    assert memory is not None
    for part, got, kept in zip(parts, compressor.decompress(sent), memory, strict=True):
        np.testing.assert_allclose(got + kept, part, atol=1e-6)


def test_a_loss_module_is_copied_without_reduction() -> None:
    given = nn.CrossEntropyLoss(label_smoothing=0.1)
    criterion = per_sample_criterion(given)
    assert criterion(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)).shape == (4,)
    assert given.reduction == "mean"


def test_unknown_compressor_is_named() -> None:
    with pytest.raises(CodecError, match="zip"):
        compressor_of("zip")


def test_scores_from_the_shared_pass_are_those_of_its_logits() -> None:
    model, criterion = network(0.4), per_sample_criterion(None)
    original = forward_pass(model, criterion, *minibatch(), spec=SPEC, seed=SEED, record=True)
    assert original.outputs is not None
    scores = score("loss", original.outputs, minibatch()[1])
    np.testing.assert_allclose(scores, original.losses.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("missing", "bits"), [(0.2, None), (0.39, 1), (0.6, 2), (1.5, 3), (3.0, 4), (50.0, 4)]
)
def test_auto_takes_the_fewest_bits_that_the_tolerance_allows(
    missing: float, bits: int | None
) -> None:
    gradient = np.random.default_rng(0).normal(size=8192).astype(np.float32)
    residual = (missing * gradient[::-1]).astype(np.float32)
    refinement = Refinement("auto", tolerance=0.3)
    chosen = refinement.choose([residual], [gradient])
    assert chosen == (None if bits is None else EDEN(bits))
    if chosen is not None and missing < 3:
        data, _ = chosen.compress([residual], None, generator(1))
        decoder = refinement.compressor()
        assert decoder is not None
        left = decoder.decompress(data)[0] - residual
        assert np.linalg.norm(left) <= 0.31 * np.linalg.norm(gradient)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ({"kind": "eden", "bits": 5}, "bits = 5 must be 1, 2, 3 or 4, or below 1, for eden"),
        ({"density": 0.0}, "density = 0.0"),
        ({"rank": 0}, "rank = 0"),
        ({"tolerance": math.nan}, "tolerance = nan"),
        ({"tolerance": 0.0}, "tolerance = 0.0 must be > 0"),
    ],
)
def test_illegal_rates_are_named(option: dict[str, Any], name: str) -> None:
    with pytest.raises(CodecError, match=name):
        Refinement(**option)


def test_an_illegal_tolerance_is_named_as_the_message_has_it() -> None:
    with pytest.raises(CodecError, match=r"^refinement-tolerance = -1.0 must be > 0"):
        Refinement.from_entries({"refinement-tolerance": -1.0})
