"""Recognising a sample that is in the bank already, however it was coded.

A reply brings a tag for each sample, the first bytes of its fingerprint (see `codec.identity`).
Of 50,000 samples of ten classes, two bytes agree by chance in about 1,900 pairs of one class; what
agrees is therefore compared, decoded. Figures: ``docs/strategies.md``.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from codec import SampleSpec
from codec.identity import FINGERPRINT_BYTES, read_tags
from codec.samples.channel_axis import ChannelAxis, measured_axis
from strategies.sample_bank.arrays import Arrays

CERTAIN_BYTES = 6  # of a tag: of a million samples, two agree by chance once in 500 banks
MARK_BYTES = 2

# How far apart two codings of a sample may be: the distance that their losses explain, with some
# room as those are means; at most a share of the spread, as samples of a class that differ lie as
# near as that now and then. Of pictures the coarse grid decides, and what is fine if it is clear.
# On the grid a picture's errors are smaller than their mean, and alike from coding to coding.
_ROOM, _MOST, _MOST_COARSE, _CLEAR, _LEAST = 1.5, 0.5, 0.42, 0.3, 0.02
SKETCH = 8  # numbers of a sample
_LIKELY = 2.0  # times that distance, as sketches tell it: of duplicates 1 in 10,000 lies beyond
_FEWEST = 8  # samples whose spread says what a distance is
_SIDE = 8  # of the coarse grid on which pictures are compared, too
_LITTLE_KEPT = 1e-3

Tags = NDArray[np.uint64]
Marks = NDArray[np.uint16]
Floats = NDArray[np.float32]
Sketches = NDArray[np.float16]


@dataclass(frozen=True)
class Loss:
    """What coding has changed of a payload's samples.

    Attributes
    ----------
    exact : bool
        Nothing.
    square : float
        Mean square of the error, in units of the samples' variance.
    """

    exact: bool
    square: float

    @classmethod
    def of(cls, spec: SampleSpec, variance_kept: float) -> "Loss":
        """Return that of a payload, by the share of the variance that is said to be kept."""
        if spec.sample_codec.lossless:
            return cls(exact=True, square=0.0)
        kept = min(1.0, max(_LITTLE_KEPT, variance_kept))
        return cls(exact=False, square=(1 - kept) / kept)


def marks_of(targets: NDArray[Any]) -> Marks:
    """Return two bytes of each target (N,) or (N, t): class labels, or a digest of floats."""
    if targets.dtype.kind != "f":
        return targets.astype(np.uint16)  # of more classes, the lower bytes
    rows = np.ascontiguousarray(targets, "<f4").reshape(len(targets), -1)
    return np.array([zlib.crc32(row.tobytes()) & 0xFFFF for row in rows], np.uint16)


def split_tags(data: bytes, counts: list[int]) -> list[bytes]:
    """Return the tags of each of a reply's payloads.

    Raises
    ------
    PayloadError
        If they are not as many for each sample.
    """
    _, size = read_tags(data, sum(counts))
    ends = np.cumsum([size * count for count in counts]).tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@dataclass
class _Run:
    """Entries in the order of their tags, which are numbers of `size` bytes, the first highest."""

    tags: NDArray[Any]
    marks: Marks
    places: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.tags)

    @classmethod
    def sorted(cls, tags: NDArray[Any], marks: Marks, places: NDArray[np.uint32]) -> "_Run":
        order = np.argsort(tags, kind="stable")
        return cls(tags[order], marks[order], places[order])


def _merged(one: _Run, other: _Run) -> _Run:
    return _Run.sorted(
        np.concatenate([one.tags, other.tags]),
        np.concatenate([one.marks, other.marks]),
        np.concatenate([one.places, other.places]),
    )


@dataclass
class TagIndex:
    """Which of the bank's samples have a tag and a target; 8 bytes a sample at tags of 2.

    Runs of entries, each at least twice as long as the next: adding sorts a sample anew as often
    as the bank doubles.
    """

    _runs: dict[int, list[_Run]] = field(default_factory=dict)  # by the bytes of a tag

    def add(self, tags: bytes, marks: Marks, first: int, kept: NDArray[np.bool_]) -> None:
        """Add samples of a payload; those kept get the places from `first` on."""
        found, size = read_tags(tags, len(marks))
        if not size:
            return
        values = _numbers(found, size)[kept].astype(_type_of(size))
        places = first + np.arange(len(values), dtype=np.uint32)
        runs = self._runs.setdefault(size, [])
        runs.append(_Run.sorted(values, marks[kept], places.astype(np.uint32)))
        while len(runs) > 1 and len(runs[-2]) < 2 * len(runs[-1]):
            last = runs.pop()
            runs[-1] = _merged(runs[-1], last)

    def find(self, tags: bytes, marks: Marks) -> Iterator[tuple[int, int, int]]:
        """Yield samples of a payload with places of the bank's like them, and bytes that agree.

        Tags of different sizes are compared by as many bytes as both have.
        """
        found, size = read_tags(tags, len(marks))
        if not size:
            return
        numbers = _numbers(found, size)
        matches = []
        for held, runs in self._runs.items():
            common = min(size, held)
            # Of the other bytes any may follow.
            low = numbers >> np.uint64(8 * (size - common)) << np.uint64(8 * (held - common))
            high = low + np.uint64((1 << 8 * (held - common)) - 1)
            kind = _type_of(held)
            for run in runs:
                starts = np.searchsorted(run.tags, low.astype(kind), "left")
                ends = np.searchsorted(run.tags, high.astype(kind), "right")
                for row in np.flatnonzero(starts < ends).tolist():
                    part = slice(starts[row], ends[row])
                    like = run.places[part][run.marks[part] == marks[row]]
                    matches += [(row, place, common) for place in like.tolist()]
        yield from sorted(matches)


def _numbers(tags: Tags, size: int) -> Tags:
    """Return tags as numbers whose highest byte is the first, so that equal beginnings are near."""
    turned = tags.astype("<u8").view(">u8").astype(np.uint64)
    return turned >> np.uint64(8 * (FINGERPRINT_BYTES - size))


def _type_of(size: int) -> type[np.unsignedinteger[Any]]:
    if size <= 2:
        return np.uint8 if size == 1 else np.uint16
    return np.uint32 if size <= 4 else np.uint64


@dataclass(frozen=True)
class _View:
    """Samples (N, C, K) by channel, and the moments (C,) of each channel."""

    values: Floats
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]

    @classmethod
    def of(cls, samples: Floats) -> "_View":
        values = samples.reshape(*samples.shape[:2], -1)
        mean = values.mean(axis=(0, 2), dtype=np.float64)
        return cls(values, mean, values.var(axis=(0, 2), dtype=np.float64))

    def variance_with(self, other: "_View") -> NDArray[np.float64]:
        """Return the variance of each channel over both."""
        share = len(self.values) / (len(self.values) + len(other.values))
        within = share * self.variance + (1 - share) * other.variance
        return within + share * (1 - share) * np.square(self.mean - other.mean)

    def distance(self, row: int, other: "_View", place: int) -> float:
        """Return how far apart two samples are: root mean square over the channels that vary."""
        variance = self.variance_with(other)
        error = np.square(self.values[row] - other.values[place]).mean(axis=1, dtype=np.float64)
        there = variance > 0
        return math.sqrt(float((error[there] / variance[there]).mean())) if there.any() else 0.0


class Coded:
    r"""Samples of a payload, decoded, and what their coding has changed.

    Attributes
    ----------
    samples : (N, \*shape)
        float32 as the model sees them, or integers that stay so.
    loss : Loss
    """

    def __init__(self, samples: NDArray[Any], loss: Loss) -> None:
        self.samples, self.loss = samples, loss
        self._fine: dict[ChannelAxis, _View] = {}
        self._coarse: dict[ChannelAxis, _View] = {}

    @cached_property
    def axis(self) -> ChannelAxis:
        """Where the samples have their channels, or columns."""
        return measured_axis(self.samples)

    def fine(self, axis: ChannelAxis) -> _View:
        """Return the samples as they are."""
        if axis not in self._fine:
            self._fine[axis] = _View.of(axis.coded(self.samples))
        return self._fine[axis]

    def coarse(self, axis: ChannelAxis) -> _View | None:
        """Return the samples on a coarse grid, if they are pictures."""
        if axis not in self._coarse:
            coded = axis.coded(self.samples)
            if coded.ndim != 4 or min(coded.shape[2:]) < 2 * _SIDE:
                return None
            self._coarse[axis] = _View.of(_coarse(coded))
        return self._coarse[axis]

    @cached_property
    def sketched(self) -> _View:
        """What sketches are made of."""
        return self.coarse(self.axis) or self.fine(self.axis)


def are_one(one: Coded, row: int, other: Coded, place: int) -> bool:
    """Whether two coded samples of equal tags and targets are of one and the same sample.

    They are if their distance is what the coding of both explains. It is taken channel by channel
    (column by column), relative to how both payloads spread; of pictures also on a coarse grid,
    where noise that an unbiased quantizer has added averages out.
    """
    if one.samples.dtype.kind != "f" or (one.loss.exact and other.loss.exact):
        return np.array_equal(one.samples[row], other.samples[place])
    coarse, coarse_of_other = one.coarse(one.axis), other.coarse(one.axis)
    if coarse is not None and coarse_of_other is not None:
        most = _most_coarse(one.loss, other.loss)
        if coarse.distance(row, coarse_of_other, place) <= most:
            return True
    most = _most_fine(one.loss, other.loss, _MOST if coarse is None else _CLEAR)
    return one.fine(one.axis).distance(row, other.fine(one.axis), place) <= most


def _most_coarse(one: Loss, other: Loss) -> float:
    return max(_LEAST, min(math.sqrt(max(one.square, other.square)), _MOST_COARSE))


def _most_fine(one: Loss, other: Loss, most: float) -> float:
    return max(_LEAST, min(_ROOM * math.sqrt(one.square + other.square), most))


def sketches_of(coded: Coded) -> Sketches:
    """Return numbers (N, 8) whose distances are about those of the samples.

    They are sums of a sample's values with random signs, of pictures on the coarse grid. Most of
    what agrees by chance is told apart by them, and need not be decoded.
    """
    values = coded.sketched.values.reshape(len(coded.samples), -1)
    with np.errstate(over="ignore"):
        sums = values @ _signs(values.shape[1]) / math.sqrt(values.shape[1])
        return np.asarray(sums, "<f2")


def may_be_one(one: Coded, sketch: Sketches, other: Sketches, loss: Loss) -> bool:
    """Whether sketches leave it open that a sample of a payload is one of another's."""
    if len(one.samples) < _FEWEST:
        return True
    picture = one.coarse(one.axis) is not None
    most = _most_coarse(one.loss, loss) if picture else _most_fine(one.loss, loss, _MOST)
    spread = math.sqrt(float(one.sketched.variance.mean()))
    mine, theirs = sketch.astype(np.float64), other.astype(np.float64)
    rounding = float(np.max(np.abs(mine) + np.abs(theirs))) * 2.0**-10
    with np.errstate(invalid="ignore"):
        distance = math.sqrt(float(np.square(mine - theirs).mean()))
    return not distance > _LIKELY * most * spread + rounding  # true if it is NaN


@lru_cache(maxsize=8)
def _signs(count: int) -> Floats:
    """Return ones and minus ones (count, 8), the same for ever."""
    words = np.random.PCG64(0).random_raw(-(-count * SKETCH // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=count * SKETCH)
    return 2 * bits.reshape(count, SKETCH).astype(np.float32) - 1


def _coarse(pictures: Floats) -> Floats:
    """Return pictures (N, C, H, W) as means over squares, about 8 on a side."""
    height, width = pictures.shape[2:]
    step = round(min(height, width) / _SIDE)
    high, wide = height // step, width // step
    within = pictures[:, :, : high * step, : wide * step]
    squares = within.reshape(*pictures.shape[:2], high, step, wide, step)
    return np.asarray(squares.mean(axis=(3, 5)), np.float32)


@dataclass(frozen=True)
class Incoming:
    """A payload that is to be added."""

    arrays: Arrays
    loss: Loss
    tags: bytes
    marks: Marks

    @cached_property
    def coded(self) -> Coded:
        """Its samples for comparison."""
        return comparable(self.arrays, self.loss)

    @cached_property
    def sketches(self) -> Sketches:
        """Sketches of its samples; none where tags are missing, or long enough to do without."""
        if not 0 < len(self.tags) < CERTAIN_BYTES * len(self.marks):
            return np.empty((0, SKETCH), np.float16)
        return sketches_of(self.coded)


class Held(Protocol):
    """What a bank knows of its samples, by their places."""

    def sketch(self, place: int) -> tuple[Sketches, Loss] | None:
        """Return a sample's sketch, and what coding has changed of it; None without a sketch."""

    def coded(self, place: int) -> tuple[Coded, int]:
        """Return the payload of a sample, and which of its samples it is."""


def comparable(arrays: Arrays, loss: Loss) -> Coded:
    """Return decoded samples for comparison."""
    return Coded((arrays.in_floats() if arrays.is_float else arrays).samples, loss)


def dropped_of(reply: list[Incoming], index: TagIndex, held: Held) -> list[NDArray[np.bool_]]:
    """Return which samples of a reply are duplicates, of the bank's or of earlier ones in it.

    Parameters
    ----------
    reply : list of Incoming
        Its payloads in their order.
    index : TagIndex
        Of the bank.
    held : Held
    """
    masks: list[NDArray[np.bool_]] = []
    earlier: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for number, incoming in enumerate(reply):
        found, size = read_tags(incoming.tags, len(incoming.marks))
        mask = np.zeros(len(found), np.bool_)
        masks.append(mask)
        if not size:
            continue
        for row, place, common in index.find(incoming.tags, incoming.marks):
            if mask[row]:
                continue
            known = held.sketch(place) if common < CERTAIN_BYTES else None
            if known is not None and len(incoming.sketches):
                sketch, loss = known
                if not may_be_one(incoming.coded, incoming.sketches[row], sketch, loss):
                    continue
            mask[row] = common >= CERTAIN_BYTES or are_one(incoming.coded, row, *held.coded(place))
        for row, key in enumerate(zip(found.tolist(), incoming.marks.tolist(), strict=True)):
            if mask[row]:
                continue
            like = earlier.setdefault(key, [])
            mask[row] = any(
                size >= CERTAIN_BYTES or are_one(incoming.coded, row, reply[k].coded, other)
                for k, other in like
            )
            if not mask[row]:
                like.append((number, row))
    return masks
