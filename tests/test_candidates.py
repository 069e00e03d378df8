"""Which samples a client considers, and that no more of them are fetched than needed."""

import numpy as np
import pytest
from numpy.typing import NDArray

from clients import ArraySource, draw_minibatch
from clients.candidates import Candidates
from clients.reading import Reader
from codec import CodecError, generator


class CountingSource(ArraySource):
    """Keeps what it was asked for; with a lowest value of 1, sample 9 cannot be read."""

    asked: list[list[int]]

    def get_items(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        self.__dict__.setdefault("asked", []).append(indices.tolist())
        if self.low == 1.0 and (indices == 9).any():
            raise OSError("damaged")
        return super().get_items(indices)


def source(classes: int = 3, low: float = 0.0) -> CountingSource:
    samples = np.arange(40, dtype=np.uint8).reshape(10, 4)
    targets = np.arange(10) % 3 if classes else np.linspace(0, 1, 20).reshape(10, 2)
    return CountingSource(samples, targets, classes, low, 255.0)


@pytest.mark.parametrize(("batch_size", "drawn"), [(1, 1), (7, 7), (10, 10), (99, 10)])
def test_a_minibatch_has_no_sample_twice(batch_size: int, drawn: int) -> None:
    indices = draw_minibatch(10, batch_size, generator(0))
    assert indices.dtype == np.int64 and len(set(indices)) == len(indices) == drawn
    assert set(indices) <= set(range(10))


def test_a_minibatch_of_nothing_is_empty() -> None:
    assert len(draw_minibatch(0, 5, generator(0))) == 0


@pytest.mark.parametrize("classes", [3, 0])
def test_candidates_come_in_their_order(classes: int) -> None:
    data = source(classes)
    order = np.array([4, 2, 9, 0])
    candidates = Candidates(Reader(data), order)
    for count in (0, 1, 3, 2, 4):
        samples, targets = candidates.first(count)
        assert (samples == data.samples[order[:count]]).all() and len(samples) == count
        np.testing.assert_allclose(targets, data.targets[order[:count]])


def test_samples_are_fetched_once_and_only_as_far_as_needed() -> None:
    data = source()
    reader = Reader(data)
    assert reader.kind.shape == (4,)
    data.asked.clear()
    candidates = Candidates(reader, np.array([4, 2, 9, 0, 7]))
    for count in (2, 1, 2, 4):
        candidates.first(count)
    assert data.asked == [[4, 2], [9, 0]]


def test_those_of_no_use_are_replaced_by_the_next_and_remembered() -> None:
    data = source(low=1.0)
    candidates = Candidates(Reader(data), np.array([4, 9, 2, 0, 7]))
    samples, targets = candidates.first(3)
    assert (samples == np.maximum(data.samples[[4, 2, 0]], 1)).all()
    assert targets.tolist() == data.targets[[4, 2, 0]].tolist()
    assert candidates.order.tolist() == [4, 2, 0, 7] and candidates.useless == [9]
    assert candidates.skipped == {"unreadable (OSError)": 1} and candidates.clipped == 1
    candidates.check_any_left()


def test_dropped_candidates_count_as_of_no_use() -> None:
    candidates = Candidates(Reader(source()), np.array([4, 9, 2]))
    candidates.first(3)
    candidates.drop((2,), "too dull")
    assert candidates.refused == [2] and not candidates.useless
    assert candidates.skipped == {"too dull": 1}


def test_where_few_are_accepted_more_are_read_at_a_time() -> None:
    data = source()
    even = Candidates(
        Reader(data), np.array([1, 3, 5, 7, 2, 4, 6, 8]), lambda indices, *_: indices % 2 == 0
    )
    data.asked.clear()
    samples, _ = even.first(2)
    assert (samples == data.samples[[2, 4]]).all() and even.order.tolist()[:2] == [2, 4]
    assert len(data.asked) == 2 and not even.useless


def test_nothing_of_use_is_an_error_with_what_was_wrong() -> None:
    candidates = Candidates(Reader(source(low=1.0)), np.array([9]))
    candidates.check_any_left()  # nothing was tried yet
    assert len(candidates.first(1)[0]) == 0
    told = r"no sample can be used: 1 unreadable \(OSError\); sample 9: OSError: damaged"
    with pytest.raises(CodecError, match=told):
        candidates.check_any_left()
