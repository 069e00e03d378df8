"""One round of compressed gradients is one step of minibatch SGD."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from inprocess_grid import InProcessGrid
from torch import Tensor, nn

from clients import ArraySource, train_gradient
from clients.minibatches import epoch_minibatch
from codec import Compression
from codec.batch_norm import encode_statistics, statistics
from codec.compressors import COMPRESSORS, Float32
from codec.compressors.joined import Joined
from strategies import GradientCompression, RoundResult

SHAPE, CLASSES, CLIENTS, BATCH, SEED = (1, 8, 8), 4, 3, 12, 5


pytestmark = pytest.mark.usefixtures("one_thread")


def _sources(sizes: tuple[int, ...] = (50, 40, 30)) -> list[ArraySource]:
    rng = np.random.default_rng(1)
    return [
        ArraySource(
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


def _smooth_model() -> nn.Module:
    """Without zeros among its gradients, whose votes are random."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 4))


def _batch_norm_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *[nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()],
        *[nn.Dropout(0.2), nn.Linear(216, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)],
    )


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)


def _plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def _client(
    source: ArraySource, model: Callable[[], nn.Module] = _model, **options: Any
) -> Callable[[Message, Context], Message]:
    return lambda message, context: train_gradient(message, context, source, model, **options)


def _grid(
    model: Callable[[], nn.Module] = _model, sizes: tuple[int, ...] = (50, 40, 30), **options: Any
) -> InProcessGrid:
    return InProcessGrid([_client(source, model, **options) for source in _sources(sizes)])


def _strategy(
    model: Callable[[], nn.Module] = _model, optimizer: Any = _sgd, **options: Any
) -> GradientCompression:
    settings = {"batch_size": BATCH, "min_available_nodes": CLIENTS, "device": "cpu", "seed": SEED}
    return GradientCompression(model(), optimizer, **{**settings, **options})


def _run(
    strategy: GradientCompression, rounds: int, grid: InProcessGrid | None = None
) -> list[dict[str, Tensor]]:
    """State after each round."""
    states: list[dict[str, Tensor]] = []
    strategy.start(
        grid or _grid(),
        num_rounds=rounds,
        evaluate_fn=lambda _, arrays: states.append(arrays.to_torch_state_dict()),
    )
    return states[1:]


def _largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def _minibatch(source: ArraySource, client: int, step: int) -> tuple[Tensor, Tensor]:
    indices = epoch_minibatch(len(source), BATCH, step, SEED, client)
    samples = torch.from_numpy(source.samples[indices]).float() / 255
    return samples, torch.from_numpy(source.targets[indices])


def _gradient(model: nn.Module, samples: Tensor, targets: Tensor) -> list[Tensor]:
    loss = nn.functional.cross_entropy(model(samples), targets)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, gradient: list[Tensor]) -> None:
    for parameter, part in zip(model.parameters(), gradient, strict=True):
        parameter.grad = part.clone()
    optimizer.step()


def _payloads(grid: InProcessGrid) -> list[ConfigRecord]:
    records = [reply.content["payload"] for replies in grid.replies for reply in replies]
    return [record for record in records if isinstance(record, ConfigRecord)]


@pytest.mark.parametrize("sizes", [(50, 40, 30), (40, 5, 7)])
def test_lossless_gradients_are_central_sgd_step_for_step(sizes: tuple[int, ...]) -> None:
    strategy, sources = _strategy(), _sources(sizes)
    states = _run(strategy, 10, _grid(sizes=sizes))
    model = _model()
    optimizer = _sgd(model.parameters())
    for step, state in enumerate(states):
        batches = [_minibatch(source, k, step) for k, source in enumerate(sources)]
        samples, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        _step(model, optimizer, _gradient(model, samples, targets))
        assert _largest_difference(state, dict(model.state_dict())) < 1e-5
    assert strategy.steps_taken == 10
    assert strategy.samples_sent == 0
    assert not strategy.failures


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_every_compressor_learns(kind: str) -> None:
    """On data that a few steps can separate."""

    def separable(source: ArraySource) -> ArraySource:
        samples = source.samples // 4
        for sample, target in zip(samples, source.targets, strict=True):
            sample[0, 2 * target : 2 * target + 2] += 150
        return ArraySource(samples, source.targets, CLASSES, 0.0, 255.0)

    sources = [separable(source) for source in _sources()]
    strategy = _strategy(
        optimizer=_plain_sgd, compression=Compression(kind, bits=4, density=0.2), batch_size=30
    )
    strategy.start(InProcessGrid([_client(source) for source in sources]), num_rounds=18)
    samples = np.concatenate([source.samples for source in sources])
    targets = np.concatenate([source.targets for source in sources])
    loss, accuracy = strategy.server_model.evaluate(samples, targets, high=255.0)
    assert accuracy > 0.9 and loss < 1.1
    assert not strategy.failures


def test_unbiased_compressors_keep_nothing() -> None:
    for kind in ("fp32", "qsgd", "terngrad", "rand-k", "eden"):
        grid = _grid()
        strategy = _strategy(compression=Compression(kind))
        _run(strategy, 1, grid)
        assert strategy.client_memory_bytes == 0
        assert not any(context.state for context in grid.contexts.values())


@pytest.mark.parametrize("kind", ["sign", "top-k", "powersgd"])
def test_error_memory_telescopes_over_rounds(kind: str) -> None:
    """What a client has sent in all rounds and what it still holds are its gradients' sum."""
    grid = _grid()
    strategy = _strategy(optimizer=_plain_sgd, compression=Compression(kind, density=0.05))
    states = [dict(_model().state_dict()), *_run(strategy, 6, grid)]
    replies = [list(round_) for round_ in grid.replies if round_]
    shapes = [tuple(p.shape) for p in strategy.server_model.trainable()]
    for client, (source, context) in enumerate(
        zip(_sources(), grid.contexts.values(), strict=True)
    ):
        total = np.zeros(sum(int(np.prod(shape)) for shape in shapes))
        sent = np.zeros_like(total)
        for step, state in enumerate(states[:-1]):
            model = _model()
            model.load_state_dict(state)
            total += _flat(_gradient(model, *_minibatch(source, client, step)))
            record = replies[step][client].content["payload"]
            assert isinstance(record, ConfigRecord) and record["client"] == client
            data = record["gradient"]
            assert isinstance(data, bytes)
            sent += _flat(strategy.compressor.decompress(data, shapes))
        memory = context.state["gradient-residual"]
        assert isinstance(memory, ArrayRecord)
        kept = _flat(memory.to_numpy_ndarrays())[: len(total)]
        assert np.abs(kept).max() > 1e-3
        np.testing.assert_allclose(sent + kept, total, atol=1e-5)
    assert strategy.client_memory_bytes >= 4 * len(total)


def _flat(parts: Any) -> Any:
    return np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])


def test_majority_vote_is_the_sign_of_the_sum_of_signs() -> None:
    strategy = _strategy(
        _smooth_model,
        optimizer=_plain_sgd,
        compression="sign",
        majority_vote=True,
        batch_size=BATCH,
    )
    (state,) = _run(strategy, 1, _grid(_smooth_model, sizes=(50, 40, 7)))
    model = _smooth_model()
    votes = [
        [part.sign() for part in _gradient(model, *_minibatch(source, client, 0))]
        for client, source in enumerate(_sources((50, 40, 7)))
    ]
    winners = [torch.stack(parts).sum(dim=0).sign() for parts in zip(*votes, strict=True)]
    _step(model, _plain_sgd(model.parameters()), winners)
    assert _largest_difference(state, dict(model.state_dict())) < 1e-6
    assert strategy.client_memory_bytes == 0
    n = sum(p.numel() for p in model.parameters())
    assert strategy.ledger.sections()["gradient"] <= CLIENTS * (n / 8 + 35)


def test_momentum_of_majority_vote_is_the_clients() -> None:
    """Signum: the sign of ``m * velocity + gradient``."""
    strategy = _strategy(
        _smooth_model,
        optimizer=_plain_sgd,
        compression="sign",
        majority_vote=True,
        momentum_correction=0.9,
    )
    states = _run(strategy, 5, _grid(_smooth_model, sizes=(50, 40, 30)))
    model = _smooth_model()
    optimizer = _plain_sgd(model.parameters())
    velocities = [[torch.zeros_like(p) for p in model.parameters()] for _ in range(CLIENTS)]
    for step, state in enumerate(states):
        for client, source in enumerate(_sources()):
            gradient = _gradient(model, *_minibatch(source, client, step))
            for v, g in zip(velocities[client], gradient, strict=True):
                v.mul_(0.9).add_(g)
        _step(
            model,
            optimizer,
            [sum(v.sign() for v in vs).sign() for vs in zip(*velocities, strict=True)],
        )
        differing = sum(
            int((state[name] != value).sum()) for name, value in model.state_dict().items()
        )
        assert differing <= 3  # a velocity within rounding of zero may vote either way
        model.load_state_dict(state)
    assert strategy.client_memory_bytes == 4 * sum(p.numel() for p in model.parameters())


def test_momentum_correction_is_deep_gradient_compression() -> None:
    """Lin et al. 2018, algorithm 4 without clipping: u = m u + g, v = v + u, both masked."""
    density, m = 0.05, 0.9
    strategy = _strategy(
        optimizer=_plain_sgd,
        compression=Compression("top-k", density=density),
        momentum_correction=m,
    )
    states = _run(strategy, 8)
    model = _model()
    optimizer = _plain_sgd(model.parameters())
    n = sum(p.numel() for p in model.parameters())
    count = int(np.ceil(density * n))
    u, v = torch.zeros(CLIENTS, n), torch.zeros(CLIENTS, n)
    for step, state in enumerate(states):
        total = torch.zeros(n)
        for client, source in enumerate(_sources()):
            gradient = _gradient(model, *_minibatch(source, client, step))
            u[client] = m * u[client] + torch.cat([g.flatten() for g in gradient])
            v[client] += u[client]
            largest = v[client].abs().topk(count).indices
            total[largest] += v[client][largest] / CLIENTS
            u[client][largest] = v[client][largest] = 0
        parts = total.split([p.numel() for p in model.parameters()])
        shaped = [part.view_as(p) for part, p in zip(parts, model.parameters(), strict=True)]
        _step(model, optimizer, shaped)
        assert _largest_difference(state, dict(model.state_dict())) < 1e-5
    assert strategy.client_memory_bytes == 8 * n


def test_statistics_of_batch_normalization_come_from_the_clients() -> None:
    grid = _grid(_batch_norm_model)
    strategy = _strategy(_batch_norm_model, buffers_every=4, buffer_batches=2, batch_size=8)
    states = _run(strategy, 7, grid)
    initial = _batch_norm_model()
    fresh = _flat(statistics(initial))
    kept = []
    for state in states:
        initial.load_state_dict(state)
        kept.append(_flat(statistics(initial)))
    # Rounds 4 and 7 (the last one) bring statistics, the others do not.
    assert all(np.array_equal(kept[r], fresh) for r in (0, 1, 2))
    assert not np.array_equal(kept[3], fresh)
    assert all(np.array_equal(kept[r], kept[3]) for r in (4, 5))
    assert not np.array_equal(kept[6], kept[3])
    assert sum("buffers" in record for record in _payloads(grid)) == 2 * CLIENTS
    data = [record["buffers"] for record in _payloads(grid) if "buffers" in record]
    sizes = [len(part) for part in data if isinstance(part, bytes)]
    assert strategy.ledger.sections()["buffers"] == sum(sizes)
    assert max(sizes) <= 2 * 28 + 60  # 28 floats of half precision, 4 shapes and the header


def test_statistics_are_those_of_the_whole_data() -> None:
    """With every sample in use, the first layer's are those of the clients' union."""
    grid = _grid(_batch_norm_model)
    strategy = _strategy(_batch_norm_model, buffer_batches=50, batch_size=60)
    _run(strategy, 1, grid)
    model = _batch_norm_model()
    samples = np.concatenate([source.samples for source in _sources()])
    features = model[0](torch.from_numpy(samples).float() / 255)
    mean, variance = statistics(strategy.model)[:2]
    torch.testing.assert_close(mean, features.mean(dim=(0, 2, 3)), rtol=2e-3, atol=1e-4)
    expected = features.var(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(variance, expected, rtol=5e-3, atol=1e-4)
    loss, _ = strategy.server_model.evaluate(samples, np.zeros(len(samples), np.int64), high=255.0)
    assert np.isfinite(loss)


def test_models_without_batch_normalization_send_no_statistics() -> None:
    grid = _grid()
    strategy = _strategy()
    _run(strategy, 2, grid)
    assert "buffers" not in strategy.ledger.sections()
    assert not any("buffers" in record for record in _payloads(grid))


def test_bytes_of_the_gradient_are_the_compressors() -> None:
    grid = _grid()
    strategy = _strategy()
    _run(strategy, 3, grid)
    shapes = [tuple(p.shape) for p in strategy.server_model.trainable()]
    sizes = []
    for record in _payloads(grid):
        data = record["gradient"]
        assert isinstance(data, bytes)
        sizes.append(len(data))
        decoded = Joined(Float32()).decompress(data, shapes)
        again, _ = Joined(Float32()).compress(decoded, None, np.random.default_rng(0))
        assert again == data
    assert strategy.ledger.sections()["gradient"] == sum(sizes)
    assert strategy.ledger.uplink_bytes == sum(strategy.ledger.sections().values())
    assert strategy.ledger.sections()["message"] < 9 * 500
    assert strategy.ledger.sections("downlink")["arrays"] > 9 * 4 * 3500


def _spoiled(spoil: Callable[[ConfigRecord], None]) -> Callable[[Message, Context], Message]:
    """A client whose honest reply is spoiled on the way."""

    def client(message: Message, context: Context) -> Message:
        reply = train_gradient(message, context, _sources()[0], _batch_norm_model)
        record = reply.content["payload"]
        assert isinstance(record, ConfigRecord)
        spoil(record)
        return Message(RecordDict({"payload": record}), reply_to=message)

    return client


def _truncate(record: ConfigRecord) -> None:
    data = record["gradient"]
    assert isinstance(data, bytes)
    record["gradient"] = data[: len(data) // 2]


def _wrong_shape(record: ConfigRecord) -> None:
    parts = [np.zeros(7, np.float32)]
    record["gradient"] = Joined(Float32()).compress(parts, None, np.random.default_rng(0))[0]


def _negative_variance(record: ConfigRecord) -> None:
    parts = [tensor.numpy() - 2 for tensor in statistics(_batch_norm_model())]
    record["buffers"] = encode_statistics(parts)


def _raises(message: Message, context: Context) -> Message:
    raise MemoryError("device is full")


def _diverged(message: Message, context: Context) -> Message:
    def nan(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none") * float("nan")

    return train_gradient(message, context, _sources()[0], _batch_norm_model, criterion=nan)


def test_bad_replies_are_counted_and_the_round_goes_on() -> None:
    honest = _grid(_batch_norm_model)
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
        _raises,
        lambda message, context: None,
    ]
    strategy = _strategy(_batch_norm_model)
    states = _run(strategy, 2, InProcessGrid(clients))  # type: ignore[arg-type]
    assert strategy.failures == {
        "gradient": 4, "record": 4, "count": 4, "buffers": 4, "error": 4, "no-reply": 2
    }  # fmt: skip
    alone = _run(_strategy(_batch_norm_model), 2, _grid(_batch_norm_model))
    assert _largest_difference(states[-1], alone[-1]) == 0
    assert strategy.ledger.sections()["rejected"] > 0


def test_a_round_of_bad_replies_takes_no_step() -> None:
    results: list[RoundResult] = []
    strategy = _strategy(on_round=results.append, min_available_nodes=1)
    before = copy.deepcopy(strategy.model.state_dict())
    strategy.start(InProcessGrid([_raises]), num_rounds=2)
    assert strategy.steps_taken == 0
    assert _largest_difference(before, dict(strategy.model.state_dict())) == 0
    assert [result.failures for result in results] == [{"error": 1}] * 2


def test_augmentation_reaches_the_gradient() -> None:
    def flipped(samples: Tensor, stream: torch.Generator) -> Tensor:
        assert float(samples.min()) >= 0 and float(samples.max()) <= 1
        assert torch.rand(1, generator=stream).item() < 1
        return samples.flip(3)

    (state,) = _run(_strategy(), 1, _grid(augment=flipped))
    model = _model()
    parts = [_minibatch(source, k, 0) for k, source in enumerate(_sources())]
    samples, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    _step(model, _sgd(model.parameters()), _gradient(model, samples.flip(3), targets))
    assert _largest_difference(state, dict(model.state_dict())) < 1e-5


def test_runs_are_reproducible() -> None:
    runs = []
    for first_node_id in (10, 7000):
        strategy = _strategy(_batch_norm_model, compression=Compression("qsgd", bits=3))
        grid = _grid(_batch_norm_model)
        again = InProcessGrid(list(grid.clients.values()), first_node_id)
        runs.append((_run(strategy, 4, again), strategy.ledger.sections()["gradient"]))
    assert _largest_difference(runs[0][0][-1], runs[1][0][-1]) == 0
    assert runs[0][1] == runs[1][1]


def test_round_results_and_stages() -> None:
    results: list[RoundResult] = []
    strategy = _strategy(on_round=results.append)
    _run(strategy, 2)
    assert [result.steps_taken for result in results] == [1, 1]
    assert sum(result.uplink_bytes for result in results) == strategy.ledger.uplink_bytes
    stages = {"round_trip", "decode", "train", "client_gradient", "client_compress"}
    assert set(strategy.seconds) == stages
    strategy.summary()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"buffers_every": 0}, "buffers_every"),
        ({"buffer_batches": 0}, "buffer_batches"),
        ({"compression": "none"}, "'fp32' is lossless"),
        ({"compression": "zip"}, "zip"),
        ({"compression": "fp16", "majority_vote": True}, "majority_vote needs compression 'sign'"),
        ({"compression": "sign", "momentum_correction": 0.9}, "momentum_correction = 0.9 needs"),
        ({"compression": "top-k", "momentum_correction": 1.0}, "momentum_correction"),
        ({"compression": "top-k", "momentum_correction": 0.9}, "optimizer's momentum"),
    ],
)
def test_illegal_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _strategy(**options)
