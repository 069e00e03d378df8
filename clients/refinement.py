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
    SampleLosses,
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
    batch : SampleLosses
        Loss of each sample, with its graph, which serves one backward pass.
    outputs : ModelOutputs or None
        What scores are made of, if it was asked for.
    buffers : list of Tensor
        The model's buffers (BatchNorm statistics) as they were before the pass.
    """

    batch: SampleLosses
    outputs: ModelOutputs | None
    buffers: "list[Tensor]"

    @property
    def losses(self) -> "Tensor":
        """Loss of each sample, Tensor (N,)."""
        return self.batch.values


def forward_pass(
    model: "nn.Module",
    criterion: Criterion | None,
    samples: NDArray[Any],
    targets: NDArray[Any],
    *,
    spec: SampleSpec,
    scale: str = "auto",
    seed: int,
    record: bool,
    features: bool = True,
) -> ForwardPass:
    """Run the model over the original minibatch, in train mode and with a graph.

    Parameters
    ----------
    model : torch.nn.Module
        Its buffers are put back by `gradient_residual`.
    criterion : callable or None
        See `codec.per_sample_criterion`.
    samples : (N, *spec.shape) array
        The original minibatch, as the data set gives it.
    targets : int64 (N,), float32 (N,) or float32 (N, target_size) array
    spec : SampleSpec
    scale : str
        What the model sees of samples, see `codec.learning.inputs.model_inputs`.
    seed : int
        Seed of the dropout masks.
    record, features : bool
        Whether scores will need the outputs, and with them the inputs of the last linear layer.

    Raises
    ------
    CodecError
        If the latter are needed and the model does not end in a linear layer.
    """
    import torch

    buffers = [buffer.clone() for buffer in model.buffers()]
    recording = recorded_outputs(model, features) if record else nullcontext()
    with torch.random.fork_rng(), recording as recorder:
        torch.manual_seed(seed)
        losses = batch_losses(model, criterion, samples, targets, spec=spec, scale=scale)
    return ForwardPass(losses, recorder.outputs() if recorder else None, buffers)


def gradient_residual(
    model: "nn.Module",
    criterion: Criterion | None,
    original: ForwardPass,
    kept: DecodedSamples,
    *,
    spec: SampleSpec,
    scale: str = "auto",
    seed: int,
) -> tuple[Gradient, Gradient]:
    """Return the minibatch's gradient minus the one the server will take at `kept`.

    The difference is against the *whole original* minibatch, so it repairs the error of the
    importance filter as well as the quantizer's. Both gradients are mean losses over the
    original batch size, taken from the same model state and with the same dropout masks.

    Parameters
    ----------
    model, criterion, spec, scale, seed
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

    size = len(original.batch)
    whole = losses_gradient(model, original.batch, np.ones(size, np.float32), size)
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
                scale=scale,
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
