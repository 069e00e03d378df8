"""Entropy coding of quantized transform coefficients, frequency by frequency.

The coefficients of all blocks of a payload are coded together, as a table of one line per
frequency (and channel) and one column per block::

    scales of all frequencies | wave 0: signs and magnitudes | wave 1 | wave 2 | ...

**Sent ahead** is the *scale* of every frequency: the mean magnitude of its line, in half octaves,
or that the line is zero throughout and takes no more bits (`code_scales`).

A **wave** is the frequencies of equal order, horizontal plus vertical, of one channel, or of every
eighth where there are more (`layout`). Lower orders go first, and within an order channel by
channel. The contexts of a wave depend on earlier waves alone, so that it is coded by array
operations. Each wave starts from what the earlier ones taught, as from a guess that its own first
values soon outweigh. On the left, the waves of a 4x4 block of one channel; on the right, the
neighbours of a frequency ``x`` that are known by then, with their influence (there are more at and
beside ``x`` in the channels before)::

    0 1 2 3            .  .  .  .  1  .  .
    1 2 3 4            .  .  .  1  2  2  2
    2 3 4 5            .  .  2  6  8  6
    3 4 5 6            .  1  6 11 20
                       1  2  8 20  x
                       .  2  6
                       .  2

The **context** of a value is the adaptive table that its bits are coded with. Two facts choose
that of the magnitude: the scale of its frequency, and the *activity* of its block, how large the
neighbours, and the prediction from the blocks around (`prediction`), came out against what they
are on average. How large the prediction is, its *sureness*, chooses that of the sign::

    neighbours, prediction --> activity --+
    scale of the frequency ---------------+--> table of the magnitude, for each k: is it above k?
    prediction --> sureness --------------> table of the sign: is it the predicted one?

At the finest level of images, from payload version 7 on, a small network's score of all that is
known chooses the table of the magnitude instead, see `surroundings`.

Nothing here takes a logarithm or an exponential that the decoder must repeat: contexts are
integers and quotients of integers, the same on every platform.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from codec.coding.range_coder import AdaptiveBits, BitCoder, Bits, Ints, code_raw, code_unary
from codec.errors import PayloadError
from codec.samples.block_dct import network
from codec.samples.block_dct.prediction import ONE, Prediction
from codec.samples.block_dct.surroundings import Surroundings, is_known

Context: TypeAlias = tuple[Ints, NDArray[np.float64]]

_LOWEST_SCALE, _HIGHEST_SCALE = -30, 12  # in half octaves: mean magnitude 2**(scale / 2)
_SCALES = _HIGHEST_SCALE - _LOWEST_SCALE + 1
USUAL_MAGNITUDES = _SCALES + 4  # half octaves that shipped probabilities are given for
_MAX_SCALE = 44  # a mean magnitude of 2**22 is more than an escape code carries
_LEAST_SCALE = -16  # below it, a mean magnitude is less than its fixed point
_ABSENT = np.iinfo(np.int64).min
_FIXED = ONE  # fixed point of mean magnitudes
_KEPT = 4096  # coefficients up to which contexts are kept from payload to payload
_PIECE = 16  # lines of a wave whose contexts are taken together
_GROUP = 8  # channels that predict one another
_MOST_PREDICTED = 1 << 40
_THIRDS = np.array([1048576, 832255, 660561])  # 2**(20 - k / 3)

# Tuned on photographs. In brackets, what half and twice the value cost in bytes, on 1,000 images
# of CIFAR-10 in payloads of 100, at the worse of steps 0.5 and 0.25; nothing saves more than 0.2 %
# at either. `python -m sim.codec_constants --data FILE` measures it, and
# sim/results/codec-constants.jsonl has the figures.
_RUNS = 14  # magnitudes up to here are unary, beyond escape (0.1 %, 0)
_ACTIVITY = np.array([0.25, 0.36, 0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0])  # bin edges (0.3 %, 0.5 %)
_CAP = 18  # a neighbour counts for at most so many times its mean magnitude (0.1 %, 0)
# Influence of the prediction's magnitude, beside that of the neighbours (0.1 %, 0.7 %; of MNIST
# digits, half of it saves 0.9 % to 1.2 %)
_PREDICTED = 40
_PRIOR = 820 << 20  # of what is usual; a magnitude of 1 counts for its influence << 28 (0, 0)
_MEMORY = 64  # observations that earlier waves count for (0, 0)
_CLOSE = 4  # neighbours of more influence guess the scale of a frequency (0.1 %, 0)
_OCTAVES_PER_BIN = 0.45  # of magnitude, by activity, before anything is seen (0, 0.7 %)
_SURENESS = np.array([3, 8, 15, 26, 38, 56, 77, 115, 154, 230])  # edges, in 1 / ONE (0.1 %, 0)
# How often the sign is not the predicted one, by sureness, before anything is seen (0, 0.1 %: half
# and twice the distance from 1/2 in octaves), and how many observations that counts for (0, 0)
_DISAGREEING = np.array([0.5, 0.48, 0.45, 0.42, 0.38, 0.34, 0.3, 0.25, 0.2, 0.15, 0.1])
_DISAGREEING_STRENGTH = 32.0
_BINS = len(_ACTIVITY) + 1
# What the shipped probabilities count for, in observations, and earlier waves, where the network
# chooses contexts: on Fashion-MNIST, MNIST and CIFAR-10 at step 0.5, 32 to 400 and 64 to 1000 make
# less than 1 % of a difference. White noise in payloads of 8 samples takes 8 % more than without
# the network, and with 128 for the first, 12 %. Elsewhere, 4 to 64 make less than 0.3 %.
_SCORED_STRENGTH = 32.0
_SCORED_MEMORY = 128
_USUAL_STRENGTH = 32.0


@dataclass(frozen=True)
class Layout:
    """How frequencies relate: the waves they are coded in, and their causal neighbours.

    Attributes
    ----------
    waves : tuple of int64 arrays
        Indices of the coefficients of each wave; together they are 0 .. size - 1.
    neighbours : int32 (size, k)
        Indices of coefficients of earlier waves; `size` stands for none.
    influence : int64 (k,)
        How much each of them counts in the activity.
    """

    waves: tuple[Ints, ...]
    neighbours: NDArray[np.int32]
    influence: Ints

    def contexts(self) -> "Iterable[list[Context]]":
        """For each wave, in pieces: its neighbours (m,), and their influence (piece, m)."""
        return self._kept_contexts if self.size <= _KEPT else map(self._context, self.waves)

    @cached_property
    def _kept_contexts(self) -> "list[list[Context]]":
        return list(map(self._context, self.waves))

    def _context(self, wave: Ints) -> "list[Context]":
        return [self._influence(wave[i : i + _PIECE]) for i in range(0, len(wave), _PIECE)]

    def _influence(self, piece: Ints) -> "Context":
        near = self.neighbours[piece]
        known, column = np.unique(near, return_inverse=True)
        influence = np.zeros((len(near), len(known)))
        row = np.repeat(np.arange(len(near)), near.shape[1])
        np.add.at(influence, (row, column.ravel()), np.tile(self.influence, len(near)))
        influence[:, known == self.size] = 0  # stands for none
        return known.astype(np.int64), influence

    @property
    def size(self) -> int:
        """Number of coefficients in a row."""
        return len(self.neighbours)


# (channel distance, frequency offset along each axis) -> influence. Tuned on photographs as those
# above: all of them half as large, beside the prediction, or twice, costs 0.6 % and 0.2 %; half or
# twice as far apart in octaves, 0.2 % and 0.7 %. Those of series: less than 0.4 % in any case, on
# rows of the images.
_NEIGHBOURS_2D = {
    (0, -1, 0): 20, (0, 0, -1): 20, (0, -1, -1): 11, (0, -2, 0): 8, (0, 0, -2): 8,
    (0, -2, 1): 6, (0, 1, -2): 6, (0, -2, -1): 6, (0, -1, -2): 6, (0, -2, -2): 2,
    (0, -3, 0): 2, (0, 0, -3): 2, (0, -3, 1): 2, (0, 1, -3): 2, (0, -3, 2): 2, (0, 2, -3): 2,
    (0, -3, -1): 1, (0, -1, -3): 1, (0, -4, 0): 1, (0, 0, -4): 1,
    (1, 0, 0): 9, (2, 0, 0): 9, (1, -1, 0): 3, (1, 0, -1): 3, (2, -1, 0): 2, (2, 0, -1): 2,
}  # fmt: skip
_NEIGHBOURS_1D = {(0, -1): 12, (0, -2): 8, (0, -3): 4, (1, 0): 14, (2, 0): 10, (1, -1): 6}


@lru_cache(maxsize=4)
def layout(channels: int, shape: tuple[int, ...]) -> Layout:
    """Return the coding order of `channels` blocks of transform coefficients.

    Parameters
    ----------
    channels : int
        Channels; each sees those before it at the same frequency, within groups of eight,
        so that the number of waves does not grow with the channels.
    shape : tuple of int
        Size of a block, one or two axes.
    """
    offsets = _NEIGHBOURS_2D if len(shape) == 2 else _NEIGHBOURS_1D
    grid = np.indices((channels, *shape)).reshape(1 + len(shape), -1)  # (axes, size)
    place = grid[0] % _GROUP
    order = grid[1:].sum(axis=0) * _GROUP + place
    ordered = np.argsort(order, kind="stable")
    waves = tuple(np.split(ordered, np.flatnonzero(np.diff(order[ordered])) + 1))
    size = grid.shape[1]
    neighbours = np.full((size, len(offsets)), size, np.int32)
    for column, offset in enumerate(offsets):
        at = grid + np.array([-offset[0], *offset[1:]])[:, None]
        limits = np.array([channels, *shape])[:, None]
        inside = ((at >= 0) & (at < limits)).all(axis=0) & (offset[0] <= place)
        inside &= at[1:].any(axis=0) | (offset[0] > 0)  # the mean says nothing of the texture
        flat = np.ravel_multi_index(tuple(np.clip(at, 0, limits - 1)), (channels, *shape))
        neighbours[inside, column] = flat[inside]
    return Layout(waves, neighbours, np.array(list(offsets.values())))


def code_coefficients(
    coder: BitCoder,
    model: "CoefficientModel",
    plan: Layout,
    rows: int,
    table: Ints | None,
    prediction: Prediction | None = None,
    *,
    learned: bool = True,
) -> Ints:
    """Code quantized coefficients, int64 (plan.size, rows), one line per frequency.

    Parameters
    ----------
    coder : BitCoder
        Encoder or decoder.
    model : CoefficientModel
        What was learned so far of this stream; it learns on.
    plan : Layout
        Order and neighbours.
    rows : int
        Blocks coded together (samples times blocks per sample).
    table : int64 (plan.size, rows) or None
        None when decoding. Magnitudes below 2**22.
    prediction : Prediction, optional
        Of these coefficients, where blocks have neighbours.
    learned : bool
        Whether the network of `surroundings` chooses the contexts where it can, as in payloads from
        version 7 on.

    Returns
    -------
    int64 (plan.size, rows)
        The coefficients.
    """
    scales = code_scales(coder, plan, rows, table)
    if learned and prediction is not None and is_known(prediction.level, scales):
        return _code_by_scores(coder, model, plan, scales, table, prediction)
    decoded = np.zeros((plan.size, rows), np.int64)
    known = np.zeros((plan.size + 1, rows))  # capped magnitudes; the last line is none
    mean = np.append(_mean_magnitude(scales), 0)
    share = np.append(_share(scales), 0)
    for whole, pieces in zip(plan.waves, plan.contexts(), strict=True):
        present = scales[whole] > _ABSENT
        wave = whole[present]
        if not len(wave):
            continue
        predicted = np.zeros((len(whole), 1), np.int64)
        if prediction is not None:
            predicted = prediction.of(whole, decoded)
        contexts = zip(pieces, np.split(predicted, range(_PIECE, len(whole), _PIECE)), strict=True)
        activity = np.concatenate(
            [
                _activity(influence * share[near], known[near], mean[near], around)
                for (near, influence), around in contexts
            ]
        )
        part = None if table is None else table[wave].ravel()
        model.forget()
        values = _code_wave(coder, model, scales[wave], activity[present], predicted[present], part)
        decoded[wave] = values
        known[wave] = np.minimum(np.abs(decoded[wave]) * _FIXED, _CAP * mean[wave, None])
    return decoded


def _code_by_scores(
    coder: BitCoder,
    model: "CoefficientModel",
    plan: Layout,
    scales: Ints,
    table: Ints | None,
    prediction: Prediction,
) -> Ints:
    """Code coefficients whose contexts are the scores of the network, as `code_coefficients`."""
    surroundings = Surroundings(prediction.level, prediction.means, scales)
    decoded = np.zeros((plan.size, prediction.means[0].size), np.int64)
    for whole in plan.waves:
        wave = whole[scales[whole] > _ABSENT]
        if not len(wave):
            surroundings.pass_over(whole)
            continue
        predicted = prediction.of(wave, decoded)
        scores = surroundings.scores(wave, predicted).ravel().astype(np.int64)
        part = None if table is None else table[wave].ravel()
        model.forget()
        magnitude = code_unary(coder, model.scored, scores, None if part is None else np.abs(part))
        decoded[wave] = _with_signs(coder, model, magnitude, predicted, part)
        surroundings.learn(wave, decoded[wave])
    return decoded


def code_scales(coder: BitCoder, plan: Layout, rows: int, table: Ints | None) -> Ints:
    """Code the scale of every frequency: half octaves of the mean magnitude, or absent.

    Returns
    -------
    int64 (plan.size,)
        Scales; the smallest int64 where a frequency is zero throughout.

    Raises
    ------
    PayloadError
        When decoding meets a scale that no encoder writes.
    """
    lowest = lowest_scale(rows)
    true = None if table is None else measure_scales(table, lowest)
    present, sign, size = scale_tables()
    decoded = np.zeros(plan.size + 1, np.int64)  # 0 = absent, else scale - lowest + 1
    for wave in plan.waves:
        near = decoded[plan.neighbours[wave]] * (plan.influence > _CLOSE)
        support = np.count_nonzero(near, axis=1)
        guess = near.sum(axis=1) // np.maximum(support, 1)
        part = None if true is None else true[wave]
        bits: Bits | None = None if part is None else (part > 0).astype(np.int32)
        there = present.code(coder, np.minimum((support + 1) // 2, 3), bits) == 1
        step = None if part is None else part[there] - guess[there]
        context = np.minimum(support[there], 1)
        magnitude = code_unary(coder, size, context, None if step is None else np.abs(step))
        moved = magnitude > 0
        down = None if step is None else (step[moved] < 0).astype(np.int32)
        magnitude[moved] *= 1 - 2 * sign.code(coder, context[moved], down).astype(np.int64)
        decoded[wave[there]] = guess[there] + magnitude
    return scales_of(decoded[:-1], lowest)


def scale_tables() -> tuple[AdaptiveBits, AdaptiveBits, list[AdaptiveBits]]:
    """Return the tables of scales: is there one, is it below the guess, and by how much not."""
    size = [AdaptiveBits(np.full(2, 0.6)) for _ in range(6)]
    return AdaptiveBits(np.array([0.1, 0.5, 0.8, 0.9])), AdaptiveBits(np.full(2, 0.5)), size


def lowest_scale(rows: int) -> int:
    """Return the scale of a single one among so many values."""
    return -2 * max(rows, 1).bit_length()


def scales_of(marks: Ints, lowest: int) -> Ints:
    """Return the scales that `measure_scales` stands for.

    Raises
    ------
    PayloadError
        If one is such as no encoder writes.
    """
    if (marks < 0).any() or (marks + lowest > _MAX_SCALE + 1).any():
        raise PayloadError(f"coefficient scale outside [{lowest}, {_MAX_SCALE}]")
    return np.where(marks > 0, marks + lowest - 1, _ABSENT)


def measure_scales(table: Ints, lowest: int) -> Ints:
    """Return 1 + scale - `lowest` of each line of `table`, 0 where the line is zero."""
    mean = np.abs(table).mean(axis=1)
    scale = np.round(2 * np.log2(np.maximum(mean, 2.0**-40))).astype(np.int64)
    return np.where(mean > 0, np.maximum(scale - lowest, 0) + 1, 0)


def _mean_magnitude(scales: Ints) -> Ints:
    """Fixed-point mean magnitude of each scale, at least 1; 0 where absent."""
    octave, half = np.divmod(np.where(scales == _ABSENT, 0, scales), 2)
    mantissa = np.where(half == 1, 362, 256) * np.int64(_FIXED)  # 2**0.5 in 1/256
    shifted = np.where(octave >= 0, mantissa << np.maximum(octave, 0), mantissa)
    shifted = np.where(octave < 0, shifted >> np.minimum(-np.minimum(octave, 0), 40), shifted) >> 8
    return np.where(scales == _ABSENT, 0, np.maximum(shifted, 1))


def _share(scales: Ints) -> Ints:
    """Return what a unit of magnitude counts for at each scale: its mean to the power -2/3.

    A compromise between the sum of magnitudes, which the lowest frequencies rule, and that of
    their ratios to what is usual, where rare ones count too much: half and twice the exponent
    cost 0.2 % and 1.6 % (measured as the constants above).
    """
    octaves, thirds = np.divmod(np.maximum(scales, _LEAST_SCALE), 3)
    coarse = _THIRDS[thirds] >> np.maximum(octaves, 0)
    shares: Ints = coarse << np.maximum(-octaves, 0)
    return shares


def _activity(
    influence: NDArray[np.float64], known: NDArray[np.float64], mean: Ints, predicted: Ints
) -> Ints:
    """Bin of observed over expected magnitude of what is known, int64 (wave, rows).

    The sums are of integers below 2**53, hence the same in any order of summation.
    """
    rows = predicted.shape[1]
    around = np.minimum(np.abs(predicted), _MOST_PREDICTED // rows)
    usual = around.sum(axis=1, keepdims=True) // rows
    counted = _PREDICTED * _share(np.searchsorted(_MEANS, usual, side="right") + _LEAST_SCALE - 1)
    expected = _PRIOR + (influence @ mean)[:, None] + counted * usual
    observed = _PRIOR + influence @ known + counted * np.minimum(around, _CAP * usual)
    bins: Ints = np.searchsorted(_ACTIVITY, observed / expected)
    return bins


_MEANS = _mean_magnitude(np.arange(_LEAST_SCALE, _MAX_SCALE + 1))


class CoefficientModel:
    """The adaptive tables: of magnitudes by scale and activity, of signs by prediction."""

    def __init__(
        self, tables: list[AdaptiveBits], signs: AdaptiveBits, scored: list[AdaptiveBits]
    ) -> None:
        self.tables, self.signs, self.scored = tables, signs, scored

    @classmethod
    def start(cls, *, learned: bool = True) -> Self:
        """Return tables as they are before anything is seen.

        Parameters
        ----------
        learned : bool
            Whether they know images, as in payloads from version 7 on, or nothing but the geometric
            law of the scale's mean.
        """
        scored = [AdaptiveBits(larger, _SCORED_STRENGTH) for larger in network.LARGER]
        signs = AdaptiveBits(_DISAGREEING, _DISAGREEING_STRENGTH)
        if learned:
            usual = network.USUAL[:, usual_magnitudes()]
            return cls([AdaptiveBits(larger, _USUAL_STRENGTH) for larger in usual], signs, scored)
        octaves = np.repeat(np.arange(_LOWEST_SCALE, _HIGHEST_SCALE + 1) / 2, _BINS)
        more = np.tile((np.arange(_BINS) - _BINS // 2) * _OCTAVES_PER_BIN, _SCALES)
        mean = 2.0 ** np.round(octaves + more)  # whole powers of two: exact everywhere
        p_one = np.clip(mean / (1 + mean), 2.0**-12, 0.98)
        later = np.clip(p_one, 0.15, 0.9)
        magnitudes = [AdaptiveBits(p_one)] + [AdaptiveBits(later) for _ in range(_RUNS - 1)]
        return cls(magnitudes, signs, scored)

    def forget(self) -> None:
        """Keep what was learned as a guess worth few observations: other frequencies follow."""
        for table in (*self.tables, self.signs):
            table.forget(_MEMORY)
        for table in self.scored:
            table.forget(_SCORED_MEMORY)


def usual_magnitudes() -> Ints:
    """Return how large a magnitude is by scale and activity, in half octaves, of each context."""
    more = np.round((np.arange(_BINS) - (_BINS - 1) / 2) * 2 * _OCTAVES_PER_BIN).astype(np.int64)
    halves = np.arange(_SCALES)[:, None] + more
    clipped: Ints = np.clip(halves, 0, USUAL_MAGNITUDES - 1).ravel()
    return clipped


def _code_wave(
    coder: BitCoder,
    model: CoefficientModel,
    scales: Ints,
    activity: Ints,
    predicted: Ints,
    part: Ints | None,
) -> Ints:
    """Code the values of one wave (frequencies, rows), flattened in `part`."""
    shift = np.maximum(0, scales // 2 - 1)  # large magnitudes: model the top, send the rest raw
    shape = activity.shape
    row_scale = np.clip(scales - 2 * shift, _LOWEST_SCALE, _HIGHEST_SCALE) - _LOWEST_SCALE
    contexts = (row_scale[:, None] * _BINS + activity).ravel()
    shifts = np.broadcast_to(shift[:, None], shape).ravel()
    magnitude = None if part is None else np.abs(part)
    top = code_unary(
        coder, model.tables, contexts, None if magnitude is None else magnitude >> shifts
    )
    if shift.any():
        top = (top << shifts) | code_raw(coder, shifts, magnitude)
    return _with_signs(coder, model, top, np.broadcast_to(predicted, shape), part)


def _with_signs(
    coder: BitCoder, model: CoefficientModel, values: Ints, predicted: Ints, part: Ints | None
) -> Ints:
    """Code the signs of magnitudes (frequencies * rows,); return what has them, in two axes."""
    rows = np.flatnonzero(values)
    expected = predicted.ravel()[rows]
    surprise = None if part is None else ((part[rows] < 0) != (expected < 0)).astype(np.int32)
    sureness = np.searchsorted(_SURENESS, np.abs(expected), side="right")
    surprise = model.signs.code(coder, sureness, surprise)
    values[rows] *= np.where((surprise == 1) != (expected < 0), -1, 1)
    return values.reshape(predicted.shape)
