"""What arrived: the samples in a run's bank."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec import CodecError, SamplePayload, SampleSpec, decode_samples
from codec.identity import read_tags
from codec.samples.targets import decode_targets
from strategies.errors import BankError
from strategies.sample_bank.dataset import STORED_LIMITS
from strategies.sample_bank.file import BankFile, PayloadRow

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Reply:
    """A reply that is part of the bank.

    Attributes
    ----------
    client : int
        The client's own number; in a simulation, its partition.
    node : int
        Flower's id of it.
    server_round : int
    count : int
        Samples, duplicates among them.
    variance_kept : float
        Share of the samples' variance, in [0, 1].
    """

    client: int
    node: int
    server_round: int
    count: int
    variance_kept: float


@dataclass(frozen=True)
class Arrived:
    """The samples of a bank that are not duplicates; arrays have an entry for each, in order.

    Attributes
    ----------
    path : Path
    id : bytes
        Of the bank, which keys the samples' tags.
    class_names : tuple of str
    replies : tuple of Reply
    duplicates : int
    specs : dict of int to SampleSpec
        By payload.
    payload_bytes : int
        Of all payloads.
    payloads, places : int64 (N,)
        Payload of each sample, and its place in it.
    clients, labels : int64 (N,)
        Labels are -1 where targets are floats.
    tags : uint64 (N,)
        First bytes of the fingerprints.
    tag_bytes : int
        How many bytes; 0: no tags travelled.
    """

    path: Path
    id: bytes
    class_names: tuple[str, ...]
    replies: tuple[Reply, ...]
    duplicates: int
    specs: dict[int, SampleSpec]
    payload_bytes: int
    payloads: Ints
    places: Ints
    clients: Ints
    labels: Ints
    tags: NDArray[np.uint64]
    tag_bytes: int

    def __len__(self) -> int:
        return len(self.labels)

    def decoded(self, chosen: Ints) -> Floats:
        r"""Return some of the samples as they arrived, float32 (M, \*shape), in source units.

        Raises
        ------
        BankError
            If a payload is damaged.
        """
        spec = next(iter(self.specs.values()))
        found = np.empty((len(chosen), *spec.shape), np.float32)
        file = BankFile(self.path, writable=False)
        try:
            for payload in np.unique(self.payloads[chosen]).tolist():
                here = np.flatnonzero(self.payloads[chosen] == payload)
                samples = decode_samples(_payload(file, payload)).samples
                found[here] = samples[self.places[chosen[here]]]
        except CodecError as error:
            raise BankError(str(error)) from error
        finally:
            file.close()
        return found


def read_arrived(path: Path) -> Arrived:
    """Read a bank's file; no sample is decoded.

    Raises
    ------
    BankError
        If it is no bank, damaged, or holds no sample.
    """
    file = BankFile(path, writable=False)
    try:
        with file.snapshot():
            return _arrived(file)
    except CodecError as error:
        raise error if isinstance(error, BankError) else BankError(str(error)) from error
    finally:
        file.close()


def _arrived(file: BankFile) -> Arrived:
    replies = {row.id: row for row in file.replies() if row.place is not None}
    rows = [row for row in file.payloads() if row.reply in replies and row.count]
    if not rows:
        raise BankError(f"bank {file.path} holds no sample")
    columns = list(_columns(file, rows))
    payloads, places, labels, tags, clients = (
        np.concatenate([column[n] for column in columns]) for n in range(5)
    )
    clients = np.array([replies[reply].origin.client for reply in clients.tolist()], np.int64)
    sizes = {len(row.tags) // row.count for row in rows}
    return Arrived(
        path=file.path,
        id=file.id,
        class_names=file.class_names,
        replies=tuple(
            Reply(of.client, of.node_id, of.server_round, row.count, of.variance_kept)
            for row in replies.values()
            for of in [row.origin]
        ),
        duplicates=sum(int(row.dropped.sum()) for row in rows),
        specs={row.id: row.spec for row in rows},
        payload_bytes=sum(row.nbytes for row in rows),
        payloads=payloads,
        places=places,
        clients=clients,
        labels=labels,
        tags=tags,
        tag_bytes=sizes.pop() if len(sizes) == 1 else 0,
    )


def _columns(file: BankFile, rows: Sequence[PayloadRow]) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield payload, place, label, tag and reply of the samples of each payload."""
    for row in rows:
        places = np.flatnonzero(~row.dropped)
        labels = np.full(row.count, -1, np.int64)
        if row.spec.classes:
            labels = decode_targets(_payload(file, row.id))[0]
        tags, _ = read_tags(row.tags, row.count)
        count = len(places)
        yield (
            np.full(count, row.id, np.int64),
            places,
            labels[places],
            tags[places],
            np.full(count, row.reply, np.int64),
        )


def _payload(file: BankFile, row: int) -> SamplePayload:
    return SamplePayload.from_bytes(file.data(row), STORED_LIMITS)
