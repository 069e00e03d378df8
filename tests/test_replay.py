"""The server trains on all it has received, and nothing it was sent gets lost."""

import logging
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from inprocess_grid import Client, InProcessGrid
from torch import nn

from clients import ArraySource, train
from codec import CodecOptions
from codec.identity import receipt
from codec.messages import ReplayRequest
from strategies import QuantizedDataReplay, RoundResult, SampleBank, ServerModel, train_on_bank
from strategies.replay import _remember

SHAPE, CLASSES, CLIENTS = (1, 4, 4), 2, 3
LOSSLESS = CodecOptions("lossless")
SIZES = (40, 30, 20)


pytestmark = pytest.mark.usefixtures("one_thread")


def _sources(sizes: tuple[int, ...] = SIZES) -> list[ArraySource]:
    """Bright and dark images; the first pixels say which image of which client it is."""
    rng = np.random.default_rng(1)
    sources = []
    for client, size in enumerate(sizes):
        labels = rng.integers(0, CLASSES, size)
        samples = rng.integers(0, 100, (size, *SHAPE)) + 100 * labels[:, None, None, None]
        samples[:, 0, 0, 0], samples[:, 0, 0, 1] = client, np.arange(size)
        sources.append(ArraySource(samples.astype(np.uint8), labels, CLASSES, 0.0, 255.0))
    return sources


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.2)


def _client(source: ArraySource) -> Client:
    return lambda message, context: train(message, context, source, _model)


def _grid(sizes: tuple[int, ...] = SIZES) -> InProcessGrid:
    return InProcessGrid([_client(source) for source in _sources(sizes)])


def _strategy(**options: Any) -> QuantizedDataReplay:
    settings: dict[str, Any] = {
        "codec": LOSSLESS,
        "samples_per_round": 10,
        "server_steps": 5,
        "server_batch_size": 16,
        "min_available_nodes": 1,
        "device": "cpu",
        "seed": 3,
    }
    model = options.pop("model", _model)
    return QuantizedDataReplay(model(), _sgd, **{**settings, **options})


def _marks(bank: SampleBank) -> list[tuple[int, int]]:
    """Which images of which clients the bank holds."""
    samples, _, _ = next(bank.minibatches(len(bank), 1, np.random.default_rng(0)))
    first = (samples[:, 0, 0, :2] * 255).round().int().tolist()
    return sorted((client, image) for client, image in first)


ALL_MARKS = sorted((client, image) for client, size in enumerate(SIZES) for image in range(size))


def test_every_sample_arrives_once_and_then_rounds_are_free() -> None:
    results: list[RoundResult] = []
    grid, strategy = _grid(), _strategy(on_round=results.append)
    strategy.start(grid, num_rounds=6)
    assert [result.samples_sent for result in results] == [30, 30, 20, 10, 0, 0]
    assert [len(sent) for sent in grid.requests[::2]] == [3, 3, 2, 1, 0, 0]
    assert _marks(strategy.bank) == ALL_MARKS
    assert strategy.book.samples_sent == sum(SIZES)
    assert [result.steps_taken for result in results] == [5] * 6
    assert [r.uplink_bytes + r.downlink_bytes for r in results[4:]] == [0, 0]
    assert "round_trip" not in results[5].seconds
    assert not strategy.failures


def test_it_learns() -> None:
    strategy = _strategy(server_steps=60, samples_per_round=0)
    strategy.start(_grid(), num_rounds=2)
    test = _sources((200,))[0]
    samples, targets = test.get_items(np.arange(200))
    _, accuracy = strategy.server_model.evaluate(samples, targets, low=0, high=255)
    assert accuracy > 0.95
    assert strategy.steps_taken == 120


def test_no_model_goes_down_unless_scores_need_it() -> None:
    for importance, sent in (("all", False), ("random", False), ("loss", True)):
        strategy = _strategy(importance=importance)
        strategy.start(_grid(), num_rounds=1)
        assert (strategy.ledger.sections("downlink")["arrays"] > 0) is sent
        assert strategy.book.samples_sent == 30


def _round_of(message: Message) -> int:
    record = message.content["config"]
    assert isinstance(record, ConfigRecord)
    value = record["server-round"]
    assert isinstance(value, int)
    return value


def _is_question(message: Message) -> bool:
    record = message.content["config"]
    return isinstance(record, ConfigRecord) and record["mode"] == "describe"


def _fails_in(rounds: tuple[int, ...], how: str, client: Client) -> Client:
    """A client whose work of some rounds does not reach the server."""

    def failing(message: Message, context: Context) -> Message | None:
        reply = client(message, context)
        if _round_of(message) not in rounds or _is_question(message):
            return reply
        if how == "silent":
            return None
        if how == "error":
            raise OSError("connection lost")
        record = reply.content["payload"]
        assert isinstance(record, ConfigRecord) and isinstance(record["samples"], bytes)
        record["samples"] = record["samples"][:-3]
        return Message(RecordDict(dict(reply.content)), reply_to=message)

    return failing  # type: ignore[return-value]


@pytest.mark.parametrize("how", ["silent", "error", "truncated"])
def test_nothing_is_lost_when_replies_fail(how: str) -> None:
    clients = [_client(source) for source in _sources()]
    clients[0] = _fails_in((1, 3), how, clients[0])
    clients[2] = _fails_in((2,), how, clients[2])
    strategy = _strategy()
    strategy.start(InProcessGrid(clients), num_rounds=7)
    assert sum(strategy.failures.values()) == 3
    assert _marks(strategy.bank) == ALL_MARKS


def test_acknowledged_is_the_receipt_of_the_last_accepted_reply() -> None:
    clients = [_client(source) for source in _sources()]
    clients[0] = _fails_in((1, 3), "truncated", clients[0])
    grid = InProcessGrid(clients)
    _strategy().start(grid, num_rounds=4)
    node_id = next(iter(grid.clients))
    acknowledged, receipts = [], []
    for sent, answers in zip(grid.requests[::2], grid.replies[::2], strict=True):
        (request,) = (message for message in sent if message.metadata.dst_node_id == node_id)
        asked = ReplayRequest.from_entries(request.content.config_records["config"])
        acknowledged.append(asked.acknowledged)
        (reply,) = (message for message in answers if message.metadata.src_node_id == node_id)
        samples = reply.content.config_records["payload"]["samples"]
        assert isinstance(samples, bytes)
        receipts.append(receipt((samples,)))
    assert acknowledged == [b"", b"", receipts[1], receipts[1]]


def test_all_replies_failed_is_a_round_without_steps(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    results: list[RoundResult] = []
    grid = InProcessGrid([_fails_in((1,), "error", _client(_sources()[0]))])
    with caplog.at_level(logging.WARNING, logger="flwr"):
        _strategy(on_round=results.append).start(grid, num_rounds=2)
    assert [result.steps_taken for result in results] == [0, 5]
    assert np.isnan(results[0].train_loss)
    assert any("no sample has arrived yet" in record.getMessage() for record in caplog.records)


def test_the_central_baseline_runs_the_same_loop() -> None:
    """One client that sends all at once, losslessly, is central training on its data."""
    source = _sources((60,))[0]
    strategy = _strategy(samples_per_round=0)
    strategy.start(InProcessGrid([_client(source)]), num_rounds=3)

    central = ServerModel(_model(), _sgd, device="cpu")
    bank = SampleBank()
    # In the order in which the client sent them, so that minibatches can be compared.
    held = strategy.bank._store.part(0, 60)
    bank.add_arrays(held.samples, held.targets, low=0, high=255)
    for server_round in (1, 2, 3):
        train_on_bank(central, bank, steps=5, batch_size=16, seed=3, server_round=server_round)
    for ours, other in zip(strategy.model.parameters(), central.model.parameters(), strict=True):
        assert torch.equal(ours, other)


def test_averaged_normalization_is_calibrated_on_the_last_plain_minibatches() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, CLASSES))

    def blank(samples: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.zeros_like(samples)

    server = ServerModel(model, torch.optim.SGD, device="cpu", ema_decay=0.9)
    samples = np.random.default_rng(0).integers(0, 256, (64, *SHAPE)).astype(np.uint8)
    bank = SampleBank()
    bank.add_arrays(samples, np.arange(64) % CLASSES, low=0, high=255)
    # Four minibatches of an epoch: the statistics are those of all samples, none of them blank.
    train_on_bank(server, bank, steps=4, batch_size=16, seed=3, server_round=1, augment=blank)
    averaged = dict(server.inference_model.named_buffers())
    assert float(averaged["0.running_mean"]) == pytest.approx(samples.mean() / 255, rel=1e-5)
    assert float(averaged["0.running_var"]) == pytest.approx(samples.var() / 255**2, rel=0.02)
    assert float(dict(server.model.named_buffers())["0.running_mean"]) == 0  # as it was trained


def test_only_the_last_minibatches_are_kept_for_calibration() -> None:
    recent: deque[torch.Tensor] = deque()
    for number in range(100):
        _remember(recent, torch.full((64, 1, 4, 4), float(number)))
    assert [float(batch[0, 0, 0, 0]) for batch in recent] == [*range(68, 100)]
    for _ in range(3):  # as large as may be kept: one is enough
        _remember(recent, torch.zeros(()).expand(2, 3, 2048, 2048))
    assert len(recent) == 1


def test_runs_are_reproducible() -> None:
    def noisy(samples: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return samples + 0.1 * torch.randn(samples.shape, generator=generator)

    runs = []
    for seed in (0, 1):
        strategy = _strategy(importance="loss", augment=noisy, client_key="partition")
        clients = list(_grid().clients.values())
        strategy.start(InProcessGrid(clients, seed), num_rounds=3)
        runs.append([parameter.detach().clone() for parameter in strategy.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    plain = _strategy(importance="loss", client_key="partition")
    plain.start(_grid(), num_rounds=3)
    assert not torch.equal(runs[0][0], next(plain.model.parameters()))


def test_a_client_with_other_samples_is_refused() -> None:
    sources = _sources()
    other = ArraySource(np.zeros((10, 1, 5, 5), np.uint8), np.zeros(10, int), CLASSES, 0.0, 255.0)
    grid = InProcessGrid([_client(source) for source in (*sources, other)])
    strategy = _strategy()
    strategy.start(grid, num_rounds=2)
    assert strategy.failures == {"error": 2}  # the client itself checks the terms
    assert "(1, 5, 5), the server's model takes (1, 4, 4)" in strategy.book.why()
    assert strategy.book.samples_sent == 60


def test_nodes_that_come_late_are_waited_for_and_nodes_that_leave_are_not() -> None:
    class LateGrid(InProcessGrid):
        looks = 0

        def get_node_ids(self) -> list[int]:
            LateGrid.looks += 1
            nodes = list(self.clients)
            if LateGrid.looks == 1:
                return nodes[:1]
            return nodes if LateGrid.looks < 5 else []

    strategy = _strategy(samples_per_round=0, min_available_nodes=CLIENTS)
    grid = LateGrid([_client(source) for source in _sources()])
    strategy.start(grid, num_rounds=5)
    assert [len(sent) for sent in grid.requests[::2]] == [3, 0, 0, 0, 0]
    assert strategy.steps_taken == 25


def test_train_config_is_passed_on() -> None:
    grid = _grid()
    _strategy().start(grid, num_rounds=1, train_config=ConfigRecord({"site": "north"}))
    record = grid.requests[0][0].content["config"]
    assert isinstance(record, ConfigRecord)
    assert record["site"] == "north" and record["mode"] == "replay" and record["server-round"] == 1


def test_summary_and_progress_are_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    monkeypatch.setattr("strategies.replay._LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, logger="flwr"):
        _strategy().start(_grid(), num_rounds=1)
    text = "\n".join(record.getMessage() for record in caplog.records)
    for part in (
        "154 parameters",
        "codec: lossless",
        "server-steps: 5",
        "fraction-train: 1.0",
        "min-available-nodes: 1",
        "quorum: 1.0",
        "└── request-window: 0",
        "training: 5/5 steps, loss",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("samples_per_round", -1),
        ("uplink_budget", -5),
        ("server_steps", -1),
        ("server_batch_size", 0),
        ("pool_factor", 0.5),
        ("memory_limit", 0),
        ("keep_rate", 1.5),
    ],
)
def test_illegal_options(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{option} = {value} must be"):
        _strategy(**{option: value})
