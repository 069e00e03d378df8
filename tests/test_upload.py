"""Upload of every image by a standard codec: bytes that decode to what plain files hold."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from images import digits, fields, photographs
from numpy.typing import NDArray
from PIL import Image

from codec import CodecError, CodecOptions, PayloadError
from sim.upload import CODECS, LOSSLESS, PACKINGS, Upload, decode, rate_distortion, upload
from sim.upload.containers import (
    restore_avif,
    restore_jpeg,
    restore_png,
    restore_webp,
    strip_avif,
    strip_jpeg,
    strip_png,
    strip_webp,
)
from sim.upload.rates import psnr

Array = NDArray[Any]
LOSSY = [name for name in CODECS if CODECS[name].lossy]
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 17, 40), (1, 1, 2)]
# As a user would save the images, with the same options of quality.
AV1 = {"loopfilter-control": "0", "enable-cdef": "0", "enable-qm": "0", "deltaq-mode": "0"}
PLAIN = {
    "jpeg": ("JPEG", {"quality": 40, "subsampling": 2}),
    "jpeg-flat": ("JPEG", {"qtables": [[40] * 64] * 2, "subsampling": 2}),
    "webp": ("WEBP", {"quality": 40, "method": 6}),
    "avif": ("AVIF", {"quality": 40, "speed": 6, "advanced": AV1}),
    "png": ("PNG", {}),
    "webp-lossless": ("WEBP", {"lossless": True}),
}


def quality_of(codec: str, quality: int = 40) -> int:
    return quality if CODECS[codec].lossy else LOSSLESS


def labels(count: int) -> Array:
    return np.random.default_rng(3).integers(0, 7, count)


def needs_package(codec: str) -> None:
    if codec == "jpeg-xl":
        pytest.importorskip("imagecodecs")


def sent(images: Array, codec: str, packing: str, quality: int = 40) -> Upload:
    needs_package(codec)
    return upload(images, labels(len(images)), codec, quality_of(codec, quality), packing)


def save(image: Array, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def load(file: bytes, channels: int) -> Array:
    picture = np.asarray(Image.open(io.BytesIO(file)).convert("L" if channels == 1 else "RGB"))
    return picture[None] if channels == 1 else picture.transpose(2, 0, 1)


# What comes back


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("codec", CODECS)
def test_the_bytes_alone_give_images_and_labels(
    codec: str, packing: str, shape: tuple[int, int, int]
) -> None:
    images = fields(21, shape)
    result = sent(images, codec, packing)
    order = np.argsort(labels(21), kind="stable")
    assert result.images.dtype == np.uint8
    assert result.images.shape == images.shape
    assert result.labels.dtype == np.int64
    assert np.array_equal(result.labels, labels(21)[order])
    again, labels_again = decode(result.data)
    assert np.array_equal(again, result.images)
    assert np.array_equal(labels_again, result.labels)
    if CODECS[codec].lossy:
        assert psnr(images[order], result.images) > 18
    else:
        assert np.array_equal(images[order], result.images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("codec", PLAIN)
def test_files_hold_the_pixels_of_plain_files(codec: str, channels: int) -> None:
    images = digits(20)[0] if channels == 1 else photographs(20)[0]
    result = sent(images, codec, "files")
    kind, options = PLAIN[codec]
    ordered = images[np.argsort(labels(20), kind="stable")]
    plain = [load(save(image, kind, **options), channels) for image in ordered]
    assert np.array_equal(result.images, np.stack(plain))


@pytest.mark.parametrize("codec", PLAIN)
def test_a_sheet_holds_the_pixels_of_the_plain_picture(codec: str) -> None:
    images = photographs(20)[0]
    result = sent(images, codec, "sheet")
    kind, options = PLAIN[codec]
    columns = 2 if codec == "avif" else 1
    ordered = images[np.argsort(labels(20), kind="stable")].reshape(-1, columns, 3, 32, 32)
    sheet = ordered.transpose(2, 0, 3, 1, 4).reshape(3, -1, 32 * columns)
    cells = load(save(sheet, kind, **options), 3).reshape(3, -1, 32, columns, 32)
    plain = cells.transpose(1, 3, 0, 2, 4).reshape(-1, 3, 32, 32)
    assert np.array_equal(result.images, plain)


@pytest.mark.parametrize("packing", PACKINGS)
def test_jpeg_xl_knows_lossless(packing: str) -> None:
    needs_package("jpeg-xl")
    images = photographs(20)[0]
    result = upload(images, np.zeros(20, int), "jpeg-xl", LOSSLESS, packing)
    assert np.array_equal(result.images, images)


def test_several_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, "avif", replace(CODECS["avif"], max_side=96))
    images = fields(21)  # sheets of 6, the last of 3, of which one row is half empty
    result = sent(images, "avif", "sheet", 90)
    assert psnr(images[np.argsort(labels(21), kind="stable")], result.images) > 27


# Bytes


@pytest.mark.parametrize(
    ("strip", "restore", "codec"),
    [
        (strip_jpeg, restore_jpeg, "jpeg"),
        (strip_webp, restore_webp, "webp"),
        (strip_webp, restore_webp, "webp-lossless"),
        (strip_png, restore_png, "png"),
        (strip_avif, restore_avif, "avif"),
    ],
)
@pytest.mark.parametrize("side", [8, 32, 128])  # sizes of one and of more bytes
def test_a_stripped_file_is_restored(strip: Any, restore: Any, codec: str, side: int) -> None:
    kind, options = PLAIN[codec]
    for image in fields(4, (3, side, side)):
        file = save(image, kind, **options)
        assert restore(strip(file)) == file
        assert len(strip(file)) < len(file)


# Bytes of a file that are the same in all files of 32x32 pixels, or derivable.
OVERHEAD = {"jpeg": 600, "webp": 27, "avif": 280, "png": 50, "webp-lossless": 24}


@pytest.mark.parametrize("codec", OVERHEAD)
def test_what_files_share_is_sent_once(codec: str) -> None:
    images = photographs(100)[0]
    result = sent(images, codec, "files", 20)
    kind, options = PLAIN[codec]
    options = options | {"quality": 20} if CODECS[codec].lossy else options
    whole = sum(len(save(image, kind, **options)) for image in images) / 100
    kept = len(result.data) / 100
    assert result.whole_file_bytes / 100 == pytest.approx(whole, rel=0.1)
    assert result.whole_file_bytes / 100 - kept > OVERHEAD[codec] - 4  # lengths, the shared part


@pytest.mark.parametrize("codec", LOSSY)
def test_a_sheet_is_smaller(codec: str) -> None:
    images = photographs(100)[0]
    sheet, files = (sent(images, codec, packing, 20) for packing in PACKINGS)
    assert len(sheet.data) < len(files.data)


def test_labels_cost_one_count_per_class() -> None:
    images = fields(300)
    few, many = (
        len(upload(images, np.arange(300) % classes, "png", LOSSLESS).data) for classes in (1, 100)
    )
    assert abs(many - few) < 0.06 * few  # the order of the images changes, too
    empty = np.zeros((1, 1, 1, 1), np.uint8)
    one, hundred = (len(upload(empty, np.array([k]), "png", LOSSLESS).data) for k in (0, 99))
    assert hundred - one == 99


@pytest.mark.parametrize("codec", LOSSY)
def test_bytes_and_error_follow_the_quality(codec: str) -> None:
    images = photographs(60)[0]
    ordered = images[np.argsort(labels(60), kind="stable")]
    results = [sent(images, codec, "sheet", quality) for quality in (5, 20, 50, 80, 100)]
    sizes = [len(result.data) for result in results]
    errors = [psnr(ordered, result.images) for result in results]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors)


def test_rates_beside_ours() -> None:
    images = photographs(100)[0]
    settings = [
        ("jpeg", 20), ("jpeg", 20, "files"), ("png", LOSSLESS),
        CodecOptions(step=0.3), CodecOptions(step=0.3, block=32),
    ]  # fmt: skip
    rows = rate_distortion(images, labels(100), settings)
    assert [(row.codec, row.setting) for row in rows] == [
        ("jpeg", "20"),
        ("jpeg", "20 files"),
        ("png", "-1"),
        ("ours", "step 0.3"),
        ("ours", "block 32, step 0.3"),
    ]
    assert rows[0].bytes_per_sample == len(sent(images, "jpeg", "sheet", 20).data) / 100
    assert rows[0].bytes_per_sample < rows[1].bytes_per_sample < rows[2].bytes_per_sample
    assert np.isposinf(rows[2].psnr)
    assert all(20 < row.psnr < 40 and row.seconds_per_sample > 0 for row in rows[3:])


# What is refused


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"codec": "gif"}, "codec is 'gif'; legal: jpeg, jpeg-flat, webp, avif"),
        ({"quality": 0}, "quality is 0; legal for jpeg: 1 to 100"),
        ({"quality": LOSSLESS}, "quality is -1; legal for jpeg: 1 to 100"),
        ({"codec": "png"}, r"quality is 40; legal for png: -1 \(lossless\)"),
        ({"codec": "jpeg-xl", "quality": 101}, r"101; legal for jpeg-xl: 1 to 100 or -1"),
        ({"packing": "zip"}, "packing is 'zip'; legal: sheet, files"),
        ({"images": np.zeros((2, 2, 8, 8), np.uint8)}, r"uint8 \(2, 2, 8, 8\); legal: uint8 \(N"),
        ({"images": np.zeros((2, 3, 8, 8), np.float32)}, "images are float32"),
        ({"images": np.zeros((0, 3, 8, 8), np.uint8)}, "not empty"),
        (
            {"images": np.zeros((2, 1, 16384, 1), np.uint8), "codec": "webp"},
            "webp takes 1 to 16383",
        ),
        ({"labels": np.array([0, -1])}, r"labels lie in \[-1, 0\]; legal range: \[0, 65535\]"),
        ({"labels": np.array([0.0, 1.0])}, "labels are float64"),
        ({"labels": np.array([0])}, r"labels are int64 \(1,\); legal: integers \(2,\)"),
    ],
)
def test_errors_name_value_and_range(changed: dict[str, Any], message: str) -> None:
    legal = {"images": fields(2), "labels": np.array([0, 1]), "codec": "jpeg", "quality": 40}
    with pytest.raises(CodecError, match=message):
        upload(**legal | changed)


@pytest.mark.parametrize("codec", CODECS)
def test_truncated_bytes_are_refused(codec: str) -> None:
    data = sent(fields(5), codec, "files").data
    for end in (0, 1, 5, len(data) // 2, len(data) - 1):
        with pytest.raises(PayloadError):
            decode(data[:end])
    with pytest.raises(PayloadError, match="after the end"):
        decode(data + b"x")
