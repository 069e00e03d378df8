"""Tests of fl_app.image_folder and image_files: folders as people and file systems leave them."""

import logging
import os
import socket
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fl_app import image_files
from fl_app.data import DataError, Images, MissingSplit, describe, load
from fl_app.images import COLOUR_DEPTH_LOST, EMPTY_CLASS, FURTHER_FRAMES, HIDDEN, SYSTEM, Skipped

SIDE = 8


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two classes of three red JPEGs each, in both splits."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            for k in range(3):
                save(Image.new("RGB", (SIDE, SIDE), (80 * k, 0, 0)), tmp_path, f"{name}/{k}.jpg",
                     split)  # fmt: skip
    return tmp_path


@pytest.fixture
def lines() -> Iterator[list[str]]:
    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    found: list[str] = []
    handler, logger = Lines(), logging.getLogger("flwr")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def save(
    image: Image.Image, folder: Path, name: str, split: str = "train", **options: object
) -> Path:
    path = folder / split / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """Return a PNG in colour, which Pillow does not write with 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def train(folder: Path, **options: object) -> Images:
    return load("imagefolder", "train", str(folder), SIDE, **options)  # type: ignore[arg-type]


def noise(*shape: int, dtype: type = np.uint8, high: int = 256) -> NDArray[np.generic]:
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def counts(images: Images) -> dict[str, int]:
    return images.skipped.counts


# One file


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["L", "RGB", "CMYK", "1"]))
def test_ordinary_photographs_are_what_they_always_were(
    tmp_path: Path, width: int, height: int, mode: str
) -> None:
    image = Image.fromarray(noise(height, width, 3)).convert(mode)
    path = tmp_path / "photograph.tif"
    image.save(path)
    with Image.open(path) as opened:
        fitted = ImageOps.fit(opened.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    picture = image_files.read_picture(path, SIDE, "white")
    assert picture.pixels.dtype == np.uint8
    assert np.array_equal(picture.pixels, np.asarray(fitted).transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_telephone_held_upright(
    tmp_path: Path, suffix: str, orientation: int, turns: int
) -> None:
    upright = np.zeros((64, 64, 3), np.uint8)
    upright[:32] = 255  # sky
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.rot90(upright, -turns))
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif)
    pixels = image_files.read_picture(path, 16, "white").pixels
    assert pixels[:, :7].mean() > 240
    assert pixels[:, 9:].mean() < 15


def test_deep_images_keep_units_and_never_overshoot(tmp_path: Path) -> None:
    step = np.full((20, 30), 4095, np.uint16)
    step[:, :15] = 100
    save(Image.fromarray(step), tmp_path, "a/step.png")
    save(Image.fromarray(step), tmp_path, "a/step.tif")
    images = train(tmp_path)
    assert (images.samples.dtype, images.samples.shape) == (np.float32, (2, 1, SIDE, SIDE))
    assert (images.samples.min(), images.samples.max()) == (100, 4095)
    assert images.value_range == (0, 65535)


def test_float_images_have_the_range_of_their_values(tmp_path: Path) -> None:
    pixels = np.linspace(-2, 3, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    save(Image.fromarray(pixels), tmp_path, "a/f.tiff")
    save(Image.fromarray(np.full((SIDE, SIDE), np.nan, np.float32)), tmp_path, "a/nan.tiff")
    images = train(tmp_path)
    assert np.array_equal(images.samples[0, 0], pixels)
    assert images.value_range == (-2, 3)
    assert counts(images) == {"image with NaN or infinite pixels": 1}


def test_constant_float_images_have_a_range_too(tmp_path: Path) -> None:
    save(Image.new("F", (4, 4), 7.0), tmp_path, "a/f.tiff")
    assert train(tmp_path).value_range == (7, 8)


def test_most_files_decide_the_depth(tmp_path: Path) -> None:
    save(Image.fromarray(noise(9, 9, dtype=np.uint16)), tmp_path, "a/deep.png")
    for k in range(2):
        save(Image.fromarray(noise(9, 9)), tmp_path, f"a/{k}.png")
    images = train(tmp_path)
    assert (images.samples.dtype, len(images)) == (np.uint8, 2)
    assert images.skipped.lost == {"16- or 32-bit image among more 8-bit ones": 1}
    assert describe("imagefolder", str(tmp_path), SIDE).shape == (3, SIDE, SIDE)


def test_of_two_depths_the_deeper_wins(tmp_path: Path) -> None:
    save(Image.fromarray(noise(9, 9, dtype=np.uint16)), tmp_path, "a/deep.png")
    save(Image.fromarray(noise(9, 9)), tmp_path, "a/grey.png")
    images = train(tmp_path)
    assert images.samples.shape == (1, 1, SIDE, SIDE)
    kind = describe("imagefolder", str(tmp_path), SIDE)
    assert (kind.shape, kind.dtype) == ((1, SIDE, SIDE), "float32")


def test_transparency_lies_on_the_background(tmp_path: Path) -> None:
    save(Image.new("RGBA", (9, 9), (0, 0, 0, 0)), tmp_path, "a/clear.png")
    save(Image.new("LA", (9, 9), (0, 0)), tmp_path, "a/grey.png")
    gif = Image.new("P", (9, 9))
    gif.putpalette([1, 2, 3])
    save(gif, tmp_path, "a/palette.gif", transparency=0)
    assert train(tmp_path).samples.min() == 255
    assert train(tmp_path, background="#000").samples.max() == 0
    with pytest.raises(DataError, match="background = 'whitish' must be a colour"):
        train(tmp_path, background="whitish")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_an_animated_file_the_first_frame_is_used(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "lime", "blue")]
    save(frames[0], tmp_path, f"a/x.{suffix}", save_all=True, append_images=frames[1:])
    images = train(tmp_path)
    assert images.samples[0].mean(axis=(1, 2)) == pytest.approx([255, 0, 0], abs=3)
    assert counts(images) == {FURTHER_FRAMES: 1}
    assert images.skipped.lost == {}


def test_colour_of_sixteen_bits_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "train" / "a" / "deep.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(png(2, 2, 16, b"".join(b"\0" + bytes(12) for _ in range(2))))
    images = train(tmp_path)
    assert (len(images), counts(images)) == (1, {COLOUR_DEPTH_LOST: 1})


# Files that are none


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.jpg")


def linked_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    path.unlink()
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


def huge(path: Path) -> None:
    """Write a PNG that says it has 4e9 pixels."""
    path.write_bytes(png(65000, 65000, 8, b""))


MISHAPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncated, "damaged or truncated image"),
    "empty": (lambda path: path.write_bytes(b""), "empty file"),
    "text": (lambda path: path.write_text("404: Not Found"), "no image that Pillow reads"),
    "gone": (dangling, "dangling link"),
    "loop": (linked_to_itself, "dangling link"),
    "pipe": (pipe, "pipe, socket or device"),
    "socket": (unix_socket, "pipe, socket or device"),
    "bomb": (huge, "image of more pixels than Pillow allows (PIL.Image.MAX_IMAGE_PIXELS)"),
}


@pytest.mark.parametrize("name", MISHAPS)
def test_one_bad_file_is_skipped_and_counted(folder: Path, name: str, lines: list[str]) -> None:
    mishap, reason = MISHAPS[name]
    mishap(folder / "train" / "a" / "0.jpg")
    for _ in range(2):  # decoded, and from the cache
        images = train(folder)
        assert images.labels.tolist() == [0, 0, 1, 1, 1]
        assert images.samples[:, 0].mean(axis=(1, 2)).tolist() == pytest.approx(
            [80, 160, 0, 80, 160], abs=2
        )
        assert images.skipped == Skipped({reason: 1}, {reason: "a/0.jpg"})
        assert images.skipped.lost == {reason: 1}
    assert [line for line in lines if reason in line] == [
        f"{folder}/train: skipped 1 x {reason} (a/0.jpg)"
    ]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_bytes_of_any_kind_stop_nobody(folder: Path) -> None:
    rng = np.random.default_rng(0)
    good = {s: (folder / f"good.{s}") for s in ("jpg", "png", "gif", "tif", "webp", "bmp", "ppm")}
    for suffix, path in good.items():
        Image.fromarray(noise(12, 12, 3)).save(path)
        content = bytearray(path.read_bytes())
        for k in range(15):
            damaged = bytearray(content[: rng.integers(1, len(content) + 1)])
            for position in rng.integers(0, len(damaged), 4):
                damaged[position] = rng.integers(0, 256)
            (folder / "train" / "b" / f"damaged{k}.{suffix}").write_bytes(damaged)
    images = train(folder)
    assert len(images) + sum(images.skipped.lost.values()) == 6 + 15 * len(good)


def test_a_file_without_permission_is_read_once_there_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = folder / "train" / "a" / "0.jpg"
    opened, access = Image.open, os.access

    def refuse(source: Path) -> Image.Image:
        if source == secret:
            raise PermissionError(13, "Permission denied")
        return opened(source)

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", refuse)
        patch.setattr(os, "access", lambda path, mode: path != secret and access(path, mode))
        images = train(folder)
        assert counts(images) == {"file without permission to read it": 1}
    assert len(train(folder)) == 6


def test_no_good_file_at_all_is_an_error(tmp_path: Path) -> None:
    for name in ("0.jpg", "1.jpg"):
        save(Image.new("RGB", (9, 9)), tmp_path, f"a/{name}").write_bytes(b"no picture")
    expected = (
        r"cannot decode any image under .*train: skipped 2 x no image that Pillow reads \(a/0"
    )
    with pytest.raises(DataError, match=expected):
        train(tmp_path)


def test_debris_is_neither_class_nor_image(folder: Path) -> None:
    root = folder / "train"
    (root / ".ipynb_checkpoints").mkdir()
    (root / "__MACOSX" / "a").mkdir(parents=True)
    (root / "a" / "._0.jpg").write_bytes(b"\0\5\26\7" + bytes(100))
    (root / "a" / ".ipynb_checkpoints").mkdir()
    (root / "a" / ".ipynb_checkpoints" / "0-checkpoint.jpg").write_bytes(b"")
    (root / "a" / "@eaDir").mkdir()
    (root / "b" / "Thumbs.db").write_bytes(b"")
    (root / ".DS_Store").write_bytes(b"")
    images = train(folder)
    assert (len(images), images.class_names) == (6, ("a", "b"))
    assert counts(images) == {HIDDEN: 4, SYSTEM: 3}
    assert images.skipped.lost == {}


def test_suffixes_of_any_case_are_read_and_others_are_counted(tmp_path: Path) -> None:
    for name in ("0.JPG", "1.JFIF", "2.Gif", "3.pgm"):
        format_ = {"JFIF": "JPEG"}.get(name.partition(".")[2])
        save(Image.new("L", (9, 9)), tmp_path, f"a/{name}", format=format_)
    for name in ("0.heic", "1.HEIC", "notes.txt", "README"):
        (tmp_path / "train" / "a" / name).write_bytes(b"?")
    (tmp_path / "train" / "labels.csv").write_bytes(b"")
    images = train(tmp_path)
    assert len(images) == 4
    assert images.skipped.counts == {
        "file outside the class folders": 1,
        "without suffix": 1,
        "with the suffix .heic, which is not read": 2,
        "with the suffix .txt, which is not read": 1,
    }


def test_links_lead_to_images_and_loops_to_nothing(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (folder / "train" / "b").rename(elsewhere)
    (folder / "train" / "b").symlink_to(elsewhere)
    (folder / "train" / "a" / "again").symlink_to(".")
    (folder / "train" / "a" / "up").symlink_to("..")
    images = train(folder)
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert counts(images) == {"link to a folder read before": 2}


def test_names_that_cannot_be_printed(folder: Path, lines: list[str]) -> None:
    place = os.fsencode(folder / "train" / "a")
    (folder / "train" / "a" / "0.jpg").rename(os.fsdecode(place + b"/\xff\n0.jpg"))
    assert len(train(folder)) == 6
    (folder / "train" / "a" / "1.jpg").rename(os.fsdecode(place + b"/\xff\n1.txt"))
    assert len(train(folder)) == 5
    assert any(r"\udcff\n1.txt" in line for line in lines)
    (folder / "train" / "b").rename(os.fsdecode(place + b"\xff"))
    with pytest.raises(DataError, match=r"class folder 'a\\udcff' in .* rename it"):
        train(folder)


# Classes


def test_given_names_define_the_labels(folder: Path) -> None:
    images = train(folder, class_names=("b", "z", "a"))
    assert images.labels.tolist() == [0, 0, 0, 2, 2, 2]
    assert (images.classes, images.class_names) == (3, ("b", "z", "a"))
    assert images.skipped == Skipped()


def test_samples_are_decoded_once_for_all_names(folder: Path, tmp_path: Path) -> None:
    train(folder)
    train(folder, class_names=("a", "b", "c"))
    assert len(list((tmp_path / "cache" / "flwr-quantized-data").iterdir())) == 1


def test_an_unknown_class_is_refused_by_name(folder: Path) -> None:
    expected = r"class folder 'b' in .*train is unknown; known classes: a, c; rename it"
    with pytest.raises(DataError, match=expected):
        train(folder, class_names=("a", "c"))
    many = tuple(f"class{k}" for k in range(1000))
    with pytest.raises(DataError, match=r"'a' and 1 more .* class19, \.\.\. \(1000\)"):
        train(folder, class_names=many)
    with pytest.raises(DataError, match="class_names has 'a' twice"):
        train(folder, class_names=("a", "b", "a"))


def test_names_are_compared_as_people_read_them(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    save(Image.new("L", (9, 9)), tmp_path, f"{decomposed}/0.png")
    assert train(tmp_path).class_names == (composed,)
    assert train(tmp_path, class_names=("tea", composed)).labels.tolist() == [1]


def test_the_train_split_defines_the_classes_of_both(folder: Path) -> None:
    for path in (folder / "test" / "a").iterdir():
        path.unlink()
    (folder / "test" / "a").rmdir()
    test = load("imagefolder", "test", str(folder), SIDE)
    assert (test.labels.tolist(), test.class_names) == ([1, 1, 1], ("a", "b"))


def test_a_class_unknown_to_the_train_split_is_refused(folder: Path) -> None:
    (folder / "test" / "c").mkdir()
    expected = r"do not hold the same class folders: 'c' is only in .*test, .*train: a, b"
    with pytest.raises(DataError, match=expected):
        load("imagefolder", "test", str(folder), SIDE)
    names = ("a", "b", "c")
    assert len(load("imagefolder", "test", str(folder), SIDE, class_names=names)) == 6


def test_a_class_folder_without_images_keeps_its_number(folder: Path) -> None:
    for path in (folder / "train" / "a").iterdir():
        path.unlink()
    images = train(folder)
    assert (images.labels.tolist(), images.classes) == ([1, 1, 1], 2)
    assert images.skipped == Skipped({EMPTY_CLASS: 1}, {EMPTY_CLASS: "a"})


def test_a_class_of_damaged_images_only_is_reported(folder: Path) -> None:
    for path in (folder / "train" / "a").iterdir():
        path.write_bytes(b"no picture")
    assert counts(train(folder)) == {"no image that Pillow reads": 3, EMPTY_CLASS: 1}


def test_parts_keep_names_and_range(folder: Path) -> None:
    part = train(folder).select(np.array([5, 0]))
    assert (part.labels.tolist(), part.class_names) == ([1, 0], ("a", "b"))
    assert part.value_range == (0, 255)
    assert len(part.select(np.empty(0, np.int64))) == 0


# Splits


def test_a_server_without_test_images_knows_that_and_the_kind(folder: Path) -> None:
    (folder / "test").rename(folder / "nothing")
    with pytest.raises(MissingSplit) as caught:
        load("imagefolder", "test", str(folder), SIDE)
    assert (caught.value.split, caught.value.other) == ("test", True)
    kind = describe("imagefolder", str(folder), SIDE)
    assert (kind.shape, kind.dtype) == ((3, SIDE, SIDE), "uint8")
    assert (kind.classes, kind.class_names) == (2, ("a", "b"))


def test_a_server_with_test_images_only(folder: Path) -> None:
    (folder / "train").rename(folder / "nothing")
    assert describe("imagefolder", str(folder), SIDE).class_names == ("a", "b")
    with pytest.raises(MissingSplit) as caught:
        train(folder)
    assert (caught.value.split, caught.value.other) == ("train", True)


def test_neither_split_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(MissingSplit) as caught:
        load("imagefolder", "test", str(tmp_path), SIDE)
    assert not caught.value.other
    with pytest.raises(DataError, match=r"no folder .*train: an image folder holds"):
        describe("imagefolder", str(tmp_path), SIDE)


def test_images_without_class_folders_are_named(tmp_path: Path) -> None:
    save(Image.new("L", (9, 9)), tmp_path, "0.png")
    expected = r"no images .* under .*train/<class>.*1 x file outside the class folders \(0\.png\)"
    with pytest.raises(MissingSplit, match=expected):
        train(tmp_path)
