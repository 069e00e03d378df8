"""Adaptive binary entropy coding: one description of a model serves both directions.

`BitEncoder` and `BitDecoder` share the method ``code``: the encoder is given the bits and
returns them, the decoder is given ``None`` and returns what it read. A model written against
``code`` is therefore its own mirror. Probabilities come from integer counts by one IEEE
division, so both ends agree bit for bit on any platform. The coder itself is the range coder
of the ``constriction`` library (Bamler, 2022).

The zeros at the end of a stream do not travel. A decoder that has used up its bytes therefore reads
zeros, and nothing else: a one there comes of no encoder. Bits sent as they are, of probability 1/2,
always travel; so what they cost a decoder is paid for in bytes.
"""

from typing import NoReturn, Protocol

import constriction
import numpy as np
from numpy.typing import NDArray

from codec.errors import PayloadError

Bits = NDArray[np.int32]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BERNOULLI = constriction.stream.model.Bernoulli(perfect=False)
SMALLEST_CHUNK = 64
ESCAPE_BITS = 24
LEAST_P = 2.0**-24  # the library's probabilities are multiples of it
# Bits that a stream may be short of what was coded in it: the last words say where in an interval
# the number lies, and that takes up to 64 bits less than the interval does, by luck a few more.
SLACK_BITS = 128
TOLERANCE = 1 + 1 / 16  # what the library's rounding of small probabilities makes cheaper
_WORD_BYTES = 4
LONG_ESCAPE = f"escape code longer than {ESCAPE_BITS} bits"


class BitCoder(Protocol):
    """Either direction of the range coder."""

    def code(self, p_one: Floats, bits: Bits | None) -> Bits:
        """Code one bit for each probability of a one, float64 (N,); return the bits (N,)."""

    def code_even(self, count: int, bits: Bits | None) -> Bits:
        """Code bits (count,) that are as likely ones as zeros."""


class BitEncoder:
    """Range encoder; `finish` returns the bytes."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()
        self._needed = 0  # words up to the last bit that was sent as it is

    def code(self, p_one: Floats, bits: Bits | None) -> Bits:
        """Append `bits` (N,), each 0 or 1, under ``P(1) = p_one``."""
        assert bits is not None
        self._coder.encode(bits, _BERNOULLI, p_one)
        return bits

    def code_even(self, count: int, bits: Bits | None) -> Bits:
        """Append `bits` (count,) as they are."""
        coded = self.code(np.full(count, 0.5), bits)
        if count:
            self._needed = self._coder.num_words()
        return coded

    def finish(self) -> bytes:
        """Return the stream, without zeros at its end that the decoder puts back."""
        return trimmed(self._coder.get_compressed(), self._needed)


class BitDecoder:
    """Range decoder over the bytes that `BitEncoder.finish` returned."""

    def __init__(self, data: bytes) -> None:
        words = np.frombuffer(data + bytes(-len(data) % 4), dtype=">u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)
        self._size = len(data)
        self._left = 8 * len(data) * TOLERANCE + SLACK_BITS  # of information

    def code(self, p_one: Floats, bits: Bits | None = None) -> Bits:
        """Read one bit for each probability.

        Raises
        ------
        PayloadError
            If the bytes cannot have come from an encoder with this model.
        """
        decoded = self._decode(p_one)
        used = -np.log2(np.maximum(np.where(decoded, p_one, 1 - p_one), LEAST_P))
        left, self._left = self._left, self._left - float(used.sum())
        if self._left < 0 and decoded[np.cumsum(used) - used > left].any():
            self._refuse()
        return decoded

    def code_even(self, count: int, bits: Bits | None = None) -> Bits:
        """Read bits (count,) that were sent as they are; see `code`."""
        self._left -= count
        if count and self._left < 0:
            self._refuse()
        return self._decode(np.full(count, 0.5))

    def _decode(self, p_one: Floats) -> Bits:
        try:
            decoded: Bits = self._coder.decode(_BERNOULLI, p_one)
        except AssertionError as error:
            raise PayloadError(f"entropy-coded section does not decode: {error}") from error
        return decoded

    def _refuse(self) -> NoReturn:
        raise PayloadError(f"entropy-coded section of {self._size} bytes ends early")


def trimmed(words: NDArray[np.uint32], needed: int) -> bytes:
    """Return the bytes of words, without zeros at their end that no bit is sent as it is in.

    Parameters
    ----------
    words : uint32 (N,)
        A finished stream.
    needed : int
        Words that it had when the last bit had been sent as it is.
    """
    stream: bytes = words.astype(">u4").tobytes()
    least = max(0, _WORD_BYTES * needed - SLACK_BITS // 8)
    return stream[:least] + stream[least:].rstrip(b"\0")


class AdaptiveBits:
    """Counts of zeros and ones by context; the probability follows what was coded so far.

    Parameters
    ----------
    p_one : float64 (contexts,)
        Probability of a one before anything was seen.
    strength : float
        Weight of that prior, in observed bits.

    Attributes
    ----------
    ones, total : float64 (contexts,)
        Bits that count as seen, the prior's included.
    seen : int
        Bits that were coded since the last `forget`.
    """

    def __init__(self, p_one: Floats, strength: float = 2.0) -> None:
        self.ones = p_one * strength
        self.total = np.full(len(p_one), strength)
        self.seen = 0

    def code(self, coder: BitCoder, contexts: Ints, bits: Bits | None = None) -> Bits:
        """Code one bit (N,) for each context index (N,).

        Counts are brought up to date between chunks, whose size grows with what was seen:
        the cost of learning stays that of a symbol-by-symbol coder, the speed that of arrays.
        """
        coded = np.empty(len(contexts), np.int32)
        start = 0
        while start < len(contexts):
            stop = start + max(SMALLEST_CHUNK, self.seen // 4)
            chunk = contexts[start:stop]
            p_one = self.ones[chunk] / self.total[chunk]
            coded[start:stop] = coder.code(p_one, None if bits is None else bits[start:stop])
            self._update(chunk, coded[start:stop])
            start = stop
        return coded

    def forget(self, strength: float) -> None:
        """Let what was seen weigh no more than `strength` bits in each context."""
        if not self.seen:
            return
        kept = np.minimum(1.0, strength / self.total)
        self.ones *= kept
        self.total *= kept
        self.seen = 0

    def _update(self, contexts: Ints, bits: Bits) -> None:
        size = len(self.total)
        self.total += np.bincount(contexts, minlength=size)
        self.ones += np.bincount(contexts, weights=bits, minlength=size)
        self.seen += len(contexts)


def code_raw(coder: BitCoder, width: Ints, values: Ints | None) -> Ints:
    """Code the `width[i]` low bits of `values[i]`, most significant first, at one bit each."""
    decoded = np.zeros(len(width), np.int64)
    for plane in range(int(width.max(initial=0)) - 1, -1, -1):
        rows = np.flatnonzero(width > plane)
        bits = None if values is None else ((values[rows] >> plane) & 1).astype(np.int32)
        decoded[rows] |= coder.code_even(len(rows), bits).astype(np.int64) << plane
    return decoded


def code_unary(
    coder: BitCoder, tables: list[AdaptiveBits], contexts: Ints, values: Ints | None
) -> Ints:
    """Code integers >= 0 as runs of ones, table by table; what passes the last one escapes.

    Parameters
    ----------
    coder : BitCoder
        Encoder or decoder.
    tables : list of AdaptiveBits
        The k-th says whether a value that reached k goes beyond it.
    contexts, values : int64 (N,)
        `values` is None when decoding.

    Returns
    -------
    int64 (N,)
        The values.
    """
    decoded = np.zeros(len(contexts), np.int64)
    rows = np.arange(len(contexts))
    for reached, table in enumerate(tables):
        if not len(rows):
            return decoded
        bits = None if values is None else (values[rows] > reached).astype(np.int32)
        rows = rows[table.code(coder, contexts[rows], bits) == 1]
        decoded[rows] += 1
    rest = None if values is None else values[rows] - len(tables)
    decoded[rows] += code_exp_golomb(coder, rest, len(rows))
    return decoded


def code_exp_golomb(coder: BitCoder, values: Ints | None, count: int) -> Ints:
    """Code `count` integers in [0, 2**24 - 2] by the Elias-gamma code of ``value + 1``.

    Raises
    ------
    PayloadError
        When decoding meets a longer code than the encoder may write.
    """
    width = np.zeros(count, np.int64)  # bits after the leading one
    rows = np.arange(count)
    while len(rows):
        bits = None if values is None else ((values[rows] + 1) >> (width[rows] + 1) > 0)
        more = coder.code_even(len(rows), None if bits is None else bits.astype(np.int32))
        rows = rows[more == 1]
        width[rows] += 1
        if width.max(initial=0) >= ESCAPE_BITS:
            raise PayloadError(LONG_ESCAPE)
    low = None if values is None else values + 1
    return (code_raw(coder, width, low) | (np.int64(1) << width)) - 1
