"""What the network of contexts reads, by its definition; that its sums are exact; what it gains."""

from itertools import product

import numpy as np
import pytest
from images import digits, fields
from numpy.typing import NDArray

from codec import CodecOptions, SampleSpec, decode_samples, encode_samples
from codec.coding.range_coder import Ints
from codec.samples.block_dct import coefficients, network, surroundings
from codec.samples.block_dct.coefficients import layout
from codec.samples.block_dct.surroundings import (
    BLOCK_INPUTS,
    DECISIONS,
    HIGHEST_HIDDEN,
    LINE_INPUTS,
    LOWEST_SCORE,
    SCORES,
    STATIC_INPUTS,
    UNIT,
    Surroundings,
    bins_of,
    is_known,
)
from codec.samples.block_dct.transform import transform_for

LEVEL = transform_for((3, 16, 12), 4)  # 4 x 3 blocks of 4 x 4
COUNT, SIZE = 5, 16


def log(value: float) -> float:
    return float(np.round(UNIT * np.log2(1 + value)))


def made_up() -> tuple[Ints, Ints, Ints]:
    """Coefficients, block means and scales."""
    rng = np.random.default_rng(0)
    table = np.round(rng.laplace(0, 1, (LEVEL.coefficients, COUNT * LEVEL.blocks))).astype(np.int64)
    table[LEVEL.means] = 0
    table[5] = 0  # a frequency that is absent
    means = rng.integers(-900, 900, (3, COUNT, *LEVEL.grid))
    scales = np.where(table.any(axis=1), rng.integers(-9, 4, len(table)), np.iinfo(np.int64).min)
    return table, means, scales


class Naive:
    """The inputs of one coefficient, block by block."""

    def __init__(self, table: Ints, means: Ints, channel: int, row: int, column: int) -> None:
        shape = (3, 4, 4, COUNT, *LEVEL.grid)
        self.magnitude = np.minimum(np.abs(table), 15).reshape(shape)
        self.means, self.channel, self.place = means, channel, (row, column)

    def at(self, row: int, column: int, *where: int, channel: int | None = None) -> int:
        inside = 0 <= row < 4 and 0 <= column < 4
        channel = self.channel if channel is None else channel
        return int(self.magnitude[(channel, row, column, *where)]) if inside else 0

    def lower(self, *where: int, channel: int | None = None, order: int | None = None) -> int:
        """Sum of the magnitudes of lower orders, or up to an order."""
        below = sum(self.place) if order is None else order + 1
        return sum(
            self.at(u, v, *where, channel=channel)
            for u, v in product(range(4), range(4))
            if u + v < below
        )

    def next(self, *where: int) -> int:
        u, v = self.place
        left, above = self.at(u, v - 1, *where), self.at(u - 1, v, *where)
        return (left if v else above) + (above if u else left)

    def beside(self, what: NDArray[np.int64], n: int, y: int, x: int, axis: int) -> int:
        """Sum over both neighbours, one twice where it is the only one."""
        places = [(y + d, x) if axis == 0 else (y, x + d) for d in (-1, 1)]
        there = [int(what[n, a, b]) for a, b in places if 0 <= a < 4 and 0 <= b < 3]
        return sum(there) * (3 - len(there))

    def of_all(self, function: str) -> NDArray[np.int64]:
        grid = np.ndindex(COUNT, *LEVEL.grid)
        values = [getattr(self, function)(*where) for where in grid]
        return np.array(values).reshape(COUNT, *LEVEL.grid)


@pytest.mark.parametrize("line", [1, 4, 6, 10, 15, 17, 26, 37, 47])
def test_inputs_are_those_of_the_definition(line: int) -> None:
    table, means, scales = made_up()
    channel, frequency = divmod(line, SIZE)
    u, v = divmod(frequency, 4)
    naive = Naive(table, means, channel, u, v)
    known = Surroundings(LEVEL, means, scales)
    for whole in layout(3, (4, 4)).waves:
        if line in whole:
            break
        wave = whole[scales[whole] > np.iinfo(np.int64).min]
        if len(wave):
            known.learn(wave, table[wave])
        else:
            known.pass_over(whole)
    blocks = dict(zip(BLOCK_INPUTS, known.of_blocks(channel), strict=True))
    predicted = np.arange(table.shape[1]) * 37 - 500
    lines = dict(
        zip(LINE_INPUTS, known.of_lines(np.array([line]), predicted[None])[0], strict=True)
    )
    lower, nearest = naive.of_all("lower"), naive.of_all("next")
    for row, (n, y, x) in enumerate(np.ndindex(COUNT, *LEVEL.grid)):
        here, vertical = (n, y, x), naive.beside(lower, n, y, x, 0)
        assert blocks["lower orders"][row] == log(lower[here])
        at_order = lower[here] - naive.lower(*here, order=u + v - 2)
        assert blocks["order before"][row] == log(at_order)
        assert blocks["vertical"][row] == log(vertical)
        assert blocks["horizontal"][row] == log(naive.beside(lower, n, y, x, 1))
        apart = np.abs(means[channel] - means[channel][here])
        assert blocks["vertical mean"][row] == log(naive.beside(apart, n, y, x, 0) >> 4)
        assert blocks["horizontal mean"][row] == log(naive.beside(apart, n, y, x, 1) >> 4)
        own = means[channel]
        extreme = min(own[here] - own.min(), own.max() - own[here])
        assert blocks["extreme"][row] == log(int(extreme) >> 4)
        assert blocks["place"][row] == log(4 * lower[:, y, x].sum() // COUNT)
        assert blocks["sample"][row] == log(4 * lower[n].sum() // LEVEL.blocks)
        first = naive.lower(*here, channel=0, order=u + v) if channel else 0
        assert blocks["first channel"][row] == log(first)
        before = naive.lower(*here, channel=channel - 1, order=u + v) if channel > 1 else 0
        assert blocks["channel before"][row] == log(before)
        assert lines["next"][row] == log(nearest[here])
        assert lines["vertical next"][row] == log(naive.beside(nearest, n, y, x, 0))
        assert lines["horizontal next"][row] == log(naive.beside(nearest, n, y, x, 1))
        assert lines["prediction"][row] == log(abs(int(predicted[row])) >> 6)
        first = 2 * naive.at(u, v, *here, channel=0) if channel else 0
        assert lines["in first channel"][row] == log(first)
        wide = sum(naive.at(u + a, v + b, *here) for a, b in surroundings._WIDE)
        assert lines["wide"][row] == log(wide)
    static = dict(zip(STATIC_INPUTS, known.static()[line], strict=True))
    assert static["scale"] == scales[line] * UNIT / 2
    assert (static["vertical order"], static["horizontal order"]) == (4 * u, 4 * v)
    assert static["bias"] == UNIT
    flags = [static[name] / UNIT for name in STATIC_INPUTS[5:8]]
    assert flags == [channel == 0, channel == 1, channel == 2]


def test_sums_are_exact_in_single_precision() -> None:
    """Whatever is read, integers stay below 2**24, so the order of summation is of no matter."""
    weights = np.concatenate([network.OF_BLOCK, network.OF_LINE, network.STATIC], axis=1)
    assert (weights == np.round(weights)).all() and (np.round(network.OUT) == network.OUT).all()
    largest = np.full(weights.shape[1], UNIT * 12)  # log2 of the largest sum
    statics = len(STATIC_INPUTS)
    largest[-statics:] = [4 * 60, 16, 16, 16, *[UNIT] * 5]
    assert (np.abs(weights) @ largest).max() < 2**24
    assert np.abs(network.OUT).sum() * HIGHEST_HIDDEN + abs(network.OUT_BIAS) < 2**24


def test_no_logarithm_lies_near_a_half() -> None:
    logs = UNIT * np.log2(np.arange(1.0, surroundings._LARGEST + 2))
    assert np.abs(logs - np.floor(logs) - 0.5).min() > 1e-6
    assert np.array_equal(surroundings._logs(), np.round(logs)) and logs.max() <= UNIT * 12


def test_scores_are_those_of_the_network() -> None:
    table, means, scales = made_up()
    known = Surroundings(LEVEL, means, scales)
    wave = np.array([1, 4])
    predicted = np.zeros((2, table.shape[1]), np.int64)
    blocks = known.of_blocks(0).astype(np.int64)
    for line, bins in zip(wave, known.scores(wave, predicted), strict=True):
        inputs = np.concatenate(
            [
                blocks,
                known.of_lines(wave[:1] * 0 + line, predicted[:1])[0].astype(np.int64),
                np.repeat(known.static()[line][:, None], table.shape[1], 1).astype(np.int64),
            ]
        )
        weights = np.concatenate([network.OF_BLOCK, network.OF_LINE, network.STATIC], axis=1)
        hidden = np.clip(weights.astype(np.int64) @ inputs, 0, HIGHEST_HIDDEN)
        score = network.OUT.astype(np.int64) @ hidden + int(network.OUT_BIAS)
        assert np.array_equal(bins, np.clip((score >> 11) - LOWEST_SCORE, 0, SCORES - 1))


def test_bins_of_scores() -> None:
    unit = 32 * 32 * UNIT
    assert bins_of(np.float32([-1e7, -0.25 * unit, -1, 0, 0.25 * unit, 1e7])).tolist() == [
        0, -LOWEST_SCORE - 1, -LOWEST_SCORE - 1, -LOWEST_SCORE, -LOWEST_SCORE + 1, SCORES - 1,
    ]  # fmt: skip


def test_shipped_probabilities_are_ones_and_rise_with_the_score() -> None:
    """But for a little noise at scores that are rarely reached."""
    assert network.LARGER.shape == (DECISIONS, SCORES)
    assert network.LARGER.min() > 0 and network.LARGER.max() < 1
    first = network.LARGER[0]
    assert (np.diff(first) > -0.02).all()
    assert (np.diff(first)[(first[:-1] > 0.01) & (first[:-1] < 0.8)] > 0).all()


@pytest.mark.parametrize(
    ("shape", "block", "scale", "known"),
    [
        ((3, 32, 32), 8, 6, True),
        ((1, 300, 300), 8, -5, True),
        ((3, 32, 32), 8, 7, False),  # too finely quantized
        ((9, 32, 32), 8, 0, False),
        ((3, 200), 32, 0, False),
    ],
)
def test_what_the_network_knows(
    shape: tuple[int, ...], block: int, scale: int, known: bool
) -> None:
    level, means = transform_for(shape, block).levels[:2]
    assert is_known(level, np.full(level.coefficients, scale)) == known
    assert not is_known(means, np.zeros(means.coefficients, np.int64))


def test_fine_steps_do_without_the_network() -> None:
    images = digits(40)[0]
    fine = {version: size_of(images, version, 0.02) for version in (6, 7)}
    assert fine[7] == pytest.approx(fine[6], rel=0.02)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 28, 28), CodecOptions("dct")),
        ((3, 32, 32), CodecOptions("dct")),
        ((3, 32, 32), CodecOptions("dct", quantizer="dithered")),
        ((3, 19, 30), CodecOptions("dct", block=5)),
        ((8, 16, 16), CodecOptions("dct", block=4)),
        ((1, 40, 8), CodecOptions("dct", step=1.5)),
        ((2, 32, 32), CodecOptions("dct", block=16, step=2)),
        ((1, 16, 16), CodecOptions("dct", step=50)),  # nothing is left
    ],
)
@pytest.mark.parametrize("count", [1, 7])
def test_images_come_back(shape: tuple[int, int, int], options: CodecOptions, count: int) -> None:
    spec = SampleSpec(shape, classes=2, codec=options)
    images = fields(count, shape)
    payload = encode_samples(images, np.zeros(count, np.int64), spec)
    expected = spec.sample_codec.reconstruct(images, spec, payload.key)
    assert np.array_equal(decode_samples(payload).samples, expected)


def size_of(images: NDArray[np.uint8], version: int, step: float = 0.5) -> int:
    options = CodecOptions("dct", 7, step=step)
    spec = SampleSpec(images.shape[1:], classes=2, codec=options, version=version)
    payload = encode_samples(images, np.zeros(len(images), np.int64), spec)
    return len(payload.sections["values"])


@pytest.mark.parametrize("count", [50, 400])
def test_the_network_gains_on_digits_that_it_has_not_seen(count: int) -> None:
    images = digits(count)[0]
    assert size_of(images, 7) < 0.94 * size_of(images, 6)


def test_the_network_is_no_worse_on_fields() -> None:
    images = fields(100, (1, 28, 28))
    assert size_of(images, 7) < 1.01 * size_of(images, 6)


def test_learned_contexts_start_from_the_shipped_ones() -> None:
    model = coefficients.CoefficientModel.start()
    assert len(model.scored) == DECISIONS
