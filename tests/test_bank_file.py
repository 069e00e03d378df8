"""A bank's file keeps whole replies for good, whatever becomes of who writes it."""

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from bank_files import LOSSLESS, add, drawn, floats, payload, receipt_of, same, tags_of
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import CodecOptions, decode_samples
from strategies.sample_bank import Added, BankError, BankFull, Origin, SampleBank

DITHERED = CodecOptions(quantizer="dithered")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "bank.sqlite"


def _sent(bank: SampleBank) -> list[tuple[bytes, int]]:
    """Return the samples of a bank, sorted."""
    ((samples, targets, _),) = drawn(bank, np.random.default_rng(0), len(bank), 1)
    return sorted(
        (x.numpy().tobytes(), int(y)) for x, y in zip(samples, targets.tolist(), strict=True)
    )


def test_what_was_added_is_there_after_reopening(path: Path) -> None:
    memory = SampleBank()
    with SampleBank(path=path) as bank:
        assert (len(bank), bank.replies, bank.nbytes) == (0, 0, 0)
        for seed in range(3):
            payloads = [payload(seed), payload(10 + seed, 2)]
            done = add(bank, payloads, node_id=2**64 - 1 - seed, client=seed, server_round=1)
            assert (done.samples, done.duplicates, done.known) == (8, 0, False)
            for one in payloads:
                memory.add_payload(one)
        name = bank.id
    assert len(name) == 8
    with SampleBank(path=path) as bank:
        assert (bank.id, len(bank), bank.replies) == (name, 24, 3)
        assert bank.nbytes == memory.nbytes
        assert bank.has_receipt(receipt_of(payload(1), payload(11, 2)))
        assert not bank.has_receipt(receipt_of(payload(1)))
        assert same(
            drawn(bank, np.random.default_rng(1), 5, 9),
            drawn(memory, np.random.default_rng(1), 5, 9),
        )
    other = SampleBank(path=path.with_name("other"))
    assert other.id != name
    other.close()


def test_a_replayed_reply_is_known_and_adds_nothing(path: Path) -> None:
    for bank in (SampleBank(path=path), SampleBank()):
        assert not add(bank, [payload(0)]).known
        assert not add(bank, [payload(1)]).known
        again = add(bank, [payload(0)], node_id=5)
        assert (again.samples, again.known, len(bank), bank.replies) == (0, True, 12, 2)
        assert not add(bank, []).known and bank.replies == 2
        bank.close()


def test_what_does_not_fit_leaves_the_file_as_it_was(path: Path) -> None:
    with SampleBank(path=path) as bank:
        add(bank, [payload(0)])
        wrong = payload(1)
        decoded = decode_samples(wrong)
        odd = type(decoded)(decoded.samples, decoded.targets.astype("f4"), decoded.weights, {})
        with pytest.raises(ValueError, match="do not fit"):
            bank.add_reply(
                [(payload(2), decode_samples(payload(2))), (wrong, odd)], Origin(receipt=b"x")
            )
        with pytest.raises(BankError, match=r"bank\.sqlite holds coded samples"):
            bank.add_arrays(np.zeros((1, 1, 4, 4), np.uint8), np.zeros(1, np.int64))
        assert len(bank) == 6 and not bank.has_receipt(b"x")
    with SampleBank(path=path) as bank:
        assert len(bank) == 6 and bank.replies == 1


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_reopened_and_restored_it_draws_what_it_would_have_drawn(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """All in memory, uninterrupted; and beyond the limit, closed and reopened at random."""
    file = tmp_path_factory.mktemp("bank") / "bank"
    limit = data.draw(st.sampled_from([1, 200, 700, 1 << 20]))
    kinds = data.draw(st.lists(st.sampled_from("uuuuudf"), min_size=2, max_size=7))
    whole, bank = SampleBank(), SampleBank(limit, path=file)
    ours, theirs = np.random.default_rng(0), np.random.default_rng(0)
    for seed, kind in enumerate(kinds):
        made = {"u": payload(seed), "d": payload(seed, codec=DITHERED), "f": floats(seed)}[kind]
        add(whole, [made])
        add(bank, [made])
        size, steps = data.draw(st.tuples(st.integers(1, 14), st.integers(0, 4)))
        assert same(drawn(whole, ours, size, steps), drawn(bank, theirs, size, steps))
        if data.draw(st.booleans()):
            position = bank.position()
            bank.close()
            bank = SampleBank(limit, path=file)
            bank.restore(position)
    bank.close()


def test_a_position_of_another_bank_is_refused(path: Path) -> None:
    with SampleBank(path=path) as bank:
        add(bank, [payload(0)])
        position = bank.position()
        add(bank, [payload(1)])
        with pytest.raises(BankError, match=r"holds 2 replies with 12 samples; the position is of"):
            bank.restore(position)
        beyond = bank.position() | {"undrawn": np.array([12])}
        with pytest.raises(BankError, match="not the bank of this run"):
            bank.restore(beyond)
        # Earlier versions told the payloads that were decoded, too.
        bank.restore(bank.position() | {"window": np.array([0, 1]), "queue": np.empty(0)})
        for window in ([1], [1, 0]):
            with pytest.raises(BankError, match="of an earlier version, with another order"):
                bank.restore(bank.position() | {"window": np.array(window)})


def test_a_killed_round_is_taken_in_again_in_its_own_order(path: Path) -> None:
    """Clients 0 and 2 of the second round had answered; 1 answers after the restart."""
    whole = SampleBank(memory_limit=300)
    draws = []
    for server_round in (1, 2):
        for client in range(3):
            add(whole, [payload(10 * server_round + client)])
        draws.append(drawn(whole, np.random.default_rng(server_round), 4, 7))

    bank = SampleBank(300, path=path)
    for client in range(3):
        add(bank, [payload(10 + client)], client=client, server_round=1)
    assert same(drawn(bank, np.random.default_rng(1), 4, 7), draws[0])
    position, replies = bank.position(), bank.replies
    for client in (2, 0):
        kept = {"remaining": 4, "content_bytes": 99, "envelope_bytes": 9, "node_id": 2**63 + client}
        add(bank, [payload(20 + client)], client=client, server_round=2, **kept)
    for _ in range(2):  # it may be killed again meanwhile
        bank.close()
        bank = SampleBank(300, path=path)
        assert len(bank) == 30
        waiting = bank.hold_back(replies)
        assert [one.client for one in waiting] == [0, 2] and len(bank) == 18
        one = waiting[1]
        assert (one.node_id, one.server_round, one.count) == (2**63 + 2, 2, 6)
        assert (one.remaining, one.content_bytes, one.envelope_bytes) == (4, 99, 9)
        assert bank.has_receipt(one.receipt)
        assert add(bank, [payload(22)]).known
        bank.restore(position)
        assert bank.admit(waiting[0].receipt).samples == 6
    add(bank, [payload(21)])
    bank.admit(waiting[1].receipt)
    with pytest.raises(BankError, match=r"has no reply .* that waits"):
        bank.admit(waiting[1].receipt)
    assert same(drawn(bank, np.random.default_rng(2), 4, 7), draws[1])
    bank.close()
    with SampleBank(300, path=path) as bank:
        assert bank.hold_back(6) == [] and len(bank) == 36
        with pytest.raises(BankError, match="has 6 replies, 7 were to stay"):
            bank.hold_back(7)


def test_a_bank_in_memory_holds_nothing_back() -> None:
    bank = SampleBank()
    add(bank, [payload(0)])
    assert bank.hold_back(1) == [] and bank.id == b""
    with pytest.raises(BankError, match="give it a path"):
        bank.hold_back(0)


def _hold(path: Path, pipe: Connection) -> None:
    with SampleBank(path=path):
        pipe.send("open")
        pipe.recv()


def test_one_writes_and_another_is_refused(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    pipe, end = context.Pipe()
    process = context.Process(target=_hold, args=(path, end))
    process.start()
    try:
        assert pipe.recv() == "open"
        with pytest.raises(
            BankError, match=rf"bank\.sqlite is written to by process {process.pid}"
        ):
            SampleBank(path=path)
    finally:
        process.kill()
        process.join()
    SampleBank(path=path).close()  # what was killed holds no lock


def test_what_is_no_bank_is_named(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"some text that is no database" * 100)
    with pytest.raises(BankError, match=r"bank\.sqlite is no bank: name another file"):
        SampleBank(path=path)
    assert path.read_bytes().startswith(b"some text")
    path.unlink()
    sqlite3.connect(path).execute("CREATE TABLE own (x)").connection.close()
    with pytest.raises(BankError, match="is a database, but no bank"):
        SampleBank(path=path)
    with pytest.raises(BankError, match="is a folder"):
        SampleBank(path=tmp_path)
    blocked = path.parent / "file"
    blocked.touch()
    with pytest.raises(BankError, match="cannot be written to"):
        SampleBank(path=blocked / "bank")
    new = tmp_path / "new"
    SampleBank(path=new).close()
    connection = sqlite3.connect(new)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(BankError, match="is of version 2; this program reads version 1"):
        SampleBank(path=new)


def test_an_empty_file_becomes_a_bank(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with SampleBank(path=path) as bank:
        add(bank, [payload(0)])
    assert len(SampleBank(path=path)) == 6


def test_a_full_disk_keeps_nothing_of_a_reply(path: Path) -> None:
    large = [payload(seed, 2000) for seed in range(1, 4)]
    with SampleBank(path=path) as bank:
        add(bank, [payload(0)])
        assert bank._file is not None
        database = bank._file._db
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages + 12}")
        with pytest.raises(BankFull, match=r"the disk is full; make room"):
            add(bank, large)
        assert not bank.has_receipt(receipt_of(*large))
        assert (len(bank), bank.replies) == (6, 1)
        add(bank, [payload(9)])  # what is small still fits
        database.execute("PRAGMA max_page_count = 1000000")
        assert add(bank, large).samples == 6000
    with SampleBank(path=path) as bank:
        assert len(bank) == 6012
        assert bank.has_receipt(receipt_of(*large))


def _problem(path: Path, expected: list[tuple[bytes, int]]) -> str:
    """Return what a bank says of its file; empty if it gives all samples as they were."""
    try:
        with SampleBank(path=path) as bank:
            return "" if _sent(bank) == expected else "silent"
    except BankError as error:
        return str(error)


def test_a_flipped_bit_is_found_or_hits_nothing_that_is_read(path: Path) -> None:
    sent = [payload(seed, 400) for seed in range(4)]
    with SampleBank(path=path) as bank:
        for one in sent:
            add(bank, [one])
        expected = _sent(bank)
    whole, stream = path.read_bytes(), random.Random(0)
    within = whole.index(sent[2].to_bytes()[200:300])
    problems = []
    for place in [within, *stream.sample(range(100, len(whole)), 40)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << stream.randrange(8)
        path.write_bytes(flipped)
        problems.append(_problem(path, expected))
    assert "payload 3 is not what was written" in problems[0]
    assert all(str(path) in problem for problem in problems if problem)
    assert sum(map(bool, problems)) > 15


_WRITER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from bank_files import add, payload
from strategies.sample_bank import SampleBank
bank = SampleBank(path=sys.argv[1])
print("open", flush=True)
for seed in range(bank.replies, 10_000):
    add(bank, [payload(2 * seed), payload(2 * seed + 1, 3)], client=seed)
    print(seed, flush=True)
"""


@pytest.mark.parametrize("attempts", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_has_all_that_was_told_and_whole_replies(
    path: Path, attempts: int
) -> None:
    random.seed(attempts)
    root = Path(__file__).parents[1]
    told = -1
    for _ in range(attempts):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(root), str(root / "tests")],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        time.sleep(random.uniform(0, 0.3))
        writer.send_signal(signal.SIGKILL)
        lines = writer.stdout.read().split("\n")[:-1]
        writer.stdout.close()
        writer.wait()
        told = max([told, *map(int, lines)])
        with SampleBank(path=path) as bank:
            assert bank.replies in (told + 1, told + 2)  # the last may have been cut off untold
            assert len(bank) == 9 * bank.replies
            receipts = [receipt_of(payload(2 * k), payload(2 * k + 1, 3)) for k in range(told + 1)]
            assert all(map(bank.has_receipt, receipts))
            if len(bank):
                _sent(bank)  # all of it decodes
            told = bank.replies - 1


def test_a_payload_in_the_place_of_another_is_found(path: Path) -> None:
    """Its own checksum says that it is whole."""
    one, two = payload(0), payload(1)
    with SampleBank(path=path) as bank:
        add(bank, [one])
    connection = sqlite3.connect(path)
    connection.execute("UPDATE payload SET data = ?", (two.to_bytes(),))
    connection.commit()
    connection.close()
    assert "payload 1 is not what was written" in _problem(path, [])


def test_a_file_of_the_first_version_opens(path: Path) -> None:
    """Of three replies one is of duplicates, and one waits; payloads are of version 6."""
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.executescript((Path(__file__).parent / "bank_v1.sql").read_text(encoding="utf-8"))
    connection.close()
    dataset = SampleBank.open(path)
    assert (len(dataset), dataset.scale, dataset.class_names[9]) == (7, "unit", "kind 9")
    first, second = payload(0, 3, version=6), payload(1, 2, version=6)
    with SampleBank(path=path) as bank:
        assert (len(bank), bank.replies) == (7, 3)
        assert bank.has_receipt(receipt_of(first, second))
        position = bank.position()
        (stored,) = bank.hold_back(2)
        assert (stored.client, stored.node_id, stored.server_round, stored.count) == (4, 5, 2, 2)
        again = add(bank, [first], fingerprints=tags_of(first, 2, bank))
        assert again == Added(0, 3, known=False)
        bank.admit(stored.receipt)
        with pytest.raises(BankError, match="the position is of"):
            bank.restore(position)
        assert len(bank) == 7 and len(_sent(bank)) == 7


def test_payloads_alone_are_held_once(path: Path) -> None:
    with SampleBank(path=path) as bank:
        assert bank.add_payload(payload(0)) == 6
        assert bank.add_payload(payload(0).to_bytes()) == 0
        assert bank.add_payload(payload(1, codec=LOSSLESS).to_bytes()) == 6
