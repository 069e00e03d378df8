"""Mean and variance of the gradient estimate over many draws of the quantizer."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from codec import generator
from sim.theory.estimate import Batch, Method, estimate, methods, transmit
from sim.theory.intervals import student_quantile
from sim.theory.problems import PROBLEMS, Problem, Vector

_SAMPLES = 256
_FALSE_ALARM = 1e-3  # chance that an unbiased method fails anywhere in a table
_FIRST_HIGH_RATE_BITS = 4  # -6 dB per bit holds for steps that go as 2**-bits


def draw_statistics(
    problem_name: str, quantizer: str, bits: int, draws: int
) -> list[dict[str, Any]]:
    """Estimate the whole data set's gradient at one point many times; a row per method.

    The point is the start of a run, and the batch the whole data set, so that nothing but
    quantizer and refinement is random.
    """
    problem = PROBLEMS[problem_name](_SAMPLES)
    w, rng = problem.initial(generator(0, 0)), generator(0, 1, bits)
    exact = Batch(problem.samples, problem.targets)
    ways = methods(problem, quantizer, bits)
    estimates: dict[Method, list[Vector]] = {method: [] for method in ways}
    for draw in range(draws):
        received = transmit(problem, exact, quantizer, bits, (0, 0, draw))
        for method in ways:
            estimates[method].append(estimate(problem, w, exact, received, method, rng)[0])
    return [
        {"problem": problem_name, **asdict(method), **_statistics(problem, w, np.array(drawn))}
        | {"unbiased": method.unbiased, "draws": draws}
        for method, drawn in estimates.items()
    ]


def _statistics(problem: Problem, w: Vector, drawn: Vector) -> dict[str, float]:
    """Return variance, bias and its deviation in standard errors, of `drawn` (draws, n)."""
    gradient = problem.full_gradient(w)
    bias = drawn.mean(axis=0) - gradient
    variances = drawn.var(axis=0, ddof=1)
    errors = np.sqrt(variances / len(drawn))
    norm = np.linalg.norm(gradient)
    return {
        "parameters": len(w),
        "variance": float(variances.sum()),
        "relative_bias": float(np.linalg.norm(bias) / norm),
        "relative_standard_error": float(np.linalg.norm(errors) / norm),
        "largest_deviation": float(np.max(np.abs(bias) / errors)),
    }


def sampling_variance(problem_name: str) -> float:
    """Return the variance that sampling a minibatch of the data set's size would have.

    The yardstick of the quantizer's variance; both fall with one over the batch size.
    """
    problem = PROBLEMS[problem_name](_SAMPLES)
    w = problem.initial(generator(0, 0))
    each = [
        problem.gradient(w, problem.samples[i : i + 1], problem.targets[i : i + 1])
        for i in range(_SAMPLES)
    ]
    return float(np.var(each, axis=0).sum() / _SAMPLES)


def bias_rows(statistics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with the CLT bound of the largest deviation over the coordinates.

    The bound covers all coordinates of all rows at once (Bonferroni), in standard errors.
    """
    tests = sum(row["parameters"] for row in statistics)
    fewest = min(row["draws"] for row in statistics)
    bound = student_quantile(1 - _FALSE_ALARM / (2 * tests), fewest - 1)
    return [
        {key: value for key, value in row.items() if key != "variance"}
        | {"bound": bound, "within": row["largest_deviation"] <= bound}
        for row in statistics
    ]


def variance_rows(statistics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the variance of each problem and method."""
    keys = ("problem", "quantizer", "bits", "refinement", "variance", "draws")
    return [{key: row[key] for key in keys} for row in statistics]


def decibels_per_bit(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the slope of the variance in dB per bit, from 4 bits up, by least squares."""
    keys = ("problem", "quantizer", "refinement")
    found = []
    for group in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        points = [
            (row["bits"], 10 * np.log10(row["variance"]))
            for row in rows
            if tuple(row[key] for key in keys) == group and row["bits"] >= _FIRST_HIGH_RATE_BITS
        ]
        bits, decibels = np.array(points).T
        slope = np.polyfit(bits, decibels, 1)[0]
        found.append(dict(zip(keys, group, strict=True)) | {"db_per_bit": float(slope)})
    return found
