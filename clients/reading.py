"""Reading samples so that one of no use costs no other: it is converted, or skipped and counted."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from logging import WARNING
from typing import Any

import numpy as np
from flwr.common import log
from numpy.typing import NDArray

from clients.items import ItemError, ItemNotReady, as_sample_dtype
from clients.source import DatasetSource, SampleSource
from codec import CodecError, CodecOptions, SampleSpec
from codec.messages import Description, Terms
from codec.samples.channel_axis import is_series
from codec.samples.options import AUTO

Item = tuple[NDArray[Any], NDArray[Any]]  # sample and target
Refuse = Callable[[NDArray[np.bool_], str], None]  # rows, and why

_FIRST_LOOKED_AT = 4  # samples that say what a source holds, if they agree
_LOOKED_AT = 32  # otherwise
_MOST_OUTSIDE = 0.5  # share of their values beyond the declared range
_MANY_OUTPUTS = 1 << 24  # of a model for which whole targets are labels
_TYPICAL, _TYPICAL_VALUES = 256, 1 << 20  # samples that stand for all, and their values
_READ_AGAIN = 6  # samples that show whether each reading gives another version
_LARGEST = float(np.float32(1e29))  # absolute value; a spec takes up to 1e30
_LINES = 3  # of the log, for samples that are skipped
_DIGEST_BYTES = 6
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of grey (ITU-R BT.601)
_OTHER_SHAPE = "of another shape"


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
    first_words : str
        What was wrong with the first sample of no use.
    later : list of int
        Places of samples that cannot be read yet.
    """

    samples: NDArray[Any]
    targets: NDArray[Any]
    positions: NDArray[np.int64]
    skipped: Counter[str] = field(default_factory=Counter)
    clipped: int = 0
    first_words: str = ""
    later: list[int] = field(default_factory=list)

    def skip(self, reason: str, words: str) -> None:
        """Count a sample of no use."""
        self.skipped[reason] += 1
        self.first_words = self.first_words or words


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
    _told: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    @cached_property
    def kind(self) -> SampleSpec:
        """What the samples are: their shape, type and targets, as most of those looked at are.

        The range is the declared one, or that of those looked at; `spec_of` measures it anew.

        Raises
        ------
        CodecError
            If there are no samples, none of use among those looked at, or they do not fit the
            terms.
        """
        length = len(self.source)
        if not length:
            raise CodecError("the data set has 0 samples, at least 1 is needed")
        first = range(min(_FIRST_LOOKED_AT, length))
        found, error = self._looked_at(first)
        if error is not None or len({_form(item) for item in found}) > 1:
            first = range(min(_LOOKED_AT, length))  # and as many from everywhere
            spread = np.linspace(0, length - 1, min(_LOOKED_AT, length)).astype(int).tolist()
            found, error = self._looked_at(dict.fromkeys([*first, *spread]))
        if not found:
            assert error is not None
            raise CodecError(
                f"none of the first {len(first)} samples can be read: {_words(error)}"
            ) from error
        return self._kind_of(found)

    def _looked_at(self, indices: Iterable[int]) -> tuple[list[Item], Exception | None]:
        """Return the items that can be read, and the first error."""
        found: list[Item] = []
        first_error = None
        for index in indices:
            try:
                found.append(self._item(index))
            except Exception as error:
                first_error = first_error or error
        return found, first_error

    def _kind_of(self, found: Sequence[Item]) -> SampleSpec:
        usual = Counter(sample.shape for sample, _ in found).most_common(1)[0][0]
        shape = self.terms.shape or usual
        converted = [_converted(sample, shape) for sample, _ in found]
        alike = [sample for sample in converted if sample.shape == shape]
        if not alike:
            raise CodecError(
                f"samples are {usual}, the server's model takes {shape}; give the data set a "
                "transform that makes them so"
            )
        dtype = _usual_dtype(alike)
        values = np.stack([sample for sample in alike if sample.dtype == dtype])
        declared = self.declared_range
        if declared:
            _check_declared(values, declared)
        low, high = declared or _own_range(values)
        classes, size = self._targets_of([target for _, target in found])
        return SampleSpec(shape, dtype, low, high, classes, size)

    @cached_property
    def declared_range(self) -> tuple[float, float] | None:
        """Range that the user declares, float32 as it travels; None: it is measured."""
        low, high = self.source.low, self.source.high
        if low is None and high is None:
            return None
        if low is None or high is None or not low < high:
            raise CodecError(
                f"low = {low} and high = {high} of the samples must both be given, the lower one "
                "first; or neither: the range is measured"
            )
        return float(np.float32(low)), float(np.float32(high))

    def _targets_of(self, targets: Sequence[NDArray[Any]]) -> tuple[int, int]:
        """Return number of classes, and floats in a target."""
        size, axes = Counter((t.size, t.ndim) for t in targets).most_common(1)[0][0]
        known, outputs = self.source.classes, self.terms.outputs
        if size != 1:
            self._check_outputs(size, "floats in a target")
            return 0, size
        targets = [target for target in targets if target.size == 1]
        floats = 1 if axes else 0
        if outputs == 1 and (known or 0) <= 2:  # as for a binary loss: a single output is a float
            return 0, floats
        fractions = [t.item() for t in targets if not float(t.item()).is_integer()]
        whole = 2 * len(fractions) < len(targets)
        if known and not whole:
            raise CodecError(
                f"targets are floats such as {fractions[0]:g}, but the data set has {known} "
                "classes; pass classes=0 for float targets"
            )
        integers = 2 * sum(target.dtype.kind in "iub" for target in targets) > len(targets)
        if known == 0 or not (known or integers or (whole and outputs > 1)):
            return 0, floats
        if self._is_mapped:
            return len(self.terms.class_names), 0
        if known:
            self._check_outputs(known, "classes")
        seen = 1 + max(int(t.item()) for t in targets if float(t.item()).is_integer())
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
    def _is_mapped(self) -> bool:
        """Whether labels are translated into the server's, by the names of the classes."""
        return bool(self._class_names and self.terms.class_names)

    @property
    def _label_limit(self) -> int | None:
        """Labels lie below it; None: their number is not known."""
        if self._is_mapped:
            return len(self._class_names)
        return self.source.classes or self.terms.outputs or None

    @property
    def class_digest(self) -> str:
        """Digest of the class names, unless the server states its own."""
        if not self._class_names or self.terms.class_names or not self.kind.classes:
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
            class_names=self._class_names if kind.classes else (),
            whole=not kind.classes and self._may_be_labels(),
        )

    def _may_be_labels(self) -> bool:
        """Whether targets that are floats would be labels for a model of many outputs."""
        return bool(Reader(self.source, replace(self.terms, outputs=_MANY_OUTPUTS)).kind.classes)

    def is_random(self, indices: NDArray[np.int64], samples: NDArray[Any]) -> bool:
        """Whether samples that were read are others when read again.

        That is so after a random transform; a few are enough to tell.
        """
        for index, before in zip(indices[:_READ_AGAIN], samples[:_READ_AGAIN], strict=True):
            batch = self.read(np.array([index]))
            if len(batch.samples) and not np.array_equal(batch.samples[0], before):
                return True
        return False

    def spec_of(
        self,
        samples: NDArray[Any],
        codec: CodecOptions,
        targets: NDArray[Any] | None = None,
        like: NDArray[Any] | None = None,
    ) -> SampleSpec:
        """Return the spec of a payload of these samples: with a measured range, theirs.

        `like` are samples to whose spread they are coded; they decide what the samples are.
        """
        seen = samples if like is None else like
        spec = replace(self.kind, codec=codec)
        table = codec.codec == AUTO and spec.dtype == "float32" and samples.ndim == 2
        if table and codec.relative_to == "spread" and len(seen) and is_series(seen):
            spec = replace(spec, codec=replace(codec, codec="dct"))
        if spec.classes and self._label_limit is None and targets is not None and len(targets):
            spec = replace(spec, classes=max(spec.classes, 1 + int(targets.max())))
        if self.declared_range or not len(samples):
            return spec
        low, high = _own_range(samples)
        if like is not None:
            lowest, highest = _own_range(like)
            low, high = min(low, lowest), max(high, highest)
        return replace(spec, low=low, high=high)

    @cached_property
    def typical(self) -> Batch:
        """Samples from everywhere in the source, which stand for all of it; perhaps none."""
        length = len(self.source)
        most = max(1, min(_TYPICAL, length, _TYPICAL_VALUES // math.prod(self.kind.shape)))
        return self.read(np.linspace(0, length - 1, most).astype(np.int64))

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Return the samples of use at some indices.

        Parameters
        ----------
        indices : (N,) int64 array
        """
        batch = self._together(indices) or self._singly(indices)
        self._check(batch, indices)
        missing = len(indices) - len(batch.positions) - len(batch.later)
        if missing:
            self._tell(missing, batch.first_words)
        return batch

    def _together(self, indices: NDArray[np.int64]) -> Batch | None:
        """Return what a source of arrays gives at once; None where that fails."""
        if isinstance(self.source, DatasetSource) or not len(indices):
            return None
        kind, count = self.kind, len(indices)
        try:
            found, targets = map(np.asarray, self.source.get_items(indices))
            samples = as_sample_dtype(found, found.ndim - 1)
        except Exception:  # of one item, perhaps: which one, and why, is found out item by item
            return None
        alike = samples.shape == (count, *kind.shape) and samples.dtype == kind.dtype
        if not alike or targets.shape[:1] != (count,) or not self._fits(targets[0]):
            return None
        return Batch(samples, targets, np.arange(count))

    def _singly(self, indices: NDArray[np.int64]) -> Batch:
        """Return what can be read, item by item."""
        kind = self.kind
        nothing = np.empty((0, *kind.target_shape), np.int64 if kind.classes else np.float32)
        batch = Batch(np.empty((0, *kind.shape), kind.dtype), nothing, np.empty(0, np.int64))
        samples, targets, positions = [], [], []
        for position, index in enumerate(indices.tolist()):
            try:
                sample, target = self._fitted(*self._item(index))
            except ItemNotReady:
                batch.later.append(position)
                continue
            except Exception as error:
                batch.skip(_reason(error), f"sample {index}: {_words(error)}")
                continue
            samples.append(sample)
            targets.append(target)
            positions.append(position)
        if positions:
            batch.samples, batch.targets = np.stack(samples), np.stack(targets)
            batch.positions = np.array(positions, np.int64)
        return batch

    def _item(self, index: int) -> Item:
        """Return one sample, in a type in which samples are kept, and its target."""
        if isinstance(self.source, DatasetSource):
            return self.source.get_item(index)
        samples, targets = map(np.asarray, self.source.get_items(np.array([index])))
        if len(samples) != 1 or len(targets) != 1:
            raise ItemError(
                f"get_items of one index gives {len(samples)} samples and {len(targets)} targets",
                "not one item for an index",
            )
        if targets.dtype.kind not in "iufb":
            raise ItemError(f"target is of {targets.dtype}; legal: numbers", "target no number")
        return as_sample_dtype(samples[0]), targets[0]

    def _fits(self, target: NDArray[Any]) -> bool:
        return target.dtype.kind in "iufb" and target.size == max(1, self.kind.target_size)

    def _fitted(self, sample: NDArray[Any], target: NDArray[Any]) -> Item:
        """Return an item in the form of the others."""
        kind = self.kind
        sample = _converted(sample, kind.shape)
        if sample.shape != kind.shape:
            raise ItemError(f"shape {sample.shape}, most have {kind.shape}", _OTHER_SHAPE)
        if not self._fits(target):
            raise ItemError(
                f"target has shape {target.shape}, most have {kind.target_shape}",
                f"target {_OTHER_SHAPE}",
            )
        # As floats: items of a batch may be of several types.
        return _as_dtype(sample, kind.dtype), target.reshape(kind.target_shape).astype(np.float64)

    def _check(self, batch: Batch, indices: NDArray[np.int64]) -> None:
        """Take out samples and targets of no use, clip values, map labels."""
        useful = np.ones(len(batch.samples), bool)

        def refuse(bad: NDArray[np.bool_], reason: str) -> None:
            for row in np.flatnonzero(bad & useful).tolist():
                batch.skip(reason, f"sample {indices[batch.positions[row]]}: {reason}")
            useful[bad] = False

        if batch.samples.dtype == np.float32:
            flat = batch.samples.reshape(len(useful), -1)
            within = (flat.min(axis=1) >= -_LARGEST) & (flat.max(axis=1) <= _LARGEST)
            refuse(np.logical_not(within), "not finite")  # NaN is never within
        if self.kind.classes:
            batch.targets = self._checked_labels(batch.targets, refuse)
        else:
            with np.errstate(over="ignore"):
                floats = batch.targets.astype(np.float32)
            batch.targets = floats.reshape(len(useful), *self.kind.target_shape)
            rows = batch.targets.reshape(len(useful), -1)
            refuse(np.logical_not(np.isfinite(rows).all(axis=1)), "target not finite")
        if not useful.all():
            batch.samples, batch.targets = batch.samples[useful], batch.targets[useful]
            batch.positions = batch.positions[useful]
        batch.samples, batch.clipped = self._clipped(batch.samples)

    def _checked_labels(self, targets: NDArray[Any], refuse: Refuse) -> NDArray[np.int64]:
        """Return labels as the server counts its classes, and refuse what is none."""
        flat = targets.reshape(len(targets))
        if flat.dtype.kind == "f":
            refuse(~np.isfinite(flat) | (np.rint(flat) != flat), "label is not whole")
            flat = np.where(np.isfinite(flat), np.clip(flat, -1, 2**53), -1)
        labels = flat.astype(np.int64)
        limit = self._label_limit
        outside = (labels < 0) | (labels >= (np.inf if limit is None else limit))
        refuse(outside, "label below 0" if limit is None else f"label outside 0 to {limit - 1}")
        if not self._is_mapped:
            return labels
        numbers = {name: number for number, name in enumerate(self.terms.class_names)}
        table = np.array([numbers.get(name, -1) for name in self._class_names])
        mapped = table[np.where(outside, 0, labels)]
        for label in np.unique(labels[(mapped < 0) & ~outside]).tolist():
            reason = f"class {self._class_names[label]!r} is unknown to the server"
            refuse(labels == label, reason)
        return mapped

    def _clipped(self, samples: NDArray[Any]) -> tuple[NDArray[Any], int]:
        if self.declared_range is None:
            return samples, 0
        low: Any
        high: Any
        low, high = self.declared_range
        if samples.dtype.kind in "iu":
            limits = np.iinfo(samples.dtype)
            low, high = max(np.ceil(low), limits.min), min(np.floor(high), limits.max)
            if (low, high) == (limits.min, limits.max):
                return samples, 0
        low, high = np.array([low, high]).astype(samples.dtype)
        if not samples.size or (samples.min() >= low and samples.max() <= high):
            return samples, 0
        outside = np.count_nonzero(samples < low) + np.count_nonzero(samples > high)
        return np.clip(samples, low, high), int(outside)

    def _tell(self, count: int, words: str) -> None:
        """Log what is skipped, in few lines."""
        if len(self._told) < _LINES:
            self._told.append(words)
            log(WARNING, "%d samples are skipped, %s", count, words)


def _form(item: Item) -> tuple[object, ...]:
    sample, target = item
    return sample.shape, sample.dtype, target.shape, target.dtype.kind


def _usual_dtype(samples: Sequence[NDArray[Any]]) -> str:
    found = Counter(sample.dtype.name for sample in samples)
    if "int32" in found and "float32" in found:
        return "float32"  # whole numbers among others
    return found.most_common(1)[0][0]


def _check_declared(samples: NDArray[Any], declared: tuple[float, float]) -> None:
    """Refuse a range that is about other values: clipping to it would leave nothing of these."""
    low, high = declared
    finite = samples[np.isfinite(samples)]
    outside = int(np.count_nonzero(finite < low) + np.count_nonzero(finite > high))
    if outside > _MOST_OUTSIDE * finite.size:
        raise CodecError(
            f"value_range = ({low:g}, {high:g}), but samples hold {finite.min():g} to "
            f"{finite.max():g}; legal: the range of the values, or None to measure it"
        )


def _own_range(samples: NDArray[Any]) -> tuple[float, float]:
    """Return the range of samples that declare none."""
    return (0.0, 255.0) if samples.dtype == np.uint8 else measured_range(samples)


def measured_range(samples: NDArray[Any]) -> tuple[float, float]:
    """Return lowest and highest of finite values, apart from each other even if all are equal."""
    if samples.dtype.kind == "f":
        within = (samples >= -_LARGEST) & (samples <= _LARGEST)
        samples = samples if within.all() else samples[within]
    if not samples.size:
        return 0.0, 1.0
    low, high = float(samples.min()), float(samples.max())
    if low < high:
        return low, high
    if samples.dtype.kind in "iu":
        return (low - 1, high) if low > 0 else (low, high + 1)
    return low, low + max(1.0, abs(low))


def _as_dtype(sample: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return a sample as most are; `ItemError` if its values are others."""
    if sample.dtype == dtype:
        return sample
    if dtype != "float32":
        low, high = (0, 255) if dtype == "uint8" else (-_LARGEST, _LARGEST)
        if not ((np.rint(sample) == sample) & (sample >= low) & (sample <= high)).all():
            words = "8-bit" if dtype == "uint8" else "of integers"
            raise ItemError(f"sample is {sample.dtype}, most are {words}", "of another depth")
    return sample.astype(dtype)


def _converted(sample: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a sample in a shape that holds the same image, if there is one; else as it is.

    A channel axis may be missing or last; grey among coloured becomes coloured, or the other way
    round.
    """
    if sample.shape == shape or not 2 <= len(shape) <= 3:
        return sample
    if sample.shape == (1, *shape):
        return sample.reshape(shape)
    image = sample[np.newaxis] if sample.ndim == 2 else sample
    if image.ndim != 3 or len(shape) != 3:
        return sample
    if image.shape[1:] != shape[1:] and image.shape[:2] == shape[1:]:
        image = np.moveaxis(image, -1, 0)
    if image.shape[1:] != shape[1:]:
        return sample
    return _coloured(image, shape[0])


def _coloured(image: NDArray[Any], channels: int) -> NDArray[Any]:
    """Return an image (C, H, W) in grey or in colour, if it can be either; else as it is."""
    if (len(image), channels) == (1, 3):
        return np.repeat(image, 3, axis=0)
    if (len(image), channels) != (3, 1):
        return image
    grey = np.tensordot(_LUMA, image.astype(np.float32), axes=(0, 0))[np.newaxis]
    as_it_was: NDArray[Any] = grey if image.dtype == np.float32 else np.rint(grey)
    return as_it_was.astype(image.dtype)


def _reason(error: Exception) -> str:
    if isinstance(error, ItemError):
        return error.reason
    return "of no use" if isinstance(error, CodecError) else f"unreadable ({type(error).__name__})"


def _words(error: Exception) -> str:
    text = f"{error}".split("\n")[0][:200]
    return text if isinstance(error, CodecError) else f"{type(error).__name__}: {text}"
