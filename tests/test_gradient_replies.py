"""Gradients bring the statistics of batch normalization, and bad replies harm no round."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from gradient_baselines import batch_norm_dropout_model, flat, make_grid, make_strategy, payloads
from inprocess_grid import InProcessGrid
from small_task import (
    BATCH,
    CLIENTS,
    largest_difference,
    raising_client,
    random_sources,
    states_after_rounds,
)
from torch import Tensor, nn

from clients.baselines import train_gradient
from codec.gradients import Float32
from codec.gradients.joined import Joined
from codec.learning.batch_norm import encode_statistics, statistics
from strategies import RoundResult
from strategies.errors import RunFailed

pytestmark = pytest.mark.usefixtures("one_thread")


def test_statistics_of_batch_normalization_come_from_the_clients() -> None:
    grid = make_grid(batch_norm_dropout_model)
    strategy = make_strategy(
        batch_norm_dropout_model, buffers_every=4, buffer_batches=2, batch_size=8
    )
    states = states_after_rounds(strategy, grid, 7)
    initial = batch_norm_dropout_model()
    fresh = flat(statistics(initial))
    kept = []
    for state in states:
        initial.load_state_dict(state)
        kept.append(flat(statistics(initial)))
    # Rounds 4 and 7 (the last one) bring statistics, the others do not.
    assert all(np.array_equal(kept[r], fresh) for r in (0, 1, 2))
    assert not np.array_equal(kept[3], fresh)
    assert all(np.array_equal(kept[r], kept[3]) for r in (4, 5))
    assert not np.array_equal(kept[6], kept[3])
    assert sum("buffers" in record for record in payloads(grid)) == 2 * CLIENTS
    data = [record["buffers"] for record in payloads(grid) if "buffers" in record]
    sizes = [len(part) for part in data if isinstance(part, bytes)]
    assert strategy.ledger.sections()["buffers"] == sum(sizes)
    assert max(sizes) <= 2 * 28 + 60  # 28 floats of half precision, 4 shapes and the header


def test_statistics_are_those_of_the_whole_data() -> None:
    """With every sample in use, the first layer's are those of the clients' union."""
    grid = make_grid(batch_norm_dropout_model)
    strategy = make_strategy(batch_norm_dropout_model, buffer_batches=50, batch_size=60)
    states_after_rounds(strategy, grid, 1)
    model = batch_norm_dropout_model()
    samples = np.concatenate([source.samples for source in random_sources()])
    features = model[0](torch.from_numpy(samples).float() / 255)
    mean, variance = statistics(strategy.model)[:2]
    torch.testing.assert_close(mean, features.mean(dim=(0, 2, 3)), rtol=2e-3, atol=1e-4)
    expected = features.var(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(variance, expected, rtol=5e-3, atol=1e-4)
    loss, _ = strategy.server_model.evaluate(samples, np.zeros(len(samples), np.int64), high=255.0)
    assert np.isfinite(loss)


def test_models_without_batch_normalization_send_no_statistics() -> None:
    grid = make_grid()
    strategy = make_strategy()
    states_after_rounds(strategy, grid, 2)
    assert "buffers" not in strategy.ledger.sections()
    assert not any("buffers" in record for record in payloads(grid))


def _spoiled(spoil: Callable[[Any], None]) -> Callable[[Message, Context], Message]:
    """A client whose honest reply is spoiled on the way."""

    def client(message: Message, context: Context) -> Message:
        reply = train_gradient(message, context, random_sources()[0], batch_norm_dropout_model)
        payload: Any = reply.content["payload"]
        record: dict[str, Any] = {**payload, **reply.content.metric_records["metrics"]}
        spoil(record)
        return Message(RecordDict({"payload": ConfigRecord(record)}), reply_to=message)

    return client


def _truncate(record: Any) -> None:
    data = record["gradient"]
    assert isinstance(data, bytes)
    record["gradient"] = data[: len(data) // 2]


def _wrong_shape(record: Any) -> None:
    parts = [np.zeros(7, np.float32)]
    record["gradient"] = Joined(Float32()).compress(parts, None, np.random.default_rng(0))[0]


def _negative_variance(record: Any) -> None:
    parts = [tensor.numpy() - 2 for tensor in statistics(batch_norm_dropout_model())]
    record["buffers"] = encode_statistics(parts)


def _diverged(message: Message, context: Context) -> Message:
    def nan(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none") * float("nan")

    return train_gradient(
        message, context, random_sources()[0], batch_norm_dropout_model, criterion=nan
    )


def test_bad_replies_are_counted_and_the_round_goes_on() -> None:
    honest = make_grid(batch_norm_dropout_model)
    clients = [
        *honest.clients.values(),
        _spoiled(_truncate),
        _spoiled(_wrong_shape),
        _spoiled(lambda record: record.__setitem__("gradient", 5)),
        _spoiled(lambda record: record.__setitem__("num-examples", BATCH + 1)),
        _spoiled(lambda record: record.__setitem__("num-examples", 0)),
        _spoiled(lambda record: record.__delitem__("client")),
        _spoiled(lambda record: record.__setitem__("buffers", b"nonsense")),
        _spoiled(_negative_variance),
        _diverged,
        raising_client,
        lambda message, context: None,
    ]
    strategy = make_strategy(batch_norm_dropout_model)
    states = states_after_rounds(strategy, InProcessGrid(clients), 2)  # type: ignore[arg-type]
    assert strategy.failures == {
        "gradient": 4, "record": 4, "count": 4, "buffers": 4, "error": 4, "no-reply": 2
    }  # fmt: skip
    alone = states_after_rounds(
        make_strategy(batch_norm_dropout_model), make_grid(batch_norm_dropout_model), 2
    )
    assert largest_difference(states[-1], alone[-1]) == 0
    assert strategy.ledger.sections()["rejected"] > 0


def test_a_round_of_bad_replies_takes_no_step() -> None:
    results: list[RoundResult] = []
    strategy = make_strategy(on_round=results.append, min_available_nodes=1)
    before = copy.deepcopy(strategy.model.state_dict())
    with pytest.raises(RunFailed, match="device is full"):
        strategy.start(InProcessGrid([raising_client]), num_rounds=2)
    assert strategy.steps_taken == 0
    assert largest_difference(before, dict(strategy.model.state_dict())) == 0
    assert [result.failures for result in results] == [{"error": 1}] * 2
