"""The column coder: round trips, extremes and overhead."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from codec.coding.columns import code_columns
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
