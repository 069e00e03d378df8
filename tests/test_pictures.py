"""Tests of clients.pictures: PIL images of every mode as arrays."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from clients.pictures import opaque, picture_array
from codec import CodecError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


def reopened(image: Image.Image, suffix: str, **options: object) -> Image.Image:
    file = BytesIO()
    image.save(file, suffix, **options)
    return Image.open(file)


def test_photographs_and_grey_images_stay_as_they_are() -> None:
    assert np.array_equal(picture_array(Image.fromarray(RGB)), RGB.transpose(2, 0, 1))
    assert np.array_equal(picture_array(Image.fromarray(GREY)), GREY[np.newaxis])


@given(arrays(np.uint16, (4, 5)))
def test_sixteen_bits_keep_their_depth_and_units(pixels: np.ndarray) -> None:
    for image in (Image.fromarray(pixels), reopened(Image.fromarray(pixels), "png")):
        array = picture_array(image)
        assert (array.dtype, array.shape) == (np.float32, (1, 4, 5))
        assert np.array_equal(array[0], pixels)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_byte_orders_of_sixteen_bits(mode: str) -> None:
    order = ">u2" if mode == "I;16B" else "<u2"
    pixels = np.array([[1, 256], [4095, 65535]], order)
    image = Image.frombytes(mode, (2, 2), pixels.tobytes())
    assert picture_array(image).tolist() == [[[1, 256], [4095, 65535]]]


@given(st.integers(-(1 << 24), 1 << 24), st.floats(-(2.0**99), 2.0**99, width=32))
def test_wide_integers_and_floats_keep_their_values(integer: int, number: float) -> None:
    assert picture_array(Image.new("I", (1, 1), integer)).item() == integer
    assert picture_array(Image.new("F", (1, 1), number)).item() == number


def test_bits_are_black_and_white() -> None:
    array = picture_array(Image.fromarray(GREY > 127))
    assert np.array_equal(array[0], np.where(GREY > 127, 255, 0))


def test_palettes_give_their_colours() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    assert picture_array(image)[:, 0].T.tolist() == [[10, 20, 30], [200, 100, 0]]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_other_colour_spaces_become_rgb(mode: str) -> None:
    image = Image.new("RGB", (2, 2), (255, 0, 0)).convert(mode)
    assert picture_array(image).shape == (3, 2, 2)
    assert picture_array(image)[:, 0, 0] == pytest.approx([255, 0, 0], abs=2)


@given(st.integers(0, 255), st.integers(0, 255))
def test_transparent_pixels_show_the_background(value: int, alpha: int) -> None:
    expected = (value * alpha + 255 * (255 - alpha)) / 255
    for mode, color, channels in (("RGBA", (value,) * 3, 3), ("LA", (value,), 1)):
        array = picture_array(Image.new(mode, (1, 1), (*color, alpha)))
        assert array.shape == (channels, 1, 1)
        assert array.ravel() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_colour_may_stand_for_transparency(mode: str) -> None:
    image = Image.new(mode, (2, 1))
    image.putpixel((1, 0), 1 if mode != "RGB" else (9, 9, 9))
    key = (0, 0, 0) if mode == "RGB" else 0
    opened = reopened(image, "png", transparency=key)
    assert "transparency" in opened.info
    assert picture_array(opened)[:, 0, 0].tolist() == [255] * (1 if mode == "L" else 3)
    assert picture_array(opened, "black")[:, 0, 0].tolist() == [0] * (1 if mode == "L" else 3)


def test_palette_with_alpha_and_premultiplied_alpha() -> None:
    rgba = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert picture_array(rgba.convert("PA")).tolist() == [[[255, 255]] * 2] * 3
    assert picture_array(rgba.convert("RGBa")).tolist() == [[[255, 255]] * 2] * 3
    assert picture_array(rgba.convert("LA").convert("La")).tolist() == [[[255, 255]] * 2]


def test_opaque_pixels_do_not_change() -> None:
    image = Image.fromarray(RGB)
    assert np.array_equal(opaque(image.convert("RGBA"), "RGB"), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_file_is_turned_upright_and_a_processed_image_is_not(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(RGB)
    opened = reopened(stored, "png", exif=exif)
    first = np.asarray(stored)[0, 0]
    array = picture_array(opened)
    corners = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1),
               8: (-1, 0)}  # fmt: skip
    assert array.shape == ((3, 6, 9) if orientation < 5 else (3, 9, 6))
    row, column = corners[orientation]
    assert np.array_equal(array[:, row, column], first)
    processed = opened.convert("RGB").crop((0, 0, 9, 6))
    assert np.array_equal(picture_array(processed), RGB.transpose(2, 0, 1))


def test_tiff_is_turned_once(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.tif", tiffinfo={0x0112: 6})
    with Image.open(tmp_path / "a.tif") as image:
        array = picture_array(image)
    assert np.array_equal(array, np.rot90(RGB, -1).transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_illegible_exif_is_no_reason_to_lose_an_image() -> None:
    image = reopened(Image.fromarray(RGB), "png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(picture_array(image), RGB.transpose(2, 0, 1))


def test_a_mode_that_pillow_cannot_convert_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Image.Image:
        raise ValueError("conversion not supported")

    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(CodecError, match="mode 'CMYK': Pillow cannot convert it to 'RGB'"):
        picture_array(Image.new("CMYK", (2, 2)))
