"""Adaptive coding of whole arrays of small symbols, by the range coder of ``constriction``.

No table travels: the counts behind the probabilities follow what was coded so far, chunk by
chunk, in the same way at both ends. They are integers below 2**24, so that their sums are exact
in the library's arithmetic and both ends agree bit for bit on every platform. Old counts fade,
hence the tables follow a gradient from layer to layer.

The zeros at the end of a stream do not travel. Past its end the decoder reads symbols zero, which
stand for the lowest intervals, and refuses all others.

In a large array neighbours are coded together, as many as make an alphabet of at most 256: fewer
steps of the coder for as many bytes.
"""

from collections.abc import Iterator

import constriction
import numpy as np
from numpy.typing import NDArray

from codec.errors import PayloadError

Symbols = NDArray[np.int32]

_UNIFORM = constriction.stream.model.Uniform()
_OWN = 16  # integers below are symbols of their own
_INCREMENT = 16  # counts added per symbol seen; one count stands for "never seen"
_FADE_ABOVE = 1 << 21  # counts are then halved
_SMALLEST_CHUNK, _LARGEST_CHUNK = 4, 8192
LARGE = 1 << 20  # arrays of so many symbols are coded for speed
_GROUPS = 256  # largest alphabet of symbols coded together
# Bits of information that a stream may lack, and what rounded probabilities add; as in
# `codec.coding.range_coder`.
_SLACK_BITS, _TOLERANCE = 128, 1 + 1 / 16


class SymbolEncoder:
    """Writes arrays of symbols into one stream."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def symbols(self, symbols: NDArray[np.integer], alphabet: int) -> None:
        """Append `symbols` (N,), each in [0, alphabet), with adaptive probabilities."""
        if alphabet == 1:
            return
        group = _group(len(symbols), alphabet)
        counts = _Counts(alphabet**group)
        narrow = _together(symbols, alphabet, group)
        for chunk in _chunks(len(narrow)):
            self._coder.encode(narrow[chunk], counts.model())
            counts.update(narrow[chunk])

    def integers(self, values: NDArray[np.integer], largest: int) -> None:
        """Append `values` (N,), each in [0, largest], largest < MAX_COORDINATES.

        Values below 16 are symbols of their own; each octave above has eight symbols, and the
        place within one of them is sent as it is.
        """
        if largest < _OWN:
            self.symbols(values, largest + 1)
            return
        label, width = _label(values)
        self.symbols(label, _labels(largest))
        inside = width > 0
        width = width[inside]
        offset = values[inside] & ((1 << width) - 1)
        if len(offset):
            self._coder.encode(offset.astype(np.int32), _UNIFORM, (1 << width).astype(np.int32))

    def to_bytes(self) -> bytes:
        """Return the stream; the decoder puts back the zeros that are cut at its end."""
        words: NDArray[np.uint32] = self._coder.get_compressed()
        return words.astype(">u4").tobytes().rstrip(b"\0")


class SymbolDecoder:
    """Reads what `SymbolEncoder` wrote, by the same calls.

    Every method raises `PayloadError` if the bytes cannot come from such an encoder.
    """

    def __init__(self, data: bytes) -> None:
        words = np.frombuffer(data + bytes(-len(data) % 4), ">u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)
        self._left = 8 * len(data) * _TOLERANCE + _SLACK_BITS  # of information

    def symbols(self, count: int, alphabet: int) -> Symbols:
        """Return the next `count` symbols, int32 (count,)."""
        if alphabet == 1:
            return np.zeros(count, np.int32)
        group = _group(count, alphabet)
        symbols = np.empty(-(-count // group), np.int32)
        counts = _Counts(alphabet**group)
        for chunk in _chunks(len(symbols)):
            symbols[chunk] = self._decode(counts.model(), chunk.stop - chunk.start)
            self._spend(counts.bits().take(symbols[chunk]), symbols[chunk])
            counts.update(symbols[chunk])
        return _apart(symbols, alphabet, group)[:count]

    def integers(self, count: int, largest: int) -> Symbols:
        """Return the next `count` integers, int32 (count,), each in [0, largest]."""
        label = self.symbols(count, _labels(largest))
        if largest < _OWN:
            return label
        width = np.maximum((label >> 3) - 1, 0)
        values: Symbols = (label - (width << 3)) << width
        inside = width > 0
        if inside.any():
            span = np.left_shift(1, width[inside], dtype=np.int32)
            offset = self._decode(_UNIFORM, span)
            self._spend(width[inside].astype(np.float64), offset)
            values[inside] += offset
        if count and values.max() > largest:
            raise PayloadError(f"coded integer {values.max()}, at most {largest}")
        return values

    def finish(self) -> None:
        """Check that nothing is left to read."""
        if not self._coder.maybe_exhausted():
            raise PayloadError("coded section is longer than its content")

    def _spend(self, used: NDArray[np.float64], symbols: Symbols) -> None:
        """Count the bits that symbols stand for; past the end there are none but zeros."""
        left, self._left = self._left, self._left - float(used.sum())
        if self._left < 0 and symbols[np.cumsum(used) - used > left].any():
            raise PayloadError("coded section ends early")

    def _decode(self, model: object, argument: int | Symbols) -> Symbols:
        try:
            symbols: Symbols = self._coder.decode(model, argument)
        except AssertionError as error:  # how constriction reports impossible bytes
            raise PayloadError(f"coded section does not decode: {error}") from error
        return symbols


def encode_symbols(symbols: NDArray[np.integer], alphabet: int) -> bytes:
    """Code `symbols` (N,), each in [0, alphabet), into bytes of their own."""
    encoder = SymbolEncoder()
    encoder.symbols(symbols, alphabet)
    return encoder.to_bytes()


def decode_symbols(data: bytes, count: int, alphabet: int) -> Symbols:
    """Return the symbols (count,) of `encode_symbols`; `PayloadError` if malformed."""
    decoder = SymbolDecoder(data)
    symbols = decoder.symbols(count, alphabet)
    decoder.finish()
    return symbols


def encode_integers(values: NDArray[np.integer], largest: int) -> bytes:
    """Code `values` (N,), each in [0, largest], into bytes of their own."""
    encoder = SymbolEncoder()
    encoder.integers(values, largest)
    return encoder.to_bytes()


def decode_integers(data: bytes, count: int, largest: int) -> Symbols:
    """Return the integers (count,) of `encode_integers`; `PayloadError` if malformed."""
    decoder = SymbolDecoder(data)
    values = decoder.integers(count, largest)
    decoder.finish()
    return values


class _Counts:
    def __init__(self, alphabet: int) -> None:
        self._counts = np.ones(alphabet, np.int64)

    def model(self) -> object:
        table = self._counts.astype(np.float64)
        return constriction.stream.model.Categorical(table, perfect=False)

    def bits(self) -> NDArray[np.float64]:
        """Return the information in each symbol."""
        table: NDArray[np.float64] = np.log2(self._counts.sum() / self._counts)
        return table

    def update(self, symbols: Symbols) -> None:
        self._counts += _INCREMENT * np.bincount(symbols, minlength=len(self._counts))
        if self._counts.sum() > _FADE_ABOVE:
            self._counts -= self._counts // 2  # never below one


def _group(count: int, alphabet: int) -> int:
    """Return how many of `count` symbols are coded together."""
    group = 1
    while count >= LARGE and alphabet ** (group + 1) <= _GROUPS:
        group += 1
    return group


def _together(symbols: NDArray[np.integer], alphabet: int, group: int) -> Symbols:
    """Return the symbols, `group` at a time as digits of one number, the first the lowest."""
    if group == 1:
        return symbols.astype(np.int32)
    digits = np.zeros((-(-len(symbols) // group), group), np.uint8)
    digits.reshape(-1)[: len(symbols)] = symbols
    numbers = np.zeros(len(digits), np.int32)
    for digit in digits.T[::-1]:
        numbers *= alphabet
        numbers += digit
    return numbers


def _apart(numbers: Symbols, alphabet: int, group: int) -> Symbols:
    """Undo `_together`, up to what fills the last group."""
    if group == 1:
        return numbers
    places = alphabet ** np.arange(group)
    digits = np.arange(alphabet**group)[:, np.newaxis] // places % alphabet
    symbols: Symbols = digits.astype(np.int32).take(numbers, axis=0).ravel()
    return symbols


def _chunks(count: int) -> Iterator[slice]:
    """Cut `count` symbols into chunks that grow with what was seen."""
    start = 0
    while start < count:
        stop = min(count, start + min(max(start // 4, _SMALLEST_CHUNK), _LARGEST_CHUNK))
        yield slice(start, stop)
        start = stop


def _label(values: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the symbol of each integer, and how many low bits the symbol leaves open."""
    values = values.astype(np.int64)
    octave = np.frexp(values.astype(np.float64))[1] - 1  # floor(log2), exact
    width = np.maximum(octave - 3, 0).astype(np.int64)
    return (width << 3) + (values >> width), width


def _labels(largest: int) -> int:
    """Return how many symbols the integers [0, largest] need."""
    width = max(largest.bit_length() - 4, 0)
    return (width << 3) + (largest >> width) + 1
