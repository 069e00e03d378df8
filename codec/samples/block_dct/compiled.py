"""`coefficients`, `prediction` and `surroundings`, compiled: the same bytes, line by line.

Needs Numba (extra ``fast``). Each kernel mirrors one function of those modules, which say what it
does and why, and which the tests hold it against; a change there is one here. All sums are of
integers that float64 (float32 in the network) holds, hence the same in any order.
"""

from dataclasses import dataclass
from functools import lru_cache
from logging import INFO
from threading import Timer
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from codec.coding import range_coder
from codec.coding.compiled import (
    ERROR,
    Coder,
    Kernel,
    Tables,
    code_adaptive,
    code_raw,
    code_unary,
    forget,
    jit,
)
from codec.coding.range_coder import Ints
from codec.compilation import LOGGER
from codec.samples.block_dct import coefficients as reference
from codec.samples.block_dct import network, surroundings
from codec.samples.block_dct import prediction as predicted_by
from codec.samples.block_dct.prediction import Prediction
from codec.samples.block_dct.surroundings import Surroundings
from codec.samples.block_dct.transform import transform_for

_SILENT_SECONDS = 2.0
_COMPILING = "compiling the codec for this machine, once: up to a minute"
_BLOCK = 256  # rows that are looked at together: what is known of them fits into a near cache

_ABSENT, _FIXED, _CAP, _PRIOR = (
    reference._ABSENT,
    reference._FIXED,
    reference._CAP,
    reference._PRIOR,
)
_PREDICTED, _MOST_PREDICTED = reference._PREDICTED, reference._MOST_PREDICTED
_ACTIVITY, _BINS, _SURENESS = reference._ACTIVITY, reference._BINS, reference._SURENESS
_ESCAPE_BITS = range_coder.ESCAPE_BITS
_RUNS = min(reference._RUNS, surroundings.DECISIONS)
_MEMORY, _SCORED_MEMORY = reference._MEMORY, reference._SCORED_MEMORY
_LOWEST_SCALE, _HIGHEST_SCALE = reference._LOWEST_SCALE, reference._HIGHEST_SCALE
_MEANS = reference._MEANS
_SHARES: NDArray[np.int64] = reference._share(
    np.arange(len(_MEANS) + 1) + reference._LEAST_SCALE - 1
)
_SLOPE, _ONE, _MOST_STEPS = predicted_by._SLOPE, predicted_by.ONE, predicted_by._MOST_STEPS
_LARGEST, _NETWORK_CAP = surroundings._LARGEST, surroundings._CAP
_HIGHEST_HIDDEN = np.float32(surroundings.HIGHEST_HIDDEN)
_QUARTER = np.float32(2.0**-surroundings._SCORE_SHIFT)
_LOWEST_SCORE, _SCORES = surroundings.LOWEST_SCORE, surroundings.SCORES


class Fit(NamedTuple):
    """What a level's coefficients are predicted with, for kernels.

    Attributes
    ----------
    regressors, orders, slopes, coefficients
        `predicted_by.Regression`; `slopes` are those on the means.
    factors : float64 (coefficients,)
        Of the steps, as in `Prediction`.
    differences : float64 (channels, directions, rows)
        A neighbour's mean less a block's own, zero where there is none.
    around : int64 (directions, rows)
        Rows of the neighbours; the number of rows stands for none.
    """

    regressors: Any
    orders: Any
    slopes: Any
    coefficients: Any
    factors: Any
    differences: Any
    around: Any


class Net(NamedTuple):
    """The network of `surroundings`, and what of its inputs is known before a level is coded.

    Attributes
    ----------
    channels, blocks : int
        Of the level.
    vertical, horizontal : int64 (2, rows)
        Rows on both sides; at ends one twice, the number of rows where there is none.
    near : int64 (size, neighbours)
        Frequencies beside each one of a block, -1 for none.
    static : float32 (coefficients, hidden)
        What is the same in all blocks, with its weights.
    of_block, of_line, out, out_bias
        Weights.
    logs : float32 (N,)
    means : float32 (channels, 3, rows)
        Inputs of the block means.
    """

    channels: int
    blocks: int
    vertical: Any
    horizontal: Any
    near: Any
    static: Any
    of_block: Any
    of_line: Any
    out: Any
    out_bias: Any
    logs: Any
    means: Any


@dataclass(frozen=True)
class CompiledModel:
    """The adaptive tables of `reference.CoefficientModel`, for kernels.

    Attributes
    ----------
    magnitudes, signs, scored : Tables
    """

    magnitudes: Tables
    signs: Tables
    scored: Tables

    @classmethod
    def start(cls, *, learned: bool) -> Self:
        """Return tables as they are before anything is seen."""
        return cls(*(tables.copy() for tables in _first_tables(learned)))


@lru_cache(maxsize=1)
def prepare() -> None:
    """Compile the kernels, or load them from an earlier time; say so where it takes long."""
    said = Timer(_SILENT_SECONDS, LOGGER.log, (INFO, _COMPILING))
    said.daemon = True
    said.start()
    try:
        level, plan = transform_for((1, 16, 16), 8), reference.layout(1, (8, 8))
        around = Prediction(level, np.zeros((1, 1, *level.grid), np.int64), np.ones(64))
        for value in (1, 1 << 10):  # the network knows the first
            table = np.full((64, level.blocks), value)
            model, coder = CompiledModel.start(learned=True), Coder()
            code_coefficients(coder, model, plan, level.blocks, table, around)
        Coder().code(np.full(1, 0.5), np.zeros(1, np.int32))
    finally:
        said.cancel()


@lru_cache(maxsize=2)
def _first_tables(learned: bool) -> tuple[Tables, Tables, Tables]:
    model = reference.CoefficientModel.start(learned=learned)
    return Tables.of(*model.tables), Tables.of(model.signs), Tables.of(*model.scored)


@lru_cache(maxsize=1)
def _first_scale_tables() -> tuple[Tables, Tables, Tables]:
    present, sign, size = reference.scale_tables()
    return Tables.of(present), Tables.of(sign), Tables.of(*size)


def code_coefficients(
    coder: Coder,
    model: CompiledModel,
    plan: reference.Layout,
    rows: int,
    table: Ints | None,
    prediction: Prediction | None = None,
    *,
    learned: bool = True,
) -> Ints:
    """See `reference.code_coefficients`."""
    scales = code_scales(coder, plan, rows, table)
    decoded = np.zeros((plan.size, rows), np.int64) if table is None else table
    kernel = coder.kernel(0 if table is None else _most_decisions(table, scales))
    waves, sizes = _order(plan)
    fit = _fit(prediction, rows)
    if learned and prediction is not None and surroundings.is_known(prediction.level, scales):
        around = Surroundings(prediction.level, prediction.means, scales)
        net = _net(around)
        _code_by_scores(kernel, decoded, scales, waves, sizes, model.scored, model.signs, fit, net)
    else:
        share = np.append(reference._share(scales), 0)
        mean = np.append(reference._mean_magnitude(scales), 0)
        _code_by_activity(
            kernel, decoded, scales, waves, sizes, model.magnitudes, model.signs, fit,
            plan.neighbours, plan.influence, mean, share,
        )  # fmt: skip
    coder.check()
    return decoded


def code_scales(coder: Coder, plan: reference.Layout, rows: int, table: Ints | None) -> Ints:
    """See `reference.code_scales`."""
    lowest = reference.lowest_scale(rows)
    marks = np.zeros(plan.size + 1, np.int64)
    if table is not None:
        marks[:-1] = reference.measure_scales(table, lowest)
    tables = [tables.copy() for tables in _first_scale_tables()]
    close = plan.influence > reference._CLOSE
    kernel = coder.kernel(128 * plan.size)
    _code_scales(kernel, marks, *_order(plan), plan.neighbours, close, *tables)
    coder.check()
    return reference.scales_of(marks[:-1], lowest)


@jit
def _most_decisions(table: Any, scales: Any) -> int:
    """Return a bound of the bits that a table is coded in."""
    bound = 0
    for at in range(len(table)):
        if scales[at] > _ABSENT:
            raw = max(0, scales[at] // 2 - 1)
            for r in range(table.shape[1]):
                magnitude = abs(table[at, r])
                bound += 2 + raw + min(magnitude, _RUNS)
                if magnitude >= _RUNS:
                    bound += 2 * _ESCAPE_BITS
    return bound


def _order(plan: reference.Layout) -> tuple[Ints, Ints]:
    """Return the coefficients in the order of their waves, and how many each wave has."""
    return np.concatenate(plan.waves), np.array([len(wave) for wave in plan.waves])


def _fit(prediction: Prediction | None, rows: int) -> Fit:
    """Return what a prediction is made with; of no coefficients without one."""
    if prediction is None:
        none = np.zeros(0, np.int64)
        return Fit(
            none, none, np.zeros((0, 4)), np.zeros((1, 1, 0)), np.zeros(0), np.zeros((0, 0, 0)),
            np.zeros((4, 0), np.int64),
        )  # fmt: skip
    fit, means = prediction._regression, prediction.means
    around = _neighbours(prediction.level.grid, rows)
    flat = means.reshape(len(means), -1)
    padded = np.concatenate([flat, np.zeros((len(means), 1), np.int64)], axis=1)
    differences = np.where(around < rows, padded[:, around] - flat[:, None], 0).astype(np.float64)
    slopes, coefficients = map(np.ascontiguousarray, (fit.means, fit.coefficients))  # one type
    return Fit(
        fit.regressors, fit.orders, slopes, coefficients, prediction._factors, differences, around
    )


def _net(around: Surroundings) -> Net:
    """Return what the network reads besides what is coded."""
    level, rows = around.level, around._means[0][0].size
    vertical, horizontal = (_both_sides(level.grid, rows, axis) for axis in (0, 1))
    return Net(
        channels=level.channels,
        blocks=level.blocks,
        vertical=vertical,
        horizontal=horizontal,
        near=surroundings._neighbours(level.block_shape),
        static=(around._statics @ network.STATIC.T).astype(np.float32),
        of_block=np.ascontiguousarray(network.OF_BLOCK),
        of_line=np.ascontiguousarray(network.OF_LINE),
        out=network.OUT,
        out_bias=np.float32(network.OUT_BIAS),
        logs=surroundings._logs(),
        means=np.stack([np.stack(logs) for logs in around._means]),
    )


@lru_cache(maxsize=8)
def _neighbours(grid: tuple[int, ...], rows: int) -> Ints:
    """Return the rows before and after each along each axis, int64 (2 * axes, rows).

    `rows` stands for none.
    """
    index = np.arange(rows).reshape(-1, *grid)
    found = []
    for axis in range(1, index.ndim):
        for shift in (1, -1):
            other = np.roll(index, shift, axis)
            edge = [slice(None)] * index.ndim
            edge[axis] = slice(0, 1) if shift == 1 else slice(-1, None)
            other[tuple(edge)] = rows
            found.append(other.ravel())
    return np.stack(found)


@lru_cache(maxsize=16)
def _both_sides(grid: tuple[int, ...], rows: int, axis: int) -> Ints:
    """Return the rows before and after each along an axis, int64 (2, rows); at ends, one twice.

    `rows` stands for none, where there is but one.
    """
    before, after = _neighbours(grid, rows)[2 * axis : 2 * axis + 2]
    first, second = np.where(before < rows, before, after), np.where(after < rows, after, before)
    return np.stack([first, second])


@jit
def _code_scales(
    coder: Kernel, marks: Any, waves: Any, sizes: Any, near: Any, close: Any,
    present: Tables, sign: Tables, step_size: Tables,
) -> None:  # fmt: skip
    decoded = np.zeros(len(marks), np.int64)
    start = 0
    for size in sizes:
        wave = waves[start : start + size]
        start += size
        support, guess = np.zeros(size, np.int64), np.zeros(size, np.int64)
        contexts, bits = np.zeros(size, np.int64), np.zeros(size, np.int32)
        for i in range(size):
            for j in range(near.shape[1]):
                known = decoded[near[wave[i], j]]
                if close[j] and known:
                    support[i] += 1
                    guess[i] += known
            guess[i] //= max(support[i], 1)
            contexts[i] = min((support[i] + 1) // 2, 3)
            bits[i] = marks[wave[i]] > 0
        rows = np.arange(size)
        code_adaptive(coder, present, 0, contexts, rows, bits)
        there = rows[bits == 1]
        count = len(there)
        step = np.zeros(count, np.int64)
        contexts = np.zeros(count, np.int64)
        for i in range(count):
            contexts[i] = min(support[there[i]], 1)
            if coder.encoding:
                step[i] = marks[wave[there[i]]] - guess[there[i]]
        magnitude = np.abs(step)
        code_unary(coder, step_size, contexts, magnitude)
        moved = np.flatnonzero(magnitude)
        down = np.zeros(len(moved), np.int32)
        for i in range(len(moved)):
            down[i] = step[moved[i]] < 0
        code_adaptive(coder, sign, 0, contexts, moved, down)
        for i in range(len(moved)):
            if down[i]:
                magnitude[moved[i]] = -magnitude[moved[i]]
        for i in range(count):
            decoded[wave[there[i]]] = guess[there[i]] + magnitude[i]
        if coder.state[ERROR]:
            return
    marks[:] = decoded


@jit
def _code_by_activity(
    coder: Kernel, table: Any, scales: Any, waves: Any, sizes: Any, tables: Tables, signs: Tables,
    fit: Fit, near: Any, influence: Any, mean: Any, share: Any,
) -> None:  # fmt: skip
    rows, encoding, predicting = table.shape[1], coder.encoding, len(fit.orders) > 0
    known = np.zeros((len(table) + 1, rows))
    count = len(table) // len(fit.orders) * len(fit.regressors) if predicting else 0
    lines, there = np.empty((count, 1 + len(fit.around), rows)), np.zeros(count, np.bool_)
    observed = np.zeros(rows)
    start = 0
    for size in sizes:
        wave = waves[start : start + size]
        wave = wave[scales[wave] > _ABSENT]
        start += size
        if not len(wave):
            continue
        contexts = np.empty(len(wave) * rows, np.int64)
        predicted = np.zeros((len(wave), rows), np.int64)
        widest = 0
        for line in range(len(wave)):
            at = wave[line]
            cap = _MOST_PREDICTED
            if predicting:
                _predict(predicted[line], 0, rows, at, fit, lines, there)
                cap //= rows
            usual = 0
            for r in range(rows):
                usual += min(abs(predicted[line, r]), cap)
            usual //= rows
            counted = _PREDICTED * _SHARES[np.searchsorted(_MEANS, usual, side="right")]
            expected = float(_PRIOR + counted * usual)
            observed[:] = _PRIOR
            for j in range(near.shape[1]):
                other = near[at, j]
                if other < len(table) and mean[other]:
                    weight = float(influence[j] * share[other])
                    expected += weight * mean[other]
                    for r in range(rows):
                        observed[r] += weight * known[other, r]
            scale = scales[at]
            shift = max(0, scale // 2 - 1)
            widest = max(widest, shift)
            own = min(max(scale - 2 * shift, _LOWEST_SCALE), _HIGHEST_SCALE) - _LOWEST_SCALE
            for r in range(rows):
                seen_there = observed[r] + counted * min(abs(predicted[line, r]), cap, _CAP * usual)
                quotient = seen_there / expected
                activity = 0
                for edge in _ACTIVITY:
                    if edge < quotient:
                        activity += 1
                contexts[line * rows + r] = own * _BINS + activity
        forget(tables, _MEMORY)
        forget(signs, _MEMORY)
        magnitude = np.empty(len(wave) * rows, np.int64)
        shifts = np.empty(len(wave) * rows, np.int64)
        for line in range(len(wave)):
            shift = max(0, scales[wave[line]] // 2 - 1)
            for r in range(rows):
                shifts[line * rows + r] = shift
                magnitude[line * rows + r] = abs(table[wave[line], r]) >> shift
        code_unary(coder, tables, contexts, magnitude)
        if coder.state[ERROR]:
            return
        if widest:
            low = np.zeros(len(magnitude), np.int64)
            if encoding:
                for line in range(len(wave)):
                    for r in range(rows):
                        low[line * rows + r] = abs(table[wave[line], r])
            code_raw(coder, shifts, low)
            if not encoding:
                for i in range(len(magnitude)):
                    magnitude[i] = (magnitude[i] << shifts[i]) | low[i]
            else:
                magnitude[:] = low
        _code_signs(coder, signs, table, wave, magnitude, predicted)
        if coder.state[ERROR]:
            return
        for at in wave:
            most = float(_CAP * mean[at])
            for r in range(rows):
                known[at, r] = min(float(abs(table[at, r]) * _FIXED), most)
            if predicting:
                _note(lines, there, table, at, fit)


@jit
def _code_signs(
    coder: Kernel, tables: Tables, table: Any, wave: Any, magnitude: Any, predicted: Any
) -> None:
    """Code the signs of what is not zero; what is decoded is put into the table."""
    rows = table.shape[1]
    there = np.flatnonzero(magnitude)
    contexts, bits = np.empty(len(there), np.int64), np.zeros(len(there), np.int32)
    for i in range(len(there)):
        line, r = divmod(there[i], rows)
        expected = predicted[line, r]
        sureness = 0
        for edge in _SURENESS:
            if edge <= abs(expected):
                sureness += 1
        contexts[i] = sureness
        bits[i] = (table[wave[line], r] < 0) != (expected < 0)
    code_adaptive(coder, tables, 0, contexts, np.arange(len(there)), bits)
    if coder.encoding:
        return
    for i in range(len(there)):
        line, r = divmod(there[i], rows)
        negative = (bits[i] == 1) != (predicted[line, r] < 0)
        table[wave[line], r] = -magnitude[there[i]] if negative else magnitude[there[i]]


@jit
def _predict(
    predicted: Any, begin: int, end: int, at: int, fit: Fit, lines: Any, there: Any
) -> None:
    """Predict a coefficient of some blocks: the sums of `Prediction`, in units of its step."""
    channel, frequency = divmod(at, len(fit.orders))
    regressors, orders = fit.regressors, fit.orders
    sums = np.zeros(end - begin)
    for direction in range(lines.shape[1]):
        for j in range(len(regressors)):
            slope = fit.coefficients[direction, frequency, j]
            other = channel * len(regressors) + j
            if orders[regressors[j]] < orders[frequency] and there[other]:
                line = lines[other, direction, begin:end]
                for r in range(len(sums)):
                    sums[r] += slope * line[r]
        if direction:
            slope = fit.slopes[frequency, direction - 1]
            line = fit.differences[channel, direction - 1, begin:end]
            for r in range(len(sums)):
                sums[r] += slope * line[r]
    unit = _SLOPE / _ONE * fit.factors[at]
    for r in range(len(sums)):
        predicted[begin + r] = np.int64(sums[r] / unit)


@jit
def _note(lines: Any, there: Any, table: Any, at: int, fit: Fit) -> None:
    """Keep a coefficient that predicts, as it is in each block and in those beside it."""
    channel, frequency = divmod(at, len(fit.orders))
    regressors, rows = fit.regressors, table.shape[1]
    for j in range(len(regressors)):
        if regressors[j] == frequency:
            there[channel * len(regressors) + j] = True
            line = lines[channel * len(regressors) + j]
            for r in range(rows):
                line[0, r] = min(max(table[at, r], -_MOST_STEPS), _MOST_STEPS) * fit.factors[at]
            for direction in range(len(fit.around)):
                for r in range(rows):
                    other = fit.around[direction, r]
                    line[1 + direction, r] = line[0, other] if other < rows else 0.0


@jit
def _code_by_scores(
    coder: Kernel, table: Any, scales: Any, waves: Any, sizes: Any, tables: Tables, signs: Tables,
    fit: Fit, net: Net,
) -> None:  # fmt: skip
    rows, size, channels, blocks = table.shape[1], len(fit.orders), net.channels, net.blocks
    count = channels * len(fit.regressors)
    lines, there = np.empty((count, 1 + len(fit.around), rows)), np.zeros(count, np.bool_)
    magnitudes = np.zeros((len(table) + 1, rows), np.uint8)  # the last line stands for none
    sums, last = np.zeros((channels, rows + 1), np.int64), np.zeros((channels, rows), np.int64)
    step = blocks * max(1, _BLOCK // blocks)  # neighbours are of one sample: together
    near_by = min(step, rows)
    upright, across = np.empty((2, near_by), np.int64), np.empty((2, near_by), np.int64)
    for side in range(2):
        for r in range(near_by):
            one, other = net.vertical[side, r], net.horizontal[side, r]
            upright[side, r] = one if one < rows else near_by
            across[side, r] = other if other < rows else near_by
    start = 0
    for length in sizes:
        whole = waves[start : start + length]
        wave = whole[scales[whole] > _ABSENT]
        start += length
        channel = whole[0] // size
        if not len(wave):
            last[channel] = 0
            continue
        common = _of_blocks(channel, sums, last, net)
        contexts = np.empty((len(wave), rows), np.int64)
        predicted = np.empty((len(wave), rows), np.int64)
        for begin in range(0, rows, step):
            end = min(rows, begin + step)
            for line in range(len(wave)):
                _predict(predicted[line], begin, end, wave[line], fit, lines, there)
                _score(
                    contexts[line, begin:end], wave[line], size, predicted[line, begin:end],
                    magnitudes[:, begin:end], upright, across, common[:, begin:end], net,
                )  # fmt: skip
        forget(tables, _SCORED_MEMORY)
        forget(signs, _MEMORY)
        magnitude = np.empty(len(wave) * rows, np.int64)
        for line in range(len(wave)):
            for r in range(rows):
                magnitude[line * rows + r] = abs(table[wave[line], r])
        code_unary(coder, tables, contexts.ravel(), magnitude)
        if coder.state[ERROR]:
            return
        _code_signs(coder, signs, table, wave, magnitude, predicted)
        if coder.state[ERROR]:
            return
        last[channel] = 0
        for at in wave:
            for r in range(rows):
                capped = min(abs(table[at, r]), _NETWORK_CAP)
                magnitudes[at, r] = capped
                last[channel, r] += capped
                sums[channel, r] += capped
            _note(lines, there, table, at, fit)


@jit
def _of_blocks(channel: int, sums: Any, last: Any, net: Net) -> Any:
    """Return what the inputs of blocks add to each hidden value, float32 (hidden, rows)."""
    own, rows, blocks = sums[channel], sums.shape[1] - 1, net.blocks
    vertical, horizontal, of_block, logs = net.vertical, net.horizontal, net.of_block, net.logs
    samples = rows // blocks
    upright = np.zeros(rows + 1, np.int64)
    for r in range(rows):
        upright[r] = own[vertical[0, r]] + own[vertical[1, r]]
    place, sample = np.zeros(blocks, np.int64), np.zeros(samples, np.int64)
    for r in range(rows):
        place[r % blocks] += own[r]
        sample[r // blocks] += own[r]
    of_place = logs[np.minimum(4 * place // samples, _LARGEST)]
    of_sample = logs[np.minimum(4 * sample // blocks, _LARGEST)]
    common = np.zeros((len(of_block), rows), np.float32)
    inputs = np.zeros((of_block.shape[1], _BLOCK), np.float32)
    for begin in range(0, rows, _BLOCK):
        count = min(_BLOCK, rows - begin)
        for i in range(count):
            r = begin + i
            beside = own[horizontal[0, r]] + own[horizontal[1, r]]
            diagonal = upright[horizontal[0, r]] + upright[horizontal[1, r]]
            inputs[0, i] = logs[min(own[r], _LARGEST)]
            inputs[1, i] = logs[min(last[channel, r], _LARGEST)]
            inputs[2, i] = logs[min(upright[r], _LARGEST)]
            inputs[3, i] = logs[min(beside, _LARGEST)]
            inputs[4, i] = logs[min(diagonal, _LARGEST)]
            for k in range(3):
                inputs[5 + k, i] = net.means[channel, k, r]
            inputs[8, i] = of_place[r % blocks]
            inputs[9, i] = of_sample[r // blocks]
            if channel:
                inputs[10, i] = logs[min(sums[0, r], _LARGEST)]
            if channel > 1:
                inputs[11, i] = logs[min(sums[channel - 1, r], _LARGEST)]
        for h in range(len(of_block)):
            into = common[h, begin : begin + count]
            for k in range(len(inputs)):
                weight = of_block[h, k]
                for i in range(count):
                    into[i] += weight * inputs[k, i]
    return common


@jit
def _score(
    bins: Any, at: int, size: int, predicted: Any, magnitudes: Any, upright: Any, across: Any,
    common: Any, net: Net,
) -> None:  # fmt: skip
    """Write the bin of a coefficient's score in some blocks, of whole samples."""
    near, of_line, logs = net.near, net.of_line, net.logs
    count, none = len(bins), len(magnitudes) - 1
    channel, frequency = divmod(at, size)
    base, beyond = channel * size, upright.shape[1]
    first, second = near[frequency, 0], near[frequency, 1]
    one = base + first if first >= 0 else (base + second if second >= 0 else none)
    other = base + second if second >= 0 else one
    both, wide = np.zeros(beyond + 1, np.int32), np.zeros(count, np.int32)
    for i in range(count):
        both[i] = np.int32(magnitudes[one, i]) + np.int32(magnitudes[other, i])
    for j in range(2, near.shape[1]):
        if near[frequency, j] >= 0:
            line = magnitudes[base + near[frequency, j]]
            for i in range(count):
                wide[i] += line[i]
    inputs = np.zeros((of_line.shape[1], count), np.float32)
    for i in range(count):
        inputs[0, i] = logs[both[i]]
        inputs[1, i] = logs[wide[i]]
        inputs[2, i] = logs[both[upright[0, i]] + both[upright[1, i]]]
        inputs[3, i] = logs[both[across[0, i]] + both[across[1, i]]]
        inputs[4, i] = logs[min(abs(predicted[i]) >> 6, _LARGEST)]
    if channel:
        for i in range(count):
            inputs[5, i] = logs[2 * np.int64(magnitudes[frequency, i])]
    if channel > 1:
        for i in range(count):
            inputs[6, i] = logs[2 * np.int64(magnitudes[at - size, i])]
    hidden, score = np.empty(count, np.float32), np.empty(count, np.float32)
    score[:] = net.out_bias
    for h in range(len(net.out)):
        of_all = net.static[at, h]
        for i in range(count):
            hidden[i] = common[h, i] + of_all
        for k in range(len(inputs)):
            weight = of_line[h, k]
            for i in range(count):
                hidden[i] += weight * inputs[k, i]
        weight = net.out[h]
        for i in range(count):
            score[i] += weight * min(max(hidden[i], np.float32(0)), _HIGHEST_HIDDEN)
    for i in range(count):
        quarter = np.int64(np.floor(score[i] * _QUARTER)) - _LOWEST_SCORE
        bins[i] = min(max(quarter, 0), _SCORES - 1)
