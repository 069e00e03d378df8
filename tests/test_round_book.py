"""The books of a round: who answered, in which bytes and in what time, and who did not."""

import logging
import time
from dataclasses import dataclass

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from codec.messages import SampleReply
from sim.direct_grid import node_ids
from strategies import BadReply, RoundBook, RoundResult
from strategies.received import Received, read_reply

NODES = node_ids(4)


@dataclass(frozen=True)
class _Received(Received):
    """A reply with a sample for every byte."""

    @property
    def num_sent(self) -> int:
        return len(self.reply.samples)  # type: ignore[attr-defined]  # a SampleReply's

    @property
    def entropy_bits(self) -> dict[str, float]:
        return {"values": 8.0 * self.num_sent}


def _read(message: Message) -> _Received:
    reply = read_reply(message, SampleReply)
    if reply.samples == b"bad":
        raise BadReply("payload", "says so itself")
    node_id, size = message.metadata.src_node_id, len(reply.samples)
    return _Received(node_id, reply, {"values": size - 1, "targets": 1})


def _requests(nodes: list[int] = NODES) -> list[Message]:
    return [Message(RecordDict({"config": ConfigRecord({"a": 1})}), n, "train") for n in nodes]


def _reply(request: Message, client: int, samples: bytes = b"12345", memory: int = 0) -> Message:
    reply = SampleReply(
        client=client,
        num_examples=9,
        samples=samples,
        num_sent=len(samples),
        remaining=0,
        memory_bytes=memory,
        seconds_encode=0.5,
    )
    record = ConfigRecord(dict(reply.to_entries()))
    return Message(RecordDict({"payload": record}), reply_to=request)


def test_replies_come_in_the_order_of_their_clients() -> None:
    book, requests = RoundBook(), _requests()
    book.begin(1, requests)
    clients = [2, 0, 3, 1]
    replies = [_reply(*pair) for pair in zip(requests, clients, strict=True)]
    accepted = book.collect(1, reversed(replies), _read)
    assert [received.client for received in accepted] == [0, 1, 2, 3]
    assert [received.node_id for received in accepted] == [NODES[k] for k in (1, 3, 0, 2)]
    assert not book.failures


def test_clients_of_one_number_come_in_the_order_of_their_nodes() -> None:
    book, requests = RoundBook(), _requests()
    book.begin(1, requests)
    accepted = book.collect(1, [_reply(request, 7) for request in requests], _read)
    assert [received.node_id for received in accepted] == sorted(NODES)


def test_missing_replies_are_failures_of_their_nodes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    book, requests = RoundBook(), _requests()
    book.begin(1, requests)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        accepted = book.collect(1, [_reply(requests[1], 0)], _read)
    assert len(accepted) == 1
    assert book.failures == {"no-reply": 3}
    told = [r.getMessage() for r in caplog.records if "none before the timeout" in r.getMessage()]
    missing = sorted(set(NODES) - {NODES[1]})
    for node_id, text in zip(missing, told, strict=True):
        assert f"node {node_id} " in text


def test_who_answered_badly_is_not_missing() -> None:
    book, requests = RoundBook(), _requests()
    book.begin(1, requests)
    replies = [
        _reply(requests[0], 0),
        _reply(requests[1], 1, b"bad"),
        Message(Error(2, "device is full"), reply_to=requests[2]),
        Message(RecordDict(), reply_to=requests[3]),
    ]
    accepted = book.collect(1, replies, _read)
    assert [received.client for received in accepted] == [0]
    assert book.failures == {"payload": 1, "error": 1, "record": 1}


def test_bytes_of_bad_replies_are_booked_as_rejected() -> None:
    book, requests = RoundBook(), _requests(NODES[:2])
    book.begin(1, requests)
    book.collect(1, [_reply(requests[0], 0), _reply(requests[1], 1, b"bad")], _read)
    sections = book.ledger.sections()
    assert set(sections) == {"values", "targets", "message", "rejected"}
    assert (sections["values"], sections["targets"]) == (4, 1)
    by_node = book.ledger.node_bytes()
    assert sections["rejected"] == by_node[NODES[1]] > 0
    assert by_node[NODES[0]] == 5 + sections["message"]
    assert book.ledger.entropy_bytes == 5  # of the accepted reply alone
    assert book.ledger.downlink_bytes > 0


def test_round_result() -> None:
    results: list[RoundResult] = []
    book = RoundBook(results.append)
    for server_round, steps in ((1, 3), (2, 0)):
        requests = _requests()
        book.begin(server_round, requests)
        replies = [_reply(requests[0], 0), _reply(requests[1], 1, b"ab")]
        accepted = book.collect(server_round, replies, _read)
        book.reject(NODES[0], BadReply("not-finite", "after all"))
        metrics = book.finish(server_round, accepted, steps, 0.25)
    uplink, downlink = book.ledger.round_bytes(2)
    assert metrics["train_loss"] == 0.25
    assert (metrics["samples_sent"], metrics["uplink_bytes"]) == (7, uplink)
    assert [result.round for result in results] == [1, 2]
    assert [result.steps_taken for result in results] == [3, 0]
    last = results[-1]
    assert (last.asked, last.answered) == (4, 2)
    # Of this round alone, while the book's own are those of the run.
    assert (last.samples_sent, last.uplink_bytes, last.downlink_bytes) == (7, uplink, downlink)
    assert last.failures == {"no-reply": 2, "not-finite": 1}
    assert last.train_loss == 0.25
    assert book.failures_by_node[NODES[0]] == {"not-finite": 2}
    assert sum(sum(causes.values()) for causes in book.failures_by_node.values()) == 6
    again = RoundBook()
    again.restore(book.state())
    assert again.failures_by_node == book.failures_by_node
    again.rename(NODES[0], NODES[1])
    assert again.failures_by_node[NODES[1]]["not-finite"] == 2
    assert book.samples_sent == 14
    assert book.ledger.uplink_bytes == sum(result.uplink_bytes for result in results)
    assert book.failures == {"no-reply": 4, "not-finite": 2}


def test_seconds_by_stage() -> None:
    results: list[RoundResult] = []
    book = RoundBook(results.append)
    for server_round in (1, 2):
        requests = _requests(NODES[:2])
        book.begin(server_round, requests)
        replies = [_reply(request, client) for client, request in enumerate(requests)]
        time.sleep(0.02)  # the way there and back
        accepted = book.collect(server_round, replies, _read)
        for _ in range(2):
            with book.stage("train"):
                time.sleep(0.01)
        book.finish(server_round, accepted, 1, 0.0)
    first, second = (result.seconds for result in results)
    telemetry = {"client_importance", "client_encode", "client_refinement"}
    assert set(first) == set(second) == {"round_trip", "decode", "train"} | telemetry
    assert first["client_encode"] == second["client_encode"] == 1.0  # of two clients
    assert second["round_trip"] >= 0.02 and second["train"] >= 0.02
    for stage, seconds in book.seconds.items():
        assert seconds == pytest.approx(first[stage] + second[stage])


def test_a_round_in_which_nobody_is_asked() -> None:
    results: list[RoundResult] = []
    book = RoundBook(results.append)
    book.begin(1, [])
    assert book.collect(1, [], _read) == []
    book.finish(1, [], 5, 0.1)
    assert "round_trip" not in results[0].seconds
    assert (results[0].uplink_bytes, results[0].downlink_bytes) == (0, 0)
    assert results[0].failures == {} and results[0].steps_taken == 5


def test_largest_memory_of_a_client_is_kept() -> None:
    book = RoundBook()
    for server_round, memory in ((1, 40), (2, 90), (3, 10)):
        requests = _requests(NODES[:1])
        book.begin(server_round, requests)
        book.collect(server_round, [_reply(requests[0], 0, memory=memory)], _read)
    assert book.client_memory_bytes == 90


def test_log_of_a_round(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    book = RoundBook()
    with caplog.at_level(logging.INFO, logger="flwr"):
        for server_round, loss in ((1, 0.5), (2, float("nan"))):
            book.begin(server_round, _requests(NODES[:1]))
            book.finish(server_round, book.collect(server_round, [], _read), 2, loss)
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("aggregate_train")]
    down = book.ledger.round_bytes(1)[1]
    sent = f"0 samples, 0 bytes up, {down} down, 1 failures, 0.0 s"
    assert told == [
        f"aggregate_train: round 1: 0 of 1 nodes, 2 steps, loss 0.5000, {sent}",
        f"aggregate_train: round 2: 0 of 1 nodes, 2 steps, {sent}",
    ]


def test_rounds_of_a_second_run_are_apart() -> None:
    results: list[RoundResult] = []
    book = RoundBook(results.append)
    for server_round in (1, 2, 1, 2, 3, 1):
        requests = _requests(NODES[:1])
        book.begin(server_round, requests)
        book.finish(server_round, book.collect(server_round, [_reply(requests[0], 0)], _read), 1, 0)
    assert [result.round for result in results] == [1, 2, 3, 4, 5, 6]
    sizes = {book.ledger.round_bytes(number) for number in range(1, 7)}
    assert sizes == {(results[0].uplink_bytes, results[0].downlink_bytes)}
    assert book.node_steps == 6


def test_answers_are_told_apart_from_replies() -> None:
    book, requests = RoundBook(), _requests()
    book.ask(1, requests)
    replies = [_reply(requests[0], 0), _reply(requests[1], 1, b"bad"), _reply(requests[2], 2)]
    answers = book.answers(1, replies[:2], _read, what="description", kept=replies[2:])
    assert [node_id for node_id, _ in answers] == NODES[:2]
    assert isinstance(answers[1][1], BadReply)
    assert book.failures == {"payload": 1, "no-reply": 1} and book.any_missing
    assert set(book.ledger.sections()) == {"description", "rejected"}
    assert book.accepted == 0


def test_what_clients_did_to_their_samples_is_kept_and_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    book, requests = RoundBook(), _requests(NODES[:2])
    book.begin(1, requests)
    replies = []
    for request, kept, sent in zip(requests, (0.5, 1.0), (b"1", b"123"), strict=True):
        reply = SampleReply(
            client=0,
            num_examples=9,
            samples=sent,
            num_sent=len(sent),
            remaining=0,
            variance_kept=kept,
            clipped=4,
            skipped='{"unreadable": 2}',
            notes=("the data is odd",),
        )
        record = ConfigRecord(dict(reply.to_entries()))
        replies.append(Message(RecordDict({"payload": record}), reply_to=request))
    with caplog.at_level(logging.INFO, logger="flwr"):
        book.finish(1, book.collect(1, replies, _read), 1, 0.5)
        book.summary(2.5)
    assert book.variance_kept == pytest.approx((0.5 + 3) / 4)
    assert book.clipped == 8 and book.skipped == {"unreadable": 4}
    told = caplog.messages
    for words in ("only 50 % of the samples' variance", "the data is odd", "are clipped to it"):
        assert sum(words in text for text in told) == 1
    assert told[-5:][:2] == [
        "samples: 4 of 2 nodes; skipped: 4 unreadable",
        "coding: 87.5% of the variance, 8 values clipped",
    ]
    assert told[-2] == "failures: none" and told[-1].startswith("seconds: 2.5 in all; round_trip")
