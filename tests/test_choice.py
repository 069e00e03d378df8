"""Codec ``auto`` keeps the codec whose error is least where a network feels it, at one rate."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import digits, fields, photographs
from numpy.typing import NDArray
from PIL import Image

from codec import CodecOptions, PayloadError, SampleSpec, encode_samples
from codec.coding.cursor import Reader
from codec.samples import choice as choice_module
from codec.samples.choice import (
    AS_GOOD,
    MOST_OFF,
    Candidate,
    Choice,
    choose,
    codecs_at_hand,
    is_open,
    samples_to_try,
)

HERE = ("webp", "avif")  # what Pillow brings
ASKED = CodecOptions()


def chosen(
    samples: NDArray[Any], labels: NDArray[Any], asked: CodecOptions = ASKED
) -> tuple[Choice, tuple[str, ...]]:
    return choose(samples, labels, spec_of(samples), asked, HERE)


def spec_of(samples: NDArray[Any]) -> SampleSpec:
    return SampleSpec(samples.shape[1:], classes=10, codec=CodecOptions("dct"))


# Which one


def test_avif_for_sparse_pictures() -> None:
    found, _ = chosen(*digits(64))
    assert found.codec == "avif"
    assert found.best.error < 0.85 * found.candidates[0].error


@pytest.mark.parametrize("step", [0.25, 0.5])
def test_the_block_transform_for_small_photographs(step: float) -> None:
    found, _ = chosen(*photographs(64), CodecOptions(step=step))
    assert found.codec == "dct", found
    assert found.best.error < 0.95 * min(c.error for c in found.candidates[1:])


def test_a_file_for_large_pictures() -> None:
    large = fields(2, (3, 128, 128))
    found, _ = chosen(large, np.zeros(2, np.int64))
    assert found.codec in HERE
    assert found.candidates[0].codec == "dct"


# At which rate


@pytest.mark.parametrize("step", [0.25, 0.5])
def test_the_asked_rate_is_met(step: float) -> None:
    samples, labels = digits(64)
    asked = CodecOptions(step=step)
    found, _ = chosen(samples, labels, asked)
    sizes = {}
    for options in (replace(asked, codec="dct"), found.options(asked)):
        spec = replace(spec_of(samples), codec=options)
        sizes[options.codec] = len(encode_samples(samples, labels, spec).to_bytes()) / 64
    assert found.rate == sizes["dct"]
    assert sizes["avif"] == pytest.approx(sizes["dct"], rel=MOST_OFF)
    assert found.best.bytes_per_sample == sizes["avif"]


def test_a_rate_that_no_file_can_meet_is_the_block_transforms() -> None:
    found, _ = chosen(*digits(64), CodecOptions(step=4.0))
    assert found.codec == "dct"
    assert [c.quality for c in found.candidates[1:]] == [1, 1, 1]


def test_a_rate_beyond_the_best_quality() -> None:
    found, _ = chosen(*digits(16), CodecOptions(step=0.001))
    assert [c.quality for c in found.candidates[1:]] == [100, 100, 100]


@pytest.mark.parametrize(("above", "quality"), [(104.0, 50), (106.0, 49), (150.0, 49)])
def test_coarse_qualities_rule_no_file_out(
    monkeypatch: pytest.MonkeyPatch, above: float, quality: int
) -> None:
    """The nearest quality may lie too far above the rate; then it is the one below."""

    def coded(_: choice_module._Trial, options: CodecOptions) -> choice_module._Coded:
        rate = 100.0
        if options.codec != "dct":
            rate = above if options.quality >= 50 else 60.0 + options.quality / 100
        return choice_module._Coded(rate, lambda: 1000 / rate)

    monkeypatch.setattr(choice_module._Trial, "of", coded)
    large = fields(2, (3, 128, 128))
    found, _ = chosen(large, np.zeros(2, np.int64))
    assert found.codec in HERE
    assert found.best.quality == quality
    assert found.best.bytes_per_sample <= (1 + MOST_OFF) * found.rate


def test_few_samples_pay_for_the_container_of_a_file() -> None:
    samples, labels = digits(64)
    few = samples[:2], labels[:2]
    per_sample = [
        chosen(*part)[0].candidates[2].bytes_per_sample for part in ((samples, labels), few)
    ]
    assert chosen(*few)[0].codec == "dct"
    assert per_sample[1] > 2 * per_sample[0]


def test_pictures_without_content() -> None:
    found, _ = chosen(np.zeros((8, 1, 28, 28), np.uint8), np.zeros(8, np.int64))
    assert found.codec == "dct"


def test_what_is_asked_for_stays_but_codec_and_quality() -> None:
    asked = CodecOptions(step=0.25, avif_speed=7, quality=3)
    found, _ = chosen(*digits(64), asked)
    options = found.options(asked)
    assert (options.codec, options.avif_speed) == ("avif", 7)
    assert replace(options, codec="auto", quality=3) == asked


def test_of_equals_the_faster_decoder() -> None:
    def best(dct: float, avif: float, webp: float) -> str:
        tried = [
            Candidate("dct", 0, 50.0, dct),
            Candidate("webp", 9, 50.0, webp),
            Candidate("avif", 9, 50.0, avif),
        ]
        return tried[choice_module._best(tried, is_large=False)].codec

    near = 1 + AS_GOOD / 2
    assert best(1.0, near, 2.0) == "avif"
    assert best(1.0, near, near) == "webp"
    assert best(1.0, 1 + 2 * AS_GOOD, 2.0) == "dct"


def test_avif_is_tried_at_a_faster_speed_too() -> None:
    names = [c.name for c in chosen(*digits(16), CodecOptions(avif_speed=4))[0].candidates]
    assert names == ["dct", "webp", "avif (speed 4)", "avif (speed 6)"]
    names = [c.name for c in chosen(*digits(16), CodecOptions(avif_speed=7))[0].candidates]
    assert names == ["dct", "webp", "avif (speed 7)"]


# What it is for


@pytest.mark.parametrize(
    ("asked", "spec"),
    [
        (ASKED, {"shape": (3, 8, 8)}),
        (ASKED, {"shape": (2, 32, 32)}),
        (ASKED, {"shape": (3, 32, 32), "high": 200.0}),
        (ASKED, {"shape": (3, 32, 32), "dtype": "float32"}),
        (ASKED, {"shape": (32, 32)}),
        (CodecOptions("dct"), {"shape": (3, 32, 32)}),
        (CodecOptions(quantizer="stochastic"), {"shape": (3, 32, 32)}),
        (CodecOptions(quantizer="dithered"), {"shape": (3, 32, 32)}),
    ],
)
def test_all_else_is_as_it_was(asked: CodecOptions, spec: dict[str, Any]) -> None:
    assert not is_open(asked, SampleSpec(**spec))


def test_pictures_are_open() -> None:
    assert is_open(ASKED, SampleSpec((1, 28, 28)))
    assert is_open(ASKED, SampleSpec((3, 224, 224)))


def test_few_large_pictures_are_enough() -> None:
    shapes = [(1, 28, 28), (3, 64, 64), (3, 224, 224)]
    assert [samples_to_try(shape) for shape in shapes] == [64, 64, 8]


# Machines without a codec


def test_a_machine_without_avif(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(HERE) <= set(codecs_at_hand())
    monkeypatch.delitem(Image.SAVE, "AVIF")
    assert "avif" not in codecs_at_hand()
    found, lacking = chosen(*digits(32))
    assert [c.name for c in found.candidates] == ["dct", "webp"]
    assert len(lacking) == 1
    assert "goes without avif: this Pillow was built without AVIF" in lacking[0]


def test_what_the_server_lacks_is_not_tried() -> None:
    samples, labels = digits(32)
    found, lacking = choose(samples, labels, spec_of(samples), ASKED, ())
    assert (found.codec, len(found.candidates), lacking) == ("dct", 1, ())


# On the wire

CHOICE = Choice(
    2,
    (
        Candidate("dct", 0, 48.5, 100.5),
        Candidate("webp", 1, 60.0, 90.0),
        Candidate("avif", 33, 48.0, 64.0, 3),
    ),
)
GOLDEN = (
    "0203"  # the third of three
    "01004242c942"  # dct
    "12017042b442"  # webp, quality 1
    "18210340428042"  # avif, quality 33, speed 3
)


def test_golden_bytes() -> None:
    assert CHOICE.to_bytes().hex() == GOLDEN
    assert Choice.from_bytes(bytes.fromhex(GOLDEN)) == CHOICE


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"",
        lambda data: bytes([3]) + data[1:],  # chosen: the fourth of three
        lambda data: data[:2] + bytes([24]) + data[3:],  # the block transform does not lead
        lambda data: data[:8] + bytes([16]) + data[9:],  # jpeg, which is no candidate
        lambda data: data[:9] + bytes([0]) + data[10:],  # quality 0
        lambda data: data[:6] + b"\xc0\x7f" + data[8:],  # NaN
        lambda data: data[:16] + bytes([11]) + data[17:],  # speed 11
    ],
)
def test_other_bytes(change: Any) -> None:
    with pytest.raises(PayloadError):
        Choice.from_bytes(change(CHOICE.to_bytes()))


@given(st.floats(1e-3, 1e7), st.floats(0, 1e7))
def test_figures_arrive_to_four_in_a_thousand(rate: float, error: float) -> None:
    told = Candidate("webp", 1, rate, error)
    read = Candidate.read(Reader(told.to_bytes()))
    assert read.bytes_per_sample == pytest.approx(rate, rel=0.004)
    assert read.error == pytest.approx(error, rel=0.004, abs=1e-37)


def test_words() -> None:
    assert str(CHOICE) == (
        "avif (speed 3) at 48.5 B a sample, of dct 48.5 B error 100.5, "
        "webp 60.0 B error 90.0, avif (speed 3) 48.0 B error 64.0"
    )
