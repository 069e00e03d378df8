"""Models and arrays in Flower's records."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from numpy.typing import NDArray
from torch import nn

from clients.arrays import array_record, array_view, load_model, stored_arrays
from codec import CodecError


def test_models_are_loaded_as_they_were_sent() -> None:
    sent = nn.Linear(3, 2)
    model = load_model(lambda: nn.Linear(3, 2), ArrayRecord(sent.state_dict()))
    for own, other in zip(model.parameters(), sent.parameters(), strict=True):
        assert torch.equal(own, other)
    with pytest.raises(CodecError, match="must be the model's ArrayRecord, got NoneType"):
        load_model(lambda: nn.Linear(3, 2), None)


def test_a_factory_may_return_the_same_model_each_time() -> None:
    shared = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    fresh = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    used = load_model(lambda: shared, ArrayRecord(fresh.state_dict()))
    used(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))  # moves the statistics
    with torch.no_grad():
        used[0].weight.fill_(7)
    used.eval()
    again = load_model(lambda: shared, ArrayRecord(fresh.state_dict()))
    assert again is shared and all(module.training for module in again.modules())
    for name, value in fresh.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    np.array(7, ">i4"),
    np.empty((0, 3), np.uint8),
]


@pytest.mark.parametrize("values", ARRAYS, ids=lambda values: str(values.dtype))
def test_views_are_what_flower_reads(values: NDArray[Any]) -> None:
    view, expected = array_view(Array(values)), Array(values).numpy()
    assert (view.dtype, view.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(view, expected) and not view.flags.writeable


def test_records_are_those_that_flower_makes() -> None:
    own, expected = array_record(ARRAYS), ArrayRecord(ARRAYS)
    assert list(own) == list(expected)
    for name, array in expected.items():
        values = array.numpy()
        if values.flags.c_contiguous:  # what is not is sent in the same order as everything else
            assert own[name] == array
        assert np.array_equal(own[name].numpy(), values)


def test_views_of_other_bytes_are_refused() -> None:
    with pytest.raises(TypeError, match="Unsupported serialization type"):
        array_view(Array("uint8", (1,), "bits", b"0"))
    with pytest.raises(ValueError, match="magic"):
        array_view(Array("uint8", (1,), "numpy.ndarray", b"not an array at all"))


def test_arrays_come_back_from_a_state() -> None:
    stored = stored_arrays(array_record(ARRAYS))
    assert stored is not None
    for values, expected in zip(stored, ARRAYS, strict=True):
        assert np.array_equal(values, expected) and not values.flags.writeable


@pytest.mark.parametrize("record", [None, ConfigRecord({"a": 1})])
def test_a_state_without_arrays_has_none(record: object) -> None:
    assert stored_arrays(record) is None
