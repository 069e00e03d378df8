"""What memory has no room for: on the disk, the same bit for bit, and never silently nowhere."""

import errno
import logging
import mmap
import os
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank_files import LOSSLESS, SHAPE, add, drawn, floats, payload, same

from codec import CodecOptions, DecodedSamples, SamplePayload, decode_samples
from strategies.sample_bank import BankError, SampleBank, scratch
from strategies.sample_bank.arrays import Arrays
from strategies.sample_bank.scratch import ScratchRows, is_in_memory, map_rows, read_ahead
from strategies.sample_bank.store import SampleStore

DITHERED = CodecOptions(quantizer="dithered")
NBYTES = 6 * 16  # of a payload of bytes
Usage = namedtuple("Usage", "total used free")
Free = Callable[[dict[Path, int]], None]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """Folders for temporary files and large ones, and that of a bank; none of them in memory."""
    found = tmp_path / "tmp", tmp_path / "large", tmp_path / "own"
    for place in found:
        place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(found[0]))
    monkeypatch.setattr(scratch, "_LARGE", found[1])
    monkeypatch.setattr(scratch, "is_in_memory", lambda _: False)
    return found


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    """Have disks with so many bytes free that are not left to others."""

    def limit(room: dict[Path, int]) -> None:
        def usage(place: Path) -> Usage:
            return Usage(0, 0, scratch._LEFT_FREE + room.get(Path(place), 0))

        monkeypatch.setattr(shutil, "disk_usage", usage)

    return limit


@pytest.mark.parametrize("kinds", ["uuuuuu", "dddddd", "uuuddf", "fufufu"])
@pytest.mark.parametrize("limit", [1, 5 * NBYTES // 2, 5 * NBYTES])
def test_minibatches_are_the_same_in_memory_and_on_disk(kinds: str, limit: int) -> None:
    whole, bank = SampleBank(), SampleBank(limit)
    ours, theirs = np.random.default_rng(5), np.random.default_rng(5)
    for seed, kind in enumerate(kinds):
        made = {"u": payload(seed), "d": payload(seed, codec=DITHERED), "f": floats(seed)}[kind]
        add(whole, [made])
        add(bank, [made])
        assert same(drawn(whole, ours, 5, 4), drawn(bank, theirs, 5, 4))
    assert same(drawn(whole, ours, 5, 30), drawn(bank, theirs, 5, 30))
    assert bank.resident_bytes <= limit < whole.resident_bytes


def test_each_payload_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SampleBank(path=tmp_path / "bank") as made:
        for seed in range(6):
            add(made, [payload(seed)])
    decoded: list[SamplePayload] = []

    def decode(one: SamplePayload) -> DecodedSamples:
        decoded.append(one)
        return decode_samples(one)

    monkeypatch.setattr("strategies.sample_bank.bank.decode_samples", decode)
    with SampleBank(2 * NBYTES, path=tmp_path / "bank") as again:
        generator = np.random.default_rng(0)
        for _ in range(3):
            drawn(again, generator, 5, 20)
        assert len(decoded) == 6
        held = again._store
        assert held.on_disk and len(held) == 36


def test_what_an_iteration_leaves_undrawn_is_drawn_later() -> None:
    """What was read ahead does not count."""
    whole, bank = SampleBank(), SampleBank(1)
    for each in (whole, bank):
        add(each, [payload(0, 20)])
        generator = np.random.default_rng(0)
        next(each.minibatches(4, 5, generator))
    generators = np.random.default_rng(1), np.random.default_rng(1)
    assert same(drawn(whole, generators[0], 4, 4), drawn(bank, generators[1], 4, 4))
    assert np.array_equal(whole.position()["undrawn"], bank.position()["undrawn"])
    assert len(bank.position()["undrawn"]) == 0


def test_arrays_in_memory_anyway_are_kept_by_reference() -> None:
    bank = SampleBank(1)
    samples = np.random.default_rng(0).integers(0, 256, (20, *SHAPE), dtype=np.uint8)
    bank.add_arrays(samples, np.arange(20))
    assert np.shares_memory(bank._store.part(0, 20).samples, samples)
    bank.add_arrays(samples[:5], np.arange(5))
    assert bank.resident_bytes == samples.nbytes and bank._store.on_disk
    for drawn_samples, targets, _ in bank.minibatches(25, 1, np.random.default_rng(0)):
        expected = torch.from_numpy(samples[targets.numpy()]).float() / 255
        assert torch.equal(drawn_samples, expected)


def test_rows_grow_in_memory_without_touching_what_was_given() -> None:
    given = np.zeros((3, 2), np.uint8)
    store = SampleStore(100, "a bank")
    for value in range(4):
        rows = given if not value else np.full((3, 2), value, np.uint8)
        store.append(Arrays(rows, np.full(3, value), np.full(3, value, np.float32), None))
    taken = store.take(np.array([0, 5, 11]))
    assert taken.samples.tolist() == [[0, 0], [1, 1], [3, 3]]
    assert taken.targets.tolist() == taken.weights.tolist() == [0, 1, 3]
    assert not given.any() and store.resident_bytes == 24


# Where files are


def test_a_file_has_no_name_and_goes_with_the_bank(folders: tuple[Path, ...]) -> None:
    bank = SampleBank(1)
    add(bank, [payload(0)])
    assert bank._store.on_disk
    assert not any(list(place.iterdir()) for place in folders)


def test_a_full_folder_is_passed_over(folders: tuple[Path, ...], free: Free) -> None:
    room = {folders[1]: NBYTES}
    free(room)
    bank, whole = SampleBank(1, path=folders[2] / "bank"), SampleBank()
    add(bank, [payload(0)])
    room[folders[1]], room[folders[2]] = 0, 2 * NBYTES
    add(bank, [payload(1)])
    areas = [area.rows for area in bank._store._areas]
    assert [rows.folder for rows in areas if isinstance(rows, ScratchRows)] == list(folders[1:])
    for seed in range(2):
        add(whole, [payload(seed)])
    generators = np.random.default_rng(0), np.random.default_rng(0)
    assert same(drawn(bank, generators[0], 5, 9), drawn(whole, generators[1], 5, 9))
    bank.close()


def test_without_room_drawing_ends_in_an_error_and_goes_on_once_there_is(
    folders: tuple[Path, ...], free: Free
) -> None:
    room: dict[Path, int] = {}
    free(room)
    bank, whole = SampleBank(NBYTES), SampleBank()
    for seed in range(3):
        assert add(bank, [payload(seed)]).samples == add(whole, [payload(seed)]).samples == 6
    with pytest.raises(
        BankError,
        match=r"a bank in memory: decoded samples beyond memory_limit find no room for 0\.0 MB "
        r"\(.*tmp: 67\.1 MB free; .*large: 67\.1 MB free\): make room, set TMPDIR to a folder on "
        "a disk that has it, or raise memory_limit",
    ):
        drawn(bank, np.random.default_rng(0), 5, 1)
    assert len(bank) == 18
    room[folders[0]] = NBYTES
    generators = np.random.default_rng(0), np.random.default_rng(0)
    assert same(drawn(bank, generators[0], 5, 9), drawn(whole, generators[1], 5, 9))


def test_a_disk_that_fills_up_while_it_is_written_to_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ScratchRows(tmp_path, np.uint8, (4,), "part-")
    first, more = np.arange(8, dtype=np.uint8).reshape(2, 4), np.full((3, 4), 9, np.uint8)
    rows.append(first)
    plain = os.write

    def half(file: int, data: memoryview) -> int:
        if len(data) < 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(file, data[:5])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space left"):
            rows.append(more)
    assert rows.path is not None and rows.path.stat().st_size == 8
    assert np.array_equal(rows.array, first)
    rows.append(more)
    assert np.array_equal(rows.array, np.concatenate([first, more]))
    assert np.array_equal(map_rows(rows.path, np.uint8, (5, 4)), rows.array)


def test_a_folder_that_cannot_be_written_to_is_passed_over(
    folders: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tempfile.mkstemp

    def mkstemp(**place: Any) -> tuple[int, str]:
        if place["dir"] == folders[0]:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return plain(**place)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    bank = SampleBank(1)
    add(bank, [payload(0)])
    (area,) = bank._store._areas
    assert isinstance(area.rows, ScratchRows) and area.rows.folder == folders[1]


def test_a_folder_in_memory_is_the_last_and_is_told(
    folders: tuple[Path, ...],
    free: Free,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(scratch, "is_in_memory", lambda place: place == folders[0])
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    add(SampleBank(1), [payload(0)])
    warnings = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert not warnings  # as there is another
    free({folders[0]: NBYTES})
    add(SampleBank(1), [payload(0)])
    (warning,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert f"go to {folders[0]}, which is in memory itself" in warning.getMessage()
    assert "set TMPDIR to a folder on a disk" in warning.getMessage()


def test_a_data_set_finds_a_folder_likewise(folders: tuple[Path, ...], free: Free) -> None:
    place = folders[2] / "bank"
    with SampleBank(path=place) as made:
        for seed in range(3):
            add(made, [payload(seed, codec=LOSSLESS)])
    room = {folders[1]: 3 * NBYTES}
    free(room)
    dataset = SampleBank.open(place, memory_limit=1)
    assert list(folders[1].glob("bank-*.samples"))
    assert np.array_equal(dataset.samples, SampleBank.open(place).samples)
    del dataset
    assert not list(folders[1].iterdir())
    room.clear()
    with pytest.raises(BankError, match=r"find no room for 0\.0 MB .*own: 67\.1 MB free\)"):
        SampleBank.open(place, memory_limit=1)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no file system in memory")
def test_a_file_system_in_memory_is_known(tmp_path: Path) -> None:
    assert is_in_memory(Path("/dev/shm"))
    assert not is_in_memory(tmp_path / "none")


# Reading ahead


def test_pages_of_some_rows_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    class Recorder(mmap.mmap):
        def madvise(self, *arguments: int) -> None:
            super().madvise(*arguments)  # the system takes it
            asked.append(arguments)

    monkeypatch.setattr(mmap, "mmap", Recorder)
    rows = ScratchRows(tmp_path, np.uint8, (5000,))
    rows.append(np.zeros((8, 5000), np.uint8))
    array = rows.array
    asked.clear()
    read_ahead(array[1:], np.array([0, 5, -1]))
    page = mmap.PAGESIZE
    begins = [start // page * page for start in (5000, 30_000, 35_000)]
    ends = [10_000, 35_000, 40_000]
    assert asked == [
        (mmap.MADV_WILLNEED, begin, end - begin) for begin, end in zip(begins, ends, strict=True)
    ]
    read_ahead(array.copy(), np.array([0, 5]))  # in memory: nothing to read
    assert len(asked) == 3


def test_the_next_minibatch_is_read_while_one_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = SampleBank(1)
    add(bank, [payload(0, 20)])
    asked: list[set[int]] = []
    plain = SampleStore.expect

    def expect(store: SampleStore, index: np.ndarray) -> None:
        asked.append(set(index.tolist()))
        plain(store, index)

    monkeypatch.setattr(SampleStore, "expect", expect)
    batches = bank.minibatches(8, 4, np.random.default_rng(0))
    next(batches)
    left = bank.position()["undrawn"]
    assert len(asked) == 2 and asked[1] == set(left[:8].tolist())
    next(batches)  # the last of its epoch: what comes then is not known
    assert len(asked) == 2
    next(batches)
    assert len(asked) == 4
