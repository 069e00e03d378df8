"""One round of quantized data is one step of minibatch SGD."""

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from inprocess_grid import InProcessGrid
from numpy.typing import NDArray
from torch import nn

from clients import ArraySource, train
from codec import CodecOptions, DecodeLimits, Refinement
from strategies import QuantizedDataSGD, RoundResult

SHAPE, CLASSES, CLIENTS, BATCH = (1, 8, 8), 4, 3, 12
IDENTITY = CodecOptions(quantizer="identity")
COARSE = CodecOptions(quantizer="dithered", step=0.5)


class RecordingSource(ArraySource):
    """Source that remembers the minibatches a client drew."""

    def get_items(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        items = super().get_items(indices)
        if len(indices) > 1:  # one sample alone is a look at its shape
            DRAWN.append(items)
        return items


DRAWN: list[tuple[NDArray[Any], NDArray[Any]]] = []


@pytest.fixture(autouse=True)
def _forget_draws() -> None:
    DRAWN.clear()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Use one thread: for models this small, waiting for a busy core costs far more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _sources(sizes: tuple[int, ...] = (50, 40, 30)) -> list[RecordingSource]:
    rng = np.random.default_rng(1)
    return [
        RecordingSource(
            rng.integers(0, 256, (size, *SHAPE), dtype=np.uint8),
            rng.integers(0, CLASSES, size),
            CLASSES,
            0.0,
            255.0,
        )
        for size in sizes
    ]


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def _scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)


def _grid(sources: list[RecordingSource], model: Callable[[], nn.Module] = _model) -> InProcessGrid:
    def client(source: RecordingSource) -> Callable[[Message, Context], Message]:
        return lambda message, context: train(message, context, source, model)

    return InProcessGrid([client(source) for source in sources])


def _strategy(**options: Any) -> QuantizedDataSGD:
    settings = {"batch_size": BATCH, "min_available_nodes": CLIENTS, "device": "cpu", "seed": 5}
    return QuantizedDataSGD(_model(), _sgd, scheduler=_scheduler, **{**settings, **options})


def _central_states(num_rounds: int) -> list[dict[str, torch.Tensor]]:
    """Parameters after each step of plain SGD on the minibatches in ``DRAWN``, joined by round."""
    model = _model()
    optimizer = _sgd(model.parameters())
    scheduler = _scheduler(optimizer)
    states = []
    assert len(DRAWN) == CLIENTS * num_rounds
    for start in range(0, len(DRAWN), CLIENTS):
        drawn = DRAWN[start : start + CLIENTS]
        samples = torch.from_numpy(np.concatenate([x for x, _ in drawn])).float() / 255
        targets = torch.from_numpy(np.concatenate([y for _, y in drawn]))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(samples), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        states.append(copy.deepcopy(model.state_dict()))
    return states


def _run_and_record(
    strategy: QuantizedDataSGD, num_rounds: int, grid: InProcessGrid | None = None
) -> list[dict[str, torch.Tensor]]:
    """Parameters after each round."""
    states: list[dict[str, torch.Tensor]] = []
    strategy.start(
        grid or _grid(_sources()),
        num_rounds=num_rounds,
        evaluate_fn=lambda _, arrays: states.append(arrays.to_torch_state_dict()),
    )
    return states[1:]


def _largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_identity_codec_is_central_sgd_step_for_step() -> None:
    strategy = _strategy(codec=IDENTITY)
    states = _run_and_record(strategy, num_rounds=20)
    for ours, central in zip(states, _central_states(20), strict=True):
        assert _largest_difference(ours, central) < 1e-5
    assert strategy.steps_taken == 20
    assert strategy.samples_sent == 20 * CLIENTS * BATCH
    assert not strategy.failures
    assert strategy.ledger.sections("downlink")["arrays"] == 0


@pytest.mark.parametrize("importance", ["random", "loss", "grad-norm"])
def test_lossless_refinement_is_central_sgd(importance: str) -> None:
    strategy = _strategy(
        codec=COARSE, importance=importance, keep_rate=0.4, refinement="fp32", uniform_share=0.3
    )
    states = _run_and_record(strategy, num_rounds=20)
    assert _largest_difference(states[-1], _central_states(20)[-1]) < 2e-5
    assert 0.2 < strategy.samples_sent / (20 * CLIENTS * BATCH) < 0.6
    assert strategy.ledger.sections()["refinement"] > 0
    assert strategy.ledger.sections("downlink")["arrays"] > 0


def test_without_refinement_a_coarse_codec_differs() -> None:
    """The control of the test above: there is an error for the refinement to repair."""
    strategy = _strategy(codec=COARSE, importance="loss", keep_rate=0.4)
    states = _run_and_record(strategy, num_rounds=20)
    assert _largest_difference(states[-1], _central_states(20)[-1]) > 1e-2


def test_clients_with_fewer_samples_weigh_less() -> None:
    strategy = _strategy(codec=IDENTITY)
    states = _run_and_record(strategy, 5, _grid(_sources((40, 3, 7))))
    assert _largest_difference(states[-1], _central_states(5)[-1]) < 1e-5


def _batch_norm_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)
    )


def test_gradients_are_taken_payload_by_payload() -> None:
    """With BatchNorm, a lossless refinement must still give each client's own gradient."""
    model = _batch_norm_model()
    options: dict[str, Any] = {"batch_size": BATCH, "device": "cpu", "seed": 5}
    strategy = QuantizedDataSGD(
        model,
        _sgd,
        codec=COARSE,
        importance="random",
        keep_rate=0.5,
        refinement="fp32",
        min_available_nodes=CLIENTS,
        **options,
    )
    reference = _batch_norm_model()
    _run_and_record(strategy, 1, _grid(_sources(), _batch_norm_model))
    optimizer = _sgd(reference.parameters())
    for samples, targets in DRAWN:
        outputs = reference(torch.from_numpy(samples).float() / 255)
        loss = nn.functional.cross_entropy(outputs, torch.from_numpy(targets)) / CLIENTS
        loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for ours, central in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, central, atol=1e-5, rtol=1e-4)


def _dropout_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4)
    )


def test_dropout_masks_are_the_clients() -> None:
    """With keep-all and identity codec the residual is zero only under the same masks."""
    models = []
    for refinement in ("none", "fp32"):
        model = _dropout_model()
        strategy = QuantizedDataSGD(
            model, _sgd, codec=IDENTITY, batch_size=BATCH, refinement=refinement, device="cpu"
        )
        _run_and_record(strategy, 3, _grid(_sources(), _dropout_model))
        models.append(model.state_dict())
    assert _largest_difference(*models) < 1e-6


def test_refinement_alone_is_a_legal_reply() -> None:
    """A client that keeps nothing sends its whole gradient as the residual."""
    strategy = _strategy(
        codec=COARSE,
        importance="random",
        keep_rate=0.01,
        uniform_share=1.0,
        refinement="fp32",
        batch_size=2,
    )
    states = _run_and_record(strategy, num_rounds=10)
    assert _largest_difference(states[-1], _central_states(10)[-1]) < 1e-5
    assert strategy.samples_sent < CLIENTS * 2 * 10
    assert strategy.steps_taken == 10 and not strategy.failures


def test_runs_are_reproducible() -> None:
    runs = []
    for first_node_id in (10, 7000):
        strategy = _strategy(codec=COARSE, importance="loss", keep_rate=0.5)
        grid = _grid(_sources())
        # Node ids are random in Flower, and replies come in any order.
        shuffled = InProcessGrid(list(grid.clients.values()), first_node_id)
        runs.append((_run_and_record(strategy, 4, shuffled), strategy.ledger.sections()))
    assert _largest_difference(runs[0][0][-1], runs[1][0][-1]) == 0
    assert runs[0][1] == runs[1][1]


def test_top_k_memory_stays_with_the_client() -> None:
    strategy = _strategy(codec=COARSE, refinement=Refinement("top-k", density=0.05))
    grid = _grid(_sources())
    _run_and_record(strategy, 2, grid)
    assert all("refinement-memory" in context.state for context in grid.contexts.values())
    assert not strategy.failures
    parameters = sum(parameter.numel() for parameter in _model().parameters())
    assert strategy.client_memory_bytes == 4 * parameters


def test_auto_refinement_is_sent_where_it_is_needed() -> None:
    sections = {}
    for name, codec in (("exact", CodecOptions(quantizer="identity")), ("coarse", COARSE)):
        strategy = _strategy(codec=codec, refinement="auto")
        _run_and_record(strategy, 2, _grid(_sources()))
        assert not strategy.failures
        sections[name] = strategy.ledger.sections()
    assert "refinement" not in sections["exact"]
    assert sections["coarse"]["refinement"] > 0


def _spoiled(spoil: Callable[[ConfigRecord], None]) -> Callable[[Message, Context], Message]:
    """A client whose honest reply is spoiled on the way."""

    def client(message: Message, context: Context) -> Message:
        reply = train(message, context, _sources()[0], _model)
        record = reply.content["payload"]
        assert isinstance(record, ConfigRecord)
        spoil(record)
        return Message(RecordDict({"payload": record}), reply_to=message)

    return client


def _truncate(record: ConfigRecord) -> None:
    data = record["samples"]
    assert isinstance(data, bytes)
    record["samples"] = data[: len(data) // 2]


def _raises(message: Message, context: Context) -> Message:
    raise MemoryError("device is full")


def _silent(message: Message, context: Context) -> Message:
    return None  # type: ignore[return-value]


def test_bad_replies_are_counted_and_the_round_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    honest = _grid(_sources())
    clients = [
        *honest.clients.values(),
        _spoiled(_truncate),
        _spoiled(lambda record: record.__setitem__("num-examples", BATCH + 1)),
        _spoiled(lambda record: record.__delitem__("num-sent")),
        _raises,
        _silent,
    ]
    strategy = _strategy(codec=IDENTITY)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        states = _run_and_record(strategy, 2, InProcessGrid(clients))
    assert strategy.failures == {
        "payload": 2, "count": 2, "record": 2, "error": 2, "no-reply": 2
    }  # fmt: skip
    # The spoiled clients drew minibatches as well, but not from recording sources' first three.
    honest_draws = [DRAWN[k] for k in (0, 1, 2, 6, 7, 8)]
    DRAWN[:] = honest_draws
    assert _largest_difference(states[-1], _central_states(2)[-1]) < 1e-5
    warnings = [record.getMessage() for record in caplog.records]
    assert any("node 1006" in text and "device is full" in text for text in warnings)
    assert any("node 1007" in text and "no-reply" in text for text in warnings)
    assert strategy.ledger.sections()["rejected"] > 0


def test_a_round_of_bad_replies_takes_no_step() -> None:
    results: list[RoundResult] = []
    strategy = _strategy(codec=IDENTITY, on_round=results.append, min_available_nodes=1)
    before = copy.deepcopy(strategy.model.state_dict())
    strategy.start(InProcessGrid([_raises]), num_rounds=2)
    assert strategy.steps_taken == 0
    assert _largest_difference(before, dict(strategy.model.state_dict())) == 0
    assert [result.failures for result in results] == [{"error": 1}] * 2
    assert all(np.isnan(result.train_loss) for result in results)


def test_samples_that_the_model_cannot_take() -> None:
    rng = np.random.default_rng(0)
    wide = ArraySource(
        rng.integers(0, 256, (20, 1, 8, 9), dtype=np.uint8), np.zeros(20, int), 4, 0.0, 255.0
    )
    many = ArraySource(
        rng.integers(0, 256, (20, *SHAPE), dtype=np.uint8), np.zeros(20, int), 5, 0.0, 255.0
    )
    clients = [
        lambda message, context: train(message, context, wide),
        lambda message, context: train(message, context, many),
        *_grid(_sources()).clients.values(),
    ]
    strategy = _strategy(codec=IDENTITY)
    strategy.start(InProcessGrid(clients), num_rounds=1)
    assert strategy.failures == {"shape": 1, "target": 1}
    assert strategy.samples_sent == CLIENTS * BATCH


def test_a_gradient_that_is_not_finite_is_skipped() -> None:
    def diverged(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none") * float("nan")

    strategy = _strategy(codec=IDENTITY, criterion=diverged)
    before = copy.deepcopy(strategy.model.state_dict())
    strategy.start(_grid(_sources()), num_rounds=1)
    assert strategy.failures == {"not-finite": len(_sources())}
    assert _largest_difference(before, dict(strategy.model.state_dict())) == 0


def test_round_results() -> None:
    results: list[RoundResult] = []
    strategy = _strategy(codec=COARSE, on_round=results.append)
    _run_and_record(strategy, 3)
    assert [result.round for result in results] == [1, 2, 3]
    assert sum(result.uplink_bytes for result in results) == strategy.ledger.uplink_bytes
    assert sum(result.downlink_bytes for result in results) == strategy.ledger.downlink_bytes
    assert sum(result.samples_sent for result in results) == strategy.samples_sent
    assert all(result.steps_taken == 1 and 0 < result.train_loss < 5 for result in results)
    stages = {"round_trip", "decode", "train"}
    stages |= {"client_importance", "client_encode", "client_refinement"}
    assert set(strategy.seconds) == stages
    assert strategy.seconds["client_encode"] < strategy.seconds["round_trip"]


def test_initial_arrays_are_loaded() -> None:
    strategy, other = _strategy(codec=IDENTITY), _strategy(codec=IDENTITY)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(1.0)
    seen = []
    strategy.start(
        _grid(_sources()),
        other.server_model.state_arrays(),
        num_rounds=1,
        evaluate_fn=lambda _, arrays: seen.append(arrays),
    )
    assert _largest_difference(seen[0].to_torch_state_dict(), other.model.state_dict()) == 0


def test_a_fraction_of_the_nodes_is_drawn_by_the_seed() -> None:
    asked = []
    for _ in range(2):
        grid = _grid(_sources((20,) * 8))
        _strategy(codec=IDENTITY, fraction_train=0.5).start(grid, num_rounds=4)
        rounds = [[m.metadata.dst_node_id for m in sent] for sent in grid.instructions if sent]
        assert [len(nodes) for nodes in rounds] == [4] * 4
        asked.append(rounds)
    assert asked[0] == asked[1]
    assert len({tuple(nodes) for nodes in asked[0]}) > 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("batch_size", 0, r"batch_size must be in \[1, inf\], not 0"),
        (
            "importance",
            "best",
            "importance must be one of all, random, loss, grad-norm, margin, entropy, not 'best'",
        ),
        ("selection", "luck", "selection must be one of probability"),
        ("keep_rate", 0.0, r"keep_rate must be in \(0.0, 1.0\], not 0.0"),
        ("keep_rate", 0.5, "keep_rate must be 1 with importance all, not 0.5"),
        ("uniform_share", 1.5, "uniform_share"),
        ("uplink_budget", -1, "uplink_budget"),
        ("refinement", "zip", "fp32"),
        ("fraction_train", 0.0, "fraction_train"),
        ("min_available_nodes", 0, "min_available_nodes"),
        ("seed", -1, "seed"),
    ],
)
def test_illegal_options(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _strategy(**{option: value})


def test_limits_reach_the_decoder() -> None:
    strategy = _strategy(codec=IDENTITY, limits=DecodeLimits(samples=BATCH - 1))
    strategy.start(_grid(_sources()), num_rounds=1)
    assert strategy.failures == {"payload": CLIENTS}
