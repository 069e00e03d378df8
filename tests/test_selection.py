import numpy as np
import pytest
from numpy.typing import NDArray

from clients.selection import (
    at_most,
    inclusion_numerators,
    largest_count,
    make_selector,
    probability_selector,
    ranked_selector,
)
from codec import CodecError


def skewed_scores(count: int = 400) -> NDArray[np.float64]:
    return np.random.default_rng(0).lognormal(sigma=1.5, size=count)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("count", [4.0, 37.5, 200.0, 390.0, 400.0])
def test_expected_number_kept_is_the_number_wanted(count: float, share: float) -> None:
    scores = skewed_scores()
    numerators = inclusion_numerators(scores, count, share)
    assert numerators.dtype == np.uint16 and numerators.min() >= 1 and numerators.max() <= 256
    # Each p is off by at most half of 1/256, more where p < 1/512 is raised to 1/256.
    assert abs(numerators.sum() / 256 - count) <= len(scores) / 256


def test_probabilities_are_proportional_to_scores_up_to_one() -> None:
    scores = np.array([1.0, 2.0, 3.0, 50.0])
    assert inclusion_numerators(scores, 1.75, 0.0).tolist() == [32, 64, 96, 256]


def test_uniform_share_bounds_the_weights() -> None:
    scores = np.array([0.0, 0.0, 0.0, 1e9])
    numerators = inclusion_numerators(scores, 2.0, 0.5)
    assert numerators[3] == 256 and (numerators[:3] == round(256 / 3)).all()
    assert (256 / numerators <= len(scores) / (0.5 * 2.0)).all()


def test_scores_that_are_all_zero_count_as_equal() -> None:
    assert (inclusion_numerators(np.zeros(8), 2.0, 0.0) == 64).all()


def test_zero_scores_can_still_be_kept() -> None:
    assert inclusion_numerators(np.array([0.0, 0.0, 1.0]), 2.0, 0.0).tolist() == [1, 1, 256]


def test_weighted_sum_over_the_kept_is_unbiased() -> None:
    """The mean of T estimates lies within 4 standard errors of the sum (CLT), per column."""
    rng = np.random.default_rng(3)
    scores, values = skewed_scores(60), rng.normal(loc=1.0, size=(60, 5))
    estimates = []
    for _ in range(4000):
        selection = probability_selector(scores, 0.2, rng)(20.0)
        assert selection.inclusion is not None
        weights = 256.0 / selection.inclusion
        estimates.append(weights @ values[selection.positions])
    error = np.mean(estimates, axis=0) - values.sum(axis=0)
    assert (np.abs(error) < 4 * np.std(estimates, axis=0) / np.sqrt(len(estimates))).all()


def test_samples_are_kept_with_exactly_the_probability_that_is_sent() -> None:
    rng, rounds = np.random.default_rng(4), 6000
    scores = skewed_scores(30)
    probability = inclusion_numerators(scores, 9.0, 0.2) / 256
    kept = np.zeros(30)
    for _ in range(rounds):
        kept[probability_selector(scores, 0.2, rng)(9.0).positions] += 1
    deviation = np.sqrt(probability * (1 - probability) / rounds)
    assert (np.abs(kept / rounds - probability) <= 4.5 * deviation).all()


def test_what_is_kept_grows_with_the_number_wanted() -> None:
    select = probability_selector(skewed_scores(), 0.2, np.random.default_rng(5))
    previous: set[int] = set()
    for count in (10, 50, 51, 200, 400):
        kept = set(select(count).positions.tolist())
        assert previous <= kept
        previous = kept
    assert len(previous) == 400


@pytest.mark.parametrize("number", [0, 1, 7, 60, 399, 400])
def test_at_most_keeps_the_number_exactly_where_it_can(number: int) -> None:
    scores = skewed_scores()
    drawn = probability_selector(scores, 0.2, np.random.default_rng(6))
    ranked = ranked_selector(scores, np.random.default_rng(6))
    assert len(at_most(number, ranked, 400)) == number
    kept = len(at_most(number, drawn, 400))
    # Several enter at once where a p reaches its next k/256; those of p >= 1/256 from the start.
    assert number - 3 <= kept <= max(number, len(drawn(0)))
    assert len(at_most(number, ranked, 20.5)) == min(number, 21)


def test_a_fixed_number_kept_is_unbiased_too() -> None:
    rng = np.random.default_rng(7)
    scores, values = skewed_scores(60), rng.normal(loc=1.0, size=(60, 5))
    estimates = []
    for _ in range(1500):
        selection = at_most(20, probability_selector(scores, 0.2, rng), 60.0)
        assert selection.inclusion is not None and 17 <= len(selection) <= 20
        estimates.append(256.0 / selection.inclusion @ values[selection.positions])
    error = np.mean(estimates, axis=0) - values.sum(axis=0)
    assert (np.abs(error) < 4 * np.std(estimates, axis=0) / np.sqrt(len(estimates))).all()


def test_top_keeps_the_highest_scores() -> None:
    scores = skewed_scores()
    selection = ranked_selector(scores, np.random.default_rng(6))(99.2)
    assert len(selection) == 100 and selection.inclusion is None
    assert (np.diff(selection.positions) > 0).all()
    assert set(selection.positions) == set(np.argsort(-scores)[:100])


def test_equal_scores_are_kept_in_random_order() -> None:
    scores = np.repeat([1.0, 2.0], 50)
    first = ranked_selector(scores, np.random.default_rng(7))(60).positions
    second = ranked_selector(scores, np.random.default_rng(8))(60).positions
    again = ranked_selector(scores, np.random.default_rng(7))(60).positions
    assert set(range(50, 100)) <= set(first) & set(second)
    assert set(first) != set(second) and (first == again).all()


@pytest.mark.parametrize("rule", ["probability", "top"])
def test_every_rule_takes_nothing_of_nothing(rule: str) -> None:
    select = make_selector(rule, np.zeros(0), 0.2, np.random.default_rng(0))
    assert len(select(0)) == 0


def test_illegal_arguments_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(CodecError, match="'best' must be one of probability, top"):
        make_selector("best", np.ones(3), 0.2, rng)
    with pytest.raises(CodecError, match=r"count = 4 outside \[0, 3\]"):
        inclusion_numerators(np.ones(3), 4, 0.2)
    with pytest.raises(CodecError, match=r"uniform share = 1.5 outside \[0, 1\]"):
        inclusion_numerators(np.ones(3), 2, 1.5)
    with pytest.raises(CodecError, match="finite and >= 0"):
        inclusion_numerators(np.array([1.0, -2.0]), 1, 0.2)


class Sizes:
    def __init__(self, sizes: NDArray[np.float64]) -> None:
        self.sizes, self.calls = sizes, 0

    def __call__(self, count: int) -> int:
        self.calls += 1
        return int(self.sizes[count - 1])


def test_largest_count_fills_the_budget_and_never_exceeds_it() -> None:
    rng, calls = np.random.default_rng(9), []
    for _ in range(300):
        limit = int(rng.integers(1, 5000))
        overhead, marginal = rng.integers(0, 400), rng.uniform(0.5, 300)
        sizes = np.cumsum(rng.uniform(0.2, 1.8, limit) * marginal) + overhead
        sizes *= rng.uniform(0.98, 1.02, limit)  # compressed sizes are not quite monotone
        budget = int(rng.uniform(0.5, 1.5) * sizes[rng.integers(limit)])
        size_of = Sizes(sizes)
        count = largest_count(limit, budget, size_of)
        calls.append(size_of.calls)
        if count:
            assert size_of(count) <= budget
        if count < limit and (count == 0 or size_of(count) < 0.95 * budget):
            assert size_of(count + 1) > budget
    assert np.mean(calls) < 3.5 and max(calls) <= 10


def test_largest_count_tries_everything_first_when_that_is_little() -> None:
    calls: list[int] = []

    def size_of(count: int) -> int:
        calls.append(count)
        return 10 * count

    assert largest_count(40, 1000, size_of) == 40
    assert calls == [40]
