"""Running a model over a batch, as both ends do it, whatever it returns and is made of."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from codec.errors import CodecError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.nn.modules.batchnorm import _BatchNorm

_NAMED = ("logits", "out")  # keys of Hugging Face's and torchvision's outputs


class ModelOutputError(CodecError):
    """A model that returns nothing that a loss could be taken of."""


def training_forward(model: "nn.Module", inputs: "Tensor") -> "Tensor":
    """Run a model in training mode.

    Batch normalization that would have a single value per channel, of which it can make no
    statistics, uses its running ones; everything else, such as dropout, acts as ever.

    Parameters
    ----------
    model : torch.nn.Module
        Put in training mode.
    inputs : (N, ...) Tensor, N >= 1
        See `codec.learning.inputs.model_inputs`.

    Returns
    -------
    Tensor (N, ...)
        See `forward`.
    """
    model.train()
    with _single_values_normalized(model) if len(inputs) == 1 else nullcontext():
        return forward(model, inputs)


def forward(model: "nn.Module", inputs: "Tensor") -> "Tensor":
    """Run a model in the mode that it is in.

    Returns
    -------
    Tensor (N, ...)
        The model's `main_output`, in float32.

    Raises
    ------
    ModelOutputError
        If there is none, or not one for each sample.
    """
    if inputs.is_floating_point():
        inputs = inputs.to(floating_dtype(model))
    outputs = main_output(model(inputs)).float()
    if len(inputs) == 1 and (not outputs.ndim or len(outputs) != 1):
        outputs = outputs.unsqueeze(0)  # a model that squeezes took the axis of the batch too
    if not outputs.ndim or len(outputs) != len(inputs):
        raise ModelOutputError(
            f"the model returns shape {tuple(outputs.shape)} for {len(inputs)} samples of shape "
            f"{tuple(inputs.shape[1:])}; the first axis must be that of the samples"
        )
    return outputs


def main_output(outputs: Any) -> "Tensor":
    """Return the tensor that the loss is taken of.

    Parameters
    ----------
    outputs : Tensor, tuple, list, mapping or object
        What a model returned: a tensor; the first tensor of a tuple or list (others are auxiliary
        heads'); the attribute ``logits``; or the entry ``"logits"`` or ``"out"``.

    Raises
    ------
    ModelOutputError
        If there is none.
    """
    import torch

    found = outputs
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(getattr(outputs, "logits", None), torch.Tensor):
        found = outputs.logits
    elif isinstance(outputs, Mapping):
        found = next((outputs[name] for name in _NAMED if name in outputs), None)
    elif isinstance(outputs, tuple | list):
        found = next((part for part in outputs if isinstance(part, torch.Tensor)), None)
    if isinstance(found, torch.Tensor):
        return found
    raise ModelOutputError(
        f"the model returns {_described(outputs)}; it must return a tensor, a tuple that holds "
        'one, an object with .logits, or a dict with "logits" or "out"'
    )


def _described(outputs: Any) -> str:
    name = type(outputs).__name__
    if isinstance(outputs, Mapping):
        return f"a {name} with keys {', '.join(map(repr, outputs)) or 'none'}"
    if isinstance(outputs, tuple | list):
        return f"a {name} of {', '.join(type(part).__name__ for part in outputs) or 'nothing'}"
    return f"a {name}"


def device_of(model: "nn.Module") -> "torch.device":
    """Return where a model works: its first parameter's device, else the CPU."""
    import torch

    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def floating_dtype(model: "nn.Module") -> "torch.dtype":
    """Return the type of a model's first parameter of floats: float32 without one."""
    import torch

    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(dtypes, torch.float32)


def eager(model: "nn.Module") -> AbstractContextManager[Any]:
    """Context in which a compiled model runs as it was written: hooks and modes act."""
    # Asked without torch._dynamo, whose import takes seconds.
    if not any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in model.modules()
    ):
        return nullcontext()
    import torch

    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def batch_norms(model: "nn.Module") -> "list[_BatchNorm]":
    """Return a model's layers of batch normalization, in the order of ``model.modules()``."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def _single_values_normalized(model: "nn.Module") -> Iterator[None]:
    norms = [norm for norm in batch_norms(model) if norm.running_mean is not None]
    if not norms:
        yield
        return
    held: list[_BatchNorm] = []

    def hold(norm: "_BatchNorm", inputs: "tuple[Tensor]") -> None:
        if norm.training and inputs[0].numel() == norm.num_features:
            norm.training = False
            held.append(norm)

    hooks = [norm.register_forward_pre_hook(hold) for norm in norms]
    try:
        with eager(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm in held:
            norm.training = True
