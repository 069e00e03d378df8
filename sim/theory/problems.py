"""Three small problems with gradients by hand: strongly convex, convex and non-convex.

Features lie in [-1, 1], so that a b-bit quantizer of step ``2 / (2**b - 1)`` covers them.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from codec import generator

Vector = NDArray[np.float64]

LOW, HIGH = -1.0, 1.0
FEATURES = 10
_DATA_SEED = 0


class Problem(ABC):
    """The mean loss of a fixed data set as a function of w, float64 (n,).

    Parameters
    ----------
    size : int
        Samples in the data set, N.

    Attributes
    ----------
    name : str
    stream : int
        Keys the random numbers that the data set is drawn from.
    measure_label : str
        What `measure` returns, for axes.
    classes : int
        As in `codec.SampleSpec`: 0 where targets are floats.
    samples : float32 (N, FEATURES)
    targets : float64 (N,)
    """

    name: ClassVar[str]
    stream: ClassVar[int]
    measure_label: ClassVar[str]
    classes: ClassVar[int] = 0

    def __init__(self, size: int) -> None:
        rng = generator(_DATA_SEED, self.stream)
        self.samples = rng.uniform(LOW, HIGH, (size, FEATURES)).astype(np.float32)
        self.targets = self._draw_targets(rng)

    @abstractmethod
    def _draw_targets(self, rng: np.random.Generator) -> Vector:
        """Return float32-representable targets of `samples`, float64 (N,)."""

    @abstractmethod
    def initial(self, rng: np.random.Generator) -> Vector:
        """Return a random starting point, (n,)."""

    @abstractmethod
    def loss(self, w: Vector, x: NDArray[np.float32], y: Vector) -> float:
        """Return the mean loss over samples x (b, FEATURES) with targets y (b,)."""

    @abstractmethod
    def gradient(self, w: Vector, x: NDArray[np.float32], y: Vector) -> Vector:
        """Return the gradient of `loss` in w, (n,)."""

    @abstractmethod
    def step_size(self, step: int) -> float:
        """Return the step size of SGD's step, counted from 1."""

    @abstractmethod
    def measure(self, points: Vector) -> Vector:
        """Return what shall go to zero, for each of `points` (K, n): (K,)."""

    def full_gradient(self, w: Vector) -> Vector:
        """Return the gradient over the whole data set, (n,)."""
        return self.gradient(w, self.samples, self.targets)


class LeastSquares(Problem):
    """``(x.w - y)**2 / 2``: strongly convex; step size a / (t + t0), rate 1 / t."""

    name = "least squares"
    stream = 0
    measure_label = "suboptimality f(w) - f*"

    def __init__(self, size: int) -> None:
        super().__init__(size)
        x = self.samples.astype(np.float64)
        self._hessian = x.T @ x / size
        self._optimum = self.minimizer(np.zeros(FEATURES))
        eigenvalues = np.linalg.eigvalsh(self._hessian)
        self._scale = 2 / float(eigenvalues[0])  # above 1 / (2 mu), which the 1 / t rate needs
        self._offset = 3 * self._scale * float(eigenvalues[-1])  # stable on small minibatches

    def _draw_targets(self, rng: np.random.Generator) -> Vector:
        truth = rng.normal(size=FEATURES)
        clean = self.samples @ truth
        return (clean + 0.5 * rng.normal(size=len(clean))).astype(np.float32).astype(np.float64)

    def initial(self, rng: np.random.Generator) -> Vector:
        """See `Problem`."""
        return rng.normal(size=FEATURES)

    def loss(self, w: Vector, x: NDArray[np.float32], y: Vector) -> float:
        """See `Problem`."""
        return float(np.mean((x @ w - y) ** 2) / 2)

    def gradient(self, w: Vector, x: NDArray[np.float32], y: Vector) -> Vector:
        """See `Problem`."""
        gradient: Vector = (x @ w - y) @ x / len(x)
        return gradient

    def step_size(self, step: int) -> float:
        """See `Problem`."""
        return self._scale / (step + self._offset)

    def measure(self, points: Vector) -> Vector:
        """See `Problem`."""
        error = points - self._optimum
        excess: Vector = np.einsum("ki,ij,kj->k", error, self._hessian, error) / 2
        return excess

    def minimizer(self, variances: Vector) -> Vector:
        """Return the minimizer when the features carry independent errors, (n,).

        Parameters
        ----------
        variances : (FEATURES,)
            Mean variance of the error of each feature: a ridge on the Hessian's diagonal.
        """
        hessian: Vector = self._hessian + np.eye(FEATURES) * variances
        correlation: Vector = self.targets @ self.samples / len(self.samples)
        return np.linalg.solve(hessian, correlation).astype(np.float64)


class Logistic(Problem):
    """Binary cross-entropy of ``x.w``: smooth and convex; step size c / sqrt(t)."""

    name = "logistic regression"
    stream = 1
    measure_label = "suboptimality f(w) - f*"
    classes = 2

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._least = self.loss(self.minimizer(), self.samples, self.targets)
        x = self.samples.astype(np.float64)
        smoothness = float(np.linalg.eigvalsh(x.T @ x / size)[-1]) / 4
        self._scale = 0.5 / smoothness

    def _draw_targets(self, rng: np.random.Generator) -> Vector:
        logits = self.samples @ rng.normal(size=FEATURES)
        return (rng.random(len(logits)) < _sigmoid(logits)).astype(np.float64)

    def initial(self, rng: np.random.Generator) -> Vector:
        """See `Problem`."""
        return rng.normal(size=FEATURES)

    def loss(self, w: Vector, x: NDArray[np.float32], y: Vector) -> float:
        """See `Problem`."""
        logits = x @ w
        return float(np.mean(np.logaddexp(0, logits) - y * logits))

    def gradient(self, w: Vector, x: NDArray[np.float32], y: Vector) -> Vector:
        """See `Problem`."""
        gradient: Vector = (_sigmoid(x @ w) - y) @ x / len(x)
        return gradient

    def step_size(self, step: int) -> float:
        """See `Problem`."""
        return self._scale / math.sqrt(step)

    def measure(self, points: Vector) -> Vector:
        """See `Problem`."""
        losses = [self.loss(w, self.samples, self.targets) for w in points]
        return np.array(losses) - self._least

    def minimizer(self) -> Vector:
        """Return the minimizer, (n,), by Newton's method."""
        w: Vector = np.zeros(FEATURES)
        x = self.samples.astype(np.float64)
        for _ in range(30):
            p = _sigmoid(x @ w)
            hessian: Vector = (x * (p * (1 - p))[:, None]).T @ x / len(x)
            w -= np.linalg.solve(hessian, self.full_gradient(w))
        return w


class TanhNetwork(Problem):
    """Squared error of a one-hidden-layer tanh network: smooth, non-convex; step c / sqrt(t)."""

    name = "tanh network"
    stream = 2
    measure_label = "squared gradient norm"
    hidden = 6

    def _draw_targets(self, rng: np.random.Generator) -> Vector:
        clean = self._forward(2 * self.initial(rng), self.samples)[1]
        return (clean + 0.5 * rng.normal(size=len(clean))).astype(np.float32).astype(np.float64)

    def initial(self, rng: np.random.Generator) -> Vector:
        """See `Problem`."""
        inner = rng.normal(size=self.hidden * (FEATURES + 1)) / FEATURES**0.5
        outer = rng.normal(size=self.hidden + 1) / self.hidden**0.5
        return np.concatenate([inner, outer])

    def loss(self, w: Vector, x: NDArray[np.float32], y: Vector) -> float:
        """See `Problem`."""
        return float(np.mean((self._forward(w, x)[1] - y) ** 2) / 2)

    def gradient(self, w: Vector, x: NDArray[np.float32], y: Vector) -> Vector:
        """See `Problem`."""
        activations, outputs = self._forward(w, x)
        error = (outputs - y) / len(x)
        outer = w[-self.hidden - 1 : -1]
        delta = error[:, None] * outer * (1 - activations**2)
        parts = [delta.T @ x, delta.sum(axis=0), error @ activations, error.sum()]
        return np.concatenate([np.ravel(part) for part in parts])

    def step_size(self, step: int) -> float:
        """See `Problem`."""
        return 0.5 / math.sqrt(step)

    def measure(self, points: Vector) -> Vector:
        """See `Problem`."""
        return np.array([np.sum(self.full_gradient(w) ** 2) for w in points])

    def _forward(self, w: Vector, x: NDArray[np.float32]) -> tuple[Vector, Vector]:
        """Return activations (b, hidden) and outputs (b,)."""
        weights, bias = w[: self.hidden * FEATURES].reshape(self.hidden, -1), self.hidden * FEATURES
        activations = np.tanh(x @ weights.T + w[bias : bias + self.hidden])
        return activations, activations @ w[-self.hidden - 1 : -1] + w[-1]


def _sigmoid(logits: Vector) -> Vector:
    result: Vector = 0.5 * (1 + np.tanh(logits / 2))
    return result


PROBLEMS: dict[str, type[Problem]] = {
    problem.name: problem for problem in (LeastSquares, Logistic, TanhNetwork)
}
