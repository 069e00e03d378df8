"""`range_coder`, compiled: the same bytes, bit by bit instead of array by array.

Needs Numba (extra ``fast``). `Coder` is either direction, with the methods of
`codec.coding.range_coder.BitCoder`; the functions are for kernels that code many bits at a time.
Each mirrors one of `codec.coding.range_coder`, which says what it does and why; here, too, one
description serves both directions. The arithmetic is that of ``constriction``: 64 bits of state,
words of 32, probabilities in multiples of 2**-24.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from codec.coding import range_coder
from codec.coding.kernel_cache import kept_by_content
from codec.coding.range_coder import AdaptiveBits, Bits, Floats, Ints
from codec.errors import PayloadError

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(kernel: Function) -> Function:
    """Compile a kernel when it is first called, and keep it on disk.

    It runs without the interpreter's lock: other threads go on meanwhile.
    """
    with kept_by_content():
        return cast(Function, njit(cache=True, nogil=True)(kernel))


_LOWER, _RANGE, _POINT, _POSITION, ERROR, _NEEDED = range(6)
_INVALID, _EARLY, _ESCAPE = 1, 2, 3  # errors
_WORD, _PRECISION = np.uint64(32), np.uint64(24)
_ONE, _FULL, _HALF = np.uint64(1), np.uint64(1 << 24), np.uint64(1 << 23)
_LEAST_RANGE, _LOW = np.uint64(1 << 32), np.uint64((1 << 32) - 1)
_FREE = float((1 << 24) - 2)
_LEAST_P = range_coder.LEAST_P
_SMALLEST_CHUNK = range_coder.SMALLEST_CHUNK
_ESCAPE_BITS = range_coder.ESCAPE_BITS
_TINY = 2.0**-900  # of a product of probabilities, each at least 2**-24
_MOST_BITS_OF_DECISION = 24


class Kernel(NamedTuple):
    """What kernels know of a coder.

    Attributes
    ----------
    state : uint64 (6,)
        Not zero at `ERROR` after one.
    left : float64 (1,)
        Bits of information that may still come.
    words : uint32 (N,)
    encoding : bool
    """

    state: NDArray[np.uint64]
    left: Floats
    words: NDArray[np.uint32]
    encoding: bool


class Coder:
    """Either direction of the range coder.

    Parameters
    ----------
    data : bytes, optional
        What an encoder finished; None encodes.
    """

    def __init__(self, data: bytes | None = None) -> None:
        self.encoding = data is None
        self._size = 0 if data is None else len(data)
        self._state = np.zeros(6, np.uint64)
        self._state[_RANGE] = np.iinfo(np.uint64).max
        left = 8 * self._size * range_coder.TOLERANCE + range_coder.SLACK_BITS
        self._left = np.array([left])
        if data is None:
            self._words = np.empty(64, np.uint32)
        else:
            padded = data + bytes(-len(data) % 4)
            self._words = np.frombuffer(padded, ">u4").astype(np.uint32)
            for _ in range(2):
                _read(self._state, self._words)

    def kernel(self, decisions: int) -> Kernel:
        """Return what kernels take, with room to encode so many decisions."""
        if self.encoding:
            needed = int(self._state[_POSITION]) + decisions * _MOST_BITS_OF_DECISION // 32 + 4
            if needed > len(self._words):
                words = np.empty(max(needed, 2 * len(self._words)), np.uint32)
                written = int(self._state[_POSITION])
                words[:written] = self._words[:written]
                self._words = words
        return Kernel(self._state, self._left, self._words, self.encoding)

    def check(self) -> None:
        """Raise `PayloadError` if a kernel met what no encoder writes."""
        error = int(self._state[ERROR])
        if error == _ESCAPE:
            raise PayloadError(range_coder.LONG_ESCAPE)
        if error == _EARLY:
            raise PayloadError(f"entropy-coded section of {self._size} bytes ends early")
        if error == _INVALID:
            raise PayloadError(
                "entropy-coded section does not decode: no number of this interval comes of an "
                "encoder"
            )

    def code(self, p_one: Floats, bits: Bits | None = None) -> Bits:
        """Code one bit for each probability of a one, float64 (N,); return the bits (N,)."""
        coded = np.zeros(len(p_one), np.int32) if bits is None else bits
        _code_all(self.kernel(len(p_one)), p_one, coded)
        self.check()
        return coded

    def code_even(self, count: int, bits: Bits | None = None) -> Bits:
        """Code bits (count,) that are as likely ones as zeros."""
        coded = np.zeros(count, np.int32) if bits is None else bits
        code_even(self.kernel(count), coded, count)
        self.check()
        return coded

    def finish(self) -> bytes:
        """Return the stream, without zeros at its end that the decoder puts back."""
        kernel = self.kernel(2 * 32)
        count = _seal(kernel.state, kernel.words)
        return range_coder.trimmed(kernel.words[:count], int(kernel.state[_NEEDED]))


@jit
def _read(state: Any, words: Any) -> None:
    position = state[_POSITION]
    word = np.uint64(words[position]) if position < len(words) else np.uint64(0)
    state[_POINT] = (state[_POINT] << _WORD) | word
    state[_POSITION] = position + _ONE


@jit
def _carry(state: Any, words: Any) -> None:
    """Add one to the words that were written."""
    at = np.int64(state[_POSITION]) - 1
    while at >= 0:
        words[at] += np.uint32(1)
        if words[at] != 0:
            return
        at -= 1


@jit
def _write(state: Any, words: Any, word: Any) -> None:
    words[np.int64(state[_POSITION])] = np.uint32(word)
    state[_POSITION] += _ONE


@jit
def _words_needed(state: Any) -> Any:
    """Return how many words the stream would have if it were finished now."""
    if state[_RANGE] == ~np.uint64(0):
        return state[_POSITION]
    point = (state[_LOWER] + _LOW) >> _WORD
    upper = (state[_LOWER] + state[_RANGE]) >> _WORD
    return state[_POSITION] + (np.uint64(2) if upper == point else _ONE)


@jit
def _seal(state: Any, words: Any) -> int:
    needed = _words_needed(state)
    if needed > state[_POSITION]:
        point = state[_LOWER] + _LOW
        if point < state[_LOWER]:
            _carry(state, words)
        _write(state, words, point >> _WORD)
        if needed > state[_POSITION]:
            _write(state, words, np.uint64(0))
    return int(state[_POSITION])


@jit
def _code(coder: Kernel, zeros: Any, bit: Any) -> Any:
    """Code a bit, of which a zero has the probability `zeros` / 2**24."""
    state, words, encoding = coder.state, coder.words, coder.encoding
    scale = state[_RANGE] >> _PRECISION
    below = scale * zeros
    if not encoding:
        offset = state[_POINT] - state[_LOWER]
        if offset >= scale << _PRECISION:
            state[ERROR] = np.uint64(_INVALID)
        bit = np.int32(1 if offset >= below else 0)
    if bit:
        lower = state[_LOWER] + below
        if encoding and lower < state[_LOWER]:
            _carry(state, words)
        state[_LOWER] = lower
        state[_RANGE] = scale * (_FULL - zeros)
    else:
        state[_RANGE] = below
    if state[_RANGE] < _LEAST_RANGE:
        if encoding:
            _write(state, words, state[_LOWER] >> _WORD)
        else:
            _read(state, words)
        state[_LOWER] <<= _WORD
        state[_RANGE] <<= _WORD
    return bit


@jit
def _zeros(p_one: Any) -> Any:
    """Return the probability of a zero in 1 / 2**24, as ``constriction`` rounds it."""
    p_zero = 1.0 - p_one
    return np.uint64(p_zero * (_FREE / (p_zero + p_one))) + _ONE


@jit
def _probability(p_one: Any, bit: Any) -> Any:
    return max(p_one if bit else 1.0 - p_one, _LEAST_P)


@jit
def _code_all(coder: Kernel, p_one: Any, bits: Any) -> None:
    """Code bits (N,) in place, each with its probability of a one."""
    state, left, encoding = coder.state, coder.left, coder.encoding
    product, before = 1.0, left[0]
    for i in range(len(p_one)):
        bits[i] = _code(coder, _zeros(p_one[i]), bits[i])
        if not encoding:
            product *= _probability(p_one[i], bits[i])
            if product < _TINY:
                left[0] += math.log2(product)
                product = 1.0
    left[0] += math.log2(product)
    if not encoding and left[0] < 0 and not state[ERROR]:
        used = 0.0
        for i in range(len(p_one)):
            if bits[i] and used > before:
                state[ERROR] = np.uint64(_EARLY)
            used -= math.log2(_probability(p_one[i], bits[i]))


@jit
def code_even(coder: Kernel, bits: Any, count: int) -> None:
    """Code bits (>= count,) that are as likely ones as zeros, in place."""
    state, left, encoding = coder.state, coder.left, coder.encoding
    if not count:
        return
    left[0] -= count
    if not encoding and left[0] < 0:
        state[ERROR] = np.uint64(_EARLY)
        return
    for i in range(count):
        bits[i] = _code(coder, _HALF, bits[i])
    if encoding:
        state[_NEEDED] = _words_needed(state)


class Tables(NamedTuple):
    """Several `AdaptiveBits` of equally many contexts, for kernels.

    Attributes
    ----------
    ones, total : float64 (tables, contexts)
    seen : int64 (tables,)
    """

    ones: Floats
    total: Floats
    seen: Ints

    @classmethod
    def of(cls, *tables: AdaptiveBits) -> "Tables":
        """Return copies of tables of equally many contexts."""
        ones, total = zip(*((table.ones, table.total) for table in tables), strict=True)
        seen = np.array([table.seen for table in tables])
        return cls(np.stack(ones), np.stack(total), seen)

    def copy(self) -> "Tables":
        """Return tables that learn by themselves."""
        return Tables(self.ones.copy(), self.total.copy(), self.seen.copy())


@jit
def forget(tables: Tables, strength: float) -> None:
    """Let what was seen weigh no more than `strength` bits in each context of all tables."""
    ones, total, seen = tables.ones, tables.total, tables.seen
    for k in range(len(seen)):
        if seen[k]:
            for c in range(ones.shape[1]):
                kept = min(1.0, strength / total[k, c])
                ones[k, c] *= kept
                total[k, c] *= kept
            seen[k] = 0


@jit
def code_adaptive(
    coder: Kernel, tables: Tables, k: int, contexts: Any, rows: Any, bits: Any
) -> None:
    """Code bits (N,) in place, the i-th by table k in context ``contexts[rows[i]]``."""
    ones, total, seen = tables.ones, tables.total, tables.seen
    count = len(bits)
    several = ones.shape[1]
    counts, p_one = np.zeros((2, several), np.int64), np.empty(count)
    start = 0
    while start < count and not coder.state[ERROR]:
        stop = min(count, start + max(_SMALLEST_CHUNK, seen[k] // 4))
        for i in range(start, stop):
            c = contexts[rows[i]]
            p_one[i] = ones[k, c] / total[k, c]
        _code_all(coder, p_one[start:stop], bits[start:stop])
        counts[:] = 0
        for i in range(start, stop):
            c = contexts[rows[i]]
            counts[0, c] += 1
            counts[1, c] += bits[i]
        for c in range(several):
            if counts[0, c]:
                total[k, c] += counts[0, c]
                ones[k, c] += counts[1, c]
        seen[k] += stop - start
        start = stop


@jit
def code_unary(coder: Kernel, tables: Tables, contexts: Any, values: Any) -> None:
    """Code integers (N,) >= 0 in place; those that are decoded must be zero before."""
    encoding, runs = coder.encoding, len(tables.seen)
    reached = len(values)
    rows, bits = np.arange(reached), np.zeros(reached, np.int32)
    for k in range(runs):
        if not reached or coder.state[ERROR]:
            return
        if encoding:
            for i in range(reached):
                bits[i] = values[rows[i]] > k
        code_adaptive(coder, tables, k, contexts, rows, bits[:reached])
        beyond = 0
        for i in range(reached):
            if bits[i]:
                rows[beyond] = rows[i]
                beyond += 1
                if not encoding:
                    values[rows[i]] += 1
        reached = beyond
    if reached and not coder.state[ERROR]:
        _code_escapes(coder, rows[:reached], values, runs)


@jit
def _code_escapes(coder: Kernel, rows: Any, values: Any, least: int) -> None:
    """Code ``values[rows] - least`` by the Elias-gamma code of one more."""
    state, encoding, count = coder.state, coder.encoding, len(rows)
    numbers = np.zeros(count, np.int64)
    if encoding:
        for i in range(count):
            numbers[i] = values[rows[i]] - least + 1
    width = np.zeros(count, np.int64)
    active, bits = np.arange(count), np.zeros(count, np.int32)
    while count:
        for i in range(count):
            at = active[i]
            bits[i] = (numbers[at] >> (width[at] + 1)) > 0
        code_even(coder, bits, count)
        if state[ERROR]:
            return
        more = 0
        for i in range(count):
            if bits[i]:
                at = active[i]
                active[more] = at
                more += 1
                width[at] += 1
                if width[at] >= _ESCAPE_BITS:
                    state[ERROR] = np.uint64(_ESCAPE)
        count = more
        if state[ERROR]:
            return
    code_raw(coder, width, numbers)
    if not encoding:
        for i in range(len(rows)):
            values[rows[i]] += numbers[i] + (np.int64(1) << width[i]) - 1


@jit
def code_raw(coder: Kernel, width: Any, values: Any) -> None:
    """Code the ``width[i]`` low bits of ``values[i]``; what is decoded is or-ed to the values."""
    widest = 0
    for i in range(len(width)):
        widest = max(widest, width[i])
    rows, bits = np.empty(len(width), np.int64), np.zeros(len(width), np.int32)
    for plane in range(widest - 1, -1, -1):
        count = 0
        for i in range(len(width)):
            if width[i] > plane:
                rows[count] = i
                bits[count] = (values[i] >> plane) & 1
                count += 1
        code_even(coder, bits, count)
        if coder.state[ERROR]:
            return
        if not coder.encoding:
            for i in range(count):
                values[rows[i]] |= np.int64(bits[i]) << plane
