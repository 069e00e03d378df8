"""Altered payloads: each is refused with the typed error or decodes to what it declares.

Mutations whose CRC-32 is made to fit again stand for a hostile sender, and reach the decoder.
"""

import struct
import time
import tracemalloc
import zlib
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

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
from codec.coding.cursor import varint
from codec.samples.payload import SECTIONS
from codec.samples.spec import DTYPES

LIMITS = DecodeLimits(samples=1000, values=1 << 13)
MUTATIONS, ROUNDS = 10_000, 10  # in so many tests
SLOWEST = 2.0  # seconds of CPU
# Memory of a decoder: the counts of the column coder, and a few arrays of the declared size.
FIXED_BYTES, BYTES_PER_VALUE = 64 << 20, 120

SPECS = [
    SampleSpec((3, 8, 8), classes=5),
    SampleSpec((1, 9, 7), classes=1000, codec=CodecOptions(block=4, quantizer="dithered")),
    SampleSpec((2, 40), "float32", -1, 1, 0, 2, CodecOptions(quantizer="stochastic", step=0.02)),
    SampleSpec((10,), "float32", -2, 3, 3, codec=CodecOptions(step=1e-4)),
    SampleSpec((3, 5, 5), classes=2, codec=CodecOptions("columns", step=1 / 3)),
    SampleSpec((4,), "float32", -1, 1, 2, codec=CodecOptions(quantizer="dithered", step=0.1)),
    SampleSpec((3, 4, 4), classes=2, codec=CodecOptions("lossless")),
    SampleSpec((6,), "float32", -1, 1, 0, 1, CodecOptions("lossless")),
    SampleSpec((3, 4, 4), classes=2, codec=CodecOptions("png")),
    SampleSpec((1, 8, 8), classes=2, codec=CodecOptions("jpeg", quality=20)),
    # plans of every kind, steps relative to the range, and other targets
    SampleSpec((5, 6, 6), "float32", -1, 1, 3),
    SampleSpec((9, 7), classes=3),
    SampleSpec((7, 6, 3), classes=3, codec=CodecOptions(quantizer="stochastic")),
    SampleSpec((40,), "float32", -1, 1, 3, codec=CodecOptions("dct")),
    SampleSpec((3, 8, 8), classes=5, codec=CodecOptions(relative_to="range")),
    SampleSpec((4,), "float32", -1, 1, codec=CodecOptions(relative_to="range")),
    SampleSpec((6,), "int32", -5, 30_000, 0, 3),
]


def original(spec: SampleSpec, count: int) -> bytes:
    rng = np.random.default_rng(count)
    samples = rng.uniform(spec.low, spec.high, (count, *spec.shape)).astype(spec.dtype)
    if spec.dtype == "uint8" and spec.shape[0] != 3:  # faint
        samples = 20 + samples // 50
    targets: Any = rng.integers(0, max(spec.classes, 1), count)
    if not spec.classes:
        targets = rng.normal(size=(count, *spec.target_shape)).astype(np.float32)
        if spec.target_size == 3:  # of few different values
            targets = np.round(targets)
    if len(spec.shape) > 1 and spec.dtype == "float32":  # of channels of different scale
        samples *= 2.0 ** -np.arange(spec.shape[0]).reshape(-1, *[1] * (len(spec.shape) - 1))
    inclusion = rng.integers(1, 257, count)
    return encode_samples(samples, targets, spec, key=(3, 1, 4), inclusion=inclusion).to_bytes()


ORIGINALS = [original(spec, count) for spec in SPECS for count in (0, 1, 9)]


def resealed(data: bytes) -> bytes:
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` after one to three random edits, half of them near the head."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        reach = len(out) if rng.random() < 0.5 else min(len(out), 56)
        at = int(rng.integers(0, max(reach, 1)))
        length = int(rng.integers(1, 9))
        match rng.integers(0, 7):
            case 0 if out:
                out[min(at, len(out) - 1)] ^= 1 << int(rng.integers(0, 8))
            case 1 if out:
                out[min(at, len(out) - 1)] = int(rng.choice([0, 1, 2, 127, 128, 255]))
            case 2:
                out[at : at + length] = rng.bytes(length)
            case 3:
                out[at:at] = rng.bytes(length)
            case 4:
                del out[at : at + length]
            case 5:
                del out[at:]
            case 6:
                other = ORIGINALS[rng.integers(0, len(ORIGINALS))]
                out[at:] = other[int(rng.integers(0, len(other))) :]
    return bytes(out)


def hostile(rng: np.random.Generator) -> bytes:
    """A well-formed header of extreme but legal values, before sections of noise."""

    def side() -> int:
        return int(2 ** rng.uniform(0, 13)) if rng.random() < 0.2 else int(rng.integers(1, 9))

    def pick(*choices: Any) -> Any:
        return choices[rng.integers(0, len(choices))]

    def noise() -> bytes:
        size = int(2 ** rng.uniform(0, 9))
        chosen: bytes = pick(b"", bytes(size), b"\xff" * size, rng.bytes(size), b"\x80" * size)
        return chosen

    while True:
        codec = CodecOptions(
            pick("auto", "auto", "dct", "columns", "lossless"), pick(0, 0, 2, 8, 256),
            pick("nearest", "stochastic", "dithered"), pick(1e-5, 0.25, 100.0),
            pick("spread", "spread", "range"), pick(0.0, 2.0, 1000.0), pick(0.01, 1.0, 1000.0),
        )  # fmt: skip
        shape = tuple(side() for _ in range(rng.integers(1, 5)))
        classes, target_size = pick((2, 0), (1000, 0), (1 << 24, 0), (0, 0), (0, 1), (0, 300))
        dtype, (low, high) = pick(*DTYPES), pick((0.0, 255.0), (-1.0, 1.0), (-1e30, 1e30))
        try:
            spec = SampleSpec(shape, dtype, low, high, classes, target_size, codec)
        except CodecError:
            continue  # a codec that does not fit the shape
        bounds = pick(bytes([8, 0]), bytes([24]) + b"\xff\xff\xff\x03", b"\x17\x05", b"\xff\xff")
        sections = {name: noise() for name in SECTIONS}
        if spec.codec.codec == "columns":
            sections["values"] = bounds + sections["values"]
        if rng.random() < 0.5:
            sections["vocabulary"] = np.arange(rng.integers(1, 65), dtype="<f4").tobytes()
        if spec.codec.codec == "dct" and rng.random() < 0.8:
            sections["values"] = plan(rng, spec) + sections["values"]
        count = int(2 ** rng.uniform(0, 10))
        return SamplePayload(spec, count, sections, (2**62, 1, 0)).to_bytes()


def plan(rng: np.random.Generator, spec: SampleSpec) -> bytes:
    """What stands ahead of the coefficients: legal, or nearly so."""
    axis, channels = int(rng.integers(0, 4)), spec.shape[0]
    extreme = rng.choice([0, 1, 30, 60, 61, 63], channels)
    exponents = np.where(rng.random(channels) < 0.9, 0, extreme).astype(np.uint8)
    centres = [varint(int(2 ** rng.uniform(0, 33))) for _ in range(np.count_nonzero(exponents))]
    mix = np.round(127 * np.eye(channels)[rng.permutation(channels)]).astype(np.int8)
    if rng.random() < 0.2:
        mix = np.zeros_like(mix) if rng.random() < 0.5 else rng.integers(-128, 128, mix.shape, "i1")
    first = bytes([64 * axis + int(exponents[0])])
    rest = exponents.tobytes()[1:] if channels != 3 else b""
    return first + rest + b"".join(centres) + mix.tobytes() * (4 <= channels <= 32)


def with_mutated_section(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` with one section altered, in a frame that fits it."""
    payload = SamplePayload.from_bytes(data)
    if not payload.sections:
        return data
    name = str(rng.choice(list(payload.sections)))
    sections = {**payload.sections, name: mutated(payload.sections[name], rng)}
    return replace(payload, sections=sections).to_bytes()


def attack(number: int, rng: np.random.Generator) -> bytes:
    source = ORIGINALS[rng.integers(0, len(ORIGINALS))]
    match number % 4:
        case 0:
            return mutated(source, rng)
        case 1:
            return resealed(mutated(source, rng))
        case 2:
            return with_mutated_section(source, rng)
        case _:
            return hostile(rng)


def outcome(data: bytes) -> str:
    """Read and decode `data`: the stage that refused it, or "decoded"."""
    stage = "read"
    try:
        payload = SamplePayload.from_bytes(data, LIMITS)
        stage = "decode"
        decoded = decode_samples(payload)
    except PayloadError:
        return stage
    spec, count = payload.spec, payload.count
    assert decoded.samples.shape == (count, *spec.shape)
    assert decoded.samples.dtype == np.float32
    assert decoded.targets.shape == (count, *spec.target_shape)
    assert decoded.weights.shape == (count,)
    for numbers in (decoded.samples, decoded.targets, decoded.weights):
        assert np.isfinite(numbers).all()
    if spec.classes and count:
        assert 0 <= decoded.targets.min() <= decoded.targets.max() < spec.classes
    return "decoded"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "part",
    [pytest.param(part, marks=pytest.mark.slow if part > 2 else ()) for part in range(ROUNDS)],
)
def test_an_altered_payload_is_refused_or_decodes_to_what_it_declares(part: int) -> None:
    rng = np.random.default_rng(part)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for number in range(MUTATIONS // ROUNDS):
        data = attack(number, rng)
        started = time.process_time()
        try:
            outcomes[outcome(data)] += 1
        except Exception as error:
            raise AssertionError(f"payload {data.hex()}") from error
        slowest = max(slowest, time.process_time() - started)
    assert slowest < SLOWEST
    # Every layer was reached: header and CRC, entropy decoder, and results that look sound.
    assert min(outcomes["read"], outcomes["decode"], outcomes["decoded"]) > 20, outcomes


def peak_bytes(data: bytes) -> int:
    tracemalloc.start()
    try:
        outcome(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_of_altered_payloads_is_bounded() -> None:
    rng = np.random.default_rng(99)
    peaks = [peak_bytes(attack(number, rng)) for number in range(500)]
    assert max(peaks) <= FIXED_BYTES + BYTES_PER_VALUE * LIMITS.values


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 32, 32), {}),
        ((1 << 14, 1, 1), {}),
        ((1 << 13, 2), {}),
        ((1, 128, 128), {"block": 128}),
        ((3, 32, 32), {"codec": "columns"}),
        ((1 << 18,), {}),
        ((1 << 18,), {"codec": "lossless"}),
        ((1, 128, 128), {"codec": "png"}),
        ((1,), {}),
        ((32, 32, 32), {}),
        ((64, 64), {}),
        ((1 << 18,), {"codec": "dct"}),
        ((1 << 18,), {"codec": "columns", "relative_to": "range"}),
    ],
)
@pytest.mark.parametrize("filling", [b"", b"\x5a" * 5000])
def test_a_few_bytes_at_the_limit_cost_no_more_than_the_limit(
    shape: tuple[int, ...], options: dict[str, Any], filling: bytes
) -> None:
    values = 1 << 18
    spec = SampleSpec(shape, classes=2, codec=CodecOptions(**options))
    count = values // int(np.prod(shape))
    bounds = b"\x02\0" if spec.codec.codec == "columns" else b""
    if spec.codec.codec == "dct":
        axis = 1 if len(shape) == 1 else 0
        channels = 1 if len(shape) == 1 else shape[0]
        mixed = len(shape) == 3 and 4 <= channels <= 32
        plain = channels if len(shape) == 2 or channels not in (1, 3) else 1
        bounds = bytes([64 * axis]) + bytes(plain - 1)
        bounds += (127 * np.eye(channels, dtype=np.int8)).tobytes() if mixed else b""
    bomb = SamplePayload(spec, count, {"values": bounds + filling}).to_bytes()
    limits = DecodeLimits(samples=values, values=values)
    tracemalloc.start()
    started = time.process_time()
    try:
        decode_samples(SamplePayload.from_bytes(bomb, limits))
    except PayloadError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= FIXED_BYTES + BYTES_PER_VALUE * values
    assert time.process_time() - started < 5 * SLOWEST  # tracing makes it several times slower


def test_what_is_beyond_the_limit_is_refused_before_it_is_allocated() -> None:
    for spec in SPECS:
        bomb = SamplePayload(spec, 1 << 60, {"values": b"\x12" * 50}).to_bytes()
        assert peak_bytes(bomb) < 100_000
        with pytest.raises(PayloadError, match="limits"):
            SamplePayload.from_bytes(bomb)
