"""Rounds repeat by their seed, survive bad replies and report what they did."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from central_sgd import COARSE, LOSSLESS, central_states, make_grid, make_sources, make_strategy
from flwr.app import ConfigRecord, Context, Message, RecordDict
from inprocess_grid import InProcessGrid
from small_task import (
    BATCH,
    CLIENTS,
    SHAPE,
    largest_difference,
    make_model,
    raising_client,
    states_after_rounds,
)
from torch import nn

from clients import ArraySource, train
from codec import DecodeLimits
from strategies import DivergedError, RoundResult
from strategies.errors import RunFailed

pytestmark = pytest.mark.usefixtures("one_thread")


def test_runs_are_reproducible() -> None:
    runs = []
    for seed in (0, 1):
        strategy = make_strategy(
            codec=COARSE, importance="loss", keep_rate=0.5, client_key="partition"
        )
        grid = make_grid(make_sources())
        # Node ids are random in Flower, and replies come in any order.
        shuffled = InProcessGrid(list(grid.clients.values()), seed)
        runs.append((states_after_rounds(strategy, shuffled, 4), strategy.ledger.sections()))
    assert largest_difference(runs[0][0][-1], runs[1][0][-1]) == 0
    assert runs[0][1] == runs[1][1]


def _spoiled(spoil: Callable[[Any], None]) -> Callable[[Message, Context], Message]:
    """A client whose honest reply is spoiled on the way."""

    def client(message: Message, context: Context) -> Message:
        reply = train(message, context, make_sources()[0], make_model)
        spoil(reply.content)
        return Message(RecordDict(dict(reply.content)), reply_to=message)

    return client


def _truncate(content: Any) -> None:
    data = content["payload"]["samples"]
    content["payload"]["samples"] = data[: len(data) // 2]


def _silent(message: Message, context: Context) -> Message:
    return None  # type: ignore[return-value]


def test_bad_replies_are_counted_and_the_round_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    honest = make_sources()
    clients = [
        *make_grid(honest).clients.values(),
        _spoiled(_truncate),
        _spoiled(lambda content: content["metrics"].__setitem__("num-examples", BATCH + 1)),
        _spoiled(lambda content: content["metrics"].__delitem__("num-sent")),
        raising_client,
        _silent,
    ]
    strategy, grid = make_strategy(codec=LOSSLESS), InProcessGrid(clients)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        states = states_after_rounds(strategy, grid, 2)
    assert strategy.failures == {
        "payload": 2, "count": 2, "record": 2, "error": 2, "no-reply": 2
    }  # fmt: skip
    assert largest_difference(states[-1], central_states(honest, 2)[-1]) < 1e-5
    warnings = [record.getMessage() for record in caplog.records]
    *_, raised, silent = grid.clients
    assert any(f"node {raised} " in text and "device is full" in text for text in warnings)
    assert any(f"node {silent} " in text and "no-reply" in text for text in warnings)
    assert strategy.ledger.sections()["rejected"] > 0


def test_a_round_of_bad_replies_takes_no_step() -> None:
    results: list[RoundResult] = []
    strategy = make_strategy(codec=LOSSLESS, on_round=results.append, min_available_nodes=1)
    before = copy.deepcopy(strategy.model.state_dict())
    with pytest.raises(RunFailed, match="device is full"):
        strategy.start(InProcessGrid([raising_client]), num_rounds=2)
    assert strategy.steps_taken == 0
    assert largest_difference(before, dict(strategy.model.state_dict())) == 0
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
        *make_grid(make_sources()).clients.values(),
    ]
    strategy = make_strategy(codec=LOSSLESS)
    strategy.start(InProcessGrid(clients), num_rounds=1)
    assert strategy.failures == {"error": 2}  # the clients themselves check the terms
    words = strategy.book.why()
    assert "(1, 8, 9), the server's model takes (1, 8, 8)" in words
    assert "has 5 classes, the server's model 4 outputs" in words
    assert strategy.book.samples_sent == CLIENTS * BATCH


def test_losses_that_are_not_finite_end_the_run() -> None:
    def diverged(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none") * float("nan")

    strategy = make_strategy(codec=LOSSLESS, criterion=diverged)
    before = copy.deepcopy(strategy.model.state_dict())
    with pytest.raises(DivergedError, match=r"loss is nan at optimizer step 1: .* learning rate"):
        strategy.start(make_grid(make_sources()), num_rounds=1)
    assert strategy.failures == {"not-finite": len(make_sources())}
    assert largest_difference(before, dict(strategy.model.state_dict())) == 0


def test_round_results() -> None:
    results: list[RoundResult] = []
    strategy = make_strategy(codec=COARSE, on_round=results.append)
    states_after_rounds(strategy, make_grid(make_sources()), 3)
    assert [result.round for result in results] == [1, 2, 3]
    assert sum(result.uplink_bytes for result in results) == strategy.ledger.uplink_bytes
    assert sum(result.downlink_bytes for result in results) == strategy.ledger.downlink_bytes
    assert sum(result.samples_sent for result in results) == strategy.book.samples_sent
    assert all(result.steps_taken == 1 and 0 < result.train_loss < 5 for result in results)
    stages = {"round_trip", "decode", "train"}
    stages |= {"client_importance", "client_encode", "client_refinement"}
    assert set(strategy.book.seconds) == stages
    assert strategy.book.seconds["client_encode"] < strategy.book.seconds["round_trip"]


def test_initial_arrays_are_loaded() -> None:
    strategy, other = make_strategy(codec=LOSSLESS), make_strategy(codec=LOSSLESS)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(1.0)
    seen = []
    strategy.start(
        make_grid(make_sources()),
        other.server_model.state_arrays(),
        num_rounds=1,
        evaluate_fn=lambda _, arrays: seen.append(arrays),
    )
    assert largest_difference(seen[0].to_torch_state_dict(), other.model.state_dict()) == 0


def test_a_fraction_of_the_nodes_is_drawn_by_the_seed() -> None:
    asked = []
    for _ in range(2):
        grid = make_grid(make_sources((20,) * 8))
        make_strategy(codec=LOSSLESS, fraction_train=0.5).start(grid, num_rounds=4)
        rounds = [[m.metadata.dst_node_id for m in sent] for sent in grid.requests if sent]
        assert [len(nodes) for nodes in rounds] == [4] * 4
        asked.append(rounds)
    assert asked[0] == asked[1]
    assert len({tuple(nodes) for nodes in asked[0]}) > 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("batch_size", 0, "^batch_size = 0 must be >= 1$"),
        (
            "importance",
            "best",
            "importance = 'best' must be one of all, random, loss, grad-norm, margin, entropy$",
        ),
        ("selection", "luck", "selection = 'luck' must be one of auto, probability, top$"),
        ("keep_rate", 0.0, r"keep_rate = 0.0 must be in \(0, 1\]$"),
        ("keep_rate", 0.5, "keep_rate = 0.5 contradicts importance all, .* legal is 1.0"),
        ("uniform_share", 1.5, r"^uniform_share = 1.5 must be in \[0, 1\]$"),
        ("uplink_budget", -1, "^uplink_budget = -1 must be >= 0$"),
        ("refinement", "zip", "fp32"),
        ("fraction_train", 0.0, r"^fraction_train = 0.0 must be in \(0, 1\]$"),
        ("min_available_nodes", 0, "^min_available_nodes = 0 must be >= 1$"),
        ("seed", -1, r"^seed = -1 must be in \[0, 4294967295\]$"),
    ],
)
def test_illegal_options(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_strategy(**{option: value})


def test_limits_reach_the_decoder() -> None:
    def unaware(message: Message, context: Context) -> Message:
        config = message.content["config"]
        assert isinstance(config, ConfigRecord)
        del config["terms"]  # which tell how large a payload may be
        return train(message, context, make_sources()[0])

    strategy = make_strategy(codec=LOSSLESS, limits=DecodeLimits(samples=BATCH - 1))
    clients = [*make_grid(make_sources()).clients.values(), unaware]
    strategy.start(InProcessGrid(clients), num_rounds=1)
    assert strategy.failures == {"payload": 1}
    assert strategy.book.samples_sent == CLIENTS * BATCH  # split into payloads
