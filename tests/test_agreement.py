"""Both ends agree on shapes, classes and a step that works before a sample is paid for."""

import itertools
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message
from inprocess_grid import Client, InProcessGrid
from small_task import raising_client
from torch import nn

from clients import ArraySource, train
from codec import CodecError, SampleSpec
from codec.messages import Description, Terms
from strategies import QuantizedDataReplay, QuantizedDataStreaming, RehearsalError, RunFailed

SHAPE, CLASSES = (1, 8, 8), 3
SGD = partial(torch.optim.SGD, lr=0.1)
NAMES = ("bird", "cat", "dog")

pytestmark = pytest.mark.usefixtures("one_thread")

_SEEDS = itertools.count()


def _model(outputs: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    return nn.Sequential(pooled, nn.Linear(64, outputs))


def _source(
    shape: tuple[int, ...] = SHAPE, size: int = 12, names: tuple[str, ...] = ()
) -> ArraySource:
    rng = np.random.default_rng(next(_SEEDS))  # what two nodes have alike is kept once
    samples = rng.integers(0, 256, (size, *shape), dtype=np.uint8)
    classes = len(names) or CLASSES
    return ArraySource(samples, np.arange(size) % classes, classes, 0.0, 255.0, class_names=names)


def _client(source: Any, **options: Any) -> Client:
    return lambda message, context: train(message, context, source, **options)


def _strategy(model: Callable[[], nn.Module] = _model, **options: Any) -> QuantizedDataReplay:
    settings: dict[str, Any] = {"server_steps": 2, "device": "cpu", "codec": "lossless"}
    return QuantizedDataReplay(model, SGD, **{**settings, **options})


class _Asking(InProcessGrid):
    """A grid that also keeps who was asked to describe samples, exchange by exchange."""

    def __init__(self, clients: list[Client]) -> None:
        super().__init__(clients)
        self.described: list[list[int]] = []

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        sent = list(messages)
        if sent and _config(sent[0]).get("mode") == "describe":
            self.described.append([message.metadata.dst_node_id for message in sent])
        return super().send_and_receive(sent, timeout=timeout)


def _config(message: Message) -> ConfigRecord:
    record = message.content["config"]
    assert isinstance(record, ConfigRecord)
    return record


def _terms(message: Message) -> Terms:
    data = _config(message)["terms"]
    assert isinstance(data, bytes)
    return Terms.from_bytes(data)


def test_what_is_stated_is_asked_of_nobody() -> None:
    grid = _Asking([_client(_source())] * 2)
    strategy = _strategy(samples=SampleSpec(SHAPE, "uint8", 0, 255, CLASSES), class_names=NAMES)
    strategy.start(grid, num_rounds=2)
    assert grid.described == []
    told = Terms(shape=SHAPE, outputs=CLASSES, class_names=NAMES)
    assert [_terms(message) for message in grid.requests[0]] == [told] * 2
    assert "description" not in strategy.ledger.sections()


def test_three_nodes_describe_their_samples_once() -> None:
    grid = _Asking([_client(_source()) for _ in range(5)])
    strategy = _strategy()
    strategy.start(grid, num_rounds=3)
    assert [len(asked) for asked in grid.described] == [3]
    assert _terms(grid.requests[0][0]) == Terms(shape=SHAPE, outputs=CLASSES)
    assert len(strategy.bank) == 5 * 12 and not strategy.failures
    assert 0 < strategy.ledger.sections()["description"] < 3 * 500
    for node_id in grid.described[0]:
        entries = [e for e in strategy.ledger.entries if e.node_id == node_id]
        assert [e.direction for e in entries[:2]] == ["downlink", "uplink"]


def test_few_bytes_are_paid_for_the_terms() -> None:
    assert len(Terms(shape=(3, 32, 32), outputs=10).to_bytes()) < 40
    names = tuple(f"class {number}" for number in range(100))
    assert len(Terms(shape=(3, 32, 32), outputs=100, class_names=names).to_bytes()) < 1200


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_one_odd_device_is_outvoted(place: int) -> None:
    """The model takes any size: only the others' samples tell which is right."""
    sources = [_source() for _ in range(4)]
    sources[place] = _source((1, 12, 12))
    grid = _Asking([_client(source) for source in sources])
    grid.clients = dict(zip(sorted(grid.clients), grid.clients.values(), strict=True))
    grid.contexts = {n: grid.contexts[n] for n in grid.clients}
    strategy = _strategy()
    strategy.start(grid, num_rounds=2)
    assert len(strategy.bank) == 3 * 12
    assert strategy.failures == {"error": 2}
    assert "(1, 12, 12), the server's model takes (1, 8, 8)" in strategy.book.why()


@pytest.mark.parametrize("outputs", [CLASSES, 1])
def test_floats_that_are_whole_are_what_the_model_can_learn(outputs: int) -> None:
    """Labels for cross-entropy, numbers for a squared error: the data alone do not tell."""
    rows = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
    samples = list(zip(rows, (np.arange(120) % CLASSES).astype(np.float32), strict=True))
    strategy = _strategy(
        lambda: nn.Linear(5, outputs), criterion=nn.MSELoss() if outputs == 1 else None
    )
    strategy.start(_Asking([_client(samples[:60]), _client(samples[60:])]), num_rounds=1)
    assert len(strategy.bank) == 120 and not strategy.failures
    assert strategy.steps_taken == 2


def test_samples_that_fail_the_rehearsal_stop_nobody_else() -> None:
    def rigid() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))

    odd, even = _source((1, 9, 9)), _source()
    grid = _Asking([_client(odd), _client(odd), _client(even)])
    strategy = _strategy(rigid)
    strategy.start(grid, num_rounds=1)
    assert len(strategy.bank) == 12


def test_nodes_that_failed_are_asked_last() -> None:
    clients = [raising_client] * 3 + [_client(_source())]
    grid = _Asking(clients)
    order = sorted(grid.clients)
    grid.clients = dict(zip(order, clients, strict=True))
    strategy = _strategy()
    strategy.start(grid, num_rounds=3)
    assert grid.described == [order[:3], [order[3], *order[:2]]]
    assert len(strategy.bank) == 12
    assert strategy.failures == {"error": 3 + 2 + 3 * 2}


def test_nobody_fits_and_nothing_is_sent() -> None:
    def wide() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(100, CLASSES))

    grid = _Asking([_client(_source())] * 2)
    strategy = _strategy(wide)
    with pytest.raises(RunFailed, match=r"do not fit; nothing was sent. node \d+: .*\(1, 8, 8\)"):
        strategy.start(grid, num_rounds=10)
    assert grid.requests == [] and len(grid.described) == 1
    assert strategy.book.samples_sent == 0


def test_errors_end_the_run_after_three_rounds_in_the_clients_words() -> None:
    grid = _Asking([raising_client] * 2)
    with pytest.raises(RunFailed, match="device is full"):
        _strategy().start(grid, num_rounds=10)
    assert len(grid.described) == 3


def test_silence_that_ends_stops_nothing() -> None:
    calls = []

    def slow(message: Message, context: Context) -> Message | None:
        calls.append(message)
        return None if len(calls) <= 5 else train(message, context, _source())

    strategy = _strategy()
    strategy.start(InProcessGrid([slow]), num_rounds=7)  # type: ignore[list-item]  # None
    assert strategy.failures == {"no-reply": 5}
    assert len(strategy.bank) == 12


def test_one_who_is_silent_is_no_cause_to_fail() -> None:
    """All who answered do not fit, but not all have answered."""

    def wide() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(81, CLASSES))

    calls = []

    def slow(message: Message, context: Context) -> Message | None:
        calls.append(message)
        return None if len(calls) <= 4 else train(message, context, _source((1, 9, 9)))

    strategy = _strategy(wide)
    strategy.start(InProcessGrid([_client(_source()), slow]), num_rounds=6)  # type: ignore[list-item]
    assert len(strategy.bank) == 12


def test_a_model_that_cannot_learn_is_refused_before_anybody_is_asked() -> None:
    grid = _Asking([_client(_source())])
    strategy = _strategy(partial(_model, 2), samples=SampleSpec(SHAPE, "uint8", 0, 255, CLASSES))
    with pytest.raises(RehearsalError, match="2 outputs for 3 classes"):
        strategy.start(grid, num_rounds=3)
    assert not grid.requests and not grid.described


def test_shape_that_was_asked_for() -> None:
    grid = _Asking([_client(_source())])
    with pytest.raises(RunFailed, match=r"samples are \(1, 8, 8\); sample_shape is \(1, 9, 9\)"):
        _strategy(sample_shape=(1, 9, 9)).start(grid, num_rounds=2)
    stated = SampleSpec(SHAPE, "uint8", 0, 255, CLASSES)
    with pytest.raises(CodecError, match=r"sample_shape is \(1, 9, 9\)"):
        _strategy(sample_shape=(1, 9, 9), samples=stated).start(grid, num_rounds=2)


def test_too_many_class_names() -> None:
    with pytest.raises(RunFailed, match="4 class names, the model has 3 outputs"):
        _strategy(class_names=("a", "b", "c", "d")).start(_Asking([_client(_source())]))


def test_a_single_output_tells_two_classes_apart() -> None:
    samples = np.arange(6, dtype=np.uint8).repeat(np.prod(SHAPE)).reshape(6, *SHAPE)
    two = ArraySource(samples, np.arange(6) % 2, 2, 0.0, 255.0)
    strategy = _strategy(partial(_model, 1), criterion=nn.BCEWithLogitsLoss())
    strategy.start(InProcessGrid([_client(two)]), num_rounds=1)
    assert len(strategy.bank) == 6 and not strategy.failures


# Class names


def _folders(*names: tuple[str, ...]) -> list[Client]:
    """Devices whose images of one class are alike: bright as the class's name says."""
    bright = {"bird": 10, "cat": 120, "dog": 240}
    clients = []
    for own in names:
        labels = np.arange(8 * len(own)) % len(own)
        values = np.array([bright[own[label]] for label in labels], np.uint8)
        samples = np.broadcast_to(values[:, None, None, None], (len(labels), *SHAPE)).copy()
        samples[:, 0, -1, -1] = np.arange(len(labels))  # no two are the same
        clients.append(_client(ArraySource(samples, labels, len(own), 0.0, 255.0, class_names=own)))
    return clients


def _labels_by_brightness(strategy: QuantizedDataReplay) -> dict[int, set[int]]:
    samples, targets, _ = next(
        strategy.bank.minibatches(len(strategy.bank), 1, np.random.default_rng(0))
    )
    found: dict[int, set[int]] = {}
    for sample, target in zip(samples, targets, strict=True):
        found.setdefault(round(float(sample.flatten()[0]) * 255), set()).add(int(target))
    return found


def test_labels_are_mapped_to_the_servers_classes_by_name() -> None:
    strategy = _strategy(class_names=NAMES)
    strategy.start(InProcessGrid(_folders(("bird", "cat"), ("cat", "dog"))), num_rounds=1)
    assert _labels_by_brightness(strategy) == {10: {0}, 120: {1}, 240: {2}}
    assert not strategy.failures and not strategy.book.skipped


def test_without_names_of_its_own_the_server_takes_those_of_the_nodes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    devices = _folders(("bird", "cat"), ("bird", "cat"), ("cat", "dog"))
    strategy, grid = _strategy(partial(_model, 2)), InProcessGrid(devices)
    with caplog.at_level(logging.INFO, logger="flwr"):
        strategy.start(grid, num_rounds=1)
    assert _terms(grid.requests[0][0]).class_names == ("bird", "cat")
    assert _labels_by_brightness(strategy) == {10: {0}, 120: {1}}
    assert strategy.book.skipped == {"class 'dog' is unknown to the server": 8}
    assert any("bird, cat; labels of other nodes are mapped by name" in m for m in caplog.messages)


def test_labels_of_different_meanings_are_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server states classes but not their names, digests of the names are compared."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    spec = SampleSpec(SHAPE, "uint8", 0, 255, 2)
    strategy = _strategy(partial(_model, 2), samples=spec)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        strategy.start(
            InProcessGrid(_folders(("bird", "cat"), ("cat", "dog"), ("dog", "bird"))), num_rounds=1
        )
    told = [text for text in caplog.messages if "classes of different names" in text]
    assert len(told) == 1 and "class_names=" in told[0]


# Replies against the terms


def test_a_reply_unlike_the_others_costs_only_itself() -> None:
    """A client that does not look at the terms sends float targets where others send labels."""

    def unaware(message: Message, context: Context) -> Message:
        config = _config(message)
        config["terms"] = Terms().to_bytes()
        rng = np.random.default_rng(0)
        samples = rng.integers(0, 256, (12, *SHAPE), dtype=np.uint8)
        floats = ArraySource(samples, rng.random(12).astype(np.float32), 0, 0.0, 255.0)
        return train(message, context, floats)

    grid = InProcessGrid([*[_client(_source()) for _ in range(3)], unaware])
    strategy = _strategy(samples=SampleSpec(SHAPE, "uint8", 0, 255, CLASSES))
    strategy.start(grid, num_rounds=2)
    assert strategy.failures == {"target": 2}
    assert len(strategy.bank) == 36


@pytest.mark.parametrize("streaming", [False, True])
def test_a_token_beyond_the_vocabulary_costs_only_its_client(streaming: bool) -> None:
    def embedding() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(24, 2))

    def tokens(highest: int) -> Client:
        rng = np.random.default_rng(0)
        samples = rng.integers(0, highest, (12, 6)).astype(np.int32)
        samples[0, 0] = highest - 1
        return _client((samples, np.arange(12) % 2))

    grid = InProcessGrid([tokens(50), tokens(50), tokens(50), tokens(90)])
    order = sorted(grid.clients)
    grid.clients = dict(zip(order, [tokens(50)] * 3 + [tokens(90)], strict=True))
    strategy: Any = (
        QuantizedDataStreaming(embedding, SGD, batch_size=12, device="cpu")
        if streaming
        else _strategy(embedding)
    )
    strategy.start(grid, num_rounds=2)
    assert strategy.failures == {"fit": 2}
    assert strategy.steps_taken == (2 if streaming else 4)


def test_a_description_without_a_shape_is_none() -> None:
    def nothing(message: Message, context: Context) -> Message:
        reply = train(message, context, _source())
        if _config(message)["mode"] == "describe":
            record: Any = reply.content["payload"]
            del record["shape"]
        return reply

    strategy = _strategy()
    with pytest.raises(RunFailed, match="names no shape"):
        strategy.start(InProcessGrid([nothing]), num_rounds=4)
    assert Description(client=0, num_examples=1).shape == ()
