"""One round of compressed gradients is one step of minibatch SGD."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from gradient_baselines import (
    batch_norm_dropout_model,
    flat,
    gradient_of,
    make_grid,
    make_strategy,
    payloads,
    plain_sgd,
    sgd,
    take_step,
)
from inprocess_grid import InProcessGrid
from small_task import (
    CLASSES,
    grid_of,
    largest_difference,
    make_model,
    minibatch,
    random_sources,
    states_after_rounds,
)
from torch import Tensor

from clients import ArraySource
from clients.baselines import train_gradient
from codec import Compression
from codec.gradients import COMPRESSORS, Float32
from codec.gradients.joined import Joined
from codec.messages import GradientRequest
from strategies import RoundResult

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("sizes", [(50, 40, 30), (40, 5, 7)])
def test_lossless_gradients_are_central_sgd_step_for_step(sizes: tuple[int, ...]) -> None:
    strategy, sources = make_strategy(), random_sources(sizes)
    states = states_after_rounds(strategy, make_grid(sizes=sizes), 10)
    model = make_model()
    optimizer = sgd(model.parameters())
    for step, state in enumerate(states):
        batches = [minibatch(source, k, step) for k, source in enumerate(sources)]
        samples, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        take_step(model, optimizer, gradient_of(model, samples, targets))
        assert largest_difference(state, dict(model.state_dict())) < 1e-5
    assert strategy.steps_taken == 10
    assert strategy.book.samples_sent == 0
    assert not strategy.failures


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_every_compressor_learns(kind: str) -> None:
    """On data that a few steps can separate."""

    def separable(source: ArraySource) -> ArraySource:
        samples = source.samples // 4
        for sample, target in zip(samples, source.targets, strict=True):
            sample[0, 2 * target : 2 * target + 2] += 150
        return ArraySource(samples, source.targets, CLASSES, 0.0, 255.0)

    sources = [separable(source) for source in random_sources()]
    strategy = make_strategy(
        optimizer=plain_sgd, compression=Compression(kind, bits=4, density=0.2), batch_size=30
    )
    strategy.start(grid_of(sources, train_gradient, make_model), num_rounds=18)
    samples = np.concatenate([source.samples for source in sources])
    targets = np.concatenate([source.targets for source in sources])
    loss, accuracy = strategy.server_model.evaluate(samples, targets, high=255.0)
    assert accuracy > 0.9 and loss < 1.1
    assert not strategy.failures


def test_unbiased_compressors_keep_nothing() -> None:
    for kind in ("fp32", "qsgd", "terngrad", "rand-k", "eden"):
        grid = make_grid()
        strategy = make_strategy(compression=Compression(kind))
        states_after_rounds(strategy, grid, 1)
        assert strategy.book.client_memory_bytes == 0
        assert not any(context.state for context in grid.contexts.values())


@pytest.mark.parametrize("kind", ["sign", "top-k", "powersgd"])
def test_error_memory_telescopes_over_rounds(kind: str) -> None:
    """What a client has sent in all rounds and what it still holds are its gradients' sum."""
    grid = make_grid()
    strategy = make_strategy(optimizer=plain_sgd, compression=Compression(kind, density=0.05))
    states = [dict(make_model().state_dict()), *states_after_rounds(strategy, grid, 6)]
    sent_by = [{record["client"]: record for record in payloads(grid, r)} for r in range(6)]
    shapes = [tuple(p.shape) for p in strategy.server_model.trainable()]
    for client, (source, context) in enumerate(
        zip(random_sources(), grid.contexts.values(), strict=True)
    ):
        total = np.zeros(sum(int(np.prod(shape)) for shape in shapes))
        sent = np.zeros_like(total)
        for step, state in enumerate(states[:-1]):
            model = make_model()
            model.load_state_dict(state)
            total += flat(gradient_of(model, *minibatch(source, client, step)))
            data = sent_by[step][client]["gradient"]
            assert isinstance(data, bytes)
            sent += flat(strategy.compressor.decompress(data, shapes))
        memory = context.state["gradient-residual"]
        assert isinstance(memory, ArrayRecord)
        kept = flat(memory.to_numpy_ndarrays())[: len(total)]
        assert np.abs(kept).max() > 1e-3
        np.testing.assert_allclose(sent + kept, total, atol=1e-5)
    assert strategy.book.client_memory_bytes >= 4 * len(total)


def test_bytes_of_the_gradient_are_the_compressors() -> None:
    grid = make_grid()
    strategy = make_strategy()
    states_after_rounds(strategy, grid, 3)
    shapes = [tuple(p.shape) for p in strategy.server_model.trainable()]
    sizes = []
    for record in payloads(grid):
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


def test_augmentation_reaches_the_gradient() -> None:
    def flipped(samples: Tensor, stream: torch.Generator) -> Tensor:
        assert float(samples.min()) >= 0 and float(samples.max()) <= 1
        assert torch.rand(1, generator=stream).item() < 1
        return samples.flip(3)

    (state,) = states_after_rounds(make_strategy(), make_grid(augment=flipped), 1)
    model = make_model()
    parts = [minibatch(source, k, 0) for k, source in enumerate(random_sources())]
    samples, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    take_step(model, sgd(model.parameters()), gradient_of(model, samples.flip(3), targets))
    assert largest_difference(state, dict(model.state_dict())) < 1e-5


def test_runs_are_reproducible() -> None:
    runs = []
    for seed in (0, 1):
        strategy = make_strategy(batch_norm_dropout_model, compression=Compression("qsgd", bits=3))
        grid = make_grid(batch_norm_dropout_model)
        again = InProcessGrid(list(grid.clients.values()), seed)
        runs.append(
            (states_after_rounds(strategy, again, 4), strategy.ledger.sections()["gradient"])
        )
    assert largest_difference(runs[0][0][-1], runs[1][0][-1]) == 0
    assert runs[0][1] == runs[1][1]


def test_round_results_and_stages() -> None:
    results: list[RoundResult] = []
    strategy = make_strategy(on_round=results.append)
    states_after_rounds(strategy, make_grid(), 2)
    assert [result.steps_taken for result in results] == [1, 1]
    assert sum(result.uplink_bytes for result in results) == strategy.ledger.uplink_bytes
    stages = {"round_trip", "decode", "train", "client_gradient", "client_compress"}
    assert set(strategy.book.seconds) == stages
    strategy.summary()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "^batch_size = 0 must be >= 1$"),
        ({"buffers_every": 0}, "^buffers_every = 0 must be >= 1$"),
        ({"buffer_batches": 0}, "^buffer_batches = 0 must be >= 1$"),
        ({"compression": "zip"}, "^kind = 'zip' must be one of none, fp32, fp16"),
        (
            {"compression": "fp16", "majority_vote": True},
            "majority_vote needs compressor sign, not 'fp16'",
        ),
        ({"compression": "sign", "momentum_correction": 0.9}, "momentum_correction = 0.9 needs"),
        (
            {"compression": "top-k", "momentum_correction": 1.0},
            r"^momentum_correction = 1.0 must be in \[0, 0.999\]$",
        ),
        ({"compression": "top-k", "momentum_correction": 0.9}, "optimizer's momentum"),
    ],
)
def test_illegal_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_strategy(**options)


def test_no_compressor_is_the_lossless_one() -> None:
    """To a strategy; a request names what is sent."""
    strategy = make_strategy(compression="none")
    assert strategy.request.compression.kind == make_strategy().request.compression.kind == "fp32"
    with pytest.raises(ValueError, match="'fp32' sends it losslessly"):
        GradientRequest(server_round=1, compression=Compression("none"))
