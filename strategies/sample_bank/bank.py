"""What the server has received: coded at rest, decoded once, in memory or beside it on the disk."""

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codec import CodecError, DecodedSamples, DecodeLimits, SamplePayload, decode_samples
from codec.identity import receipt
from codec.learning.inputs import in_units
from codec.options import COUNT, check
from strategies.errors import BankError
from strategies.sample_bank.arrays import (
    DEFAULT_MEMORY_LIMIT,
    Arrays,
    held,
    nothing_like,
)
from strategies.sample_bank.dataset import BankDataset
from strategies.sample_bank.duplicates import (
    SKETCH,
    Coded,
    Incoming,
    Loss,
    Sketches,
    TagIndex,
    comparable,
    dropped_of,
    marks_of,
    split_tags,
)
from strategies.sample_bank.file import BankFile, NewPayload
from strategies.sample_bank.last_used import LastUsed
from strategies.sample_bank.records import Added, Origin, StoredReply
from strategies.sample_bank.store import SampleStore
from strategies.server_model import Batch

_SKETCHED_BLOCKS = 4096  # whose sketches are kept at hand
_COMPARED_BYTES = 64 << 20  # of decoded samples kept at hand for comparisons


@dataclass(frozen=True)
class _Block:
    """Samples that came together, at rest.

    Attributes
    ----------
    data : bytes, Arrays or int
        Payload, arrays given by `SampleBank.add_arrays`, or the row of a bank's file.
    count, nbytes : int
        Samples that are not dropped, and bytes at rest.
    loss : Loss
        What their coding has changed.
    kept : (count,) int array, optional
        Which samples of the payload these are; None: all.
    sketches : bytes
        Of the payload's samples, see `duplicates.sketches_of`; those of a file's row are there.
    """

    data: bytes | Arrays | int
    count: int
    nbytes: int
    loss: Loss
    kept: NDArray[np.int64] | None = None
    sketches: bytes = b""


class SampleBank:
    """Pool of received samples from which the server draws minibatches.

    Payloads stay as their bytes, in memory or in a file. Each is decoded once: samples are held in
    memory while they fit in ``memory_limit``, and what comes then in a temporary file, from which
    the next minibatch is read ahead. Minibatches are the same either way.

    Payloads may differ in type, range and codec; shape and kind of targets must agree. Samples of
    uint8 sources are held as uint8 when their codec is biased anyway or lossless; once others come,
    those are held as float32, which keeps an unbiased codec unbiased.

    A bank with a `path` outlives the process, killed or not: what `add_reply` has returned
    for is on the disk, whole. One process writes it at a time; `open` reads it meanwhile.

    Parameters
    ----------
    memory_limit : int
        Most bytes of decoded samples in memory; others are on the disk, in the first folder that
        has room of ``TMPDIR``, ``/var/tmp`` and that of `path`.
    limits : DecodeLimits
        What one payload may make the decoder allocate.
    scale : str
        What the model sees of samples, see `codec.messages.ClientOptions`.
    path : str or Path, optional
        File of the bank, which is made or goes on. By default the bank lives in memory.

    Raises
    ------
    BankError
        If the file is in use by another writer, damaged, of another version, or no bank.
    """

    _blocks: list[_Block]
    _receipts: set[bytes]
    _starts: list[int]  # place of each block's first sample
    _first: Arrays | None  # none of the first samples, but all that they are
    _store: SampleStore  # samples of the first blocks; those of others are decoded when needed
    _decoded: int  # how many blocks these are
    _undrawn: NDArray[np.int64]  # places that are left of the running epoch, in its order,
    _listed: int  # as far as it knows of them: those of samples from here on come behind
    # What duplicates are found by: tags, and some blocks that were compared last.
    _tags: TagIndex
    _compared_last: LastUsed[Coded]
    _sketched_last: LastUsed[Sketches]

    def __init__(
        self,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
        limits: DecodeLimits | None = None,
        *,
        scale: str = "auto",
        path: str | Path | None = None,
    ) -> None:
        check("memory_limit", memory_limit, COUNT)
        self.memory_limit = memory_limit
        self.scale = scale
        self._limits = limits or DecodeLimits()
        self._file = None if path is None else BankFile(Path(path), writable=True)
        self._clear()
        if self._file is not None:
            try:
                self._file.tell("scale", scale)
                self._seat_all()
                self._load()
            except BaseException:
                self.close()
                raise

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> "SampleBank":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @staticmethod
    def open(
        path: str | Path, *, scale: str | None = None, memory_limit: int = DEFAULT_MEMORY_LIMIT
    ) -> BankDataset:
        """Return what a bank's file holds as a torch data set, to read; see `BankDataset`.

        Raises
        ------
        BankError
            If there is no such bank, it is damaged, or holds no sample.
        """
        return BankDataset(Path(path), scale=scale, memory_limit=memory_limit)

    @classmethod
    def of_dataset(cls, dataset: BankDataset) -> "SampleBank":
        """Return a bank in memory of what a bank's file held, to draw minibatches from."""
        bank = cls(scale=dataset.scale)
        low, high = dataset.bounds or (None, None)
        bank.add_arrays(
            dataset.samples, dataset.targets, low=low, high=high, weights=dataset.weights
        )
        return bank

    def close(self) -> None:
        """Give the file free for other writers; a bank in memory has nothing to close."""
        if self._file is not None:
            self._file.close()

    @property
    def id(self) -> bytes:
        """What the bank is known by; empty for a bank in memory."""
        return b"" if self._file is None else self._file.id

    @property
    def replies(self) -> int:
        """Replies that are part of the bank."""
        return self._replies

    @property
    def nbytes(self) -> int:
        """Bytes at rest."""
        return sum(block.nbytes for block in self._blocks)

    @property
    def resident_bytes(self) -> int:
        """Bytes of decoded samples in memory; those of others are in a temporary file."""
        return self._store.resident_bytes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the labels, if they were told."""
        return () if self._file is None else self._file.class_names

    def tell_class_names(self, names: Sequence[str]) -> None:
        """Keep the names of the classes in the bank's file, for exports."""
        if self._file is not None and names:
            self._file.tell("class-names", "\n".join(name.replace("\n", " ") for name in names))

    def add_reply(
        self, payloads: Sequence[tuple[SamplePayload, DecodedSamples]], origin: Origin
    ) -> Added:
        """Add what a client has sent, all of it or nothing.

        Parameters
        ----------
        payloads : sequence of (SamplePayload, DecodedSamples)
            In the order of the reply. Empty ones are no matter; a reply of nothing else is not
            remembered.
        origin : Origin
            Where it comes from.

        Returns
        -------
        Added
            Once it returns, a bank with a file holds the reply for good.

        Raises
        ------
        ValueError
            If shape or kind of targets differ from those of the samples held.
        BankError
            If the file cannot be written; `BankFull` for want of room.
        """
        sent = [(payload, decoded) for payload, decoded in payloads if payload.count]
        if not sent:
            return Added(0, 0, known=False)
        if self.has_receipt(origin.receipt):
            return Added(0, 0, known=True)
        parts = [held(payload.spec, decoded, self.scale) for payload, decoded in sent]
        self._check_kinds(parts)
        losses = [Loss.of(payload.spec, origin.variance_kept) for payload, _ in sent]
        tags = split_tags(origin.fingerprints, [payload.count for payload, _ in sent])
        incoming, masks = self._compared(parts, losses, tags, [marks_of(p.targets) for p in parts])
        new = [
            NewPayload(
                payload.to_bytes(),
                payload.spec,
                payload.count,
                one.tags,
                one.marks,
                one.sketches.tobytes(),
                mask,
            )
            for (payload, _), one, mask in zip(sent, incoming, masks, strict=True)
        ]
        places: Sequence[bytes | int] = [payload.data for payload in new]
        if self._file is not None:
            places = self._file.add(origin, self._replies + 1, new)
        added = self._take_in(places, [len(payload.data) for payload in new], incoming, masks)
        self._receipts.add(origin.receipt)
        return added

    def has_receipt(self, receipt: bytes) -> bool:
        """Whether a reply has arrived, be it part of the bank or waiting to be."""
        return receipt in self._receipts

    def hold_back(self, replies: int) -> list[StoredReply]:
        """Leave all but the first replies out of the bank, as if they were still to come.

        For a run that resumes where fewer had arrived. What is held back counts as received (see
        `has_receipt`) until `admit` makes it part of the bank; where that never happens, all
        of it is part of the bank when it is next made.

        Parameters
        ----------
        replies : int
            How many of them stay.

        Returns
        -------
        list of StoredReply
            Those that wait, by their clients.

        Raises
        ------
        BankError
            If there are fewer, or the bank has no file.
        """
        if not 0 <= replies <= self._replies:
            raise BankError(
                f"{self._named} has {self._replies} replies, {replies} were to stay: it is not "
                "the bank, or not the checkpoint, of this run"
            )
        if replies < self._replies:
            self._of_file().hold_back(replies)
            self._clear()
            self._load()
        waiting = [] if self._file is None else list(self._file.replies())
        stored = [row.stored for row in waiting if row.place is None]
        return sorted(stored, key=lambda one: (one.client, one.node_id, one.receipt))

    def admit(self, receipt: bytes) -> Added:
        """Make a reply that waits part of the bank, behind all that are.

        Raises
        ------
        BankError
            If no reply with this receipt waits.
        """
        file = self._of_file()
        reply = file.reply(receipt)
        if reply is None or reply.place is not None:
            raise BankError(f"{self._named} has no reply {receipt.hex()} that waits")
        rows = list(file.payloads(reply.id))
        parts = [self._decoded_row(row.id) for row in rows]
        self._check_kinds(parts)
        losses = [Loss.of(row.spec, reply.origin.variance_kept) for row in rows]
        tags, marks = [row.tags for row in rows], [row.marks for row in rows]
        incoming, masks = self._compared(parts, losses, tags, marks)
        file.admit(reply, self._replies + 1, zip(rows, masks, strict=True))
        return self._take_in(
            [row.id for row in rows], [row.nbytes for row in rows], incoming, masks
        )

    def add_payload(
        self, payload: bytes | SamplePayload, decoded: DecodedSamples | None = None
    ) -> int:
        """Add a payload of which nothing else is known.

        Parameters
        ----------
        payload : bytes or SamplePayload
            What the client sent. A bank with a file takes it for a reply, and holds it once.
        decoded : DecodedSamples, optional
            Its decoded form, if it is at hand already.

        Returns
        -------
        int
            Number of samples added.

        Raises
        ------
        PayloadError
            If the bytes are malformed.
        ValueError
            If shape or kind of targets differ from those of the samples held.
        BankError
            If the file cannot be written.
        """
        data = payload if isinstance(payload, bytes) else payload.to_bytes()
        if isinstance(payload, bytes):
            payload = SamplePayload.from_bytes(payload, self._limits)
        decoded = decoded or decode_samples(payload)
        if self._file is not None:
            return self.add_reply([(payload, decoded)], Origin(receipt=receipt((data,)))).samples
        arrays = held(payload.spec, decoded, self.scale)
        self._check_kinds([arrays])
        loss = Loss.of(payload.spec, 1.0)
        self._append(_Block(data, payload.count, len(data), loss), arrays)
        return payload.count

    def add_arrays(
        self,
        samples: NDArray[Any],
        targets: NDArray[Any],
        *,
        low: float | None = None,
        high: float | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> int:
        r"""Add samples that were never coded, such as a central baseline's.

        Parameters
        ----------
        samples : ndarray
            (N, \*shape) uint8, floats, or int32 or int64 tokens; uint8 and float32 are kept by
            reference.
        targets : ndarray
            (N,) labels, or (N,) or (N, t) float targets.
        low, high : float, optional
            Value range that is mapped to [0, 1]. By default uint8 samples are, unless the scale is
            ``none``, and others are not.
        weights : ndarray, optional
            (N,) float32 importance weights; default ones.

        Returns
        -------
        int
            Number of samples added.

        Raises
        ------
        BankError
            If the bank has a file, which holds what was coded.
        """
        if self._file is not None:
            raise BankError(f"{self._named} holds coded samples; arrays need a bank in memory")
        if weights is None:
            weights = np.ones(len(samples), np.float32)
        kind = np.float32 if np.issubdtype(targets.dtype, np.floating) else np.int64
        bounds = None
        if low is not None or high is not None:
            bounds = low or 0.0, 1.0 if high is None else high
        elif samples.dtype == np.uint8 and self.scale != "none":
            bounds = 0.0, 255.0
        if samples.dtype != np.uint8 and (bounds or samples.dtype not in (np.int32, np.int64)):
            samples = samples.astype(np.float32, copy=False)
        arrays = Arrays(samples, targets.astype(kind), weights, bounds)
        self._check_kinds([arrays])
        loss = Loss(exact=True, square=0.0)
        self._append(_Block(arrays, len(samples), samples.nbytes, loss), arrays)
        return len(samples)

    def minibatches(
        self,
        batch_size: int,
        steps: int,
        generator: np.random.Generator,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        r"""Draw minibatches, epoch by epoch without replacement.

        An epoch goes on over calls; samples that arrived in between join it. The last samples of
        an epoch that do not fill a batch are left out of it; a bank smaller than ``batch_size``
        gives batches of the whole bank.

        Parameters
        ----------
        batch_size : int
            Samples per batch, >= 1.
        steps : int
            Number of batches.
        generator : np.random.Generator
            Source of the order.
        device : torch.device or str
            Where the batches are made; uint8 samples travel there as uint8.

        Yields
        ------
        tuple[Tensor, Tensor, Tensor]
            Samples (B, \*shape) as the model sees them, float32 or int64 for tokens; targets;
            weights (B,) float32.

        Raises
        ------
        BankError
            If a payload of the bank's file is damaged, or there is neither memory nor disk for
            what it decodes to.
        """
        check("batch_size", batch_size, COUNT)
        if not len(self):
            raise ValueError("the bank is empty: no minibatch can be drawn")
        size = min(batch_size, len(self))
        self._decode_all()
        self._undrawn = generator.permutation(self._left())
        read = False
        for left in reversed(range(steps)):
            places = self._draw(size, generator)
            if not read:
                self._store.expect(places)
            arrays = self._store.take(places)
            # The next batch is read while this one is learned; that of a new epoch is not known.
            read = left > 0 and size <= len(self._undrawn)
            if read:
                self._store.expect(self._undrawn[:size])
            yield self._to_batch(arrays, torch.device(device))

    def position(self) -> dict[str, NDArray[np.int64]]:
        """Return where the running epoch is; see `restore`."""
        return {
            "held": np.array([self._replies, len(self._blocks), self._count], np.int64),
            "undrawn": self._left().astype(np.int64),
        }

    def restore(self, position: Mapping[str, NDArray[np.int64]]) -> None:
        """Go on where a bank that held the same was: minibatches are those it would have drawn.

        Parameters
        ----------
        position : mapping of str to int64 array
            What `position` has returned.

        Raises
        ------
        BankError
            If it is of a bank that held something else.
        """
        now = [self._replies, len(self._blocks), self._count]
        blocks = np.arange(len(self._blocks))
        told, undrawn, window = (
            np.asarray(position.get(name, other), np.int64).ravel()
            for name, other in (("held", ()), ("undrawn", ()), ("window", blocks))
        )
        if told.tolist() != now or (
            len(undrawn) and not 0 <= undrawn.min() <= undrawn.max() < len(self)
        ):
            raise BankError(
                f"{self._named} holds {now[0]} replies with {now[2]} samples; the position is of "
                f"a bank with {told.tolist()}: it is not the bank of this run"
            )
        # A bank beyond its memory limit used to go through its samples part by part.
        if not np.array_equal(window, blocks):
            raise BankError(
                f"{self._named}: the position is of an earlier version, with another order; start "
                "a new run on this bank"
            )
        self._undrawn, self._listed = undrawn.copy(), self._count

    @property
    def _named(self) -> str:
        return "a bank in memory" if self._file is None else f"bank {self._file.path}"

    def _of_file(self) -> BankFile:
        if self._file is None:
            raise BankError("a bank in memory holds nothing back: give it a path")
        return self._file

    def _clear(self) -> None:
        """Forget all that is held in memory."""
        self._blocks, self._receipts = [], set()
        self._count = self._replies = 0
        self._first, self._starts = None, []
        beside = None if self._file is None else self._file.path.parent
        self._store, self._decoded = SampleStore(self.memory_limit, self._named, beside), 0
        self._undrawn, self._listed = np.empty(0, np.int64), 0
        self._tags = TagIndex()
        self._compared_last = LastUsed(_COMPARED_BYTES)
        self._sketched_last = LastUsed(_SKETCHED_BLOCKS)

    def _seat_all(self) -> None:
        """Make replies that an earlier run has left waiting part of the bank."""
        file = self._of_file()
        for place, reply in enumerate(list(file.replies()), start=1):
            if reply.place is None:
                rows = list(file.payloads(reply.id))
                file.admit(reply, place, [(row, row.dropped) for row in rows])
            elif reply.place != place:
                raise file.damaged(f"reply {reply.id} is out of place")

    def _load(self) -> None:
        """Take over what the file holds, without decoding it."""
        file = self._of_file()
        kept: dict[int, float] = {}
        for reply in file.replies():
            self._receipts.add(reply.origin.receipt)
            if reply.place is not None:
                self._replies += 1
                kept[reply.id] = reply.origin.variance_kept
        for row in file.payloads():
            if row.reply in kept:
                loss = Loss.of(row.spec, kept[row.reply])
                self._tags.add(row.tags, row.marks, self._count, ~row.dropped)
                self._place(
                    _block(row.id, row.dropped, row.nbytes, loss),
                    nothing_like(row.spec, self.scale),
                )

    def _compared(
        self,
        parts: Sequence[Arrays],
        losses: Sequence[Loss],
        tags: Sequence[bytes],
        marks: Sequence[NDArray[np.uint16]],
    ) -> tuple[list[Incoming], list[NDArray[np.bool_]]]:
        """Return a reply's payloads for comparison, and which of their samples are duplicates."""
        reply = [Incoming(*one) for one in zip(parts, losses, tags, marks, strict=True)]
        return reply, dropped_of(reply, self._tags, _Places(self))

    def _take_in(
        self,
        places: Sequence[bytes | int],
        sizes: Sequence[int],
        reply: Sequence[Incoming],
        masks: Sequence[NDArray[np.bool_]],
    ) -> Added:
        """Make a reply's payloads part of the bank."""
        for place, size, incoming, mask in zip(places, sizes, reply, masks, strict=True):
            self._tags.add(incoming.tags, incoming.marks, self._count, ~mask)
            block = _block(place, mask, size, incoming.loss)
            if isinstance(place, bytes):
                block = replace(block, sketches=incoming.sketches.tobytes())
            self._append(block, incoming.arrays)
        self._replies += 1
        dropped = sum(int(mask.sum()) for mask in masks)
        return Added(sum(map(len, masks)) - dropped, dropped, known=False)

    def _block_at(self, place: int) -> tuple[int, int]:
        """Return the number of the block that has one of the bank's samples, and which it is."""
        number = bisect_right(self._starts, place) - 1
        return number, place - self._starts[number]

    def _sketches(self, number: int) -> Sketches | None:
        """Return the sketches of a block's samples, if it has any."""
        found = self._sketched_last.get(number)
        if found is None:
            block = self._blocks[number]
            data = block.sketches
            if isinstance(block.data, int):
                data = self._of_file().sketches(block.data)
            sketches = np.frombuffer(data, "<f2").reshape(-1, SKETCH)
            of_kept = sketches if block.kept is None else sketches[block.kept]
            found = self._sketched_last.put(number, of_kept, 1)
        return found if len(found) else None

    def _coded(self, number: int) -> Coded:
        """Return the samples of a block for comparison, decoded if they are not yet."""
        found = self._compared_last.get(number)
        if found is not None:
            return found
        block = self._blocks[number]
        if number < self._decoded:
            arrays = self._store.part(self._starts[number], block.count)
        else:
            arrays = self._decode(block)
        coded = comparable(arrays, block.loss)
        return self._compared_last.put(number, coded, coded.samples.nbytes)

    def _check_kinds(self, parts: Sequence[Arrays]) -> None:
        first = parts[0] if self._first is None else self._first
        for arrays in parts:
            if arrays.kind != first.kind:
                raise ValueError(f"samples do not fit those held: {arrays.kind}, not {first.kind}")

    def _append(self, block: _Block, arrays: Arrays) -> None:
        """Add samples, which are at hand decoded."""
        whole = self._decoded == len(self._blocks)
        self._place(block, arrays)
        if whole and block.count:
            # Where there is no room the samples count as received all the same: whoever draws
            # minibatches of them is told.
            with contextlib.suppress(BankError):
                self._hold(block, self._kept(block, arrays))

    def _place(self, block: _Block, like: Arrays) -> None:
        """Add a block, whose samples are like some, decoded or not."""
        if not block.count:
            return
        if self._first is None:
            self._first = like.take(slice(0))
        self._blocks.append(block)
        self._starts.append(self._count)
        self._count += block.count

    def _hold(self, block: _Block, arrays: Arrays) -> None:
        """Hold the samples of the first block that is not decoded."""
        self._store.append(arrays, by_reference=isinstance(block.data, Arrays))
        self._decoded += 1

    def _decode_all(self) -> None:
        """Decode what is not yet."""
        for block in self._blocks[self._decoded :]:
            self._hold(block, self._decode(block))

    def _draw(self, size: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Take the places of the next ``size`` samples of the epoch."""
        left = self._left()
        if len(left) < size:
            # The epoch is over: its incomplete last batch is left out.
            left = generator.permutation(len(self))
        places, self._undrawn = left[:size], left[size:]
        return places

    def _left(self) -> NDArray[np.int64]:
        """Return the places that are left of the running epoch, those of new samples behind."""
        if self._listed < self._count:  # all at once: replies may be many
            self._undrawn = np.append(self._undrawn, np.arange(self._listed, self._count))
            self._listed = self._count
        return self._undrawn

    def _decode(self, block: _Block) -> Arrays:
        """Return the samples of a block that are not dropped."""
        if isinstance(block.data, int):
            arrays = self._decoded_row(block.data)
        elif isinstance(block.data, bytes):
            arrays = self._decoded_bytes(block.data)
        else:
            arrays = block.data
        return self._kept(block, arrays)

    def _decoded_row(self, row: int) -> Arrays:
        file = self._of_file()
        try:
            return self._decoded_bytes(file.data(row))
        except BankError:
            raise
        except CodecError as error:
            raise file.damaged(f"payload {row}: {error}") from error

    def _decoded_bytes(self, data: bytes) -> Arrays:
        payload = SamplePayload.from_bytes(data, self._limits)
        return held(payload.spec, decode_samples(payload), self.scale)

    def _kept(self, block: _Block, arrays: Arrays) -> Arrays:
        """Return what is not dropped of a block, its targets in the bank's shape."""
        assert self._first is not None
        if block.kept is not None:
            arrays = arrays.take(block.kept)
        shape = self._first.targets.shape[1:]
        return replace(arrays, targets=arrays.targets.reshape(block.count, *shape))

    def _to_batch(self, arrays: Arrays, device: torch.device) -> Batch:
        samples, targets, weights = (
            torch.from_numpy(part).to(device)
            for part in (arrays.samples, arrays.targets, arrays.weights)
        )
        seen = in_units(samples, arrays.bounds) if arrays.is_float else samples.long()
        return seen, targets, weights


@dataclass(frozen=True)
class _Places:
    """What a bank knows of its samples by their places, see `duplicates.Held`."""

    bank: SampleBank

    def sketch(self, place: int) -> tuple[Sketches, Loss] | None:
        """Return a sample's sketch, and what its coding has changed."""
        number, row = self.bank._block_at(place)
        sketches = self.bank._sketches(number)
        return None if sketches is None else (sketches[row], self.bank._blocks[number].loss)

    def coded(self, place: int) -> tuple[Coded, int]:
        """Return the payload of a sample, and which of its samples it is."""
        number, row = self.bank._block_at(place)
        return self.bank._coded(number), row


def _block(data: bytes | int, dropped: NDArray[np.bool_], nbytes: int, loss: Loss) -> _Block:
    kept = np.flatnonzero(~dropped) if dropped.any() else None
    return _Block(data, len(dropped) if kept is None else len(kept), nbytes, loss, kept)
