"""The loss gradient at a batch, as both ends take it.

The server's gradient at x_hat is the predictor and the client's refinement its residual. They
cancel only if both ends compute the very same function, so it is written once, here.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec.spec import SampleSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def to_unit(samples: "torch.Tensor", low: float, high: float) -> "torch.Tensor":
    """Map samples from [low, high] to [0, 1], what models see (as after ``ToTensor``)."""
    return (samples - low) / (high - low)


def batch_gradient(
    model: "torch.nn.Module",
    criterion: "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]",
    samples: NDArray[Any],
    targets: NDArray[Any],
    weights: NDArray[np.float32],
    *,
    spec: SampleSpec,
    batch_size: int,
) -> "list[torch.Tensor]":
    """Return the gradient of ``(1 / batch_size) * sum_i weights_i * loss_i``.

    Parameters
    ----------
    model : torch.nn.Module
        Put in train mode, or in evaluation mode for a single sample, whose own statistics
        batch normalization cannot use; its device is where the work is done.
    criterion : callable
        Loss of (outputs, targets) with ``reduction="none"``.
    samples : (N, *shape)
        Samples in source units; scaled to [0, 1] before the model.
    targets : int64 (N,) or float32 (N, target_size)
        Targets.
    weights : float32 (N,)
        Importance weights.
    spec : SampleSpec
        Gives the value range.
    batch_size : int
        Size of the minibatch that the samples stand for, whether sent or not.

    Returns
    -------
    list of Tensor
        One per trainable parameter, in the order of ``model.parameters()``; zeros where N
        is 0 or a parameter takes no part.
    """
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    if not len(samples) or not parameters:
        return [torch.zeros_like(p) for p in parameters]
    device = parameters[0].device
    model.train(len(samples) > 1)
    inputs = to_unit(torch.as_tensor(samples, device=device).float(), spec.low, spec.high)
    losses = criterion(model(inputs), torch.as_tensor(targets, device=device))
    scale = torch.as_tensor(weights, device=device) / batch_size
    total = (losses.reshape(len(samples), -1).mean(dim=1) * scale).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
    ]
