"""Samples as files of standard image codecs: what comes back, bytes, and hostile bytes."""

import io
import sys
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from images import digits, fields, photographs
from numpy.typing import NDArray
from PIL import Image

from codec import (
    CodecError,
    CodecOptions,
    PayloadError,
    SamplePayload,
    SampleSpec,
    decode_samples,
    encode_samples,
)
from codec.coding.cursor import Reader
from codec.samples.image_file import IMAGE_FILES, ImageFile, pack, unpack

Array = NDArray[Any]
CODECS = {codec.name: codec for codec in IMAGE_FILES}
LOSSY = [name for name in CODECS if not CODECS[name].lossless]
KEY = (0, 0, 0)
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 17, 40), (1, 1, 2)]
# As a user would save the images, at quality 40.
AV1 = {"loopfilter-control": "0", "enable-cdef": "0", "enable-qm": "0", "deltaq-mode": "0"}
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 40, "subsampling": 2}),
    "jpeg-flat": ("JPEG", {"qtables": [[40] * 64] * 2, "subsampling": 2}),
    "webp": ("WEBP", {"quality": 40, "method": 6}),
    "avif": ("AVIF", {"quality": 40, "speed": 3, "advanced": AV1}),
    "png": ("PNG", {}),
    "webp-lossless": ("WEBP", {"lossless": True}),
}


def spec_of(images: Array, name: str, quality: int = 40) -> SampleSpec:
    return SampleSpec(images.shape[1:], classes=10, codec=CodecOptions(name, quality=quality))


def named(name: str) -> ImageFile:
    if name.startswith("jpeg-xl"):
        pytest.importorskip("imagecodecs")
    return CODECS[name]


def encoded(codec: ImageFile, images: Array, quality: int = 40) -> bytes:
    return codec.encode(images, spec_of(images, codec.name, quality), KEY)


def decoded(codec: ImageFile, data: bytes, images: Array) -> Array:
    return codec.decode(data, len(images), spec_of(images, codec.name), KEY)[0]


def psnr(images: Array, other: Array) -> float:
    error = float(np.square(images.astype(np.float32) - other).mean(dtype=np.float64))
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def save(picture: Array, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def load(file: bytes, channels: int) -> Array:
    return np.asarray(Image.open(io.BytesIO(file)).convert("L" if channels == 1 else "RGB"))


# The table


def test_names_and_bytes_on_the_wire_stay() -> None:
    assert {codec.name: codec.identifier for codec in IMAGE_FILES} == {
        "jpeg": 16,
        "jpeg-flat": 17,
        "webp": 18,
        "webp-lossless": 19,
        "avif": 24,
        "png": 21,
        "jpeg-xl": 22,
        "jpeg-xl-lossless": 23,
    }


@pytest.mark.parametrize("name", CODECS)
def test_lossless_codecs_alone_are_unbiased(name: str) -> None:
    lossless = name == "png" or name.endswith("lossless")
    assert CODECS[name].is_unbiased(CodecOptions(name)) == lossless


def test_decoded_values() -> None:
    spec = SampleSpec((3, 17, 40), classes=10, codec=CodecOptions("avif"))
    assert CODECS["avif"].decoded_values(spec) == 3 * 17 * 40


# What comes back


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CODECS)
def test_images_come_back_in_order(name: str, shape: tuple[int, int, int]) -> None:
    codec = named(name)
    for count in (1, 21):
        images = fields(count, shape)
        spec = spec_of(images, name)
        codec.check(spec)
        samples, entropy = codec.decode(encoded(codec, images), count, spec, KEY)
        assert entropy is None
        assert samples.dtype == np.float32 and samples.shape == images.shape
        if codec.lossless:
            assert np.array_equal(samples, images)
        else:
            assert samples.min() >= 0 and samples.max() <= 255
            assert np.array_equal(samples, np.round(samples))
            assert psnr(images, samples) > 18


@pytest.mark.parametrize("name", CODECS)
def test_reconstruct_is_what_decode_gives(name: str) -> None:
    codec, images = named(name), photographs(30)[0]
    spec = spec_of(images, name)
    samples = codec.reconstruct(images, spec, KEY)
    assert samples.dtype == np.float32
    assert np.array_equal(samples, decoded(codec, encoded(codec, images), images))
    assert codec.reconstruct(images[:0], spec, KEY).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PLAIN)
def test_a_sheet_holds_the_pixels_of_the_plain_picture(name: str, channels: int) -> None:
    images = digits(20)[0] if channels == 1 else photographs(20)[0]
    height, width = images.shape[2:]
    columns = 2 if name == "avif" else 1
    cells = images.reshape(-1, columns, channels, height, width)
    picture = cells.transpose(0, 3, 1, 4, 2).reshape(-1, width * columns, channels)
    kind, options = PLAIN[name]
    plain = load(save(picture.squeeze(), kind, **options), channels)
    sheet = plain.reshape(-1, height, columns, width, channels)
    expected = sheet.transpose(0, 2, 4, 1, 3).reshape(-1, channels, height, width)
    assert np.array_equal(decoded(named(name), encoded(named(name), images), images), expected)


@pytest.mark.parametrize("name", ["png", "avif"])
def test_several_sheets(name: str) -> None:
    codec = replace(named(name), max_side=96)
    images = fields(21)  # sheets of 3 in a column, or of 6, the last half empty
    samples = decoded(codec, encoded(codec, images, 90), images)
    assert codec.lossless == np.array_equal(samples, images)
    assert psnr(images, samples) > 27


def test_jpeg_of_noise() -> None:
    # Pillow's buffer does not hold the optimized codings of such a picture.
    images = 255 * np.random.default_rng(0).integers(0, 2, (700, 3, 32, 32), np.uint8)
    for name in ("jpeg", "jpeg-flat"):
        assert decoded(CODECS[name], encoded(CODECS[name], images, 94), images).std() > 50


# Bytes


@pytest.mark.parametrize("name", PLAIN)
def test_a_payload_of_one_sheet_is_its_file(name: str) -> None:
    images = photographs(100)[0]
    data = encoded(named(name), images)
    kind, options = PLAIN[name]
    columns = 2 if name == "avif" else 1
    cells = images.reshape(-1, columns, 3, 32, 32).transpose(0, 3, 1, 4, 2)
    whole = len(save(cells.reshape(-1, 32 * columns, 3), kind, **options))
    assert len(data) <= 1.02 * whole + 5


@pytest.mark.parametrize("name", [name for name in PLAIN if name in LOSSY])
def test_a_sheet_is_smaller_than_files(name: str) -> None:
    images = photographs(100)[0]
    kind, options = PLAIN[name]
    files = [save(image.transpose(1, 2, 0), kind, **options) for image in images]
    assert len(encoded(named(name), images)) < len(pack(files))


@pytest.mark.parametrize("name", LOSSY)
def test_bytes_and_error_follow_the_quality(name: str) -> None:
    codec, images = named(name), photographs(60)[0]
    payloads = [encoded(codec, images, quality) for quality in (5, 20, 50, 80, 100)]
    errors = [psnr(images, decoded(codec, data, images)) for data in payloads]
    assert list(map(len, payloads)) == sorted(map(len, payloads))
    assert errors == sorted(errors)


@pytest.mark.parametrize("name", [name for name in CODECS if name not in LOSSY])
def test_lossless_codecs_know_no_quality(name: str) -> None:
    images = fields(5)
    assert encoded(named(name), images, 1) == encoded(named(name), images, 100)


def test_avif_payloads_of_earlier_versions_stay_readable() -> None:
    images, labels = fields(5), np.arange(5)
    spec = SampleSpec(
        images.shape[1:], classes=10, codec=CodecOptions("avif", quality=40, avif_speed=6)
    )
    now = encode_samples(images, labels, spec)
    data = now.to_bytes()[:-4]
    assert data[3:6] == bytes([24, 40, 6])
    before = data[:3] + bytes([20, 40]) + data[6:]  # as they were written
    before += zlib.crc32(before).to_bytes(4, "little")
    payload = SamplePayload.from_bytes(before)
    assert payload == now
    assert np.array_equal(decode_samples(payload).samples, decode_samples(now).samples)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_avif_takes_fewer_bytes_the_slower_it_is(shape: tuple[int, int, int]) -> None:
    images = fields(12, shape)
    options = [CodecOptions("avif", quality=40, avif_speed=speed) for speed in (8, 3, 0)]
    specs = [SampleSpec(shape, classes=10, codec=each) for each in options]
    sizes = [len(CODECS["avif"].encode(images, spec, KEY)) for spec in specs]
    errors = [
        float(np.square(CODECS["avif"].reconstruct(images, spec, KEY) - images).mean())
        for spec in specs
    ]
    assert len(set(sizes)) == 3
    # Squared error falls by half for a fourth or so of the bytes.
    costs = [size * error**0.5 for size, error in zip(sizes, errors, strict=True)]
    assert costs == sorted(costs, reverse=True), (sizes, errors)


# Files as one byte string


@pytest.mark.parametrize(
    "files",
    [
        [b""],
        [b"a"],
        [b"abc"] * 3,
        [b"abcd", b"abef", b"ab"],
        [b"", b"abc"],
        [bytes(5000), bytes(5001)],
    ],
)
def test_files_come_back(files: list[bytes]) -> None:
    data = pack(files)
    reader = Reader(data)
    assert list(unpack(reader, len(files))) == files
    reader.finish()
    for end in range(len(data)):
        with pytest.raises(PayloadError):
            list(unpack(Reader(data[:end]), len(files)))


def test_a_common_beginning_is_sent_once() -> None:
    head, rests = bytes(range(200)), [b"\x01" * 300, b"\x02" * 20, b"\x03"]
    assert len(pack([head + rest for rest in rests])) <= 200 + 321 + 2 * 4
    assert len(pack([bytes(100_000)])) <= 100_000 + 5


# In a payload


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CODECS)
def test_a_payload_gives_images_and_labels(name: str, shape: tuple[int, int, int]) -> None:
    codec, images = named(name), fields(21, shape)
    labels = np.random.default_rng(3).integers(0, 7, 21)
    spec = SampleSpec(shape, classes=7, codec=CodecOptions(name, quality=40))
    data = encode_samples(images, labels, spec).to_bytes()
    result = decode_samples(SamplePayload.from_bytes(data))
    assert np.array_equal(result.targets, labels)
    assert result.samples.shape == images.shape
    if codec.lossless:
        assert np.array_equal(result.samples, images)
    else:
        assert psnr(images, result.samples) > 18


def test_bytes_and_error_beside_ours() -> None:
    images = photographs(100)[0]
    labels = np.random.default_rng(3).integers(0, 7, 100)
    sizes, errors = [], []
    for options in (
        CodecOptions("jpeg", quality=20), CodecOptions("png"),
        CodecOptions(step=0.3), CodecOptions(step=0.3, block=32),
    ):  # fmt: skip
        spec = SampleSpec((3, 32, 32), classes=7, codec=options)
        data = encode_samples(images, labels, spec).to_bytes()
        sizes.append(len(data))
        errors.append(
            psnr(images, np.round(decode_samples(SamplePayload.from_bytes(data)).samples))
        )
    assert sizes[0] < sizes[1]
    assert np.isposinf(errors[1])
    assert all(20 < error < 40 for error in errors[2:])


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "gif"}, "codec = 'gif' must be one of auto, .* jpeg, jpeg-flat, webp"),
        ({"codec": "jpeg", "quality": 0}, r"quality = 0 must be in \[1, 100\]"),
        ({"codec": "jpeg", "quality": -1}, r"quality = -1 must be in \[1, 100\]"),
        ({"codec": "jpeg-xl", "quality": 101}, r"quality = 101 must be in \[1, 100\]"),
    ],
)
def test_illegal_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        CodecOptions(**options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"dtype": "float32"},
            r"codec = 'webp' codes uint8 images of 1 or 3 channels, not float32 \(3, 32, 32\); "
            "use codec = 'dct'",
        ),
        ({"shape": (2, 8, 8)}, r"1 or 3 channels, not uint8 \(2, 8, 8\)"),
        ({"shape": (3, 8)}, r"not uint8 \(3, 8\)"),
        ({"shape": (3,)}, r"not uint8 \(3,\)"),
        ({"low": -1.0, "high": 1.0}, r"codes values in \[0, 255\], not in \[-1, 1\]; use codec"),
        ({"high": 254.0}, r"not in \[0, 254\]"),
        ({"shape": (1, 16384, 1)}, r"up to 16383 pixels a side, not \(1, 16384, 1\); use codec"),
        ({"shape": (1, 1, 16384)}, "up to 16383 pixels a side"),
    ],
)
def test_errors_name_value_and_range(changed: dict[str, Any], message: str) -> None:
    spec = SampleSpec((3, 32, 32), classes=10, codec=CodecOptions("webp"))
    with pytest.raises(CodecError, match=message):
        replace(spec, **changed)
    other = replace(spec, codec=CodecOptions("columns"))
    with pytest.raises(CodecError, match=message):
        CODECS["webp"].check(replace(other, **changed))


@pytest.mark.parametrize("name", CODECS)
def test_the_largest_side_is_legal(name: str) -> None:
    codec = named(name)
    image = np.zeros((1, 1, 2, codec.max_side), np.uint8)
    for images in (image, image.swapaxes(2, 3)):
        codec.check(spec_of(images, name))
        assert decoded(codec, encoded(codec, images), images).max() < 3


@pytest.mark.parametrize("name", ["jpeg-xl", "jpeg-xl-lossless"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    images = fields(2)
    with pytest.raises(CodecError, match="pip install imagecodecs"):
        encoded(CODECS[name], images)
    with pytest.raises(CodecError, match="pip install imagecodecs") as error:
        decoded(CODECS[name], pack([b"\xff\x0a"]), images)
    assert not isinstance(error.value, PayloadError)


def test_a_pillow_without_a_codec_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.SAVE, "AVIF")
    with pytest.raises(CodecError, match="built without AVIF"):
        encoded(CODECS["avif"], fields(2))


# Hostile bytes


@pytest.mark.parametrize("name", CODECS)
def test_truncated_bytes_are_refused(name: str) -> None:
    codec, images = named(name), fields(5)
    data = encoded(codec, images)
    for end in (0, 1, 5, len(data) // 2, len(data) - 1):
        with pytest.raises(PayloadError):
            decoded(codec, data[:end], images)
    with pytest.raises(PayloadError, match="after the end"):
        decoded(codec, data + b"x", images)


@pytest.mark.parametrize("name", CODECS)
def test_a_truncated_file_is_refused(name: str) -> None:
    codec, images = named(name), fields(5)
    (file,) = unpack(Reader(encoded(codec, images)), 1)
    for end in (0, 1, 20, len(file) // 2):
        with pytest.raises(PayloadError, match=f"{end} bytes are no {name} picture"):
            decoded(codec, pack([file[:end]]), images)


@pytest.mark.parametrize("name", CODECS)
def test_altered_bytes_decode_to_the_shape_or_are_refused(name: str) -> None:
    codec, images, rng = named(name), fields(5, (3, 16, 16)), np.random.default_rng(1)
    data = encoded(codec, images)
    refused = 0
    for _ in range(300):
        altered = bytearray(data)
        for at in rng.integers(0, min(len(data), 400), rng.integers(1, 4)):
            altered[at : at + int(rng.integers(0, 3))] = rng.bytes(int(rng.integers(1, 3)))
        try:
            samples = decoded(codec, bytes(altered), images)
        except PayloadError:
            refused += 1
        else:
            assert samples.shape == images.shape and np.isfinite(samples).all()
    assert refused > 50


@pytest.mark.parametrize("name", CODECS)
def test_a_picture_of_another_size_or_colours_is_refused(name: str) -> None:
    codec, images = named(name), fields(4)
    for other in (fields(4, (3, 32, 31)), fields(4, (3, 31, 32)), fields(30), digits(4)[0]):
        with pytest.raises(PayloadError, match=f"{name} picture|declared"):
            decoded(codec, encoded(codec, other), images)
    with pytest.raises(PayloadError):
        decoded(codec, encoded(codec, images), digits(4)[0])


@pytest.mark.parametrize(
    ("mode", "kind", "name"),
    [("RGBA", "PNG", "png"), ("P", "PNG", "png"), ("I;16", "PNG", "png"), ("1", "PNG", "png"),
     ("RGBA", "WEBP", "webp"), ("RGBA", "AVIF", "avif"), ("CMYK", "JPEG", "jpeg")],
)  # fmt: skip
def test_a_picture_of_another_mode_is_refused(mode: str, kind: str, name: str) -> None:
    layout = CODECS[name].sheet_width // 32 or 1
    picture = Image.new(mode, (32 * layout, 32))
    if mode == "RGBA":
        picture.putpixel((0, 0), (1, 2, 3, 4))
    file = io.BytesIO()
    picture.save(file, kind)
    for images in (fields(1), fields(1, (1, 32, 32))):
        with pytest.raises(PayloadError, match=f"a picture is {mode} .*; declared"):
            decoded(CODECS[name], pack([file.getvalue()]), images)


@pytest.mark.parametrize("name", PLAIN)
def test_a_file_of_another_kind_is_refused(name: str) -> None:
    images = fields(4)
    other = "png" if name != "png" else "jpeg"
    with pytest.raises(PayloadError, match=f"no {name} picture"):
        decoded(CODECS[name], encoded(CODECS[other], images), images)


def claiming(name: str, file: bytes, side: int) -> bytes:
    """`file` with both sides of the picture in its head replaced."""
    out = bytearray(file)
    if name == "png":
        out[16:24] = side.to_bytes(4, "big") * 2
        out[29:33] = zlib.crc32(out[12:29]).to_bytes(4, "big")
    elif name.startswith("jpeg"):
        at = max(file.find(b"\xff\xc0"), file.find(b"\xff\xc2")) + 5
        out[at : at + 4] = side.to_bytes(2, "big") * 2
    elif name == "webp":
        out[26:30] = side.to_bytes(2, "little") * 2
    elif name == "webp-lossless":
        sides = (side - 1) << 14 | (side - 1) | (int.from_bytes(file[21:25], "little") >> 28 << 28)
        out[21:25] = sides.to_bytes(4, "little")
    else:
        at = file.index(b"ispe") + 8
        out[at : at + 8] = side.to_bytes(4, "big") * 2
    return bytes(out)


@pytest.mark.parametrize("name", PLAIN)
def test_a_bomb_is_refused_before_its_pixels_are_decoded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = fields(4)
    (file,) = unpack(Reader(encoded(CODECS[name], images)), 1)
    bomb = claiming(name, file, 9000)
    assert Image.open(io.BytesIO(bomb)).size == (9000, 9000)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("pixels were decoded"))
    with pytest.raises(PayloadError, match=r"a picture is RGB \(9000, 9000\); declared: RGB"):
        decoded(CODECS[name], pack([bomb]), images)
    with pytest.raises(PayloadError):  # refused by Pillow itself
        decoded(CODECS[name], pack([claiming(name, file, 16383)]), images)


def test_a_jpeg_xl_bomb_is_refused() -> None:
    codec, images = named("jpeg-xl"), fields(4)
    bomb = encoded(codec, np.zeros((1, 3, 2000, 2000), np.uint8))
    with pytest.raises(PayloadError, match=r"invalid out.shape=.*\(2000, 2000, 3\)"):
        decoded(codec, bomb, images)


def test_files_are_made_one_at_a_time() -> None:
    # A short payload may declare many files with a long common beginning.
    files = unpack(Reader(pack([bytes(1000) + bytes([last]) for last in range(200)])), 1 << 40)
    assert [next(files)[-1] for _ in range(200)] == list(range(200))
    with pytest.raises(PayloadError, match="truncated"):
        next(files)
