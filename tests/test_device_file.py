"""The file of a device: durable, shared, refused if it is another's, set aside if damaged."""

import os
import resource
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clients import device_file
from clients.device_file import VERSION, Device, DeviceFile, DeviceFileError, state_folder
from clients.memory import Items, Memory

BANK = b"the bank"
ROOT = Path(__file__).parents[1]


def device(place: Path, node: int = 1, **config: str | int) -> Device:
    return Device.of(node, config, place)


def memory(*delivered: int, pending: tuple[int, ...] = (), sequence: int = 1) -> Memory:
    numbers = np.array(delivered, np.uint64)
    flags = np.zeros((2, len(delivered)), bool)
    return Memory(
        delivered=numbers,
        pending=np.array(pending, np.uint64),
        receipt=b"receipt1",
        items=Items(numbers, flags[0], flags[1]),
        scope=b"scope",
        sequence=sequence,
    )


def test_what_is_written_is_read_by_another_process(tmp_path: Path) -> None:
    high = 2**64 - 5
    DeviceFile(device(tmp_path), BANK).write(memory(1, 2**63, high, pending=(9, high - 1)))
    script = """
import sys; from pathlib import Path
from clients.device_file import Device, DeviceFile
found = DeviceFile(Device.of(1, {}, Path(sys.argv[1])), b"the bank").read()
print(found.delivered.tolist(), found.pending.tolist(), found.unsettled, found.sequence)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[0] == f"[1, {2**63}, {high}] [9, {high - 1}] b'receipt1' 1"


def test_banks_have_files_of_their_own(tmp_path: Path) -> None:
    DeviceFile(device(tmp_path), BANK).write(memory(1))
    assert not len(DeviceFile(device(tmp_path), b"another.").read().delivered)


def test_nodes_of_one_machine_share_what_was_delivered_and_nothing_else(tmp_path: Path) -> None:
    nodes = [DeviceFile(device(tmp_path, k, folder=k), BANK) for k in (1, 2)]
    for node in nodes:
        node.read()
    nodes[0].write(memory(1, 2, pending=(5,)))
    nodes[1].write(memory(3, pending=(6,)))
    found = [node.read() for node in nodes]
    assert [one.delivered.tolist() for one in found] == [[1, 2, 3], [1, 2, 3]]
    assert [one.pending.tolist() for one in found] == [[5], [6]]


def test_a_device_that_comes_back_as_another_node_takes_over_what_it_left(tmp_path: Path) -> None:
    DeviceFile(device(tmp_path, 1, folder="a"), BANK).write(memory(1, pending=(5,)))
    DeviceFile(device(tmp_path, 2, folder="b"), BANK).write(memory(2, pending=(6,)))
    back = DeviceFile(device(tmp_path, 3, folder="a"), BANK).read()
    assert (back.pending.tolist(), back.delivered.tolist()) == ([5], [1, 2])
    assert DeviceFile(device(tmp_path, 3, folder="a"), BANK).read().pending.tolist() == [5]


def test_of_several_that_come_back_each_takes_over_another_one(tmp_path: Path) -> None:
    for node in (1, 2):
        DeviceFile(device(tmp_path, node), BANK).write(memory(node, pending=(4 + node,)))
    back = [DeviceFile(device(tmp_path, node), BANK).read() for node in (3, 4)]
    assert sorted(one.pending.tolist() for one in back) == [[5], [6]]


def test_a_node_that_knows_what_it_sent_takes_over_nothing(tmp_path: Path) -> None:
    DeviceFile(device(tmp_path, 1), BANK).write(memory(1, pending=(5,)))
    back = DeviceFile(device(tmp_path, 2), BANK).read(is_new=False)
    assert not len(back.pending) and back.delivered.tolist() == [1]


def test_nodes_write_at_the_same_time(tmp_path: Path) -> None:
    script = """
import sys; from pathlib import Path; import numpy as np
from clients.device_file import Device, DeviceFile
from clients.memory import Memory
node = int(sys.argv[2])
file = DeviceFile(Device.of(node, {"partition-id": node}, Path(sys.argv[1])), b"the bank")
for number in range(12):
    known = file.read()
    new = np.array([1000 * node + number], np.uint64)
    pending = np.array([node], np.uint64)
    delivered = np.union1d(known.delivered, new)
    file.write(Memory(delivered, pending, b"receipt1", sequence=number + 1))
"""
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(node)], cwd=ROOT)
        for node in range(3)
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    found = DeviceFile(device(tmp_path, 0, **{"partition-id": 0}), BANK).read()
    assert found.delivered.tolist() == [1000 * n + k for n in range(3) for k in range(12)]
    assert found.sequence == 12


DAMAGES = {
    "no database": lambda data: b"not a database at all" * 300,
    "torn": lambda data: data[:5000],
    "overwritten": lambda data: data[:4096] + b"\xff" * (len(data) - 4096),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("when", ["read", "write"])
def test_a_damaged_file_is_set_aside_and_said_to_be(damage: str, when: str, tmp_path: Path) -> None:
    file = DeviceFile(device(tmp_path), BANK)
    file.write(memory(*range(1, 2000), pending=(5000,)))
    known = file.read()
    damaged = DAMAGES[damage](file.path.read_bytes())
    file.path.write_bytes(damaged)
    if when == "read":
        assert not len(file.read().delivered)
    file.write(replace(known, sequence=2))
    aside = file.path.with_suffix(".damaged1")
    assert aside.read_bytes() == damaged  # nothing is thrown away
    assert len(file.notes) == 1 and f"is now {aside.name}" in file.notes[0]
    again = DeviceFile(device(tmp_path), BANK).read()
    assert again.delivered.tolist() == known.delivered.tolist()
    assert again.pending.tolist() == [5000]


def test_a_record_that_was_altered_is_not_used(tmp_path: Path) -> None:
    file = DeviceFile(device(tmp_path), BANK)
    file.write(memory(1, 2, pending=(5,)))
    with sqlite3.connect(file.path) as connection:
        connection.execute("update nodes set pending = ?", (np.array([6], np.uint64).tobytes(),))
    connection.close()
    found = file.read()
    assert not len(found.pending) and found.delivered.tolist() == [1, 2]


def test_the_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    file = DeviceFile(device(tmp_path), BANK)
    with sqlite3.connect(file.path) as connection:
        connection.execute("create table photographs (name text)")
    connection.close()
    before = file.path.read_bytes()
    with pytest.raises(DeviceFileError, match=r"is a file of another program; name a folder"):
        file.read()
    assert file.path.read_bytes() == before


def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    file = DeviceFile(device(tmp_path), BANK)
    file.write(memory(1))
    with sqlite3.connect(file.path) as connection:
        connection.execute(f"pragma user_version = {VERSION + 1}")
    connection.close()
    told = f"is of version {VERSION + 1}, this code reads version {VERSION}: update it"
    with pytest.raises(DeviceFileError, match=told):
        file.read()


def test_a_place_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    file = DeviceFile(device(tmp_path / "file" / "below"), BANK)
    with pytest.raises(DeviceFileError, match=r"cannot be read or written: .*state-dir in the"):
        file.read()


def test_a_full_disk_is_an_error_and_nothing_is_forgotten(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: what was remembered before still is."""
    script = """
import resource, signal, sys; from pathlib import Path; import numpy as np
from clients.device_file import Device, DeviceFile, DeviceFileError
from clients.memory import Memory
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = DeviceFile(Device.of(1, {}, Path(sys.argv[1])), b"the bank")
file.write(Memory(np.arange(1, 50, dtype=np.uint64), sequence=1))
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    file.write(Memory(np.arange(1, 50_000, dtype=np.uint64), sequence=2))
except DeviceFileError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "cannot be read or written" in done.stdout and "state-dir" in done.stdout
    found = DeviceFile(device(tmp_path), BANK).read()
    assert found.delivered.tolist() == list(range(1, 50)) and found.sequence == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 40_000


def test_a_file_that_is_held_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DeviceFile(device(tmp_path), BANK)
    file.write(memory(1))
    monkeypatch.setattr(device_file, "_BUSY_SECONDS", 0.1)
    holder = sqlite3.connect(file.path, isolation_level=None)
    holder.execute("begin immediate")
    with pytest.raises(DeviceFileError, match=r"held by another process for 0.1 s"):
        file.write(memory(2))
    holder.close()
    file.write(memory(2))


@pytest.mark.parametrize("named", ["", "/var/devices"])
def test_the_folder_follows_the_standard(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", named)
    expected = Path(named) if named else Path.home() / ".local" / "state"
    assert state_folder() == expected / "flwr-quantized-data"


def test_a_device_without_a_home_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(DeviceFileError, match=r"home directory.*state-dir"):
        state_folder()


def test_the_owner_is_what_stays_of_a_node(tmp_path: Path) -> None:
    one = device(tmp_path, 1, folder="a")
    assert one.owner == device(tmp_path, 2, folder="a").owner
    assert one.owner != device(tmp_path, 1, folder="b").owner
    assert device(tmp_path).folder == tmp_path and os.path.isdir(tmp_path)
