"""The loss gradient at a batch, as both ends take it.

The server's gradient at x_hat is the predictor and the client's refinement its residual. They
cancel only if both ends compute the very same function, so it is written once, here.
"""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec.random import Stream, client_generator, torch_seed
from codec.samples.spec import SampleSpec

if TYPE_CHECKING:
    import torch

# (model outputs, targets (B,)) -> the loss of each sample (B,), or a scalar
Criterion = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
# (samples float32 (B, *shape) in [0, 1], a generator on their device) -> samples of that shape
Augmentation = Callable[["torch.Tensor", "torch.Generator"], "torch.Tensor"]


def to_unit(samples: "torch.Tensor", low: float, high: float) -> "torch.Tensor":
    """Map samples from [low, high] to [0, 1], what models see (as after ``ToTensor``)."""
    return (samples - low) / (high - low)


def dropout_seed(seed: int, server_round: int, client: int) -> int:
    """Return the seed of the dropout masks of a client's batch: the same at both ends.

    A residual fits no other masks than those it was taken with.
    """
    return torch_seed(client_generator(seed, server_round, client, Stream.DROPOUT))


def keyed_augmentation(
    augment: Augmentation | None, seed: int, step: int, client: int, device: "torch.device"
) -> "Callable[[torch.Tensor], torch.Tensor] | None":
    """Bind an augmentation to the generator of a client's batch: the same at both ends.

    Parameters
    ----------
    augment : callable or None
        ``(samples, torch.Generator) -> samples``; None gives None.
    seed, step, client : int
        Key of the generator.
    device : torch.device
        Where the generator draws.
    """
    if augment is None:
        return None
    import torch

    stream = torch.Generator(device)
    stream.manual_seed(torch_seed(client_generator(seed, step, client, Stream.AUGMENTATION)))
    return lambda samples: augment(samples, stream)


def per_sample_criterion(criterion: Criterion | None) -> Criterion:
    """Turn a criterion into one that gives a loss for each sample.

    Parameters
    ----------
    criterion : callable or None
        ``(outputs, targets) -> losses``. A torch loss module is copied with
        ``reduction="none"``. None: cross-entropy, or squared error where the targets are
        floats. Losses of more than one dimension are averaged over all but the first.

    Returns
    -------
    callable
        ``(outputs (B, ...), targets (B, ...)) -> losses (B,)``; raises ValueError when the
        given one returns no loss per sample.
    """
    if criterion is None:
        criterion = _default_criterion
    elif hasattr(criterion, "reduction"):
        criterion = copy.copy(criterion)
        criterion.reduction = "none"
    base = criterion

    def losses(outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        values = base(outputs, targets)
        if values.shape[:1] != targets.shape[:1]:
            raise ValueError(
                f"criterion returned shape {tuple(values.shape)} for {len(targets)} samples; "
                'one loss per sample is needed (reduction="none")'
            )
        return values.flatten(1).mean(dim=1) if values.ndim > 1 else values

    return losses


def _default_criterion(outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    from torch.nn import functional

    loss = functional.mse_loss if targets.is_floating_point() else functional.cross_entropy
    return loss(outputs, targets, reduction="none")


def batch_losses(
    model: "torch.nn.Module",
    criterion: Criterion,
    samples: NDArray[Any],
    targets: NDArray[Any],
    *,
    spec: SampleSpec,
    augment: "Callable[[torch.Tensor], torch.Tensor] | None" = None,
) -> "torch.Tensor":
    """Return each sample's loss with its graph, Tensor (N,): the forward half of a gradient.

    Parameters
    ----------
    model : torch.nn.Module
        Put in train mode, or in evaluation mode for a single sample, whose own statistics
        batch normalization cannot use; its device is where the work is done.
    criterion : callable
        Loss of (outputs, targets), one per sample: see `per_sample_criterion`.
    samples : (N, *shape), N >= 1
        Samples in source units; scaled to [0, 1] before the model.
    targets : int64 (N,) or float32 (N, target_size)
        Targets.
    spec : SampleSpec
        Gives the value range.
    augment : callable, optional
        What the scaled samples go through before the model.
    """
    import torch

    device = next(model.parameters()).device
    model.train(len(samples) > 1)
    inputs = to_unit(torch.as_tensor(samples, device=device).float(), spec.low, spec.high)
    if augment is not None:
        inputs = augment(inputs)
    losses = criterion(model(inputs), torch.as_tensor(targets, device=device))
    return losses.reshape(len(samples), -1).mean(dim=1)


def losses_gradient(
    model: "torch.nn.Module",
    losses: "torch.Tensor",
    weights: NDArray[np.float32],
    batch_size: int,
) -> "list[torch.Tensor]":
    """Return the gradient of ``(1 / batch_size) * sum_i weights_i * losses_i``.

    Returns
    -------
    list of Tensor
        One per trainable parameter, in the order of ``model.parameters()``; zeros where a
        parameter takes no part.
    """
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return []
    scale = torch.as_tensor(weights, device=losses.device) / batch_size
    gradients = torch.autograd.grad((losses * scale).sum(), parameters, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
    ]


def batch_gradient(
    model: "torch.nn.Module",
    criterion: Criterion,
    samples: NDArray[Any],
    targets: NDArray[Any],
    weights: NDArray[np.float32],
    *,
    spec: SampleSpec,
    batch_size: int,
    augment: "Callable[[torch.Tensor], torch.Tensor] | None" = None,
) -> "list[torch.Tensor]":
    """Return the gradient of ``(1 / batch_size) * sum_i weights_i * loss_i`` at a batch.

    Parameters
    ----------
    model, criterion, samples, targets, spec, augment
        See `batch_losses`; N may be 0.
    weights : float32 (N,)
        Importance weights.
    batch_size : int
        Size of the minibatch that the samples stand for, whether sent or not.

    Returns
    -------
    list of Tensor
        See `losses_gradient`; zeros where N is 0.
    """
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    if not len(samples) or not parameters:
        return [torch.zeros_like(p) for p in parameters]
    losses = batch_losses(model, criterion, samples, targets, spec=spec, augment=augment)
    return losses_gradient(model, losses, weights, batch_size)
