"""Joining tensors changes the header of a message and nothing else."""

import numpy as np
import pytest

from codec import PayloadError, generator
from codec.gradients import COMPRESSORS, make_compressor
from codec.gradients.joined import JOINABLE, Joined, joined

SHAPES: list[tuple[int, ...]] = [(20, 30), (7,), (), (0, 3), (8, 4, 3, 3)]


def gradient(seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [np.asarray(random.standard_normal(shape), np.float32) for shape in SHAPES]


@pytest.mark.parametrize("name", JOINABLE)
def test_values_and_memory_are_the_same(name: str) -> None:
    inner = make_compressor(name)
    outer = joined(inner)
    assert isinstance(outer, Joined) and outer.name == name
    memory = other = None
    for seed in range(3):
        one, memory = inner.compress(gradient(seed), memory, generator(seed))
        two, other = outer.compress(gradient(seed), other, generator(seed))
        pairs = zip(inner.decompress(one), outer.decompress(two, SHAPES), strict=True)
        assert all(np.array_equal(a, b) and a.shape == b.shape for a, b in pairs)
        assert len(two) < len(one)
    if memory is not None and other is not None:
        assert np.array_equal(np.concatenate([part.ravel() for part in memory]), other[0])


def test_compressors_that_work_by_tensor_stay_as_they_are() -> None:
    for name in COMPRESSORS.keys() - set(JOINABLE):
        compressor = make_compressor(name)
        assert joined(compressor) is compressor


def test_without_shapes_it_is_one_vector() -> None:
    data, _ = Joined(make_compressor("fp32")).compress(gradient(0), None, generator(0))
    (vector,) = Joined(make_compressor("fp32")).decompress(data)
    assert np.array_equal(vector, np.concatenate([part.ravel() for part in gradient(0)]))


def test_another_size_is_refused() -> None:
    compressor = Joined(make_compressor("top-k"))
    data, _ = compressor.compress(gradient(0), None, generator(0))
    for shapes in ([], [(20, 30)], [*SHAPES, (1,)]):
        with pytest.raises(PayloadError, match="shapes"):
            compressor.decompress(data, shapes)
    with pytest.raises(PayloadError, match="accepted"):
        compressor.decompress(data, SHAPES, limit=10)
