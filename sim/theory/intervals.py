"""Confidence intervals over a few seeds."""

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

# 97.5 % points of Student's t for 1, 2, ... degrees of freedom; beyond, the last one (wider).
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return mean, low and high of the 95 % confidence interval of a mean.

    Parameters
    ----------
    values : (K,)
        One per seed, K >= 2.
    """
    degrees = len(values) - 1
    half = _T[min(degrees, len(_T)) - 1] * values.std(ddof=1) / len(values) ** 0.5
    mean = float(values.mean())
    return mean, mean - float(half), mean + float(half)


def student_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t, for 30 degrees of freedom and more.

    Expanded around the normal one to second order (Abramowitz and Stegun, 26.7.5).
    """
    z = NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2
