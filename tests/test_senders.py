"""What the server knows of those that send: who is asked, when again, and what is acknowledged."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from inprocess_grid import InProcessGrid
from numpy.typing import NDArray
from small_task import CLASSES, SHAPE, make_model, random_sources

from clients import ArraySource, train
from codec import OptionError, SampleSpec
from codec.messages import SampleReply
from sim.direct_grid import Client, node_ids
from strategies import QuantizedDataReplay, RoundResult, SampleBank
from strategies.errors import BankError, BankFull
from strategies.senders import Sender, Senders

SPEC = SampleSpec(SHAPE, "uint8", 0, 255, CLASSES)
SGD = partial(torch.optim.SGD, lr=0.1)

pytestmark = pytest.mark.usefixtures("one_thread")


def _client(source: Any, folder: Path) -> Client:
    return lambda message, context: train(message, context, source, state_dir=folder)


def _strategy(results: list[RoundResult] | None = None, **options: Any) -> QuantizedDataReplay:
    settings: dict[str, Any] = {"server_steps": 2, "device": "cpu", "samples": SPEC}
    if results is not None:
        settings["on_round"] = results.append
    return QuantizedDataReplay(make_model, SGD, **{**settings, **options})


# Who is asked when


def _note(senders: Senders, server_round: int, remaining: int, *, growing: bool, new: bool) -> None:
    senders.note(5, Sender(0, b"receipt", remaining, growing), server_round, is_new=new)


def test_a_growing_node_is_asked_less_and_less_until_there_is_something_new() -> None:
    senders, asked = Senders(), []
    for server_round in range(1, 50):
        if 5 in senders.finished(server_round):
            continue
        asked.append(server_round)
        _note(senders, server_round, 0, growing=True, new=server_round in (1, 33))
    # After 1, 2, 4, 8 and 8 rounds; what is new in round 33 begins it anew.
    assert asked == [1, 2, 4, 8, 16, 24, 32, 40, 48]
    senders = Senders()
    for server_round in (1, 2, 4, 8):
        _note(senders, server_round, 0, growing=True, new=server_round in (1, 8))
    assert 5 not in senders.finished(9)


def test_who_has_sent_all_and_does_not_grow_is_done() -> None:
    senders = Senders()
    _note(senders, 1, 3, growing=False, new=True)
    assert not senders.finished(2)
    _note(senders, 2, 0, growing=False, new=True)
    assert all(5 in senders.finished(server_round) for server_round in (3, 10, 1000))


def test_nodes_are_known_again_by_receipt_and_by_number_where_numbers_are_unique() -> None:
    old, new = node_ids(3), node_ids(3, seed=1)
    senders = Senders()
    for k, node_id in enumerate(old):
        senders.note(node_id, Sender(k, bytes([k]), 1, False), 1, is_new=True)
    later = Senders()
    later.restore(senders.state(), [])
    assert not later.knows(old[0])
    assert later.meet(new[0], 9, b"\x00", by_client=False) == old[0]
    assert later.acknowledged(new[0]) == b"\x00"
    assert later.meet(new[1], 1, b"", by_client=False) is None  # anybody may have number 1
    assert later.acknowledged(new[1]) == b""
    assert later.meet(new[1], 1, b"", by_client=True) == old[1]
    assert later.acknowledged(new[1]) == b"\x01"
    assert later.meet(old[2], 2, b"", by_client=True) is None  # it is itself
    assert later.acknowledged(old[2]) == b"\x02"


def test_finished_nodes_under_new_ids_are_not_counted_as_others(tmp_path: Path) -> None:
    sources = random_sources((20, 20, 40, 40))
    clients = [_client(source, tmp_path / str(k)) for k, source in enumerate(sources)]
    options: dict[str, Any] = {
        "bank": tmp_path / "bank", "samples_per_round": 20, "fraction_train": 0.75,
        "client_key": "partition",
    }  # fmt: skip
    first = _strategy(**options)
    first.start(InProcessGrid(clients), num_rounds=2, checkpoint=tmp_path)
    assert first.finished()
    first.close()
    results: list[RoundResult] = []
    second = _strategy(results, **options)
    second.start(InProcessGrid(clients, seed=1), num_rounds=5, resume=tmp_path)
    assert max(r.asked for r in results) <= 3
    assert len(second.bank) == 120 and not second.book.duplicates
    second.close()


# With devices


class Camera:
    """A source into which images are written while the run goes on."""

    growing = True

    def __init__(self, source: ArraySource, schedule: dict[int, int]) -> None:
        self.source, self.schedule, self.round = source, schedule, 0

    def __len__(self) -> int:
        return max(n for server_round, n in self.schedule.items() if server_round <= self.round)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        return self.source.samples[index], int(self.source.targets[index])


def test_what_a_device_gains_is_sent_and_a_quiet_one_costs_little(tmp_path: Path) -> None:
    camera = Camera(random_sources()[0], {0: 10, 12: 30})

    def answer(message: Message, context: Context) -> Message:
        config: Any = message.content["config"]
        camera.round = config["server-round"]
        return train(message, context, camera, classes=CLASSES)

    results: list[RoundResult] = []
    grid, strategy = InProcessGrid([answer]), _strategy(results)
    strategy.start(grid, num_rounds=20)
    asked = [r.round for r in results if r.asked]
    assert asked == [1, 2, 4, 8, 16, 17, 19]
    assert [r.samples_sent for r in results if r.samples_sent] == [10, 20]
    assert len(strategy.bank) == 30 and not strategy.book.duplicates
    assert results[3].uplink_bytes < 600 and not results[4].uplink_bytes


def test_a_node_that_restarts_under_another_id_sends_nothing_twice(tmp_path: Path) -> None:
    """Its state is gone, the device's disk is not; in the middle of a run."""
    sources = random_sources()
    clients = [_client(source, tmp_path / str(k)) for k, source in enumerate(sources)]
    grid = InProcessGrid(clients)
    first = next(iter(grid.clients))
    described: list[int] = []

    def watch(result: RoundResult) -> None:
        if result.round == 2:  # the SuperNode comes back with a new id, and without its state
            (new,) = node_ids(1, seed=9)
            grid.clients[new] = grid.clients.pop(first)
            context = grid.contexts.pop(first)
            context.node_id = new
            context.state.clear()
            grid.contexts[new] = context
        described.append(strategy.ledger.sections().get("description", 0))

    strategy = _strategy(bank=tmp_path / "bank", samples_per_round=10, on_round=watch)
    strategy.start(grid, num_rounds=8)
    assert len(strategy.bank) == strategy.book.samples_sent == 120
    assert not strategy.book.duplicates and not strategy.failures
    assert described[0] == described[1] == 0 < described[2] == described[-1] < 700
    assert len(strategy.ledger.node_bytes()) == 3  # one of them under its new id


def test_a_second_run_on_a_bank_asks_for_what_it_lacks(tmp_path: Path) -> None:
    sources = random_sources()
    folders = [tmp_path / str(k) for k in range(3)]
    clients = [_client(*pair) for pair in zip(sources, folders, strict=True)]
    first = _strategy(bank=tmp_path / "bank", samples_per_round=10)
    first.start(InProcessGrid(clients), num_rounds=2)
    first.close()
    second = _strategy(bank=tmp_path / "bank", samples_per_round=50)
    assert len(second.bank) == 60
    second.start(InProcessGrid(clients, seed=1), num_rounds=2)
    assert len(second.bank) == 120
    assert second.book.samples_sent == 60 and not second.book.duplicates
    second.close()
    # A device that lost its disk sends all again; nothing of it counts twice.
    lost = [_client(sources[0], tmp_path / "new disk"), *clients[1:]]
    third = _strategy(bank=tmp_path / "bank")
    third.start(InProcessGrid(lost, seed=2), num_rounds=1)
    assert len(third.bank) == 120
    assert (third.book.samples_sent, third.book.duplicates) == (50, 50)
    third.close()


def test_a_replayed_message_is_dropped_whole_and_acknowledged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)

    class Replaying(InProcessGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            replies = list(super().send_and_receive(messages, timeout=timeout))
            return [*replies, *replies[:1]]

    clients = [_client(source, Path()) for source in random_sources()]
    results: list[RoundResult] = []
    strategy = _strategy(results, samples_per_round=10)
    strategy.start(Replaying(clients), num_rounds=6)
    assert len(strategy.bank) == 120
    assert strategy.book.duplicates == sum(r.duplicates for r in results) >= 30
    assert sum("were here already" in text for text in caplog.messages) == 1


def test_two_nodes_with_one_partition_fill_the_bank_once(tmp_path: Path) -> None:
    source = random_sources()[0]
    clients = [_client(source, tmp_path / str(k)) for k in range(2)]
    strategy = _strategy(codec="lossless")
    strategy.start(InProcessGrid(clients), num_rounds=2)
    assert len(strategy.bank) == 50 and strategy.book.duplicates == 50


# What cannot be kept


def _failing(
    monkeypatch: pytest.MonkeyPatch, errors: dict[int, BaseException]
) -> list[BaseException | None]:
    """Let the bank fail at some of its replies, counted from 1."""
    add, calls = SampleBank.add_reply, []

    def failing(bank: SampleBank, *args: Any) -> Any:
        error = errors.get(len(calls) + 1, errors.get(0))
        calls.append(error)
        if error is not None:
            raise error
        return add(bank, *args)

    monkeypatch.setattr(SampleBank, "add_reply", failing)
    return calls


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (BankFull("no room is left for the bank"), "bank"),
        (BankError("bank x is damaged"), "bank"),
        (ValueError("samples do not fit those held"), "fit"),
        (RuntimeError("the model said no"), "fit"),
    ],
)
def test_a_reply_that_cannot_be_kept_costs_only_itself(
    error: BaseException,
    cause: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    _failing(monkeypatch, {2: error, 4: error})
    clients = [_client(source, Path()) for source in random_sources()]
    strategy = _strategy()
    strategy.start(InProcessGrid(clients), num_rounds=3)
    assert strategy.failures == {cause: 2}
    assert len(strategy.bank) == 120  # it was not acknowledged, and came again
    assert str(error) in caplog.text


def test_a_disk_that_takes_nothing_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, {0: BankFull("no room is left for the bank /data/bank.sqlite")})
    clients = [_client(source, Path()) for source in random_sources()]
    results: list[RoundResult] = []
    with pytest.raises(BankFull, match="no room is left"):
        _strategy(results).start(InProcessGrid(clients), num_rounds=9)
    assert len(results) == 2


def test_a_bank_of_another_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="bank has scale 'none'"):
        _strategy(bank=SampleBank(scale="none"))
    bank = SampleBank(path=tmp_path / "bank")
    assert _strategy(bank=bank).bank is bank
    bank.close()


def test_an_empty_reply_is_no_sender_of_anything() -> None:
    reply = SampleReply(client=0, num_examples=0, samples=b"", num_sent=0, remaining=0)
    assert reply.growing is False
    empty = ArraySource(np.zeros((0, *SHAPE), np.uint8), np.zeros(0, int), CLASSES, 0.0, 255.0)
    clients = [_client(source, Path()) for source in (*random_sources(), empty)]
    strategy = _strategy()
    strategy.start(InProcessGrid(clients), num_rounds=2)
    assert len(strategy.bank) == 120 and not strategy.failures
