from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import nn

from clients import ArraySource
from clients.baselines import train_local
from clients.baselines.local_training import local_steps
from clients.baselines.minibatches import Minibatches
from codec import CodecError
from codec.gradients import Float32
from codec.gradients.joined import Joined
from codec.messages import LocalRequest


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def message(**changes: Any) -> Message:
    config = {"mode": "fedavg", "server-round": 1, "seed": 7, "batch-size": 5, "local-steps": 2}
    config |= {"learning-rate": 0.1, "momentum": 0.0, "weight-decay": 0.0, **changes}
    content = RecordDict({"config": ConfigRecord(config)})
    content["arrays"] = ArrayRecord(network().state_dict())
    return Message(content, 9, "train")


def context() -> Context:
    return Context(1, 9, {"partition-id": 4}, RecordDict(), {})


def source(count: int = 12) -> ArraySource:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)
    return ArraySource(samples, rng.integers(0, 3, count), 3, 0.0, 255.0)


def payload(reply: Message) -> ConfigRecord:
    record = reply.content["payload"]
    assert isinstance(record, ConfigRecord)
    return record


def metrics(reply: Message) -> MetricRecord:
    record = reply.content["metrics"]
    assert isinstance(record, MetricRecord)
    return record


def test_uncompressed_reply_is_the_model() -> None:
    reply = train_local(message(), context(), source(), network)
    arrays = reply.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    assert list(arrays) == list(network().state_dict())
    assert not any(key in payload(reply) for key in ("delta", "buffers"))
    assert "memory-bytes" not in metrics(reply)
    assert (metrics(reply)["num-examples"], payload(reply)["client"]) == (12, 4)


def test_change_is_that_of_the_trained_model() -> None:
    whole = train_local(message(), context(), source(), network).content["arrays"]
    assert isinstance(whole, ArrayRecord)
    trained = whole.to_torch_state_dict()
    reply = train_local(message(compressor="fp32", buffers=1), context(), source(), network)
    assert set(reply.content) == {"payload", "metrics"} and "buffers" in payload(reply)
    data = payload(reply)["delta"]
    assert isinstance(data, bytes)
    names = [name for name, _ in network().named_parameters()]
    before = network().state_dict()
    delta = Joined(Float32()).decompress(data, [tuple(before[name].shape) for name in names])
    for name, part in zip(names, delta, strict=True):
        torch.testing.assert_close(before[name] + torch.from_numpy(part), trained[name])


def test_rounds_go_on_through_the_epoch() -> None:
    """Two rounds of two steps take the minibatches of one round of four."""

    def trained(rounds: list[int], steps: int) -> dict[str, torch.Tensor]:
        model = network()
        for number in rounds:
            asked = LocalRequest(
                server_round=number,
                seed=7,
                batch_size=3,
                local_steps=steps,
                learning_rate=0.1,
                momentum=0.0,
                weight_decay=0.0,
            )
            local_steps(model, Minibatches.of(asked, 4, source(), None, None), asked)
        return dict(model.state_dict())

    one, other = trained([1, 2], 2), trained([1], 4)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_frozen_parameters_stay() -> None:
    def frozen() -> nn.Module:
        model = network()
        model[1].weight.requires_grad_(False)
        return model

    reply = train_local(message(compressor="fp32"), context(), source(), frozen)
    data = payload(reply)["delta"]
    assert isinstance(data, bytes)
    (vector,) = Joined(Float32()).decompress(data)
    assert len(vector) == sum(p.numel() for p in network().parameters()) - 16 * 8


def test_error_feedback_is_kept_and_counted() -> None:
    where = context()
    reply = train_local(message(compressor="top-k"), where, source(), network)
    count = sum(p.numel() for p in network().parameters())
    assert metrics(reply)["memory-bytes"] == 4 * count
    assert set(where.state) == {"delta-residual"}


def test_a_missing_model_is_named_and_without_samples_there_is_none() -> None:
    asked = message()
    del asked.content["arrays"]
    with pytest.raises(CodecError, match="must be the model's ArrayRecord"):
        train_local(asked, context(), source(), network)
    nothing = train_local(message(), context(), source(0), network)
    assert set(payload(nothing)) == {"client"} and metrics(nothing)["num-examples"] == 0
    assert "arrays" not in nothing.content
