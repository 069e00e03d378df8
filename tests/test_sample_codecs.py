"""What every sample codec promises, and that a new one needs no more than a line."""

import zlib
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from typing import Any

import numpy as np
import pytest
from images import fields as random_fields
from numpy.typing import NDArray

from codec import (
    SAMPLE_CODECS,
    CodecError,
    CodecOptions,
    DecodeLimits,
    PayloadError,
    SampleCodec,
    SamplePayload,
    SampleSpec,
    decode_samples,
    encode_samples,
    reconstruct_samples,
)
from codec.options import OneOf
from codec.samples.registry import codec_of_identifier

Array = NDArray[Any]
COUNT = 5
COPIES, SIGMAS = 400, 5.5
KEY = (3, 1, 4)

# What stands for a codec in the bytes: none ever changes or becomes another's.
IDENTIFIERS = {
    "dct": 1,
    "columns": 2,
    "lossless": 3,
    "jpeg": 16,
    "jpeg-flat": 17,
    "webp": 18,
    "webp-lossless": 19,
    "avif": 24,
    "png": 21,
    "jpeg-xl": 22,
    "jpeg-xl-lossless": 23,
}

SPECS: dict[str, dict[str, Any]] = {
    "colour": {"shape": (3, 16, 16)},
    "grey": {"shape": (1, 9, 7)},
    "pixel": {"shape": (1, 1, 1)},
    "narrow": {"shape": (3, 8, 8), "low": 10, "high": 200},
    "floats": {"shape": (3, 8, 8), "dtype": "float32", "low": -1, "high": 1},
    "series": {"shape": (2, 40), "dtype": "float32", "low": -1, "high": 1},
    "table": {"shape": (13,), "dtype": "float32", "low": -2, "high": 3},
    "volume": {"shape": (2, 3, 4, 5)},
}

# A value that is not the default, for every option.
OTHER: dict[str, Any] = {
    "block": 4, "quantizer": "dithered", "step": 0.125, "relative_to": "range", "tilt": 1.5,
    "chroma": 4.0, "quality": 7, "avif_speed": 8,
}  # fmt: skip


def variants(name: str) -> Iterator[CodecOptions]:
    """Options of a codec: the defaults, and each that it uses once changed."""
    uses = SAMPLE_CODECS[name].uses
    yield CodecOptions(name)
    for option in uses:
        yield replace(CodecOptions(name), **{option: OTHER[option]})
    if "quantizer" in uses:
        yield CodecOptions(name, quantizer="stochastic")


def made(options: CodecOptions, kind: str) -> SampleSpec | None:
    """Spec of a kind of samples; None where the codec refuses them."""
    try:
        return SampleSpec(**SPECS[kind], classes=10, codec=options)
    except CodecError:
        return None


def changes(options: CodecOptions) -> str:
    changed = {name: value for name, value in OTHER.items() if getattr(options, name) == value}
    stochastic = ["stochastic"] * (options.quantizer == "stochastic")
    return "-".join([options.codec, *changed, *stochastic])


def cases(*kinds: str) -> list[Any]:
    """Options and specs that go together, as parameters of a test."""
    return [
        pytest.param(spec, id=f"{changes(options)}-{kind}")
        for name in SAMPLE_CODECS
        for options in variants(name)
        for kind in kinds or SPECS
        if (spec := made(options, kind)) is not None
    ]


ALL = cases()
SOME = cases("colour", "series", "table")


def is_default(spec: SampleSpec) -> bool:
    """Whether a codec has its default options."""
    return spec.codec == CodecOptions(spec.codec.codec)


def codec_of(spec: SampleSpec) -> SampleCodec:
    if spec.codec.codec.startswith("jpeg-xl"):
        pytest.importorskip("imagecodecs")
    return spec.sample_codec


def samples_of(spec: SampleSpec, count: int = COUNT) -> Array:
    """Smooth samples, with both ends of the range among them."""
    size = int(np.prod(spec.shape))
    lines = random_fields(count, (1, 16, size)).reshape(count, -1)[:, :size]
    values = spec.low + lines / 255 * (spec.high - spec.low)
    values[0, 0], values[-1, -1] = spec.low, spec.high
    samples: Array = np.clip(values, spec.low, spec.high).astype(spec.dtype)
    return samples.reshape(count, *spec.shape)


def labels(count: int) -> Array:
    return np.arange(count) % 10


# The registry


def test_identifiers_stay_and_are_unique() -> None:
    assert {name: codec.identifier for name, codec in SAMPLE_CODECS.items()} == IDENTIFIERS
    assert len(set(IDENTIFIERS.values())) == len(IDENTIFIERS)
    assert all(1 <= identifier <= 255 for identifier in IDENTIFIERS.values())  # 0 is "auto"
    for name, codec in SAMPLE_CODECS.items():
        assert codec.name == name
        assert codec_of_identifier(codec.identifier) is codec
        assert CodecOptions(name).to_bytes()[0] == codec.identifier


@pytest.mark.parametrize("identifier", [0, 4, 255])
def test_an_unknown_identifier_is_refused(identifier: int) -> None:
    with pytest.raises(PayloadError, match=f"unknown codec {identifier}; known: dct, columns"):
        codec_of_identifier(identifier)


def test_every_codec_codes_something() -> None:
    for name in SAMPLE_CODECS:
        assert made(CodecOptions(name), "colour") is not None


# Options


@pytest.mark.parametrize("name", SAMPLE_CODECS)
def test_options_that_are_used_survive_the_bytes(name: str) -> None:
    uses = SAMPLE_CODECS[name].uses
    assert len(set(uses)) == len(uses)
    everything = CodecOptions(name, **OTHER)
    again = CodecOptions.from_bytes(everything.to_bytes())
    for declared in fields(CodecOptions):
        if declared.name == "codec":
            assert again.codec == name
            continue
        assert declared.default is not MISSING and OTHER[declared.name] != declared.default
        default = getattr(CodecOptions(), declared.name)
        used = declared.name in uses
        assert getattr(again, declared.name) == (OTHER[declared.name] if used else default)
    for options in variants(name):
        assert CodecOptions.from_bytes(options.to_bytes()) == options


@pytest.mark.parametrize("name", SAMPLE_CODECS)
def test_options_that_are_not_used_change_nothing(name: str) -> None:
    plain = made(CodecOptions(name), "colour")
    assert plain is not None
    codec, samples = codec_of(plain), samples_of(plain)
    unused = {option: value for option, value in OTHER.items() if option not in codec.uses}
    other = replace(plain, codec=CodecOptions(name, **unused))
    assert codec.encode(samples, other, KEY) == codec.encode(samples, plain, KEY)
    assert codec.is_unbiased(other.codec) == codec.is_unbiased(plain.codec)
    assert codec.needs_key(other.codec) == codec.needs_key(plain.codec)


@pytest.mark.parametrize("name", SAMPLE_CODECS)
def test_options_that_are_used_change_the_bytes(name: str) -> None:
    plain = made(CodecOptions(name, step=0.3), "colour")
    assert plain is not None
    codec, samples = codec_of(plain), samples_of(plain)
    for option in codec.uses:
        other = replace(plain, codec=replace(plain.codec, **{option: OTHER[option]}))
        assert codec.encode(samples, other, KEY) != codec.encode(samples, plain, KEY), option


# What comes back


@pytest.mark.parametrize("spec", ALL)
def test_samples_come_back_in_shape_type_and_range(spec: SampleSpec) -> None:
    codec, samples = codec_of(spec), samples_of(spec)
    for count in (1, COUNT):
        data = codec.encode(samples[:count], spec, KEY)
        assert isinstance(data, bytes)
        decoded, entropy = codec.decode(data, count, spec, KEY)
        assert decoded.dtype == np.float32 and decoded.shape == (count, *spec.shape)
        assert np.isfinite(decoded).all()
        if codec.lossless or not codec.is_unbiased(spec.codec):
            assert decoded.min() >= spec.low and decoded.max() <= spec.high
        assert entropy is None or 0 <= entropy < np.inf


@pytest.mark.parametrize("spec", ALL)
def test_reconstruct_is_what_decode_gives(spec: SampleSpec) -> None:
    codec, samples = codec_of(spec), samples_of(spec)
    kept = samples.copy()
    decoded, _ = codec.decode(codec.encode(samples, spec, KEY), COUNT, spec, KEY)
    assert np.array_equal(samples, kept)  # left alone
    known = codec.reconstruct(samples, spec, KEY)
    assert known.dtype == np.float32
    np.testing.assert_array_equal(known, decoded)
    np.testing.assert_array_equal(reconstruct_samples(samples, spec, KEY), decoded)


@pytest.mark.parametrize("spec", ALL)
def test_the_whole_path(spec: SampleSpec) -> None:
    codec, samples = codec_of(spec), samples_of(spec)
    data = encode_samples(samples, labels(COUNT), spec, key=KEY).to_bytes()
    payload = SamplePayload.from_bytes(data)
    assert payload.spec == spec
    decoded = decode_samples(payload)
    np.testing.assert_array_equal(decoded.samples, codec.reconstruct(samples, spec, KEY))
    np.testing.assert_array_equal(decoded.targets, labels(COUNT))
    empty = encode_samples(samples[:0], labels(0), spec).to_bytes()
    assert decode_samples(SamplePayload.from_bytes(empty)).samples.shape == (0, *spec.shape)


@pytest.mark.parametrize("spec", ALL)
def test_lossless_codecs_are_exact_and_they_alone(spec: SampleSpec) -> None:
    codec, samples = codec_of(spec), samples_of(spec)
    decoded, _ = codec.decode(codec.encode(samples, spec, KEY), COUNT, spec, KEY)
    same = np.array_equal(decoded, samples.astype(np.float32))
    assert same if codec.lossless else samples[0].size == 1 or not same


@pytest.mark.parametrize("spec", SOME)
def test_unbiased_codecs_have_the_mean_of_the_samples(spec: SampleSpec) -> None:
    codec = codec_of(spec)
    if not codec.is_unbiased(spec.codec):
        assert spec.codec.quantizer == "nearest"
        return
    if spec.codec.codec == "columns":  # of copies, whose columns are constant, it is all but exact
        spec = replace(spec, codec=replace(spec.codec, relative_to="range"))
    sample = samples_of(spec, 2)[1:]
    copies = np.repeat(sample, COPIES, axis=0)
    decoded = codec.reconstruct(copies, spec, KEY).astype(np.float64)
    error = decoded.mean(axis=0) - sample[0]
    deviation = decoded.std(axis=0)
    # A value next to a level is rounded the other way too seldom for its own deviation to tell.
    spread = np.maximum(deviation, deviation.mean()) / np.sqrt(COPIES)
    assert (np.abs(error) <= SIGMAS * spread + 1e-5 * (spec.high - spec.low)).all()
    assert codec.lossless or deviation.mean() > 1e-2 * (spec.high - spec.low)


@pytest.mark.parametrize("spec", SOME)
def test_the_decoder_needs_the_key_where_it_says_so(spec: SampleSpec) -> None:
    codec, samples = codec_of(spec), samples_of(spec)
    data = codec.encode(samples, spec, KEY)
    right, _ = codec.decode(data, COUNT, spec, KEY)
    wrong, _ = codec.decode(data, COUNT, spec, (0, 0, 1))
    assert np.array_equal(right, wrong) != codec.needs_key(spec.codec)


@pytest.mark.parametrize("spec", ALL)
def test_decoded_values_bound_the_limits(spec: SampleSpec) -> None:
    codec = codec_of(spec)
    values = codec.decoded_values(spec)
    assert values >= int(np.prod(spec.shape))
    data = encode_samples(samples_of(spec), labels(COUNT), spec, key=KEY).to_bytes()
    limits = DecodeLimits(values=COUNT * values)
    assert SamplePayload.from_bytes(data, limits).count == COUNT
    with pytest.raises(PayloadError, match="limits"):
        SamplePayload.from_bytes(data, DecodeLimits(values=COUNT * values - 1))


# Hostile bytes


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` cut, altered or longer; or noise."""
    at, size = int(rng.integers(0, len(data) + 1)), int(rng.integers(1, 9))
    kind = rng.integers(0, 5)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + rng.bytes(size) + data[at + size :]
    if kind == 2:
        return data[:at] + rng.bytes(size) + data[at:]
    if kind == 3:
        return data[:at] + data[at + size :]
    return rng.bytes(int(rng.integers(0, 200)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(
            *case.values, id=case.id, marks=() if is_default(*case.values) else pytest.mark.slow
        )
        for case in SOME
    ],
)
def test_malformed_bytes_raise_payload_error_alone(spec: SampleSpec) -> None:
    codec, rng = codec_of(spec), np.random.default_rng(0)
    payload = encode_samples(samples_of(spec), labels(COUNT), spec, key=KEY)
    for _ in range(80):
        values = damaged(payload.sections["values"], rng)
        altered = replace(payload, sections={**payload.sections, "values": values})
        try:
            decoded = decode_samples(altered)
        except PayloadError:
            continue
        assert decoded.samples.shape == (COUNT, *spec.shape)
        assert np.isfinite(decoded.samples).all()
        if codec.lossless:
            assert decoded.samples.min() >= spec.low and decoded.samples.max() <= spec.high


# What cannot be coded


@pytest.mark.parametrize("name", ["columns", "lossless", "auto"])
@pytest.mark.parametrize("kind", SPECS)
def test_codecs_that_take_all_samples(name: str, kind: str) -> None:
    assert made(CodecOptions(name), kind) is not None


@pytest.mark.parametrize(
    ("shape", "relative_to"), [((8,), "range"), ((2, 3, 4, 5), "range"), ((2, 3, 4, 5), "spread")]
)
def test_shapes_that_have_no_cosine_transform(shape: tuple[int, ...], relative_to: str) -> None:
    message = r"codec = 'dct' codes samples \(C, H, W\), .*, not .*; use codec = 'columns'"
    with pytest.raises(CodecError, match=message):
        SampleSpec(shape, classes=2, codec=CodecOptions("dct", relative_to=relative_to))


def test_a_series_without_channels_has_a_cosine_transform() -> None:
    assert SampleSpec((8,), classes=2, codec=CodecOptions("dct")).sample_codec.name == "dct"


@pytest.mark.parametrize(
    ("shape", "block"), [((17, 256, 256), 256), ((4097, 300), 256), ((1 << 15, 64, 8), 0)]
)
def test_blocks_that_are_too_large(shape: tuple[int, ...], block: int) -> None:
    with pytest.raises(CodecError, match=f"legal: up to {1 << 20}. Use a smaller block"):
        SampleSpec(shape, classes=2, codec=CodecOptions("dct", block=block))
    SampleSpec(shape, classes=2, codec=CodecOptions("dct", block=2))
    SampleSpec(shape, classes=2, codec=CodecOptions("columns"))


IMAGE_FILES = [name for name in SAMPLE_CODECS if IDENTIFIERS[name] >= 16]


@pytest.mark.parametrize("name", IMAGE_FILES)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"shape": (3, 8, 8), "dtype": "float32"},
            "codes uint8 images of 1 or 3 channels, not float32",
        ),
        ({"shape": (2, 8, 8)}, "codes uint8 images of 1 or 3 channels, not uint8 .2, 8, 8."),
        ({"shape": (3, 8)}, "codes uint8 images"),
        ({"shape": (8,)}, "codes uint8 images"),
        ({"shape": (3, 8, 8), "high": 254}, r"codes values in \[0, 255\], not in \[0, 254\]"),
        ({"shape": (1, 65501, 1)}, "pixels a side, not .1, 65501, 1."),
    ],
)
def test_samples_that_no_image_file_holds(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError, match=f"codec = '{name}' .*{message}"):
        SampleSpec(**values, classes=2, codec=CodecOptions(name))


@pytest.mark.parametrize("name", ["dct", "columns"])
def test_symbols_that_the_entropy_coder_does_not_take(name: str) -> None:
    options = CodecOptions(name, step=1e-5, block=256, relative_to="range")
    spec = SampleSpec((1, 256, 256), classes=10, codec=options)
    bright = np.full((1, 1, 256, 256), 255, np.uint8)
    if name == "columns":  # of its symbols, 100,000 at most, none is too large
        assert codec_of(spec).encode(bright, spec, KEY)
        return
    with pytest.raises(CodecError, match="Use a larger step"):
        codec_of(spec).encode(bright, spec, KEY)


# A new codec


class Halves:
    """Pixels over two, deflated."""

    name = "halves"
    identifier = 200
    uses = ("quality",)
    lossless = False

    def is_unbiased(self, options: CodecOptions) -> bool:
        return False

    def needs_key(self, options: CodecOptions) -> bool:
        return True

    def check(self, spec: SampleSpec) -> None:
        if spec.dtype != "uint8":
            raise CodecError(f"codec = 'halves' codes uint8, not {spec.dtype}")

    def decoded_values(self, spec: SampleSpec) -> int:
        return int(np.prod(spec.shape))

    def encode(
        self, samples: Array, spec: SampleSpec, key: tuple[int, ...], like: Array | None = None
    ) -> bytes:
        return zlib.compress((samples // 2).tobytes(), min(spec.codec.quality, 9))

    def decode(
        self, data: bytes, count: int, spec: SampleSpec, key: tuple[int, ...]
    ) -> tuple[NDArray[np.float32], float | None]:
        try:
            halves = np.frombuffer(zlib.decompress(data), np.uint8)
            return 2 * halves.astype(np.float32).reshape(count, *spec.shape), None
        except (zlib.error, ValueError) as error:
            raise PayloadError(f"no halves: {error}") from error

    def reconstruct(
        self, samples: Array, spec: SampleSpec, key: tuple[int, ...], like: Array | None = None
    ) -> NDArray[np.float32]:
        return 2 * (samples // 2).astype(np.float32)


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> SampleCodec:
    """A codec in the registry, as a line there would put it."""
    codec: SampleCodec = Halves()
    monkeypatch.setitem(SAMPLE_CODECS, codec.name, codec)
    declared = CodecOptions.__dataclass_fields__["codec"]
    names = OneOf((*declared.metadata["legal"], codec.name))  # read when the options are imported
    monkeypatch.setattr(declared, "metadata", {**declared.metadata, "legal": names})
    return codec


def test_a_codec_in_the_registry_is_all_that_it_takes(halves: SampleCodec) -> None:
    options = CodecOptions("halves", quality=7)
    assert CodecOptions.from_bytes(options.to_bytes()) == options
    assert options.to_bytes() == bytes([200, 7])
    assert CodecOptions.from_flat(options.to_flat()) == options

    spec = SampleSpec((3, 4, 4), classes=10, codec=options)
    samples = samples_of(spec)
    data = encode_samples(samples, labels(COUNT), spec, key=KEY).to_bytes()
    payload = SamplePayload.from_bytes(data)
    assert (payload.spec, payload.key) == (spec, KEY)
    decoded = decode_samples(payload)
    np.testing.assert_array_equal(decoded.samples, samples // 2 * 2.0)
    np.testing.assert_array_equal(reconstruct_samples(samples, spec, KEY), decoded.samples)
    assert set(decoded.entropy_bits) == {"targets", "weights"}
    assert payload.section_bytes()["values"] == len(halves.encode(samples, spec, KEY))


def test_errors_of_a_new_codec_are_those_of_the_payload(halves: SampleCodec) -> None:
    with pytest.raises(CodecError, match="codes uint8, not float32"):
        SampleSpec((3, 4, 4), "float32", classes=10, codec=CodecOptions("halves"))
    spec = SampleSpec((3, 4, 4), classes=10, codec=CodecOptions("halves"))
    payload = encode_samples(samples_of(spec), labels(COUNT), spec)
    for section in (b"", b"noise", zlib.compress(b"short")):
        with pytest.raises(PayloadError, match="no halves"):
            decode_samples(replace(payload, sections={**payload.sections, "values": section}))
    with pytest.raises(PayloadError, match="limits"):
        SamplePayload.from_bytes(payload.to_bytes(), DecodeLimits(values=COUNT * 48 - 1))


def test_the_new_codec_is_gone() -> None:
    with pytest.raises(CodecError, match="codec = 'halves' must be one of auto, dct"):
        CodecOptions("halves")
