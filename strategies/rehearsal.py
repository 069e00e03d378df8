"""A whole training step on a made-up batch, before anything is paid."""

import copy
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging import WARNING
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.common import log
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from codec import SampleSpec
from codec.learning.criterion import CriterionError, SampleCriterion, first_line
from codec.learning.inputs import mapped_range, model_inputs, sees_floats

if TYPE_CHECKING:
    from strategies.server_model import ServerModel

_SMALL_BATCH = 8  # of this size at most a batch is tried as it will be
_SEED = 0
_NARROW = (
    1e-3  # of the range: samples that fill all of it may saturate a model that real ones do not
)


class RehearsalError(ValueError):
    """A training step that would fail: what was fed, what came of it, and what to change."""


def rehearse(
    server: "ServerModel",
    spec: SampleSpec,
    scale: str,
    batch_size: int,
    *,
    per_sample: bool,
    gradients: bool,
) -> None:
    """Take a whole training step on a made-up batch, and undo it.

    Parameters
    ----------
    server, spec, scale, batch_size, per_sample, gradients
        See `strategies.ServerModel.rehearse`.
    """
    _check_trainable(server)
    generator = np.random.default_rng(_SEED)
    sizes = {2, batch_size} if batch_size <= _SMALL_BATCH else {2}
    with put_back(server):
        for size in sorted(sizes):
            samples, targets = made_up_batch(spec, size, generator)
            inputs = model_inputs(samples, spec, scale, server.device)
            batch = inputs, targets.to(server.device), torch.ones(size, device=server.device)
            fed = _fed(spec, scale, inputs)
            with _in_words(fed):
                _rehearse_batch(server, spec, batch, per_sample=per_sample, gradients=gradients)


def made_up_batch(
    spec: SampleSpec, size: int, generator: np.random.Generator
) -> tuple[NDArray[Any], Tensor]:
    """Return random samples of a kind, as a data set gives them, and targets.

    Labels count down from the last class; float targets lie in [0, 1].
    """
    shape = (size, *spec.shape)
    samples: NDArray[Any]
    if spec.dtype == "float32":
        samples = generator.uniform(spec.low, spec.high, shape).astype(np.float32)
    else:
        samples = generator.integers(int(spec.low), int(spec.high), shape, endpoint=True)
        samples.flat[0] = int(spec.high)
    if spec.classes:
        return samples, torch.from_numpy((spec.classes - 1 - np.arange(size)) % spec.classes)
    targets = generator.uniform(0, 1, (size, *spec.target_shape)).astype(np.float32)
    return samples, torch.from_numpy(targets)


def _rehearse_batch(
    server: "ServerModel",
    spec: SampleSpec,
    batch: tuple[Tensor, Tensor, Tensor],
    *,
    per_sample: bool,
    gradients: bool,
    narrow: bool = False,
) -> None:
    inputs, targets, weights = batch
    with _stage("the model fails", "make it take samples of this shape and type"):
        outputs = server.outputs(inputs, training=True)
    _check_outputs(outputs, spec, server.criterion)
    returned = f"the model returns {tuple(outputs.shape)}"
    with _stage(f"{returned}, and the loss fails", "change the criterion, or the model's output"):
        losses = server.criterion.losses(outputs, targets)
        if losses.whole and per_sample:
            raise CriterionError(
                "criterion returns one number for the batch, but samples are scored or weighted "
                'one by one; make it return one loss per sample (reduction="none"), or use '
                "importance all"
            )
        loss = losses.mean(weights)
    if not loss.requires_grad:
        raise RehearsalError(f"{returned}, which depend on no trainable parameter")
    with _stage("the backward pass fails", "change the model or the criterion"):
        loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
    if not bool(torch.isfinite(loss)):
        # Not more than a sign: samples that are made up may be unlike any real ones.
        told = "the loss of a made-up batch is %s; does the data need scaling?"
        log(WARNING, told, float(loss.detach()))
        return
    gradient = [p.grad for p in server.trainable()]
    if not any(part is not None and bool(part.any()) for part in gradient):
        if inputs.is_floating_point() and not narrow:
            server.optimizer.zero_grad()
            batch = inputs * _NARROW, targets, weights
            _rehearse_batch(
                server, spec, batch, per_sample=per_sample, gradients=gradients, narrow=True
            )
            told = "samples over the whole range saturate the model: their gradient is 0"
            log(WARNING, "%s; does the data need scaling?", told)
            return
        raise RehearsalError(
            f"{returned}, and the gradient of the loss is 0 everywhere: nothing would be learned; "
            "change the criterion, or the model's output"
        )
    names = type(server.optimizer).__name__
    if server.scheduler is not None:
        names += f" with {type(server.scheduler).__name__}"
    with _stage(f"the step of {names} fails", "take another optimizer or scheduler"):
        if gradients:
            pairs = zip(gradient, server.trainable(), strict=True)
            parts = [torch.zeros_like(p) if part is None else part for part, p in pairs]
            server.apply_gradient(parts, float(loss.detach()))
        else:
            server.step(batch)


def _check_trainable(server: "ServerModel") -> None:
    if not server.trainable():
        raise RehearsalError(
            f"the model {type(server.model).__name__} has no trainable parameter; at least one "
            "must have requires_grad"
        )
    groups = server.optimizer.param_groups
    if not any(parameter.requires_grad for group in groups for parameter in group["params"]):
        raise RehearsalError(
            f"the optimizer {type(server.optimizer).__name__} holds no trainable parameter of the "
            "model; give it some"
        )


def _check_outputs(outputs: Tensor, spec: SampleSpec, criterion: SampleCriterion) -> None:
    """Check that there is an output for each class; more are legal.

    A single output for classes is left to the criterion, such as binary cross-entropy.
    """
    if not spec.classes:
        return
    count = outputs.shape[1] if outputs.ndim > 1 else 1
    if count < spec.classes and (count > 1 or criterion.takes_labels()):
        raise RehearsalError(
            f"the model returns {tuple(outputs.shape)}: {count} outputs for {spec.classes} "
            f"classes; give it at least {spec.classes} outputs"
        )


def _fed(spec: SampleSpec, scale: str, inputs: Tensor) -> str:
    mapped = mapped_range(spec, scale) is not None
    low, high = (0.0, 1.0) if mapped else (spec.low, spec.high)
    kind = "float32" if sees_floats(spec) else "int64"
    return (
        f"rehearsal of a training step on {len(inputs)} made-up samples of shape {spec.shape} "
        f"({kind} in [{low:g}, {high:g}], targets: {spec.target_kind})"
    )


@contextmanager
def _in_words(fed: str) -> Iterator[None]:
    try:
        yield
    except RehearsalError as error:
        raise RehearsalError(f"{fed}: {error}") from error


@contextmanager
def _stage(happened: str, change: str) -> Iterator[None]:
    try:
        yield
    except CriterionError as error:
        raise RehearsalError(f"{happened}: {error}") from error
    except Exception as error:  # the host's own parts may raise anything
        name = type(error).__name__
        raise RehearsalError(f"{happened}: {name}: {first_line(error)}; {change}") from error


@contextmanager
def put_back(server: "ServerModel") -> Iterator[None]:
    """Context after which a server's model, optimizer and scheduler are what they were before.

    So are the random numbers of torch, NumPy and Python.
    """
    steps = server.steps_taken
    scheduler = copy.deepcopy(server.scheduler.state_dict()) if server.scheduler else None
    numbers, older_numbers = random.getstate(), np.random.get_state()  # noqa: NPY002  # a host's
    devices = [server.device] if server.device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        for module in filter(None, (server.model, server.averaged)):
            stack.enter_context(_module_put_back(module))
        stack.enter_context(_optimizer_put_back(server.optimizer))
        try:
            yield
        finally:
            server.steps_taken = steps
            if server.scheduler is not None and scheduler is not None:
                server.scheduler.load_state_dict(scheduler)
            random.setstate(numbers)
            np.random.set_state(older_numbers)  # noqa: NPY002


@contextmanager
def _module_put_back(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    buffers = {module: dict(module._buffers) for module in model.modules()}
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
            module._buffers.clear()
            module._buffers.update(buffers[module])
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient


@contextmanager
def _optimizer_put_back(optimizer: Optimizer) -> Iterator[None]:
    groups = [
        {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    state = {parameter: copy.deepcopy(held) for parameter, held in optimizer.state.items()}
    attributes = dict(vars(optimizer))
    try:
        yield
    finally:
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            for name in group.keys() - before.keys() - {"params"}:
                del group[name]
            for name, value in before.items():
                if isinstance(value, Tensor):
                    group[name].copy_(value)  # a scheduler may hold it
                else:
                    group[name] = value
        vars(optimizer).clear()
        vars(optimizer).update(attributes)
