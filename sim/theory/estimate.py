"""The gradient estimate of quantized-data SGD, through the bytes of codec and compressor."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec import CodecOptions, SamplePayload, SampleSpec, decode_samples, encode_samples
from codec.gradients import make_compressor
from sim.theory.problems import FEATURES, HIGH, LOW, LeastSquares, Problem, Vector

QUANTIZERS = ("stochastic", "dithered")
LEVELS = 16  # of QSGD, for the residual
_QSGD = make_compressor("qsgd", levels=LEVELS)


@dataclass(frozen=True)
class Method:
    """A way to estimate the gradient.

    Attributes
    ----------
    quantizer : str
        Of the samples: ``stochastic``, ``dithered``, or ``none`` for full precision.
    bits : int
        Of each feature; 32 for full precision.
    refinement : str
        ``none``; ``qsgd``: the residual g(x) - g(x_hat) through QSGD; ``dither-variance``: least
        squares at x_hat less the known ``step**2 / 12 * w``, at no bytes.
    """

    quantizer: str
    bits: int
    refinement: str = "none"

    @property
    def unbiased(self) -> bool:
        """Whether theory says that the estimate's mean is the gradient."""
        return self.quantizer == "none" or self.refinement != "none"

    def __str__(self) -> str:
        if self.quantizer == "none":
            return "full precision"
        return f"{self.quantizer}, {self.bits} bits, {self.refinement}"


FULL_PRECISION = Method("none", 32)


@dataclass(frozen=True)
class Batch:
    """Samples float32 (b, FEATURES) and targets float64 (b,), and the bytes they came in."""

    samples: NDArray[np.float32]
    targets: Vector
    size: int = 0


def methods(problem: Problem, quantizer: str, bits: int) -> list[Method]:
    """Return the methods that share one payload."""
    found = [Method(quantizer, bits, refinement) for refinement in ("none", "qsgd")]
    if isinstance(problem, LeastSquares) and quantizer == "dithered":
        found.append(Method(quantizer, bits, "dither-variance"))
    return found


def transmit(
    problem: Problem, batch: Batch, quantizer: str, bits: int, key: tuple[int, int, int]
) -> Batch:
    """Send a batch as a payload and return what arrives.

    Parameters
    ----------
    problem : Problem
    batch : Batch
    quantizer, bits
        As in `Method`.
    key : (int, int, int)
        Of the quantizer's random numbers.
    """
    options = CodecOptions(
        "columns", quantizer=quantizer, step=1 / (2**bits - 1), relative_to="range"
    )
    target_size = 0 if problem.classes else 1
    spec = SampleSpec((FEATURES,), "float32", LOW, HIGH, problem.classes, target_size, options)
    if problem.classes:
        targets: NDArray[np.generic] = batch.targets.astype(np.int64)
    else:
        targets = batch.targets.astype(np.float32)[:, None]
    data = encode_samples(batch.samples, targets, spec, key=key).to_bytes()
    received = decode_samples(SamplePayload.from_bytes(data))
    return Batch(received.samples, received.targets.ravel().astype(np.float64), len(data))


def error_variances(problem: Problem, quantizer: str, bits: int) -> Vector:
    """Return the quantizer's error variance of each feature, mean over the samples, (FEATURES,).

    In theory: ``step**2 / 12`` with dither, which the server knows; ``step**2 * p * (1 - p)``
    with stochastic rounding of a fraction p, which it does not.
    """
    step = (HIGH - LOW) / (2**bits - 1)
    if quantizer == "dithered":
        return np.full(FEATURES, step**2 / 12)
    fractions = np.modf((problem.samples.astype(np.float64) - LOW) / step)[0]
    variances: Vector = np.mean(step**2 * fractions * (1 - fractions), axis=0)
    return variances


def estimate(
    problem: Problem,
    w: Vector,
    exact: Batch,
    received: Batch,
    method: Method,
    rng: np.random.Generator,
) -> tuple[Vector, int]:
    """Return the server's gradient estimate, (n,), and its uplink bytes.

    Parameters
    ----------
    problem : Problem
    w : (n,)
    exact : Batch
        What the client holds.
    received : Batch
        The same after `transmit`; `exact` itself for full precision.
    method : Method
    rng : numpy.random.Generator
        For the refinement.
    """
    coarse = problem.gradient(w, received.samples, received.targets)
    if method.refinement == "dither-variance":
        return coarse - error_variances(problem, "dithered", method.bits) * w, received.size
    if method.refinement == "none":
        return coarse, received.size
    residual = problem.gradient(w, exact.samples, exact.targets) - coarse
    data, _ = _QSGD.compress([residual.astype(np.float32)], None, rng)
    return coarse + _QSGD.decompress(data)[0], received.size + len(data)
