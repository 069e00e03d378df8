"""What a bank's file holds, whether all of it is whole, and how to make it smaller."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from codec import CodecError, DecodedSamples, SamplePayload, decode_samples
from codec.samples.targets import decode_targets
from strategies.errors import BankError
from strategies.sample_bank.dataset import STORED_LIMITS
from strategies.sample_bank.file import BankFile, PayloadRow


@dataclass
class Inventory:
    """What a bank's file holds.

    Attributes
    ----------
    path : Path
    id : bytes
    strategies : list of str
        Whose replies it holds.
    replies, waiting, nodes, clients : int
        Replies; of these, those that wait to be admitted; and from how many they came.
    samples, duplicates : int
        Samples that are part of it, and those that were dropped.
    payloads, payload_bytes, file_bytes : int
        Payloads, their bytes, and what the file takes.
    uplink_bytes, envelope_bytes : int
        Of the replies as they travelled.
    kinds : dict of str to int
        Samples by shape, type and codec.
    classes : dict of str to int
        Samples by class; empty where targets are floats.
    damaged : list of str
        What is not what was written.
    """

    path: Path
    id: bytes
    strategies: list[str] = field(default_factory=list)
    replies: int = 0
    waiting: int = 0
    nodes: int = 0
    clients: int = 0
    samples: int = 0
    duplicates: int = 0
    payloads: int = 0
    payload_bytes: int = 0
    file_bytes: int = 0
    uplink_bytes: int = 0
    envelope_bytes: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)


def inventory(path: Path, *, thorough: bool) -> Inventory:
    """Return what a bank holds; damaged rows are named, counted, and left out.

    Parameters
    ----------
    path : Path
    thorough : bool
        Whether to have SQLite check its own structure, and to decode every payload, not only its
        targets.

    Raises
    ------
    BankError
        If it is no bank, or so damaged that it cannot be read at all.
    """
    file = BankFile(path, writable=False)
    try:
        with file.snapshot():
            return _inventory(file, thorough)
    finally:
        file.close()


def _inventory(file: BankFile, thorough: bool) -> Inventory:
    found = Inventory(file.path, file.id)
    sides = [file.path, file.path.with_name(f"{file.path.name}-wal")]
    found.file_bytes = sum(side.stat().st_size for side in sides if side.exists())
    if thorough:
        found.damaged += file.structure()
    nodes, clients, strategies = set(), set(), set()
    for number in file.rows("reply"):
        try:
            reply = file.reply_row(number)
        except BankError as error:
            found.damaged.append(_what(error))
            continue
        found.replies += 1
        found.waiting += reply.place is None
        found.uplink_bytes += reply.origin.content_bytes
        found.envelope_bytes += reply.origin.envelope_bytes
        nodes.add(reply.origin.node_id)
        clients.add(reply.origin.client)
        strategies.add(reply.origin.strategy)
    found.nodes, found.clients = len(nodes), len(clients)
    found.strategies = sorted(strategies - {""})
    kinds: Counter[str] = Counter()
    labels: Counter[int] = Counter()
    for number in file.rows("payload"):
        try:
            row = file.payload_row(number)
            decoded = _decoded(file, row, thorough)
        except BankError as error:
            found.damaged.append(_what(error))
            continue
        kept = ~row.dropped
        found.payloads += 1
        found.payload_bytes += row.nbytes
        found.samples += int(kept.sum())
        found.duplicates += int(row.dropped.sum())
        shape = "x".join(map(str, row.spec.shape))
        kinds[f"{row.spec.dtype} {shape}, {row.spec.codec.codec}"] += int(kept.sum())
        if row.spec.classes:
            labels.update(decoded.targets[kept].tolist())
    names = file.class_names
    found.kinds = dict(kinds)
    found.classes = {
        names[label] if label < len(names) else str(label): labels[label]
        for label in sorted(labels)
    }
    return found


def compact(path: Path) -> tuple[int, int, int]:
    """Remove payloads of which every sample is a duplicate, and the room that they took.

    Returns
    -------
    int, int, int
        Payloads removed, and bytes of the file before and after.

    Raises
    ------
    BankError
        If the bank is written to by another process, or damaged.
    """
    file = BankFile(path, writable=True)
    try:
        before = file.path.stat().st_size
        useless = [row.id for row in file.payloads() if row.dropped.all()]
        file.remove(useless)
        return len(useless), before, file.path.stat().st_size
    finally:
        file.close()


def _decoded(file: BankFile, row: PayloadRow, thorough: bool) -> DecodedSamples:
    """Return a payload decoded; without samples unless they are wanted."""
    try:
        payload = SamplePayload.from_bytes(file.data(row.id), STORED_LIMITS)
        if payload.count != row.count or payload.spec != row.spec:
            raise file.damaged(f"payload {row.id} is not the one of its row")
        if thorough:
            return decode_samples(payload)
        targets = decode_targets(payload)[0] if payload.count else np.empty(0)
    except BankError:
        raise
    except CodecError as error:
        raise file.damaged(f"payload {row.id}: {error}") from error
    nothing = np.empty(0, np.float32)
    return DecodedSamples(nothing, targets, nothing, {})


def _what(error: BankError) -> str:
    """Return what an error says of the bank, without what all of them say."""
    return str(error).partition(" is damaged: ")[2].partition("; `")[0] or str(error)
