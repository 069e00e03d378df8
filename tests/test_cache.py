"""Tests of fl_app.cache: bounded, whole or not there, and never in the way."""

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_app import cache
from fl_app.cache import VARIABLE, Allocate, Decoded, cache_limit, cached
from fl_app.images import DataError

ROOT = Path(__file__).parents[1]
VALUES = 1 << 20  # bytes of samples of an entry


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path / "flwr-quantized-data"


@pytest.fixture(autouse=True)
def lines() -> Iterator[list[str]]:
    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    found: list[str] = []
    handler, logger = Lines(), logging.getLogger("flwr")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


class Source:
    """Makes an array of a constant, and counts how often."""

    def __init__(self, value: int = 1, size: int = VALUES) -> None:
        self.value, self.size, self.made = value, size, 0

    def __call__(self, allocate: Allocate) -> Decoded:
        self.made += 1
        samples = allocate((4, self.size // 4), np.uint8)
        samples[:] = self.value
        return Decoded(samples[:3], np.arange(3), {"made": self.value})

    def load(self) -> NDArray[np.uint8]:
        decoded = cached("x", (self.value, self.size), self)
        assert decoded.samples.shape == (3, self.size // 4)
        assert (decoded.samples == self.value).all()
        assert decoded.rows.tolist() == [0, 1, 2]
        assert decoded.notes == {"made": self.value}
        return decoded.samples


def entries(base: Path) -> set[int]:
    """Return which sources have an entry."""
    found = base.glob("x-*/notes.json")
    return {json.loads(notes.read_text())["made"] for notes in found}


def total(base: Path) -> int:
    return sum(file.stat().st_size for file in base.rglob("*") if file.is_file())


def test_what_was_made_once_is_mapped_and_private(base: Path, lines: list[str]) -> None:
    source = Source()
    first, second = source.load(), source.load()
    assert source.made == 1
    assert isinstance(first, np.memmap)
    first[:] = 9
    assert (second == 1).all()
    assert source.load()[0, 0] == 1
    assert str(base) in lines[0]
    assert f"{VARIABLE}=off" in lines[0]
    assert all(not path.name.startswith(".") for path in base.iterdir())


def test_entries_used_least_recently_go(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "3.5MB")
    sources = [Source(value) for value in range(5)]
    mapped = [source.load() for source in sources[:3]]
    for place, notes in enumerate(sorted(base.glob("x-*/notes.json"), key=os.path.getmtime)):
        os.utime(notes, (place, place))
    sources[0].load()  # used last now
    sources[3].load()
    assert entries(base) == {0, 2, 3}
    sources[4].load()
    assert entries(base) == {0, 3, 4}
    assert total(base) <= 3.5e6
    assert all((samples == value).all() for value, samples in enumerate(mapped))  # still mapped
    sources[1].load()
    assert sources[1].made == 2


def test_entries_of_earlier_versions_count_and_go(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "2MB")
    old = base / "imagefolder-train-64-0123456789abcdef"
    old.mkdir(parents=True)
    (old / "samples.npy").write_bytes(bytes(VALUES))
    os.utime(old / "samples.npy", (0, 0))
    Source().load()
    assert not old.exists()


def test_more_than_the_limit_is_not_kept(
    base: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "1MB")
    small, large = Source(1, 1 << 10), Source(2)
    small.load()
    samples = large.load()
    assert isinstance(samples, np.memmap)  # of a file that has no name any more
    assert entries(base) == {1}
    assert total(base) < 1e4
    assert any("more than the cache's 1.0 MB in all" in line for line in lines)
    assert any(f"{VARIABLE}=1GB" in line for line in lines)


@pytest.mark.parametrize("value", ["off", "0", "OFF", " 0GB "])
def test_off_keeps_nothing(base: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(VARIABLE, value)
    source = Source()
    source.load()
    source.load()
    assert source.made == 2
    assert not base.exists()


@pytest.mark.parametrize(
    ("value", "limit"),
    [("", 4e9), ("10", 10e9), ("2.5GB", 2.5e9), ("500 mb", 500e6), ("1TB", 1e12), ("64kb", 64e3)],
)
def test_limits(monkeypatch: pytest.MonkeyPatch, value: str, limit: float) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert cache_limit() == limit


@pytest.mark.parametrize("value", ["lots", "-1", "nan", "inf", "10 bananas", "GB", "on"])
def test_illegal_limits_are_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(DataError, match=f"QUANTDATA_CACHE = '{value}' must be off, or a size"):
        Source().load()


@pytest.mark.parametrize("name", ["samples.npy", "rows.npy", "notes.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "half", "other"])
def test_an_entry_that_is_not_whole_is_made_again(base: Path, name: str, damage: str) -> None:
    source = Source()
    source.load()
    (file,) = base.glob(f"x-*/{name}")
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(
            {"empty": b"", "half": content[: len(content) // 2], "other": b"[1]"}[damage]
        )
    source.load()
    source.load()
    assert source.made == 2


CRASH = """
import os, signal, sys
import numpy as np
from fl_app import cache
def build(allocate):
    samples = allocate((4, 1 << 18), np.uint8)
    samples[:2] = 1
    os.kill(os.getpid(), signal.SIGKILL)
def finish(part, decoded):
    os.kill(os.getpid(), signal.SIGKILL)
def whole(allocate):
    return cache.Decoded(allocate((4, 1 << 18), np.uint8), np.arange(4), {})
if sys.argv[1] == "decode":
    cache.cached("x", (1, 1 << 20), build)
cache._finish = finish
cache.cached("x", (1, 1 << 20), whole)
"""


@pytest.mark.parametrize("stage", ["decode", "finish"])
def test_a_crash_leaves_nothing_for_long(base: Path, stage: str) -> None:
    done = subprocess.run([sys.executable, "-c", CRASH, stage], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert any(path.name.endswith(".part") for path in base.iterdir())
    Source(2).load()  # whoever comes next
    assert [path.name[0] for path in base.iterdir()] == ["x"]
    assert entries(base) == {2}
    Source(1).load()


def test_leftovers_of_an_eviction_and_of_earlier_versions_go(base: Path) -> None:
    source = Source()
    source.load()
    for name in (".x-0123.gone", ".tmpabcd/entry"):
        (base / name).mkdir(parents=True)
    source.load()
    assert [path.name[0] for path in base.iterdir()] == ["x"]


def test_a_part_that_is_being_written_stays(base: Path) -> None:
    class Slow(Source):
        def __call__(self, allocate: Allocate) -> Decoded:
            started.set()
            assert go_on.wait(20)
            return super().__call__(allocate)

    started, go_on, slow = threading.Event(), threading.Event(), Slow(1)
    threads = [threading.Thread(target=slow.load) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.wait(20)
    Source(2).load()
    assert any(path.name.endswith(".part") for path in base.iterdir())
    time.sleep(0.2)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert slow.made == 1  # the others waited
    assert entries(base) == {1, 2}
    assert all(path.name.startswith("x") for path in base.iterdir())


def test_an_error_of_the_source_leaves_no_trace(base: Path) -> None:
    def fail(allocate: Allocate) -> Decoded:
        allocate((1 << 10,), np.uint8)
        raise DataError("no images")

    with pytest.raises(DataError, match="no images"):
        cached("x", 0, fail)
    assert list(base.iterdir()) == []


def test_a_full_disk_costs_the_cache_only(
    base: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert not isinstance(Source().load(), np.memmap)
    assert [line for line in lines if "no cache" in line and "No space left" in line]
    assert list(base.iterdir()) == []


def test_space_is_taken_before_it_is_written(tmp_path: Path) -> None:
    """A hole in a file on a full disk kills the process that writes to it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (VALUES // 2, limits[1]))
    try:
        assert not isinstance(Source().load(), np.memmap)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("obstacle", ["file", "not a folder", "no home"])
def test_a_place_that_cannot_be_used_costs_the_cache_only(
    base: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], obstacle: str
) -> None:
    if obstacle == "file":
        base.write_text("")
    elif obstacle == "not a folder":
        monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
    Source().load()
    assert len([line for line in lines if "no cache" in line]) == 1


def test_a_cache_that_may_only_be_read_is_read(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source()
    source.load()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    source.load()
    assert source.made == 1


def test_an_entry_may_be_evicted_at_any_time(base: Path) -> None:
    """Others load while entries vanish; nobody fails or sees half of one."""
    stop = threading.Event()

    def evict() -> None:
        while not stop.is_set():
            cache._evict(base, 0)

    source = Source(1, 1 << 12)
    source.load()
    thread = threading.Thread(target=evict)
    thread.start()
    try:
        for _ in range(50):
            source.load()
    finally:
        stop.set()
        thread.join(20)
    shutil.rmtree(base)
