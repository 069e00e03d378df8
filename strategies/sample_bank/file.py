"""A bank's file: an SQLite database in which each reply is one transaction.

::

    meta     id of the bank, and what is told of its samples
    reply    one row a reply: who sent it, its receipt, and its place among those of the bank
    payload  one row a payload: its bytes as they came, and which of its samples were dropped

A row's ``checksum`` is a CRC-32 of its other columns, but for the payload's bytes. Those have a
digest in a column: a payload ends with its own CRC-32, so that a CRC-32 over it is always the same.
A reply without a place waits; see `SampleBank.hold_back`.
"""

import contextlib
import hashlib
import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from codec import CodecError, SampleSpec
from codec.coding.cursor import Reader
from codec.disk import hold, sync_folder
from codec.identity import BANK_BYTES
from strategies.errors import BankError, BankFull
from strategies.sample_bank.records import Origin, StoredReply

APPLICATION_ID = 0x51444231  # "QDB1"
VERSION = 1
LOCK_SUFFIX = ".lock"

_SCHEMA = """
CREATE TABLE meta (
    key      TEXT PRIMARY KEY,
    value    BLOB NOT NULL,
    checksum INTEGER NOT NULL
);
CREATE TABLE reply (
    id             INTEGER PRIMARY KEY,
    place          INTEGER,          -- from 1 in the order of the bank; NULL: waits
    receipt        BLOB NOT NULL UNIQUE,
    node_id        TEXT NOT NULL,    -- unsigned, of 64 bits: too large for SQLite's integers
    client         INTEGER NOT NULL,
    round          INTEGER NOT NULL,
    strategy       TEXT NOT NULL,
    variance_kept  REAL NOT NULL,
    remaining      INTEGER NOT NULL,
    content_bytes  INTEGER NOT NULL,
    envelope_bytes INTEGER NOT NULL,
    count          INTEGER NOT NULL, -- samples, duplicates among them
    checksum       INTEGER NOT NULL
);
CREATE INDEX reply_place ON reply (place);
CREATE TABLE payload (
    id       INTEGER PRIMARY KEY,
    reply    INTEGER NOT NULL REFERENCES reply (id),
    number   INTEGER NOT NULL,       -- within its reply, from 0
    spec     BLOB NOT NULL,
    count    INTEGER NOT NULL,
    tags     BLOB NOT NULL,          -- fingerprints of the samples, or their first bytes
    marks    BLOB NOT NULL,          -- two bytes of each target, where there are tags
    sketches BLOB NOT NULL,          -- 16 bytes of each sample, which tell most others from it
    dropped  BLOB NOT NULL,          -- a bit for each sample, 1: a duplicate; empty: none is
    digest   BLOB NOT NULL,          -- of the data: BLAKE2b, 8 bytes
    checksum INTEGER NOT NULL,
    data     BLOB NOT NULL,          -- last, so that the others are read without it
    UNIQUE (reply, number)
);
"""
_REPLY = (
    "id, place, receipt, node_id, client, round, strategy, variance_kept, remaining, "
    "content_bytes, envelope_bytes, count"
)
_PAYLOAD = "id, reply, number, spec, count, tags, marks, sketches, dropped, digest"
_DIGEST_BYTES = 8
_BUSY_SECONDS = 30.0
_LITTLE_ROOM = 1 << 20  # bytes: with less, a failed write is taken for a full disk

Column = int | float | str | bytes | None


@dataclass(frozen=True)
class NewPayload:
    """A payload that is to be kept: its bytes, and which of its samples are dropped."""

    data: bytes
    spec: SampleSpec
    count: int
    tags: bytes
    marks: NDArray[np.uint16]
    sketches: bytes
    dropped: NDArray[np.bool_]


@dataclass(frozen=True)
class ReplyRow:
    """A reply in the file; `place` None: it waits."""

    id: int
    place: int | None
    count: int
    origin: Origin

    @property
    def stored(self) -> StoredReply:
        """Return it as a bank shows it to others."""
        of = self.origin
        return StoredReply(
            of.client, of.node_id, of.server_round, of.receipt, self.count, of.remaining,
            of.content_bytes, of.envelope_bytes,
        )  # fmt: skip


@dataclass(frozen=True)
class PayloadRow:
    """A payload in the file, without its bytes.

    Attributes
    ----------
    id, reply, number : int
        Rows of payload and reply, and the place in that.
    spec : SampleSpec
    count, nbytes : int
        Samples, and bytes of the payload.
    tags : bytes
        Of the samples.
    marks : (count,) uint16 array
        Of their targets; zeros where there are no tags.
    sketches : bytes
        See `duplicates.sketches_of`; empty where none are needed.
    dropped : (count,) bool array
        Which samples are duplicates.
    digest : bytes
        Of the payload.
    """

    id: int
    reply: int
    number: int
    spec: SampleSpec
    count: int
    tags: bytes
    marks: NDArray[np.uint16]
    sketches: bytes
    dropped: NDArray[np.bool_]
    digest: bytes
    nbytes: int


class BankFile:
    """Reads a bank's file, and writes it.

    Parameters
    ----------
    path : Path
        Made, with its folder, where it is written to and is not there.
    writable : bool
        One process at a time may write; others may read meanwhile.

    Raises
    ------
    BankError
        If it is no bank, of another version, damaged, or written to by another process.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path.expanduser().resolve()
        self._lock: int | None = None
        if self.path.is_dir():
            raise BankError(f"bank {self.path} is a folder: name a file in it")
        if writable:
            self._lock = _locked(self.path)
        elif not self.path.is_file():
            raise BankError(f"there is no bank {self.path}: name the file that a run has written")
        try:
            self._db = self._connected(writable=writable)
            with self._told():
                self._prepare(writable=writable)
            self._meta = dict(self._read_meta())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the file free; without readers it is then one file, to copy and to keep."""
        with contextlib.suppress(AttributeError, sqlite3.Error):  # no connection; a reader
            if self._lock is not None:
                self._db.execute("PRAGMA busy_timeout = 0")
                self._db.execute("PRAGMA journal_mode = DELETE")
        with contextlib.suppress(AttributeError):
            self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def id(self) -> bytes:
        """What the bank is known by."""
        return bytes(self._meta["id"])

    def told(self, key: str) -> str:
        """Return what was told of the samples under a key; empty if nothing was."""
        return self._meta.get(key, b"").decode()

    def tell(self, key: str, value: str) -> None:
        """Keep what is to be known of the samples."""
        if self.told(key) == value:
            return
        with self._transaction() as db:
            _insert_meta(db, key, value.encode())
        self._meta[key] = value.encode()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the labels, if they were told."""
        names = self.told("class-names")
        return tuple(names.split("\n")) if names else ()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """See one state of the file, whatever is written meanwhile."""
        with self._told():
            self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    def add(self, origin: Origin, place: int, payloads: Sequence[NewPayload]) -> list[int]:
        """Keep a reply, all of it or nothing; return the rows of its payloads."""
        count = sum(payload.count for payload in payloads)
        values: tuple[Column, ...] = (
            place, origin.receipt, str(int(origin.node_id)), int(origin.client),
            int(origin.server_round), origin.strategy, float(origin.variance_kept),
            int(origin.remaining), int(origin.content_bytes), int(origin.envelope_bytes), count,
        )  # fmt: skip
        rows = []
        with self._transaction() as db:
            reply = _next_row(db, "reply")
            _insert(db, "reply", _REPLY, (reply, *values))
            for number, payload in enumerate(payloads):
                row = _next_row(db, "payload")
                digest = _digest(payload.data)
                shown = (
                    row, reply, number, payload.spec.to_bytes(), payload.count, payload.tags,
                    _mark_bytes(payload),
                    payload.sketches, _to_bits(payload.dropped), digest,
                )  # fmt: skip
                _insert(db, "payload", _PAYLOAD, shown, ("data", payload.data))
                rows.append(row)
        return rows

    def replies(self) -> Iterator[ReplyRow]:
        """Return the replies: those of the bank in their order, then those that wait."""
        with self._told():
            for values in self._db.execute(
                f"SELECT {_REPLY}, checksum FROM reply ORDER BY place IS NULL, place, id"
            ):
                yield self._reply_of(values)

    def reply(self, receipt: bytes) -> ReplyRow | None:
        """Return the reply with a receipt."""
        with self._told():
            values = self._db.execute(
                f"SELECT {_REPLY}, checksum FROM reply WHERE receipt = ?", (receipt,)
            ).fetchone()
        return self._reply_of(values) if values else None

    def payloads(self, reply: int | None = None) -> Iterator[PayloadRow]:
        """Return the payloads, of a reply or of all, in the order of `replies`."""
        columns = ", ".join(f"payload.{name}" for name in _PAYLOAD.split(", "))
        asked = (
            f"SELECT {columns}, payload.checksum, length(data) FROM payload "
            "JOIN reply ON reply.id = payload.reply"
        )
        order = "ORDER BY place IS NULL, place, reply.id, number"
        with self._told():
            if reply is None:
                found = self._db.execute(f"{asked} {order}")
            else:
                found = self._db.execute(f"{asked} WHERE reply.id = ? {order}", (reply,))
            for values in found:
                yield self._payload_of(values)

    def sketches(self, row: int) -> bytes:
        """Return the sketches of a payload's samples."""
        with self._told():
            asked = "SELECT sketches FROM payload WHERE id = ?"
            return bytes(self._db.execute(asked, (row,)).fetchone()[0])

    def rows(self, table: str) -> list[int]:
        """Return the numbers of the rows of a table, whatever state they are in."""
        with self._told():
            return [row for (row,) in self._db.execute(f"SELECT id FROM {table} ORDER BY id")]

    def reply_row(self, row: int) -> ReplyRow:
        """Return a reply by its row."""
        with self._told():
            asked = f"SELECT {_REPLY}, checksum FROM reply WHERE id = ?"
            return self._reply_of(self._db.execute(asked, (row,)).fetchone())

    def payload_row(self, row: int) -> PayloadRow:
        """Return a payload by its row."""
        with self._told():
            asked = f"SELECT {_PAYLOAD}, checksum, length(data) FROM payload WHERE id = ?"
            return self._payload_of(self._db.execute(asked, (row,)).fetchone())

    def structure(self) -> list[str]:
        """Return what SQLite finds wrong with the file, and what refers to nothing."""
        with self._told():
            told = [text for (text,) in self._db.execute("PRAGMA integrity_check")]
            lost = self._db.execute("PRAGMA foreign_key_check").fetchall()
        return [text for text in told if text != "ok"] + [
            f"{table} {row} belongs to no {parent}" for table, row, parent, _ in lost
        ]

    def remove(self, payloads: Sequence[int]) -> None:
        """Remove payloads, and the room that the file does not need."""
        with self._transaction() as db:
            db.executemany("DELETE FROM payload WHERE id = ?", [(row,) for row in payloads])
        with self._told():
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def data(self, row: int) -> bytes:
        """Return a payload's bytes."""
        with self._told():
            found = self._db.execute("SELECT digest, data FROM payload WHERE id = ?", (row,))
            digest, data = found.fetchone() or (b"", None)
        if not isinstance(data, bytes) or _digest(data) != digest:
            raise self.damaged(f"payload {row} is not what was written")
        return data

    def hold_back(self, replies: int) -> None:
        """Take their place from all but the first replies."""
        later = [row for row in self.replies() if row.place is not None and row.place > replies]
        with self._transaction() as db:
            for row in later:
                self._set_place(db, row, None)

    def admit(
        self, row: ReplyRow, place: int, dropped: Iterable[tuple[PayloadRow, NDArray[np.bool_]]]
    ) -> None:
        """Give a reply its place, and its payloads what of them is dropped."""
        with self._transaction() as db:
            self._set_place(db, row, place)
            for payload, mask in dropped:
                shown = (
                    payload.id, payload.reply, payload.number, payload.spec.to_bytes(),
                    payload.count, payload.tags, _mark_bytes(payload),
                    payload.sketches, _to_bits(mask),
                    payload.digest,
                )  # fmt: skip
                db.execute(
                    "UPDATE payload SET dropped = ?, checksum = ? WHERE id = ?",
                    (_to_bits(mask), checksum(*shown), payload.id),
                )

    def damaged(self, what: str) -> BankError:
        """Return the error that says what of the file is damaged, and what to do."""
        return BankError(
            f"bank {self.path} is damaged: {what}; `python -m sim bank check {self.path}` lists "
            "what is whole"
        )

    def _connected(self, *, writable: bool) -> sqlite3.Connection:
        mode = "rwc" if writable else "ro"
        with self._told():
            # What uses the bank calls it from one thread at a time, if not always from the same.
            return sqlite3.connect(
                f"file:{quote(str(self.path))}?mode={mode}",
                uri=True,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )

    def _prepare(self, *, writable: bool) -> None:
        """Check that it is a bank; make one of a new file."""
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        new = not (application or version or tables)
        if new and not writable:
            raise BankError(f"bank {self.path} is empty: nothing was ever written to it")
        if not new and application != APPLICATION_ID:
            raise BankError(
                f"{self.path} is a database, but no bank: name another file, or remove it"
            )
        if not new and version != VERSION:
            raise BankError(
                f"bank {self.path} is of version {version}; this program reads version {VERSION}: "
                "use the program that has written it"
            )
        if writable:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
        if new:
            self._create()

    def _create(self) -> None:
        with self._transaction() as db:
            for statement in _SCHEMA.split(";\n"):
                db.execute(statement)
            _insert_meta(db, "id", os.urandom(BANK_BYTES))
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {VERSION}")
        sync_folder(self.path.parent)

    def _read_meta(self) -> Iterator[tuple[str, bytes]]:
        with self._told():
            rows = self._db.execute("SELECT key, value, checksum FROM meta").fetchall()
        for key, value, check in rows:
            if checksum(key, value) != check:
                raise self.damaged(f"what it says of {key!r} is not what was written")
            yield key, value
        if not any(key == "id" for key, *_ in rows):
            raise self.damaged("its id is missing")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # it may have rolled back by itself
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what an error of SQLite means for the bank."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._error_of(error) from error

    def _error_of(self, error: sqlite3.Error) -> BankError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        named = f"bank {self.path}"
        if code == sqlite3.SQLITE_FULL or (
            code == sqlite3.SQLITE_IOERR and shutil.disk_usage(self.path.parent).free < _LITTLE_ROOM
        ):
            return BankFull(f"{named}: the disk is full; make room: nothing of a reply was kept")
        if code == sqlite3.SQLITE_NOTADB:
            return BankError(f"{self.path} is no bank: name another file, or remove it")
        if code == sqlite3.SQLITE_CORRUPT:
            return self.damaged(str(error))
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return BankError(f"{named} is in use by another program: {error}; wait until it ends")
        return BankError(f"{named} cannot be used: {error}; see that folder and disk are usable")

    def _reply_of(self, values: Sequence[Any]) -> ReplyRow:
        *shown, check = values
        if checksum(*shown) != check:
            raise self.damaged(f"reply {shown[0]} is not what was written")
        row, place, receipt, node, client, server_round, strategy, kept, *numbers, count = shown
        remaining, content, envelope = numbers
        origin = Origin(
            receipt=receipt, node_id=int(node), client=client, server_round=server_round,
            strategy=strategy, variance_kept=kept, remaining=remaining, content_bytes=content,
            envelope_bytes=envelope,
        )  # fmt: skip
        return ReplyRow(row, place, count, origin)

    def _payload_of(self, values: Sequence[Any]) -> PayloadRow:
        *shown, check, nbytes = values
        if checksum(*shown) != check:
            raise self.damaged(f"payload {shown[0]} is not what was written")
        row, reply, number, spec, count, tags, marks, sketches, dropped, digest = shown
        try:
            read = _read_spec(spec)
        except CodecError as error:
            raise self.damaged(f"payload {row}: {error}") from error
        mask = _from_bits(dropped, count)
        labels = np.frombuffer(marks, "<u2") if marks else np.zeros(count, np.uint16)
        return PayloadRow(
            row, reply, number, read, count, tags, labels, sketches, mask, digest, nbytes
        )

    def _set_place(self, db: sqlite3.Connection, row: ReplyRow, place: int | None) -> None:
        of = row.origin
        shown = (
            row.id, place, of.receipt, str(of.node_id), of.client, of.server_round, of.strategy,
            of.variance_kept, of.remaining, of.content_bytes, of.envelope_bytes, row.count,
        )  # fmt: skip
        db.execute(
            "UPDATE reply SET place = ?, checksum = ? WHERE id = ?",
            (place, checksum(*shown), row.id),
        )


def checksum(*values: Column) -> int:
    """Return a CRC-32 of a row's columns: of their bytes, or of what Python prints of them."""
    crc = 0
    for value in values:
        part = value if isinstance(value, bytes) else repr(value).encode()
        crc = zlib.crc32(len(part).to_bytes(8, "little") + part, crc)
    return crc


def _locked(path: Path) -> int:
    """Return the open lock of a bank, which ends with this process whatever becomes of it."""
    place = path.with_name(path.name + LOCK_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise BankError(
            f"bank {path} cannot be written to: {error.strerror}; name a file in another folder"
        ) from error
    try:
        hold(handle)
    except OSError as error:
        holder = os.pread(handle, 20, 0).decode(errors="replace").strip() or "?"
        os.close(handle)
        raise BankError(
            f"bank {path} is written to by process {holder}: wait until that has ended, or name "
            "another file (SampleBank.open reads one that is in use)"
        ) from error
    with contextlib.suppress(OSError):  # a full disk: the lock holds without the number
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def _next_row(db: sqlite3.Connection, table: str) -> int:
    (last,) = db.execute(f"SELECT max(id) FROM {table}").fetchone()
    return int(last or 0) + 1


def _insert(
    db: sqlite3.Connection,
    table: str,
    columns: str,
    values: Sequence[Column],
    more: tuple[str, bytes] | None = None,
) -> None:
    """Insert a row with its checksum, which does not cover what comes after it."""
    names, row = [columns, "checksum"], [*values, checksum(*values)]
    if more is not None:
        names.append(more[0])
        row.append(more[1])
    marks = ", ".join("?" * len(row))
    db.execute(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", row)


def _insert_meta(db: sqlite3.Connection, key: str, value: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, value, checksum(key, value)))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _mark_bytes(payload: NewPayload | PayloadRow) -> bytes:
    return payload.marks.astype("<u2").tobytes() if payload.tags else b""


def _to_bits(dropped: NDArray[np.bool_]) -> bytes:
    return np.packbits(dropped).tobytes() if dropped.any() else b""


def _from_bits(bits: bytes, count: int) -> NDArray[np.bool_]:
    if not bits:
        return np.zeros(count, np.bool_)
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(np.bool_)


@lru_cache(maxsize=64)
def _read_spec(data: bytes) -> SampleSpec:
    reader = Reader(data)
    spec = SampleSpec.read(reader)
    reader.finish()
    return spec
