"""Which samples a client considers, and that no more of them are fetched than needed."""

import numpy as np
import pytest
from numpy.typing import NDArray

from clients import ArraySource, draw_minibatch, source_spec
from clients.candidates import Candidates
from codec import CodecOptions, generator


class CountingSource(ArraySource):
    """Keeps what it was asked for."""

    asked: list[list[int]]

    def get_items(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        self.__dict__.setdefault("asked", []).append(indices.tolist())
        return super().get_items(indices)


def source(classes: int = 3) -> CountingSource:
    samples = np.arange(40, dtype=np.uint8).reshape(10, 4)
    targets = np.arange(10) % 3 if classes else np.linspace(0, 1, 20).reshape(10, 2)
    return CountingSource(samples, targets, classes, 0.0, 255.0)


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
    candidates = Candidates(data, source_spec(data, CodecOptions()), order)
    for count in (0, 1, 3, 2, 4):
        samples, targets = candidates.first(count)
        assert (samples == data.samples[order[:count]]).all() and len(samples) == count
        np.testing.assert_allclose(targets, data.targets[order[:count]])


def test_samples_are_fetched_once_and_only_as_far_as_needed() -> None:
    data = source()
    spec = source_spec(data, CodecOptions())
    data.asked.clear()
    candidates = Candidates(data, spec, np.array([4, 2, 9, 0, 7]))
    for count in (2, 1, 2, 4):
        candidates.first(count)
    assert data.asked == [[4, 2], [9, 0]]
