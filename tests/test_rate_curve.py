"""What samples take over the step of their codec: measured, sent, merged, and read."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import fields

from clients import ArraySource
from clients.budget import Encoded, finest_fitting
from clients.rate import rate_curve
from clients.reading import Reader
from clients.selection import Selection
from codec import CodecOptions, PayloadError, SampleSpec, encode_samples
from codec.samples.rate_curve import SETTINGS, RateCurve, knob_of, with_setting

SHAPE = (3, 8, 8)


def source(count: int = 150, seed: int = 0) -> ArraySource:
    return ArraySource(fields(count, SHAPE, seed), np.arange(count) % 4, 4, 0.0, 255.0)


POINTS = st.lists(
    st.tuples(st.floats(0.01, 1e4), st.floats(0, 1)), min_size=len(SETTINGS["step"]), max_size=7
)


def curve_of(points: list[tuple[float, float]]) -> RateCurve:
    settings = SETTINGS["step"]
    return RateCurve.of([(s, size, lost) for s, (size, lost) in zip(settings, points, strict=True)])


@given(POINTS)
def test_a_curve_comes_back_from_its_bytes(points: list[tuple[float, float]]) -> None:
    curve = curve_of(points)
    data = curve.to_bytes()
    assert len(data) == 12 * 7
    back = RateCurve.from_bytes(data)
    assert back.to_bytes() == data
    np.testing.assert_allclose(back.sizes, curve.sizes, rtol=1e-6)


@given(POINTS, st.integers(2, 60))
def test_a_curve_is_monotone_also_between_its_points(
    points: list[tuple[float, float]], count: int
) -> None:
    fine = curve_of(points).between(count)
    assert (np.diff(fine.settings) > 0).all()
    assert (np.diff(fine.sizes) <= 1e-9 * fine.sizes[0]).all()
    assert (np.diff(fine.losses) >= -1e-12).all() and fine.losses.max() <= 1


@given(st.binary(max_size=100))
def test_bytes_that_are_no_curve_are_refused(data: bytes) -> None:
    try:
        curve = RateCurve.from_bytes(data)
    except PayloadError:
        return
    assert (np.diff(curve.sizes) <= 0).all() and np.isfinite(curve.settings).all()


@pytest.mark.parametrize(
    "points",
    [
        [(1.0, 10.0, 0.1), (0.5, 12.0, 0.2)],
        [(0.5, 10.0, 0.3), (1.0, 5.0, 0.2)],
        [(0.5, float("nan"), 0.3)],
        [(0.5, 10.0, 0.3), (0.5, 5.0, 0.4)],
    ],
)
def test_what_is_not_monotone_is_refused(points: Any) -> None:
    columns = np.array(points, "<f4")
    with pytest.raises(PayloadError, match="rate curve"):
        RateCurve.from_bytes(columns.tobytes())


def test_the_mean_weighs_by_examples() -> None:
    one, other = curve_of([(10.0, 0.1)] * 7), curve_of([(40.0, 0.5)] * 7)
    mean = RateCurve.mean([(300, one), (100, other)])
    np.testing.assert_allclose(mean.sizes, 17.5)
    np.testing.assert_allclose(mean.losses, 0.2)


def test_a_client_measures_what_real_payloads_take() -> None:
    """Of more samples than the curve was measured on, to a few per cent."""
    many = source(1200, seed=3)
    curve = rate_curve(Reader(many), CodecOptions())
    assert curve is not None and curve.settings.tolist() == list(SETTINGS["step"])
    spec = SampleSpec(SHAPE, classes=4, codec=CodecOptions(step=0.55))
    order = np.argsort(many.targets, kind="stable")
    size = len(encode_samples(many.samples[order], many.targets[order], spec).to_bytes())
    assert curve.sizes[3] == pytest.approx(size / 1200, rel=0.08)
    assert (np.diff(curve.sizes) < 0).all() and (np.diff(curve.losses) > 0).all()


@pytest.mark.parametrize(
    ("codec", "knob"),
    [("auto", "step"), ("dct", "step"), ("webp", "quality"), ("lossless", "")],
)
def test_the_curve_is_over_what_sets_the_rate_of_a_codec(codec: str, knob: str) -> None:
    options = CodecOptions(codec)
    assert knob_of(options) == knob
    curve = rate_curve(Reader(source(30)), options)
    assert curve is not None
    assert curve.settings.tolist() == list(SETTINGS[knob] if knob else [0.0])
    assert RateCurve.from_bytes(curve.to_bytes()).to_bytes() == curve.to_bytes()
    coarser = with_setting(options, 20)
    assert not knob or getattr(coarser, knob) == 20
    assert coarser == (replace(options, step=coarser.step, quality=coarser.quality))


@given(st.floats(0.5, 1.5), st.floats(0.2, 3.0), st.integers(500, 40_000), st.floats(-0.05, 0.05))
def test_the_finest_setting_that_fits_fills_the_budget(
    power: float, start: float, budget: int, bend: float
) -> None:
    def encode(step: float) -> Encoded:
        size = 1000 * step ** -(power + bend * np.log(step))
        return Encoded((bytes(int(size)),), Selection(np.arange(10)))

    first = encode(start)
    found, setting = finest_fitting(first, encode, start, 0.1, budget)
    if first.size > budget:
        assert found is first
        return
    assert found.size <= budget and setting <= start
    assert found.size >= 0.97 * budget or setting == pytest.approx(0.1) or found is first
    if encode(0.1).size >= budget > 1.1 * first.size:
        assert found.size >= 0.97 * budget
