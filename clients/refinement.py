"""What the kept, quantized samples miss of the minibatch's gradient, compressed."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clients.instruction import Instruction
from codec import SamplePayload, SampleSpec, batch_gradient, decode_samples
from codec.compressors import GradientCompressor, make_compressor

if TYPE_CHECKING:
    from torch import Tensor, nn

Criterion = Callable[["Tensor", "Tensor"], "Tensor"]


def make_refinement_compressor(instruction: Instruction) -> GradientCompressor:
    """Return the gradient compressor that the instruction names.

    Raises
    ------
    CodecError
        If there is none of that name.
    """
    options: dict[str, dict[str, Any]] = {
        "qsgd": {"levels": instruction.refinement_levels},
        "top-k": {"density": instruction.refinement_density},
    }
    return make_compressor(instruction.refinement, **options.get(instruction.refinement, {}))


def per_sample_criterion(criterion: Criterion | None) -> Criterion:
    """Return a loss without reduction.

    Parameters
    ----------
    criterion : callable or None
        A torch loss module is copied with ``reduction="none"``. None: cross-entropy, or
        squared error where the targets are floats.
    """
    if criterion is None:
        return _default_criterion
    if hasattr(criterion, "reduction"):
        criterion = copy.copy(criterion)
        criterion.reduction = "none"
    return criterion


def _default_criterion(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    from torch.nn import functional

    loss = functional.mse_loss if targets.is_floating_point() else functional.cross_entropy
    return loss(outputs, targets, reduction="none")


def gradient_residual(
    model: "nn.Module",
    criterion: Criterion,
    samples: NDArray[Any],
    targets: NDArray[Any],
    payload: bytes,
    *,
    spec: SampleSpec,
    seed: int,
) -> list[NDArray[np.float32]]:
    """Return the minibatch's gradient minus the one the server will take at `payload`.

    The difference is against the *whole original* minibatch, so it repairs the error of the
    importance filter as well as the quantizer's. Both gradients are mean losses over the
    original batch size, taken from the same model state and with the same dropout masks.

    Parameters
    ----------
    model : torch.nn.Module
        Its buffers (BatchNorm statistics) come out as they went in.
    criterion : callable
        Loss of (outputs, targets), one per sample; see `per_sample_criterion`.
    samples : (N, *spec.shape) array
        The original minibatch, in source units.
    targets : (N,) int64 or (N, target_size) float32 array
    payload : bytes
        The very bytes that go to the server; b"" when nothing was kept.
    spec : SampleSpec
    seed : int
        Seed of the dropout masks.

    Returns
    -------
    list of float32 arrays
        One per parameter that requires a gradient, in ``model.parameters()`` order.
    """
    size = len(samples)
    ones = np.ones(size, np.float32)
    whole = _gradient(model, criterion, samples, targets, ones, spec, size, seed)
    if not payload:
        return whole
    kept = decode_samples(SamplePayload.from_bytes(payload))
    coarse = _gradient(model, criterion, kept.samples, kept.targets, kept.weights, spec, size, seed)
    return [w - c for w, c in zip(whole, coarse, strict=True)]


def _gradient(
    model: "nn.Module",
    criterion: Criterion,
    samples: NDArray[Any],
    targets: NDArray[Any],
    weights: NDArray[np.float32],
    spec: SampleSpec,
    batch_size: int,
    seed: int,
) -> list[NDArray[np.float32]]:
    import torch

    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        gradient = batch_gradient(
            model, criterion, samples, targets, weights, spec=spec, batch_size=batch_size
        )
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return [part.float().cpu().numpy() for part in gradient]
