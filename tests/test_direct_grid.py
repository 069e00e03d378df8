"""Grid and app in one process: real node ids, and what happens on the nodes is the caller's."""

import logging

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.logger import FLOWER_LOGGER
from small_task import raising_client

from fl_app.config import RunConfig
from fl_app.data import Images
from sim.direct_grid import DirectGrid, node_ids
from sim.in_process import train_in_process
from strategies import ServerStrategy

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = RunConfig(
    model="logistic",
    max_train_samples=200,
    num_rounds=3,
    server_steps=5,
    samples_per_round=20,
    threads=1,
)


def _ask(grid: DirectGrid) -> list[Message]:
    messages = [
        Message(RecordDict({"config": ConfigRecord()}), node_id, "train")
        for node_id in grid.get_node_ids()
    ]
    return list(grid.send_and_receive(messages))


def _counting(message: Message, context: Context) -> Message:
    """A client that counts its calls in its state."""
    record = context.state.setdefault("calls", ConfigRecord({"calls": 0}))
    assert isinstance(record, ConfigRecord) and isinstance(record["calls"], int)
    record["calls"] += 1
    answer = ConfigRecord({"calls": record["calls"], **context.node_config})
    return Message(RecordDict({"payload": answer}), reply_to=message)


def test_node_ids_are_like_flowers() -> None:
    ids = node_ids(50)
    assert len(set(ids)) == 50
    assert all(type(node_id) is int and 1 < node_id < 2**64 for node_id in ids)
    assert 10 < sum(node_id >= 2**63 for node_id in ids) < 40
    assert any(node_id >= 2**63 for node_id in node_ids(2))
    assert ids == node_ids(50) and ids[:20] == node_ids(20)
    assert not set(ids) & set(node_ids(50, seed=1))


def test_every_node_has_a_partition_and_a_state_of_its_own() -> None:
    grid = DirectGrid([_counting] * 3, {"seed": 4})
    assert list(grid.get_node_ids()) == node_ids(3)
    _ask(grid)
    replies = [reply.content["payload"] for reply in _ask(grid)]
    assert replies == [
        ConfigRecord({"calls": 2, "partition-id": k, "num-partitions": 3}) for k in range(3)
    ]
    assert all(context.run_config == {"seed": 4} for context in grid.contexts.values())


def test_what_a_client_raises_is_raised() -> None:
    with pytest.raises(MemoryError, match="device is full"):
        _ask(DirectGrid([_counting, raising_client]))


def test_a_client_may_be_silent() -> None:
    grid = DirectGrid([_counting, lambda message, context: None])  # type: ignore[list-item,return-value]
    (reply,) = _ask(grid)
    assert reply.metadata.src_node_id == node_ids(1)[0]


def test_the_app_runs_in_this_process() -> None:
    seen: list[tuple[int, int, int]] = []

    def measure(strategy: ServerStrategy, test: Images, server_round: int) -> None:
        seen.append((server_round, strategy.steps_taken, strategy.book.samples_sent))

    strategy, test = train_in_process(CONFIG, 4, measure)
    assert seen == [(1, 5, 80), (2, 10, 160), (3, 15, 200)]
    assert not strategy.failures
    assert strategy.ledger.round_bytes(3) > (0, 0)
    assert set(strategy.ledger.node_bytes()) == set(node_ids(4))
    again, _ = train_in_process(CONFIG, 4)
    measured = [s.server_model.evaluate(test.samples, test.labels) for s in (strategy, again)]
    assert measured[0] == measured[1]


def test_flowers_log_is_as_loud_after_a_failed_run_as_before() -> None:
    def fail(strategy: ServerStrategy, test: Images, server_round: int) -> None:
        assert FLOWER_LOGGER.level == logging.WARNING
        raise RuntimeError("no more")

    level = FLOWER_LOGGER.level
    with pytest.raises(RuntimeError, match="no more"):
        train_in_process(CONFIG, 2, fail)
    assert FLOWER_LOGGER.level == level != logging.WARNING
