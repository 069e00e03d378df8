"""The adaptive bit coder and the integer codes built on it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from codec import PayloadError
from codec.coding.range_coder import (
    AdaptiveBits,
    BitCoder,
    BitDecoder,
    BitEncoder,
    Bits,
    Floats,
    Ints,
    code_exp_golomb,
    code_raw,
    code_unary,
)

PROPERTY = settings(max_examples=80, deadline=None, derandomize=True)
LARGEST = 2**24 - 2

bits = arrays(np.int32, st.integers(0, 400), elements=st.integers(0, 1))
magnitudes = arrays(
    np.int64,
    st.integers(0, 200),
    elements=st.integers(0, 20) | st.integers(0, LARGEST) | st.sampled_from([0, 2**22 - 1]),
)


def entropy(p: float) -> float:
    """Bits of one Bernoulli(p)."""
    if p in (0, 1):
        return 0.0
    return float(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def fresh(contexts: int = 1) -> AdaptiveBits:
    return AdaptiveBits(np.full(contexts, 0.5))


def encode_adaptive(table: AdaptiveBits, contexts: Ints, values: Bits) -> bytes:
    coder = BitEncoder()
    table.code(coder, contexts, values)
    return coder.finish()


@PROPERTY
@given(bits, st.data())
def test_bits_round_trip_at_any_probability(values: Bits, data: st.DataObject) -> None:
    extremes = st.sampled_from([2.0**-40, 2.0**-24, 1 - 2.0**-24, 1 - 2.0**-40])
    p_one = data.draw(
        arrays(np.float64, len(values), elements=st.floats(1e-9, 1 - 1e-9) | extremes)
    )
    coder = BitEncoder()
    assert np.array_equal(coder.code(p_one, values), values)
    assert np.array_equal(BitDecoder(coder.finish()).code(p_one), values)


@PROPERTY
@given(bits, st.integers(1, 5), st.integers(0, 2**32))
def test_adaptive_bits_round_trip(values: Bits, contexts: int, seed: int) -> None:
    context = np.random.default_rng(seed).integers(0, contexts, len(values))
    data = encode_adaptive(fresh(contexts), context, values)
    assert np.array_equal(fresh(contexts).code(BitDecoder(data), context), values)


def test_streams_of_zeros_cost_nothing() -> None:
    # The last zeros of a stream are left out; the decoder must put them back, to any length.
    assert encode_adaptive(fresh(), np.zeros(10_000, np.int64), np.zeros(10_000, np.int32)) == b""
    assert not BitDecoder(b"").code(np.full(1000, 0.999)).any()


@pytest.mark.parametrize("p", [0.5, 0.2, 0.03])
@pytest.mark.parametrize("count", [300, 20_000])
def test_adaptive_bits_cost_the_source_and_a_word_for_learning(p: float, count: int) -> None:
    contexts = 4
    rng = np.random.default_rng(0)
    context = rng.integers(0, contexts, count)
    flip = context % 2 == 1
    values = ((rng.random(count) < p) ^ flip).astype(np.int32)
    size = 8 * len(encode_adaptive(fresh(contexts), context, values))
    empirical = sum(
        (context == c).sum() * entropy(values[context == c].mean()) for c in range(contexts)
    )
    learning = contexts * (0.5 * np.log2(count / contexts) + 1)  # Krichevsky and Trofimov, 1981
    assert empirical <= size
    # The first chunk is coded blind, at a bit each, and the stream ends on a word or two.
    assert size <= 1.005 * (empirical + learning) + 64 + 64


def test_probabilities_follow_the_source() -> None:
    # Bits of a context that starts out sure of the opposite, until the first chunk is over.
    rng = np.random.default_rng(1)
    values = (rng.random(5000) < 0.9).astype(np.int32)
    wrong = AdaptiveBits(np.array([0.05]))
    size = 8 * len(encode_adaptive(wrong, np.zeros(5000, np.int64), values))
    assert size < 1.01 * 5000 * entropy(0.9) + 64 * np.log2(1 / 0.05)


def test_a_table_that_forgets_follows_a_new_source_sooner() -> None:
    rng = np.random.default_rng(3)
    before, after = (rng.random(5000) < p for p in (0.05, 0.6))
    bits = {}
    for forgets in (False, True):
        table, coder = fresh(), BitEncoder()
        zeros = np.zeros(5000, np.int64)
        table.code(coder, zeros, before.astype(np.int32))
        if forgets:
            table.forget(64)
        table.code(coder, zeros, after.astype(np.int32))
        bits[forgets] = 8 * len(coder.finish())
    ideal = 5000 * (entropy(0.05) + entropy(0.6))
    assert bits[True] < 1.06 * ideal < 1.15 * ideal < bits[False]


def test_forgetting_keeps_the_guess_and_what_is_new() -> None:
    table = fresh(2)
    table.code(BitEncoder(), np.zeros(300, np.int64), np.ones(300, np.int32))
    table.forget(1000)  # nothing has weighed so much yet
    coder = _Probabilities()
    table.code(coder, np.array([0, 1]), np.array([1, 0], np.int32))
    assert coder.seen[0] > 0.99 and coder.seen[1] == 0.5


class _Probabilities:
    """A coder that only notes what it is told."""

    seen: Floats

    def code(self, p_one: Floats, bits: Bits | None) -> Bits:
        assert bits is not None
        self.seen = p_one
        return bits


@PROPERTY
@given(magnitudes)
def test_exp_golomb_round_trip(values: Ints) -> None:
    coder = BitEncoder()
    assert np.array_equal(code_exp_golomb(coder, values, len(values)), values)
    assert np.array_equal(code_exp_golomb(BitDecoder(coder.finish()), None, len(values)), values)


@pytest.mark.parametrize("largest", [10, 1000, LARGEST])
def test_exp_golomb_length_is_that_of_elias_gamma(largest: int) -> None:
    values = np.random.default_rng(0).integers(0, largest, 1000)
    coder = BitEncoder()
    code_exp_golomb(coder, values, 1000)
    gamma = sum(2 * int(value + 1).bit_length() - 1 for value in values)
    assert gamma - 64 <= 8 * len(coder.finish()) <= gamma + 64


def test_exp_golomb_refuses_what_the_decoder_would() -> None:
    with pytest.raises(PayloadError, match="24 bits"):
        code_exp_golomb(BitEncoder(), np.array([LARGEST + 1]), 1)
    coder = BitEncoder()
    coder.code(np.full(30, 0.5), np.ones(30, np.int32))
    with pytest.raises(PayloadError, match="24 bits"):
        code_exp_golomb(BitDecoder(coder.finish()), None, 1)


@PROPERTY
@given(magnitudes, st.integers(0, 5), st.integers(1, 3))
def test_unary_round_trip(values: Ints, runs: int, contexts: int) -> None:
    context = np.arange(len(values)) % contexts

    def both_ways(coder: BitCoder, given_values: Ints | None) -> Ints:
        tables = [fresh(contexts) for _ in range(runs)]
        return code_unary(coder, tables, context, given_values)

    coder = BitEncoder()
    assert np.array_equal(both_ways(coder, values), values)
    assert np.array_equal(both_ways(BitDecoder(coder.finish()), None), values)


def test_unary_reaches_the_entropy_of_a_geometric_source() -> None:
    count, stay = 20_000, 0.6
    values = np.random.default_rng(0).geometric(1 - stay, count) - 1
    coder = BitEncoder()
    code_unary(coder, [fresh() for _ in range(14)], np.zeros(count, np.int64), values)
    ideal = count * entropy(stay) / (1 - stay)
    spread = 5 * np.sqrt(count * stay) / (1 - stay) * abs(np.log2(stay))
    assert abs(8 * len(coder.finish()) - ideal) < spread + 14 * 10 + 64


@PROPERTY
@given(st.data(), st.integers(0, 100))
def test_raw_bits_round_trip(data: st.DataObject, count: int) -> None:
    width = data.draw(arrays(np.int64, count, elements=st.integers(0, 24)))
    values = data.draw(arrays(np.int64, count, elements=st.integers(0, 2**24 - 1)))
    values &= (1 << width) - 1
    coder = BitEncoder()
    code_raw(coder, width, values)
    data_bytes = coder.finish()
    assert 8 * len(data_bytes) <= width.sum() + 64
    assert np.array_equal(code_raw(BitDecoder(data_bytes), width, None), values)


def test_bytes_that_no_encoder_writes() -> None:
    with pytest.raises(PayloadError, match="does not decode"):
        BitDecoder(b"\xff" * 16).code(np.full(2000, 0.3))
