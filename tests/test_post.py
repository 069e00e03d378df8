"""Rounds that do not wait for everybody: quorum, late replies, silent and dead nodes."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import Result
from inprocess_grid import InProcessGrid
from late_grid import HEARTBEAT, NEVER, LateGrid, clock_of
from small_task import CLASSES, SHAPE, make_model, random_sources

from clients import ArraySource, train
from clients.baselines import train_local
from codec import SampleSpec
from sim.direct_grid import Client
from strategies import QuantizedDataReplay, QuantizedDataStreaming, RoundResult, RunFailed
from strategies.baselines import CompressedFedAvg
from strategies.post import Post

SPEC = SampleSpec(SHAPE, "uint8", 0, 255, CLASSES)
SGD = partial(torch.optim.SGD, lr=0.1)
TIMEOUT = 10.0

pytestmark = pytest.mark.usefixtures("one_thread")


def _client(source: ArraySource) -> Client:
    return lambda message, context: train(message, context, source)


def _echo(message: Message, context: Context) -> Message:
    return Message(RecordDict({"payload": ConfigRecord()}), reply_to=message)


def _replay(results: list[RoundResult] | None = None, **options: Any) -> QuantizedDataReplay:
    settings: dict[str, Any] = {"server_steps": 2, "device": "cpu", "samples": SPEC}
    on_round = None if results is None else results.append
    return QuantizedDataReplay(make_model, SGD, on_round=on_round, **{**settings, **options})


def _run(strategy: Any, grid: LateGrid, rounds: int, **options: Any) -> Result:
    with clock_of(grid):
        result: Result = strategy.start(grid, num_rounds=rounds, timeout=TIMEOUT, **options)
    return result


def _grid(delay: Callable[[int, int], float], sizes: tuple[int, ...] = (50, 40, 30)) -> LateGrid:
    return LateGrid([_client(source) for source in random_sources(sizes)], delay)


# The post alone


def _messages(grid: LateGrid) -> list[Message]:
    return [Message(RecordDict(), node, "train") for node in grid.clients]


def _post(grid: LateGrid, quorum: float = 1.0) -> Post:
    return Post(grid, quorum, clock=grid.clock, sleep=grid.sleep)


@pytest.mark.parametrize(
    ("quorum", "seconds", "count"), [(1.0, 8.0, 4), (0.75, 4.0, 3), (0.51, 4.0, 3), (0.1, 1.0, 1)]
)
def test_a_round_ends_with_its_quorum(quorum: float, seconds: float, count: int) -> None:
    grid = LateGrid([_echo] * 4, lambda node, _: 2.0**node)
    post = _post(grid, quorum)
    replies = list(post.send_and_receive(_messages(grid), timeout=60))
    assert len(replies) == count
    assert seconds <= grid.now <= 1.06 * seconds + 0.06
    slow = set(list(grid.clients)[count:])
    assert post.busy() == post.unhurried == slow
    assert grid.pulls < 80


def test_errors_do_not_make_a_quorum_but_are_not_waited_for() -> None:
    def failing(message: Message, context: Context) -> Message:
        raise OSError("disk gone")

    grid = LateGrid([failing, failing, _echo, _echo], lambda node, _: float(node))
    replies = list(_post(grid, 0.5).send_and_receive(_messages(grid), timeout=60))
    assert [reply.has_error() for reply in replies] == [True, True, False, False]
    grid = LateGrid([failing] * 4, lambda node, _: float(node))
    assert len(list(_post(grid, 0.5).send_and_receive(_messages(grid), timeout=60))) == 4


def test_late_replies_are_kept_until_they_are_taken() -> None:
    grid = LateGrid([_echo] * 3, lambda node, asked: 15.0 if node == 1 and asked == 1 else 0.0)
    post, (first, slow, _) = _post(grid), list(grid.clients)
    replies = list(post.send_and_receive(_messages(grid), timeout=10))
    assert len(replies) == 2 and 10 <= grid.now <= 10.1
    assert post.busy() == {slow} and post.unhurried == set()
    grid.now = 20.0
    assert post.busy() == {slow} and not post.take_late()  # nobody has looked
    again = [Message(RecordDict(), first, "train")]
    assert len(list(post.send_and_receive(again, timeout=10))) == 1
    assert post.busy() == {slow}  # its reply is here, but was not taken
    (late,) = post.take_late()
    assert late.metadata.src_node_id == slow
    assert not post.busy() and not post.take_late() and not post.take_given_up()


def test_patience_ends() -> None:
    grid = LateGrid([_echo] * 2, lambda node, _: NEVER if node else 0.0)
    post, silent = _post(grid), list(grid.clients)[1]
    messages = _messages(grid)
    list(post.send_and_receive(messages, timeout=100))
    # So long that a device whose clock is some minutes ahead still answers in time.
    assert {message.metadata.ttl for message in messages} == {600.0}
    grid.now = 299.0
    post.look()
    assert post.owes() and post.busy() == {silent}
    grid.now = 301.0
    post.look()
    assert not post.owes() and post.take_given_up() == [silent] and not post.take_given_up()
    long = _messages(grid)
    list(post.send_and_receive(long[:1], timeout=300))
    assert long[0].metadata.ttl == 900.0


def test_who_stays_silent_rests_longer_each_time() -> None:
    grid = LateGrid([_echo] * 2, lambda node, asked: NEVER if node and asked < 5 else 0.0)
    post, silent = _post(grid), list(grid.clients)[1]
    asked = []
    for server_round in range(1, 40):
        post.next_round()
        if silent not in post.busy():
            asked.append(server_round)
            list(post.send_and_receive(_messages(grid)[1:], timeout=10))
            grid.now += 85.0
        grid.now += 1.0
    # It is given up in the round after; it answers from the fifth time on.
    assert asked[:5] == [1, 3, 6, 11, 20] and asked[5:] == [*range(21, 40)]


def test_what_cannot_be_sent_is_not_waited_for() -> None:
    class Picky(LateGrid):
        def push_messages(self, messages: Any) -> Any:
            return list(super().push_messages(list(messages)[1:]))

        pull_messages, send_and_receive = LateGrid.pull_messages, LateGrid.send_and_receive

    grid = Picky([_echo] * 3, lambda *_: 1.0)
    post = _post(grid)
    assert len(list(post.send_and_receive(_messages(grid), timeout=60))) == 2
    assert grid.now < 2 and not post.busy()


def test_a_grid_that_only_sends_and_receives_is_left_to_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    grid = InProcessGrid([_echo, lambda message, context: None, _echo])  # type: ignore[arg-type,return-value]
    post = Post(grid, 0.5)
    messages = [Message(RecordDict(), node, "train") for node in grid.clients]
    assert len(list(post.send_and_receive(messages, timeout=60))) == 2
    assert not post.busy() and post.contexts is grid.contexts
    assert "quorum has no effect" in caplog.text


def test_a_long_wait_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    caplog.set_level(logging.INFO, logger="flwr")
    grid = LateGrid([_echo] * 3, lambda node, _: 25.0 * node)
    list(_post(grid).send_and_receive(_messages(grid), timeout=100))
    told = [text for text in caplog.messages if text.startswith("waiting for the replies of")]
    assert [text.split()[5] for text in told] == ["2", "2", "1", "1"]


# Rounds


def test_a_slow_node_costs_one_timeout_and_none_of_its_samples() -> None:
    """Its reply comes three rounds later, is banked then, and its bytes are booked then."""
    grid = _grid(lambda node, asked: 14.0 if node == 2 and asked == 1 else 2.0)
    results: list[RoundResult] = []
    strategy = _replay(results, samples_per_round=10)
    ledger_entries = lambda: len([e for e in strategy.ledger.entries if e.direction == "uplink"])  # noqa: E731
    _run(strategy, grid, 8)
    slow = list(grid.clients)[2]
    assert [(r.asked, r.answered, r.late) for r in results[:5]] == [
        (3, 2, 0),
        (2, 2, 0),
        (2, 2, 1),
        (3, 3, 0),
        (2, 2, 0),
    ]
    assert dict(strategy.failures) == {"no-reply": 1}
    assert [r.failures for r in results] == [{"no-reply": 1}, *[{}] * 7]
    assert len(strategy.bank) == 50 + 40 + 30 and ledger_entries() == 5 + 4 + 3
    late = [e for e in strategy.ledger.entries if e.node_id == slow and e.direction == "uplink"]
    assert [entry.server_round for entry in late] == [3, 4, 5]
    assert results[2].samples_sent == 30 and results[2].uplink_bytes > 1.4 * results[1].uplink_bytes
    assert strategy.book.late == 1
    # One timeout, and two seconds for each round in which somebody was asked.
    assert grid.now < TIMEOUT + 5 * 2.2


def test_one_dead_node_is_one_failure_under_its_own_name(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    grid = _grid(lambda *_: 1.0)
    grid.die(1)
    dead = list(grid.clients)[1]
    results: list[RoundResult] = []
    strategy = _replay(results, samples_per_round=5)
    _run(strategy, grid, 80)
    assert dict(strategy.failures) == {"no-reply": 1}
    assert grid.asked.count(dead) == 1
    assert sum(f"node {dead} skipped, no-reply" in text for text in caplog.messages) == 1
    assert len(strategy.bank) == 80
    assert grid.now < TIMEOUT + 10 * 1.1 + HEARTBEAT
    # The rounds after the first waited for nobody who is dead.
    assert all(r.asked == r.answered for r in results[1:])


def test_a_node_that_dies_in_a_long_round_is_an_error_of_its_own() -> None:
    grid = _grid(lambda *_: 1.0)
    grid.die(0)
    results: list[RoundResult] = []
    strategy = _replay(results, samples_per_round=5)
    with clock_of(grid):
        strategy.start(grid, num_rounds=9, timeout=600.0)
    assert dict(strategy.failures) == {"error": 1}
    assert HEARTBEAT <= grid.now < HEARTBEAT + 20
    assert set(strategy.ledger.node_bytes()) == set(grid.clients)


def test_a_node_that_comes_back_is_asked_again() -> None:
    grid = _grid(lambda *_: 1.0)
    grid.die(1)
    back = list(grid.clients)[1]

    def stop(server_round: int, _: Result) -> bool:
        if server_round == 3:
            grid.now += HEARTBEAT
        if server_round == 5:
            del grid.dead[back]
        return False

    strategy = _replay(samples_per_round=10)
    _run(strategy, grid, 12, should_stop=stop)
    assert len(strategy.bank) == 120
    assert strategy.failures == {"no-reply": 1}


def test_a_quorum_makes_rounds_as_long_as_the_fast_nodes() -> None:
    grid = _grid(lambda node, _: [1.0, 2.0, 8.0][node], sizes=(50, 50, 50))
    results: list[RoundResult] = []
    strategy = _replay(results, samples_per_round=10, quorum=0.6)
    _run(strategy, grid, 30)
    assert len(strategy.bank) == 150 and not strategy.failures
    assert results[0].answered == 2 and results[0].asked == 3
    assert strategy.book.late > 0 and sum(r.late for r in results) == strategy.book.late
    everybody = _grid(lambda node, _: [1.0, 2.0, 8.0][node], sizes=(50, 50, 50))
    _run(_replay(samples_per_round=10), everybody, 5)
    assert everybody.now > 5 * 8
    # With everybody five rounds take 40 s; the first five with a quorum 10 s.
    assert results[4].samples_sent >= 20


def test_nothing_is_sent_twice_whatever_comes_late() -> None:
    """Replies come in any order of rounds; each sample is in the bank once."""
    rng = np.random.default_rng(3)
    delays = rng.choice([1.0, 2.0, 12.0, 25.0], size=(3, 100))
    grid = _grid(lambda node, asked: float(delays[node, asked]))
    strategy = _replay(samples_per_round=7, codec="lossless")
    _run(strategy, grid, 60)
    assert len(strategy.bank) == 120
    sent = sum(result.num_sent for result in _accepted(strategy, grid))
    assert sent == 120


def _accepted(strategy: QuantizedDataReplay, grid: LateGrid) -> list[Any]:
    return [strategy.read(reply) for replies in grid.replies for reply in replies]


def test_when_everybody_is_late_a_round_waits_for_the_first() -> None:
    grid = _grid(lambda node, asked: 15.0 + node if asked == 1 else 1.0)
    results: list[RoundResult] = []
    strategy = _replay(results, samples_per_round=50)
    _run(strategy, grid, 6)
    assert [(r.asked, r.answered, r.late) for r in results[:2]] == [(3, 0, 0), (0, 0, 1)]
    assert len(strategy.bank) == 120 and strategy.failures == {"no-reply": 3}


def test_what_comes_after_the_last_round_is_banked(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    grid = _grid(lambda node, _: [1.0, 11.0, NEVER][node])
    strategy = _replay()

    def evaluate(server_round: int, _: Any) -> None:
        grid.now += 2 * server_round

    _run(strategy, grid, 1, evaluate_fn=evaluate)
    assert len(strategy.bank) == 90
    never = list(grid.clients)[2]
    assert f"1 replies were still out at the end, of nodes {never}" in caplog.text


def test_a_late_minibatch_is_of_no_use() -> None:
    grid = _grid(lambda node, asked: 14.0 if node == 2 and asked == 1 else 1.0)
    strategy = QuantizedDataStreaming(make_model, SGD, device="cpu", samples=SPEC, batch_size=8)
    _run(strategy, grid, 8)
    assert strategy.failures == {"no-reply": 1, "late": 1}
    assert strategy.ledger.sections()["rejected"] > 100
    assert strategy.steps_taken == 8
    slow = list(grid.clients)[2]
    assert grid.asked.count(slow) == 8 - 4  # rounds 2 to 5 went on without it


def test_a_late_model_is_of_no_use() -> None:
    source = random_sources()[0]
    clients: list[Client] = [
        lambda message, context: train_local(message, context, source, make_model)
    ] * 3
    grid = LateGrid(clients, lambda node, asked: 14.0 if node == 2 and asked == 1 else 1.0)
    strategy = CompressedFedAvg(
        make_model, learning_rate=lambda _: 0.1, device="cpu", local_steps=1, quorum=0.5
    )
    _run(strategy, grid, 20)
    assert strategy.failures == {"late": 1}
    assert strategy.steps_taken == 20


def test_late_descriptions_and_evaluations_stop_nothing() -> None:
    def answer(source: ArraySource) -> Client:
        def respond(message: Message, context: Context) -> Message:
            if message.metadata.message_type == "train":
                return train(message, context, source)
            from flwr.app import MetricRecord

            metrics = MetricRecord({"accuracy": 0.5, "num-examples": 4})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

        return respond

    clients = [answer(source) for source in random_sources()]
    grid = LateGrid(clients, lambda node, asked: 12.0 if node == 0 and asked in (1, 3) else 1.0)
    strategy = _replay(samples=None, fraction_evaluate=1.0, samples_per_round=20)
    result = _run(strategy, grid, 10)
    assert set(strategy.failures) <= {"no-reply", "late"}
    assert strategy.failures["late"] >= 1
    assert len(strategy.bank) == 120
    assert result.evaluate_metrics_clientapp[10]["accuracy"] == 0.5


def test_nobody_ever_answers() -> None:
    grid = _grid(lambda *_: NEVER)
    strategy = _replay()
    with pytest.raises(RunFailed, match="no reply could be used: 3 no-reply"):
        _run(strategy, grid, 2)


# The loop


def test_a_run_stops_when_it_is_told_to() -> None:
    seen: list[tuple[int, int]] = []

    def stop(server_round: int, result: Result) -> bool:
        seen.append((server_round, len(result.train_metrics_clientapp)))
        accuracy = result.evaluate_metrics_serverapp[server_round]["accuracy"]
        return float(accuracy) >= 0.3  # type: ignore[arg-type]

    from flwr.app import MetricRecord

    grid = InProcessGrid([_client(source) for source in random_sources()])
    strategy = _replay(samples_per_round=5)
    result = strategy.start(
        grid,
        num_rounds=9,
        evaluate_fn=lambda number, _: MetricRecord({"accuracy": 0.1 * number}),
        should_stop=stop,
    )
    assert seen == [(1, 1), (2, 2), (3, 3)]
    assert strategy.steps_taken == 6 and max(result.train_metrics_clientapp) == 3
    assert len(result.arrays) == 6
