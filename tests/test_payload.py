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
    "image": "85578105dea6da7aac07c783384f4c89eea77636c24682de94772f7d486b1bf1",
    "blocks": "9431ba097b580f2ae33adf48454cfbf861c819f5f67a83ac26c952499068fa16",
    "dithered": "68be4237f9a86d0454b063357a976c3d5a0effebcb27b6858876ab27678e2e69",
    "series": "fb3141d0ca84eae9909e861f742aee3a774b79517a667f90236e4ebe355bcfc8",
    "table": "9532e6d4f7248a367a08164f4d488f764dad3bd0e8295af80d0faf19114ec115",
    "rows": "46ec0ccd085095b5bff7c241b88c9709b4a61fa328f7354c0572bfeb95a749a9",
    "pixels": "e6e72b0f2f5e8c60e896871da82d4b80b981f48a04d06ce29a49971c4e7d78d0",
    "lossless": "9d871cb6de2f58fe91e9b58b93762be0fa60bf962af6cba5759d7d8395c985ba",
    "floats": "dcfbf8b3fb32875fc9f0adf43be6497abfedc57d893df7291b4837c364e5382b",
    "empty": "6c80510f49ac23bdbae703533c7273bd6aa86e8ed5e5e92067f5e79b3e96727a",
}  # fmt: skip

# SHA-256 of the coded sections. Those of version 4 have these digests too, its sections "offsets"
# and "coefficients" joined: version 5 changed what stands around them, not how samples are coded.
GOLDEN_SECTIONS = {
    "image": {
        "targets": "340696b349a0d53bb0fcca365755603339020bacdf399ee079f390bd58525720",
        "values": "1c096ed2ccde394e26bfb9ee537dc0c2e5c00a9d06916d22d0b7365f3f84b04a",
    },
    "blocks": {
        "targets": "feb9aa09639ed259182628eec9c21ea4046d44d54ca4c97d9b70e69316363e9f",
        "weights": "94e6e64154cd3107b07fba18e932270697b9bb1b86735fbc0754d4f2273eeaba",
        "values": "120e1c3504d048790140c5adf8c8f5854a58d0784d211ed9b2181040b3c4a83f",
    },
    "dithered": {
        "targets": "340696b349a0d53bb0fcca365755603339020bacdf399ee079f390bd58525720",
        "values": "a53588382e229a1097bc6587e3f98e6c9be4e76463cd41edf1127c6ba36186d1",
    },
    "series": {
        "targets": "b71cf0065e078d4c9c850188687eb58786c7c6061fe58286a95510c3526b8b20",
        "values": "9fc476398855584c9b7b35bf78d652431e72a0d2c6d5c1745c9654615551c7eb",
    },
    "table": {
        "targets": "81b10a04681aba2a53d45daad2aea064992ffa81be01ad6e29b755989c89939e",
        "values": "45e96d3e1b062c185d3482e529b44d919c0f36479d683e0f5502ea6bd69d1f2d",
    },
    "rows": {
        "targets": "b71cf0065e078d4c9c850188687eb58786c7c6061fe58286a95510c3526b8b20",
        "values": "4dc0a2a0e6c08f19f0f80650de41b774e7e53c50e9a6beec8dd978022f32a627",
    },
    "pixels": {
        "targets": "feb9aa09639ed259182628eec9c21ea4046d44d54ca4c97d9b70e69316363e9f",
        "values": "15323f3e2915a0b1bb9d99304543d9115bd5ad702e68ab46caf2c2da3eb62598",
    },
    "lossless": {
        "targets": "de2c925d8d21141a3406cf922e4c0dca7ef9eeb281e005891df5a4aad73d6a26",
        "values": "6286d7e65fcc772ec432ee33fd46d3b44d358675d39537012c2061a5b113397d",
    },
    "floats": {
        "targets": "de2c925d8d21141a3406cf922e4c0dca7ef9eeb281e005891df5a4aad73d6a26",
        "values": "ae529b958085be2b7991514254d2e7f59d431bec0c7d3615c44703d9d3dda21d",
    },
    "empty": {},
}  # fmt: skip

LOSSLESS, DITHERED = CodecOptions("lossless"), CodecOptions(quantizer="dithered")
SPECS = {
    "image": SampleSpec((3, 8, 8), classes=10),
    "blocks": SampleSpec((1, 9, 7), classes=3, codec=CodecOptions(block=4, step=0.05)),
    "dithered": SampleSpec((3, 8, 8), classes=10, codec=DITHERED),
    "series": SampleSpec((2, 30), "float32", -1, 1, 0, 2, CodecOptions(quantizer="stochastic")),
    "table": SampleSpec((5,), "float32", -1, 1, 1000, codec=CodecOptions(step=0.01)),
    "rows": SampleSpec((5,), "float32", -1, 1, 0, 2, CodecOptions(quantizer="dithered", step=0.01)),
    "pixels": SampleSpec(
        (1, 9, 7), classes=3, codec=CodecOptions("columns", quantizer="stochastic", step=1 / 3)
    ),
    "lossless": SampleSpec((1, 4, 4), classes=2, codec=LOSSLESS),
    "floats": SampleSpec((2, 3), "float32", -1, 1, 2, codec=LOSSLESS),
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


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def resealed(body: bytes) -> bytes:
    """`body` with a CRC-32 that fits."""
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize("name", SPECS)
def test_golden_bytes(name: str) -> None:
    assert digest(golden(name).to_bytes()) == GOLDEN[name]


@pytest.mark.parametrize("name", SPECS)
def test_coded_sections_are_those_of_the_version_before(name: str) -> None:
    sections = {section: digest(part) for section, part in golden(name).sections.items() if part}
    assert sections == GOLDEN_SECTIONS[name]


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


@pytest.mark.parametrize(
    ("options", "travels"),
    [
        (CodecOptions(quantizer="nearest"), False),
        (CodecOptions(quantizer="stochastic"), False),
        (CodecOptions(quantizer="dithered"), True),
        (CodecOptions("columns", quantizer="stochastic"), False),
        (CodecOptions("columns", quantizer="dithered"), True),
        (CodecOptions("lossless"), False),
        (CodecOptions("lossless", quantizer="dithered"), False),
        (CodecOptions("png"), False),
    ],
)
def test_the_key_travels_where_the_decoder_needs_it(options: CodecOptions, travels: bool) -> None:
    spec = replace(SPECS["image"], codec=options)
    payload = SamplePayload(spec, 0, {}, (2**62, 2**40, 5))
    again = SamplePayload.from_bytes(payload.to_bytes())
    assert again.key == (payload.key if travels else (0, 0, 0))
    extra = len(payload.to_bytes()) - len(SamplePayload(spec, 0, {}).to_bytes())
    assert extra == (9 + 6 + 1 - 3 if travels else 0)


# Limits


def declared(spec: SampleSpec, count: int) -> bytes:
    """A few bytes that claim to hold `count` samples."""
    return SamplePayload(spec, count, {"values": b"\x12"}).to_bytes()


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


@pytest.mark.parametrize("name", ["image", "series", "table", "lossless"])
def test_missing_sections_are_zeros_or_an_error(name: str) -> None:
    payload = golden(name)
    for section in payload.sections:
        rest = {k: v for k, v in payload.sections.items() if k != section}
        cut = replace(payload, sections=rest)
        if (name, section) == ("table", "values"):  # they begin with the bounds of the columns
            with pytest.raises(PayloadError, match="truncated"):
                decode_samples(cut)
        else:
            assert decode_samples(cut).samples.shape == (payload.count, *payload.spec.shape)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (b"", "truncated width"),
        (b"\x05", "truncated lowest"),
        (b"\x40\x00", "64 bits"),
        (b"\x05" + varint(1 << 40), f"{1 << 40} .zigzag"),
        (b"\x05" + b"\xff" * 12, "longer than 9 bytes"),
    ],
)
def test_malformed_bounds_of_columns(values: bytes, message: str) -> None:
    payload = golden("table")
    with pytest.raises(PayloadError, match=message):
        decode_samples(replace(payload, sections={**payload.sections, "values": values}))


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
        print(f'    "{golden_name}": "{digest(golden(golden_name).to_bytes())}",')
