"""The theory checks: hand-written gradients, unbiasedness, rates and the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec import generator
from sim.__main__ import main
from sim.theory.bytes_vs_n import measure_bytes, spread
from sim.theory.convergence import Run, fit_slopes, floor
from sim.theory.estimate import FULL_PRECISION, Batch, Method, estimate, transmit
from sim.theory.intervals import mean_interval, student_quantile
from sim.theory.problems import PROBLEMS, LeastSquares, Logistic
from sim.theory.variance import bias_rows, draw_statistics


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("theory")
    assert main(["theory", "--quick", "--out", str(folder)]) == 0
    assert (folder / "theory.txt").read_text().startswith("log-log slopes")
    return folder, json.loads((folder / "theory.json").read_text())


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_match_finite_differences(name: str) -> None:
    problem = PROBLEMS[name](32)
    w = problem.initial(generator(1))
    x, y = problem.samples[:8], problem.targets[:8]
    numeric = [
        (problem.loss(w + e, x, y) - problem.loss(w - e, x, y)) / 2e-5
        for e in 1e-5 * np.eye(len(w))
    ]
    np.testing.assert_allclose(problem.gradient(w, x, y), numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("problem", [LeastSquares(64), Logistic(64)])
def test_minimizer_has_no_gradient_and_measures_zero(problem: LeastSquares | Logistic) -> None:
    variances = (np.zeros(10),) if isinstance(problem, LeastSquares) else ()
    optimum = problem.minimizer(*variances)
    assert np.abs(problem.full_gradient(optimum)).max() < 1e-9
    assert abs(problem.measure(optimum[None])[0]) < 1e-12
    assert problem.measure(optimum[None] + 0.1)[0] > 1e-4


def test_transmission_keeps_targets_and_bounds_the_error() -> None:
    for name in PROBLEMS:
        problem = PROBLEMS[name](32)
        exact = Batch(problem.samples, problem.targets)
        received = transmit(problem, exact, "dithered", 4, (0, 0, 0))
        assert np.array_equal(received.targets, exact.targets)
        assert np.abs(received.samples - exact.samples).max() <= 1.001 / 15
        assert received.size > 32 * 10 * 4 / 8


def test_full_precision_is_the_gradient_itself() -> None:
    problem = LeastSquares(32)
    w, exact = np.ones(10), Batch(problem.samples, problem.targets)
    gradient, size = estimate(problem, w, exact, exact, FULL_PRECISION, generator(0))
    assert np.array_equal(gradient, problem.full_gradient(w))
    assert size == 0


@pytest.mark.parametrize("name", PROBLEMS)
def test_refined_estimate_is_unbiased_and_unrefined_is_not(name: str) -> None:
    rows = bias_rows(draw_statistics(name, "stochastic", 2, 100))
    plain, refined = rows
    assert plain["refinement"] == "none"
    assert not plain["within"]
    assert refined["refinement"] == "qsgd"
    assert refined["within"]


@pytest.mark.parametrize("quantizer", ["stochastic", "dithered"])
def test_least_squares_on_quantized_samples_ends_at_the_floor(quantizer: str) -> None:
    """Minimizing over many decoded copies of the data is what unrefined SGD does."""
    problem = LeastSquares(256)
    exact = Batch(problem.samples, problem.targets)
    copies = [transmit(problem, exact, quantizer, 2, (0, 0, copy)) for copy in range(30)]
    x = np.concatenate([copy.samples for copy in copies]).astype(np.float64)
    minimizer = np.linalg.lstsq(x, np.tile(exact.targets, len(copies)), rcond=None)[0]
    theory = floor(problem, Method(quantizer, 2))
    assert theory == pytest.approx(problem.measure(minimizer[None])[0], rel=0.1)
    assert floor(problem, Method(quantizer, 2, "qsgd")) is None


def test_slope_of_a_power_law() -> None:
    steps = np.arange(1, 1001)
    run = Run("", 0, (FULL_PRECISION,), 3.0 * steps[None, :] ** -0.5, np.zeros(1))
    assert fit_slopes(run)[0] == pytest.approx(-0.5, abs=0.01)


def test_intervals() -> None:
    mean, low, high = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2
    assert (low, high) == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)
    assert student_quantile(0.975, 30) == pytest.approx(2.0423, abs=1e-3)


def test_bytes_follow_the_data_and_not_the_model() -> None:
    rows = measure_bytes(10_000, seed=1) + measure_bytes(100_000, seed=2)
    assert [row["n"] >= n for row, n in zip(rows, [10_000] * 4 + [100_000] * 4, strict=True)]
    assert spread(rows, "quantized data") < 0.01
    assert spread(rows, "qsgd") > 5
    assert spread(rows, "fp32") > 5


@pytest.mark.slow
def test_report_has_its_keys_and_figures(quick: tuple[Path, dict[str, Any]]) -> None:
    folder, result = quick
    assert {"slopes", "bytes_vs_n", "variance_vs_bits", "bias"} <= set(result)
    for key, columns in {
        "slopes": {"problem", "quantizer", "bits", "refinement", "slope", "low", "high"},
        "bytes_vs_n": {"method", "n", "uplink_bytes"},
        "variance_vs_bits": {"problem", "quantizer", "bits", "refinement", "variance"},
        "bias": {"problem", "quantizer", "bits", "refinement", "relative_bias", "within"},
    }.items():
        assert all(columns <= set(row) for row in result[key])
    for row in result["slopes"]:
        assert row["low"] <= row["slope"] <= row["high"]
    names = {"convergence", "slopes", "bytes_vs_n", "variance_vs_bits", "bias"}
    assert {path.name for path in folder.glob("*.png")} == {f"theory_{n}.png" for n in names}


@pytest.mark.slow
def test_report_confirms_the_claims(quick: tuple[Path, dict[str, Any]]) -> None:
    _, result = quick
    assert spread(result["bytes_vs_n"], "quantized data") < 0.01
    for row in result["variance_db_per_bit"]:
        assert row["db_per_bit"] == pytest.approx(-6.02, abs=0.6), row
    variances = {
        (row["problem"], row["quantizer"], row["bits"], row["refinement"]): row["variance"]
        for row in result["variance_vs_bits"]
    }
    for key in variances:
        if key[-1] == "qsgd":
            assert variances[key] < variances[(*key[:-1], "none")]
    assert all(row["within"] for row in result["bias"] if row["unbiased"])


def test_one_seed_has_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "--seeds", "1"]) == 2
    assert "1 is not in the range x>=2" in capsys.readouterr().err
