"""Reading and writing the fields of a byte string."""

import struct

from codec.errors import PayloadError

_MAX_VARINT_BYTES = 10  # 64 bits


def varint(value: int) -> bytes:
    """Return `value` >= 0 in groups of 7 bits, lowest first (LEB128)."""
    out = bytearray()
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def zigzag(value: int) -> bytes:
    """Return a number of either sign: 2n for n >= 0, else -2n - 1."""
    return varint(2 * value if value >= 0 else -2 * value - 1)


class Reader:
    """Cursor over bytes; every read past the end raises `PayloadError`."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._at

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def take(self, size: int, what: str) -> bytes:
        """Read `size` bytes; `what` names them in the error."""
        if size > self.left:
            raise PayloadError(f"truncated {what}: needs {size} bytes, {self.left} left")
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        """Read all that is left."""
        return self.take(self.left, "rest")

    def byte(self, what: str) -> int:
        """Read one byte."""
        return self.take(1, what)[0]

    def varint(self, what: str) -> int:
        """Read a number that `varint` wrote."""
        value = 0
        for group in range(_MAX_VARINT_BYTES):
            byte = self.byte(what)
            value |= (byte & 0x7F) << (7 * group)
            if value >> 64:
                raise PayloadError(f"{what}: number of more than 64 bits")
            if byte < 0x80:
                return value
        raise PayloadError(f"{what}: number longer than {_MAX_VARINT_BYTES} bytes")

    def zigzag(self, what: str) -> int:
        """Read a number that `zigzag` wrote."""
        folded = self.varint(what)
        return -((folded + 1) >> 1) if folded % 2 else folded >> 1

    def number(self, what: str) -> float:
        """Read a float32."""
        value: float = struct.unpack("<f", self.take(4, what))[0]
        return value

    def short_number(self, what: str) -> float:
        """Read what `short_number` wrote."""
        value: float = struct.unpack("<f", b"\0\0" + self.take(2, what))[0]
        return value

    def finish(self) -> None:
        """Raise `PayloadError` unless all was read."""
        if self.left:
            raise PayloadError(f"{self.left} bytes after the end")


def number(value: float) -> bytes:
    """Return a float32."""
    return struct.pack("<f", value)


def short_number(value: float) -> bytes:
    """Return the upper half of a float32, rounded (bfloat16): right to 0.4 %."""
    whole: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return struct.pack("<H", (whole + 0x8000) >> 16)
