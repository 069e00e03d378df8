from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from clients.importance import (
    SCORES,
    ModelOutputs,
    entropy_scores,
    grad_norm_scores,
    loss_scores,
    margin_scores,
    model_outputs,
    score,
)
from codec import CodecError
from codec.messages import SCORED


def network(bias: bool = True, outputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 36, 5),
        nn.Dropout(0.5),
        nn.Tanh(),
        nn.Linear(5, outputs, bias=bias),
    )


def batch(count: int = 9) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (count, 2, 8, 8)).astype(np.uint8), rng.integers(0, 4, count)


def last_layer_gradient_norms(
    model: nn.Module, samples: NDArray[np.uint8], targets: NDArray[Any]
) -> list[float]:
    """Exact per-sample norms by autograd, one backward pass a sample."""
    last = list(model.children())[-1]
    norms = []
    model.eval()
    for sample, target in zip(samples, targets, strict=True):
        output = model(torch.from_numpy(sample[None]).float() / 255)
        if targets.dtype == np.float32:
            loss = functional.mse_loss(output, torch.from_numpy(target[None]))
        else:
            loss = functional.cross_entropy(output, torch.tensor([target]))
        parts = torch.autograd.grad(loss, list(last.parameters()))
        norms.append(float(torch.cat([part.flatten() for part in parts]).norm()))
    return norms


def test_loss_is_cross_entropy_also_for_large_logits() -> None:
    logits = np.array([[1000.0, 0.0], [0.0, 1000.0], [3.0, 3.0]], np.float32)
    scores = loss_scores(logits, np.array([0, 0, 1]))
    np.testing.assert_allclose(scores, [0.0, 1000.0, np.log(2)], atol=1e-12)


def test_loss_of_float_targets_is_mean_squared_error() -> None:
    outputs = np.array([[1.0, 3.0], [0.0, 0.0]], np.float32)
    targets = np.array([[0.0, 1.0], [0.0, 0.0]], np.float32)
    assert loss_scores(outputs, targets).tolist() == [2.5, 0.0]


@pytest.mark.parametrize("bias", [True, False])
def test_grad_norm_is_the_last_layers_exact_gradient_norm(bias: bool) -> None:
    model, (samples, targets) = network(bias), batch()
    outputs = model_outputs(model, samples, low=0, high=255)
    scores = score("grad-norm", outputs, targets)
    assert outputs.bias is bias
    np.testing.assert_allclose(
        scores, last_layer_gradient_norms(model, samples, targets), rtol=1e-4
    )


def test_grad_norm_of_float_targets_is_exact_too() -> None:
    model, (samples, _) = network(outputs=3), batch()
    targets = np.random.default_rng(2).normal(size=(9, 3)).astype(np.float32)
    scores = score("grad-norm", model_outputs(model, samples, low=0, high=255), targets)
    np.testing.assert_allclose(
        scores, last_layer_gradient_norms(model, samples, targets), rtol=1e-4
    )


def test_a_sure_and_right_model_scores_nothing() -> None:
    logits = np.array([[60.0, 0.0]], np.float32)
    assert grad_norm_scores(logits, np.ones((1, 3)), np.array([0]))[0] < 1e-20


# Rows: undecided among 4, between 2 of 4, leaning, sure.
PROBABILITIES = np.array(
    [[0.25, 0.25, 0.25, 0.25], [0.5, 1e-12, 0.5, 1e-12], [0.1, 0.6, 0.2, 0.1], [1, 0, 0, 0]]
)


def logits_of(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(np.maximum(probabilities, 1e-300)) + 3.0  # softmax ignores the offset


def test_margin_is_one_minus_best_versus_second_best() -> None:
    scores = margin_scores(logits_of(PROBABILITIES))
    np.testing.assert_allclose(scores, [1.0, 1.0, 0.6, 0.0], atol=1e-9)


def test_entropy_is_that_of_the_predicted_probabilities() -> None:
    leaning = -(0.6 * np.log(0.6) + 0.2 * np.log(0.2) + 2 * 0.1 * np.log(0.1))
    scores = entropy_scores(logits_of(PROBABILITIES))
    np.testing.assert_allclose(scores, [np.log(4), np.log(2), leaning, 0.0], atol=1e-9)


@pytest.mark.parametrize("uncertainty", [margin_scores, entropy_scores])
def test_the_least_certain_scores_highest_however_certain(uncertainty: Any) -> None:
    gaps = np.array([0.0, 0.1, 1.0, 5.0, 50.0, 300.0], np.float32)
    scores = uncertainty(np.stack([gaps, np.zeros_like(gaps), gaps - 500], axis=1))
    assert (np.diff(scores) < 0).all() and scores[-1] > 0
    assert uncertainty(np.array([[1e4, 0.0]], np.float32)).tolist() == [0.0]
    assert uncertainty(np.array([[3.0]], np.float32)).tolist() == [0.0]  # a single class
    assert len(uncertainty(np.zeros((0, 3), np.float32))) == 0


def test_uncertainty_of_a_model_is_that_of_its_softmax_whatever_the_labels() -> None:
    model, (samples, targets) = network(), batch()
    outputs = model_outputs(model, samples, low=0, high=255)
    with torch.no_grad():
        probabilities = model.eval()(torch.from_numpy(samples).float() / 255).softmax(1).double()
    top = probabilities.topk(2, dim=1).values
    entropy = torch.distributions.Categorical(probabilities).entropy()
    for labels in (targets, 3 - targets):
        margin = score("margin", outputs, labels)
        np.testing.assert_allclose(margin, (1 - top[:, 0] + top[:, 1]).numpy(), rtol=1e-5)
        np.testing.assert_allclose(score("entropy", outputs, labels), entropy.numpy(), rtol=1e-5)


def test_outputs_do_not_depend_on_the_forward_batch() -> None:
    model, (samples, _) = network(), batch()
    whole = model_outputs(model, samples, low=0, high=255)
    parts = model_outputs(model, samples, low=0, high=255, batch_size=2)
    np.testing.assert_allclose(parts.logits, whole.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts.features, whole.features, rtol=1e-5, atol=1e-6)
    assert whole.logits.shape == (9, 4) and whole.features.shape == (9, 5)


def test_the_model_comes_out_as_it_went_in() -> None:
    model = network().train()
    frozen = list(model.children())[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model_outputs(model, batch()[0], low=0, high=255)
    assert model.training and not frozen.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(2, 4, 8), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.Linear(128, 8), nn.Unflatten(1, (2, 4))),
    ],
)
def test_models_without_a_final_linear_layer_are_refused(model: nn.Module) -> None:
    with pytest.raises(CodecError, match="ends in a Linear layer"):
        model_outputs(model, batch()[0], low=0, high=255)


@pytest.mark.parametrize("importance", SCORED)
def test_a_diverged_model_is_named(importance: str) -> None:
    logits = np.array([[0.0, 0.0], [np.nan, 0.0]], np.float32)
    outputs = ModelOutputs(logits, np.ones((2, 3), np.float32), True)
    with pytest.raises(CodecError, match=f"{importance} of sample 1 is nan"):
        score(importance, outputs, np.array([0, 1]))


def test_unknown_importance_names_the_legal_ones() -> None:
    outputs = ModelOutputs(np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float32), True)
    with pytest.raises(CodecError, match="'best' must be one of loss, grad-norm, margin, entropy"):
        score("best", outputs, np.array([0]))


@pytest.mark.parametrize("importance", ["margin", "entropy"])
def test_uncertainty_of_float_targets_names_the_legal_scores(importance: str) -> None:
    outputs = ModelOutputs(np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float32), True)
    told = f"'{importance}' needs class labels; .*: all, random, loss, grad-norm$"
    with pytest.raises(CodecError, match=told):
        score(importance, outputs, np.zeros((1, 2), np.float32))


def test_every_score_of_the_contract_has_a_function() -> None:
    assert tuple(SCORES) == SCORED
