from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import nn

from clients import ArraySource
from clients.baselines import train_gradient
from clients.baselines.gradient import GradientMemory, compress_gradient
from codec import CodecError, Compression, generator
from codec.gradients.tensors import Array
from codec.messages import GradientRequest

SHAPES: list[tuple[int, ...]] = [(20, 30), (7,), ()]


def gradient(seed: int) -> list[Array]:
    random = np.random.default_rng(seed)
    return [np.asarray(random.standard_normal(shape), np.float32) for shape in SHAPES]


def request(compressor: str, momentum_correction: float = 0.0, **rate: Any) -> GradientRequest:
    return GradientRequest(
        server_round=1,
        batch_size=4,
        compression=Compression(compressor, **rate),
        momentum_correction=momentum_correction,
    )


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def message(**changes: Any) -> Message:
    config = {"mode": "gradient", "server-round": 1, "seed": 7, "batch-size": 5}
    config |= {"compressor": "fp32", **changes}
    content = RecordDict({"config": ConfigRecord(config)})
    content["arrays"] = ArrayRecord(network().state_dict())
    return Message(content, 9, "train")


def context(**node: Any) -> Context:
    return Context(1, 9, node, RecordDict(), {})


def source(count: int = 12) -> ArraySource:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)
    return ArraySource(samples, rng.integers(0, 3, count), 3, 0.0, 255.0)


def test_masked_velocity_starts_anew_where_it_was_sent() -> None:
    asked = request("top-k", density=0.1, momentum_correction=0.5)
    _, memory = compress_gradient(gradient(0), asked, GradientMemory(), generator(0))
    assert memory.velocity is not None and memory.residual is not None
    velocity = np.concatenate([part.ravel() for part in memory.velocity])
    residual = memory.residual[0]
    assert np.count_nonzero(velocity == 0) == np.ceil(0.1 * 608)
    assert np.array_equal(velocity == 0, residual == 0)
    kept = [part.copy() for part in memory.velocity]
    _, after = compress_gradient(gradient(1), asked, memory, generator(1))
    assert all(np.array_equal(a, b) for a, b in zip(kept, memory.velocity, strict=True))
    assert after.velocity is not None
    untouched = after.velocity[0] != 0
    expected = 0.5 * kept[0] + gradient(1)[0]
    np.testing.assert_allclose(after.velocity[0][untouched], expected[untouched], rtol=1e-6)
    assert memory.nbytes == 2 * 4 * 608


def test_without_correction_there_is_no_velocity() -> None:
    _, memory = compress_gradient(gradient(0), request("top-k"), GradientMemory(), generator(0))
    assert memory.velocity is None and memory.nbytes == 4 * 608


def test_memory_survives_the_state() -> None:
    state = RecordDict()
    assert GradientMemory.from_state(state) == GradientMemory()
    GradientMemory().to_state(state)
    assert not state
    GradientMemory(gradient(0), gradient(1)).to_state(state)
    found = GradientMemory.from_state(state)
    for kept, seed in ((found.residual, 0), (found.velocity, 1)):
        assert kept is not None
        assert all(np.array_equal(a, b) for a, b in zip(kept, gradient(seed), strict=True))


def test_memory_of_another_model_is_refused() -> None:
    with pytest.raises(CodecError, match="memory"):
        compress_gradient(
            gradient(0),
            request("top-k"),
            GradientMemory([np.zeros(3, np.float32)]),
            generator(0),
        )


def test_reply_holds_a_payload_and_metrics() -> None:
    reply = train_gradient(message(), context(**{"partition-id": 4}), source(), network)
    assert set(reply.content) == {"payload", "metrics"}
    record, metrics = reply.content["payload"], reply.content["metrics"]
    assert isinstance(record, ConfigRecord) and isinstance(metrics, MetricRecord)
    assert set(record) == {"gradient", "client"} and record["client"] == 4
    assert set(metrics) == {"num-examples", "seconds-gradient", "seconds-compress"}
    assert metrics["num-examples"] == 5


def test_client_without_samples_has_no_gradient() -> None:
    reply = train_gradient(message(), context(), source(0), network)
    record, metrics = reply.content["payload"], reply.content["metrics"]
    assert isinstance(record, ConfigRecord) and isinstance(metrics, MetricRecord)
    assert (record["gradient"], metrics["num-examples"]) == (b"", 0)


def test_client_without_config_says_so() -> None:
    with pytest.raises(CodecError, match="ConfigRecord"):
        train_gradient(Message(RecordDict(), 9, "train"), context(), source(), network)


def test_gradient_that_is_not_finite_is_refused_and_forgotten() -> None:
    def nan(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none") * float("nan")

    where = context()
    with pytest.raises(CodecError, match="finite"):
        train_gradient(message(compressor="top-k"), where, source(), network, criterion=nan)
    assert not where.state
