"""How far the samples of a payload spread: what their quantization step is a fraction of.

The step that suits photographs would erase a faint image in the same range of values. It is
therefore taken relative to the samples' own spread, which travels as one byte a channel or column:
its exponent in half octaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.coding import cursor
from codec.coding.columns import code_columns
from codec.coding.range_coder import BitCoder, Ints
from codec.errors import PayloadError
from codec.samples.sample_codec import Array

# Full-range photographs and digits have standard deviations of 45 to 90 of 255: their range is
# what it is declared to be, and fainter samples are treated as if they were stretched to it.
RANGE_OF_DEVIATION = 4.0
_MOST_HALVINGS = 60  # of the range, in half octaves
_FEWEST_FOR_MIX = 4  # channels
_MOST_FOR_MIX = 32
_MIX_UNIT = 127  # entries of the mixing matrix travel in 1/127


def gain_exponents(samples: NDArray[np.floating], width: float, *, joint: bool) -> Ints:
    """Return how much each channel is to be stretched to fill a range, in half octaves.

    Parameters
    ----------
    samples : float (N, C, ...)
        At least one sample.
    width : float
        The range.
    joint : bool
        One value for all channels.

    Returns
    -------
    int64 (C,) or (1,)
        k, for a gain of ``2**(k / 2)``; 0 where the channel fills the range, or is constant.
    """
    flat = samples.reshape(len(samples), samples.shape[1], -1).astype(np.float64)
    within = flat.var(axis=2).mean(axis=0)
    whole = flat.var(axis=(0, 2))
    if joint:
        within, whole = within.mean(keepdims=True), flat.var(keepdims=True)[0, :, 0]
    deviation = np.sqrt(np.where(within > 0, within, whole))
    with np.errstate(divide="ignore"):
        octaves = np.log2(width / (RANGE_OF_DEVIATION * deviation))
    halvings = np.floor(2 * np.where(deviation > 0, octaves, 0.0))
    exponents: Ints = np.clip(halvings, 0, _MOST_HALVINGS).astype(np.int64)
    return exponents


@dataclass(frozen=True)
class Stretch:
    """Channels brought to comparable spread, and bands freed of what they have in common.

    Attributes
    ----------
    exponents : tuple of int
        Of the gains, one for all channels or one for each, in half octaves.
    mix : float32 (C, C) or None
        Orthonormal: components of the stretched channels, strongest first (their
        Karhunen-Loeve transform); None for fewer than 4 channels or more than 32.
    """

    exponents: tuple[int, ...] = (0,)
    mix: Array | None = None

    @classmethod
    def of(cls, samples: Array, width: float, *, images: bool) -> "Stretch":
        """Return what suits samples (N, C, ...) with their mid-range at zero."""
        channels = samples.shape[1]
        joint = images and channels in (1, 3)  # grey, or red, green and blue, belong together
        found = gain_exponents(samples, width, joint=joint)
        stretch = cls(tuple(found.tolist()))
        if not images or not _is_mixed(channels):
            return stretch
        flat = np.moveaxis(stretch.forward(samples), 1, 0).reshape(channels, -1)
        centred = flat - flat.mean(axis=1, keepdims=True)
        _, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
        return cls(stretch.exponents, _orthonormal(_rounded(vectors[:, ::-1].T)))

    @property
    def gains(self) -> NDArray[np.float32]:
        """Factor of each channel, float32 (C,) or (1,)."""
        return np.exp2(np.array(self.exponents) / 2).astype(np.float32)

    def forward(self, samples: Array) -> Array:
        """Return samples (N, C, ...) stretched and mixed."""
        stretched = samples * _along_channels(self.gains, samples.ndim)
        return stretched if self.mix is None else _mixed(stretched, self.mix)

    def inverse(self, samples: Array) -> Array:
        """Undo `forward`."""
        unmixed = samples if self.mix is None else _mixed(samples, self.mix.T)
        return unmixed / _along_channels(self.gains, samples.ndim)

    def to_bytes(self) -> bytes:
        """Return exponents and matrix as they travel."""
        head = bytes(self.exponents)
        return head if self.mix is None else head + _rounded(self.mix).astype(np.int8).tobytes()

    @classmethod
    def read(cls, first: int, reader: cursor.Reader, channels: int, *, images: bool) -> "Stretch":
        """Read what `to_bytes` wrote for samples of so many channels, its first byte apart.

        Raises
        ------
        PayloadError
            If the bytes are truncated or no encoder writes them.
        """
        count = 1 if images and channels in (1, 3) else channels
        exponents = (first, *reader.take(count - 1, "spread"))
        if max(exponents) > _MOST_HALVINGS:
            raise PayloadError(f"spread of {max(exponents)}; legal range: [0, {_MOST_HALVINGS}]")
        if not images or not _is_mixed(channels):
            return cls(exponents)
        data = np.frombuffer(reader.take(channels**2, "mix"), np.int8)
        mix = data.reshape(channels, channels).astype(np.float64)
        if abs(np.linalg.det(mix / _MIX_UNIT)) < 0.5:  # of what an encoder writes: nearly 1
            raise PayloadError("mix of bands is not orthonormal")
        return cls(exponents, _orthonormal(mix))


def _is_mixed(channels: int) -> bool:
    return _FEWEST_FOR_MIX <= channels <= _MOST_FOR_MIX


def _along_channels(values: NDArray[np.float32], axes: int) -> NDArray[np.float32]:
    return values.reshape(1, -1, *[1] * (axes - 2))


def _mixed(samples: Array, matrix: Array) -> Array:
    mixed: Array = np.moveaxis(np.tensordot(matrix, samples, axes=(1, 1)), 0, 1)
    return np.ascontiguousarray(mixed)


def _rounded(matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.round(matrix.astype(np.float64) * _MIX_UNIT)


def _orthonormal(rounded: NDArray[np.float64]) -> Array:
    """Return the orthonormal matrix nearest to a rounded one: both ends make it from the bytes."""
    left, _, right = np.linalg.svd(rounded)
    nearest: Array = (left @ right).astype(np.float32)
    return nearest


# Columns of a table


_FINEST, _COARSEST = -240, 200  # exponents of a column's step, in half octaves
_DEVIATIONS = 0.5  # a column's step as a multiple of its standard deviation, at step 1
_OF_CONSTANT = 2.0**-12  # its step as a share of the value, where a column has a single one


def column_exponents(table: NDArray[np.float64], step: float) -> Ints:
    """Return the step of each column of a table (N, d), as an exponent in half octaves.

    The step is `step` times half the column's standard deviation: what an orthonormal transform
    of 8x8 pixels has eight times as much of in its strongest coefficients.

    Returns
    -------
    int64 (d,)
        e, for a step of ``2**(e / 2)``.
    """
    deviation = table.std(axis=0)
    largest = np.abs(table).max(axis=0)
    known = deviation > 1e-7 * largest  # less is rounding
    size = np.where(known, step * _DEVIATIONS * deviation, _OF_CONSTANT * largest)
    with np.errstate(divide="ignore"):
        exponents = np.floor(2 * np.log2(np.where(size > 0, size, 1.0)))
    clipped: Ints = np.clip(exponents, _FINEST, _COARSEST).astype(np.int64)
    return clipped


def column_steps(exponents: Ints) -> NDArray[np.float64]:
    """Return the step of each column, float64 (d,)."""
    return np.exp2(exponents / 2)


def code_integers(coder: BitCoder, values: Ints | None, count: int, bits: int) -> Ints:
    """Code `count` whole numbers in [-2**(bits - 1), 2**(bits - 1)), about alike."""
    offset = 1 << (bits - 1)
    table = None if values is None else (values + offset).reshape(-1, 1)
    return code_columns(coder, bits, count, 1, table)[:, 0] - offset


def shares_kept(original: NDArray[np.floating], decoded: NDArray[np.floating]) -> Sequence[float]:
    """Return how much of each channel's variance survives, in [0, 1].

    Parameters
    ----------
    original, decoded : float (N, C, ...)

    Returns
    -------
    sequence of float
        One for each channel that is not constant; empty if all are.
    """
    axes = (0, *range(2, original.ndim))
    wide = original.astype(np.float64)
    variance = wide.var(axis=axes)
    error = np.square(wide - decoded).mean(axis=axes)
    there = variance > 0
    kept: list[float] = np.clip(1 - error[there] / variance[there], 0.0, 1.0).tolist()
    return kept
