"""The loss gradient at a batch, as both ends take it.

The server's gradient at x_hat is the predictor and the client's refinement its residual. They
cancel only if both ends compute the very same function, so it is written once, here.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec.learning.criterion import Criterion, SampleLosses, per_sample_criterion
from codec.learning.forward import device_of, training_forward
from codec.learning.inputs import model_inputs
from codec.random import Stream, client_generator, torch_seed
from codec.samples.spec import SampleSpec

if TYPE_CHECKING:
    import torch

Augmentation = Callable[["torch.Tensor", "torch.Generator"], "torch.Tensor"]
"""(Samples as the model sees them, a generator on their device) -> samples of that shape."""


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


def batch_losses(
    model: "torch.nn.Module",
    criterion: Criterion | None,
    samples: NDArray[Any],
    targets: NDArray[Any],
    *,
    spec: SampleSpec,
    scale: str = "auto",
    augment: "Callable[[torch.Tensor], torch.Tensor] | None" = None,
) -> SampleLosses:
    """Return each sample's loss with its graph: the forward half of a gradient.

    Parameters
    ----------
    model : torch.nn.Module
        Put in training mode; its device is where the work is done.
    criterion : callable or None
        See `per_sample_criterion`.
    samples : (N, *shape), N >= 1
        Samples as the data set gives them, or as they decode.
    targets : int64 (N,), float32 (N,) or float32 (N, target_size)
        Targets.
    spec : SampleSpec
        What the samples are.
    scale : str
        What the model sees of them, see `codec.learning.inputs.model_inputs`.
    augment : callable, optional
        What the model's inputs go through before it.
    """
    import torch

    device = device_of(model)
    inputs = model_inputs(samples, spec, scale, device)
    if augment is not None:
        inputs = augment(inputs)
    outputs = training_forward(model, inputs)
    return per_sample_criterion(criterion).losses(outputs, torch.as_tensor(targets, device=device))


def losses_gradient(
    model: "torch.nn.Module",
    losses: SampleLosses,
    weights: NDArray[np.float32],
    batch_size: int,
) -> "list[torch.Tensor]":
    """Return the gradient of the loss of a minibatch, see `SampleLosses.mean_of`.

    Returns
    -------
    list of float32 Tensor
        One per trainable parameter, in the order of ``model.parameters()``; zeros where a
        parameter takes no part.
    """
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return []
    loss = losses.mean_of(batch_size, torch.as_tensor(weights, device=losses.values.device))
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        torch.zeros_like(p, dtype=torch.float32) if g is None else g.float()
        for p, g in zip(parameters, gradients, strict=True)
    ]


def batch_gradient(
    model: "torch.nn.Module",
    criterion: Criterion | None,
    samples: NDArray[Any],
    targets: NDArray[Any],
    weights: NDArray[np.float32],
    *,
    spec: SampleSpec,
    batch_size: int,
    scale: str = "auto",
    augment: "Callable[[torch.Tensor], torch.Tensor] | None" = None,
) -> "list[torch.Tensor]":
    """Return the gradient of a minibatch's loss at those of its samples that were kept.

    Parameters
    ----------
    model, criterion, samples, targets, spec, scale, augment
        See `batch_losses`; N may be 0.
    weights : float32 (N,)
        Importance weights.
    batch_size : int
        Size of the minibatch that the samples stand for, whether sent or not.

    Returns
    -------
    list of float32 Tensor
        See `losses_gradient`; zeros where N is 0.
    """
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    if not len(samples) or not parameters:
        return [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    losses = batch_losses(
        model, criterion, samples, targets, spec=spec, scale=scale, augment=augment
    )
    return losses_gradient(model, losses, weights, batch_size)
