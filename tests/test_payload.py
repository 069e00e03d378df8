"""The wire format: golden bytes, integrity, limits."""

import hashlib
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from codec import (
    CodecError,
    CodecOptions,
    DecodeLimits,
    PayloadError,
    SamplePayload,
    SampleSpec,
    decode_samples,
    encode_samples,
)
from codec.coding.cursor import Reader, varint, zigzag
from codec.compilation import compiled
from codec.samples.block_dct.codec import Plan
from codec.samples.block_dct.surroundings import Surroundings
from codec.samples.channel_axis import ChannelAxis
from codec.samples.payload import MAGIC
from codec.samples.spec import VERSION

# SHA-256 of `golden(name).to_bytes()`. Another digest is another format: raise
# `codec.samples.spec.VERSION` and print the new digests with `python tests/test_payload.py`.
GOLDEN = {
    "image": "2a7ac948c6644df66484464058c9598c6423901a05924475127296541fba760b",
    "blocks": "bdce59804f1f677d78da677551c46fc2d4a4ae834709ef39038e35d5d3d9ad8a",
    "dithered": "4fead79057dba55234a2902fd1cd0a42099af864d4240f9be1b8ca9c163dc560",
    "series": "04aaded4a5a16e52c8de0f884ae1a9b9a738564c7b5877fb4d21c3cce3052169",
    "table": "572467462fde5dd829a50e3a8c2fe428ca982f367d3839cd5b0800cf7350c371",
    "rows": "42d594f2e3b494f8e76675934f50021aa84b11076226b284933efae1eb2de3bd",
    "pixels": "a87bdc3f612edc60830597ffcd76662fe775f42c3760a99dcc7cf3b2fb31e0c4",
    "lossless": "81d17249571e62fda88521edd0554697197b99e4d5b8f2c48c88205ad32c4c13",
    "floats": "511a934cd536fb4b7f35f10f36bfa5f93ae01a9cf0c0aa7d9db5fddeb739a6d0",
    "empty": "6b504df6a192fba0a980f80cbc72a23d3310906e87a107f15ee223ac92024be5",
    "photographs": "f47e1164fb7e4f38f803585b631713dd73e20c8d06573fb0489b8c55f4ccb3b4",
    "faint": "0c2fd627fa2de30aec6c98768adf4952bc81b2dcbe946d03d01fbad6f6e9ccd5",
    "weak band": "5b0c09c8f923c9e9e73848f13905d877e717bb71d3a960eafed6adb3fde30c57",
    "bands": "add557cf0e2c5f66565dd648f63b7b33c96f1810c5a1168a7bbec89592d328f1",
    "grey": "665dc648f797905d8d3bc3b58a910b0dff9ed016898f72ccc4d53f16dbc147fc",
    "channels last": "118e184fe0067711579071d4bf6eda98ca2d2fc4781ac6b6477e3adaa81ff3d2",
    "channels": "f42b57a97b0bee687cb411869a7b933d7bf1ed38dca16d39b6ad865d06128ba2",
    "signal": "835e7268bbf768aa6cb283945f0ac4cb03b4efdb424d4d87e183115e4dba92ca",
    "columns": "02923818951e803f9b6d789f59ccc3f978ac6e993a28440285dc466ed0f8a8c2",
    "noisy columns": "db14cb78be2e1467a9eaae9b76ad1e56473c776efa26fe3dc2db524c9dd808d3",
    "tokens": "29b3d2ce9e0fd37db8173fe935e91d3474982d49db072ed1d60fb44b6db98f2e",
    "labels": "f819ca3a58189b2189c71fdc2ef766c2bf1935167e7d554fd81b132524455da4",
    "nothing": "4890a388718e241e0c9ad5a2d3a1cb3515d27b8180c3bc14c4965017d98bad7f",
    "shapes": "977ac8baa48951256f6f743ab299848a7ea00516cf3e29eec4edc620755ddae0",
    "colours": "5a59d00978af130b344b2eaa8a1b6801cfb7e13a2d41575793f7c6fc92078871",
}  # fmt: skip

# Those of version 6, which is still read: nothing but tests writes it.
GOLDEN_6 = {
    "image": "eb5b8032d25dfbcbb9a009f1a658f45db09e7612603e740c648fb0db4fadb13e",
    "blocks": "d772e6ce25352e1d4c8189f9e8325338a4dc4e9a1ccc7a0f62bf5facbe820801",
    "dithered": "61d37923052e643a9a6834ef1270a79ad1093c68ae20b60c5f66047453058769",
    "series": "a0d5b445d9c1bb20db212646a2ce55a80e05e4ff0796c82d10e20a0dbb48537f",
    "table": "77d9f700367b413956cadc3c6bc484dc573e81589019f7bc9d6d15f2d2c5de00",
    "rows": "bb27873ab5de91e84a0e3d4264a9f8ad31c15d2c0409bfb03245c05be1495c25",
    "pixels": "b97bb3bf5bf523d86307c820e5c9c61d508454df710cb9ae1b3a3c87ae523926",
    "lossless": "34ee24d76e3e3d88ff8429e4d5708eb1fb8c11cab9ef64d89da43a857ce98a0a",
    "floats": "320ad7bfe03ef55c89223ac01283bb5dc2a0ced635a09858f09d4900d69576ed",
    "empty": "9efa41d60c2b66900cf1ee09f0048079283d6fdcffbeb020f0af917c4f5077bf",
    "photographs": "6a72c65b7b6fd43a71b6cb6a024922bb274330b846059138d6aa6e34524940fa",
    "faint": "a6cbcdf6ddba58e2845da26b6058e3b1615ca6ed22e04988801803d0f3433d46",
    "weak band": "a7af110733aa930c1a8c54d9dd2ffa4205032779936e701923efae3637b00e9e",
    "bands": "00deaf10a84ad6f8aa8f789ca84b907b394c7b55923d364abd0b275baa44f4b3",
    "grey": "a5fc316885fc3d633f3642d852eb018b5df02ccec5d514fc91e58d2a52bf3ead",
    "channels last": "6262c6181ba3daeb1d71012b07ddee7f94563de8face45bdc9aed0415616a72c",
    "channels": "a049c663474fc7f286cd0996ee870e2df18797b19ff907430515c8c75e6ae9a8",
    "signal": "eba6952df5398b9519b9b9f75c4b97bdd2810193a4a3733297632bba520df41e",
    "columns": "2f9e66ecc1e3a10e2033a4c17c709f380f8aa09e397b7736c42cf69bdef8f755",
    "noisy columns": "121e0c8abfa4b13f8fbaff72ee02037d5cf7c90485fb8f21480a15494cc44a2f",
    "tokens": "05333173eb048d36309d2fddd6266a379b36c06ae784bc57a07fe1c38d3a4988",
    "labels": "c330a454467fe6a1d9350dcfa96c0c66a521dd23f4283474350438a02de878b1",
    "nothing": "a8e31adf2da21d875305d46003688a68c863f42d8c3df72f134a23619fbab126",
    "shapes": "db126573a75a351dc89bdabc5b7c7edadd439c8fccbab6a6fac3dc591964b21e",
    "colours": "f156757ad6a2df16a14fe5c0a8702705e4ed06e7a7f700578e73b8a7b6c24f37",
}  # fmt: skip

# SHA-256 of the coded sections, with steps relative to the range. Those of version 4 have these
# digests too, its sections "offsets" and "coefficients" joined: versions 5 and 6 changed what
# stands around them, not how samples are coded. Version 7 codes images otherwise.
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
RANGE = CodecOptions(relative_to="range")
DITHERED_RANGE = replace(RANGE, quantizer="dithered")
STOCHASTIC_RANGE = replace(RANGE, quantizer="stochastic")
SPECS = {
    "image": SampleSpec((3, 8, 8), classes=10, codec=RANGE),
    "blocks": SampleSpec((1, 9, 7), classes=3, codec=replace(RANGE, block=4, step=0.05)),
    "dithered": SampleSpec((3, 8, 8), classes=10, codec=DITHERED_RANGE),
    "series": SampleSpec((2, 30), "float32", -1, 1, 0, 2, STOCHASTIC_RANGE),
    "table": SampleSpec((5,), "float32", -1, 1, 1000, codec=replace(RANGE, step=0.01)),
    "rows": SampleSpec((5,), "float32", -1, 1, 0, 2, replace(DITHERED_RANGE, step=0.01)),
    "pixels": SampleSpec(
        (1, 9, 7), classes=3, codec=replace(STOCHASTIC_RANGE, codec="columns", step=1 / 3)
    ),
    "lossless": SampleSpec((1, 4, 4), classes=2, codec=LOSSLESS),
    "floats": SampleSpec((2, 3), "float32", -1, 1, 2, codec=LOSSLESS),
    "empty": SampleSpec((3, 8, 8), classes=10, codec=RANGE),
    # relative to the spread, which is the default
    "photographs": SampleSpec((3, 8, 8), classes=10),
    "faint": SampleSpec((3, 9, 7), classes=10, codec=CodecOptions(block=4)),
    "weak band": SampleSpec((3, 8, 8), classes=10),
    "bands": SampleSpec((13, 4, 4), "float32", -1, 1, 10),
    "grey": SampleSpec((9, 7), classes=10),
    "channels last": SampleSpec((9, 7, 3), classes=10),
    "channels": SampleSpec((3, 30), "float32", -1000, 1000, 10, codec=DITHERED),
    "signal": SampleSpec(
        (40,), "float32", -1, 1, 10, codec=CodecOptions("dct", quantizer="stochastic")
    ),
    "columns": SampleSpec((6,), "float32", -2000, 1e6),
    "noisy columns": SampleSpec((6,), "float32", -2000, 1e6, codec=DITHERED),
    "tokens": SampleSpec((20,), "int32", 0, 30_000, 10),
    "labels": SampleSpec((5,), "float32", -1, 1, 0, 10),
    "nothing": SampleSpec((3, 8, 8), classes=10),
    # whose contexts a network chooses
    "shapes": SampleSpec((1, 28, 28), classes=10),
    "colours": SampleSpec((3, 16, 24), classes=10, codec=CodecOptions(step=0.8)),
}
EMPTY = ("empty", "nothing")
SCORED = ("shapes", "colours")
SCALES = np.array([1, 1e-3, 1000, 0, 5, 20])  # of columns, whose fourth is constant


def discs(spec: SampleSpec, count: int) -> NDArray[np.uint8]:
    """Images of a disc each, of other place, size and colour."""
    n = np.arange(count).reshape(-1, 1, 1, 1)
    c, y, x = np.indices(spec.shape)
    apart = (y - 5 - n) ** 2 + (x - 20 + n) ** 2
    disc = np.where(apart < 30 + 5 * n, 250 - 7 * n - 60 * c, 3 * x + 20 * c)
    return np.clip(disc, 0, 255).astype(np.uint8)


def scaled(name: str, samples: NDArray[Any], spec: SampleSpec) -> NDArray[Any]:
    """Samples in [-1, 1], or 0..255, as the payload of a name has them."""
    if name in SCORED:
        return discs(spec, len(samples))
    if name == "faint":
        return 100 + samples // 20
    if name == "weak band":
        return samples // np.array([1, 1, 20], np.uint8)[:, None, None]
    if name == "bands":
        return (samples * 0.9 ** np.arange(13)[:, None, None]).astype(np.float32)
    if name == "channels":
        return (samples * np.array([[1000], [1], [0]]) / 1000 + [[0], [500], [7]]).astype("f4")
    if name.endswith("columns"):
        unit = (samples + 2000) / (1e6 + 2000)
        table = (unit * SCALES + np.array([0, 100, 0, 7, 0, 0])).astype(np.float32)
        table[5, 4] = 1e6  # an outlier
        return table
    return samples


def golden(name: str, version: int = VERSION) -> SamplePayload:
    """A payload of samples that need no random numbers."""
    spec = replace(SPECS[name], version=version)
    count = 0 if name in EMPTY else 12
    size = int(np.prod(spec.shape))
    ramp = np.arange(count * size, dtype=np.int64)
    wave = (ramp * ramp // 7 + 31 * ramp) % 251 / 255  # in [0, 1), no two rows alike
    samples = (spec.low + wave * (spec.high - spec.low)).astype(spec.dtype)
    samples = scaled(name, samples.reshape(count, *spec.shape), spec)
    targets: Any = np.arange(count) ** 2 % max(spec.classes, 1)
    if not spec.classes:
        targets = (np.arange(size_of_targets(spec, count)) / 8).astype(np.float32)
        targets = targets.reshape(count, *spec.target_shape)
    if name == "labels":
        targets = (np.floor(targets) % 3 == 0).astype(np.float32)
    inclusion = 1 + np.arange(count) * 23 % 256 if name == "blocks" else None
    return encode_samples(samples, targets, spec, key=(7, 8, 9), inclusion=inclusion)


def size_of_targets(spec: SampleSpec, count: int) -> int:
    """Floats in the targets of so many samples."""
    return count * max(1, spec.target_size)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def resealed(body: bytes) -> bytes:
    """`body` with a CRC-32 that fits."""
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize("name", SPECS)
def test_golden_bytes(name: str) -> None:
    assert digest(golden(name).to_bytes()) == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN_6)
def test_payloads_of_version_6_are_read(name: str) -> None:
    payload = golden(name, 6)
    data = payload.to_bytes()
    assert data[len(MAGIC)] == 6 and digest(data) == GOLDEN_6[name]
    again = SamplePayload.from_bytes(data)
    assert again.spec == payload.spec and again.spec.version == 6
    decoded, now = decode_samples(again), decode_samples(golden(name))
    assert np.array_equal(decoded.targets, now.targets)
    assert np.array_equal(decoded.weights, now.weights)
    same = name not in ("grey", "channels last", "shapes")  # whose blocks have other sides
    assert np.array_equal(decoded.samples, now.samples) == same


def test_versions_are_said_where_they_matter() -> None:
    spec = SampleSpec((1, 28, 28), classes=10)
    old = replace(spec, version=6)
    assert old == spec and old.to_bytes() == spec.to_bytes()  # the same samples
    assert spec.sample_codec.decoded_values(spec) == 28 * 28
    assert old.sample_codec.decoded_values(old) == 32 * 32  # in blocks of 8x8
    with pytest.raises(CodecError, match="version = 5 must be 6 or 7"):
        replace(spec, version=5)


@pytest.mark.parametrize("name", GOLDEN_SECTIONS)
def test_coded_sections_of_version_6_are_those_of_the_versions_before(name: str) -> None:
    payload = golden(name, 6)
    sections = {section: digest(part) for section, part in payload.sections.items() if part}
    assert sections == GOLDEN_SECTIONS[name]


@pytest.mark.parametrize(
    ("name", "axis", "exponents", "mixed"),
    [
        ("photographs", ChannelAxis.FIRST, 1, False),
        ("faint", ChannelAxis.FIRST, 1, False),
        ("weak band", ChannelAxis.FIRST, 3, False),
        ("bands", ChannelAxis.FIRST, 13, True),
        ("grey", ChannelAxis.NONE, 1, False),
        ("channels last", ChannelAxis.LAST, 1, False),
        ("channels", ChannelAxis.FIRST, 3, False),
        ("signal", ChannelAxis.NONE, 1, False),
    ],
)
def test_golden_plans_are_of_every_kind(
    name: str, axis: ChannelAxis, exponents: int, mixed: bool
) -> None:
    payload = golden(name)
    plan = Plan.read(Reader(payload.sections["values"]), payload.spec)
    assert plan.axis == axis
    assert (len(plan.stretch.exponents), bool(plan.stretch.mix)) == (exponents, mixed)
    assert any(plan.stretch.exponents)
    assert any(plan.stretch.centres) == (name in ("faint", "weak band", "channels"))


@pytest.mark.parametrize("name", SPECS)
def test_golden_contexts_are_of_every_kind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = []
    scores = Surroundings.scores

    def spy(self: Surroundings, *args: Any) -> NDArray[np.uint8]:
        scored.append(scores(self, *args))
        return scored[-1]

    monkeypatch.setattr(Surroundings, "scores", spy)
    with compiled(False):
        golden(name)
    assert bool(scored) == (name in (*SCORED, "blocks", "faint"))
    bins = [each.ravel() for each in scored]
    assert name not in SCORED or len(np.unique(np.concatenate(bins))) > 20
    scored.clear()
    with compiled(False):
        golden(name, 6)
    assert not scored


def test_golden_sections_are_of_every_kind() -> None:
    assert set(golden("labels").sections) == {"targets", "vocabulary", "values"}
    assert golden("labels").sections["vocabulary"] == np.array([0, 1], "<f4").tobytes()
    assert set(golden("columns").sections) == {"targets", "values"}


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
    with pytest.raises(PayloadError, match=f"version is {VERSION + 1}.*reads versions 6 and 7"):
        SamplePayload.from_bytes(bytes(data))


@pytest.mark.parametrize("data", [b"", b"Q", b"QD", b"PNG\r\n\x1a\n", b"\0" * 100])
def test_what_is_no_payload_at_all(data: bytes) -> None:
    with pytest.raises(PayloadError):
        SamplePayload.from_bytes(data)


def test_a_repeated_or_unknown_section_is_refused() -> None:
    head = MAGIC + bytes([VERSION]) + SPECS["photographs"].to_bytes() + varint(1)
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
    payload = SamplePayload(spec, 0, {}, (2**62, 2**64 - 1, 5))
    again = SamplePayload.from_bytes(payload.to_bytes())
    assert again.key == (payload.key if travels else (0, 0, 0))
    extra = len(payload.to_bytes()) - len(SamplePayload(spec, 0, {}).to_bytes())
    assert extra == (9 + 10 + 1 - 3 if travels else 0)


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
        (SampleSpec((1,)), 1, DecodeLimits(values=3)),  # a single float
        (SampleSpec((3,), "int32", 0, 9, classes=2), 1, DecodeLimits(values=11)),
        # with the channels where they need most padding
        (SampleSpec((9, 2), classes=2, codec=CodecOptions(block=8)), 1, DecodeLimits(values=31)),
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
        (SampleSpec((1,)), DecodeLimits(values=4)),
        (SampleSpec((3,), "int32", 0, 9, classes=2), DecodeLimits(values=12)),
        (SampleSpec((9, 2), classes=2, codec=CodecOptions(block=8)), DecodeLimits(values=32)),
    ],
)
def test_at_the_limits(spec: SampleSpec, limits: DecodeLimits) -> None:
    assert SamplePayload.from_bytes(declared(spec, 1), limits).count == 1


# What the CRC cannot catch


BEGIN_WITH_A_HEAD = ("table", "photographs", "bands", "columns", "labels")


@pytest.mark.parametrize(
    "name",
    ["image", "series", "table", "lossless", "photographs", "bands", "columns", "tokens", "labels"],
)
def test_missing_sections_are_zeros_or_an_error(name: str) -> None:
    payload = golden(name)
    for section in payload.sections:
        rest = {k: v for k, v in payload.sections.items() if k != section}
        cut = replace(payload, sections=rest)
        if section == "values" and name in BEGIN_WITH_A_HEAD:
            with pytest.raises(PayloadError, match="truncated"):
                decode_samples(cut)
        elif name == "labels" and section == "vocabulary":  # numbers, read as the bytes of floats
            with pytest.raises(PayloadError, match="ends early"):
                decode_samples(cut)
        else:
            assert decode_samples(cut).samples.shape == (payload.count, *payload.spec.shape)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (b"", "truncated width"),
        (b"\x05", "truncated lowest"),
        (b"\x40\x00", "64 bits"),
        (b"\x05" + varint(1 << 40), f"lowest symbol {1 << 39}; legal"),
        (b"\x05" + b"\x80" * 12, "longer than 10 bytes"),
        (b"\x05" + b"\xff" * 12, "more than 64 bits"),
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


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255, 16384, 2**32, 2**63 - 1, 2**64 - 1])
def test_varint(value: int) -> None:
    assert Reader(varint(value)).varint("value") == value
    assert len(varint(value)) == max(1, -(-value.bit_length() // 7))


@pytest.mark.parametrize("value", [2**64, 2**69, 2**70, 2**200])
def test_a_varint_of_more_than_64_bits_is_refused(value: int) -> None:
    with pytest.raises(PayloadError, match="client: number"):
        Reader(varint(value)).varint("client")
    payload = replace(golden("dithered"), key=(1, value, 0)).to_bytes()
    with pytest.raises(PayloadError, match="client: number"):
        SamplePayload.from_bytes(payload)


@pytest.mark.parametrize(
    ("value", "folded"), [(0, 0), (-1, 1), (1, 2), (-2, 3), (-(2**40), 2**41 - 1), (2**40, 2**41)]
)
def test_zigzag(value: int, folded: int) -> None:
    assert zigzag(value) == varint(folded)
    assert Reader(zigzag(value)).zigzag("value") == value


if __name__ == "__main__":
    for golden_name in SPECS:
        print(f'    "{golden_name}": "{digest(golden(golden_name).to_bytes())}",')
