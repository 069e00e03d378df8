import numpy as np
import pytest

from codec import CodecError, PayloadError, generator
from codec.gradients.majority_vote import Ballot, majority

SHAPES: list[tuple[int, ...]] = [(20, 30), (7,), (), (0, 3)]


def gradient(seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [np.asarray(random.standard_normal(shape), np.float32) for shape in SHAPES]


def test_signs_come_through_at_a_bit_each() -> None:
    data, memory = Ballot().compress(gradient(0), None, generator(1))
    assert memory is None
    for sign, part in zip(Ballot().decompress(data, SHAPES), gradient(0), strict=True):
        assert np.array_equal(sign, np.sign(part)) and sign.dtype == np.float32
    assert len(data) <= 608 / 8 + 25


def test_magnitudes_and_memory_do_not_matter() -> None:
    data, _ = Ballot().compress(gradient(0), None, generator(1))
    scaled = [part * np.float32(1e-20) for part in gradient(0)]
    memory = [np.full(608, -100, np.float32)]
    again, _ = Ballot().compress(scaled, memory, generator(1))
    decoded = [Ballot().decompress(part, SHAPES) for part in (data, again)]
    assert all(np.array_equal(a, b) for a, b in zip(*decoded, strict=True))


def test_zeros_vote_at_random() -> None:
    total = np.zeros(400)
    for seed in range(100):
        data, _ = Ballot().compress([np.zeros(400, np.float32)], None, generator(seed))
        (sign,) = Ballot().decompress(data, [(400,)])
        assert set(np.unique(sign)) == {-1, 1}
        total += sign
    # Each total is a sum of 100 fair signs, of standard deviation 10; so is their mean's 20-fold.
    assert abs(total.mean()) < 2.5 and 8 < total.std() < 12


def test_majority_is_the_sign_of_the_sum_of_signs() -> None:
    ballots = [[np.sign(part) for part in gradient(seed)] for seed in range(5)]
    for part, votes in zip(majority(ballots), zip(*ballots, strict=True), strict=True):
        assert np.array_equal(part, np.sign(np.sum(votes, axis=0)))
        assert part.dtype == np.float32
    tie = majority([[np.ones(3, np.float32)], [-np.ones(3, np.float32)]])
    assert tie[0].tolist() == [0, 0, 0]


def test_bad_ballots_are_refused() -> None:
    data, _ = Ballot().compress(gradient(0), None, generator(1))
    with pytest.raises(PayloadError):
        Ballot().decompress(data[:-1], SHAPES)
    with pytest.raises(PayloadError, match="shapes"):
        Ballot().decompress(data, SHAPES[:1])
    with pytest.raises(CodecError, match="finite"):
        Ballot().compress([np.array([np.nan], np.float32)], None, generator(1))
