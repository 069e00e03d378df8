"""How far the samples of a payload spread: what their quantization step is a fraction of.

The step that suits photographs would erase a faint image in the same range of values. It is
therefore taken relative to the samples' own spread, which travels ahead of them: a byte for each
channel that differs, its exponent in half octaves, and where that is not zero, about which value
the channel lies.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from codec.coding import cursor
from codec.errors import PayloadError
from codec.samples.quantizer import MAX_MAGNITUDE
from codec.samples.sample_codec import Array

Floats = NDArray[np.float64]

# Full-range photographs and digits have standard deviations of 45 to 90 of 255, and fill it.
# Fainter samples are stretched until they are as digits are, 79 of 255, so that faint digits cost
# and keep what those at full contrast do; faint photographs cost about half as much again.
_FILLED = 255 / 45
_RANGE_OF_DEVIATION = 3.2
# A series is transformed as a whole, which gathers its strongest samples in few coefficients: at
# the step of photographs, fainter ones are lost. `python -m sim data`: of activities, 82 % are
# recognised at 4 deviations, 91 % at 1, 92 % without loss.
_RANGE_OF_SERIES = 1.0
MOST_HALVINGS = 60  # of the range, in half octaves
_SEPARATE = 63  # stands for an exponent where red, green and blue have one each
_UNLIKE = 4.0  # ratio of deviations from which they have
_FEWEST_FOR_MIX = 4  # channels
_MOST_FOR_MIX = 32
_MIX_UNIT = 127  # entries of the mixing matrix travel in 1/127

ROUNDING = 2.0**-22  # of the largest value: what spreads less is constant
_OF_CONSTANT = 2.0**-12  # what is constant is kept to this share of its value
_RARE = 0.05  # share of the samples that may be outliers
_FEWEST = 8  # samples whose spread is looked at one by one
# Ratios of deviations from which the smaller one counts: with and without outliers; within a
# sample and from sample to sample.
_OUTLYING, _SHARED = 16.0, 2.0
_CHUNK = 1 << 18  # values that are widened at once


@dataclass(frozen=True)
class Moments:
    """Level and spread of each channel of some samples, all float64 (C,).

    Attributes
    ----------
    level : mean
    variance : mean square deviation that the step is to be relative to; 0 where constant
    reach : difference of the largest and the smallest value
    """

    level: Floats
    variance: Floats
    reach: Floats

    @classmethod
    def of(
        cls,
        samples: NDArray[np.generic],
        *,
        images: bool,
        like: NDArray[np.generic] | None = None,
    ) -> "Moments":
        """Return those of samples (N, C, ...), N >= 1; what belongs together has one.

        Level and variance are those of others, `like`, where these vary at all.
        """
        each = cls._of_each(samples)
        if like is not None:
            each = each._as_of(cls._of_each(like))
        together = images and samples.shape[1] in (1, 3)  # grey, or red, green and blue
        return each._joined() if together and each.alike else each

    @classmethod
    def _of_each(cls, samples: NDArray[np.generic]) -> "Moments":
        flat = samples.reshape(*samples.shape[:2], -1)
        lowest = flat.min(axis=(0, 2)).astype(np.float64)
        highest = flat.max(axis=(0, 2)).astype(np.float64)
        rounding = np.square(ROUNDING * np.maximum(np.abs(lowest), np.abs(highest)))
        means, within, across = _variances(flat)
        inner = _usual(within)
        if len(flat) >= _FEWEST:  # a pattern that all samples share says nothing
            inner = _unless_far(inner, np.where(across > rounding, across, 0), _SHARED)
        outer = within.mean(axis=0) + means.var(axis=0)
        variance = np.where(inner > rounding, inner, np.where(outer > rounding, outer, 0.0))
        return cls(means.mean(axis=0), variance, highest - lowest)

    def _as_of(self, others: "Moments") -> "Moments":
        """Return level and variance of others, and how far these samples reach about that level."""
        there = others.variance > 0
        level = np.where(there, others.level, self.level)
        variance = np.where(there, others.variance, self.variance)
        return Moments(level, variance, self.reach + np.abs(self.level - level))

    def _joined(self) -> "Moments":
        """Return those of all channels as if they were one, (1,)."""
        level = self.level.mean(keepdims=True)
        apart = 2 * np.abs(self.level - level).max(keepdims=True)
        return Moments(
            level, self.variance.mean(keepdims=True), self.reach.max(keepdims=True) + apart
        )

    def finer(self, which: NDArray[np.bool_]) -> "Moments":
        """Return moments that give some channels half the step."""
        return replace(self, variance=np.where(which, self.variance / 4, self.variance))

    @property
    def alike(self) -> bool:
        """Whether no channel that varies at all is much fainter than another."""
        there = self.variance[self.variance > 0]
        return len(there) == 0 or bool(there.max() <= _UNLIKE**2 * there.min())

    def exponents(
        self, width: float, step: float, values: int, *, images: bool
    ) -> NDArray[np.int64]:
        """Return how much each channel is to be stretched to fill a range, in half octaves.

        Parameters
        ----------
        width : float
            The range.
        step : float
            Smallest quantization step, as a fraction of it.
        values : int
            Numbers of a sample, which their transform may gather in one coefficient.
        images : bool
            Whether a sample has two axes beside its channels.

        Returns
        -------
        int64 (C,)
            k, for a gain of ``2**(k / 2)``; 0 where the channel fills the range.
        """
        constant = _OF_CONSTANT * np.maximum(np.abs(self.level), _OF_CONSTANT * width)
        varies, deviation = self.variance > 0, np.sqrt(self.variance)
        deviations = _RANGE_OF_DEVIATION if images else _RANGE_OF_SERIES
        filled = _FILLED if images else _RANGE_OF_SERIES
        gain = width / np.where(varies, deviations * deviation, constant)
        wanted = np.round(2 * np.log2(np.where(varies & (filled * deviation >= width), 1, gain)))
        # What the entropy coder takes, in ranges; a constant channel has no peak.
        room = max(0.0, (MAX_MAGNITUDE / 2) * step / np.sqrt(values) - 0.5)
        with np.errstate(divide="ignore", invalid="ignore"):
            allowed = np.floor(2 * np.log2(np.maximum(room * width / self.reach, 1)))
        allowed = np.where(self.reach > 0, allowed, MOST_HALVINGS)
        halvings = np.clip(np.minimum(wanted, allowed), 0, MOST_HALVINGS)
        exponents: NDArray[np.int64] = halvings.astype(np.int64)
        return exponents


def _variances(flat: NDArray[np.generic]) -> tuple[Floats, Floats, Floats]:
    """Return means and variances of each sample's channels, and the variances across samples.

    Parameters
    ----------
    flat : (N, C, values)
        Widened a part at a time.

    Returns
    -------
    means, within : float64 (N, C)
    across : float64 (C,)
        Mean over the places of a sample.
    """
    count, channels, places = flat.shape
    means, within = np.empty((count, channels)), np.empty((count, channels))
    total, squares = np.zeros((channels, places)), np.zeros((channels, places))
    near = flat[0].astype(np.float64).mean(axis=1)[:, None]  # so that squares are not far apart
    rows = max(1, _CHUNK // max(1, flat[0].size))
    for start in range(0, count, rows):
        part = flat[start : start + rows] - near
        means[start : start + rows] = part.mean(axis=2) + near[:, 0]
        within[start : start + rows] = part.var(axis=2)
        total += part.sum(axis=0)
        squares += np.square(part).sum(axis=0)
    across = np.maximum(squares / count - np.square(total / count), 0).mean(axis=1)
    return means, within, across


def _usual(within: Floats) -> Floats:
    """Return the mean of the variances (N, C), without a few samples' if those rule it."""
    mean: Floats = within.mean(axis=0)
    if len(within) < _FEWEST:
        return mean
    edge = np.quantile(within, 1 - _RARE, axis=0, method="lower")
    return _unless_far(mean, np.minimum(within, edge).mean(axis=0), _OUTLYING)


def _unless_far(variance: Floats, other: Floats, ratio: float) -> Floats:
    """Return variances, or others where these are not zero and their deviation much smaller."""
    return np.where((other > 0) & (variance > ratio**2 * other), other, variance)


@dataclass(frozen=True)
class Stretch:
    """Channels brought to comparable spread, and bands freed of what they have in common.

    Attributes
    ----------
    middle, width : float
        Of the declared range.
    exponents : tuple of int
        Of the gains, one for all channels or one for each, in half octaves.
    centres : tuple of int
        About which value each lies: in stretched ranges, counted from the middle of the declared
        one. 0 where the exponent is.
    mix : bytes
        Components of the stretched channels, strongest first (their Karhunen-Loeve transform), as
        int8 (C, C) in units of 1/127; empty for fewer than 4 channels or more than 32.
    """

    middle: float
    width: float
    exponents: tuple[int, ...] = (0,)
    centres: tuple[int, ...] = (0,)
    mix: bytes = b""

    @classmethod
    def of(
        cls,
        samples: NDArray[np.generic],
        moments: Moments,
        middle: float,
        width: float,
        step: float,
        *,
        images: bool,
    ) -> "Stretch":
        """Return what suits samples (N, C, ...) of some moments, for a smallest step."""
        exponents = moments.exponents(width, step, samples[0].size, images=images)
        apart = (moments.level - middle) / width * np.exp2(exponents / 2)
        centres = np.where(exponents > 0, np.round(apart), 0).astype(np.int64)
        stretch = cls(middle, width, tuple(exponents.tolist()), tuple(centres.tolist()))
        if not images or not _is_mixed(samples.shape[1]):
            return stretch
        return replace(stretch, mix=_components(stretch.forward(samples)))

    @property
    def gains(self) -> Floats:
        """Factor of each channel, float64 (C,) or (1,)."""
        return np.exp2(np.array(self.exponents) / 2)

    @property
    def offsets(self) -> Floats:
        """Value of each channel that is coded as zero, float64 (C,) or (1,)."""
        return self.middle + np.array(self.centres) * (self.width / self.gains)

    @cached_property
    def matrix(self) -> Array | None:
        """The orthonormal matrix nearest to the mix: both ends make it from the same bytes."""
        if not self.mix:
            return None
        rounded = np.frombuffer(self.mix, np.int8).astype(np.float64)
        size = round(len(rounded) ** 0.5)
        left, _, right = np.linalg.svd(rounded.reshape(size, size))
        nearest: Array = (left @ right).astype(np.float32)
        return nearest

    def forward(self, samples: NDArray[np.generic]) -> Array:
        """Return samples (N, C, ...) stretched about zero and mixed."""
        centred = samples.astype(np.float32)
        centred -= _along_channels(self.offsets, samples.ndim)
        if any(self.exponents):
            centred *= _along_channels(self.gains, samples.ndim)
        return centred if self.matrix is None else _mixed(centred, self.matrix)

    def inverse(self, samples: Array) -> Array:
        """Undo `forward`."""
        unmixed = samples if self.matrix is None else _mixed(samples, self.matrix.T)
        if any(self.exponents):
            unmixed = unmixed / _along_channels(self.gains, samples.ndim)
        return unmixed + _along_channels(self.offsets, samples.ndim)

    def to_bytes(self, channels: int, *, images: bool) -> bytes:
        """Return exponents, centres and mix as they travel."""
        separate = len(self.exponents) > _exponents(channels, images)
        head = bytes([_SEPARATE] * separate + list(self.exponents))
        there = [c for c, k in zip(self.centres, self.exponents, strict=True) if k]
        return head + b"".join(map(cursor.zigzag, there)) + self.mix

    @classmethod
    def read(
        cls,
        first: int,
        reader: cursor.Reader,
        channels: int,
        middle: float,
        width: float,
        *,
        images: bool,
    ) -> "Stretch":
        """Read what `to_bytes` wrote for samples of so many channels, its first byte apart.

        Raises
        ------
        PayloadError
            If the bytes are truncated or no encoder writes them.
        """
        count = _exponents(channels, images)
        if count < channels and first == _SEPARATE:
            exponents = tuple(reader.take(channels, "spread"))
        else:
            exponents = (first, *reader.take(count - 1, "spread"))
        if max(exponents) > MOST_HALVINGS:
            raise PayloadError(f"spread of {max(exponents)}; legal range: [0, {MOST_HALVINGS}]")
        centres = tuple(_read_centre(reader) if exponent else 0 for exponent in exponents)
        mix = b""
        if images and _is_mixed(channels):
            mix = reader.take(channels**2, "mix")
            entries = np.frombuffer(mix, np.int8).reshape(channels, channels) / _MIX_UNIT
            if abs(np.linalg.det(entries)) < 0.5:  # of what an encoder writes: nearly 1
                raise PayloadError("mix of bands is not orthonormal")
        return cls(middle, width, exponents, centres, mix)


def _exponents(channels: int, images: bool) -> int:
    """Return how many exponents channels have, if they are alike."""
    return 1 if images and channels in (1, 3) else channels


def _read_centre(reader: cursor.Reader) -> int:
    centre, most = reader.zigzag("centre"), 1 << (MOST_HALVINGS // 2)
    if abs(centre) > most:
        raise PayloadError(f"centre {centre}; legal: up to +-{most}")
    return centre


def _is_mixed(channels: int) -> bool:
    return _FEWEST_FOR_MIX <= channels <= _MOST_FOR_MIX


def _components(stretched: Array) -> bytes:
    """Return the principal components of channels (N, C, ...), as they travel."""
    flat = np.moveaxis(stretched, 1, 0).reshape(stretched.shape[1], -1)
    centred = flat - flat.mean(axis=1, keepdims=True)
    centred /= max(float(np.abs(centred).max()), np.finfo(np.float32).tiny)  # squares fit
    _, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    components = vectors[:, ::-1].T
    largest = np.abs(components).argmax(axis=1)  # is to be positive: libraries choose either sign
    components *= np.sign(components[np.arange(len(components)), largest])[:, None]
    return np.round(components * _MIX_UNIT).astype(np.int8).tobytes()


def _along_channels(values: Floats, axes: int) -> Array:
    return values.astype(np.float32).reshape(1, -1, *[1] * (axes - 2))


def _mixed(samples: Array, matrix: Array) -> Array:
    mixed: Array = np.moveaxis(np.tensordot(matrix, samples, axes=(1, 1)), 0, 1)
    return np.ascontiguousarray(mixed)


# Columns of a table

FINEST, COARSEST = -240, 200  # exponents of a column's step, in half octaves
_DEVIATIONS = 0.5  # a column's step as a multiple of its standard deviation, at step 1
_TAIL = 2.5  # deviation of a column, as a multiple of that of its usual values: outliers rule it


def column_exponents(
    table: Floats, step: float, *, integers: bool = False, like: Floats | None = None
) -> NDArray[np.int64]:
    """Return the step of each column of a table (N, d), as an exponent in half octaves.

    The step is `step` times half the column's standard deviation: what an orthonormal transform
    of 8x8 pixels has eight times as much of in its strongest coefficients. Where a few outliers
    make most of the deviation, that of the other values counts. A column of a single value is kept
    to 12 bits. Whole numbers need no step below 1. The deviation is that of `like` (M, d), if it is
    given.

    Returns
    -------
    int64 (d,)
        e, for a step of ``2**(e / 2)``.
    """
    lowest, highest = table.min(axis=0), table.max(axis=0)
    largest = np.maximum(np.abs(lowest), np.abs(highest))
    others = table if like is None else like
    deviation = others.std(axis=0)
    if like is not None:  # all the same, or too few to tell
        deviation = np.where(deviation > ROUNDING * largest, deviation, table.std(axis=0))
    known = deviation > ROUNDING * largest
    low = np.quantile(others, _RARE, axis=0, method="higher")
    high = np.quantile(others, 1 - _RARE, axis=0, method="lower")
    usual = np.clip(others, low, np.maximum(low, high)).std(axis=0)
    ruled = (usual > ROUNDING * np.maximum(np.abs(low), np.abs(high))) & (deviation > _TAIL * usual)
    deviation = np.where(ruled, usual, deviation)
    fine = np.maximum(step * _DEVIATIONS * deviation, (highest - lowest) * (2 / MAX_MAGNITUDE))
    size = np.where(known, fine, _OF_CONSTANT * largest)
    with np.errstate(divide="ignore"):
        exponents = np.floor(2 * np.log2(size))
    clipped: NDArray[np.int64] = np.clip(exponents, 0 if integers else FINEST, COARSEST).astype(
        np.int64
    )
    return clipped


def column_steps(exponents: NDArray[np.int64]) -> Floats:
    """Return the step of each column, float64 (d,)."""
    return np.exp2(exponents / 2)
