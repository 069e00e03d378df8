"""What of a source the server has, what is left, and what is a copy of something else.

An item that is read is known by the content of its sample. What an earlier round learned of it, by
key or by place, saves reading it again. A key is a promise of the source; a place is none, so a few
items are read again each round, and all of them once before nothing is left to send.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.client_round import Contribution
from clients.memory import Items, Memory, among, no_prints
from clients.reading import Reader
from codec import CodecError
from codec.identity import FINGERPRINT_BYTES, fingerprints, receipt

DUPLICATE = "duplicate"  # why a sample is skipped

_READ_AGAIN = 4  # items a round that show whether the source is what it was
_MOST_VERIFIED = 4096  # items that are read again in a round before nothing is left
_AT_ONCE = 256  # items read together when all are read again
_MODULUS = 1 << 64
# From the fingerprint of a row to that of its next repetition; odd, so that short tags differ too.
_REPETITION = 0x9E3779B97F4A7C15
_INVERSE = pow(_REPETITION, -1, _MODULUS)
_MOST_REPETITIONS = 1 << 24


@dataclass(frozen=True)
class Counts:
    """Samples of a source, as far as they are known.

    Attributes
    ----------
    usable : int
        Those that may ever be sent, each once.
    sent : int
        Those of them that were sent, pending ones included.
    copies : int
        Items that hold the sample of another one.
    """

    usable: int
    sent: int
    copies: int

    def left(self, keep_rate: float) -> int:
        """Return how many of the share that is ever sent are left to send."""
        return max(0, replay_quota(self.usable, keep_rate) - self.sent)


def replay_quota(length: int, keep_rate: float) -> int:
    """Return how many of `length` samples a client ever sends: the rounded share, at least 1."""
    return min(length, max(1, round(keep_rate * length)))


class Inventory:
    """The N items of a source in one round, and what is known of them.

    Samples of one axis, such as rows of a table, may repeat: each is an observation, and all are
    sent. Of others that are equal, one is.

    Parameters
    ----------
    reader : Reader
    memory : Memory
        What earlier rounds know, settled.
    bank : bytes
        Id of the bank, which keys the fingerprints.
    client : int
        Distinguishes the device where items cannot be known by their content.

    Raises
    ------
    CodecError
        If the source gives two items one key.
    """

    def __init__(self, reader: Reader, memory: Memory, bank: bytes = b"", client: int = 0) -> None:
        length = len(reader.source)
        self._reader, self._memory, self._bank, self._client = reader, memory, bank, client
        self._keys = item_keys(reader.source, length, bank)
        self._scope = _scope(reader)
        known = memory.items if memory.scope == self._scope else Items.none(0)
        items = known.of(length, self._keys)
        self._prints, self._useless, self._verified = items.prints, items.useless, items.verified
        self._fresh = np.zeros(length, np.bool_)  # read in this round
        self._changed = memory.changed or self._differs(known)
        self._salt = memory.salt
        self._delivered, self._pending, self._refused = (
            memory.delivered,
            no_prints(),
            memory.refused,
        )
        self._counts: Counts | None = None
        self._holders: dict[int, int] | None = None
        self._further: dict[int, int] = {}

    def _differs(self, before: Items) -> bool:
        """Whether the source is not what it was, as far as keys and length say."""
        if self._memory.length < 0:
            return False
        if self._keys is None or before.keys is None:
            return len(self._prints) != self._memory.length
        return len(np.setxor1d(self._keys, before.keys)) > 0

    @property
    def is_new(self) -> bool:
        """Whether this is the device's first round."""
        return self._memory.sequence == 0

    @property
    def is_random(self) -> bool:
        """Whether each reading of an item gives another version."""
        return bool(self._salt)

    @property
    def became_random(self) -> bool:
        """Whether this round has found that each reading of an item gives another version."""
        return bool(self._salt) and not self._memory.salt

    @property
    def has_changed(self) -> bool:
        """Whether the source has changed since the device's first round."""
        return self._changed

    # What there is

    def counts(self) -> Counts:
        """Count the samples, as far as they are known."""
        if self._counts is None:
            self._counts = self._counted()
        return self._counts

    def _counted(self) -> Counts:
        known = self._prints[self._prints != 0]
        distinct = np.unique(known)
        sent = among(distinct, self._delivered) | among(distinct, self._pending)
        refused = int(among(distinct[~sent], self._refused).sum())
        copies = len(known) - len(distinct)
        unusable = copies + refused + int(self._useless.sum())
        return Counts(len(self._prints) - unusable, int(sent.sum()), copies)

    def unsent(self) -> NDArray[np.bool_]:
        """Return which items may be sent, whether they were read before or not, (N,)."""
        known = self._prints != 0
        is_first = np.zeros(len(known), np.bool_)
        is_first[np.unique(self._prints, return_index=True)[1]] = True
        done = among(self._prints, self._delivered) | among(self._prints, self._refused)
        may: NDArray[np.bool_] = ~self._useless & (~known | (is_first & ~done))
        return may

    def fingerprints(self, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return what items are known by that were read."""
        return self._prints[indices]

    # What reading tells

    def accept(
        self, indices: NDArray[np.int64], samples: NDArray[Any], targets: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Learn what items are that were read, and return which of them may be sent, (M,)."""
        self._counts = None
        first = np.zeros(len(indices), np.bool_)
        content = self._content(indices, samples, targets)
        for row, (index, found) in enumerate(zip(indices.tolist(), content, strict=True)):
            first[row] = self._learn(index, found) == index
        now = self._prints[indices]
        return first & ~among(now, self._delivered) & ~among(now, self._refused)

    def check(self, generator: np.random.Generator) -> None:
        """Read a few known items again: if one is another now, places mean nothing any more."""
        self._check(np.sort(generator.permutation(self._by_place())[:_READ_AGAIN]))

    def verify(self) -> bool:
        """Read known items again that were not since the round that read them first.

        Returns
        -------
        bool
            Whether that were all of them; a round does not take longer than for some thousands.
        """
        places = self._by_place()
        places = places[~self._verified[places]]
        self._check(places[:_MOST_VERIFIED])
        return len(places) <= _MOST_VERIFIED

    def become_random(self) -> None:
        """Know items by their keys or places from now on, since their content is never the same."""
        self._counts = None
        digest = hashlib.blake2b(str(self._client).encode(), digest_size=8, key=self._bank)
        self._salt = digest.digest()
        known = np.flatnonzero(self._prints)
        sent = known[among(self._prints[known], self._delivered)]
        self._prints[known] = self._by_salt(known)
        self._delivered = np.union1d(self._delivered, self._prints[sent])
        self._holders = None

    def _by_place(self) -> NDArray[np.int64]:
        """Return known items that nothing but their place tells to be what they were."""
        if self._keys is not None or self._salt:
            return np.zeros(0, np.int64)
        return np.flatnonzero((self._prints != 0) & ~self._fresh)

    def _check(self, indices: NDArray[np.int64]) -> None:
        self._counts = None
        moved: dict[int, int] = {}
        for start in range(0, len(indices), _AT_ONCE):
            some = indices[start : start + _AT_ONCE]
            batch = self._reader.read(some)
            read = some[batch.positions]
            content = self._content(read, batch.samples, batch.targets)
            for index, found in zip(read.tolist(), content, strict=True):
                if self._is_of(int(self._prints[index]), found):
                    self._fresh[index] = True
                else:
                    moved[index] = found
            if len(moved) and self._is_random(*next(iter(moved.items()))):
                self.become_random()
                return
        self._verified[indices] = True
        if moved:
            self._forget()
        for index, found in moved.items():
            self._learn(index, found)

    def _is_random(self, index: int, content: int) -> bool:
        """Whether an item is another one each time that it is read."""
        batch = self._reader.read(np.array([index]))
        again = self._content(np.array([index])[batch.positions], batch.samples, batch.targets)
        return any(found != content for found in again)

    def _forget(self) -> None:
        """Forget what is known of items that were not read in this round."""
        self._prints[~self._fresh] = 0
        self._useless[~self._fresh] = False
        self._verified[:] = self._fresh
        self._holders, self._changed = None, True

    def _content(
        self, indices: NDArray[np.int64], samples: NDArray[Any], targets: NDArray[Any]
    ) -> list[int]:
        """Return what samples are known by, but for repetitions; never 0."""
        if self._salt:
            found = self._by_salt(indices)
        else:
            found = np.maximum(fingerprints(samples, targets, self._bank), 1)
        return [int(number) for number in found]

    def _by_salt(self, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
        names = indices if self._keys is None else self._keys[indices]
        digests = [_digest(self._salt + str(name).encode(), self._bank) for name in names.tolist()]
        return np.array(digests, np.uint64)

    @property
    def _may_repeat(self) -> bool:
        return len(self._reader.kind.shape) == 1 and not self._salt

    def _is_of(self, known: int, content: int) -> bool:
        """Whether a fingerprint is that of a content, or of one of its repetitions."""
        if not self._may_repeat:
            return known == content
        return (known - content) * _INVERSE % _MODULUS < _MOST_REPETITIONS

    def _learn(self, index: int, content: int) -> int:
        """Take down what an item is, and return the first item known to be the same."""
        if self._holders is None:
            known = np.flatnonzero(self._prints)[::-1]
            self._holders = dict(zip(self._prints[known].tolist(), known.tolist(), strict=True))
        holders, before = self._holders, int(self._prints[index])
        if before and not self._is_of(before, content):
            self._changed = True
            if holders.get(before) == index:
                del holders[before]
            before = 0
        found = before or (self._free(content) if self._may_repeat else content)
        self._prints[index], self._fresh[index], self._useless[index] = found, True, False
        return holders.setdefault(found, index)

    def _free(self, content: int) -> int:
        """Return the first repetition of a row that no item is known to be."""
        assert self._holders is not None
        passed, found = [], content
        while found in self._holders:
            passed.append(found)
            found = self._further.get(found, (found + _REPETITION) % _MODULUS)
        self._further.update(dict.fromkeys(passed, found))
        return found

    # What is remembered

    def send(self, contribution: Contribution) -> None:
        """Take down what a reply holds, and what cannot be sent."""
        self._counts = None
        useless, refused = list(contribution.useless), list(contribution.refused)
        self._prints[useless], self._useless[useless] = 0, True
        self._refused = np.union1d(self._refused, self._prints[refused])
        self._pending = np.sort(self._prints[contribution.sent])

    def memory(self, contribution: Contribution) -> Memory:
        """Return what is to be remembered after a round whose reply this is."""
        return Memory(
            delivered=self._delivered,
            pending=self._pending,
            receipt=receipt(contribution.payloads or (b"",)),
            skipped=dict(contribution.skipped),
            refused=self._refused,
            items=Items(self._prints, self._useless, self._verified, self._keys),
            scope=self._scope,
            salt=self._salt,
            length=len(self._prints),
            told=max(self._memory.told, self.counts().copies),
            changed=self._changed,
            sequence=self._memory.sequence + 1,
            choices=self._memory.choices,
        )

    def untold(self) -> int:
        """Return how many copies no reply has counted yet."""
        return max(0, self.counts().copies - self._memory.told)


def item_keys(source: Any, length: int, bank: bytes) -> NDArray[np.uint64] | None:
    """Return digests of a source's own keys, (length,); None if it has none.

    Raises
    ------
    CodecError
        If keys are missing, of another type, or given twice.
    """
    give = getattr(source, "item_keys", None)
    keys: Sequence[str | bytes] | None = give(np.arange(length)) if callable(give) else None
    if keys is None:
        return None
    if len(keys) != length:
        raise CodecError(f"item_keys gives {len(keys)} keys for {length} items; legal: one each")
    digests = np.array([_digest(_key_bytes(key), bank) for key in keys], np.uint64)
    found, first, number = np.unique(digests, return_index=True, return_counts=True)
    if len(found) < length:
        twice = keys[int(first[number > 1][0])]
        raise CodecError(f"item_keys gives {twice!r} to two items; each needs a key of its own")
    return digests


def _key_bytes(key: object) -> bytes:
    if isinstance(key, str):
        return key.encode("utf-8", "surrogateescape")
    if isinstance(key, bytes):
        return key
    raise CodecError(f"item_keys gives {key!r}, {type(key).__name__}; legal: str or bytes")


def _digest(data: bytes, bank: bytes) -> int:
    digest = hashlib.blake2b(data, digest_size=FINGERPRINT_BYTES, key=bank)
    return max(1, int.from_bytes(digest.digest(), "little"))


def _scope(reader: Reader) -> bytes:
    """Return a digest of what turns items into samples, beside the items themselves."""
    source, terms = reader.source, reader.terms
    names = tuple(getattr(source, "class_names", None) or ())
    parts = (terms.shape, terms.outputs, terms.class_names)
    own = (source.classes, source.low, source.high, names)
    return hashlib.blake2b(repr((parts, own)).encode(), digest_size=8).digest()
