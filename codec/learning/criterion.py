"""The loss of each sample, from whatever criterion a host has."""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from codec.errors import CodecError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Criterion = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""(Model outputs, targets (B,)) -> the loss of each sample (B,), or one number for all."""

_TOLERANCE = 1e-4  # of losses that are to be the same


class CriterionError(CodecError):
    """A criterion that gives no usable loss for such outputs and targets."""


@dataclass(frozen=True)
class SampleLosses:
    """What a criterion says of the samples of a batch.

    Attributes
    ----------
    values : Tensor (N,)
        Losses, with their graph.
    norms : Tensor (N,)
        What each sample adds to the denominator of a mean loss: the weight of its class, as in
        torch's weighted mean, or 0 if it is ignored; 1 for other criteria.
    whole : bool
        Whether all values are the one number that the criterion gives for the batch.
    """

    values: "Tensor"
    norms: "Tensor"
    whole: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def mean(self, weights: "Tensor | None" = None) -> "Tensor":
        """Return ``sum_i w_i l_i / sum_i w_i n_i``, n being the norms.

        Parameters
        ----------
        weights : (N,) Tensor, optional
            Importance weights; by default all are equal.
        """
        if weights is None:
            return self.values.sum() / _positive(self.norms.sum())
        self._check(weights)
        return (weights * self.values).sum() / _positive((weights * self.norms).sum())

    def mean_of(self, batch_size: int, weights: "Tensor") -> "Tensor":
        """Return what samples that were kept say of the mean loss of a minibatch.

        That is ``sum_i w_i l_i / (batch_size * n)``, n being the weighted mean of the norms:
        unbiased where they are 1, and the same at both ends in any case.

        Parameters
        ----------
        batch_size : int
            Size of the minibatch.
        weights : (N,) Tensor
            Importance weights.
        """
        self._check(weights)
        norm = _positive((weights * self.norms).sum() / weights.sum())
        return (self.values * (weights / (norm * batch_size))).sum()

    def _check(self, weights: "Tensor") -> None:
        if self.whole and not bool((weights == weights[0]).all()):
            raise CriterionError(
                "criterion returns one number for a whole batch, which is of use only where all "
                "samples weigh the same (importance all or random, or selection top); make it "
                'return one loss per sample (reduction="none")'
            )


class SampleCriterion:
    """A criterion, asked for what each sample adds to the loss; see `per_sample_criterion`.

    How its targets must look is tried on a few rows of the first batch of a layout: as they are,
    in the shape of the outputs, flat; and labels also as floats, for binary cross-entropy. The
    first of these is taken with which the loss of a sample depends on no other sample.

    Parameters
    ----------
    criterion : callable or None
        As in `per_sample_criterion`.
    """

    def __init__(self, criterion: Criterion | None) -> None:
        self.is_default = criterion is None
        self._base: Any = _default_criterion if criterion is None else criterion
        self._sums = False  # the parts of a sample's loss, instead of averaging them
        if isinstance(getattr(criterion, "reduction", None), str):
            self._base = copy.deepcopy(criterion)
            self._sums = self._base.reduction == "batchmean"
            self._base.reduction = "none"
        self._forms: dict[Any, _Form] = {}

    def __call__(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        """Return the loss of each sample, (N,); `CriterionError` if the criterion has none."""
        losses = self.losses(outputs, targets)
        if losses.whole:
            raise CriterionError(_not_per_sample((), len(targets)))
        return losses.values

    def losses(self, outputs: "Tensor", targets: "Tensor") -> SampleLosses:
        """Return what the criterion says of each sample.

        Parameters
        ----------
        outputs : (N, ...) float Tensor
        targets : int64 (N,), float32 (N,) or float32 (N, T) Tensor

        Raises
        ------
        CriterionError
            If it fails, returns no loss, or mixes samples.
        """
        import torch

        outputs = outputs.float()
        self._move_to(outputs.device)
        form = self._form(outputs, targets)
        values = self._base(outputs, form.of(targets)).float()
        if form.whole:
            ones = torch.ones(len(targets), device=outputs.device)
            return SampleLosses(values.reshape(()).expand(len(targets)), ones, whole=True)
        if values.ndim > 1:
            parts = values.flatten(1)
            values = parts.sum(dim=1) if self._sums else parts.mean(dim=1)
        return SampleLosses(values, self._norms(targets))

    def takes_labels(self) -> bool:
        """Whether class labels must number the outputs, as in cross-entropy."""
        from torch import nn

        labelled = nn.CrossEntropyLoss | nn.NLLLoss | nn.MultiMarginLoss
        return self.is_default or isinstance(self._base, labelled)

    def threshold(self) -> float:
        """Return the value from which on a single output stands for the label 1."""
        from torch import nn

        return 0.5 if isinstance(self._base, nn.BCELoss) else 0.0

    def _norms(self, targets: "Tensor") -> "Tensor":
        import torch
        from torch import nn

        base = self._base
        weighs = isinstance(base, nn.CrossEntropyLoss | nn.NLLLoss)
        if not weighs or targets.is_floating_point():
            return torch.ones(len(targets), device=targets.device)
        counted = targets != base.ignore_index
        norms: Tensor = counted.float()
        if base.weight is not None:
            norms = norms * base.weight.float()[torch.where(counted, targets, 0)]
        return norms.flatten(1).mean(dim=1) if norms.ndim > 1 else norms

    def _move_to(self, device: "torch.device") -> None:
        from torch import nn

        if isinstance(self._base, nn.Module):
            self._base.to(device)

    def _form(self, outputs: "Tensor", targets: "Tensor") -> "_Form":
        layout = outputs.shape[1:], targets.shape[1:], targets.is_floating_point()
        if layout not in self._forms:
            self._forms[layout] = self._find_form(outputs.detach(), targets)
        return self._forms[layout]

    def _find_form(self, outputs: "Tensor", targets: "Tensor") -> "_Form":
        import torch

        if not len(targets):
            return _Form(tuple(targets.shape[1:]))
        forms = _forms(outputs, targets, castable=not self.takes_labels())
        problems: list[CriterionError] = []
        whole: list[_Form] = []
        devices = [outputs.device] if outputs.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            rows = _Rows.of(outputs, targets, len(outputs[0]) if outputs.ndim > 1 else 0)
            for form in forms:
                try:
                    if not self._is_whole(form, rows):
                        return form
                    whole.append(form)
                except CriterionError as problem:
                    problems.append(problem)
            if not whole:
                raise problems[0]
            return replace(self._unambiguous(whole, rows), whole=True)

    def _is_whole(self, form: "_Form", rows: "_Rows") -> bool:
        """Whether the criterion gives one number; `CriterionError` if it cannot be used so."""
        import torch

        losses = self._tried(form, rows.outputs, rows.targets)
        if losses.numel() == 1:
            return True
        if not losses.ndim or len(losses) != len(rows.targets):
            raise CriterionError(_not_per_sample(tuple(losses.shape), len(rows.targets)))
        others = self._tried(form, rows.other_outputs, rows.other_targets)
        if torch.allclose(losses[1:], others[1:], _TOLERANCE, 0.0, equal_nan=True):
            return False
        raise CriterionError(
            "criterion gives a loss of a sample that depends on other samples: it may broadcast "
            f"outputs {_shape(rows.outputs)} against targets {_shape(rows.targets)}; "
            "make both of one shape in the criterion, or in the model's output"
        )

    def _unambiguous(self, forms: "list[_Form]", rows: "_Rows") -> "_Form":
        """Return the form in which one number for the batch is that of no broadcasting."""
        own = tuple(rows.targets.shape[1:])
        shapes = {form.shape for form in forms}
        if len(shapes) == 1:
            return forms[0]
        for form in forms:
            if self._is_mean_of_rows(form, rows):
                return form
        if rows.outputs.shape[1:] == own and forms[0].shape == own:
            return forms[0]
        raise CriterionError(
            f"criterion returns one number for outputs {_shape(rows.outputs)} and targets "
            f"{_shape(rows.targets)}, which it may broadcast; make both of one shape, or return "
            'one loss per sample (reduction="none")'
        )

    def _is_mean_of_rows(self, form: "_Form", rows: "_Rows") -> bool:
        import torch

        count = len(rows.targets)
        try:
            whole = self._tried(form, rows.outputs, rows.targets)
            single = torch.stack(
                [
                    self._tried(form, rows.outputs[i : i + 1], rows.targets[i : i + 1]).reshape(())
                    for i in range(count)
                ]
            )
        except (CriterionError, RuntimeError):
            return False
        # Zeros, such as a single sample's correlation, say nothing.
        return bool(single.any()) and any(
            torch.allclose(whole.reshape(()), expected, _TOLERANCE)
            for expected in (single.mean(), single.sum())
        )

    def _tried(self, form: "_Form", outputs: "Tensor", targets: "Tensor") -> "Tensor":
        import torch

        torch.manual_seed(0)
        given = form.of(targets)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # torch's own losses warn when they broadcast.
                warnings.filterwarnings("error", "Using a target size")
                losses: Any = self._base(outputs, given)
        except Exception as error:  # a criterion may raise anything
            raise CriterionError(
                f"criterion fails with outputs {_shape(outputs)} {_dtype(outputs)} and targets "
                f"{_shape(given)} {_dtype(given)}: {type(error).__name__}: {first_line(error)}"
            ) from error
        if not isinstance(losses, torch.Tensor):
            raise CriterionError(
                f"criterion returned {type(losses).__name__}; it must return a Tensor"
            )
        return losses.float()


def per_sample_criterion(criterion: Criterion | None) -> SampleCriterion:
    """Turn a criterion into one that gives a loss for each sample.

    Parameters
    ----------
    criterion : callable or None
        ``(outputs, targets) -> losses``. A torch loss module is copied with ``reduction="none"``;
        one that weighs classes still steps as its own weighted mean does. None: cross-entropy, or
        squared error where the targets are floats. Losses of more than one dimension are averaged
        over all but the first. One number for the whole batch is legal where all importance
        weights are equal.

    Returns
    -------
    SampleCriterion
        ``(outputs (N, ...), targets (N, ...)) -> losses (N,)``.
    """
    return criterion if isinstance(criterion, SampleCriterion) else SampleCriterion(criterion)


def first_line(error: BaseException) -> str:
    """Return an error's message on one line, not too long to read."""
    return (str(error).strip().split("\n")[0] or "no message")[:300]


@dataclass(frozen=True)
class _Form:
    """How targets are given to a criterion.

    Attributes
    ----------
    shape : tuple of int
        Of one target.
    floats : bool
        Whether labels become floats.
    whole : bool
        Whether the criterion gives one number for the batch.
    """

    shape: tuple[int, ...]
    floats: bool = False
    whole: bool = False

    def of(self, targets: "Tensor") -> "Tensor":
        """Return targets in this form."""
        return (targets.float() if self.floats else targets).reshape(len(targets), *self.shape)


@dataclass(frozen=True)
class _Rows:
    """Two batches of a few rows; they differ in the first row alone."""

    outputs: "Tensor"
    targets: "Tensor"
    other_outputs: "Tensor"
    other_targets: "Tensor"

    @classmethod
    def of(cls, outputs: "Tensor", targets: "Tensor", classes: int) -> "_Rows":
        """Make them of a batch's first sample, and what it is not."""
        # As many as there is no axis of, so that none can be taken for the batch's.
        count = next(n for n in range(3, 99) if n not in (*outputs.shape[1:], *targets.shape[1:]))
        output, target = outputs[:1], targets[:1]
        other_output = _other_floats(output)
        other_target = (
            _other_floats(target) if targets.is_floating_point() else _other_label(targets, classes)
        )

        def rows(first: "Tensor", second: "Tensor", third: "Tensor") -> "Tensor":
            import torch

            return torch.cat([first, second, *[third] * (count - 2)])

        return cls(
            rows(output, other_output, output),
            rows(target, other_target, target),
            rows(other_output, other_output, output),
            rows(other_target, other_target, target),
        )


def _forms(outputs: "Tensor", targets: "Tensor", castable: bool) -> list[_Form]:
    own, wanted = tuple(targets.shape[1:]), tuple(outputs.shape[1:])
    shapes = [own]
    if targets.is_floating_point() or castable:
        if math.prod(own) == math.prod(wanted):
            shapes.append(wanted)
        if math.prod(own) == 1:
            shapes.append(())
    shapes = list(dict.fromkeys(shapes))
    forms = [_Form(shape) for shape in shapes]
    if castable and not targets.is_floating_point():
        forms += [_Form(shape, floats=True) for shape in shapes]
    return forms


def _other_floats(values: "Tensor") -> "Tensor":
    """Return other floats of the same sign, and within [0, 1] if these are."""
    import torch

    if bool(((values >= 0) & (values <= 1)).all()):
        return torch.where(values == 0.5, 0.25, 1 - values)
    return torch.where(values == 0, 1.0, 2 * values)


def _other_label(labels: "Tensor", classes: int) -> "Tensor":
    label = labels[:1]
    others = labels[(labels != label).flatten(1).any(dim=1) if labels.ndim > 1 else labels != label]
    if len(others):
        return others[:1]
    return label - 1 if bool((label > 0).all()) else label + int(classes != 1)


def _default_criterion(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    from torch.nn import functional

    if targets.is_floating_point():
        return functional.mse_loss(outputs, targets, reduction="none")
    return functional.cross_entropy(outputs, targets, reduction="none")


def _positive(norm: "Tensor") -> "Tensor":
    """Return a denominator; that of a batch of ignored samples alone, whose losses are 0 too."""
    import torch

    return norm.clamp_min(torch.finfo(norm.dtype).tiny)


def _not_per_sample(shape: tuple[int, ...], count: int) -> str:
    return (
        f"criterion returned shape {shape} for {count} samples; one loss per sample is needed "
        '(reduction="none")'
    )


def _shape(rows: "Tensor") -> str:
    inner = ", ".join(map(str, rows.shape[1:]))
    return f"(N, {inner})" if inner else "(N,)"


def _dtype(tensor: "Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")
