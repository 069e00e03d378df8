"""Whatever criterion a host has gives the loss of each sample, and steps as in a plain loop."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from clients.importance import ModelOutputs, score
from clients.refinement import forward_pass, gradient_residual
from codec import (
    CriterionError,
    DecodedSamples,
    SampleSpec,
    batch_gradient,
    per_sample_criterion,
)
from strategies import ServerModel

WEIGHT = torch.tensor([1.0, 9.0, 0.5])


def logits(count: int = 8, outputs: int = 3) -> Tensor:
    return torch.randn(count, outputs, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1, 2, 1, 0, 0, 2, 0])
SOFT = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
FINDINGS = (SOFT > 0.3).float()


@pytest.mark.parametrize(
    ("module", "targets"),
    [
        (nn.CrossEntropyLoss(weight=WEIGHT), LABELS),
        (nn.CrossEntropyLoss(ignore_index=2), LABELS),
        (nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=0, label_smoothing=0.2), LABELS),
        (nn.CrossEntropyLoss(label_smoothing=0.1), LABELS),
        (nn.CrossEntropyLoss(), SOFT),
        (nn.CrossEntropyLoss(weight=WEIGHT), SOFT),
        (nn.NLLLoss(weight=WEIGHT), LABELS),
        (nn.MultiMarginLoss(weight=WEIGHT), LABELS),
        (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), FINDINGS),
        (nn.MultiLabelSoftMarginLoss(), FINDINGS),
        (nn.KLDivLoss(reduction="batchmean"), SOFT),
        (nn.SmoothL1Loss(), SOFT),
        (nn.HuberLoss(), SOFT),
        (nn.PoissonNLLLoss(), SOFT),
    ],
    ids=lambda value: type(value).__name__,
)
def test_torch_modules_have_their_own_mean(module: nn.Module, targets: Tensor) -> None:
    losses = per_sample_criterion(module).losses(logits(), targets)
    assert losses.values.shape == losses.norms.shape == (8,) and not losses.whole
    torch.testing.assert_close(losses.mean(), module(logits(), targets))
    torch.testing.assert_close(losses.mean_of(8, torch.ones(8)), module(logits(), targets))
    # Of importance weights, that of the samples as often as they weigh.
    weights = torch.tensor([1.0, 2, 1, 3, 1, 1, 2, 1])
    repeated = torch.arange(8).repeat_interleave(weights.long())
    torch.testing.assert_close(losses.mean(weights), module(logits()[repeated], targets[repeated]))


def test_a_batch_of_ignored_samples_alone_has_no_loss_and_no_gradient() -> None:
    outputs = logits().requires_grad_()
    losses = per_sample_criterion(nn.CrossEntropyLoss(ignore_index=1))
    loss = losses.losses(outputs, torch.ones(8, dtype=torch.long)).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0 and outputs.grad is not None and not outputs.grad.any()


def squeezed(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.squeeze(1) - targets) ** 2


def flat(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.reshape(-1) - targets) ** 2


REGRESSION: list[Any] = [
    None,
    nn.MSELoss(),
    flat,
    lambda outputs, targets: (outputs - targets) ** 2,
    lambda outputs, targets: ((outputs - targets) ** 2).mean(),
    lambda outputs, targets: flat(outputs, targets).mean(),
    lambda outputs, targets: functional.mse_loss(outputs, targets),
    nn.L1Loss(),
]


@pytest.mark.parametrize("criterion", REGRESSION)
@pytest.mark.parametrize("outputs", [(8,), (8, 1)])
@pytest.mark.parametrize("targets", [(8,), (8, 1)])
def test_outputs_and_targets_are_aligned_and_never_broadcast(
    criterion: Any, outputs: tuple[int, ...], targets: tuple[int, ...]
) -> None:
    given, wanted = logits(8, 1).reshape(outputs), torch.linspace(-2, 3, 8).reshape(targets)
    error = given.reshape(-1) - wanted.reshape(-1)
    expected = error.abs() if isinstance(criterion, nn.L1Loss) else error**2
    losses = per_sample_criterion(criterion).losses(given, wanted)
    torch.testing.assert_close(losses.mean(), expected.mean())
    if not losses.whole:
        torch.testing.assert_close(losses.values, expected)


def test_a_criterion_that_squeezes_gets_targets_without_the_axis() -> None:
    for shape in ((8,), (8, 1)):
        targets = torch.linspace(0, 1, 8).reshape(shape)
        losses = per_sample_criterion(squeezed)(logits(8, 1), targets)
        torch.testing.assert_close(losses, (logits(8, 1)[:, 0] - torch.linspace(0, 1, 8)) ** 2)


@pytest.mark.parametrize(
    "mixing",
    [
        lambda outputs, targets: (outputs - targets.mean()) ** 2,
        lambda outputs, targets: (outputs.mean() - targets) ** 2,
        lambda outputs, targets: (outputs.reshape(-1)[None] - targets.reshape(-1)[:, None]) ** 2,
    ],
)
def test_criteria_that_mix_samples_are_refused(mixing: Any) -> None:
    with pytest.raises(CriterionError, match=r"depends on other samples.*\(N, 1\).*one shape"):
        per_sample_criterion(mixing)(logits(8, 1), torch.linspace(0, 1, 8)[:, None])


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_batches_of_any_size_are_taken_the_same_way(count: int) -> None:
    outputs, targets = logits(count, 1), torch.linspace(0, 1, count)
    losses = per_sample_criterion(lambda o, t: (o - t) ** 2)(outputs, targets)
    torch.testing.assert_close(losses, (outputs[:, 0] - targets) ** 2)


@pytest.mark.parametrize("outputs", [(8,), (8, 1)])
@pytest.mark.parametrize("module", [nn.BCEWithLogitsLoss(), nn.BCELoss(), nn.SoftMarginLoss()])
def test_labels_of_two_classes_suit_one_output(module: Any, outputs: tuple[int, ...]) -> None:
    labels = (LABELS > 0).long()
    values = logits(8, 1).sigmoid().reshape(outputs)
    losses = per_sample_criterion(module)(values, labels)
    torch.testing.assert_close(losses.mean(), module(values.reshape(-1), labels.float()))


def test_one_number_for_the_batch_is_used_where_weights_are_equal() -> None:
    criterion = per_sample_criterion(nn.functional.cross_entropy)
    losses = criterion.losses(logits(), LABELS)
    expected = functional.cross_entropy(logits(), LABELS)
    assert losses.whole
    torch.testing.assert_close(losses.mean(torch.full((8,), 4.0)), expected)
    torch.testing.assert_close(losses.mean_of(16, torch.ones(8)), expected / 2)
    with pytest.raises(CriterionError, match=r"one number for a whole batch.*importance all"):
        losses.mean(torch.arange(8.0))
    with pytest.raises(CriterionError, match="one loss per sample"):
        criterion(logits(), LABELS)


def test_one_number_that_may_be_broadcast_is_refused() -> None:
    def correlation(outputs: Tensor, targets: Tensor) -> Tensor:
        return -((outputs - outputs.mean()) * (targets - targets.mean())).mean()

    # Of one shape nothing can go wrong.
    per_sample_criterion(correlation).losses(logits(8, 1), torch.rand(8, 1))
    with pytest.raises(CriterionError, match="which it may broadcast"):
        per_sample_criterion(correlation).losses(logits(8, 1), torch.rand(8))


@pytest.mark.parametrize(
    ("criterion", "told"),
    [
        (nn.MSELoss(), r"fails with outputs \(N, 3\) float32 and targets \(N, 2\) float32"),
        (None, r"fails with outputs \(N, 3\)"),
        (nn.BCEWithLogitsLoss(), "ValueError: Target size"),
        (lambda outputs, targets: 0.5, "returned float; it must return a Tensor"),
        (lambda outputs, targets: outputs.T, r"returned shape \(3, 4\) for 4 samples"),
    ],
)
def test_failures_are_told_in_words(criterion: Any, told: str) -> None:
    with pytest.raises(CriterionError, match=told) as caught:
        per_sample_criterion(criterion)(logits(), torch.rand(8, 2))
    assert "\n" not in str(caught.value)


def test_trying_a_criterion_draws_no_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    per_sample_criterion(lambda o, t: functional.cross_entropy(
        functional.dropout(o), t, reduction="none") * 0)(logits()[:0], LABELS[:0])  # fmt: skip
    per_sample_criterion(nn.CrossEntropyLoss())(logits(), LABELS)
    assert torch.equal(torch.rand(2), expected)


def test_steps_of_a_weighted_criterion_are_those_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    reference, module = nn.Linear(3, 3), nn.CrossEntropyLoss(weight=100 * WEIGHT)
    model = nn.Linear(3, 3)
    model.load_state_dict(reference.state_dict())
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    server = ServerModel(model, lambda p: torch.optim.SGD(p, lr=0.1), module, device="cpu")
    for _ in range(3):
        optimizer.zero_grad()
        loss = module(reference(SOFT), LABELS)
        loss.backward()
        optimizer.step()
        assert float(server.step((SOFT, LABELS, torch.ones(8)))) == pytest.approx(loss.item())
    torch.testing.assert_close(model.weight, reference.weight)
    evaluated, _ = server.evaluate(SOFT, LABELS, batch_size=3)
    assert evaluated == pytest.approx(module(reference(SOFT), LABELS).item(), rel=1e-5)


@pytest.mark.parametrize("kept", [np.arange(12), np.array([0, 3, 7]), np.array([1, 4])])
def test_a_lossless_residual_is_exact_for_weighted_criteria(kept: NDArray[np.int64]) -> None:
    rng = np.random.default_rng(0)
    spec = SampleSpec((5,), "float32", -4, 4, classes=3)
    samples, targets = rng.normal(size=(12, 5)).astype(np.float32), np.arange(12) % 3
    module = nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=0)
    coarse = np.round(samples[kept])
    weights = np.linspace(1, 3, len(kept), dtype=np.float32)

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))

    client, asked = model(), {"spec": spec, "seed": 0}
    original = forward_pass(client, module, samples, targets, record=False, **asked)  # type: ignore[arg-type]
    decoded = DecodedSamples(coarse, targets[kept], weights, {})
    residual, _ = gradient_residual(client, module, original, decoded, **asked)  # type: ignore[arg-type]
    server = model()
    mine = batch_gradient(server, module, coarse, targets[kept], weights, spec=spec, batch_size=12)
    loss = module(server(torch.from_numpy(samples)), torch.from_numpy(targets))
    truth = torch.autograd.grad(loss, list(server.parameters()))
    for part, correction, true in zip(mine, residual, truth, strict=True):
        torch.testing.assert_close(part + torch.from_numpy(correction), true)


Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.mark.parametrize(
    ("criterion", "targets", "outputs"),
    [
        (nn.CrossEntropyLoss(weight=WEIGHT), LABELS, 3),
        (nn.BCEWithLogitsLoss(), FINDINGS, 3),
        (nn.CrossEntropyLoss(), SOFT, 3),
        (nn.SmoothL1Loss(), torch.linspace(-1, 1, 8), 1),
        (lambda o, t: functional.cross_entropy(o, t, reduction="none") ** 2, LABELS, 3),
    ],
)
def test_scores_are_those_of_the_hosts_criterion(
    criterion: Any, targets: Tensor, outputs: int
) -> None:
    torch.manual_seed(0)
    layer, features = nn.Linear(4, outputs), torch.rand(8, 4)
    given = ModelOutputs(layer(features).detach().numpy(), features.numpy(), True)
    losses = per_sample_criterion(criterion)(layer(features), targets)
    norms = [
        float(torch.cat([part.flatten() for part in torch.autograd.grad(
            loss, list(layer.parameters()), retain_graph=True)]).norm())
        for loss in losses
    ]  # fmt: skip
    np.testing.assert_allclose(
        score("loss", given, targets.numpy(), criterion), losses.detach().numpy(), rtol=1e-5
    )
    np.testing.assert_allclose(
        score("grad-norm", given, targets.numpy(), criterion), norms, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("importance", ["loss", "grad-norm"])
def test_scores_of_one_number_for_the_batch_are_refused(importance: str) -> None:
    given = ModelOutputs(logits().numpy(), np.ones((8, 2), np.float32), True)
    with pytest.raises(CriterionError, match="one loss per sample"):
        score(importance, given, LABELS.numpy(), functional.cross_entropy)


@pytest.mark.parametrize("importance", ["loss", "grad-norm"])
def test_default_scores_know_squeezed_outputs(importance: str) -> None:
    targets = np.linspace(-1, 1, 8, dtype=np.float32)
    found = [
        score(importance, ModelOutputs(values, np.ones((8, 2), np.float32), True), wanted)
        for values in (logits(8, 1).numpy(), logits(8, 1)[:, 0].numpy())
        for wanted in (targets, targets[:, None])
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0])
