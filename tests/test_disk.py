"""Locks that end with their process."""

import subprocess
import sys
from pathlib import Path

import pytest

from codec.disk import hold, sync_folder

_HOLDS = """
import sys
from codec.disk import hold
file = open(sys.argv[1], "a")
hold(file.fileno())
print("held", flush=True)
sys.stdin.read()
"""


def test_a_file_has_one_holder_until_that_is_killed(tmp_path: Path) -> None:
    place = tmp_path / "lock"
    command = [sys.executable, "-c", _HOLDS, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with place.open("a") as file:
            with pytest.raises(BlockingIOError):
                hold(file.fileno())
            other.kill()
            hold(file.fileno(), wait=True)


def test_a_folder_is_synced_and_one_that_is_not_there_is_said(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "none")
