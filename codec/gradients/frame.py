"""Container of a compressed gradient: what it is, its shapes, its sections, a checksum.

Layout: magic, version (1 byte), compressor (1 byte), tensors, parameters and section lengths
as LEB128 integers, the sections, and the CRC-32 (little-endian) of everything before it. A
changed byte layout is a new version.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from codec.coding import cursor
from codec.errors import PayloadError
from codec.gradients.tensors import MAX_COORDINATES, Shapes, sizes

MAGIC = b"QDGC"
VERSION = 3

_CHECKSUM_BYTES = 4
_MAX_DIMENSIONS = 32


@dataclass(frozen=True)
class Frame:
    """Content of one compressed gradient.

    Attributes
    ----------
    identifier : int
        Compressor that wrote it, in [0, 255].
    shapes : tuple of tuple of int
        Shape of each tensor.
    parameters : tuple of int
        Integers >= 0 that the decoder needs; their meaning is the compressor's.
    sections : tuple of bytes
        Coded data; their meaning is the compressor's.
    """

    identifier: int
    shapes: Shapes
    parameters: tuple[int, ...]
    sections: tuple[bytes, ...]

    @property
    def coordinates(self) -> int:
        """Coordinates of all the tensors together."""
        return sum(sizes(self.shapes))

    def to_bytes(self) -> bytes:
        """Return the frame as bytes."""
        integers = [len(self.shapes)]
        for shape in self.shapes:
            integers += [len(shape), *shape]
        integers += [len(self.parameters), *self.parameters]
        integers += [len(self.sections), *map(len, self.sections)]
        head = MAGIC + bytes([VERSION, self.identifier]) + b"".join(map(cursor.varint, integers))
        body = head + b"".join(self.sections)
        return body + zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "little")


def read_frame(
    data: bytes,
    identifier: int,
    *,
    parameters: int,
    sections: int,
    optional: int = 0,
    shapes: Sequence[tuple[int, ...]] | None = None,
    limit: int = MAX_COORDINATES,
) -> Frame:
    """Read the bytes of `Frame.to_bytes`.

    Parameters
    ----------
    data : bytes
        The frame.
    identifier : int
        Compressor that must have written it.
    parameters, sections : int
        How many of each that compressor writes.
    optional : int
        Parameters that it may write beyond those.
    shapes : sequence of tuple of int, optional
        Shapes that the frame must hold; any if None.
    limit : int
        Most coordinates accepted, at most `MAX_COORDINATES`.

    Raises
    ------
    PayloadError
        If the bytes are malformed or hold something else.
    """
    limit = min(limit, MAX_COORDINATES)
    reader = cursor.Reader(_checked_body(data, identifier))
    found = tuple(_read_shape(reader, limit) for _ in range(reader.varint("number of tensors")))
    if shapes is not None and found != tuple(map(tuple, shapes)):
        raise PayloadError(f"tensors of shapes {found} where {tuple(shapes)} are expected")
    values = _read_integers(reader, parameters, "parameters", optional)
    parts = _read_sections(reader, sections)
    frame = Frame(identifier, found, values, parts)
    if frame.coordinates > limit:
        raise PayloadError(f"{frame.coordinates} coordinates, at most {limit} are accepted")
    return frame


def identifier_of(data: bytes) -> int:
    """Return the identifier of the compressor that wrote a frame; `PayloadError` if none did."""
    place = len(MAGIC) + 1
    if len(data) <= place or data[: len(MAGIC)] != MAGIC:
        raise PayloadError(f"{len(data)} bytes that do not begin as a compressed gradient")
    return data[place]


def _checked_body(data: bytes, identifier: int) -> bytes:
    """Return what lies between the fixed head and the checksum."""
    start = len(MAGIC) + 2
    if len(data) < start + _CHECKSUM_BYTES or data[: len(MAGIC)] != MAGIC:
        raise PayloadError(f"{len(data)} bytes that do not begin as a compressed gradient")
    version, found = data[start - 2], data[start - 1]
    if version != VERSION:
        raise PayloadError(f"gradient format version {version}, only {VERSION} is known")
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if zlib.crc32(body) != int.from_bytes(checksum, "little"):
        raise PayloadError("checksum of the compressed gradient does not match")
    if found != identifier:
        raise PayloadError(f"written by compressor {found}, expected {identifier}")
    return body[start:]


def _read_shape(reader: cursor.Reader, limit: int) -> tuple[int, ...]:
    dimensions = reader.varint("number of dimensions")
    if dimensions > _MAX_DIMENSIONS:
        raise PayloadError(f"tensor of {dimensions} dimensions, at most {_MAX_DIMENSIONS}")
    shape = tuple(reader.varint("shape") for _ in range(dimensions))
    # Zeros are left out of the product: NumPy refuses (0, huge) as well.
    if math.prod(size for size in shape if size) > limit:
        raise PayloadError(f"tensor of shape {shape}, at most {limit} coordinates are accepted")
    return shape


def _read_integers(
    reader: cursor.Reader, count: int, what: str, optional: int = 0
) -> tuple[int, ...]:
    found = reader.varint(f"number of {what}")
    if not count <= found <= count + optional:
        raise PayloadError(f"{found} {what}, expected {count}")
    return tuple(reader.varint(what) for _ in range(found))


def _read_sections(reader: cursor.Reader, count: int) -> tuple[bytes, ...]:
    lengths = _read_integers(reader, count, "sections")
    if sum(lengths) != reader.left:
        raise PayloadError(f"sections of {sum(lengths)} bytes, {reader.left} are there")
    return tuple(reader.take(length, "section") for length in lengths)
