"""Whatever is lost, moved, added or taken away, every sample is sent exactly once."""

import multiprocessing
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_world import Album, KeyedAlbum, World
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from clients import inventory
from codec import CodecError

KINDS = [Album, KeyedAlbum]

EVENTS = (
    *("ask", "ask", "ask", "lost", "crash", "append", "reorder", "delete", "copy"),
    *("lost state", "restart", "new node", "lost file", "damaged file", "lost both"),
)
HAPPENS = given(events=st.lists(st.sampled_from(EVENTS), max_size=14), seed=st.integers(0, 99))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@HAPPENS
def test_every_sample_arrives_exactly_once(kind: type[Album], events: list[str], seed: int) -> None:
    _live(kind, events, seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100)
@HAPPENS
def test_every_sample_arrives_exactly_once_in_longer_lives(
    kind: type[Album], events: list[str], seed: int
) -> None:
    _live(kind, events * 2, seed)


def _live(kind: type[Album], events: list[str], seed: int) -> None:
    """Let things happen to a device; with its state or its file it sends nothing twice."""
    with tempfile.TemporaryDirectory() as folder:
        source, rng = kind(list(range(10))), np.random.default_rng(seed)
        world = World(source, Path(folder))
        born, both = 10, False  # whether state and file both know what was sent
        for event in events:
            if event in ("ask", "lost"):
                world.ask(lost=event == "lost")
                both = True
            elif event == "crash":  # after the file was written: the state is what it was
                before = RecordDict(dict(world.state))
                world.ask(lost=True)
                world.state, both = before, False
            elif event == "append":
                source.numbers += range(born, born + 3)
                born += 3
            elif event == "reorder":
                rng.shuffle(source.numbers)
            elif event == "delete":
                del source.numbers[int(rng.integers(len(source) + 1)) :][:2]
            elif event == "copy" and kind is Album and source.numbers:
                source.numbers.append(int(rng.choice(source.numbers)))
            elif both:  # only one of them is lost
                both = False
                _mishap(world, event, rng)
            assert max(world.received.values(), default=1) == 1
        world.finish()
        assert set(source.numbers) <= set(world.received)
        assert max(world.received.values(), default=1) == 1


def _mishap(world: World, event: str, rng: np.random.Generator) -> None:
    if event in ("lost file", "damaged file"):
        _lose(world.file, damaged=event == "damaged file")
    elif event == "lost state":
        world.state.clear()
    elif event == "lost both":  # then the server knows what it has by the fingerprints
        _lose(world.file, damaged=False)
        world.restart()
        world.drops_known = True
    else:
        fresh = int(rng.integers(2**64, dtype=np.uint64))
        world.restart(node_id=fresh if event == "new node" else None)


def _lose(file: Path, *, damaged: bool) -> None:
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()
    if damaged:
        file.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 20)


@pytest.mark.parametrize("kills", [15, pytest.param(100, marks=pytest.mark.slow)])
def test_a_process_killed_at_any_moment_loses_and_doubles_nothing(
    kills: int, tmp_path: Path
) -> None:
    """Each message has a process of its own, which SIGKILL may end; only files stay."""
    rng = np.random.default_rng(kills)
    world = World(Album(list(range(4 * kills))), tmp_path)
    fork, lost = multiprocessing.get_context("fork"), 0
    while lost < kills:
        theirs, ours = fork.Pipe()
        process = fork.Process(target=_answer, args=(world, theirs))
        process.start()
        if ours.poll(rng.exponential(0.04)):  # about as long as a message takes
            reply = ours.recv()
            world.take(reply)
        else:
            process.kill()
            lost += 1
        process.join()
        world.round += 1
        world.restart()
    world.finish(most=8 * kills)
    assert sorted(world.received) == list(range(4 * kills))
    assert max(world.received.values()) == 1


def _answer(world: World, pipe: Any) -> None:
    world.ask(lost=True)
    pipe.send(world.reply)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_run_on_a_bank_sends_what_is_missing(kind: type[Album], tmp_path: Path) -> None:
    world = World(kind(list(range(10))), tmp_path)
    world.ask()
    world.ask(lost=True)
    again = World(kind(list(range(3, 14))), tmp_path, receipts=world.receipts, node_id=5)
    again.meet()
    again.finish()
    total = world.received + again.received
    assert set(again.source.numbers) <= set(total) and max(total.values()) == 1


def test_another_bank_is_sent_everything(tmp_path: Path) -> None:
    for bank in (b"first...", b"second.."):
        world = World(Album(list(range(10))), tmp_path, bank)
        world.finish()
        assert sorted(world.received) == list(range(10))
    assert len(list(tmp_path.glob("*.sqlite"))) == 2


def test_a_bank_in_memory_leaves_no_file(tmp_path: Path) -> None:
    world = World(Album(list(range(10))), tmp_path, b"")
    world.finish()
    assert sorted(world.received) == list(range(10)) and not list(tmp_path.iterdir())


def test_what_pends_is_told_until_it_is_acknowledged(tmp_path: Path) -> None:
    world = World(Album(list(range(10))), tmp_path)
    assert world.meet() == b""
    world.ask()
    assert world.restart() == world.acknowledged != b""
    assert world.restart(node_id=17) == world.acknowledged != b""
    world.ask()
    assert len(world.received) == 8 and world.meet() == world.acknowledged
    world.finish()
    world.ask()  # an empty reply leaves nothing open
    assert world.meet() == b"" and sorted(world.received) == list(range(10))


def test_a_device_that_has_nothing_left_still_says_what_pends(tmp_path: Path) -> None:
    world = World(Album(list(range(10))), tmp_path)
    world.ask()
    world.source.numbers.clear()
    assert world.restart() == world.acknowledged != b""
    world.ask()
    with pytest.raises(CodecError, match="the data set has 0 samples"):
        world.meet()
    world.source.numbers += range(12)
    world.finish()
    assert sorted(world.received) == list(range(12)) and max(world.received.values()) == 1


def test_nodes_of_one_machine_know_what_any_of_them_delivered(tmp_path: Path) -> None:
    first = World(Album(list(range(10))), tmp_path, node_id=1)
    first.finish()
    first.ask()
    second = World(Album(list(range(5, 12))), tmp_path, node_id=2)
    second.finish()
    assert sorted(second.received) == [10, 11]


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_reads_little_more_than_it_sends(kind: type[Album], tmp_path: Path) -> None:
    source = kind(list(range(300)))
    world = World(source, tmp_path, options={"samples_per_round": 50})
    for number in range(4):
        source.reads.clear()
        world.ask()
        most = 50 + 4 + 6 * (number == 0) + (0 if kind is KeyedAlbum else 4)
        assert source.reads.total() <= most
    source.numbers.reverse()
    world.restart()
    world.finish()
    assert sorted(world.received) == list(range(300)) and max(world.received.values()) == 1


def test_files_with_keys_are_not_read_again_by_another_process(tmp_path: Path) -> None:
    source = KeyedAlbum(list(range(100)))
    world = World(source, tmp_path, options={"samples_per_round": 0})
    world.ask()
    source.reads.clear()
    source.numbers = [*source.numbers[::-1], 200, 201]
    world.restart()
    assert sorted(world.ask()) == [200, 201] and not world.reply["remaining"]
    assert source.reads.total() <= 2 + 2 * 4


def test_one_that_was_replaced_is_found_before_the_end(tmp_path: Path) -> None:
    """A single image takes another's place, which a few looks need not notice."""
    source = Album(list(range(40)))
    world = World(source, tmp_path, options={"samples_per_round": 20})
    world.ask()
    source.numbers[source.numbers.index(next(iter(world.received)))] = 99
    world.finish()
    assert world.received[99] == 1 and max(world.received.values()) == 1


def test_no_round_reads_everything_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "_MOST_VERIFIED", 15)
    source = Album(list(range(60)))
    world = World(source, tmp_path, options={"samples_per_round": 30})
    remaining = []
    while not remaining or remaining[-1]:
        source.reads.clear()
        world.ask()
        remaining.append(world.reply["remaining"])
        assert source.reads.total() <= 30 + 4 + 4 + max(6, 15)
    assert remaining == [30, 1, 1, 1, 0] and sorted(world.received) == list(range(60))


@pytest.mark.parametrize("size", [0, 2])
def test_copies_are_sent_once_and_told_once(size: int, tmp_path: Path) -> None:
    numbers = [*range(10), 3, 3, 7]
    world = World(Album(numbers), tmp_path, options={"identity_bytes": size})
    world.ask(lost=True)
    world.finish()
    assert sorted(world.received) == list(range(10)) and world.received.total() == 10
    assert world.skipped == {"duplicate": 3}
    world.source.numbers.append(7)
    world.finish()
    assert world.received.total() == 10 and world.skipped == {"duplicate": 4}


@pytest.mark.parametrize(
    ("before", "growing", "after"),
    [
        (10, False, 10),
        (10, True, 10),
        (10, False, 11),
    ],
)
def test_a_source_grows_if_it_says_so_or_has_changed(
    before: int, growing: bool, after: int, tmp_path: Path
) -> None:
    source = Album(list(range(before)), growing=growing)
    world = World(source, tmp_path)
    world.finish()
    assert bool(world.reply.get("growing", False)) is growing
    source.numbers = list(range(after))
    world.finish()
    assert bool(world.reply.get("growing", False)) is (growing or after != before)
    assert sorted(world.received) == list(range(after))


def test_the_share_that_is_sent_is_of_what_there_is_now(tmp_path: Path) -> None:
    source = Album(list(range(20)))
    options = {"keep_rate": 0.5, "importance": "random"}
    world = World(source, tmp_path, options=options)
    world.finish()
    assert len(world.received) == 10
    source.numbers += range(20, 30)
    world.finish()
    assert len(world.received) == 15


def test_the_file_is_ready_before_the_reply_leaves(tmp_path: Path) -> None:
    world = World(Album(list(range(10))), tmp_path)
    world.ask(lost=True)
    with sqlite3.connect(world.file) as connection:
        (mode,) = connection.execute("pragma journal_mode").fetchone()
        ((pending, receipt),) = connection.execute("select pending, receipt from nodes").fetchall()
    assert mode == "wal" and len(pending) == 4 * 8 and len(receipt) == 8
