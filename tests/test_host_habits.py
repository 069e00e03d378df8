"""What a host is used to from Flower works as there: keywords, evaluation, configs, `start`."""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import arrays_size_mod, message_size_mod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Result,
    Strategy,
)
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from inprocess_grid import InProcessGrid
from small_task import (
    CLASSES,
    SHAPE,
    SIZES,
    largest_difference,
    make_model,
    raising_client,
    random_sources,
)
from torch import nn

from clients import ArraySource, train
from codec import OptionError, SampleSpec
from sim.direct_grid import Client, node_ids
from strategies import (
    DivergedError,
    QuantizedDataReplay,
    QuantizedDataStreaming,
    RoundResult,
    RunFailed,
)
from strategies.baselines import CompressedFedAvg, GradientCompression

SPEC = SampleSpec(SHAPE, "uint8", 0, 255, CLASSES)
SGD = partial(torch.optim.SGD, lr=0.1)

pytestmark = pytest.mark.usefixtures("one_thread")

Samples = QuantizedDataReplay | QuantizedDataStreaming


def _replay(kind: type[QuantizedDataReplay] = QuantizedDataReplay, **options: Any) -> Any:
    settings: dict[str, Any] = {"server_steps": 2, "device": "cpu", "samples": SPEC}
    return kind(options.pop("model", make_model), SGD, **{**settings, **options})


def _streaming(**options: Any) -> QuantizedDataStreaming:
    return QuantizedDataStreaming(make_model, SGD, device="cpu", samples=SPEC, **options)


def _evaluates(message: Message) -> bool:
    return message.metadata.message_type == "evaluate"


def _client(source: ArraySource, metrics: dict[str, Any] | None = None) -> Client:
    """A client that trains by sending samples, and evaluates as in Flower's examples."""

    def answer(message: Message, context: Context) -> Message:
        if not _evaluates(message):
            return train(message, context, source, make_model)
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        model = make_model()
        model.load_state_dict(arrays.to_torch_state_dict())
        with torch.no_grad():
            outputs = model.eval()(torch.from_numpy(source.samples).float() / 255)
        right = outputs.argmax(dim=1) == torch.from_numpy(source.targets)
        found: dict[str, Any] = {
            "accuracy": float(right.float().mean()),
            "num-examples": len(right),
        }
        record = MetricRecord(metrics if metrics is not None else found)
        return Message(RecordDict({"metrics": record}), reply_to=message)

    return answer


def _grid(**options: Any) -> InProcessGrid:
    return InProcessGrid([_client(source) for source in random_sources()], **options)


class _Watched(InProcessGrid):
    """A grid that keeps all messages, those of evaluation among them."""

    def __init__(self, clients: list[Client], seed: int = 0) -> None:
        super().__init__(clients, seed)
        self.sent: list[list[Message]] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        sent = list(messages)
        self.sent.append(sent)
        return super().send_and_receive(sent, timeout=timeout)


@pytest.fixture
def log_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[str]]:
    """What was logged with some words in it."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    caplog.set_level(logging.INFO, logger="flwr")
    return lambda words: [text for text in caplog.messages if words in text]


# Keywords, and evaluation on clients


@pytest.mark.parametrize("make", [_replay, _streaming])
def test_keywords_of_fed_avg(make: Callable[..., Samples]) -> None:
    strategy = make(
        fraction_train=0.5,
        fraction_evaluate=0.5,
        min_train_nodes=2,
        min_evaluate_nodes=2,
        min_available_nodes=2,
        weighted_by_key="num-examples",
        arrayrecord_key="arrays",
        configrecord_key="config",
        train_metrics_aggr_fn=aggregate_metricrecords,
        evaluate_metrics_aggr_fn=aggregate_metricrecords,
    )
    result = strategy.start(_grid(), num_rounds=2)
    assert set(result.evaluate_metrics_clientapp) == {1, 2}
    assert not strategy.failures


def test_evaluation_is_that_of_fed_avg() -> None:
    strategy = _replay(fraction_evaluate=1.0, min_evaluate_nodes=3, seed=1)
    grid = _Watched([_client(source) for source in random_sources()])
    config = ConfigRecord({"split": "test"})
    result = strategy.start(grid, num_rounds=2, evaluate_config=config)
    assert dict(config) == {"split": "test"}

    questions = [sent for sent in grid.sent if sent and _evaluates(sent[0])]
    assert [len(sent) for sent in questions] == [3, 3]
    content = questions[1][0].content
    assert set(content) == {"arrays", "config"}
    assert dict(content["config"]) == {"split": "test", "server-round": 2}
    assert all(message.content["arrays"] is content["arrays"] for message in questions[1])

    plain = FedAvg(min_evaluate_nodes=3, min_train_nodes=3, min_available_nodes=3)
    asked = plain.configure_evaluate(2, strategy.current_arrays(), ConfigRecord(), grid)
    expected = plain.aggregate_evaluate(2, grid.send_and_receive(asked))
    assert expected is not None
    found = result.evaluate_metrics_clientapp[2]
    assert found["accuracy"] == pytest.approx(expected["accuracy"])
    assert set(found) == {"accuracy"}


def test_evaluation_is_on_the_books() -> None:
    strategy, without = _replay(fraction_evaluate=1.0), _replay()
    strategy.start(_grid(), num_rounds=2)
    without.start(_grid(), num_rounds=2)
    size = sum(len(array.data) for array in ArrayRecord(make_model().state_dict()).values())
    more = strategy.ledger.downlink_bytes - without.ledger.downlink_bytes
    assert 2 * 3 * size < more < 2 * 3 * (size + 2500)
    assert 0 < strategy.ledger.sections()["evaluation"] < 2 * 3 * 300
    assert without.ledger.sections("downlink")["arrays"] == 0
    assert strategy.ledger.uplink_bytes > without.ledger.uplink_bytes


def test_nobody_evaluates_unless_asked() -> None:
    grid = _Watched([_client(source) for source in random_sources()])
    result = _replay().start(grid, num_rounds=2)
    assert not result.evaluate_metrics_clientapp
    assert not any(_evaluates(m) for sent in grid.sent for m in sent)


def test_the_host_aggregates_its_own_way_and_names_its_records() -> None:
    def aggregate(contents: list[RecordDict], key: str) -> MetricRecord:
        assert key == "examples"
        return MetricRecord({"clients": len(contents)})

    def answer(message: Message, context: Context) -> Message:
        if not _evaluates(message):
            return train(message, context, random_sources()[0])
        assert set(message.content) == {"model", "settings"}
        record = MetricRecord({"examples": 4, "auc": 0.5})
        return Message(RecordDict({"any name": record}), reply_to=message)

    strategy = _replay(
        fraction_evaluate=1.0,
        weighted_by_key="examples",
        arrayrecord_key="model",
        configrecord_key="settings",
        evaluate_metrics_aggr_fn=aggregate,
    )
    result = strategy.start(InProcessGrid([answer] * 2), num_rounds=1)
    assert dict(result.evaluate_metrics_clientapp[1]) == {"clients": 2}


def test_bad_evaluations_are_counted_and_fatal_to_nothing() -> None:
    source = random_sources()[0]

    def raising(message: Message, context: Context) -> Message:
        if _evaluates(message):
            raise OSError("no test set here")
        return train(message, context, source)

    def silent(message: Message, context: Context) -> Message | None:
        return None if _evaluates(message) else train(message, context, source)

    bad: list[dict[str, Any]] = [
        {},
        {"accuracy": 1.0},
        {"accuracy": 1.0, "num-examples": 0},
        {"accuracy": 1.0, "num-examples": float("nan")},
        {"accuracy": 1.0, "num-examples": [1, 2]},
        {"f1": 1.0, "num-examples": 10},
    ]
    good = [_client(one) for one in random_sources()]
    clients = [*good, *(_client(source, metrics) for metrics in bad), raising, silent]
    strategy = _replay(fraction_evaluate=1.0)
    result = strategy.start(InProcessGrid(clients), num_rounds=2)  # type: ignore[arg-type]  # None
    assert strategy.failures == {"evaluate": 2 * (len(bad) + 1), "no-reply": 2}
    alone = _replay(fraction_evaluate=1.0).start(InProcessGrid(good), num_rounds=2)
    for metrics in (result, alone):
        assert set(metrics.evaluate_metrics_clientapp[1]) == {"accuracy"}
    only_bad = _replay(fraction_evaluate=1.0)
    assert not only_bad.start(InProcessGrid([raising]), num_rounds=2).evaluate_metrics_clientapp


def test_too_few_nodes_to_evaluate_cost_no_run(log_lines: Callable[[str], list[str]]) -> None:
    strategy = _replay(fraction_evaluate=0.5, min_evaluate_nodes=7)
    strategy.start(_grid(), num_rounds=1, timeout=0.1)
    assert strategy.steps_taken == 2
    assert log_lines("no evaluation on clients: 3 of 7 nodes connected")


def test_shares_of_nodes_with_real_ids() -> None:
    """Ids of 64 bits: on both sides of 2**63 NumPy would make floats of them."""
    clients = [_client(random_sources()[0])] * 9
    assert {node_id >= 2**63 for node_id in node_ids(9)} == {True, False}
    grid = _Watched(clients)
    strategy = _replay(fraction_train=0.4, fraction_evaluate=0.4, samples_per_round=5)
    strategy.start(grid, num_rounds=4)
    assert {len(sent) for sent in grid.sent} == {3}
    asked = {message.metadata.dst_node_id for sent in grid.sent for message in sent}
    assert asked <= set(grid.clients) and len(asked) > 4
    assert not strategy.failures


# Metrics and mods


def test_metrics_are_named_as_hosts_name_them() -> None:
    result = _replay().start(_grid(), num_rounds=1)
    metrics = result.train_metrics_clientapp[1]
    assert set(metrics) == {"train_loss", "samples_sent", "uplink_bytes"}
    assert metrics["samples_sent"] == sum(SIZES)


def test_flowers_own_aggregation_takes_the_clients_metrics() -> None:
    """What a client leaves out because it is the default still counts in a mean."""
    grid, strategy = _grid(), _replay(codec="dct", train_metrics_aggr_fn=aggregate_metricrecords)
    result = strategy.start(grid, num_rounds=1)
    metrics: Any = result.train_metrics_clientapp[1]
    sent: list[Any] = [reply.content["metrics"] for reply in grid.replies[0]]
    assert all(record["num-examples"] > 0 for record in sent)
    assert metrics["num-sent"] == pytest.approx(sum(n * n for n in SIZES) / sum(SIZES))
    assert metrics["clipped"] == 0 and 0 < metrics["variance-kept"] <= 1
    assert metrics["samples_sent"] == sum(SIZES)


def test_metrics_that_the_host_adds_are_aggregated() -> None:
    def answer(message: Message, context: Context) -> Message:
        reply = train(message, context, random_sources()[0])
        record: Any = reply.content["metrics"]
        record["battery"] = 0.5
        return reply

    strategy = _replay(train_metrics_aggr_fn=aggregate_metricrecords)
    result = strategy.start(InProcessGrid([answer] * 2), num_rounds=2)
    assert result.train_metrics_clientapp[1]["battery"] == pytest.approx(0.5)
    # In the second round nobody has samples left: there is nothing to aggregate.
    assert "battery" not in result.train_metrics_clientapp[2]


@pytest.mark.parametrize("make", [_replay, _streaming])
def test_flowers_mods_around_a_client(
    make: Callable[..., Samples], log_lines: Callable[[str], list[str]]
) -> None:
    def wrapped(source: ArraySource) -> Client:
        handler = _client(source)

        def outer(message: Message, context: Context) -> Message:
            return message_size_mod(message, context, lambda m, c: arrays_size_mod(m, c, handler))

        return outer

    strategy = make(importance="loss", fraction_evaluate=1.0)
    strategy.start(InProcessGrid([wrapped(source) for source in random_sources()]), num_rounds=1)
    assert not strategy.failures
    assert len(log_lines("Outgoing message size")) == 6
    assert len(log_lines("Incoming `ArrayRecord`")) == 6


# Arrays and `start`


def _shifted(by: float) -> ArrayRecord:
    return ArrayRecord({name: value + by for name, value in make_model().state_dict().items()})


def test_the_model_starts_from_initial_arrays() -> None:
    for given, shift in ((_shifted(1.0), 1.0), (None, 0.0)):
        strategy = _replay(server_steps=0)
        result = strategy.start(_grid(), given, num_rounds=1)
        expected = _shifted(shift).to_torch_state_dict()
        assert largest_difference(result.arrays.to_torch_state_dict(), expected) == 0


@pytest.mark.parametrize("kind", [QuantizedDataReplay, QuantizedDataStreaming])
def test_configure_train_honours_the_arrays_that_it_is_given(kind: type[Any]) -> None:
    class Averaging(kind):  # type: ignore[misc]
        """Halves the model after each round, as a host may who keeps an average of its own."""

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            halves = {name: v / 2 for name, v in arrays.to_torch_state_dict().items()}
            return ArrayRecord(halves), metrics

    strategy = Averaging(make_model, partial(torch.optim.SGD, lr=0.0), device="cpu", samples=SPEC)
    result = strategy.start(_grid(), num_rounds=3)
    expected = {name: value / 8 for name, value in make_model().state_dict().items()}
    assert largest_difference(result.arrays.to_torch_state_dict(), expected) < 1e-7


def test_arrays_that_are_replaced_in_the_record_are_seen() -> None:
    class Zeroing(QuantizedDataReplay):
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            if server_round == 2:
                for name, array in _shifted(5.0).items():
                    arrays[name] = array
            return super().configure_train(server_round, arrays, config, grid)

    strategy = _replay(Zeroing, server_steps=0)
    strategy.start(_grid(), num_rounds=2)
    expected = _shifted(5.0).to_torch_state_dict()
    assert largest_difference(dict(strategy.model.state_dict()), expected) == 0


def test_arrays_of_another_model_are_refused_in_words() -> None:
    other = ArrayRecord(nn.Linear(3, 2).state_dict())
    with pytest.raises(ValueError, match=r"does not fit the model Sequential: missing: 0\.bias"):
        _replay().start(_grid(), other, num_rounds=1)


def test_gradient_baselines_start_from_initial_arrays() -> None:
    from clients.baselines import train_gradient

    source = random_sources()[0]
    frozen = partial(torch.optim.SGD, lr=0.0)
    strategy = GradientCompression(make_model, frozen, batch_size=8, device="cpu")
    grid = InProcessGrid([lambda msg, context: train_gradient(msg, context, source, make_model)])
    result = strategy.start(grid, _shifted(1.0), num_rounds=1)
    expected = _shifted(1.0).to_torch_state_dict()
    assert largest_difference(result.arrays.to_torch_state_dict(), expected) == 0


class _OwnStart(QuantizedDataReplay):
    """As Flower's advanced example: `start` goes to Flower's own, not to ours."""

    def start(self, *args: Any, **options: Any) -> Result:  # type: ignore[override]
        return Strategy.start(self, *args, **options)


class _OwnLoop(QuantizedDataReplay):
    """A `start` that is all the host's own."""

    def start(  # type: ignore[override]
        self, grid: Grid, arrays: ArrayRecord, num_rounds: int = 3, timeout: float = 3600
    ) -> Result:
        result = Result()
        for server_round in range(1, num_rounds + 1):
            messages = self.configure_train(server_round, arrays, ConfigRecord(), grid)
            replies = grid.send_and_receive(messages, timeout=timeout)
            arrays, _ = self.aggregate_train(server_round, replies)
            result.arrays = arrays
        return result


@pytest.mark.parametrize("kind", [_OwnStart, _OwnLoop])
def test_an_overridden_start(
    kind: type[QuantizedDataReplay], log_lines: Callable[[str], list[str]]
) -> None:
    strategy = _replay(kind)
    result = strategy.start(_grid(), _shifted(0.5), num_rounds=2, timeout=7.5)
    assert (strategy.num_rounds, strategy.timeout) == (2, 7.5)
    plain = _replay()
    expected = plain.start(_grid(), _shifted(0.5), num_rounds=2)
    found = result.arrays.to_torch_state_dict()
    assert largest_difference(found, expected.arrays.to_torch_state_dict()) == 0
    assert len(log_lines("seconds: ")) == 2  # the summaries of both

    with pytest.raises(RunFailed, match="device is full"):
        _replay(kind).start(InProcessGrid([raising_client]), _shifted(0.0), num_rounds=2)
    late = _replay(kind, min_available_nodes=9)
    with pytest.raises(RunFailed, match="3 of 9 nodes connected after"):
        late.start(_grid(), _shifted(0.0), num_rounds=1, timeout=0.1)


def test_a_start_that_calls_ours_has_one_summary(log_lines: Callable[[str], list[str]]) -> None:
    class Wrapping(QuantizedDataReplay):
        def start(self, grid: Grid, **options: Any) -> Result:  # type: ignore[override]
            return super().start(grid, **options)

    strategy = _replay(Wrapping)
    strategy.start(_grid(), num_rounds=2, timeout=9)
    assert (strategy.num_rounds, strategy.timeout) == (2, 9)
    assert len(log_lines("seconds: ")) == 1


@pytest.mark.parametrize("baseline", [False, True])
def test_nodes_that_never_come_end_the_wait(baseline: bool) -> None:
    strategy: Any = _replay(min_train_nodes=4)
    if baseline:
        strategy = CompressedFedAvg(
            make_model, learning_rate=lambda _: 0.1, min_available_nodes=4, device="cpu"
        )
    with pytest.raises(RunFailed, match="3 of 4 nodes connected after"):
        strategy.start(_grid(), num_rounds=1, timeout=0.1)


# train_config


def _rates(strategy: Any) -> list[float]:
    return [group["lr"] for group in strategy.server_model.optimizer.param_groups]


@pytest.mark.parametrize("key", ["lr", "learning-rate", "learning_rate"])
def test_a_learning_rate_is_applied(key: str) -> None:
    strategy, config = _replay(), ConfigRecord({key: 0.025})
    strategy.start(_grid(), num_rounds=2, train_config=config)
    assert _rates(strategy) == [0.025]
    assert dict(config) == {key: 0.025}


def test_a_learning_rate_per_round() -> None:
    seen: list[float] = []

    class Decaying(QuantizedDataReplay):
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            config["lr"] = 0.1 / server_round
            messages = super().configure_train(server_round, arrays, config, grid)
            seen.extend(_rates(self))
            return messages

    grid = _grid()
    _replay(Decaying, samples_per_round=5).start(grid, num_rounds=3)
    assert seen == pytest.approx([0.1, 0.05, 0.1 / 3])
    told = [sent[0].content["config"]["lr"] for sent in grid.requests if sent]
    assert told == pytest.approx(seen)  # clients see it, too


@pytest.mark.parametrize("value", [-0.1, "fast", True, float("nan"), float("inf"), [0.1]])
def test_an_illegal_learning_rate_is_refused(value: Any) -> None:
    with pytest.raises(OptionError, match=r"^train_config: lr = .* must be a number >= 0$"):
        _replay().start(_grid(), num_rounds=1, train_config=ConfigRecord({"lr": value}))


def test_keys_of_no_effect_are_told_once(log_lines: Callable[[str], list[str]]) -> None:
    config = ConfigRecord({"local-epochs": 3, "seed": 9, "lr": 0.01})
    scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    strategy, grid = _replay(scheduler=scheduler, samples_per_round=5, seed=4), _grid()
    strategy.start(grid, num_rounds=3, train_config=config)
    assert dict(config) == {"local-epochs": 3, "seed": 9, "lr": 0.01}
    for key, words in (
        ("local-epochs", "is passed on to the clients"),
        ("seed", "is set by the strategy itself"),
        ("lr", "has no effect: the strategy has a scheduler"),
    ):
        (line,) = log_lines(f"train_config: {key!r}")
        assert words in line
    sent = grid.requests[0][0].content["config"]
    assert isinstance(sent, ConfigRecord)
    assert (sent["local-epochs"], sent["seed"]) == (3, 4)


# Differential privacy


def _wrappers() -> list[Callable[[Any], Any]]:
    return [
        lambda inner: DifferentialPrivacyServerSideFixedClipping(inner, 1.0, 1.0, 3),
        lambda inner: DifferentialPrivacyClientSideFixedClipping(inner, 1.0, 1.0, 3),
        lambda inner: DifferentialPrivacyServerSideAdaptiveClipping(inner, 0.1, 3),
        lambda inner: DifferentialPrivacyClientSideAdaptiveClipping(inner, 0.1, 3),
    ]


@pytest.mark.parametrize("wrap", _wrappers())
@pytest.mark.parametrize("make", [_replay, _streaming])
def test_privacy_wrappers_are_refused(wrap: Callable[[Any], Any], make: Callable[..., Any]) -> None:
    grid, inner = _grid(), make()
    with pytest.raises(RunFailed, match=r"DifferentialPrivacy.* samples leave the devices, unclip"):
        wrap(inner).start(grid, ArrayRecord(make_model().state_dict()), num_rounds=2)
    assert grid.requests == [] and not inner.ledger.entries
    inner.start(grid, num_rounds=1)  # by itself it runs


def test_privacy_wrappers_of_whole_models_are_not_refused() -> None:
    from clients.baselines import train_local

    source = random_sources()[0]
    inner = CompressedFedAvg(make_model, learning_rate=lambda _: 0.1, device="cpu", local_steps=1)
    wrapped = DifferentialPrivacyServerSideFixedClipping(inner, 0.1, 1.0, 2)
    grid = InProcessGrid([lambda msg, context: train_local(msg, context, source, make_model)] * 2)
    result = wrapped.start(grid, ArrayRecord(make_model().state_dict()), num_rounds=1)
    assert inner.steps_taken == 1 and result.arrays is not None
    assert not inner.failures


# Failures


def test_error_replies_are_booked_under_the_node_that_was_asked() -> None:
    """Of a node that died, Flower makes the reply itself, in its own name."""

    class Dying(InProcessGrid):
        def answer(self, message: Message) -> Message | None:
            reply = super().answer(message)
            if message.metadata.dst_node_id != dead:
                return reply
            reply = Message(Error(3, "no heartbeat"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = 1
            return reply

    grid = Dying([_client(source) for source in random_sources()])
    dead = list(grid.clients)[1]
    strategy = _replay()
    strategy.start(grid, num_rounds=2)
    assert strategy.failures == {"error": 2}
    assert set(strategy.ledger.node_bytes()) == set(grid.clients)
    assert strategy.ledger.node_bytes()[dead] == 0


def test_nothing_is_ever_accepted() -> None:
    results: list[RoundResult] = []
    strategy = _replay(on_round=results.append)
    with pytest.raises(RunFailed, match="3 rounds in a row: error: code 2, device is full"):
        strategy.start(InProcessGrid([raising_client] * 3), num_rounds=50)
    assert len(results) == 3
    silent = _replay()
    with pytest.raises(RunFailed, match="no reply could be used: 10 no-reply"):
        silent.start(InProcessGrid([lambda m, c: None] * 2), num_rounds=5)


def test_empty_replies_are_nothing_to_learn_from() -> None:
    class Unreadable(ArraySource):
        def get_items(self, indices: Any) -> Any:
            raise OSError("disk gone")

    odd = Unreadable(np.zeros((9, *SHAPE), np.uint8), np.zeros(9, int), CLASSES, 0.0, 255.0)
    with pytest.raises(RunFailed, match="disk gone"):
        _replay().start(InProcessGrid([_client(odd)]), num_rounds=4)
    empty = ArraySource(np.zeros((0, *SHAPE), np.uint8), np.zeros(0, int), CLASSES, 0.0, 255.0)
    with pytest.raises(RunFailed, match="nobody sent anything"):
        _replay().start(InProcessGrid([_client(empty)]), num_rounds=4)


def test_bad_replies_after_good_ones_stop_nothing() -> None:
    def failing(message: Message, context: Context) -> Message:
        config: Any = message.content["config"]
        if config["server-round"] > 1:
            raise MemoryError("device is full")
        return train(message, context, random_sources()[0])

    strategy = _replay(samples_per_round=10)
    strategy.start(InProcessGrid([failing]), num_rounds=8)
    assert strategy.failures == {"error": 7} and strategy.steps_taken == 16
    stream = _streaming()
    stream.start(InProcessGrid([failing]), num_rounds=8)
    assert stream.steps_taken == 1


@pytest.mark.parametrize("make", [_replay, _streaming])
def test_a_loss_that_is_no_number_ends_the_run(make: Callable[..., Samples]) -> None:
    def diverging(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return losses * (float("nan") if calls.pop() else 1.0)

    calls = [True] * 50 + [False] * 2  # the rehearsal is the first to call
    with pytest.raises(DivergedError, match=r"loss is nan .* learning rate"):
        make(criterion=diverging).start(_grid(), num_rounds=3)


def test_twins_are_told(log_lines: Callable[[str], list[str]]) -> None:
    for key, told in (("node", 0), ("partition", 1)):
        grid = _grid()
        for context in grid.contexts.values():
            context.node_config["partition-id"] = 0
        _replay(client_key=key, samples_per_round=5).start(grid, num_rounds=3)
        assert len(log_lines("both have partition-id 0")) == told


# The books


def test_a_second_start_goes_on_and_its_rounds_are_apart() -> None:
    results: list[RoundResult] = []
    grid = InProcessGrid([_client(random_sources()[0])])
    strategy = _replay(samples_per_round=20, on_round=results.append)
    strategy.start(grid, num_rounds=2)
    first = strategy.ledger.round_bytes(1)
    strategy.start(grid, num_rounds=3)
    assert strategy.ledger.round_bytes(1) == first
    assert [result.round for result in results] == [1, 2, 3, 4, 5]
    assert [result.samples_sent for result in results] == [20, 20, 10, 0, 0]
    assert [result.uplink_bytes for result in results] == [
        strategy.ledger.round_bytes(number)[0] for number in range(1, 6)
    ]
    assert strategy.steps_taken == 10 and not strategy.failures
    strategy.start(grid, num_rounds=1)  # with nothing left to send
    assert results[-1].round == 6


def test_a_run_that_nobody_evaluates_says_so(log_lines: Callable[[str], list[str]]) -> None:
    _replay(fraction_evaluate=1.0).start(_grid(), num_rounds=1)
    _replay().start(_grid(), num_rounds=1, evaluate_fn=lambda *_: None)
    assert not log_lines("nobody evaluates")
    _replay().start(_grid(), num_rounds=1)
    assert len(log_lines("nobody evaluates")) == 1


def test_five_lines_end_a_run(log_lines: Callable[[str], list[str]]) -> None:
    wide = random_sources()[1]
    values = np.random.default_rng(0).uniform(0, 255, (6, *SHAPE)).astype(np.float32)
    values[..., 0] = 300.0
    odd = ArraySource(values, np.arange(6) % 4, 4, 0.0, 255.0)
    clients = [_client(wide), _client(odd), raising_client]
    strategy = _replay(codec="dct", scale="unit")
    strategy.start(InProcessGrid(clients), num_rounds=2)
    kinds = ("samples", "coding", "bytes", "failures", "seconds")
    lines = [log_lines(f"{kind}: ")[-1] for kind in kinds]
    ledger = strategy.ledger
    assert lines[0] == "samples: 46 of 2 nodes; skipped: none"
    assert lines[1].startswith("coding: ") and lines[1].endswith(f"{6 * 8} values clipped")
    assert f"{ledger.uplink_bytes:,} up, {ledger.downlink_bytes:,} down; with envelope" in lines[2]
    assert lines[3] == "failures: 2 error (code 2, device is full)"
    assert lines[4].startswith("seconds: ") and "train" in lines[4]
    assert len(log_lines("round ")) == 2
