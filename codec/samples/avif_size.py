"""The size of the frame in an AVIF file, which its container may belie.

A container says how large a picture is; decoders make the frame that the AV1 stream within holds,
up to 2**28 pixels, and scale it: 800 bytes would take 800 MB. So the stream's own header is read
first. What a container may hold is far more than a single picture; here it holds one.

ISO/IEC 14496-12 (boxes) and 23008-12 (items); AV1 Bitstream & Decoding Process Specification,
sections 5.3 (open bitstream units) and 5.5 (sequence header).
"""

from collections.abc import Iterator

from codec.coding.cursor import Reader
from codec.errors import PayloadError

_FILE_BOXES = {b"ftyp", b"meta", b"mdat", b"free"}
_META_BOXES = {b"hdlr", b"pitm", b"iloc", b"iinf", b"iprp"}
_SEQUENCE_HEADER = 1
_TIERED_LEVEL = 7  # levels above have one bit more


def frame_sizes(file: bytes) -> list[tuple[int, int]]:
    """Return width and height of each frame size that the stream of an AVIF file declares.

    Raises
    ------
    PayloadError
        If the file is not one picture in one AV1 stream.
    """
    meta = [body for kind, body in _boxes(file, _FILE_BOXES) if kind == b"meta"]
    if len(meta) != 1:
        raise PayloadError(f"AVIF file of {len(meta)} pictures, not 1")
    places = [body for kind, body in _boxes(meta[0][4:], _META_BOXES) if kind == b"iloc"]
    if len(places) != 1:
        raise PayloadError("AVIF file that does not say where its picture is")
    start, length = _place(Reader(places[0]))
    if start + length > len(file):
        raise PayloadError("AVIF file that is truncated")
    return [
        _size(_Bits(unit))
        for kind, unit in _units(Reader(file[start : start + length]))
        if kind == _SEQUENCE_HEADER
    ]


def _boxes(data: bytes, known: set[bytes]) -> Iterator[tuple[bytes, bytes]]:
    reader = Reader(data)
    while reader.left:
        size = int.from_bytes(reader.take(4, "box"), "big")
        kind = reader.take(4, "box")
        if kind not in known or size < 8:
            raise PayloadError(f"AVIF file with a box {kind!r} of {size} bytes")
        yield kind, reader.take(size - 8, "box")


def _place(reader: Reader) -> tuple[int, int]:
    """Return where the one item of an ``iloc`` box begins, and its length."""
    version = reader.take(4, "version")[0]
    sizes = int.from_bytes(reader.take(2, "sizes"), "big")
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    if version > 1 or int.from_bytes(reader.take(2, "items"), "big") != 1:
        raise PayloadError("AVIF file of several items")
    reader.take(2, "item")
    method = int.from_bytes(reader.take(2, "method"), "big") if version else 0
    source = int.from_bytes(reader.take(2, "source"), "big")
    first = int.from_bytes(reader.take(base, "offset"), "big")
    extents = int.from_bytes(reader.take(2, "extents"), "big")
    if method or source or index or extents != 1:
        raise PayloadError("AVIF file whose picture is in several places, or in another file")
    first += int.from_bytes(reader.take(offset, "offset"), "big")
    found = int.from_bytes(reader.take(length, "length"), "big")
    reader.finish()
    return first, found


def _units(reader: Reader) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of the open bitstream units of a stream."""
    while reader.left:
        head = reader.byte("unit")
        if head & 4:
            reader.byte("extension")
        size = reader.varint("unit size") if head & 2 else reader.left
        yield head >> 3 & 15, reader.take(size, "unit")


class _Bits:
    """Reads numbers of so many bits, the most significant first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, bits: int) -> int:
        if bits > self._left:
            raise PayloadError("truncated sequence header")
        self._left -= bits
        return self._value >> self._left & ((1 << bits) - 1)


def _size(bits: _Bits) -> tuple[int, int]:
    """Return the largest frame of a sequence header."""
    bits.take(4)  # profile, still picture
    if bits.take(1):  # reduced header
        bits.take(5)
    else:
        if bits.take(2) or bits.take(5):
            raise PayloadError("AVIF file of a sequence, not a picture")
        bits.take(12)
        bits.take(bits.take(5) > _TIERED_LEVEL)
    wide, high = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(wide) + 1, bits.take(high) + 1
