"""Order of convergence: quantized-data SGD beside full-precision SGD on the same draws."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec import generator
from sim.theory.estimate import (
    FULL_PRECISION,
    QUANTIZERS,
    Batch,
    Method,
    error_variances,
    estimate,
    methods,
    transmit,
)
from sim.theory.intervals import mean_interval
from sim.theory.problems import PROBLEMS, LeastSquares, Problem

BATCH_SIZE = 16
BITS = (2, 4, 8)
TOLERANCE = 0.1  # of a slope's gap to full precision
_SAMPLES = 256
_FIRST_SHARE = 1 / 16  # slopes are fitted after this share of the steps
_WINDOWS = 12


@dataclass(frozen=True)
class Run:
    """All methods on one problem with one seed.

    Attributes
    ----------
    problem : str
    seed : int
    methods : tuple of Method
        The first is full precision.
    measures : float64 (K, steps)
        The problem's measure after each step of each method.
    uplink_bytes : float64 (K,)
        Mean bytes per step; 0 for full precision, which nothing is sent for.
    """

    problem: str
    seed: int
    methods: tuple[Method, ...]
    measures: NDArray[np.float64]
    uplink_bytes: NDArray[np.float64]


def train(problem_name: str, seed: int, steps: int) -> Run:
    """Run SGD with every method from the same start on the same minibatches.

    Methods that share quantizer and bits share their payload, too.
    """
    problem = PROBLEMS[problem_name](_SAMPLES)
    channels = [(quantizer, bits) for bits in BITS for quantizer in QUANTIZERS]
    ways = [FULL_PRECISION] + [m for channel in channels for m in methods(problem, *channel)]
    rng, refinement_rng = generator(seed, 0), generator(seed, 1)
    points = np.tile(problem.initial(rng), (len(ways), 1))
    measures, uplink = np.empty((len(ways), steps)), np.zeros(len(ways))
    for step in range(1, steps + 1):
        rows = rng.integers(_SAMPLES, size=BATCH_SIZE)
        exact = Batch(problem.samples[rows], problem.targets[rows])
        received = {c: transmit(problem, exact, *c, (seed, 0, step)) for c in channels}
        received["none", 32] = exact
        for k, method in enumerate(ways):
            arrived = received[method.quantizer, method.bits]
            gradient, size = estimate(problem, points[k], exact, arrived, method, refinement_rng)
            points[k] -= problem.step_size(step) * gradient
            uplink[k] += size / steps
        measures[:, step - 1] = problem.measure(points)
    return Run(problem_name, seed, tuple(ways), measures, uplink)


def windows(steps: int) -> tuple[NDArray[np.float64], list[slice]]:
    """Return centres (W,) and slices of windows of steps, of equal ratio, for the fit."""
    edges = np.unique(np.geomspace(steps * _FIRST_SHARE, steps, _WINDOWS + 1).astype(int))
    centres = np.sqrt((edges[:-1] + 1.0) * edges[1:])
    return centres, [slice(a, b) for a, b in itertools.pairwise(edges)]


def window_means(run: Run) -> NDArray[np.float64]:
    """Return the mean measure in each window, (K, W)."""
    _, slices = windows(run.measures.shape[1])
    return np.stack([run.measures[:, part].mean(axis=1) for part in slices], axis=1)


def fit_slopes(run: Run) -> NDArray[np.float64]:
    """Return the log-log slope of each method's measure against the step, (K,)."""
    centres, _ = windows(run.measures.shape[1])
    slopes: NDArray[np.float64] = np.polyfit(np.log(centres), np.log(window_means(run)).T, 1)[0]
    return slopes


def floor(problem: Problem, method: Method) -> float | None:
    """Return where a biased method's measure ends, in theory.

    For least squares, quantization at variance v is in the mean a ridge v; None for the others,
    where it has no closed form, and for unbiased methods.
    """
    if method.unbiased or not isinstance(problem, LeastSquares):
        return None
    ridge = error_variances(problem, method.quantizer, method.bits)
    return float(problem.measure(problem.minimizer(ridge)[None])[0])


def slope_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row per problem and method: slope and paired gap to full precision, 95 %."""
    rows = []
    for name in dict.fromkeys(run.problem for run in runs):
        of_problem = [run for run in runs if run.problem == name]
        problem = PROBLEMS[name](_SAMPLES)
        slopes = np.stack([fit_slopes(run) for run in of_problem])
        last = np.stack([np.log(window_means(run)[:, -1]) for run in of_problem]).mean(axis=0)
        sizes = np.stack([run.uplink_bytes for run in of_problem]).mean(axis=0)
        for k, method in enumerate(of_problem[0].methods):
            slope, low, high = mean_interval(slopes[:, k])
            gap, gap_low, gap_high = mean_interval(slopes[:, k] - slopes[:, 0])
            rows.append(
                {
                    "problem": name,
                    **asdict(method),
                    "slope": slope,
                    "low": low,
                    "high": high,
                    "gap": gap,
                    "gap_low": gap_low,
                    "gap_high": gap_high,
                    "within_tolerance": bool(abs(gap) <= TOLERANCE),
                    "final": float(np.exp(last[k])),
                    "final_ratio": float(np.exp(last[k] - last[0])),
                    "floor": floor(problem, method),
                    "uplink_bytes_per_step": float(sizes[k]) or None,
                }
            )
    return rows
