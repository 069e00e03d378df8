"""The constants of the law by which a budget is divided come back from accuracies."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.budget_law import _lost, fit_law, fit_records, read_records
from sim.run_config import RunConfigError
from strategies.budget_law import Law


@settings(max_examples=10)
@given(st.floats(0.2, 0.8), st.floats(0.7, 2.5), st.floats(0.1, 5))
def test_a_law_comes_back_from_its_own_errors(a: float, b: float, ratio: float) -> None:
    law, kinds = Law(a, b, ratio), ["one"] * 12 + ["other"] * 12
    samples = np.tile(np.repeat([2e3, 8e3, 2e4, 5e4], 3), 2)
    lost = np.tile([0.03, 0.1, 0.3], 8)
    scale = np.repeat([4.0, 1.5], 12)
    errors = np.repeat([0.05, 0.1], 12) + scale * law.excess(samples, lost)
    fit = fit_law(samples, lost, errors, kinds)
    assert fit.rms < 0.003 * errors.std() and fit.points == 24
    found = fit.law.excess(samples, lost)[:12] * fit.offsets["one"][1] + fit.offsets["one"][0]
    np.testing.assert_allclose(found, errors[:12], rtol=0.01)


def test_records_that_lack_something_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    rows = [{"dataset": "mnist5k", "samples": 900, "step": 0.5, "accuracy": 0.9}, {"step": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_records([path]) == rows[:1]
    with pytest.raises(RunConfigError, match="--fit: 0 records of trainings"):
        fit_records(rows[:1])
    with pytest.raises(RunConfigError, match=r"none\.jsonl"):
        read_records([tmp_path / "none.jsonl"])


def test_points_of_the_frontier_are_records(tmp_path: Path) -> None:
    path = tmp_path / "frontier-digits.jsonl"
    shared = {"dataset": "mnist5k", "samples": 900, "accuracy": 0.9}
    configs = [
        {"codec": "dct", "step": 0.5, "tilt": 0.0, "model": "resnet9"},
        {"codec": "avif", "step": 0.5, "model": "resnet9"},
        {"codec": "lossless", "step": 0.5, "model": "resnet9"},
    ]
    path.write_text("".join(json.dumps({**shared, "config": c}) + "\n" for c in configs))
    assert [(one["step"], one.get("tilt"), one["model"]) for one in read_records([path])] == [
        (0.5, 0.0, "resnet9"),
        (0.0, None, "resnet9"),
    ]


def test_what_is_lost_depends_on_the_shape_of_the_steps() -> None:
    row = {"dataset": "mnist5k", "step": 0.55}
    even, steep = (_lost({**row, "tilt": tilt}, "") for tilt in (0.0, 1.5))
    assert 0.001 < even < 0.9 * steep < 1
    assert _lost({**row, "step": 0.0}, "") == 0


def test_what_coding_loses_is_measured_on_the_data_set() -> None:
    law = Law(0.4, 1.5, 0.5)
    rows, told = [], list[str]()
    for samples in (500, 1000, 4000):
        for step in (0.0, 0.55, 1.7):
            lost = {0.0: 0.0, 0.55: 0.08, 1.7: 0.2}[step]
            error = law.excess(np.array([samples]), np.array([lost]))[0]
            row = {"dataset": "mnist5k", "samples": samples, "step": step, "accuracy": 1 - error}
            rows.append(row)
    fit = fit_records(rows, echo=told.append)
    assert fit.points == 9 and fit.rms < 0.02
    assert told[0].startswith("LAW = Law(a=") and "mnist5k: E* " in told[-1]
