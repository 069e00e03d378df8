"""How much each sample matters to the training of a model.

Scores are pure functions of what a forward pass yields; `model_outputs` is that pass.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec import CodecError, Criterion, SampleCriterion, SampleSpec, per_sample_criterion
from codec.learning.forward import device_of, eager, forward, main_output
from codec.learning.inputs import model_inputs
from codec.messages import IMPORTANCES
from codec.options import OneOf, check

if TYPE_CHECKING:
    import torch
    from torch import nn

Floats = NDArray[np.float64]

UNCERTAINTIES = ("margin", "entropy")  # of a predicted class: scores that ignore the label
LOSSES = ("loss", "grad-norm")  # scores by a criterion


@dataclass(frozen=True)
class ModelOutputs:
    """What a model gave out, and what its last linear layer took in.

    Attributes
    ----------
    logits : (N, K) or (N,) float32 array
        Class scores, or predictions when the targets are floats.
    features : (N, F) float32 array
        Inputs of the last linear layer; (N, 0) where they were not asked for.
    bias : bool
        Whether that layer adds a bias.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    bias: bool


def loss_scores(logits: NDArray[np.floating[Any]], targets: NDArray[Any]) -> Floats:
    """Return each sample's loss by the default criterion.

    Parameters
    ----------
    logits : (N, K) float array
    targets : (N,) integer labels (cross-entropy, in nats) or (N, K) floats (mean squared
        error over the K outputs); (N,) floats where K is 1

    Returns
    -------
    (N,) float64 array, >= 0
    """
    if _is_regression(targets):
        return np.asarray(np.square(_errors(logits, targets)).mean(axis=1))
    shifted = _shifted(logits)
    own = shifted[np.arange(len(targets)), targets]
    return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - own)


def grad_norm_scores(
    logits: NDArray[np.floating[Any]],
    features: NDArray[np.floating[Any]],
    targets: NDArray[Any],
    bias: bool = True,
) -> Floats:
    """Return the norm of each sample's gradient in the last linear layer.

    With z the logits, h the features and g the loss gradient at z, the layer's gradient is
    the outer product of g with (h, 1), so its norm is ``|g| sqrt(|h|^2 + 1)``; for
    cross-entropy ``g = softmax(z) - onehot(y)``. Up to a factor shared by all samples it
    bounds the norm of the whole gradient (Katharopoulos & Fleuret 2018, "Not All Samples
    Are Created Equal", eq. 20).

    Parameters
    ----------
    logits : (N, K) float array
    features : (N, F) float array
    targets : (N,) integer labels, or (N, K) floats (mean squared error); (N,) where K is 1
    bias : bool
        False drops the 1, which is the bias' share.

    Returns
    -------
    (N,) float64 array, >= 0
    """
    if _is_regression(targets):
        gradient = _errors(logits, targets)
        gradient *= 2.0 / gradient.shape[1]
    else:
        gradient = _softmax(logits)
        gradient[np.arange(len(targets)), targets] -= 1.0
    return _layer_norms(gradient, features, bias)


def margin_scores(logits: NDArray[np.floating[Any]]) -> Floats:
    """Return how near each sample's two most probable classes are: ``1 - (p1 - p2)``.

    With p1 >= p2 the highest softmax probabilities; 1 where they are equal, 0 where the model
    is sure of one class (Scheffer, Decomain & Wrobel 2001, "Active Hidden Markov Models for
    Information Extraction", whose margin is ``p1 - p2``).

    Parameters
    ----------
    logits : (N, K) float array

    Returns
    -------
    (N,) float64 array, in [0, 1]
    """
    others = _softmax(logits)
    others[np.arange(len(others)), others.argmax(axis=1)] = 0.0
    # 1 - p1 is what the others sum to, which does not round to 0 where p1 rounds to 1.
    return np.asarray(np.minimum(others.sum(axis=1) + others.max(axis=1), 1.0))


def entropy_scores(logits: NDArray[np.floating[Any]]) -> Floats:
    """Return the entropy ``-sum_k p_k log p_k`` of each sample's softmax probabilities.

    Shannon 1948, "A Mathematical Theory of Communication", section 6.

    Parameters
    ----------
    logits : (N, K) float array

    Returns
    -------
    (N,) float64 array, in nats, from 0 (sure of one class) to log K
    """
    shifted = _shifted(logits)
    expected = (_softmax(logits) * shifted).sum(axis=1)
    return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - expected)


def criterion_scores(
    importance: str, outputs: ModelOutputs, targets: NDArray[Any], criterion: Criterion
) -> Floats:
    """Return the ``loss`` or ``grad-norm`` of each sample by a host's criterion.

    Parameters
    ----------
    importance : str
        Of `LOSSES`.
    outputs : ModelOutputs
    targets : (N,) integer labels, or floats
    criterion : callable
        See `codec.per_sample_criterion`.

    Raises
    ------
    CriterionError
        If it gives no loss per sample.
    """
    import torch

    with torch.enable_grad():
        logits = torch.from_numpy(outputs.logits).requires_grad_()
        losses = per_sample_criterion(criterion)(logits, torch.from_numpy(np.asarray(targets)))
        if importance == "loss":
            return losses.detach().double().numpy()
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
    rows = gradient.double().flatten(1) if gradient.ndim > 1 else gradient.double()[:, None]
    return _layer_norms(rows.numpy(), outputs.features, outputs.bias)


# A new score is a function above, a line here, and its name in `codec.messages.SCORED`.
SCORES: Mapping[str, Callable[[ModelOutputs, NDArray[Any]], Floats]] = {
    "loss": lambda outputs, targets: loss_scores(outputs.logits, targets),
    "grad-norm": lambda outputs, targets: grad_norm_scores(
        outputs.logits, outputs.features, targets, outputs.bias
    ),
    "margin": lambda outputs, _: margin_scores(outputs.logits),
    "entropy": lambda outputs, _: entropy_scores(outputs.logits),
}


def score(
    importance: str,
    outputs: ModelOutputs,
    targets: NDArray[Any],
    criterion: Criterion | None = None,
) -> Floats:
    """Return the (N,) float64 scores that `importance` gives to model outputs.

    Parameters
    ----------
    importance : str
        Of `SCORES`.
    outputs : ModelOutputs
    targets : (N,) integer labels, or floats
    criterion : callable, optional
        The host's, which losses and their gradients are those of. Default: cross-entropy, or
        squared error for float targets.

    Raises
    ------
    CodecError
        If `importance` is not one of `SCORES`, if it needs class labels and the targets are
        floats, if the criterion gives no loss per sample, or if a score is not finite (a model
        that diverged).
    """
    if importance in UNCERTAINTIES and _is_regression(targets):
        legal = ", ".join(name for name in IMPORTANCES if name not in UNCERTAINTIES)
        raise CodecError(
            f"importance {importance!r} needs class labels; legal for float targets: {legal}"
        )
    check("importance", importance, OneOf(SCORES))
    own = isinstance(criterion, SampleCriterion) and criterion.is_default
    if importance in LOSSES and criterion is not None and not own:
        scores = criterion_scores(importance, outputs, targets, criterion)
    else:
        _check_fit(importance, outputs.logits, targets)
        scores = SCORES[importance](outputs, targets)
    if not np.isfinite(scores).all():
        position = int(np.argmin(np.isfinite(scores)))
        raise CodecError(f"{importance} of sample {position} is {scores[position]}, not finite")
    return scores


def needs_features(importance: str) -> bool:
    """Whether a score is made of what goes into the last linear layer, too."""
    return importance == "grad-norm"


def model_outputs(
    model: "nn.Module",
    samples: NDArray[Any],
    spec: SampleSpec,
    *,
    scale: str = "auto",
    features: bool = True,
    batch_size: int = 256,
) -> ModelOutputs:
    """Run `model` over `samples` in evaluation mode and without gradients.

    Parameters
    ----------
    model : torch.nn.Module
        Left in the modes (train or eval, per module) it came in.
    samples : (N, *spec.shape) array, N >= 1
        As the data set gives them.
    spec : SampleSpec
        What they are.
    scale : str
        What the model sees of them, see `codec.learning.inputs.model_inputs`.
    features : bool
        Whether the inputs of the last linear layer are needed, see `needs_features`.
    batch_size : int
        Samples per forward pass.

    Raises
    ------
    CodecError
        If features are needed and the model's output is not that of a linear layer, of shape
        (N, K).
    """
    import torch

    device = device_of(model)
    with _evaluating(model), recorded_outputs(model, features) as recorder, torch.no_grad():
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            forward(model, model_inputs(batch, spec, scale, device))
    return recorder.outputs()


class OutputRecorder:
    """What went into the last linear layer and came out of the model, pass by pass.

    Parameters
    ----------
    features : bool
        Whether the former is needed.
    """

    def __init__(self, features: bool = True) -> None:
        self._needs_features = features
        self._inputs: tuple[nn.Linear, torch.Tensor] | None = None
        self._logits: list[NDArray[np.float32]] = []
        self._features: list[NDArray[np.float32]] = []
        self._bias = False

    def see_linear(self, layer: "nn.Linear", inputs: "tuple[torch.Tensor]", _: object) -> None:
        """Forward hook of every linear layer."""
        self._inputs = layer, inputs[0]

    def see_output(self, _: object, inputs: "tuple[torch.Tensor]", returned: object) -> None:
        """Forward hook of the model."""
        count, output = len(inputs[0]), main_output(returned)
        if output.ndim == 0 or (count == 1 and len(output) != 1):
            output = output.unsqueeze(0)  # see `codec.learning.forward.forward`
        features = output.new_zeros((count, 0))
        if self._needs_features:
            features = self._features_of(count, tuple(output.shape))
        self._logits.append(output.detach().float().cpu().numpy())
        self._features.append(features.detach().float().cpu().numpy())

    def _features_of(self, count: int, shape: tuple[int, ...]) -> "torch.Tensor":
        seen, self._inputs = self._inputs, None
        outputs = 0 if seen is None else seen[0].out_features
        if seen is None or (shape != (count, outputs) and (shape, outputs) != ((count,), 1)):
            raise CodecError(
                "importance grad-norm needs a model that ends in a Linear layer with outputs of "
                f"shape (N, K); the output has shape {shape}. Importance loss needs none"
            )
        self._bias = seen[0].bias is not None
        return seen[1]

    def outputs(self) -> ModelOutputs:
        """Return the outputs of all passes together."""
        return ModelOutputs(
            np.concatenate(self._logits), np.concatenate(self._features), self._bias
        )


@contextmanager
def recorded_outputs(model: "nn.Module", features: bool = True) -> Iterator[OutputRecorder]:
    """Record the outputs of the forward passes that run inside.

    Parameters
    ----------
    model : torch.nn.Module
    features : bool
        Whether the inputs of the last linear layer are needed.

    Raises
    ------
    CodecError
        From a pass whose output is not that of a linear layer, of shape (N, K), if features are
        needed.
    """
    from torch import nn

    recorder = OutputRecorder(features)
    layers = [module for module in model.modules() if features and isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(recorder.see_linear) for layer in layers]
    hooks.append(model.register_forward_hook(recorder.see_output))
    try:
        with eager(model):
            yield recorder
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluating(model: "nn.Module") -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _is_regression(targets: NDArray[Any]) -> bool:
    return bool(np.issubdtype(targets.dtype, np.floating))


def _check_fit(importance: str, logits: NDArray[Any], targets: NDArray[Any]) -> None:
    """Check that the default criterion can compare outputs and targets."""
    if importance not in LOSSES:
        fits = logits.ndim == 2
    elif _is_regression(targets):
        fits = logits.size == targets.size
    else:
        fits = logits.ndim == 2 and targets.max(initial=0) < logits.shape[1]
    if not fits:
        raise CodecError(
            f"importance {importance} cannot compare model outputs of shape {logits.shape} with "
            f"targets of shape {targets.shape}, at most {targets.max(initial=0)}; give the client "
            "the criterion, or use importance random"
        )


def _errors(logits: NDArray[np.floating[Any]], targets: NDArray[Any]) -> Floats:
    """Return outputs minus targets, (N, K), whether both have the axis of K = 1 or not."""
    count = len(targets)
    rows = (values.reshape(count, -1).astype(np.float64) for values in (logits, targets))
    return np.asarray(np.subtract(*rows))


def _layer_norms(gradient: Floats, features: NDArray[np.floating[Any]], bias: bool) -> Floats:
    """Return norms of the last layer's gradients, from those at its outputs and its inputs."""
    squared_input = np.square(features, dtype=np.float64).sum(axis=1) + float(bias)
    return np.asarray(np.linalg.norm(gradient, axis=1) * np.sqrt(squared_input))


def _shifted(logits: NDArray[np.floating[Any]]) -> Floats:
    wide = logits.astype(np.float64)
    return np.asarray(wide - wide.max(axis=1, keepdims=True))


def _softmax(logits: NDArray[np.floating[Any]]) -> Floats:
    exponentials = np.exp(_shifted(logits))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
