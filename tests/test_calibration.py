"""Batch normalization calibrated on what some nodes see of their original samples."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message
from inprocess_grid import Client, InProcessGrid
from torch import nn

from clients import ArraySource, train
from clients.calibration import answer_calibration
from clients.reading import Reader
from codec import CodecError, CodecOptions
from codec.learning.batch_norm import decode_statistics, encode_statistics
from codec.messages import CalibrationRequest
from strategies import QuantizedDataReplay

SHAPE, CLASSES = (1, 8, 8), 3
COARSE = CodecOptions("dct", step=1.5)

pytestmark = pytest.mark.usefixtures("one_thread")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES)
    )


def plain_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))


def source(count: int, seed: int = 0) -> ArraySource:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    samples = rng.integers(0, 150, (count, *SHAPE)) + 50 * labels[:, None, None, None]
    return ArraySource(samples.astype(np.uint8), labels, CLASSES, 0.0, 255.0)


def client(count: int, seed: int, factory: Callable[[], nn.Module] | None = model) -> Client:
    data = source(count, seed)
    return lambda message, context: train(message, context, data, factory)


def run(
    clients: list[Client], rounds: int = 2, factory: Callable[[], nn.Module] = model, **options: Any
) -> tuple[QuantizedDataReplay, InProcessGrid]:
    strategy = QuantizedDataReplay(
        factory,
        lambda parameters: torch.optim.SGD(parameters, lr=0.05),
        device="cpu",
        seed=3,
        **{
            "codec": COARSE,
            "samples_per_round": 0,
            "server_steps": 4,
            "ema_decay": 0.9,
            "calibration_nodes": 2,
            "min_available_nodes": 1,
            **options,
        },
    )
    grid = InProcessGrid(clients)
    strategy.start(grid, num_rounds=rounds)
    return strategy, grid


def mean_and_variance(strategy: QuantizedDataReplay, images: np.ndarray) -> tuple[Any, Any]:
    """Return what the first normalization of the averaged weights would see of some images."""
    layers = list(copy.deepcopy(strategy.server_model.inference_model).children())
    with torch.no_grad():
        seen = layers[0](torch.from_numpy(images / np.float32(255)))
    return seen.mean(dim=(0, 2, 3)), seen.var(dim=(0, 2, 3))


# A client


def test_a_client_tells_the_statistics_of_its_samples_as_they_are() -> None:
    data, network = source(60), model()
    expected = copy.deepcopy(network)
    images = torch.from_numpy(data.samples / np.float32(255))
    torch.optim.swa_utils.update_bn([images], expected)
    request = CalibrationRequest(server_round=4, max_samples=100)
    reply = answer_calibration(request, network, Reader(data), key=7, client=5)
    assert (reply.client, reply.num_examples) == (5, 60)
    mean, variance = decode_statistics(reply.buffers, [(4,), (4,)])
    assert len(reply.buffers) < 2 * 8 + 30
    layer = list(expected.children())[1]
    assert isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None
    np.testing.assert_allclose(mean, layer.running_mean.numpy(), rtol=2e-3, atol=1e-4)
    assert layer.running_var is not None
    np.testing.assert_allclose(variance, layer.running_var.numpy(), rtol=2e-3)


def test_the_samples_are_drawn_anew_in_each_round_and_for_each_node() -> None:
    def told(**request: int) -> bytes:
        key = request.pop("key", 0)
        asked = CalibrationRequest(**{"server_round": 1, "max_samples": 20, **request})
        reply = answer_calibration(asked, model(), Reader(source(60)), key=key, client=0)
        assert reply.num_examples == 20
        return reply.buffers

    assert told() == told()
    assert len({told(), told(server_round=2), told(key=1), told(seed=1)}) == 4


@pytest.mark.parametrize(("count", "factory"), [(1, model), (9, plain_model)])
def test_a_client_says_why_it_cannot(count: int, factory: Callable[[], nn.Module]) -> None:
    request = CalibrationRequest(server_round=1)
    with pytest.raises(CodecError, match="nothing to calibrate with"):
        answer_calibration(request, factory(), Reader(source(count)), key=0, client=0)


# A run


def test_what_is_evaluated_normalizes_as_the_original_samples_do() -> None:
    sizes = (60, 40)
    strategy, _ = run([client(size, seed) for seed, size in enumerate(sizes)])
    assert not strategy.failures
    images = np.concatenate([source(size, seed).samples for seed, size in enumerate(sizes)])
    mean, variance = mean_and_variance(strategy, images)
    found = strategy.server_model.statistics
    torch.testing.assert_close(found[0], mean, rtol=2e-3, atol=2e-4)
    torch.testing.assert_close(found[1], variance, rtol=0.03, atol=1e-4)  # means of minibatches'
    without, _ = run([client(size, seed) for seed, size in enumerate(sizes)], calibration_nodes=0)
    coarse = without.server_model.statistics[1]
    assert (coarse < 0.9 * variance).all()  # what is coarse varies less


def test_as_many_nodes_are_asked_after_the_last_round_and_their_bytes_are_counted() -> None:
    asked: list[tuple[int, int]] = []

    def watched(inner: Client) -> Client:
        def answer(message: Message, context: Any) -> Message | None:
            config = message.content["config"]
            assert isinstance(config, ConfigRecord)
            if config["mode"] == "calibrate":
                asked.append((int(str(config["server-round"])), message.metadata.dst_node_id))
            return inner(message, context)

        return answer

    strategy, _ = run([watched(client(30, seed)) for seed in range(4)], rounds=3)
    assert [server_round for server_round, _ in asked] == [3, 3]
    assert len({node for _, node in asked}) == 2
    told = strategy.ledger.sections()["buffers"]
    assert 2 * 2 * 8 < told < 2 * 700
    assert strategy.ledger.sections("downlink")["arrays"] > 0
    without, _ = run([client(30, seed) for seed in range(4)], rounds=3, calibration_nodes=0)
    assert strategy.ledger.uplink_bytes == without.ledger.uplink_bytes + told


def test_nodes_that_cannot_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flwr")

    def liar(message: Message, context: Any) -> Message | None:
        reply = client(30, 9)(message, context)
        assert reply is not None
        payload = reply.content["payload"]
        assert isinstance(payload, ConfigRecord)
        if "buffers" in payload:
            payload["buffers"] = encode_statistics([np.ones(5, np.float32)] * 2)
        return reply

    strategy, _ = run([client(30, 0), client(30, 1, None), liar], calibration_nodes=3)
    mean, _ = mean_and_variance(strategy, source(30, 0).samples)
    torch.testing.assert_close(strategy.server_model.statistics[0], mean, rtol=2e-3, atol=2e-4)
    assert "calibrated by 1 nodes, on 30 original samples" in caplog.text
    assert sum(strategy.failures.values()) == 2


def test_without_anyone_a_run_ends_with_the_statistics_of_the_bank(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, logger="flwr")
    strategy, _ = run([client(30, seed, None) for seed in range(2)])
    without, _ = run([client(30, seed, None) for seed in range(2)], calibration_nodes=0)
    assert "none of 2 nodes could calibrate the model" in caplog.text
    for own, other in zip(
        strategy.server_model.statistics, without.server_model.statistics, strict=True
    ):
        torch.testing.assert_close(own, other)


def test_a_model_without_batch_normalization_asks_nobody() -> None:
    strategy, _ = run([client(30, seed, plain_model) for seed in range(2)], factory=plain_model)
    assert "buffers" not in strategy.ledger.sections() and not strategy.failures


def test_a_budget_of_the_run_has_room_for_it() -> None:
    nodes = [client(400, seed) for seed in range(3)]
    budget = 24_000
    strategy, _ = run(nodes, rounds=4, samples_per_round=0, uplink_budget_total=budget)
    assert strategy.ledger.sections()["buffers"] > 0
    assert 0.9 * budget < strategy.ledger.uplink_bytes <= budget
