"""Flower's FedAvg, whole models and compressed changes."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from averaged import BATCH, RATE, SIZES, averaged_grid, averaging
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from inprocess_grid import InProcessGrid
from small_task import (
    CLIENTS,
    batch_norm_model,
    largest_difference,
    minibatch,
    raising_client,
    random_sources,
    smooth_model,
    states_after_rounds,
)
from torch import Tensor, nn

from clients import ArraySource
from clients.baselines import train_local
from codec import Compression
from codec.gradients import COMPRESSORS, Float32
from codec.gradients.joined import Joined
from codec.learning.batch_norm import statistics
from strategies import RoundResult
from strategies.errors import RunFailed

pytestmark = pytest.mark.usefixtures("one_thread")


class _Tied(nn.Module):
    """Two layers that share a weight, which the state names twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight

    def forward(self, samples: Tensor) -> Tensor:
        outputs: Tensor = self.second(torch.tanh(self.first(samples.flatten(1))))
        return outputs


def _tied_model() -> nn.Module:
    torch.manual_seed(0)
    return _Tied()


def _loss(model: nn.Module, source: ArraySource, client: int, step: int) -> Tensor:
    samples, targets = minibatch(source, client, step, BATCH)
    return nn.functional.cross_entropy(model(samples), targets)


def test_one_local_step_is_a_step_along_the_averaged_gradient() -> None:
    strategy = averaging(local_steps=1, learning_rate=lambda server_round: RATE / server_round)
    states = states_after_rounds(strategy, averaged_grid(), 4)
    model, sources = smooth_model(), random_sources(SIZES)
    for step, state in enumerate(states):
        losses = [len(s) * _loss(model, s, k, step) for k, s in enumerate(sources)]
        loss = torch.stack(losses).sum() / sum(len(source) for source in sources)
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, part in zip(model.parameters(), gradient, strict=True):
                parameter -= RATE / (step + 1) * part
        assert largest_difference(state, dict(model.state_dict())) < 1e-6
    assert strategy.steps_taken == 4 and strategy.book.samples_sent == 0
    assert isinstance(strategy, FedAvg)


def test_local_momentum_starts_anew_each_round() -> None:
    strategy = averaging(local_steps=2, momentum=0.9, weight_decay=1e-2)
    states = states_after_rounds(strategy, averaged_grid(sizes=(40,) * 3), 2)
    initial: dict[str, Tensor] = dict(smooth_model().state_dict())
    for number, state in enumerate(states):
        trained = []
        for client, source in enumerate(random_sources((40,) * 3)):
            model = smooth_model()
            model.load_state_dict(initial)
            optimizer = torch.optim.SGD(
                model.parameters(), RATE, momentum=0.9, weight_decay=1e-2, nesterov=True
            )
            for step in (2 * number, 2 * number + 1):
                optimizer.zero_grad()
                _loss(model, source, client, step).backward()  # type: ignore[no-untyped-call]  # torch
                optimizer.step()
            trained.append(dict(model.state_dict()))
        initial = {name: sum(t[name] for t in trained) / 3 for name in initial}  # type: ignore[misc]  # sum
        assert largest_difference(state, initial) < 1e-6


@pytest.mark.parametrize("model", [smooth_model, _tied_model])
def test_lossless_changes_are_plain_fed_avg(model: Callable[[], nn.Module]) -> None:
    plain = states_after_rounds(averaging(model), averaged_grid(model), 4)
    coded = states_after_rounds(averaging(model, compression="fp32"), averaged_grid(model), 4)
    for one, other in zip(plain, coded, strict=True):
        assert largest_difference(one, other) < 1e-6


def test_int8_changes_are_close_to_plain_fed_avg() -> None:
    plain, whole = averaging(), states_after_rounds(averaging(), averaged_grid(), 4)[-1]
    coded = averaging(compression=Compression("qsgd", bits=7))
    state = states_after_rounds(coded, averaged_grid(), 4)[-1]
    moved = largest_difference(whole, dict(smooth_model().state_dict()))
    assert 0 < largest_difference(state, whole) < 0.1 * moved
    states_after_rounds(plain, averaged_grid(), 4)
    n = sum(p.numel() for p in smooth_model().parameters())
    assert coded.ledger.sections()["delta"] < 0.3 * 4 * CLIENTS * 4 * n
    assert plain.ledger.sections()["arrays"] > 4 * CLIENTS * 4 * n


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_every_compressor_gets_nearer_to_a_solution(kind: str) -> None:
    strategy = averaging(compression=Compression(kind, bits=4, density=0.3), local_steps=4)
    samples = np.concatenate([source.samples for source in random_sources(SIZES)])
    targets = np.concatenate([source.targets for source in random_sources(SIZES)])
    before, _ = strategy.server_model.evaluate(samples, targets, high=255.0)
    states_after_rounds(strategy, averaged_grid(), 5)
    after, _ = strategy.server_model.evaluate(samples, targets, high=255.0)
    assert after < before - 0.05
    assert not strategy.failures


def test_error_feedback_stays_with_the_client() -> None:
    grid = averaged_grid()
    strategy = averaging(compression=Compression("top-k", density=0.1))
    states_after_rounds(strategy, grid, 3)
    n = sum(p.numel() for p in smooth_model().parameters())
    assert strategy.book.client_memory_bytes == 4 * n
    for context in grid.contexts.values():
        record = context.state["delta-residual"]
        assert isinstance(record, ArrayRecord)
        (residual,) = record.to_numpy_ndarrays()
        assert np.count_nonzero(residual) > 0.5 * n
    plain_grid = averaged_grid()
    states_after_rounds(averaging(), plain_grid, 1)
    assert not any(context.state for context in plain_grid.contexts.values())


def test_statistics_of_batch_normalization_travel_when_due() -> None:
    grid = averaged_grid(batch_norm_model)
    strategy = averaging(batch_norm_model, compression="fp32", buffers_every=2, buffer_batches=9)
    states = states_after_rounds(strategy, grid, 3)
    model = batch_norm_model()
    kept = []
    for state in states:
        model.load_state_dict(state)
        kept.append(statistics(model)[0].clone())
    assert not kept[0].any() and kept[1].any()
    assert not torch.equal(kept[1], kept[2])  # the last round is always one
    sent = sum(
        "buffers" in record
        for replies in grid.replies
        for reply in replies
        if isinstance(record := reply.content["payload"], ConfigRecord)
    )
    assert sent == 2 * CLIENTS
    assert strategy.ledger.sections()["buffers"] <= sent * (2 * 12 + 40)
    # The first layer sees the samples themselves: its weighted means are those of all of them.
    last = states[1]
    images = np.concatenate([source.samples for source in random_sources(SIZES)])
    probe = batch_norm_model()
    probe.load_state_dict(last)
    expected = probe[0](torch.from_numpy(images).float() / 255).mean(dim=(0, 2, 3))
    torch.testing.assert_close(kept[2], expected, atol=2e-2, rtol=2e-2)


def test_whole_models_bring_their_statistics() -> None:
    strategy = averaging(batch_norm_model)
    (state,) = states_after_rounds(strategy, averaged_grid(batch_norm_model), 1)
    assert state["1.running_mean"].any()
    assert state["1.num_batches_tracked"].dtype == torch.int64
    assert set(strategy.ledger.sections()) == {"arrays", "message"}


def test_bytes_are_counted_in_both_directions() -> None:
    results: list[RoundResult] = []
    strategy = averaging(compression="fp16", on_round=results.append)
    states_after_rounds(strategy, averaged_grid(), 3)
    ledger = strategy.ledger
    assert sum(result.uplink_bytes for result in results) == ledger.uplink_bytes
    assert sum(result.downlink_bytes for result in results) == ledger.downlink_bytes
    n = sum(p.numel() for p in smooth_model().parameters())
    assert ledger.sections("downlink")["arrays"] > 3 * CLIENTS * 4 * n
    assert 0.8 * 2 * n < ledger.sections()["delta"] / (3 * CLIENTS) < 1.05 * 2 * n
    assert [result.steps_taken for result in results] == [3] * 3
    assert set(strategy.book.seconds) == {
        "round_trip", "decode", "train", "client_train", "client_compress"
    }  # fmt: skip
    strategy.summary()


def _spoiled(
    spoil: Callable[[RecordDict], None],
) -> Callable[[Message, Context], Message]:
    def client(message: Message, context: Context) -> Message:
        reply = train_local(message, context, random_sources(SIZES)[0], batch_norm_model)
        spoil(reply.content)
        return Message(RecordDict(dict(reply.content)), reply_to=message)

    return client


def _payload(content: RecordDict) -> ConfigRecord:
    record = content["payload"]
    assert isinstance(record, ConfigRecord)
    return record


def _truncate(content: RecordDict) -> None:
    data = _payload(content)["delta"]
    assert isinstance(data, bytes)
    _payload(content)["delta"] = data[:-9]


def test_bad_changes_are_counted_and_the_round_goes_on() -> None:
    clients = [
        *averaged_grid(batch_norm_model).clients.values(),
        _spoiled(_truncate),
        _spoiled(lambda content: _payload(content).__delitem__("delta")),
        _spoiled(lambda content: _payload(content).__setitem__("num-examples", 0)),
        _spoiled(lambda content: _payload(content).__setitem__("buffers", b"")),
        raising_client,
        lambda message, context: None,
    ]
    strategy = averaging(batch_norm_model, compression="fp32")
    states = states_after_rounds(strategy, InProcessGrid(clients), 2)  # type: ignore[arg-type]  # None
    assert strategy.failures == {
        "delta": 2, "record": 2, "count": 2, "buffers": 2, "error": 2, "no-reply": 2
    }  # fmt: skip
    alone = states_after_rounds(
        averaging(batch_norm_model, compression="fp32"), averaged_grid(batch_norm_model), 2
    )
    assert largest_difference(states[-1], alone[-1]) == 0
    assert strategy.ledger.sections()["rejected"] > 0


def _arrays(content: RecordDict) -> ArrayRecord:
    record = content["arrays"]
    assert isinstance(record, ArrayRecord)
    return record


def test_bad_models_are_counted_and_the_round_goes_on() -> None:
    def nan(content: RecordDict) -> None:
        _arrays(content)["0.bias"] = Array(np.full(6, np.nan, np.float32))

    def wide(content: RecordDict) -> None:
        _arrays(content)["0.bias"] = Array(np.zeros(7, np.float32))

    def raw(content: RecordDict) -> None:
        _arrays(content)["0.bias"] = Array("float32", (6,), "raw", b"123")

    def short(content: RecordDict) -> None:
        data = _arrays(content)["0.bias"].data
        _arrays(content)["0.bias"] = Array("float32", (6,), "numpy.ndarray", data[:-3])

    clients = [
        *averaged_grid(batch_norm_model).clients.values(),
        *map(_spoiled, (nan, wide, raw, short)),
        _spoiled(lambda content: _arrays(content).__delitem__("0.bias")),
        _spoiled(lambda content: content.__delitem__("arrays")),
        _spoiled(lambda content: content.__delitem__("payload")),
    ]
    strategy = averaging(batch_norm_model)
    states = states_after_rounds(strategy, InProcessGrid(clients), 1)
    assert strategy.failures == {"not-finite": 1, "shape": 1, "record": 5}
    alone = states_after_rounds(averaging(batch_norm_model), averaged_grid(batch_norm_model), 1)
    assert largest_difference(states[-1], alone[-1]) == 0


@pytest.mark.filterwarnings("error")
def test_a_change_that_overflows_is_refused() -> None:
    def client(message: Message, context: Context) -> Message:
        parts = [np.full(p.shape, 3e38, np.float32) for p in smooth_model().parameters()]
        data, _ = Joined(Float32()).compress(parts, None, np.random.default_rng(0))
        record = ConfigRecord({"delta": data, "num-examples": 1, "client": 0})
        return Message(RecordDict({"payload": record}), reply_to=message)

    large = {
        name: torch.full_like(value, 3e38) for name, value in smooth_model().state_dict().items()
    }
    strategy = averaging(compression="fp32", min_available_nodes=1)
    with pytest.raises(RunFailed, match="delta holds 3e\\+38; legal: up to 1e\\+12"):
        strategy.start(InProcessGrid([client]), ArrayRecord(large), num_rounds=1)
    assert strategy.failures == {"delta": 1}


def test_a_round_of_bad_replies_changes_nothing() -> None:
    strategy = averaging(min_available_nodes=1)
    before = copy.deepcopy(strategy.model.state_dict())
    with pytest.raises(RunFailed, match="device is full"):
        states_after_rounds(strategy, InProcessGrid([raising_client]), 2)
    assert strategy.failures == {"error": 2}
    assert strategy.steps_taken == 0
    assert largest_difference(before, dict(strategy.model.state_dict())) == 0


def test_initial_arrays_are_the_start() -> None:
    other = smooth_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    strategy = averaging(learning_rate=lambda _: 0.0, local_steps=1)
    strategy.start(averaged_grid(), ArrayRecord(other.state_dict()), num_rounds=1)
    assert largest_difference(dict(strategy.model.state_dict()), dict(other.state_dict())) < 1e-6


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("local_steps", 0),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
        ("batch_size", 0),
        ("compression", "zip"),
        ("buffers_every", 0),
        ("fraction_train", 0.0),
        ("min_available_nodes", 0),
        ("seed", -1),
    ],
)
def test_illegal_options(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=str(value)):
        averaging(**{option: value})
