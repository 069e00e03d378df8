"""The model that the server trains: device, precision, optimizer and scheduler in one place."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from codec import Criterion, OptionError, per_sample_criterion

ModelLike: TypeAlias = nn.Module | Callable[[], nn.Module]
OptimizerLike: TypeAlias = Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerLike: TypeAlias = LRScheduler | Callable[[Optimizer], LRScheduler]
# samples float32 (B, *shape) in [0, 1]; targets int64 (B,) or float32 (B, t); weights float32 (B,)
Batch: TypeAlias = tuple[Tensor, Tensor, Tensor]


class ServerModel:
    """Model, optimizer, criterion and scheduler on one device.

    Parameters
    ----------
    model : nn.Module or callable
        The module, or a factory ``() -> nn.Module``.
    optimizer : Optimizer or callable
        An optimizer over the module's parameters, or a factory ``parameters -> Optimizer``.
    criterion : callable, optional
        ``(outputs, targets) -> losses``. A torch loss module is used with ``reduction="none"``,
        whatever it was built with. Default: cross-entropy for class labels, squared error for
        float targets.
    scheduler : LRScheduler or callable, optional
        A scheduler of the optimizer, or a factory ``optimizer -> LRScheduler``; stepped once per
        optimizer step.
    device : str, default="auto"
        A torch device; ``"auto"`` is CUDA if there is one, else the CPU.
    amp : "auto" or bool, default="auto"
        bf16 autocast in :meth:`step` and :meth:`evaluate`; ``"auto"``: on CUDA devices with bf16.
    channels_last : "auto" or bool, default="auto"
        Memory format of 4-D weights and batches; ``"auto"``: on CUDA.

    Raises
    ------
    ValueError
        If the optimizer or the scheduler belongs to something else than the given model or
        optimizer, or an option has another value than those above.
    """

    def __init__(
        self,
        model: ModelLike,
        optimizer: OptimizerLike,
        criterion: Criterion | None = None,
        scheduler: SchedulerLike | None = None,
        *,
        device: str = "auto",
        amp: str | bool = "auto",
        channels_last: str | bool = "auto",
    ) -> None:
        self.device = _resolve_device(device)
        on_cuda = self.device.type == "cuda"
        self.amp = _resolve_switch("amp", amp, on_cuda and torch.cuda.is_bf16_supported())
        self.channels_last = _resolve_switch("channels_last", channels_last, on_cuda)
        self.model = model if isinstance(model, nn.Module) else model()
        # In place: an optimizer that was built before keeps its parameters.
        self.model.to(self.device)
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.optimizer = _build_optimizer(optimizer, self.model)
        self.criterion = per_sample_criterion(criterion)
        self.scheduler = _build_scheduler(scheduler, self.optimizer)
        self.steps_taken = 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Context for forward passes: bf16 autocast if it is on."""
        if not self.amp:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def step(self, batch: Batch) -> Tensor:
        r"""Take one optimizer step on :math:`\sum_i w_i \ell_i / \sum_i w_i`.

        Normalized by the weights themselves, so that the scale of the importance weights does
        not act as a learning rate.

        Parameters
        ----------
        batch : tuple[Tensor, Tensor, Tensor]
            Samples (B, \*shape) float32 in [0, 1], targets (B,) int64 or (B, t) float32, importance
            weights (B,) float32.

        Returns
        -------
        Tensor
            The loss, a scalar on the model's device (no synchronisation with the device here).
        """
        samples, targets, weights = (part.to(self.device, non_blocking=True) for part in batch)
        self.model.train(len(samples) > 1)  # batch normalization has no statistics of one
        with self.autocast():
            outputs = self.model(self._memory_format(samples))
        loss = (weights * self.criterion(outputs.float(), targets)).sum() / weights.sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
        self._advance()
        return loss.detach()

    def apply_gradient(self, gradient: Sequence[Tensor]) -> None:
        """Take one optimizer step along a given gradient.

        Parameters
        ----------
        gradient : Sequence[Tensor]
            One tensor for each of :meth:`trainable`, of its shape.
        """
        for parameter, value in zip(self.trainable(), gradient, strict=True):
            parameter.grad = value.to(parameter)
        self._advance()

    def _advance(self) -> None:
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.steps_taken += 1

    @torch.no_grad()
    def evaluate(
        self,
        samples: NDArray[Any] | Tensor,
        targets: NDArray[Any] | Tensor,
        batch_size: int = 500,
        *,
        low: float = 0.0,
        high: float = 1.0,
    ) -> tuple[float, float]:
        r"""Mean loss and accuracy in eval mode.

        Parameters
        ----------
        samples : ndarray or Tensor
            (N, \*shape), uint8 or float, in units of the range ``[low, high]``; N >= 1.
        targets : ndarray or Tensor
            (N,) class labels, or (N, t) float targets.
        batch_size : int
            Samples per forward pass.
        low, high : float
            Value range that is scaled to [0, 1] before the model: 0 and 255 for uint8 images.

        Returns
        -------
        tuple[float, float]
            Mean loss, and accuracy as a fraction (NaN for float targets).
        """
        self.model.eval()
        data, labels = torch.as_tensor(samples), torch.as_tensor(targets)
        loss, correct = 0.0, 0
        for start in range(0, len(data), batch_size):
            batch = data[start : start + batch_size].to(self.device)
            target = labels[start : start + batch_size].to(self.device)
            with self.autocast():
                outputs = self.model(self._memory_format((batch.float() - low) / (high - low)))
            loss += float(self.criterion(outputs.float(), target).sum())
            if not target.is_floating_point():
                correct += int((outputs.argmax(dim=1) == target).sum())
        accuracy = float("nan") if labels.is_floating_point() else correct / len(data)
        return loss / len(data), accuracy

    @torch.no_grad()
    def probe(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the model's output for one sample of a shape; raises what the model raises."""
        self.model.eval()
        outputs = self.model(torch.zeros((1, *shape), device=self.device))
        return tuple(outputs.shape[1:])

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that require a gradient, in ``model.parameters()`` order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def state_arrays(self) -> ArrayRecord:
        """Return the model's state as Flower arrays (a copy)."""
        return ArrayRecord(self.model.state_dict())

    def load_arrays(self, arrays: ArrayRecord) -> None:
        """Load a state that :meth:`state_arrays` made; the optimizer's state stays."""
        self.model.load_state_dict(arrays.to_torch_state_dict())

    def _memory_format(self, samples: Tensor) -> Tensor:
        if self.channels_last and samples.ndim == 4:
            return samples.contiguous(memory_format=torch.channels_last)
        return samples


def _resolve_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _resolve_switch(name: str, value: str | bool, automatic: bool) -> bool:
    if isinstance(value, bool):
        return value
    if value != "auto":
        raise OptionError(name, f"= {value!r} must be 'auto', True or False")
    return automatic


def _build_optimizer(optimizer: OptimizerLike, model: nn.Module) -> Optimizer:
    built = optimizer if isinstance(optimizer, Optimizer) else optimizer(model.parameters())
    own = {id(parameter) for parameter in model.parameters()}
    if any(id(p) not in own for group in built.param_groups for p in group["params"]):
        raise ValueError("optimizer holds parameters of another model; pass a factory instead")
    return built


def _build_scheduler(scheduler: SchedulerLike | None, optimizer: Optimizer) -> LRScheduler | None:
    if scheduler is None:
        return None
    built = scheduler if isinstance(scheduler, LRScheduler) else scheduler(optimizer)
    if built.optimizer is not optimizer:
        raise ValueError("scheduler belongs to another optimizer; pass a factory instead")
    return built
