"""How the bytes of a run divide between the number of samples and their precision.

The test error falls with the number of samples n, and rises with the share D of their variance that
coding loses, both as powers: ``E = E* + A n**-a + B D**b`` (a storage scaling law as of Mentzer and
Montanari, arXiv:2407.17954, for a codec of images). A budget buys the more samples the coarser they
are, so the best step follows from a, b and B / A alone. ``python -m sim budget-law`` fits them.

D is measured as `codec.variance_kept` has it: 0.07 of CIFAR-10 at a step of 0.55, 0.20 at 1.7.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.samples.rate_curve import RateCurve

_POINTS = 400  # settings that are compared


@dataclass(frozen=True)
class Law:
    """Constants of the law.

    Attributes
    ----------
    a, b : float
        Powers of the number of samples and of the share of the variance lost.
    ratio : float
        B / A.
    """

    a: float
    b: float
    ratio: float

    def excess(
        self, samples: NDArray[np.float64], lost: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return ``(E - E*) / A`` for numbers of samples, >= 1, and shares lost."""
        return np.maximum(samples, 1.0) ** -self.a + self.ratio * lost**self.b


# Of CIFAR-10, ten points of 1,300 to 50,000 images at steps of 0.24 to 1, one to three seeds each:
# a calibrated ResNet-9 that looks at 300,000 to 600,000 images, tested on original ones. Residual
# 0.7 points; a server that trains longer makes more of many, coarser samples.
LAW = Law(a=0.6, b=1.16, ratio=0.074)


@dataclass(frozen=True)
class Plan:
    """What a budget buys.

    Attributes
    ----------
    samples, total : int
        Samples to be sent, and all that there are.
    setting : float
        Step or quality of the codec.
    bytes_per_sample : float
        Of payloads.
    lost : float
        Share of the variance that coding loses.
    """

    samples: int
    total: int
    setting: float
    bytes_per_sample: float
    lost: float

    @property
    def sends_all(self) -> bool:
        """Whether the budget buys all samples."""
        return self.samples >= self.total


def best_plan(
    curve: RateCurve, budget: float, total: int, *, beside: float = 0.0, law: Law = LAW
) -> Plan:
    """Return the number of samples and the setting with the least error that a budget allows.

    Parameters
    ----------
    curve : RateCurve
    budget : float
        Bytes of samples, >= 0.
    total : int
        Samples that there are, >= 0.
    beside : float
        Bytes that a sample takes beside its part of a payload.
    law : Law
    """
    fine = curve.between(_POINTS)
    samples = np.minimum(max(budget, 0.0) / (fine.sizes + beside), total)
    best = int(law.excess(samples, fine.losses).argmin())
    return Plan(
        int(samples[best]),
        total,
        float(fine.settings[best]),
        float(fine.sizes[best]),
        float(fine.losses[best]),
    )
