"""Reading samples so that one of no use costs no other: it is converted, or skipped and counted."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from logging import WARNING
from typing import Any

import numpy as np
from flwr.common import log
from numpy.typing import NDArray

from clients.items import as_sample_dtype
from clients.source import SampleSource
from codec import CodecError, CodecOptions, SampleSpec
from codec.messages import Description, Terms
from codec.samples.channel_axis import is_series
from codec.samples.options import AUTO

_LOOKED_AT = 16  # samples that say what a source holds
_DIGEST_BYTES = 6
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of grey (ITU-R BT.601)


@dataclass
class Batch:
    """Samples of use.

    Attributes
    ----------
    samples : (N, *shape) array
    targets : (N,) or (N, target_size) array
    positions : (N,) int64 array
        Their places among those that were asked for.
    skipped : Counter of str
        Samples of no use, by reason.
    clipped : int
        Values that lay outside the declared range.
    """

    samples: NDArray[Any]
    targets: NDArray[Any]
    positions: NDArray[np.int64]
    skipped: Counter[str] = field(default_factory=Counter)
    clipped: int = 0


@dataclass(frozen=True)
class Reader:
    """Reads one source, as one kind of sample.

    Attributes
    ----------
    source : SampleSource
    terms : Terms
        What the server can use.
    """

    source: SampleSource
    terms: Terms = Terms()  # noqa: RUF009 - frozen

    @cached_property
    def kind(self) -> SampleSpec:
        """What the samples are: their shape, type and targets, as most of the first ones are.

        The range is the declared one, or that of the first ones; `spec_of` measures it anew.

        Raises
        ------
        CodecError
            If there are no samples, none of use among the first, or they do not fit the terms.
        """
        length = len(self.source)
        if not length:
            raise CodecError("the data set has 0 samples, at least 1 is needed")
        first = range(min(_LOOKED_AT, length))
        found, errors = [], []
        for index in first:
            try:
                found.append(self._item(index))
            except Exception as error:
                errors.append(error)
        if not found:
            raise CodecError(
                f"none of the first {len(first)} samples can be read: {_words(errors[0])}"
            ) from errors[0]
        return self._kind_of(found)

    def _kind_of(self, found: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> SampleSpec:
        shapes = Counter(sample.shape for sample, _ in found)
        shape = self.terms.shape or shapes.most_common(1)[0][0]
        alike = [pair for pair in found if pair[0].shape == shape] or list(found)
        kinds = {sample.dtype.name for sample, _ in alike}
        dtype = kinds.pop() if len(kinds) == 1 else "float32"
        samples = np.stack([s for s, _ in alike]) if alike[0][0].shape == shape else None
        if samples is None and not _convertible(shapes.most_common(1)[0][0], shape):
            raise CodecError(
                f"samples are {shapes.most_common(1)[0][0]}, the server's model takes {shape}; "
                "give the data set a transform that makes them so"
            )
        low, high = self._range(samples, dtype)
        classes, size = self._targets_of([target for _, target in alike])
        return SampleSpec(shape, dtype, low, high, classes, size)

    def _range(self, samples: NDArray[Any] | None, dtype: str) -> tuple[float, float]:
        low, high = self.source.low, self.source.high
        if low is not None and high is not None:
            return float(low), float(high)
        return (0.0, 255.0) if dtype == "uint8" or samples is None else measured_range(samples)

    def _targets_of(self, targets: Sequence[NDArray[Any]]) -> tuple[int, int]:
        """Return number of classes, and floats in a target."""
        first, outputs = targets[0], self.terms.outputs
        known = self.source.classes
        if first.ndim == 1 and (first.size > 1 or first.dtype.kind == "f"):
            self._check_outputs(first.size, "floats in a target")
            return 0, first.size
        whole = all(float(target.reshape(-1)[0]).is_integer() for target in targets)
        is_label = (
            known != 0 and whole and (first.dtype.kind in "iub" or bool(known) or outputs > 1)
        )
        if not is_label:
            if known:
                raise CodecError(
                    f"targets are floats such as {first}, but the data set has {known} classes; "
                    "pass classes=0 for float targets"
                )
            return 0, 0
        names = self._class_names
        if names and self.terms.class_names:
            return len(self.terms.class_names), 0  # labels are mapped onto the server's
        if known:
            self._check_outputs(known, "classes")
        seen = 1 + max(int(target.reshape(-1)[0]) for target in targets)
        return known or outputs or max(seen, 2), 0

    def _check_outputs(self, needed: int, what: str) -> None:
        if self.terms.outputs and needed > self.terms.outputs:
            raise CodecError(
                f"the data set has {needed} {what}, the server's model {self.terms.outputs} "
                "outputs; give the model more outputs, or the data set fewer"
            )

    @cached_property
    def _class_names(self) -> tuple[str, ...]:
        return tuple(getattr(self.source, "class_names", ()) or ())

    @property
    def class_digest(self) -> str:
        """Digest of the class names, unless the server states its own."""
        if not self._class_names or self.terms.class_names:
            return ""
        text = "\0".join(self._class_names).encode()
        return hashlib.blake2s(text, digest_size=_DIGEST_BYTES).hexdigest()

    def describe(self, client: int) -> Description:
        """Return what the source holds, for the server."""
        kind = self.kind
        return Description(
            client=client,
            num_examples=len(self.source),
            shape=kind.shape,
            dtype=kind.dtype,
            low=kind.low,
            high=kind.high,
            classes=kind.classes,
            target_size=kind.target_size,
            class_names=self._class_names,
        )

    def is_random(self) -> bool:
        """Whether a sample differs each time that it is read, as after a random transform."""
        try:
            once, again = self._item(0)[0], self._item(0)[0]
        except Exception:
            return False
        return once.shape != again.shape or not np.array_equal(once, again, equal_nan=True)

    def spec_of(self, samples: NDArray[Any], codec: CodecOptions) -> SampleSpec:
        """Return the spec of a payload of these samples: with a measured range, theirs."""
        spec = replace(self.kind, codec=codec)
        table = codec.codec == AUTO and spec.dtype == "float32" and samples.ndim == 2
        if table and is_series(samples):
            spec = replace(spec, codec=replace(codec, codec="dct"))
        if self.source.low is not None or spec.dtype == "uint8" or not len(samples):
            return spec
        low, high = measured_range(samples)
        return replace(spec, low=low, high=high)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Return the samples of use at some indices.

        Parameters
        ----------
        indices : (N,) int64 array
        """
        kind, batch = self.kind, None
        if len(indices):
            try:
                samples, targets = self.source.get_items(indices)
                batch = self._checked(np.asarray(samples), np.asarray(targets))
            except Exception:
                batch = None
        if batch is None:
            batch = self._one_by_one(indices)
        if not len(batch.samples):
            empty = np.empty((0, *kind.target_shape), np.int64 if kind.classes else np.float32)
            batch = replace(batch, samples=np.empty((0, *kind.shape), kind.dtype), targets=empty)
        return batch

    def _one_by_one(self, indices: NDArray[np.int64]) -> Batch:
        good: list[tuple[NDArray[Any], NDArray[Any]]] = []
        positions, skipped, clipped = [], Counter[str](), 0
        for position, index in enumerate(indices):
            try:
                sample, target = self._item(int(index))
                one = self._checked(_converted(sample, self.kind.shape)[None], target[None])
            except Exception as error:
                skipped[_reason(error)] += 1
                log(WARNING, "sample %d is skipped: %s", index, _words(error))
                continue
            skipped += one.skipped
            clipped += one.clipped
            if len(one.samples):
                good.append((one.samples[0], one.targets[0]))
                positions.append(position)
        return Batch(
            np.stack([sample for sample, _ in good]) if good else np.empty(0),
            np.stack([target for _, target in good]) if good else np.empty(0),
            np.array(positions, np.int64),
            skipped,
            clipped,
        )

    def _item(self, index: int) -> tuple[NDArray[Any], NDArray[Any]]:
        samples, targets = self.source.get_items(np.array([index]))
        sample = np.asarray(samples)[0]
        return as_sample_dtype(sample), np.asarray(targets)[0]

    def _checked(self, samples: NDArray[Any], targets: NDArray[Any]) -> Batch:
        """Return the samples of use among arrays of one shape; `CodecError` if it is another."""
        kind = self.kind
        if samples.shape[1:] != kind.shape:
            raise _ShapeError(f"sample has shape {samples.shape[1:]}, most have {kind.shape}")
        samples = _as_dtype(as_sample_dtype_of_batch(samples, kind), kind.dtype)
        labels, reasons = self._checked_targets(targets)
        finite = np.isfinite(samples.reshape(len(samples), -1)).all(axis=1).tolist()
        reasons = [
            reason or (None if fine else "not finite")
            for reason, fine in zip(reasons, finite, strict=True)
        ]
        useful = np.array([reason is None for reason in reasons], bool)
        samples, clipped = self._clipped(samples[useful])
        skipped = Counter(reason for reason in reasons if reason is not None)
        return Batch(samples, labels[useful], np.flatnonzero(useful), skipped, clipped)

    def _checked_targets(self, targets: NDArray[Any]) -> tuple[NDArray[Any], list[str | None]]:
        kind, count = self.kind, len(targets)
        if not kind.classes:
            floats = targets.astype(np.float32).reshape(count, *kind.target_shape)
            bad = (~np.isfinite(floats.reshape(count, -1))).sum(axis=1).tolist()
            return floats, ["target not finite" if number else None for number in bad]
        flat = targets.reshape(count).astype(np.float64)
        reasons: list[str | None] = [
            None if value.is_integer() else f"label {value:g} is not whole"
            for value in flat.tolist()
        ]
        labels = np.where(np.isfinite(flat), flat, -1).astype(np.int64)
        own, server = self._class_names, self.terms.class_names
        if own and server:
            return self._mapped(labels, reasons)
        for row in np.flatnonzero((labels < 0) | (labels >= kind.classes)):
            reasons[row] = reasons[row] or f"label outside 0 to {kind.classes - 1}"
        return labels, reasons

    def _mapped(
        self, labels: NDArray[np.int64], reasons: list[str | None]
    ) -> tuple[NDArray[np.int64], list[str | None]]:
        """Return labels as the server counts its classes."""
        own, server = self._class_names, self.terms.class_names
        numbers = {name: number for number, name in enumerate(server)}
        mapped = labels.copy()
        for row, label in enumerate(labels.tolist()):
            if not 0 <= label < len(own):
                reasons[row] = reasons[row] or f"label outside 0 to {len(own) - 1}"
            elif own[label] not in numbers:
                reasons[row] = f"class {own[label]!r} is unknown to the server"
            else:
                mapped[row] = numbers[own[label]]
        return mapped, reasons

    def _clipped(self, samples: NDArray[Any]) -> tuple[NDArray[Any], int]:
        low, high = self.source.low, self.source.high
        if low is None or high is None:
            return samples, 0
        outside = int(((samples < low) | (samples > high)).sum())
        if not outside:
            return samples, 0
        return np.clip(samples, low, high).astype(samples.dtype), outside


class _ShapeError(CodecError):
    """A sample of another shape."""


def as_sample_dtype_of_batch(samples: NDArray[Any], kind: SampleSpec) -> NDArray[Any]:
    """Return samples (N, *shape) in the type in which samples are kept."""
    if len(kind.shape) == 1 and samples.dtype.kind in "iu":  # tokens, whose axis is their only one
        return as_sample_dtype(samples.reshape(-1)).reshape(samples.shape)
    return as_sample_dtype(samples)


def measured_range(samples: NDArray[Any]) -> tuple[float, float]:
    """Return lowest and highest of finite values, apart from each other even if all are equal."""
    finite = samples[np.isfinite(samples)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if np.float32(low) < np.float32(high) else (low, low + max(1.0, abs(low)))


def _as_dtype(samples: NDArray[Any], dtype: str) -> NDArray[Any]:
    if samples.dtype == dtype:
        return samples
    if dtype == "uint8":  # most were: these have other values
        rounded = np.rint(samples)
        if not ((samples == rounded) & (samples >= 0) & (samples <= 255)).all():
            raise CodecError(f"sample is {samples.dtype}, most are 8-bit")
    return samples.astype(dtype)


def _convertible(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return found != shape and len(found) == len(shape) == 3 and found[1:] == shape[1:] and {
        found[0], shape[0]
    } == {1, 3}  # fmt: skip


def _converted(sample: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a grey image among coloured ones in colour, or the other way round."""
    if sample.ndim == 2 and (1, *sample.shape) == shape:
        return sample[None]
    if sample.ndim == 2 and (3, *sample.shape) == shape:
        return np.repeat(sample[None], 3, axis=0)
    if not _convertible(sample.shape, shape):
        return sample
    if shape[0] == 3:
        return np.repeat(sample, 3, axis=0)
    grey = np.tensordot(_LUMA, sample.astype(np.float32), axes=(0, 0))[None]
    return np.rint(grey).astype(np.uint8) if sample.dtype == np.uint8 else grey


def _reason(error: Exception) -> str:
    if isinstance(error, _ShapeError):
        return "of another shape"
    return "of no use" if isinstance(error, CodecError) else f"unreadable ({type(error).__name__})"


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]
