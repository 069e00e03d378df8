"""What the kept, quantized samples miss of the minibatch's gradient."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clients.importance import ModelOutputs, recorded_outputs
from codec import (
    Criterion,
    DecodedSamples,
    SampleSpec,
    batch_gradient,
    batch_losses,
    losses_gradient,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

Gradient = list[NDArray[np.float32]]


@dataclass(frozen=True)
class ForwardPass:
    """Forward pass over the original minibatch; scores and the residual share it.

    Attributes
    ----------
    losses : Tensor (N,)
        Loss of each sample, with its graph, which serves one backward pass.
    outputs : ModelOutputs or None
        What scores are made of, if it was asked for.
    buffers : list of Tensor
        The model's buffers (BatchNorm statistics) as they were before the pass.
    """

    losses: "Tensor"
    outputs: ModelOutputs | None
    buffers: "list[Tensor]"


def forward_pass(
    model: "nn.Module",
    criterion: Criterion,
    samples: NDArray[Any],
    targets: NDArray[Any],
    *,
    spec: SampleSpec,
    seed: int,
    record: bool,
) -> ForwardPass:
    """Run the model over the original minibatch, in train mode and with a graph.

    Parameters
    ----------
    model : torch.nn.Module
        Its buffers are put back by `gradient_residual`.
    criterion : callable
        Loss of (outputs, targets), one per sample: see `codec.per_sample_criterion`.
    samples : (N, *spec.shape) array
        The original minibatch, in source units.
    targets : (N,) int64 or (N, target_size) float32 array
    spec : SampleSpec
    seed : int
        Seed of the dropout masks.
    record : bool
        Whether scores will need the outputs.

    Raises
    ------
    CodecError
        If outputs are recorded and the model does not end in a linear layer.
    """
    import torch

    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.random.fork_rng(), recorded_outputs(model) if record else nullcontext() as recorder:
        torch.manual_seed(seed)
        losses = batch_losses(model, criterion, samples, targets, spec=spec)
    return ForwardPass(losses, recorder.outputs() if recorder else None, buffers)


def gradient_residual(
    model: "nn.Module",
    criterion: Criterion,
    original: ForwardPass,
    kept: DecodedSamples,
    *,
    spec: SampleSpec,
    seed: int,
) -> tuple[Gradient, Gradient]:
    """Return the minibatch's gradient minus the one the server will take at `kept`.

    The difference is against the *whole original* minibatch, so it repairs the error of the
    importance filter as well as the quantizer's. Both gradients are mean losses over the
    original batch size, taken from the same model state and with the same dropout masks.

    Parameters
    ----------
    model, criterion, spec, seed
        As given to `forward_pass`; the model's buffers come out as they went in there.
    original : ForwardPass
        Its graph is used up.
    kept : DecodedSamples
        What the server will see: the kept samples as they decode, possibly none.

    Returns
    -------
    residual, gradient : lists of float32 arrays
        The difference, and the minibatch's gradient itself; one array per parameter that
        requires a gradient, in ``model.parameters()`` order.
    """
    import torch

    size = len(original.losses)
    whole = losses_gradient(model, original.losses, np.ones(size, np.float32), size)
    _restore(model, original.buffers)
    residual = whole
    if len(kept.samples):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            coarse = batch_gradient(
                model,
                criterion,
                kept.samples,
                kept.targets,
                kept.weights,
                spec=spec,
                batch_size=size,
            )
        _restore(model, original.buffers)
        residual = [w - c for w, c in zip(whole, coarse, strict=True)]
    return _to_numpy(residual), _to_numpy(whole)


def _restore(model: "nn.Module", buffers: "list[Tensor]") -> None:
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.detach().copy_(before)


def _to_numpy(parts: "list[Tensor]") -> Gradient:
    return [part.float().cpu().numpy() for part in parts]
