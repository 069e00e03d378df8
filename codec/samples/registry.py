"""All sample codecs, by name. A new one is a file of its own and a line here."""

from collections.abc import Mapping
from dataclasses import dataclass

from codec.errors import PayloadError
from codec.samples.block_dct.codec import BlockDCT
from codec.samples.columns import Columns
from codec.samples.image_file import IMAGE_FILES
from codec.samples.lossless import Lossless
from codec.samples.sample_codec import SampleCodec

SAMPLE_CODECS: Mapping[str, SampleCodec] = {
    codec.name: codec for codec in (BlockDCT(), Columns(), Lossless(), *IMAGE_FILES)
}
"""All sample codecs by name, as `CodecOptions.codec` has it."""


@dataclass(frozen=True)
class FormerCodec:
    """A codec under an identifier that earlier versions wrote; it is read, never written.

    Attributes
    ----------
    name : str
        Of the codec.
    uses : tuple of str
        Options that follow the identifier.
    implied : mapping of str to int
        Values that options had that did not exist.
    """

    name: str
    uses: tuple[str, ...]
    implied: Mapping[str, int]


FORMER_CODECS: Mapping[int, FormerCodec] = {
    20: FormerCodec("avif", ("quality",), {"avif_speed": 6}),
}


def codec_of_identifier(identifier: int) -> SampleCodec:
    """Return the codec that an identifier stands for.

    Raises
    ------
    PayloadError
        If there is none.
    """
    for codec in SAMPLE_CODECS.values():
        if codec.identifier == identifier:
            return codec
    raise PayloadError(f"unknown codec {identifier}; known: {', '.join(SAMPLE_CODECS)}")
