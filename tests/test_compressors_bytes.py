"""Bytes that are not a compressed gradient: a typed error, and never more memory than allowed."""

import time
import tracemalloc
import zlib

import numpy as np
import pytest

from codec import PayloadError, generator
from codec.coding.floats import decode_floats, encode_floats
from codec.coding.symbols import (
    LARGE,
    decode_integers,
    decode_symbols,
    encode_integers,
    encode_symbols,
)
from codec.gradients import COMPRESSORS, GradientCompressor, make_compressor
from codec.gradients.frame import VERSION, Frame, read_frame
from sim.compare.theoretical_size import entropy_bits

SHAPES: list[tuple[int, ...]] = [(30, 20), (5,), (), (0, 3)]
ALL = [
    *[make_compressor(name) for name in COMPRESSORS],
    make_compressor("top-k", density=0.2, bits=16),
    make_compressor("eden", bits=3),
    make_compressor("qsgd", bucket=0),
    make_compressor("top-k", density=0.2, bits=2),
    make_compressor("eden", bits=0.4),
]


def payload(compressor: GradientCompressor) -> bytes:
    random = np.random.default_rng(3)
    gradient = [np.asarray(random.standard_normal(s), np.float32) for s in SHAPES]
    return compressor.compress(gradient, None, generator(1))[0]


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Truncate, overwrite, insert, or join two halves; half of the time with a new checksum."""
    body = bytearray(data)
    at = int(random.integers(len(body)))
    kind = random.integers(4)
    if kind == 0:
        del body[at:]
    elif kind == 1:
        for place in random.integers(len(body), size=random.integers(1, 5)):
            body[place] = random.integers(256)
    elif kind == 2:
        body[at:at] = random.bytes(int(random.integers(1, 9)))
    else:
        del body[at : at + int(random.integers(1, 9))]
    if random.random() < 0.5 and len(body) > 4:
        body[-4:] = zlib.crc32(body[:-4]).to_bytes(4, "little")
    return bytes(body)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_mutated_bytes_raise_or_keep_their_shapes(compressor: GradientCompressor) -> None:
    data, random = payload(compressor), np.random.default_rng(11)
    refused = 0
    for _ in range(300):
        altered = mutated(data, random)
        try:
            decoded = compressor.decompress(altered, SHAPES, limit=5000)
        except PayloadError:
            refused += 1
            continue
        assert [a.shape for a in decoded] == SHAPES
        assert all(np.isfinite(a).all() for a in decoded)
    assert refused >= 150


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_mutated_bytes_without_expected_shapes(compressor: GradientCompressor) -> None:
    data, random = payload(compressor), np.random.default_rng(12)
    for _ in range(100):
        try:
            decoded = compressor.decompress(mutated(data, random), limit=5000)
        except PayloadError:
            continue
        assert sum(a.size for a in decoded) <= 5000


@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_every_truncation_is_refused(compressor: GradientCompressor) -> None:
    data = payload(compressor)
    for stop in range(0, len(data), 7):
        with pytest.raises(PayloadError):
            compressor.decompress(data[:stop])
    with pytest.raises(PayloadError):
        compressor.decompress(data + b"\0")


@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_declared_size_beyond_the_limit_allocates_nothing(compressor: GradientCompressor) -> None:
    parameters, sections = read_counts(compressor)
    for shapes in [((2**26, 2**26),), ((0, 2**62),), ((2**20,),) * 50, ((1001,),)]:
        forged = Frame(compressor.identifier, shapes, (1,) * parameters, (b"",) * sections)
        data = forged.to_bytes()
        tracemalloc.start()
        try:
            with pytest.raises(PayloadError, match="accepted"):
                compressor.decompress(data, limit=1000)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_work_of_a_forged_payload_is_bounded_by_the_limit(compressor: GradientCompressor) -> None:
    parameters, sections = read_counts(compressor)
    limit = 200_000
    forged = Frame(compressor.identifier, ((limit,),), (1,) * parameters, (b"\1" * 9,) * sections)
    data = forged.to_bytes()
    tracemalloc.start()
    start = time.perf_counter()
    try:
        compressor.decompress(data, limit=limit)
    except PayloadError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 60 * limit
    assert time.perf_counter() - start < 2


def read_counts(compressor: GradientCompressor) -> tuple[int, int]:
    data = payload(compressor)
    for parameters in range(4):
        for sections in range(4):
            try:
                read_frame(data, compressor.identifier, parameters=parameters, sections=sections)
            except PayloadError:
                continue
            return parameters, sections
    raise AssertionError("no frame")


def test_a_frame_byte_by_byte() -> None:
    # Numbers of one, two and nine bytes; not a byte may move without a new version.
    frame = Frame(200, ((), (300, 2), (0, 1 << 20)), (0, 127, 128, 2**62), (b"", b"section"))
    body = bytes.fromhex(
        "51444743 03 c8"  # magic, version, compressor
        "03 00 02 ac0202 02 00808040"  # tensors
        "04 00 7f 8001 808080808080808040"  # parameters
        "02 00 07 73656374696f6e"  # sections
    )
    assert frame.to_bytes() == body + zlib.crc32(body).to_bytes(4, "little")
    assert read_frame(frame.to_bytes(), 200, parameters=4, sections=2, limit=1 << 21) == frame


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (b"", "truncated number of tensors"),
        (b"\x80", "truncated number of tensors"),
        (b"\x01\x02\x05", "truncated shape"),
        (b"\xff" * 12, "number of tensors: number of more than 64 bits"),
        (b"\x01\x21" + b"\x01" * 33, "33 dimensions, at most 32"),
        (b"\x00\x01", "1 parameters, expected 2"),
        (b"\x00\x02\x05", "truncated parameters"),
        (b"\x00\x02\x05\x06\x03", "3 sections, expected 1"),
        (b"\x00\x02\x05\x06\x01\x04abc", "sections of 4 bytes, 3 are there"),
        (b"\x00\x02\x05\x06\x01\x02abc", "sections of 2 bytes, 3 are there"),
    ],
)
def test_fields_that_no_encoder_writes(fields: bytes, message: str) -> None:
    body = b"QDGC" + bytes([VERSION, 9]) + fields
    with pytest.raises(PayloadError, match=message):
        read_frame(body + zlib.crc32(body).to_bytes(4, "little"), 9, parameters=2, sections=1)


def test_another_compressor_or_shape_is_refused() -> None:
    data = payload(make_compressor("sign"))
    with pytest.raises(PayloadError, match="compressor 5"):
        make_compressor("fp32").decompress(data)
    with pytest.raises(PayloadError, match="shapes"):
        make_compressor("sign").decompress(data, [(600,), (5,), (), (0, 3)])


def test_another_version_is_refused() -> None:
    data = bytearray(payload(make_compressor("fp32")))
    data[4] = VERSION + 1
    with pytest.raises(PayloadError, match=f"version {VERSION + 1}, only {VERSION}"):
        make_compressor("fp32").decompress(bytes(data))


@pytest.mark.parametrize("largest", [0, 1, 15, 16, 17, 255, 65536, 2**27 - 1])
def test_integers_round_trip(largest: int) -> None:
    random = np.random.default_rng(largest)
    values = np.minimum(random.geometric(4 / (largest + 4), 3000) - 1, largest)
    values[:2] = 0, largest
    data = encode_integers(values, largest)
    assert np.array_equal(decode_integers(data, len(values), largest), values)


@pytest.mark.parametrize("alphabet", [1, 2, 3, 256])
@pytest.mark.parametrize("count", [0, 1, 5, 40_000])
def test_symbols_round_trip_near_their_entropy(alphabet: int, count: int) -> None:
    random = np.random.default_rng(5)
    symbols = np.minimum(random.geometric(0.4, count) - 1, alphabet - 1)
    data = encode_symbols(symbols, alphabet)
    assert np.array_equal(decode_symbols(data, count, alphabet), symbols)
    frequency = np.bincount(symbols) / max(count, 1)
    frequency = frequency[frequency > 0]
    entropy = -count * (frequency * np.log2(frequency)).sum() / 8
    assert len(data) <= 1.005 * entropy + 16


@pytest.mark.parametrize(("alphabet", "overhead"), [(2, 1.003), (4, 1.003), (17, 1.005)])
def test_many_symbols_round_trip_near_their_entropy(alphabet: int, overhead: float) -> None:
    count = LARGE + 3  # no whole number of groups
    symbols = np.random.default_rng(5).binomial(alphabet - 1, 0.1, count)
    data = encode_symbols(symbols, alphabet)
    assert np.array_equal(decode_symbols(data, count, alphabet), symbols)
    assert len(data) <= overhead * entropy_bits(symbols) / 8 + 16


@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 0.87), (np.float16, 0.9)])
def test_many_floats_round_trip_below_their_width(
    dtype: type[np.float32] | type[np.float16], most: float
) -> None:
    values = np.random.default_rng(6).standard_normal(LARGE + 1).astype(dtype)
    data = encode_floats(values)
    assert np.array_equal(decode_floats(data, len(values), dtype), values)
    assert len(data) < most * values.nbytes


@pytest.mark.parametrize("change", ["cut", "flip", "longer", "empty"])
def test_many_floats_of_malformed_bytes_are_refused(change: str) -> None:
    values = np.random.default_rng(6).standard_normal(LARGE).astype(np.float32)
    data = bytearray(encode_floats(values))
    head = len(data) - 3 * LARGE
    if change == "cut":
        del data[head // 2 : head]
    elif change == "flip":
        data[10:200] = bytes(190)
    elif change == "longer":
        data[head:head] = b"more"
    else:
        del data[:head]
    with pytest.raises(PayloadError, match="deflated section"):
        decode_floats(bytes(data), LARGE, np.float32)
