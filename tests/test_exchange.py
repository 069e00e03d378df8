from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from clients.exchange import (
    array_record,
    array_view,
    config_record,
    from_record,
    load_model,
    require_range,
    timed,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray
from torch import nn

from codec import CodecError, CodecOptions

COARSE = CodecOptions(step=0.5)


@dataclass(frozen=True)
class Order:
    server_round: int
    learning_rate: float
    name: str = "none"
    vote: bool = False
    codec: CodecOptions = CodecOptions()  # noqa: RUF009 - frozen
    last: int | None = None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Order(3, 0.5)),
        ({"learning-rate": 1}, Order(3, 1.0)),
        ({"name": "sign", "vote": True, "other": b"x"}, Order(3, 0.5, "sign", True)),
        ({"codec": COARSE.to_bytes(), "last": -1}, Order(3, 0.5, codec=COARSE, last=-1)),
    ],
)
def test_entries_become_fields(changes: dict[str, Any], expected: Order) -> None:
    order = from_record(Order, {"server-round": 3, "learning-rate": 0.5, **changes})
    assert order == expected
    assert type(order.learning_rate) is float


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server-round": True}, "server-round = True must be of type int"),
        ({"server-round": 3.0}, "server-round = 3.0 must be of type int"),
        ({"learning-rate": "fast"}, "must be of type float"),
        ({"vote": 1}, "vote = 1 must be of type bool"),
        ({"codec": "coarse"}, "codec = 'coarse' must be of type bytes"),
        ({"codec": b"?"}, "truncated"),
        ({"last": 1.0}, "last = 1.0 must be of type int"),
    ],
)
def test_wrong_types_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        from_record(Order, {"server-round": 3, "learning-rate": 0.5, **changes})


def test_missing_entries_are_named() -> None:
    with pytest.raises(CodecError, match="lacks learning-rate, server-round"):
        from_record(Order, {"name": "sign"})


def test_range_is_named() -> None:
    require_range("steps", 1, 1)
    with pytest.raises(CodecError, match=r"steps = 0 outside \[1, inf\]"):
        require_range("steps", 0, 1)
    with pytest.raises(CodecError, match="nan"):
        require_range("rate", float("nan"), 0)


def test_a_message_without_config_is_refused() -> None:
    with pytest.raises(CodecError, match="must be a ConfigRecord, got NoneType"):
        config_record(Message(RecordDict(), 7, "train"))
    record = ConfigRecord({"seed": 1})
    assert config_record(Message(RecordDict({"config": record}), 7, "train")) is record


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


def test_time_adds_up_even_when_a_block_raises() -> None:
    seconds: dict[str, float] = {}
    with timed("a", seconds):
        pass
    first = seconds["a"]
    with pytest.raises(ValueError, match="x"), timed("a", seconds):
        raise ValueError("x")
    assert seconds["a"] > first > 0
