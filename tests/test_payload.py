"""The wire format: golden bytes, integrity, limits."""

import hashlib
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from codec import (
    CodecOptions,
    DecodeLimits,
    PayloadError,
    SamplePayload,
    SampleSpec,
    decode_samples,
    encode_samples,
)
from codec.coding.cursor import Reader, varint
from codec.samples.payload import MAGIC, VERSION

# SHA-256 of `golden(name).to_bytes()`. Another digest is another format: raise
# `codec.samples.payload.VERSION` and print the new digests with `python tests/test_payload.py`.
GOLDEN = {
    "image": "d23653f844aa84e587f35edefc247cc57b3f373a40ed93824b5c7717eb98ff49",
    "blocks": "66c2089d18026fbceb2ffae3a67e2d23a00df6e3321a37e7fd6ef4dc6bf111b5",
    "dithered": "75a3072140903d51979cdf49370bec537a7dd7b8445815e1793d9d29b88f57e2",
    "series": "43819e3fed9a5a6580f07f4bbef1aa1e3523ca173e49addcac5db2bc55214014",
    "table": "40b5e91d27e46ec2854a7b28b7103fd908ba94e5bb735129930f4ed8b0b58f7b",
    "lossless": "6cbbcc330b831f47a6a3a2818869fb715af0a4d5cfe6cdca85eb13d29a3b40d4",
    "centroid": "03c9827a889fbdbdb5230530647de74553f3dd11859a0d1427ef40eb97d3fdb3",
    "empty": "1bd40092c170ba2aaaa4c264ae332260ad2cc1793186d3c0e58ca0df0c0066aa",
}  # fmt: skip

SPECS = {
    "image": SampleSpec((3, 8, 8), classes=10),
    "blocks": SampleSpec((1, 9, 7), classes=3, codec=CodecOptions(block=4, step=0.05)),
    "dithered": SampleSpec((3, 8, 8), classes=10, codec=CodecOptions(quantizer="dithered")),
    "series": SampleSpec((2, 30), "float32", -1, 1, 0, 2, CodecOptions(quantizer="stochastic")),
    "table": SampleSpec((5,), "float32", -1, 1, 1000, codec=CodecOptions(step=0.01)),
    "lossless": SampleSpec((1, 4, 4), classes=2, codec=CodecOptions(quantizer="identity")),
    "centroid": SampleSpec(
        (3, 8, 8), classes=10, codec=CodecOptions(dead_zone=0.2, reconstruction="centroid")
    ),
    "empty": SampleSpec((3, 8, 8), classes=10),
}


def golden(name: str) -> SamplePayload:
    """A payload of samples that need no random numbers."""
    spec = SPECS[name]
    count = 0 if name == "empty" else 12
    size = int(np.prod(spec.shape))
    ramp = np.arange(count * size, dtype=np.int64)
    wave = (ramp * ramp // 7 + 31 * ramp) % 251 / 255  # in [0, 1), no two rows alike
    samples = (spec.low + wave * (spec.high - spec.low)).astype(spec.dtype)
    targets: Any = np.arange(count) ** 2 % max(spec.classes, 1)
    if not spec.classes:
        targets = (np.arange(2 * count, dtype=np.float32) / 8).reshape(count, 2)
    inclusion = 1 + np.arange(count) * 23 % 256 if name == "blocks" else None
    return encode_samples(
        samples.reshape(count, *spec.shape), targets, spec, key=(7, 8, 9), inclusion=inclusion
    )


def digest(name: str) -> str:
    return hashlib.sha256(golden(name).to_bytes()).hexdigest()


def resealed(body: bytes) -> bytes:
    """`body` with a CRC-32 that fits."""
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize("name", SPECS)
def test_golden_bytes(name: str) -> None:
    assert digest(name) == GOLDEN[name]


@pytest.mark.parametrize("name", SPECS)
def test_bytes_are_read_back(name: str) -> None:
    payload = golden(name)
    data = payload.to_bytes()
    again = SamplePayload.from_bytes(data)
    assert again.to_bytes() == data
    assert (again.spec, again.count) == (payload.spec, payload.count)
    assert {k: v for k, v in payload.sections.items() if v} == again.sections
    expected, decoded = decode_samples(payload), decode_samples(again)
    assert np.array_equal(decoded.samples, expected.samples)
    assert np.array_equal(decoded.targets, expected.targets)
    assert np.array_equal(decoded.weights, expected.weights)
    assert decoded.entropy_bits == expected.entropy_bits


def test_starts_with_magic_and_version() -> None:
    assert golden("image").to_bytes()[:3] == b"QD" + bytes([VERSION])


@pytest.mark.parametrize("name", SPECS)
def test_sections_sum_to_the_whole(name: str) -> None:
    payload = golden(name)
    sizes = payload.section_bytes()
    assert sum(sizes.values()) == len(payload.to_bytes())
    assert min(sizes.values()) > 0
    for section, size in sizes.items():
        assert section == "header" or size == len(payload.sections[section])


@pytest.mark.parametrize("name", SPECS)
def test_truncated_at_every_length(name: str) -> None:
    data = golden(name).to_bytes()
    for size in range(len(data)):
        with pytest.raises(PayloadError):
            SamplePayload.from_bytes(data[:size])


@pytest.mark.parametrize("name", ["image", "dithered"])
def test_truncated_at_every_length_and_resealed(name: str) -> None:
    body = golden(name).to_bytes()[:-4]
    for size in range(len(body)):
        with pytest.raises(PayloadError):
            SamplePayload.from_bytes(resealed(body[:size]))


@pytest.mark.parametrize("name", SPECS)
def test_every_flipped_bit_is_noticed(name: str) -> None:
    data = golden(name).to_bytes()
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadError):
            SamplePayload.from_bytes(bytes(altered))


def test_what_stands_after_the_end_is_refused() -> None:
    data = golden("image").to_bytes()
    with pytest.raises(PayloadError, match="CRC"):
        SamplePayload.from_bytes(data + b"\0")
    with pytest.raises(PayloadError, match="2 bytes after the end"):
        SamplePayload.from_bytes(resealed(data[:-4] + b"\0\0"))


def test_another_version_is_named() -> None:
    data = bytearray(golden("image").to_bytes())
    data[len(MAGIC)] = VERSION + 1
    with pytest.raises(PayloadError, match=f"version is {VERSION + 1}.*reads version {VERSION}"):
        SamplePayload.from_bytes(bytes(data))


@pytest.mark.parametrize("data", [b"", b"Q", b"QD", b"PNG\r\n\x1a\n", b"\0" * 100])
def test_what_is_no_payload_at_all(data: bytes) -> None:
    with pytest.raises(PayloadError):
        SamplePayload.from_bytes(data)


def test_a_repeated_or_unknown_section_is_refused() -> None:
    head = MAGIC + bytes([VERSION]) + SPECS["image"].to_bytes() + varint(1)
    for table in (b"\x02\x00\x00\x00\x00", b"\x01\x63\x00"):
        with pytest.raises(PayloadError, match="unknown or repeated"):
            SamplePayload.from_bytes(resealed(head + table))


@pytest.mark.parametrize("quantizer", ["nearest", "stochastic", "dithered", "identity"])
def test_the_key_travels_where_the_decoder_needs_it(quantizer: str) -> None:
    spec = replace(SPECS["image"], codec=CodecOptions(quantizer=quantizer))
    payload = SamplePayload(spec, 0, {}, (2**62, 2**40, 5))
    again = SamplePayload.from_bytes(payload.to_bytes())
    assert again.key == (payload.key if quantizer == "dithered" else (0, 0, 0))
    extra = len(payload.to_bytes()) - len(SamplePayload(spec, 0, {}).to_bytes())
    assert extra == (9 + 6 + 1 - 3 if quantizer == "dithered" else 0)


# Limits


def declared(spec: SampleSpec, count: int) -> bytes:
    """A few bytes that claim to hold `count` samples."""
    return SamplePayload(spec, count, {"coefficients": b"\x12"}).to_bytes()


@pytest.mark.parametrize(
    ("spec", "count", "limits"),
    [
        (SPECS["image"], 11, DecodeLimits(samples=10)),
        (SPECS["image"], 6, DecodeLimits(values=5 * 192)),
        (SPECS["image"], 1 << 50, DecodeLimits()),
        (SampleSpec((1 << 20,), classes=2), 65, DecodeLimits()),
        # blocks are counted as they are padded, lossless samples byte by byte
        (SampleSpec((1, 65, 65), classes=2), 1, DecodeLimits(values=72 * 72 - 1)),
        (replace(SPECS["lossless"], dtype="float32"), 1, DecodeLimits(values=63)),
        (SampleSpec((1,), target_size=100), 1, DecodeLimits(values=399)),
    ],
)
def test_beyond_the_limits(spec: SampleSpec, count: int, limits: DecodeLimits) -> None:
    with pytest.raises(PayloadError, match=f"{count} samples .* limits are"):
        SamplePayload.from_bytes(declared(spec, count), limits)


@pytest.mark.parametrize(
    ("spec", "limits"),
    [
        (SPECS["image"], DecodeLimits(samples=1, values=192)),
        (SampleSpec((1, 65, 65), classes=2), DecodeLimits(values=72 * 72)),
        (replace(SPECS["lossless"], dtype="float32"), DecodeLimits(values=64)),
        (SampleSpec((1,), target_size=100), DecodeLimits(values=400)),
    ],
)
def test_at_the_limits(spec: SampleSpec, limits: DecodeLimits) -> None:
    assert SamplePayload.from_bytes(declared(spec, 1), limits).count == 1


# What the CRC cannot catch


@pytest.mark.parametrize("name", ["image", "series", "table", "centroid"])
def test_missing_sections_are_zeros_or_an_error(name: str) -> None:
    payload = golden(name)
    for section in payload.sections:
        rest = {k: v for k, v in payload.sections.items() if k != section}
        cut = replace(payload, sections=rest)
        if section == "offsets":
            with pytest.raises(PayloadError, match="truncated"):
                decode_samples(cut)
        else:
            assert decode_samples(cut).samples.shape == (payload.count, *payload.spec.shape)


@pytest.mark.parametrize(
    ("name", "offsets", "message"),
    [
        ("centroid", b"\0", "truncated offset"),
        ("centroid", b"\0\0\0", "1 bytes after the end"),
        ("table", b"", "truncated width"),
        ("table", b"\x05", "truncated lowest"),
        ("table", b"\x05\x00\x00", "1 bytes after the end"),
        ("table", b"\x40\x00", "64 bits"),
        ("table", b"\x05" + varint(1 << 40), f"{1 << 40} .zigzag"),
        ("table", b"\x05" + b"\xff" * 12, "longer than 9 bytes"),
    ],
)
def test_malformed_side_information(name: str, offsets: bytes, message: str) -> None:
    payload = golden(name)
    with pytest.raises(PayloadError, match=message):
        decode_samples(replace(payload, sections={**payload.sections, "offsets": offsets}))


def test_a_label_out_of_range() -> None:
    payload = golden("image")
    nine = encode_samples(
        np.zeros((12, 1), np.uint8), np.full(12, 15), SampleSpec((1,), classes=16)
    )
    with pytest.raises(PayloadError, match=r"label 15; legal range: \[0, 9\]"):
        decode_samples(replace(payload, sections={**payload.sections, **nine.sections}))


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255, 16384, 2**32, 2**63 - 1])
def test_varint(value: int) -> None:
    assert Reader(varint(value)).varint("value") == value
    assert len(varint(value)) == max(1, -(-value.bit_length() // 7))


if __name__ == "__main__":
    for golden_name in SPECS:
        print(f'    "{golden_name}": "{digest(golden_name)}",')
