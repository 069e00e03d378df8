"""The column coder: round trips, extremes and overhead."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from codec import PayloadError
from codec.coding.columns import code_columns, code_integers
from codec.coding.entropy import line_entropy
from codec.coding.range_coder import BitDecoder, BitEncoder, Ints


def encode(table: Ints, width: int) -> bytes:
    coder = BitEncoder()
    rows, columns = table.shape
    assert np.array_equal(code_columns(coder, width, rows, columns, table), table)
    return coder.finish()


def decode(data: bytes, width: int, shape: tuple[int, int]) -> Ints:
    return code_columns(BitDecoder(data), width, *shape, None)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.data(), st.integers(0, 23), array_shapes(min_dims=2, max_dims=2, max_side=30))
def test_round_trip(data: st.DataObject, width: int, shape: tuple[int, int]) -> None:
    top = 2**width - 1
    table = data.draw(
        arrays(np.int64, shape, elements=st.integers(0, top) | st.sampled_from([0, top]))
    )
    assert np.array_equal(decode(encode(table, width), width, shape), table)


LARGEST = 2**48


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.data(), array_shapes(min_dims=2, max_dims=2, max_side=30))
def test_integers_of_any_size_round_trip(data: st.DataObject, shape: tuple[int, int]) -> None:
    number = st.integers(-3, 3) | st.integers(-LARGEST, LARGEST) | st.sampled_from([-LARGEST, 0])
    table = data.draw(arrays(np.int64, shape, elements=number))
    coder = BitEncoder()
    code_integers(coder, *shape, table)
    assert np.array_equal(code_integers(BitDecoder(coder.finish()), *shape, None), table)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1)])
def test_smallest_tables_of_integers(shape: tuple[int, int]) -> None:
    coder = BitEncoder()
    code_integers(coder, *shape, np.full(shape, -7))
    assert (code_integers(BitDecoder(coder.finish()), *shape, None) == -7).all()


def test_integers_cost_little_more_than_their_entropy_beside_outliers() -> None:
    rng = np.random.default_rng(0)
    table = np.round(rng.normal(0, 4, (2000, 3))).astype(np.int64)
    ideal = line_entropy(table.T)
    table[77] = -4_000_000  # of which the many small ones know nothing
    coder = BitEncoder()
    code_integers(coder, *table.shape, table)
    assert 8 * len(coder.finish()) < 1.1 * ideal + 500


def test_an_integer_that_no_encoder_writes() -> None:
    coder = BitEncoder()
    code_columns(coder, 6, 1, 1, np.array([[51]]))
    with pytest.raises(PayloadError, match="of 51 bits; at most 50"):
        code_integers(BitDecoder(coder.finish()), 1, 1, None)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("width", [0, 1, 22])
def test_smallest_tables(shape: tuple[int, int], width: int) -> None:
    table = np.full(shape, 2**width - 1)
    assert np.array_equal(decode(encode(table, width), width, shape), table)


def test_wide_table() -> None:
    # 20,000 columns of 8 bits are more counts than are kept: fewer bits are modelled.
    table = np.random.default_rng(0).integers(0, 256, (6, 20_000))
    data = encode(table, 8)
    assert np.array_equal(decode(data, 8, table.shape), table)
    assert len(data) < 1.01 * table.size


@pytest.mark.parametrize("rows", [200, 2000])
def test_overhead_over_the_entropy_of_each_column(rows: int) -> None:
    # Columns with distributions of their own, of shapes that no parametric law has.
    rng = np.random.default_rng(0)
    columns, symbols = 12, 16
    laws = rng.dirichlet(np.full(symbols, 0.3), columns)
    table = np.stack([rng.choice(symbols, rows, p=law) for law in laws], axis=1)
    empirical = line_entropy(table.T)
    learning = columns * (symbols - 1) / 2 * np.log2(rows)  # Rissanen's bound
    size = 8 * len(encode(table, 4))
    assert size <= 1.01 * (empirical + learning) + 64


def test_columns_lean_on_one_another() -> None:
    # One law for all columns: the cost of learning is that of one column, not of 300.
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.full(16, 0.3))
    table = rng.choice(16, (40, 300), p=law)
    ideal = -(law * np.log2(law)).sum() * table.size
    assert 8 * len(encode(table, 4)) < 1.1 * ideal


def test_a_constant_table_is_all_but_free() -> None:
    assert len(encode(np.full((1000, 50), 200), 8)) < 300


def test_low_bits_beyond_the_model_cost_one_bit_each() -> None:
    rng = np.random.default_rng(0)
    table = (3 << 12) + rng.integers(0, 2**12, (500, 4))  # 20 bits: 8 modelled, 12 raw
    raw_bits = 500 * 4 * 12
    assert raw_bits - 64 < 8 * len(encode(table, 20)) < raw_bits + 1000
