"""Files of image codecs without what can be derived from the rest, and whole again."""

import zlib
from collections.abc import Iterator

from codec import PayloadError
from codec.coding import cursor as wire


def strip_jpeg(file: bytes) -> bytes:
    """Leave out the marker of the end."""
    return file[:-2]


def restore_jpeg(body: bytes) -> bytes:
    """Return the file that `strip_jpeg` was given."""
    return body + b"\xff\xd9"


def strip_webp(file: bytes) -> bytes:
    """Keep the type of the only chunk and its content."""
    return file[12:16] + file[20 : 20 + int.from_bytes(file[16:20], "little")]


def restore_webp(body: bytes) -> bytes:
    """Return the file that `strip_webp` was given."""
    size = len(body) - 4
    chunk = body[:4] + size.to_bytes(4, "little") + body[4:] + bytes(size % 2)
    return b"RIFF" + (len(chunk) + 4).to_bytes(4, "little") + b"WEBP" + chunk


_PNG_START, _PNG_HEADER = b"\x89PNG\r\n\x1a\n", 13


def strip_png(file: bytes) -> bytes:
    """Keep the header's content, the zlib header and the deflate stream."""
    chunks = list(_png_chunks(file))
    return chunks[0][1] + b"".join(data for kind, data in chunks if kind == b"IDAT")[:-4]


def restore_png(body: bytes) -> bytes:
    """Return the file that `strip_png` was given, with its data in one chunk."""
    header, stream = body[:_PNG_HEADER], body[_PNG_HEADER:]
    rows = zlib.decompressobj().decompress(stream)
    stream += zlib.adler32(rows).to_bytes(4, "big")
    chunks = ((b"IHDR", header), (b"IDAT", stream), (b"IEND", b""))
    return _PNG_START + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in chunks
    )


def _png_chunks(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_PNG_START)
    while at < len(file):
        size = int.from_bytes(file[at : at + 4], "big")
        yield file[at + 4 : at + 8], file[at + 8 : at + 8 + size]
        at += size + 12


_OBU_FRAME = 6


def strip_avif(file: bytes) -> bytes:
    """Leave out the sizes of the image item, of its box and of the frame, which comes last."""
    head = bytearray(file[: _item(file)])
    for at in _item_sizes(head):
        head[at : at + 4] = bytes(4)
    frame = _frame_size(file)
    size = wire.Reader(file[frame:])
    size.varint("size of the frame")
    return bytes(head) + file[len(head) : frame] + file[frame + size.position :]


def restore_avif(body: bytes) -> bytes:
    """Return the file that `strip_avif` was given."""
    item, frame = _item(body), _frame_size(body)
    content = body[item:frame] + wire.varint(len(body) - frame) + body[frame:]
    head = bytearray(body[:item])
    length, box = _item_sizes(head)
    head[length : length + 4] = len(content).to_bytes(4, "big")
    head[box : box + 4] = (len(content) + 8).to_bytes(4, "big")
    return bytes(head) + content


def _item(file: bytes) -> int:
    """Return where the image item begins (ISO/IEC 14496-12: after the head of box ``mdat``)."""
    return file.index(b"mdat") + 4


def _item_sizes(head: bytes | bytearray) -> tuple[int, int]:
    """Return where the item's length stands in box ``iloc``, and the size of box ``mdat``."""
    return head.index(b"iloc") + 22, len(head) - 8


def _frame_size(file: bytes) -> int:
    """Return where the size of the frame stands, or belongs: behind all other OBUs."""
    at = _item(file)
    while file[at] >> 3 & 15 != _OBU_FRAME:
        reader = wire.Reader(file[at + 1 :])
        at += 1 + reader.varint("size of an OBU") + reader.position
        if at >= len(file):
            raise PayloadError(f"no AV1 frame in {len(file)} bytes")
    return at + 1
