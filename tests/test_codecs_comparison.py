"""Codec auto beside image codecs: what was measured is kept, and judged at equal error."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from images import digits

from codec import CodecError, CodecOptions
from codec.samples.options import AUTO
from fl_app.data import DataError
from sim.codecs import (
    METHODS,
    RESULTS,
    DataSet,
    Labelled,
    Method,
    Point,
    bytes_at,
    data_sets,
    measure_codecs,
    report,
    verdicts,
)
from sim.jsonl import append_points, read_points


def load(split: str) -> Labelled:
    images, labels = digits(60)
    return (images[::2], labels[::2]) if split == "train" else (images[1::2], labels[1::2])


ROOT = Path(__file__).parents[1]
DIGITS = DataSet("digits", load, 16, 20)
FEW = (
    Method("webp", (CodecOptions("webp", quality=1), CodecOptions("webp", quality=60))),
    Method("dct", (CodecOptions("dct"),), is_image_codec=False, trains=True),
    Method("auto", (CodecOptions(avif_speed=8),), is_image_codec=False, trains=True),
)


def test_every_rate_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.codecs.TRAINING_STEPS", 2)
    told: list[str] = []
    measure_codecs(tmp_path, [DIGITS], 1, told.append, FEW[:2])
    assert len(told) == 4  # two files, the transform, and a network on it
    measure_codecs(tmp_path, [DIGITS], 1, told.append, FEW)
    points = read_points(tmp_path / RESULTS, Point)
    assert len(told) == len(points) == 6
    trained = [point for point in points if point.accuracy is not None]
    assert [(point.method, point.images) for point in trained] == [("dct", 20), ("auto", 20)]
    assert all(0 <= (point.accuracy or 0) <= 1 for point in trained)
    webp = [point for point in points if point.method == "webp"]
    assert webp[0].bytes_per_sample < webp[1].bytes_per_sample
    assert webp[0].psnr < webp[1].psnr and webp[0].task_error > webp[1].task_error


def test_auto_is_what_it_chose_and_what_it_tells(tmp_path: Path) -> None:
    measure_codecs(tmp_path, [DIGITS], 0, lambda _: None, FEW[1:])
    dct, auto = read_points(tmp_path / RESULTS, Point)
    assert auto.codec in ("dct", "webp", "avif")
    if auto.codec == "dct":
        assert 0 < auto.bytes_per_sample - dct.bytes_per_sample <= 43 / 16


def test_data_sets_that_are_not_there_are_named(tmp_path: Path) -> None:
    def missing(_: str) -> Labelled:
        raise DataError("no such folder")

    told: list[str] = []
    measure_codecs(tmp_path, [DataSet("far away", missing, 4)], 1, told.append, FEW)
    assert told == ["far away is left out: no such folder"]


def test_all_kinds_of_pictures_and_methods() -> None:
    assert [dataset.name for dataset in data_sets()] == ["mnist"]
    assert [dataset.name for dataset in data_sets("a", "b", "c", "d")][1:] == [
        "fashion-mnist",
        "cifar10", "tiny-imagenet", "photographs",
    ]  # fmt: skip
    assert {method.name for method in METHODS} == {
        "auto", "auto, speed 0", "dct", "avif, speed 6", "avif, speed 3", "avif, speed 0", "webp",
        "jpeg-xl", "jpeg",
    }  # fmt: skip


def point(method: str, size: float, error: float, accuracy: float | None = None) -> Point:
    return Point("d", method, 0, size, method, 8, size, 30.0, error, accuracy)


def test_bytes_between_the_rates_of_a_codec() -> None:
    curve = [point("webp", 100.0, 10.0), point("webp", 25.0, 160.0)]
    assert bytes_at(40.0, curve) == pytest.approx(50.0)
    assert bytes_at(10.0, curve) == pytest.approx(100.0)
    assert math.isnan(bytes_at(9.0, curve)) and math.isnan(bytes_at(161.0, curve))


def test_verdicts_at_equal_error_and_accuracy() -> None:
    points = [
        point("webp", 100.0, 10.0), point("webp", 25.0, 160.0),
        point("avif, speed 3", 60.0, 10.0), point("avif, speed 3", 30.0, 40.0),
        point("dct", 1.0, 40.0),
        point("auto", 33.0, 40.0), point("auto", 20.0, 500.0),
        point("auto", 33.0, 40.0, 0.80), point("webp", 30.0, 99.0, 0.70),
        point("webp", 44.0, 50.0, 0.796), replace(point("webp", 44.0, 50.0, 0.80), seed=1),
    ]  # fmt: skip
    by_error, out_of_reach, by_accuracy = verdicts(points)
    assert by_error.best == "avif, speed 3" and by_error.ratio == pytest.approx(1.1)
    assert by_error.is_above
    assert out_of_reach.best == "" and math.isnan(out_of_reach.ratio) and not out_of_reach.is_above
    assert (by_accuracy.best, by_accuracy.ratio) == ("webp", 0.75)


def test_at_equal_accuracy_both_are_at_their_cheapest_rate() -> None:
    points = [
        point("auto", 60.0, 1.0, 0.80), point("auto", 33.0, 9.0, 0.801),
        point("auto", 9.0, 99.0, 0.5),
        point("webp", 66.0, 1.0, 0.80), point("webp", 20.0, 99.0, 0.60),
    ]  # fmt: skip
    found = [verdict.ratio for verdict in verdicts(points)]
    assert found == [0.5, 0.5, pytest.approx(9 / 20)]


def test_the_report_names_where_auto_is_dearer(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match="no results of codec auto"):
        report(tmp_path)
    files = [point("webp", 100.0, 10.0), point("webp", 25.0, 160.0)]
    append_points(tmp_path / RESULTS, [*files, point("auto", 50.5, 40.0)])
    assert report(tmp_path)[-1].endswith("(*): never")
    append_points(tmp_path / RESULTS, [point("auto", 99.0, 40.0)])
    lines = report(tmp_path)
    assert lines[-1].endswith("(*): auto, d at step 99 (task error)")
    assert "1.980*" in lines[-2]


def test_networks_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.codecs.TRAINING_STEPS", 5)
    from sim.codecs import trained_accuracy

    images, labels = digits(40)
    runs = [
        trained_accuracy(images.astype(np.float32), labels, 10, (images, labels), seed)
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1]


def test_the_page_shows_the_results_that_are_kept() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    table = page.split("## Codec auto")[1].split("## Theory")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    rows = [row for row in rows if len(row) == len(rows[0])]  # the first table
    shown = [row[-2].strip() for row in rows]
    points = read_points(ROOT / "sim" / "results" / RESULTS, Point)
    found = [
        each
        for each in verdicts(points)
        if each.by == "task error"
        and (each.auto.method == AUTO or each.dataset in ("fashion-mnist", "mnist"))
    ]
    assert shown[2:] == [f"{each.ratio:.3f}" for each in found]
    sizes = [row[5].strip() for row in rows]
    assert sizes[2:] == [f"{each.auto.bytes_per_sample:.1f}" for each in found]
