"""The wire format of a set of quantized samples.

::

    "QD"  version  spec  count  key  sections  (id, length)...  bytes of each section  CRC-32

Numbers are varints where no size is given. The CRC covers everything before it. Byte by byte:
``docs/payload.md``.
"""

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from codec.coding import cursor
from codec.errors import PayloadError
from codec.samples.sample_codec import Key
from codec.samples.spec import READABLE, SampleSpec

MAGIC = b"QD"
TARGETS, WEIGHTS, VALUES, VOCABULARY = SECTIONS = ("targets", "weights", "values", "vocabulary")
_CRC_BYTES = 4


@dataclass(frozen=True)
class DecodeLimits:
    """What a decoder is willing to hold.

    Attributes
    ----------
    samples : int
        Samples in one payload.
    values : int
        Numbers in one payload: samples times `SampleCodec.decoded_values`. Decoding holds a few
        arrays of this many entries.
    values_per_byte: int
        Numbers to decode (values, targets and weights) for each byte of a payload of more than
        one sample: what a few bytes can make the decoder do. Ordinary images have 20 to 150;
        encoders make payloads smaller where there would be more, as of images that are all black.
    """

    samples: int = 1 << 20
    values: int = 1 << 26
    values_per_byte: int = 1 << 10

    def too_dense(self, spec: SampleSpec, count: int, size: int) -> bool:
        """Whether so many samples in a payload of `size` bytes are more than bytes pay for."""
        return count > 1 and count * _numbers(spec) > self.values_per_byte * size


@dataclass(frozen=True)
class SamplePayload:
    """Coded samples with all that is needed to decode them.

    Attributes
    ----------
    spec : SampleSpec
        What the samples are.
    count : int
        Number of samples, >= 0.
    sections : mapping of str to bytes
        The coded parts, by the names in `SECTIONS`; empty ones are left out.
    key : (int, int, int)
        Seed, client and payload: key of the dither. Travels only where the decoder needs it.
    """

    spec: SampleSpec
    count: int
    sections: Mapping[str, bytes]
    key: Key = (0, 0, 0)

    def to_bytes(self) -> bytes:
        """Return the serialized payload."""
        names = [name for name in SECTIONS if self.sections.get(name)]
        table = b"".join(
            bytes([SECTIONS.index(name)]) + cursor.varint(len(self.sections[name]))
            for name in names
        )
        key = b"".join(map(cursor.varint, self.key)) if self._has_key else b""
        head = MAGIC + bytes([self.spec.version]) + self.spec.to_bytes()
        head += cursor.varint(self.count) + key
        body = head + bytes([len(names)]) + table + b"".join(self.sections[n] for n in names)
        return body + struct.pack("<I", zlib.crc32(body))

    @property
    def _has_key(self) -> bool:
        return self.spec.sample_codec.needs_key(self.spec.codec)

    @classmethod
    def from_bytes(cls, data: bytes, limits: DecodeLimits = DecodeLimits()) -> "SamplePayload":
        """Read a payload.

        Parameters
        ----------
        data : bytes
            What `to_bytes` returned.
        limits : DecodeLimits
            Largest payload to accept; checked before anything is allocated.

        Raises
        ------
        PayloadError
            If the bytes are truncated, altered, of another version or beyond the limits.
        """
        if data[: len(MAGIC)] != MAGIC:
            raise PayloadError(
                f"starts with {data[: len(MAGIC)]!r}; a payload starts with {MAGIC!r}"
            )
        body, crc = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
        reader = cursor.Reader(body)
        reader.take(len(MAGIC), "magic")
        version = reader.byte("version")
        if version not in READABLE:
            known = " and ".join(map(str, READABLE))
            raise PayloadError(f"version is {version}; this codec reads versions {known}")
        if struct.pack("<I", zlib.crc32(body)) != crc:
            raise PayloadError(f"CRC-32 mismatch in {len(data)} bytes: truncated or altered")
        spec = SampleSpec.read(reader, version)
        count = reader.varint("count")
        _check_limits(spec, count, len(data), limits)
        key = (0, 0, 0)
        if spec.sample_codec.needs_key(spec.codec):
            key = (reader.varint("seed"), reader.varint("client"), reader.varint("payload"))
        sections = _read_sections(reader)
        reader.finish()
        return cls(spec, count, sections, key)

    def section_bytes(self) -> dict[str, int]:
        """Return the serialized bytes of each section and of the ``header``."""
        sizes = {name: len(part) for name, part in self.sections.items() if part}
        return {"header": len(self.to_bytes()) - sum(sizes.values()), **sizes}


def _numbers(spec: SampleSpec) -> int:
    """Return the numbers that decoding a sample takes: its values, target and weight."""
    return spec.sample_codec.decoded_values(spec) + max(1, _target_bytes(spec)) + 1


def _target_bytes(spec: SampleSpec) -> int:
    return 0 if spec.classes else 4 * math.prod(spec.target_shape)


def _check_limits(spec: SampleSpec, count: int, size: int, limits: DecodeLimits) -> None:
    per_sample = max(spec.sample_codec.decoded_values(spec), _target_bytes(spec))
    if count > limits.samples or count * per_sample > limits.values:
        raise PayloadError(
            f"{count} samples of {per_sample} values; the limits are {limits.samples} samples "
            f"and {limits.values} values"
        )
    if limits.too_dense(spec, count, size):
        raise PayloadError(
            f"{count} samples of {_numbers(spec)} numbers in {size} bytes; the limits are "
            f"{limits.values_per_byte} numbers a byte"
        )


def _read_sections(reader: cursor.Reader) -> dict[str, bytes]:
    lengths: dict[str, int] = {}
    for _ in range(reader.byte("number of sections")):
        index = reader.byte("section")
        if index >= len(SECTIONS) or SECTIONS[index] in lengths:
            raise PayloadError(f"section {index} is unknown or repeated")
        lengths[SECTIONS[index]] = reader.varint("section length")
    return {name: reader.take(length, name) for name, length in lengths.items()}
