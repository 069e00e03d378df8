"""Replies are read as they come: the results are those of reading them all at the end."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from late_grid import LateGrid, clock_of
from small_task import CLASSES, SHAPE, make_model, random_sources

from clients import ArraySource, train
from clients.baselines import train_gradient, train_local
from codec import SampleSpec
from sim.direct_grid import Client
from strategies import QuantizedDataReplay, QuantizedDataStreaming, RoundResult
from strategies.baselines import CompressedFedAvg, GradientCompression
from strategies.early_reading import EarlyReader
from strategies.received import BadReply

SPEC = SampleSpec(SHAPE, "uint8", 0, 255, CLASSES)
SGD = partial(torch.optim.SGD, lr=0.1)
SIZES = (30, 25, 20, 15, 10)

pytestmark = pytest.mark.usefixtures("one_thread")


def _replay(kind: type[QuantizedDataReplay] = QuantizedDataReplay, **options: Any) -> Any:
    few: dict[str, Any] = {"server_steps": 3, "samples_per_round": 8, "client_key": "partition"}
    return kind(make_model, SGD, device="cpu", samples=SPEC, **few, **options)


def _streaming() -> Any:
    return QuantizedDataStreaming(
        make_model, SGD, device="cpu", samples=SPEC, batch_size=8, refinement="eden",
        client_key="partition",
    )  # fmt: skip


def _gradient() -> Any:
    return GradientCompression(
        make_model, SGD, device="cpu", batch_size=8, compression="qsgd", client_key="partition"
    )


def _fed_avg() -> Any:
    return CompressedFedAvg(
        make_model, learning_rate=lambda _: 0.1, device="cpu", local_steps=2, batch_size=8,
        compression="qsgd", client_key="partition",
    )  # fmt: skip


def _answers(answer: Callable[..., Message]) -> list[Client]:
    def of(source: ArraySource) -> Client:
        if answer is train:
            return lambda message, context: train(message, context, source, model=make_model)
        return lambda message, context: answer(message, context, source, make_model)

    return [of(source) for source in random_sources(SIZES)]


def _run(strategy: Any, clients: list[Client], delays: Iterable[float], rounds: int = 3) -> Any:
    waits = list(delays)
    grid = LateGrid(clients, lambda node, _: waits[node])
    with clock_of(grid):
        strategy.start(grid, num_rounds=rounds, timeout=60.0)
    return grid


def _outcome(strategy: Any, grid: LateGrid) -> tuple[Any, ...]:
    state = {name: value.tolist() for name, value in strategy.model.state_dict().items()}
    return state, strategy.ledger.sections(), dict(strategy.failures), strategy.steps_taken


ORDERS = [(1, 2, 3, 4, 5), (5, 4, 3, 2, 1), (3, 1, 5, 2, 4), (2, 2, 2, 2, 2)]


@pytest.mark.parametrize(
    ("make", "answer"),
    [(_replay, train), (_streaming, train), (_gradient, train_gradient), (_fed_avg, train_local)],
)
@pytest.mark.parametrize("window", [0, 2])
def test_results_are_the_same_in_every_order_of_arrival(
    make: Callable[[], Any],
    answer: Callable[..., Message],
    window: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def outcome(delays: Iterable[float], *, early: bool) -> tuple[Any, ...]:
        strategy = make()
        object.__setattr__(strategy.participation, "request_window", window if early else 0)
        if not early:
            monkeypatch.setattr(strategy, "read_early", lambda message: None)
        grid = _run(strategy, _answers(answer), delays)
        return _outcome(strategy, grid)

    expected = outcome(ORDERS[0], early=False)
    assert not expected[2] and expected[3]
    for delays in ORDERS:
        assert outcome(delays, early=True) == expected


def test_all_is_read_before_the_last_reply_is_here() -> None:
    """Reading is over in another thread when `collect` begins, but for the last reply at most."""
    threads: list[tuple[int, str]] = []
    read_before_end: list[int] = []

    class Watched(QuantizedDataReplay):
        def read(self, message: Message) -> Any:
            threads.append((message.metadata.src_node_id, threading.current_thread().name))
            return super().read(message)

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            assert self._reader is not None
            begun = list(self._reader._begun.values())
            for one in begun:
                one.result.result(timeout=30)
            read_before_end.append(len(begun))
            before = len(threads)
            found = super().aggregate_train(server_round, replies)
            assert len(threads) == before  # nothing is read twice
            return found

    strategy = _replay(Watched)
    _run(strategy, _answers(train), ORDERS[0], rounds=2)
    assert read_before_end == [5, 5] and len(threads) == 10
    assert all(name.startswith("reader") for _, name in threads)
    assert all(not thread.name.startswith("reader") for thread in threading.enumerate())


@pytest.mark.parametrize("bad", range(5))
def test_a_corrupt_reply_fails_alone(bad: int) -> None:
    def corrupting(client: Client) -> Client:
        def answer(message: Message, context: Context) -> Message:
            reply = client(message, context)
            payload = reply.content["payload"]
            assert isinstance(payload, ConfigRecord)
            samples = bytearray(payload["samples"])  # type: ignore[arg-type]
            samples[len(samples) // 2] ^= 0xFF
            payload["samples"] = bytes(samples)
            return reply

        return answer

    clients = _answers(train)
    clients[bad] = corrupting(clients[bad])
    results: list[RoundResult] = []
    strategy = _replay(on_round=results.append)
    _run(strategy, clients, ORDERS[2], rounds=1)
    assert dict(strategy.failures) == {"payload": 1}
    assert results[0].answered == 4 and len(strategy.bank) == 4 * 8


def test_what_a_host_makes_of_a_reply_is_read() -> None:
    """A subclass may change replies in place, such as to decrypt them."""

    def masked(data: bytes) -> bytes:
        return bytes(np.frombuffer(data, np.uint8) ^ 0x55)

    def masking(client: Client) -> Client:
        def answer(message: Message, context: Context) -> Message:
            reply = client(message, context)
            payload = reply.content["payload"]
            assert isinstance(payload, ConfigRecord)
            payload["samples"] = masked(payload["samples"])  # type: ignore[arg-type]
            return reply

        return answer

    class Unmasking(QuantizedDataReplay):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            messages = list(replies)
            for message in messages:
                payload = message.content["payload"]
                assert isinstance(payload, ConfigRecord)
                payload["samples"] = masked(payload["samples"])  # type: ignore[arg-type]
            return super().aggregate_train(server_round, messages)

    strategy = _replay(Unmasking)
    _run(strategy, [masking(client) for client in _answers(train)], ORDERS[1], rounds=1)
    assert not strategy.failures and len(strategy.bank) == 5 * 8


# The reader alone


def _message(number: int) -> Message:
    request = Message(RecordDict(), 1, "train")
    return Message(RecordDict({"payload": ConfigRecord({"number": number})}), reply_to=request)


def _number(message: Message) -> int:
    number = message.content["payload"]["number"]  # type: ignore[index]
    if number < 0:
        raise BadReply("count", f"number is {number}")
    return int(number)


def test_a_reader_returns_what_reading_returns_or_raises() -> None:
    reader, messages = EarlyReader(), [_message(number) for number in (3, -1, 5, 7)]
    for message in messages[:3]:
        reader.begin(message, _number)
    found: Counter[str] = Counter()
    for message in reversed(messages):
        try:
            found[str(reader.take(message, _number))] += 1
        except BadReply as bad:
            found[f"{bad.cause}: {bad.detail}"] += 1
    assert found == {"3": 1, "5": 1, "7": 1, "count: number is -1": 1}
    reader.close()


def test_a_reader_reads_anew_what_it_did_not_read_so() -> None:
    reader, message, other = EarlyReader(), _message(3), _message(4)
    reader.begin(message, _number)
    assert reader.take(message, lambda m: 2 * _number(m)) == 6
    reader.begin(message, _number)
    reader.begin(other, _number)
    message.content["payload"] = ConfigRecord({"number": 9})
    assert reader.take(message, _number) == 9
    reader.forget()
    del other.content["payload"]
    other.content["payload"] = ConfigRecord({"number": 8})
    assert reader.take(other, _number) == 8
    reader.close()
