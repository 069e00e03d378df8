"""From importance scores to the samples that are kept.

A *selector* maps the number of samples wanted to a `Selection`. Its random draws are made
once, so that what is kept grows with the number wanted and a byte budget can be met by
search (`largest_count`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec import INCLUSION_UNIT, CodecError
from codec.messages import PROBABILITY, SELECTIONS
from codec.options import OneOf, check

FIRST_TRIED = 64  # samples that the search for a byte budget tries first, unless told better
BUDGET_FILL = 0.97  # share of the byte budget below which the search goes on
BUDGET_AIM = 0.985  # share that each guess aims at
_WANTED_PRECISION = 0.01  # samples


@dataclass(frozen=True)
class Selection:
    """Samples kept out of N candidates.

    Attributes
    ----------
    positions : (M,) int64 array
        Positions among the candidates, ascending.
    inclusion : (M,) uint16 array or None
        Numerators k of the inclusion probabilities k/256; a sample's weight is 256/k.
        None: all weights are 1.
    """

    positions: NDArray[np.int64]
    inclusion: NDArray[np.uint16] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def where(self, kept: NDArray[np.bool_]) -> "Selection":
        """Return some of the samples, bool (M,)."""
        return self.taken(np.flatnonzero(kept))

    def taken(self, places: NDArray[np.int64]) -> "Selection":
        """Return the samples at some places of the selection, in their order."""
        inclusion = None if self.inclusion is None else self.inclusion[places]
        return Selection(self.positions[places], inclusion)

    def below(self, count: int) -> "Selection":
        """Return the samples among the first `count` candidates."""
        return self.where(self.positions < count)


Selector = Callable[[float], Selection]


def inclusion_numerators(
    scores: NDArray[np.floating], count: float, uniform_share: float
) -> NDArray[np.uint16]:
    """Return k, where k/256 is the probability that a sample is kept.

    A share `uniform_share` of the total score is spread evenly, which bounds every weight
    by ``N / (uniform_share * count)``; then ``p_i = min(1, s_i / tau)`` with tau such that
    the p_i sum to `count`, as in optimal Poisson sampling (Katharopoulos & Fleuret 2018
    section 3.3 for the mixing; ``uniform_share = 1`` is uniform sampling).

    Parameters
    ----------
    scores : (N,) float array, >= 0
        All zero counts as all equal.
    count : float
        Expected number of samples kept, in [0, N]; met up to the rounding of p to k/256.
    uniform_share : float
        In [0, 1].

    Returns
    -------
    (N,) uint16 array, 1 to 256
        Never 0: a sample that cannot be kept would bias the estimate.

    Raises
    ------
    CodecError
        On negative or non-finite scores, or a count or share out of range.
    """
    if not (np.isfinite(scores).all() and (scores >= 0).all()):
        raise CodecError(f"scores must be finite and >= 0, got {scores.min()} to {scores.max()}")
    if not 0 <= count <= len(scores):
        raise CodecError(f"count = {count} outside [0, {len(scores)}]")
    if not 0 <= uniform_share <= 1:
        raise CodecError(f"uniform share = {uniform_share} outside [0, 1]")
    if len(scores) == 0:
        return np.zeros(0, np.uint16)
    mean = scores.mean(dtype=np.float64)
    relative = scores / mean if mean > 0 else np.ones(len(scores))
    mixed = (1 - uniform_share) * relative + uniform_share
    rounded = np.rint(INCLUSION_UNIT * _capped_proportional(mixed, count))
    return rounded.clip(1, INCLUSION_UNIT).astype(np.uint16)


def _capped_proportional(scores: NDArray[np.float64], count: float) -> NDArray[np.float64]:
    """Return ``min(1, scores / tau)`` summing to `count` (or as near as zeros allow)."""
    ordered = np.sort(scores)[::-1]
    rest = np.cumsum(ordered[::-1])[::-1]  # rest[m]: total score without the m highest
    # With the m highest at 1, the others share count - m: the least m at which those fit.
    m = int(np.argmax(ordered * (count - np.arange(len(scores))) <= rest))
    if rest[m] == 0:
        return (scores > 0).astype(np.float64)
    scaled: NDArray[np.float64] = scores * ((count - m) / rest[m])
    return np.minimum(1.0, scaled)


def probability_selector(
    scores: NDArray[np.floating], uniform_share: float, generator: np.random.Generator
) -> Selector:
    """Return the selector that keeps sample i with probability exactly k_i/256.

    With weights 256/k_i the weighted sum over the kept samples is an unbiased estimate of
    the sum over all. Under a byte budget the number wanted depends on the draws, and the
    estimate is then only approximately unbiased.
    """
    draws = generator.integers(0, INCLUSION_UNIT, len(scores))

    def select(count: float) -> Selection:
        numerators = inclusion_numerators(scores, count, uniform_share)
        positions = np.flatnonzero(draws < numerators)
        return Selection(positions, numerators[positions])

    return select


def ranked_selector(scores: NDArray[np.floating], generator: np.random.Generator) -> Selector:
    """Return the selector that keeps the highest scores, in random order among equals.

    Weights are 1: a hard threshold is biased towards what scores high.
    """
    shuffled = generator.permutation(len(scores))
    order = shuffled[np.argsort(-scores[shuffled], kind="stable")]
    return lambda count: Selection(np.sort(order[: whole(count)]))


def whole(count: float) -> int:
    """Return `count` rounded up, except for what float arithmetic adds (0.3 * 10 is 3)."""
    return math.ceil(count - 1e-6)


def make_selector(
    rule: str,
    scores: NDArray[np.floating],
    uniform_share: float,
    generator: np.random.Generator,
) -> Selector:
    """Return the selector of a rule.

    Parameters
    ----------
    rule : str
        ``probability``, or ``top``, which takes the highest scores.
    scores : (N,) float array, >= 0
    uniform_share : float
        In [0, 1]; used by ``probability``.
    generator : numpy.random.Generator
        Draws what is kept, or the order among equal scores.

    Raises
    ------
    CodecError
        If `rule` is none of these.
    """
    check("selection", rule, OneOf(SELECTIONS))
    if rule == PROBABILITY:
        return probability_selector(scores, uniform_share, generator)
    return ranked_selector(scores, generator)


def at_most(number: int, select: Selector, count: float) -> Selection:
    """Return the largest selection of no more than `number` samples, or else the smallest.

    A selector that draws at random keeps more or fewer samples than are wanted. The number
    wanted is raised to where the next sample would enter: there the weights 1/p stay unbiased
    for a fixed `number` (priority sampling: Duffield, Lund & Thorup 2007, "Priority Sampling
    for Estimation of Arbitrary Subset Sums").

    Parameters
    ----------
    number : int
        Most samples kept, >= 0.
    select : callable
    count : float
        Most samples wanted.
    """
    selection = select(count)
    if len(selection) <= number:
        return selection
    low, high, wanted = 0.0, count, float(min(number, count))
    selection = select(low)
    while high - low > _WANTED_PRECISION:
        trial = select(wanted)
        if len(trial) <= number:
            selection, low = trial, wanted
        else:
            high = wanted
        wanted = (low + high) / 2
    return selection


def largest_count(
    limit: int, budget: int, size_of: Callable[[int], int], start: int = FIRST_TRIED
) -> int:
    """Return a number of samples whose bytes fill `budget` and never exceed it.

    Parameters
    ----------
    limit : int
        Most samples wanted.
    budget : int
        Bytes.
    size_of : callable
        Bytes that a number of samples takes; about affine in the number.
    start : int
        First number tried, >= 1.

    Returns
    -------
    int
        A count that fits and is `limit`, or takes 97% of the budget, or is followed by one
        that does not fit; 0 if even one sample does not fit.
    """
    fitting, fitting_size = 0, 0
    too_many = limit + 1
    count = min(start, limit)
    while too_many - fitting > 1 and fitting_size < BUDGET_FILL * budget:
        size = size_of(count)
        # Bytes per sample since the last count that fits; a few odd samples can make that tiny.
        per_sample = (size - fitting_size) / (count - fitting)
        per_sample = max(per_sample, 0.5 * max(size, 1) / count)
        guess = count + math.floor((BUDGET_AIM * budget - size) / per_sample)
        if size <= budget:
            fitting, fitting_size = count, size
        else:
            too_many = count
        count = min(max(guess, fitting + 1), too_many - 1)
    return fitting
