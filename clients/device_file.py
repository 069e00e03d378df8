"""What a device remembers, in a small SQLite file that outlives its processes and its runs.

One file for each bank, shared by all SuperNodes of a machine: what any of them has delivered, all
of them know. A node writes one transaction a round, before its reply leaves.
"""

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from logging import WARNING
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flwr.common import log

from clients.memory import Memory, among, no_prints
from codec import CodecError
from codec.disk import hold, sync_folder

T = TypeVar("T")

FOLDER = "flwr-quantized-data"
VERSION = 1
_APPLICATION = 0x51444D31  # "QDM1", in the file's header
_BUSY_SECONDS = 30.0
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_COLUMNS = (
    *("items", "by-key", "keys", "known", "prints", "useless", "verified"),
    *("pending", "receipt", "refused", "scope", "salt", "notes"),
)
_REMEDY = "name a folder that can be written, as state-dir in the node's config or state_dir="
_CHECK_BYTES = 8
_NAMES = ", ".join(f'"{name}"' for name in (*_COLUMNS, "check"))
_SCHEMA = (
    "create table delivered (print integer primary key)",
    f"create table nodes (node text primary key, owner blob, written integer, {_NAMES})",
    f"pragma application_id = {_APPLICATION}",
    f"pragma user_version = {VERSION}",
)


class DeviceFileError(CodecError):
    """A file in which a device remembers what it sent, and that cannot be used; says what to do."""


@dataclass(frozen=True)
class Device:
    """Where a device keeps its memory, and who it is.

    Attributes
    ----------
    folder : Path
    node : str
        Id of its node, which a restart may change.
    owner : bytes
        Digest of what stays when the node's id changes.
    """

    folder: Path
    node: str
    owner: bytes

    @classmethod
    def of(
        cls, node_id: int, node_config: Mapping[str, Any], folder: str | Path | None
    ) -> "Device":
        """Return the device that runs a node; `folder` None: the user's own for such files.

        Raises
        ------
        DeviceFileError
            If the user has no home.
        """
        told = repr(sorted((key, str(value)) for key, value in node_config.items()))
        owner = hashlib.blake2b(told.encode(), digest_size=8).digest()
        place = Path(folder).expanduser() if folder else state_folder()
        return cls(place, str(node_id), owner)


def state_folder() -> Path:
    """Return where a device remembers what it sent, unless it is told otherwise.

    Raises
    ------
    DeviceFileError
        If the user has no home.
    """
    base = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".local" / "state") / FOLDER
    except RuntimeError as error:
        raise DeviceFileError(f"{error}; {_REMEDY}") from error


class DeviceFile:
    """The file in which a device remembers what it sent to one bank; made when it is first written.

    A damaged file is set aside under another name, and a new one is begun. What it alone knew is
    sent again, and dropped by the server, which knows it by its fingerprints.

    Parameters
    ----------
    device : Device
    bank : bytes
        Id of the bank.

    Attributes
    ----------
    notes : tuple of str
        What the user should be told.
    """

    def __init__(self, device: Device, bank: bytes) -> None:
        self.path = device.folder / f"{bank.hex()}.sqlite"
        self.notes: tuple[str, ...] = ()
        self._device = device
        self._known = no_prints()

    def read(self, *, is_new: bool = True) -> Memory:
        """Return what the device remembers.

        Parameters
        ----------
        is_new : bool
            Whether the node knows nothing of its own. If the file does not know it either, it
            takes over what another node of the same device has left: after a restart without
            a key a device comes back as a new node.

        Raises
        ------
        DeviceFileError
            If the file is another program's, of a later version, or cannot be read or written.
        """
        return self._run(lambda connection: self._read(connection, is_new))

    def write(self, memory: Memory) -> None:
        """Remember, in one transaction that is on the disk when this returns.

        Raises
        ------
        DeviceFileError
            As `read`.
        """
        self._run(lambda connection: self._write(connection, memory))

    def _read(self, connection: sqlite3.Connection, is_new: bool) -> Memory:
        rows = connection.execute("select print from delivered")
        delivered = np.fromiter((print_ for (print_,) in rows), np.int64).view(np.uint64)
        self._known = np.sort(delivered)
        memory = Memory()
        row = self._row(connection, is_new)
        if row is not None:
            node, *values, check = row
            columns = dict(zip(_COLUMNS, values, strict=True))
            if _digest(columns) == check:
                memory = Memory.from_columns(columns)
            else:
                log(WARNING, "%s: the record of node %s is damaged: not used", self.path, node)
        return replace(memory, delivered=self._known)

    def _row(self, connection: sqlite3.Connection, is_new: bool) -> tuple[Any, ...] | None:
        """Return the node's row, which may be what another one of the device has left."""
        node, owner = self._device.node, self._device.owner
        query = f"select node, {_NAMES} from nodes"
        with _transaction(connection):
            row = connection.execute(f"{query} where node = ?", (node,)).fetchone()
            if row is None and is_new:
                last = f"{query} where owner = ? order by written desc limit 1"
                row = connection.execute(last, (owner,)).fetchone()
                if row is not None:
                    # written 0: of several that come back, each takes another's
                    change = "update nodes set node = ?, written = 0 where node = ?"
                    connection.execute(change, (node, row[0]))
        return row  # type: ignore[no-any-return]  # as sqlite3 declares it

    def _write(self, connection: sqlite3.Connection, memory: Memory) -> None:
        new = memory.delivered[~among(memory.delivered, self._known)].view(np.int64)
        columns = memory.to_columns()
        values = [columns[name] for name in _COLUMNS]
        written = "(select coalesce(max(written), 0) + 1 from nodes)"
        marks = ", ".join("?" * (len(values) + 1))
        with _transaction(connection):
            rows = ((print_,) for print_ in new.tolist())
            connection.executemany("insert or ignore into delivered values (?)", rows)
            connection.execute(
                f"insert or replace into nodes values (?, ?, {written}, {marks})",
                (self._device.node, self._device.owner, *values, _digest(columns)),
            )

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Open the file, do some work, and close it; once more on a new file if it is damaged."""
        try:
            try:
                return self._opened(work)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
            self._set_aside()
            self._known = no_prints()
            return self._opened(work)
        except (sqlite3.Error, OSError) as error:
            raise DeviceFileError(f"{self.path}: {_reason(error)}; {_REMEDY}") from error

    def _opened(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with contextlib.closing(self._connect()) as connection:
            return work(connection)

    def _connect(self) -> sqlite3.Connection:
        if not self.path.exists():
            _make_folder(self.path.parent)
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            connection.execute("pragma synchronous = full")
            if self._is_new(connection):
                with _alone(self.path):
                    if self._is_new(connection):
                        connection.execute("pragma journal_mode = wal")
                        with _transaction(connection):
                            for statement in _SCHEMA:
                                connection.execute(statement)
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_new(self, connection: sqlite3.Connection) -> bool:
        """Whether the file is empty; `DeviceFileError` if it is none that this version wrote."""
        (application,) = connection.execute("pragma application_id").fetchone()
        (version,) = connection.execute("pragma user_version").fetchone()
        if (application, version) == (_APPLICATION, VERSION):
            return False
        (tables,) = connection.execute("select count(*) from sqlite_master").fetchone()
        if not (application or version or tables):
            return True
        if application != _APPLICATION:
            raise DeviceFileError(f"{self.path} is a file of another program; {_REMEDY}")
        raise DeviceFileError(
            f"{self.path} is of version {version}, this code reads version {VERSION}: update it, "
            f"or {_REMEDY}"
        )

    def _set_aside(self) -> None:
        with _alone(self.path):
            if not self._is_damaged():  # another process was faster
                return
            number = 1
            while (aside := self.path.with_suffix(f".damaged{number}")).exists():
                number += 1
            for ending in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self.path}{ending}", f"{aside}{ending}")
        text = (
            f"{self.path} was damaged and is now {aside.name}: what the device has sent to this "
            "bank may be sent once more, and is then dropped by the server"
        )
        log(WARNING, text)
        self.notes = (*self.notes, text)

    def _is_damaged(self) -> bool:
        try:
            with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
                (found,) = connection.execute("pragma integrity_check(1)").fetchone()
                return bool(found != "ok")
        except sqlite3.DatabaseError as error:
            return _is_damage(error)


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _DAMAGED


def _reason(error: Exception) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"held by another process for {_BUSY_SECONDS:g} s"
    return f"cannot be read or written: {error}"


def _digest(columns: Mapping[str, Any]) -> bytes:
    digest = hashlib.blake2b(digest_size=_CHECK_BYTES)
    for name in _COLUMNS:
        value = columns[name]
        data = value if isinstance(value, bytes) else str(value).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("rollback")
        raise


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file's folder, for what SQLite's own locks do not guard."""
    with open(path.parent / ".lock", "w", encoding="utf-8") as lock:
        hold(lock.fileno(), wait=True)
        yield


def _make_folder(folder: Path) -> None:
    """Make a folder that is there after a power cut, too."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in made:
        sync_folder(place.parent)
