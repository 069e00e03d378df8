"""Entropy coding of a table of integers, column by column, for data with no transform.

Each column of the table has its own adaptive distribution, of any shape: a symbol is coded by
its bits, most significant first, each in the context of the bits above it (a binary tree). A
column that was seen little leans on what all columns have in common, so that tables with few
rows cost no more than one shared distribution would.
"""

import numpy as np
from numpy.typing import NDArray

from codec.coding.range_coder import BitCoder, Bits, Ints, code_raw
from codec.errors import PayloadError

_MODELLED_BITS = 8
_LENGTH_BITS, _LONGEST = 6, 50  # of whole numbers of any size
_MAX_CELLS = 1 << 21  # counts kept at once; very wide tables model fewer of the top bits
_FIRST_ROWS = 4
_SHARED_WEIGHT = 8.0  # what the other columns say counts as so many observed bits


def code_columns(coder: BitCoder, width: int, rows: int, columns: int, table: Ints | None) -> Ints:
    """Code an integer table, int64 (rows, columns), entries in [0, 2**width).

    Parameters
    ----------
    coder : BitCoder
        Encoder or decoder.
    width : int
        Bits of an entry; the top 8 (fewer in very wide tables) are modelled, bits below are
        sent as they are.
    rows, columns : int
        Shape of the table.
    table : int64 (rows, columns) or None
        None when decoding.

    Returns
    -------
    int64 (rows, columns)
        The table.
    """
    modelled = min(width, _MODELLED_BITS)
    while modelled > 1 and columns << modelled > _MAX_CELLS:
        modelled -= 1
    raw = width - modelled
    decoded = np.zeros((rows, columns), np.int64)
    counts = _ColumnCounts(columns, modelled)
    start = 0
    while start < rows:
        stop = min(rows, start + max(_FIRST_ROWS, start // 4))
        part = None if table is None else table[start:stop]
        decoded[start:stop] = _code_rows(coder, counts, stop - start, raw, part)
        if stop < rows:
            counts.update(decoded[start:stop] >> raw)
        start = stop
    return decoded


def code_integers(coder: BitCoder, rows: int, columns: int, table: Ints | None) -> Ints:
    """Code whole numbers of either sign, int64 (rows, columns), below 2**49, about zero.

    How many bits a number has is modelled as in `code_columns`, the bits are sent as they are.

    Raises
    ------
    PayloadError
        When decoding meets a longer number.
    """
    folded = None if table is None else np.where(table < 0, -2 * table - 1, 2 * table)
    # frexp is exact below 2**53
    lengths = None if folded is None else np.frexp(folded.astype(np.float64))[1].astype(np.int64)
    lengths = code_columns(coder, _LENGTH_BITS, rows, columns, lengths)
    if lengths.max(initial=0) > _LONGEST:
        raise PayloadError(f"whole number of {lengths.max()} bits; at most {_LONGEST}")
    below = np.maximum(lengths - 1, 0)
    low = code_raw(coder, below.ravel(), None if folded is None else folded.ravel())
    highest = np.where(lengths > 0, np.int64(1) << below, 0)
    unfolded = low.reshape(lengths.shape) | highest
    return np.where(unfolded % 2 == 1, -((unfolded + 1) >> 1), unfolded >> 1)


class _ColumnCounts:
    """How often each node of the bit tree was passed, and left by a one, in each column."""

    def __init__(self, columns: int, width: int) -> None:
        self.columns, self.width = columns, width
        self._total = np.zeros((columns, 1 << width))
        self._ones = np.zeros((columns, 1 << width))
        self._shared_total = np.full(1 << width, 2.0)
        self._shared_ones = np.full(1 << width, 1.0)

    def p_one(self, columns: Ints, nodes: Ints) -> NDArray[np.float64]:
        shared = self._shared_ones[nodes] / self._shared_total[nodes]
        p_one: NDArray[np.float64] = (self._ones[columns, nodes] + _SHARED_WEIGHT * shared) / (
            self._total[columns, nodes] + _SHARED_WEIGHT
        )
        return p_one

    def update(self, symbols: Ints) -> None:
        shape = self._total.shape
        base = np.arange(self.columns) * shape[1]
        for plane in range(self.width - 1, -1, -1):
            prefix = symbols >> plane
            cells = (base + (prefix >> 1) + (1 << (self.width - 1 - plane))).ravel()
            bit = (prefix & 1).ravel()
            total = np.bincount(cells, minlength=self._total.size).reshape(shape)
            ones = np.bincount(cells, weights=bit, minlength=self._total.size).reshape(shape)
            self._total += total
            self._ones += ones
            self._shared_total += total.sum(axis=0)
            self._shared_ones += ones.sum(axis=0)


def _code_rows(
    coder: BitCoder, counts: _ColumnCounts, rows: int, raw: int, part: Ints | None
) -> Ints:
    columns = np.tile(np.arange(counts.columns), rows)
    symbols = np.ones(rows * counts.columns, np.int64)  # leading one = node of the tree
    flat = None if part is None else part.ravel()
    for plane in range(counts.width - 1, -1, -1):
        bits: Bits | None = None
        if flat is not None:
            bits = ((flat >> (raw + plane)) & 1).astype(np.int32)
        coded = coder.code(counts.p_one(columns, symbols), bits)
        symbols = (symbols << 1) | coded
    symbols -= 1 << counts.width
    if raw:
        low = code_raw(coder, np.full(len(symbols), raw), flat)
        symbols = (symbols << raw) | low
    return symbols.reshape(rows, counts.columns)
