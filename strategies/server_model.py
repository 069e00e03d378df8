"""The model that the server trains: device, precision, optimizer and scheduler in one place."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from logging import INFO, WARNING
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.common import log
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from codec import CodecError, Criterion, OptionError, SampleSpec, per_sample_criterion
from codec.learning.batch_norm import fresh_statistics, statistics
from codec.learning.forward import forward, training_forward
from codec.learning.inputs import in_units
from codec.learning.state import load_state, model_state
from strategies.errors import CheckpointError
from strategies.processes import Processes
from strategies.rehearsal import rehearse

ModelLike: TypeAlias = nn.Module | Callable[[], nn.Module]
OptimizerLike: TypeAlias = Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerLike: TypeAlias = LRScheduler | Callable[[Optimizer], LRScheduler]
# samples (B, *shape) as the model sees them: float32, or int64 for tokens; targets int64 (B,),
# float32 (B,) or float32 (B, t); importance weights float32 (B,)
Batch: TypeAlias = tuple[Tensor, Tensor, Tensor]

_BY_LOSS = ReduceLROnPlateau
_TOKENS = (torch.int32, torch.int64)


_SLOW_BF16 = (
    "bf16 was asked for, but %s has no instructions for it: a step may take ten times as long as "
    "in fp32. Use amp=False (precision=fp32), or 'fastest', which takes bf16 where it is fast"
)


class DivergedError(CodecError):
    """Training whose loss is no number any more."""


class ServerModel:
    """Model, optimizer, criterion and scheduler on one device.

    Parameters
    ----------
    model : nn.Module or callable
        The module, or a factory ``() -> nn.Module``. It may be compiled, or in half precision; it
        may return a tensor, a tuple (whose first tensor counts), an object with ``.logits``, or a
        dict with ``"logits"`` or ``"out"``.
    optimizer : Optimizer or callable
        An optimizer over the module's parameters, or some of them, or a factory
        ``parameters -> Optimizer``.
    criterion : callable, optional
        ``(outputs, targets) -> losses``, see `codec.per_sample_criterion`. A torch loss
        module is used with ``reduction="none"``, whatever it was built with. Default:
        cross-entropy for class labels, squared error for float targets.
    scheduler : LRScheduler or callable, optional
        A scheduler of the optimizer, or a factory ``optimizer -> LRScheduler``; stepped once per
        optimizer step, ``ReduceLROnPlateau`` with its loss.
    device : str, default="auto"
        A torch device; ``"auto"`` is CUDA if there is one, else the CPU.
    amp : "auto", "fastest" or bool, default="auto"
        bf16 autocast in `step` and `evaluate`; ``"auto"``: on CUDA devices with bf16;
        ``"fastest"``: on these, and on CPUs with instructions for it.
    channels_last : "auto" or bool, default="auto"
        Memory format of 4-D weights and batches; ``"auto"``: on CUDA. Given up for a model that
        takes views of contiguous tensors.
    ema_decay : float, default=0
        Share of the average that a step keeps in the exponential moving average of the weights,
        which is what is evaluated, saved and sent; 0: no average. In the first steps it keeps
        less, (1 + steps) / (10 + steps). See `calibrate` for batch normalization.

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
        ema_decay: float = 0.0,
    ) -> None:
        self.device = _resolve_device(device)
        on_cuda = self.device.type == "cuda"
        native = has_bf16(self.device)
        self.amp = native if amp == "fastest" else _resolve_switch("amp", amp, on_cuda and native)
        if self.amp and not native:
            log(WARNING, _SLOW_BF16, self.device)
        self.channels_last = _resolve_switch("channels_last", channels_last, on_cuda)
        self.model = _build_model(model)
        # In place: an optimizer that was built before keeps its parameters.
        self.model.to(self.device)
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.optimizer = _build_optimizer(optimizer, self.model)
        self.criterion = per_sample_criterion(criterion)
        self.scheduler = _build_scheduler(scheduler, self.optimizer)
        self.averaged = _average_of(self.model, ema_decay) if ema_decay else None
        self.steps_taken = 0
        self._processes, self._shared = Processes(), self.model

    def share_steps(self, processes: Processes) -> None:
        """Let processes that take the same steps compute a part of each of them.

        Parameters
        ----------
        processes : Processes
            All have to ask, with the same model and optimizer.
        """
        if processes.size > 1:
            self._processes, self._shared = processes, processes.shared(self.model)

    @property
    def inference_model(self) -> nn.Module:
        """The model to evaluate, save and send: the average of the weights, if there is one."""
        return self.model if self.averaged is None else self.averaged.module

    def autocast(self) -> AbstractContextManager[Any]:
        """Context for forward passes: bf16 autocast if it is on."""
        if not self.amp:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def outputs(self, samples: Tensor, *, training: bool) -> Tensor:
        r"""Run the model, in training or evaluation mode.

        Parameters
        ----------
        samples : Tensor
            (B, \*shape) as the model sees them, on its device.
        training : bool
            The mode; in training a graph is made.

        Returns
        -------
        Tensor
            (B, ...) float32.
        """
        try:
            return self._forward(samples, training)
        except RuntimeError as error:
            if not self.channels_last or "view" not in str(error):
                raise
            log(INFO, "channels_last is switched off: the model takes views of contiguous tensors")
            self.channels_last = False
            for model in (self.model, self.inference_model):
                model.to(memory_format=torch.contiguous_format)
            return self._forward(samples, training)

    def _forward(self, samples: Tensor, training: bool) -> Tensor:
        samples = self._laid_out(samples)
        with self.autocast():
            if training:
                return training_forward(self._shared, samples)
            model = self.inference_model
            model.eval()
            return forward(model, samples)

    def _laid_out(self, samples: Tensor) -> Tensor:
        if self.channels_last and samples.ndim == 4:
            return samples.contiguous(memory_format=torch.channels_last)
        return samples

    def step(self, batch: Batch) -> Tensor:
        r"""Take one optimizer step on $\sum_i w_i \ell_i / \sum_i w_i n_i$.

        Normalized by the weights themselves, so that the scale of the importance weights does
        not act as a learning rate; $n_i$ is 1 but for criteria that weigh classes, which
        step as their own weighted mean does.

        Parameters
        ----------
        batch : tuple[Tensor, Tensor, Tensor]
            Samples (B, \*shape) as the model sees them, targets int64 (B,), float32 (B,) or
            float32 (B, t), importance weights (B,) float32.

        Returns
        -------
        Tensor
            The loss, a scalar on the model's device.

        Raises
        ------
        DivergedError
            On the CPU, if the loss is not finite; the model is left as it was. On other devices,
            which would have to be waited for, the caller checks: see `check_finite`.
        """
        together = self._processes.size > 1
        if together:
            batch = self._processes.part_of(batch)
        samples, targets, weights = (part.to(self.device, non_blocking=True) for part in batch)

        def backward() -> Any:
            self.model.zero_grad(set_to_none=True)
            with torch.enable_grad():
                outputs = self.outputs(samples, training=True)
                losses = self.criterion.losses(outputs, targets)
                if together:
                    parts = weights * losses.values, weights * losses.norms
                    loss = self._processes.share_of_mean(*parts)
                else:
                    loss = losses.mean(weights)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
            return self._processes.mean(loss) if together else loss.detach()

        if _needs_closure(self.optimizer):
            loss: Tensor = torch.as_tensor(self.optimizer.step(backward))
            self._check_on_cpu(loss)
        else:
            loss = backward()
            self._check_on_cpu(loss)
            self.optimizer.step()
        self._advance(loss)
        return loss

    def apply_gradient(self, gradient: Sequence[Tensor], loss: float | None = None) -> None:
        """Take one optimizer step along a given gradient.

        Parameters
        ----------
        gradient : Sequence[Tensor]
            One tensor for each of `trainable`, of its shape.
        loss : float, optional
            The loss there, if it is known.

        Raises
        ------
        OptionError
            See `check_gradients`.
        DivergedError
            If the loss is not finite; no step was taken.
        """
        self.check_gradients(loss is not None)
        if loss is not None:
            self.check_finite(torch.tensor([loss]), self.steps_taken + 1)
        for parameter, value in zip(self.trainable(), gradient, strict=True):
            parameter.grad = value.to(parameter)
        self.optimizer.step()
        self._advance(loss)

    def check_gradients(self, loss_known: bool) -> None:
        """Check that steps can be taken along gradients that come from elsewhere.

        Parameters
        ----------
        loss_known : bool
            Whether the loss comes with them.

        Raises
        ------
        OptionError
            If the optimizer needs to evaluate the loss itself, or the scheduler to know it.
        """
        if _needs_closure(self.optimizer):
            raise OptionError(
                "optimizer",
                f"= {type(self.optimizer).__name__} evaluates the loss several times per step, but "
                "this strategy steps along gradients of its clients; legal: SGD, Adam and others "
                "that step along one gradient, or strategy replay",
            )
        if isinstance(self.scheduler, ReduceLROnPlateau) and not loss_known:
            raise OptionError(
                "scheduler",
                "= ReduceLROnPlateau needs the loss, which only the clients know here; legal: "
                "schedulers that count steps, such as StepLR or CosineAnnealingLR",
            )

    def check_finite(self, losses: Tensor, first_step: int) -> None:
        """Check the losses of some steps.

        Parameters
        ----------
        losses : Tensor
            (K,) losses.
        first_step : int
            Number of the first of these steps, from 1.

        Raises
        ------
        DivergedError
            If one is not finite; names the step.
        """
        finite = torch.isfinite(losses)
        if bool(finite.all()):
            return
        at = int(finite.int().argmin())
        rates = {
            f"{float(group['lr']):g}" for group in self.optimizer.param_groups if "lr" in group
        }
        raise DivergedError(
            f"loss is {float(losses[at])} at optimizer step {first_step + at}: training has "
            f"diverged. Lower the learning rate (now {', '.join(sorted(rates)) or 'unknown'}), "
            "clip gradients, or scale the data (scale=unit) and check it for extreme values"
        )

    def _check_on_cpu(self, loss: Tensor) -> None:
        if self.device.type == "cpu":
            self.check_finite(loss.reshape(1), self.steps_taken + 1)

    def _advance(self, loss: Tensor | float | None) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            assert loss is not None
            self.scheduler.step(float(loss))
        elif self.scheduler is not None:
            self.scheduler.step()
        self.steps_taken += 1
        if self.averaged is not None:
            self.averaged.update_parameters(_plain(self.model))

    @property
    def averages_normalization(self) -> bool:
        """Whether batch normalization is averaged with the weights: see `calibrate`."""
        return self.averaged is not None and bool(statistics(self.averaged.module))

    @property
    def statistics(self) -> list[Tensor]:
        """Mean and variance of each batch normalization of `inference_model`, in turn."""
        return statistics(self.inference_model)

    @torch.no_grad()
    def set_statistics(self, arrays: Sequence[NDArray[np.float32]]) -> None:
        """Replace `statistics`; what is trained keeps its own if weights are averaged."""
        for tensor, array in zip(self.statistics, arrays, strict=True):
            tensor.copy_(torch.from_numpy(array))

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        r"""Gather the statistics of batch normalization anew for the averaged weights.

        Averages of statistics are not those of the averaged weights, and were gathered from
        augmented samples. ResNet-9 on 5,600 images of CIFAR-10 at 50 bytes gains 0.2 to 0.6 points.

        Parameters
        ----------
        batches : iterable of Tensor
            (B, \*shape) as the model sees them without augmentation; those of a single sample are
            left out. Without any, statistics stay as they are.
        """
        batches = [batch for batch in batches if len(batch) > 1]
        if not batches or not self.averages_normalization:
            return
        model = self.inference_model
        with fresh_statistics(model), self.autocast():
            for batch in batches:
                forward(model, self._laid_out(batch.to(self.device)))
        model.eval()

    def rehearse(
        self,
        spec: SampleSpec,
        scale: str,
        batch_size: int,
        *,
        per_sample: bool,
        gradients: bool = False,
    ) -> None:
        """Take a whole training step on a made-up batch, and undo it.

        Model, optimizer, scheduler and random numbers come out as they went in.

        Parameters
        ----------
        spec : SampleSpec
            What the samples are.
        scale : str
            What the model sees of them, see `codec.messages.ClientOptions`.
        batch_size : int
            Samples in a batch.
        per_sample : bool
            Whether samples will have importance weights that differ, or scores, so that the
            criterion must give a loss for each.
        gradients : bool
            Whether the strategy steps by `apply_gradient`.

        Raises
        ------
        RehearsalError
            If the step fails; says what was fed, what came of it, and what to change.
        """
        rehearse(self, spec, scale, batch_size, per_sample=per_sample, gradients=gradients)

    @torch.no_grad()
    def evaluate(
        self,
        samples: NDArray[Any] | Tensor,
        targets: NDArray[Any] | Tensor,
        batch_size: int = 500,
        *,
        low: float | None = None,
        high: float | None = None,
        flip: bool = False,
    ) -> tuple[float, float]:
        r"""Mean loss and accuracy in eval mode.

        Parameters
        ----------
        samples : ndarray or Tensor
            (N, \*shape) as the clients' data sets return them: floats in their own units, int32
            or int64 tokens; uint8 images are mapped to [0, 1].
        targets : ndarray or Tensor
            (N,) class labels, or (N,) or (N, t) float targets.
        batch_size : int
            Samples per forward pass.
        low, high : float, optional
            Range to map to [0, 1] instead: that of the data set with scale ``unit``, or 0 and 1
            for uint8 samples that the model sees as they are (scale ``none``).
        flip : bool
            Whether outputs are means of those for a sample and for its mirror image, left to right.

        Returns
        -------
        tuple[float, float]
            Mean loss, and accuracy as a fraction (NaN for float targets); NaN without samples.
        """
        data, labels = torch.as_tensor(samples), torch.as_tensor(targets)
        bounds = (
            None if low is None and high is None else (low or 0.0, 1.0 if high is None else high)
        )
        loss = norm = 0.0
        correct = 0
        for start in range(0, len(data), batch_size):
            batch = _as_seen(data[start : start + batch_size].to(self.device), bounds)
            target = labels[start : start + batch_size].to(self.device)
            outputs = self.outputs(batch, training=False)
            if flip:
                outputs = (outputs + self.outputs(batch.flip(-1), training=False)) / 2
            losses = self.criterion.losses(outputs, target)
            loss += float(losses.values.sum())
            norm += float(losses.norms.sum())
            correct += self._count_correct(outputs, target)
        accuracy = correct / len(data) if len(data) else float("nan")
        return (
            loss / norm if norm else float("nan"),
            float("nan") if labels.is_floating_point() else accuracy,
        )

    def _count_correct(self, outputs: Tensor, targets: Tensor) -> int:
        if targets.is_floating_point():
            return 0
        if outputs.ndim == 1 or outputs.shape[1] == 1:
            predicted = outputs.reshape(len(outputs)) > self.criterion.threshold()
        else:
            predicted = outputs.argmax(dim=1)
        return int((predicted == targets).sum())

    @torch.no_grad()
    def probe(self, shape: tuple[int, ...], dtype: str = "float32") -> tuple[int, ...]:
        """Shape of the model's output for one sample of a shape; raises what the model raises.

        Parameters
        ----------
        shape : tuple of int
        dtype : str
            As in `codec.SampleSpec`.
        """
        seen = torch.int64 if dtype == "int32" else torch.float32
        samples = torch.zeros((1, *shape), dtype=seen, device=self.device)
        return tuple(self.outputs(samples, training=False).shape[1:])

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that require a gradient, in ``model.parameters()`` order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def state_arrays(self) -> ArrayRecord:
        """Return the model's state as Flower arrays (a copy); a compiled one's as a plain one's."""
        return ArrayRecord(model_state(self.inference_model))

    def state(self) -> dict[str, Any]:
        """Return model, optimizer and scheduler, for a checkpoint."""
        return {
            "model": model_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler and _scheduler_state(self.scheduler),
            "steps_taken": self.steps_taken,
            "averaged": self.averaged and model_state(self.averaged),
        }

    def restore(self, state: Mapping[str, Any], *, reschedule: bool = False) -> None:
        """Take over what `state` returned, of the same model and optimizer.

        Parameters
        ----------
        state : mapping
        reschedule : bool
            Whether the scheduler is one of another length: it is brought as far as it would be by
            now, unless it goes by the loss.

        Raises
        ------
        CheckpointError
            If it is the state of another model, optimizer or scheduler.
        """
        scheduler = self.scheduler
        if (scheduler is None) != (state["scheduler"] is None):
            raise CheckpointError("the checkpoint's run had another scheduler, or none")
        average = state.get("averaged")  # of earlier versions there is none
        if (self.averaged is None) != (average is None):
            raise CheckpointError("the checkpoint's run averaged its weights, or this one does")
        try:
            load_state(self.model, state["model"])
            if self.averaged is not None and average is not None:
                load_state(self.averaged, average)
            self.optimizer.load_state_dict(state["optimizer"])
            if scheduler is not None and reschedule and not isinstance(scheduler, _BY_LOSS):
                _advance_to(scheduler, state["steps_taken"])
            elif scheduler is not None:
                scheduler.load_state_dict(state["scheduler"])
        except (CodecError, ValueError, KeyError) as error:
            raise CheckpointError(f"the checkpoint is of another model: {error}") from error
        self.steps_taken = state["steps_taken"]

    def load_arrays(self, arrays: ArrayRecord) -> None:
        """Load a state that `state_arrays` made; the optimizer's state stays."""
        state = arrays.to_torch_state_dict()
        load_state(self.model, state)
        if self.averaged is not None:
            load_state(self.inference_model, state)


def _as_seen(samples: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """Return samples as a model sees them: with a range, or as their type says."""
    if bounds is None and samples.dtype in _TOKENS:
        return samples.long()
    if bounds is None and samples.dtype == torch.uint8:
        bounds = (0.0, 255.0)
    return in_units(samples, bounds)


def has_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bf16.

    With them a training step of ResNet-9 takes 0.43 times as long as in fp32 on a CPU; without
    them, 14 times as long.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def _resolve_device(device: str) -> torch.device:
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(automatic if device == "auto" else device)
    except RuntimeError as error:
        raise OptionError(
            "device", f"= {device!r} must be 'auto', 'cpu', 'cuda' or 'cuda:N'"
        ) from (error)
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise OptionError("device", f"= {device!r}: torch sees {count} CUDA devices; use 'auto'")
    return resolved


def _resolve_switch(name: str, value: str | bool, automatic: bool) -> bool:
    if isinstance(value, bool):
        return value
    if value != "auto":
        legal = "'auto', 'fastest', True or False" if name == "amp" else "'auto', True or False"
        raise OptionError(name, f"= {value!r} must be {legal}")
    return automatic


def _build_model(model: ModelLike) -> nn.Module:
    built = model if isinstance(model, nn.Module) else model()
    if not isinstance(built, nn.Module):
        raise OptionError(
            "model",
            f"= {type(built).__name__} must be an nn.Module, or a callable that returns one",
        )
    if any(map(nn.parameter.is_lazy, built.parameters())):
        raise OptionError(
            "model",
            f"= {type(built).__name__} has lazy layers, whose shapes are not known yet; run it "
            "over one sample first, or give the layers their sizes",
        )
    return built


def _plain(model: nn.Module) -> nn.Module:
    """Return what ``torch.compile`` was given."""
    return cast(nn.Module, getattr(model, "_orig_mod", model))


def _average_of(model: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of a model's parameters and buffers."""
    if not 0 < decay < 1:
        raise OptionError("ema_decay", f"= {decay} must be 0 (no average), or between 0 and 1")

    def average(averages: Any, values: Any, count: Tensor | int) -> None:
        taken = int(count)
        weight = 1 - min(decay, (1 + taken) / (10 + taken))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, weight)
        else:  # such as how many batches a normalization has seen
            torch._foreach_copy_(averages, values)

    return AveragedModel(_plain(model), multi_avg_fn=average, use_buffers=True)


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


def _scheduler_state(scheduler: LRScheduler) -> dict[str, Any]:
    """Return a scheduler's state without what is no state but its code."""
    return {key: value for key, value in scheduler.state_dict().items() if not callable(value)}


def _advance_to(scheduler: LRScheduler, steps: int) -> None:
    """Bring a new scheduler where it is after so many steps."""
    for group in scheduler.optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of steps without the optimizer's
        for _ in range(steps):
            scheduler.step()


def _needs_closure(optimizer: Optimizer) -> bool:
    """Whether a step must be given a function that evaluates the loss, as LBFGS's."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
