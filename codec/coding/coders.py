"""The range coder that is there: compiled, or array by array."""

from typing import Protocol

from codec.coding.range_coder import BitCoder, BitDecoder, BitEncoder
from codec.compilation import is_compiled


class Encoder(BitCoder, Protocol):
    """A coder that `finish` ends."""

    def finish(self) -> bytes:
        """Return the stream."""


def encoder() -> Encoder:
    """Return an encoder."""
    if is_compiled():
        from codec.coding.compiled import Coder

        return Coder()
    return BitEncoder()


def decoder(data: bytes) -> BitCoder:
    """Return a decoder of what an encoder finished."""
    if is_compiled():
        from codec.coding.compiled import Coder

        return Coder(data)
    return BitDecoder(data)
