"""Devices that may not share samples take part in the same federation."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from inprocess_grid import Client, InProcessGrid
from small_task import (
    CLASSES,
    SHAPE,
    SIZES,
    batch_norm_model,
    largest_difference,
    make_model,
    raising_client,
    random_sources,
    states_after_rounds,
)
from torch import nn

from clients import ArraySource, train
from clients.baselines import train_gradient, train_local
from codec import Compression, OptionError, SampleSpec
from codec.gradients import COMPRESSORS
from strategies import (
    QuantizedDataReplay,
    QuantizedDataStreaming,
    RunFailed,
    ServerStrategy,
)
from strategies.baselines import CompressedFedAvg, GradientCompression

BATCH = 12
SPEC = SampleSpec(SHAPE, "uint8", 0, 255, CLASSES)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)

pytestmark = pytest.mark.usefixtures("one_thread")


def _replay(model: Callable[[], nn.Module] = make_model, **options: Any) -> QuantizedDataReplay:
    settings: dict[str, Any] = {"server_steps": 4, "server_batch_size": 16, "seed": 3}
    settings |= {"codec": "lossless", "device": "cpu", "client_key": "partition", "mixed": True}
    return QuantizedDataReplay(model, SGD, **{**settings, **options})


def _streaming(**options: Any) -> QuantizedDataStreaming:
    settings: dict[str, Any] = {"batch_size": BATCH, "codec": "lossless", "device": "cpu"}
    settings |= {"seed": 3, "client_key": "partition", "mixed": True}
    return QuantizedDataStreaming(make_model, SGD, **{**settings, **options})


def _sharing(source: ArraySource, model: Callable[[], nn.Module] = make_model) -> Client:
    return lambda message, context: train(message, context, source, model)


def _host(source: ArraySource, model: Callable[[], nn.Module] = make_model) -> Client:
    """Training code as in Flower's own examples, which knows nothing of this project."""

    def client(message: Message, context: Context) -> Message:
        config: Any = message.content["config"]
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        network = model()
        network.load_state_dict(arrays.to_torch_state_dict())
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=config["lr"])
        samples = torch.from_numpy(source.samples).float() / 255
        targets = torch.from_numpy(source.targets)
        for _ in range(2):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(samples), targets)
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            optimizer.step()
        metrics: dict[str, Any] = {"train_loss": float(loss), "num-examples": len(targets)}
        content = RecordDict(
            {"arrays": ArrayRecord(network.state_dict()), "metrics": MetricRecord(metrics)}
        )
        return Message(content, reply_to=message)

    return client


def _spoiled(client: Client, spoil: Callable[[Any], None]) -> Client:
    def spoiling(message: Message, context: Context) -> Message:
        reply = client(message, context)
        spoil(reply.content)
        return Message(RecordDict(dict(reply.content)), reply_to=message)

    return spoiling


def _states(
    strategy: Any, clients: Iterable[Client], rounds: int = 3, **options: Any
) -> list[dict[str, Any]]:
    states: list[dict[str, Any]] = []
    strategy.start(
        InProcessGrid(list(clients)),
        num_rounds=rounds,
        train_config=ConfigRecord({"lr": 0.05}),
        evaluate_fn=lambda _, arrays: states.append(arrays.to_torch_state_dict()),
        **options,
    )
    return states[1:]


def _same(states: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    assert len(states) == len(others) > 0
    pairs = zip(states, others, strict=True)
    return max(largest_difference(one, other) for one, other in pairs) < 1e-6


@pytest.mark.parametrize("make", [_replay, _streaming])
@pytest.mark.parametrize("told", [True, False])
def test_when_nobody_sends_samples_it_is_fed_avg(make: Callable[..., Any], told: bool) -> None:
    sources = random_sources()
    strategy = make(samples=SPEC if told else None)
    states = _states(strategy, map(_host, sources))
    plain = FedAvg(fraction_evaluate=0.0)
    initial = ArrayRecord(make_model().state_dict())
    assert _same(states, _states(plain, map(_host, sources), initial_arrays=initial))
    assert strategy.steps_taken == 0 and not strategy.failures


def test_batch_norm_is_averaged_as_by_fed_avg() -> None:
    host = partial(_host, model=batch_norm_model)
    states = _states(_replay(batch_norm_model), map(host, random_sources()))
    initial = ArrayRecord(batch_norm_model().state_dict())
    plain = _states(
        FedAvg(fraction_evaluate=0.0), map(host, random_sources()), initial_arrays=initial
    )
    assert states[-1]["1.running_mean"].any()
    assert states[-1]["1.num_batches_tracked"] == 6
    assert all(largest_difference(a, b) < 1e-6 for a, b in zip(states, plain, strict=True))


def test_local_training_is_that_of_the_baseline() -> None:
    def local(message: Message, context: Context) -> Message:
        source = random_sources()[int(context.node_config["partition-id"])]
        return train_local(message, context, source, make_model)

    states = states_after_rounds(_replay(local_steps=2), InProcessGrid([local] * 3), 3)
    baseline = CompressedFedAvg(
        make_model,
        learning_rate=lambda _: 0.1,
        local_steps=2,
        batch_size=16,
        momentum=0.9,
        weight_decay=0.0,
        seed=3,
        device="cpu",
    )
    plain = states_after_rounds(baseline, InProcessGrid([local] * 3), 3)
    assert _same(states, plain)


@pytest.mark.parametrize("make", [_replay, _streaming])
def test_when_all_send_samples_nothing_changes(make: Callable[..., ServerStrategy]) -> None:
    runs = []
    for mixed in (True, False):
        strategy = make(mixed=mixed)
        runs.append(
            states_after_rounds(strategy, InProcessGrid(list(map(_sharing, random_sources()))), 3)
        )
        assert not strategy.failures
        assert strategy.steps_taken == (12 if make is _replay else 3)
    assert max(largest_difference(a, b) for a, b in zip(*runs, strict=True)) == 0


@pytest.mark.parametrize("told", [True, False])
def test_the_server_counts_as_many_examples_as_it_holds(told: bool) -> None:
    sources = random_sources()
    clients = [_sharing(sources[0]), _host(sources[1]), _host(sources[2])]
    strategy = _replay(samples=SPEC if told else None)
    (state,) = _states(strategy, clients, 1)

    alone = _replay(mixed=False)
    (served,) = _states(alone, clients[:1], 1)
    trained = [
        _states(
            FedAvg(1.0, 0.0, 1, 1, 1),
            [host],
            1,
            initial_arrays=ArrayRecord(make_model().state_dict()),
        )[0]
        for host in clients[1:]
    ]
    total = sum(SIZES)
    for name, value in state.items():
        models = [served[name], trained[0][name], trained[1][name]]
        expected = sum(n * m for n, m in zip(SIZES, models, strict=True)) / total
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    assert len(strategy.bank) == SIZES[0] and strategy.steps_taken == 4


def test_only_those_that_share_no_samples_get_the_model() -> None:
    sources = random_sources()
    clients = [_sharing(sources[0]), _host(sources[1]), _sharing(sources[2])]
    for told, in_first in ((SPEC, {0, 1, 2}), (None, {0, 2})):
        strategy, grid = _replay(samples=told, samples_per_round=5), InProcessGrid(clients)
        strategy.start(grid, num_rounds=3, train_config=ConfigRecord({"lr": 0.05}))
        nodes = list(grid.clients)
        with_model = [
            {nodes.index(m.metadata.dst_node_id) for m in sent if "arrays" in m.content}
            for sent in grid.requests[::2]
        ]
        asked = [{nodes.index(m.metadata.dst_node_id) for m in sent} for sent in grid.requests[::2]]
        # The model has gone with the question what samples are like, where that is asked.
        assert with_model == [in_first if told else set(), {1}, {1}]
        assert asked == [in_first, {0, 1, 2}, {0, 1, 2}]
        size = sum(len(a.data) for a in ArrayRecord(make_model().state_dict()).values())
        down = strategy.ledger.sections("downlink")["arrays"] / size
        assert 5 <= down < 5.7  # three in the first round, one in each of two others
        up = strategy.ledger.sections()
        assert 3 <= up["arrays"] / size < 3.4
        assert not strategy.failures and strategy.book.samples_sent == 30
        assert strategy.ledger.round_bytes(3)[0] > size


def test_devices_that_have_sent_all_are_left_alone_and_others_go_on() -> None:
    sources = random_sources()
    grid = InProcessGrid([_sharing(sources[0]), _host(sources[1])])
    strategy = _replay(samples=SPEC)
    strategy.start(grid, num_rounds=3, train_config=ConfigRecord({"lr": 0.05}))
    assert [len(sent) for sent in grid.requests[::2]] == [2, 1, 1]
    assert len(strategy.bank) == SIZES[0] and strategy.steps_taken == 12


# Gradients


def _gradient(source: ArraySource, **options: Any) -> Client:
    return lambda message, context: train_gradient(message, context, source, make_model, **options)


def test_gradients_alone_are_gradient_compression() -> None:
    def client(message: Message, context: Context) -> Message:
        source = random_sources()[int(context.node_config["partition-id"])]
        return train_gradient(message, context, source, make_model)

    states = states_after_rounds(_streaming(), InProcessGrid([client] * 3), 3)
    baseline = GradientCompression(make_model, SGD, batch_size=BATCH, device="cpu", seed=3)
    assert _same(states, states_after_rounds(baseline, InProcessGrid([client] * 3), 3))


def test_gradients_and_samples_are_averaged_by_examples() -> None:
    """Lossless on both sides, each round is a step along the mean over all minibatches."""
    drawn: list[tuple[Any, Any]] = []

    class Recording(ArraySource):
        def get_items(self, indices: Any) -> Any:
            items = super().get_items(indices)
            if len(indices) > 1:
                drawn.append(items)
            return items

    parts: list[Any] = [(s.samples, s.targets, CLASSES, 0.0, 255.0) for s in random_sources()]
    small: Any = tuple(array[:7] for array in parts[2][:2])
    sources = [Recording(*parts[0]), Recording(*parts[1]), Recording(*small, *parts[2][2:])]
    clients = [_sharing(sources[0]), _gradient(sources[1]), _gradient(sources[2])]
    (state,) = _states(_streaming(samples=SPEC), clients, 1)
    samples = torch.from_numpy(np.concatenate([x for x, _ in drawn])).float() / 255
    targets = torch.from_numpy(np.concatenate([y for _, y in drawn]))
    assert len(samples) == 2 * BATCH + 7
    model = make_model()
    nn.functional.cross_entropy(model(samples), targets).backward()  # type: ignore[no-untyped-call]  # torch
    SGD(model.parameters(), lr=0.05).step()
    assert largest_difference(state, dict(model.state_dict())) < 1e-6


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_any_compressor_is_told_apart_by_its_bytes(kind: str) -> None:
    sources = random_sources()
    compression = Compression(kind, bits=4, density=0.2)
    clients = [_sharing(sources[0]), _gradient(sources[1], compression=compression)]
    strategy = _streaming()
    _states(strategy, clients, 3)
    assert not strategy.failures and strategy.steps_taken == 3
    assert strategy.ledger.sections()["gradient"] > 0
    assert np.isfinite([p.detach().sum() for p in strategy.model.parameters()]).all()


def test_gradients_are_no_replies_to_replay() -> None:
    sources = random_sources()
    strategy = _replay(samples=SPEC)
    _states(strategy, [_sharing(sources[0]), _gradient(sources[1])], 1)
    assert strategy.failures == {"record": 1}
    assert "replay takes models" in strategy.book.why()
    assert len(strategy.bank) == SIZES[0]


def test_a_scheduler_that_needs_the_loss_is_refused() -> None:
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    with pytest.raises(OptionError, match="ReduceLROnPlateau needs the loss"):
        _streaming(scheduler=plateau)


# What can go wrong


def _set(name: str, value: Any) -> Callable[[Any], None]:
    def spoil(content: Any) -> None:
        content["arrays"][name] = Array(value)

    return spoil


def test_a_malformed_model_is_rejected_alone() -> None:
    sources = random_sources()
    host = _host(sources[1])
    bad: list[tuple[str, Callable[[Any], None]]] = [
        ("not-finite", _set("0.bias", np.full(6, np.nan, np.float32))),
        ("shape", _set("0.bias", np.zeros(7, np.float32))),
        ("shape", _set("0.bias", np.zeros(6, np.float64))),
        ("record", lambda content: content["arrays"].__delitem__("0.bias")),
        ("record", _set("extra", np.zeros(6, np.float32))),
        ("record", lambda content: content.__setitem__("more", ArrayRecord([np.zeros(2)]))),
        ("count", lambda content: content["metrics"].__delitem__("num-examples")),
        ("count", lambda content: content["metrics"].__setitem__("num-examples", -3)),
        ("count", lambda content: content["metrics"].__setitem__("num-examples", 2.5)),
        ("count", lambda content: content.__delitem__("metrics")),
    ]
    good = [_sharing(sources[0]), host]
    clients = [*good, *(_spoiled(host, spoil) for _, spoil in bad), raising_client]
    strategy = _replay(samples=SPEC)
    (state,) = _states(strategy, clients, 1)
    causes = [cause for cause, _ in bad]
    assert strategy.failures == {
        "not-finite": 1, "shape": 2, "record": causes.count("record"), "count": 4, "error": 1
    }  # fmt: skip
    assert strategy.ledger.sections()["rejected"] > 0
    (alone,) = _states(_replay(samples=SPEC), good, 1)
    assert largest_difference(state, alone) == 0


def test_malformed_gradients_are_rejected_alone() -> None:
    sources = random_sources()

    def spoil(data: bytes) -> Callable[[Any], None]:
        return lambda content: content["payload"].__setitem__("gradient", data)

    clients = [_sharing(sources[0])]
    clients += [
        _spoiled(_gradient(sources[1]), spoil(data)) for data in (b"QD", b"QDGC\3\x77" + bytes(9))
    ]
    strategy = _streaming(samples=SPEC)
    _states(strategy, clients, 1)
    assert strategy.failures == {"gradient": 2}
    assert strategy.steps_taken == 1


def test_without_mixed_a_model_is_refused_with_a_hint() -> None:
    sources = random_sources()

    def host(message: Message, context: Context) -> Message:
        message.content["arrays"] = ArrayRecord(make_model().state_dict())
        return _host(sources[1])(message, context)

    strategy = _replay(mixed=False, samples=SPEC)
    _states(strategy, [_sharing(sources[0]), host], 1)
    assert strategy.failures == {"record": 1}
    assert "no samples but a model, which mixed takes" in strategy.book.why()
    with pytest.raises(RunFailed, match="which mixed takes"):
        _states(_replay(mixed=False, samples=SPEC), [host], 5)


def test_a_device_without_samples_is_no_failure() -> None:
    empty = ArraySource(np.zeros((0, *SHAPE), np.uint8), np.zeros(0, int), CLASSES, 0.0, 255.0)
    sources = random_sources()
    for make, handler in ((_replay, train_local), (_streaming, train_gradient)):
        clients = [
            _sharing(sources[0]),
            partial(handler, source=empty, model=make_model),
        ]
        strategy = make(samples=SPEC)
        _states(strategy, clients, 2)
        assert not strategy.failures and strategy.steps_taken > 0


def test_metrics_of_hosts_reach_their_own_aggregation() -> None:
    seen: list[list[Any]] = []

    def aggregate(contents: list[RecordDict], key: str) -> MetricRecord:
        seen.append(contents)
        losses: list[Any] = [c["metrics"].get("train_loss") for c in contents]
        return MetricRecord({"clients_loss": float(np.mean([x for x in losses if x is not None]))})

    sources = random_sources()
    strategy = _replay(samples=SPEC, train_metrics_aggr_fn=aggregate)
    result = strategy.start(
        InProcessGrid([_sharing(sources[0]), _host(sources[1])]),
        num_rounds=1,
        train_config=ConfigRecord({"lr": 0.05}),
    )
    metrics = result.train_metrics_clientapp[1]
    assert 0 < metrics["clients_loss"] < 3  # type: ignore[operator]
    assert metrics["samples_sent"] == SIZES[0]
    assert sorted(content["metrics"]["num-examples"] for content in seen[0]) == [40, 50]
