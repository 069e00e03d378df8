"""A run that was killed goes on as if nothing had happened: bit for bit, and nothing paid twice."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, MetricRecord
from inprocess_grid import InProcessGrid
from resumable import (
    ROUNDS,
    SIZES,
    assert_equal,
    make_grid,
    make_strategy,
    outcome,
    start,
)

import strategies.checkpoint
from clients.device_file import DeviceFile
from codec import SamplePayload
from sim.direct_grid import Client
from strategies import QuantizedDataReplay, SampleBank, ServerModel, ServerStrategy
from strategies.checkpoint import NAME, Checkpoint, has_checkpoint, read_checkpoint
from strategies.errors import CheckpointError
from strategies.sample_bank.file import BankFile
from strategies.scout import ScoutTrainer

KINDS = ("replay", "described", "scout", "streaming", "gradient", "fedavg", "outer")

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(BaseException):
    """Stands for SIGKILL where that would end the test."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """What a run of a kind comes to without any harm."""
    found: dict[tuple[str, int], dict[str, Any]] = {}

    def run(kind: str, rounds: int = ROUNDS) -> dict[str, Any]:
        if (kind, rounds) not in found:
            folder = tmp_path_factory.mktemp(kind)
            strategy = make_strategy(kind, folder)
            start(strategy, make_grid(kind, folder), folder, resume=False, num_rounds=rounds)
            close(strategy)
            found[kind, rounds] = outcome(folder)
        return found[kind, rounds]

    return run


def close(strategy: ServerStrategy) -> None:
    """Do what the end of a process does."""
    if isinstance(strategy, QuantizedDataReplay):
        strategy.bank.close()


def killing(server_round: int, who: int, *, after: bool) -> Callable[[int, Client], Client]:
    """The process is killed when a client is asked in a round: before it works, or after."""

    def wrap(index: int, client: Client) -> Client:
        def answer(message: Message, context: Context) -> Message:
            config: Any = message.content["config"]
            is_it = index == who and config["server-round"] == server_round
            if is_it and not after:
                raise Killed
            reply = client(message, context)
            if is_it:
                raise Killed
            return reply

        return answer

    return wrap


def killed(strategy: ServerStrategy, grid: InProcessGrid, folder: Path, **options: Any) -> None:
    """Run, or go on, until it is killed."""
    with pytest.raises(Killed):
        start(strategy, grid, folder, **options)
    close(strategy)


def _sent(grid: InProcessGrid) -> int:
    payloads = [
        reply.content.config_records["payload"]["samples"]
        for replies in grid.replies
        for reply in replies
    ]
    return sum(SamplePayload.from_bytes(data).count for data in payloads if data)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_between_rounds_it_ends_equal(
    kind: str, tmp_path: Path, uninterrupted: Callable[..., dict[str, Any]]
) -> None:
    def stop(number: int, _: Any) -> None:
        if number == 3:
            raise Killed

    first = make_strategy(kind, tmp_path)
    killed(first, make_grid(kind, tmp_path), tmp_path, resume=False, evaluate_fn=stop)
    assert read_checkpoint(tmp_path).server_round == 2
    again = make_strategy(kind, tmp_path)
    start(again, make_grid(kind, tmp_path, seed=1), tmp_path, resume=True)
    close(again)
    assert_equal(outcome(tmp_path), uninterrupted(kind))
    assert not again.failures


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("who", [0, 2, 3])
@pytest.mark.parametrize("kind", ["replay", "described"])
def test_killed_while_devices_work_nothing_is_sent_twice(
    kind: str, who: int, after: bool, tmp_path: Path, uninterrupted: Any
) -> None:
    first, grid = (
        make_strategy(kind, tmp_path),
        make_grid(kind, tmp_path, killing(2, who, after=after)),
    )
    killed(first, grid, tmp_path, resume=False)
    again, later = make_strategy(kind, tmp_path), make_grid(kind, tmp_path, seed=1)
    start(again, later, tmp_path, resume=True)
    assert_equal(outcome(tmp_path), uninterrupted(kind))
    assert isinstance(again, QuantizedDataReplay)
    assert len(again.bank) == again.book.samples_sent and not again.book.duplicates
    close(again)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("server_round", [1, 2])
@pytest.mark.parametrize("kind", ["replay", "described", "scout", "described scout"])
def test_killed_while_replies_are_banked_those_are_not_paid_again(
    kind: str,
    server_round: int,
    number: int,
    tmp_path: Path,
    uninterrupted: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a round's four replies some are in the bank; their nodes are not asked again."""
    add, calls = SampleBank.add_reply, []

    def counted(bank: SampleBank, *args: Any) -> Any:
        calls.append(1)
        added = add(bank, *args)
        if len(calls) == len(SIZES) * (server_round - 1) + number:
            raise Killed
        return added

    first, grid = make_strategy(kind, tmp_path), make_grid(kind, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(SampleBank, "add_reply", counted)
        killed(first, grid, tmp_path, resume=False)
    again, later = make_strategy(kind, tmp_path), make_grid(kind, tmp_path, seed=1)
    results: list[Any] = []
    again.book._on_round = results.append
    start(again, later, tmp_path, resume=True)
    assert isinstance(again, QuantizedDataReplay)
    assert_equal(outcome(tmp_path), uninterrupted(kind))
    assert len(again.bank) == again.book.samples_sent and not again.book.duplicates
    assert [len(sent) for sent in later.requests][:1] == [len(SIZES) - number]
    assert (results[0].round, results[0].asked, results[0].answered) == (server_round, 4, 4)
    assert len(again.ledger.node_bytes()) == len(SIZES)  # under their new ids
    assert _sent(grid) + _sent(later) == len(again.bank) + _lost(grid, number)
    close(again)


def _lost(grid: InProcessGrid, number: int) -> int:
    """Samples of the killed round's replies that had come, and were not banked yet."""
    lost = sorted(grid.replies[-1], key=lambda r: r.content.config_records["payload"]["client"])  # type: ignore[arg-type,return-value]
    payloads: list[Any] = [r.content.config_records["payload"]["samples"] for r in lost[number:]]
    return sum(SamplePayload.from_bytes(data).count for data in payloads)


# What is called when the process is killed, which call of it, and whether it has returned.
Point = tuple[Any, str, int, bool]
FEW = 3  # rounds, of which the last shows what the scout of the first has led to
BANKED: Point = (SampleBank, "add_reply", len(SIZES), True)
POINTS: dict[str, Point] = {
    "no checkpoint yet": (strategies.checkpoint.os, "replace", 1, False),
    "nothing asked yet": (strategies.checkpoint.os, "replace", 1, True),
    "a device works": (DeviceFile, "write", 2, False),
    "a device has written": (DeviceFile, "write", 2, True),
    "all have written": (SampleBank, "add_reply", 1, False),
    "some are in the file": (BankFile, "add", 2, True),
    "all are banked": BANKED,
    "the model trains": (ServerModel, "step", 2, True),
    "the model is trained": (ScoutTrainer, "train", 1, False),
    "the scout is trained": (ScoutTrainer, "train", 1, True),
    "the round is over": (Checkpoint, "write", 2, False),
    "the checkpoint is written": (strategies.checkpoint.os, "replace", 2, False),
    "the checkpoint is in place": (strategies.checkpoint.os, "replace", 2, True),
    # Of the next round, whose requests bring the first scout.
    "a device has written again": (DeviceFile, "write", len(SIZES) + 3, True),
    "the scout is trained again": (ScoutTrainer, "train", 2, True),
}


def killed_at(point: Point, folder: Path, seed: int = 0, *, resume: bool = False) -> None:
    """Run, or go on, until a point is reached."""
    owner, name, number, returned = point
    inner, calls = getattr(owner, name), 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not returned:
            raise Killed
        result = inner(*args, **options)
        if calls == number:
            raise Killed
        return result

    strategy, grid = make_strategy("scout", folder), make_grid("scout", folder, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        killed(strategy, grid, folder, resume=resume, num_rounds=FEW)


def go_on(folder: Path, seed: int) -> ServerStrategy:
    """Run to the end, from the checkpoint if there is one."""
    strategy, grid = make_strategy("scout", folder), make_grid("scout", folder, seed=seed)
    start(strategy, grid, folder, resume=has_checkpoint(folder), num_rounds=FEW)
    close(strategy)
    return strategy


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point_of_a_round_it_ends_equal(
    point: str, tmp_path: Path, uninterrupted: Any
) -> None:
    killed_at(POINTS[point], tmp_path)
    again = go_on(tmp_path, seed=1)
    assert_equal(outcome(tmp_path), uninterrupted("scout", FEW))
    assert not again.failures


@pytest.mark.parametrize(
    "then",
    [
        pytest.param((SampleBank, "hold_back", 1, True), id="held back"),
        pytest.param((SampleBank, "admit", 2, True), id="some admitted"),
        pytest.param((ScoutTrainer, "train", 1, True), id="the scout is trained"),
        pytest.param((strategies.checkpoint.os, "replace", 1, False), id="checkpoint written"),
        pytest.param((DeviceFile, "write", 2, True), id="next round"),
    ],
)
def test_killed_twice_it_ends_equal(then: Point, tmp_path: Path, uninterrupted: Any) -> None:
    """Once when all is banked and nothing trained, and again where that round goes on."""
    killed_at(BANKED, tmp_path)
    killed_at(then, tmp_path, seed=1, resume=True)
    again = go_on(tmp_path, seed=2)
    assert_equal(outcome(tmp_path), uninterrupted("scout", FEW))
    assert not again.failures


@pytest.mark.parametrize("kind", ["replay", "scout"])
def test_a_strategy_that_goes_on_itself_forgets_what_came_since(
    kind: str, tmp_path: Path, uninterrupted: Any
) -> None:
    """As in a notebook, where a run was interrupted after it had trained."""

    def stop(number: int, _: Any) -> None:
        if number == 1:
            raise KeyboardInterrupt

    strategy, grid = make_strategy(kind, tmp_path), make_grid(kind, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        start(strategy, grid, tmp_path, resume=False, evaluate_fn=stop)
    start(strategy, grid, tmp_path, resume=True)
    close(strategy)
    assert_equal(outcome(tmp_path), uninterrupted(kind))
    assert not strategy.failures


def test_what_a_checkpoint_holds(tmp_path: Path) -> None:
    strategy = make_strategy("replay", tmp_path)
    result = start(
        strategy,
        make_grid("replay", tmp_path),
        tmp_path,
        resume=False,
        evaluate_fn=lambda number, _: MetricRecord({"accuracy": number / 10}),
    )
    close(strategy)
    again, calls = make_strategy("replay", tmp_path), []

    def evaluate(number: int, _: Any) -> MetricRecord:
        calls.append(number)
        return MetricRecord({"accuracy": number / 10})

    more = start(
        again, make_grid("replay", tmp_path, seed=1), tmp_path, resume=True, evaluate_fn=evaluate
    )
    close(again)
    assert not calls  # all rounds are over, and evaluated
    assert more.evaluate_metrics_serverapp == result.evaluate_metrics_serverapp
    assert more.train_metrics_clientapp == result.train_metrics_clientapp
    assert len(more.train_metrics_clientapp) == ROUNDS
    assert again.ledger.uplink_bytes == strategy.ledger.uplink_bytes
    assert again.ledger.sections() == strategy.ledger.sections()
    assert again.ledger.round_bytes(2) == strategy.ledger.round_bytes(2)
    assert again.steps_taken == strategy.steps_taken == 8 * ROUNDS
    assert again.book.samples_sent == strategy.book.samples_sent
    assert again.book.variance_kept == strategy.book.variance_kept
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} >= {NAME, "bank.sqlite"}


@pytest.mark.parametrize("kind", ["replay", "streaming"])
def test_more_rounds_than_were_planned(kind: str, tmp_path: Path) -> None:
    first = make_strategy(kind, tmp_path)
    start(first, make_grid(kind, tmp_path), tmp_path, resume=False, num_rounds=2)
    close(first)
    again = make_strategy(kind, tmp_path)
    grid = make_grid(kind, tmp_path, seed=1)
    result = start(again, grid, tmp_path, resume=True, num_rounds=4)
    close(again)
    assert set(result.train_metrics_clientapp) == {1, 2, 3, 4}
    assert again.steps_taken == 2 * first.steps_taken
    scheduler = again.server_model.scheduler
    assert scheduler is not None and scheduler.last_epoch == again.steps_taken


def test_every_so_many_rounds(tmp_path: Path) -> None:
    seen = []

    def evaluate(number: int, _: Any) -> None:
        seen.append(read_checkpoint(tmp_path).server_round if number else None)

    strategy = make_strategy("streaming", tmp_path)
    options = {"checkpoint_every": 3, "num_rounds": 5, "evaluate_fn": evaluate}
    start(strategy, make_grid("streaming", tmp_path), tmp_path, resume=False, **options)
    assert seen == [None, 0, 0, 0, 3, 3]
    assert read_checkpoint(tmp_path).server_round == 5
    stopped = make_strategy("streaming", tmp_path)
    options |= {"should_stop": lambda number, _: number == 4}
    start(stopped, make_grid("streaming", tmp_path), tmp_path, resume=False, **options)
    assert read_checkpoint(tmp_path).server_round == 4


# What is refused


def test_a_bank_in_memory_cannot_be_kept(tmp_path: Path) -> None:
    strategy = QuantizedDataReplay(lambda: torch.nn.Linear(2, 2), torch.optim.Adam, device="cpu")
    with pytest.raises(CheckpointError, match="pass bank=FILE"):
        strategy.start(make_grid("replay", tmp_path), checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no .*checkpoint\.safetensors"):
        strategy.start(make_grid("replay", tmp_path), resume=tmp_path)


def test_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    first = make_strategy("replay", tmp_path)
    start(first, make_grid("replay", tmp_path), tmp_path, resume=False, num_rounds=1)
    close(first)
    grid = make_grid("replay", tmp_path)
    for kind, options, words in (
        ("replay", {"codec": "lossless"}, "codec was 'auto', is 'lossless'"),
        ("replay", {"fraction_train": 0.5}, "fraction-train was 1.0, is 0.5"),
        ("streaming", {}, "of a QuantizedDataReplay, this is a QuantizedDataStreaming"),
    ):
        other = make_strategy(kind, tmp_path, **options)
        with pytest.raises(CheckpointError, match=words):
            start(other, grid, tmp_path, resume=True)
        close(other)
    (tmp_path / "bank.sqlite").rename(tmp_path / "moved.sqlite")
    other = make_strategy("replay", tmp_path)
    with pytest.raises(CheckpointError, match="pass the bank=FILE of that run"):
        start(other, grid, tmp_path, resume=True)
    close(other)
    assert not grid.requests
    (tmp_path / "bank.sqlite").unlink()
    (tmp_path / "moved.sqlite").rename(tmp_path / "bank.sqlite")
    same = make_strategy("replay", tmp_path, quorum=0.9)  # which may change
    start(same, make_grid("replay", tmp_path), tmp_path, resume=True, num_rounds=2)
    close(same)


def test_what_killed_writers_have_left_goes(tmp_path: Path) -> None:
    (tmp_path / f".{NAME}-k1ll3d").write_bytes(b"half a checkpoint")
    Checkpoint(7, {}).write(tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == [NAME]


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0), "b": {1: (1, 2), "kind": {3, 4}}, "c": b"\x00", "d": [None]}
    Checkpoint(7, state).write(tmp_path)
    found = read_checkpoint(tmp_path)
    assert found.server_round == 7
    assert_equal(found.state, state)
    path = tmp_path / NAME
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        data = bytearray(whole)
        data[place] ^= 4
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"damaged|version|there is no"):
            read_checkpoint(tmp_path)
    for size in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="a checkpoint cannot keep e, a function"):
        Checkpoint(1, {"e": lambda: 0}).write(tmp_path)


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    strategy = make_strategy("streaming", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("strategies.checkpoint._replace_file", full)
        start(strategy, make_grid("streaming", tmp_path), tmp_path, resume=False)
    assert strategy.steps_taken == ROUNDS and not (tmp_path / NAME).exists()


# Killed for real


def _child(kind: str, folder: Path, seed: int, *, resume: bool) -> int:
    """Fork a process that runs, or goes on; return its id."""
    process = os.fork()
    if process:
        return process
    try:
        strategy = make_strategy(kind, folder)
        start(strategy, make_grid(kind, folder, seed=seed), folder, resume=resume)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_ten_random_moments_it_ends_equal(
    kind: str, tmp_path: Path, uninterrupted: Callable[..., dict[str, Any]]
) -> None:
    """SIGKILL, again and again, wherever the run is: reading, banking, training or writing."""
    expected, rng = uninterrupted(kind), np.random.default_rng(KINDS.index(kind))
    began = time.monotonic()
    folder = tmp_path / "timed"
    folder.mkdir()
    os.waitpid(_child(kind, folder, 0, resume=False), 0)
    whole = time.monotonic() - began
    kills, run = 0, 0
    while kills < 10:
        folder = tmp_path / str(run)
        folder.mkdir()
        alive, attempt = True, 0
        while alive:
            resume = (folder / NAME).exists()
            child = _child(kind, folder, 100 * run + attempt, resume=resume)
            time.sleep(float(rng.uniform(0.02, 0.8)) * whole)
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0
                alive = False
            else:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kills += 1
            attempt += 1
        assert_equal(outcome(folder), expected)
        run += 1
