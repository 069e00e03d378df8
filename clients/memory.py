"""What a device remembers of the samples that it has sent to a bank.

A sample is known by its content (`codec.identity`), never by its place. What was learned of the
items of a source, by key or by place, is a cache beside it: it saves reading them again, and is
never what decides whether a sample is sent.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec import CodecOptions
from codec.samples.choice import Choice

_NOTES = ("skipped", "length", "told", "changed", "sequence", "choices")


def no_prints() -> NDArray[np.uint64]:
    """Return an empty array of fingerprints."""
    return np.zeros(0, np.uint64)


def among(prints: NDArray[np.uint64], ascending: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which fingerprints are among others, which are in order: `numpy.isin` sorts anew."""
    if not len(ascending):
        return np.zeros(len(prints), np.bool_)
    near = np.searchsorted(ascending, prints).clip(max=len(ascending) - 1)
    found: NDArray[np.bool_] = ascending[near] == prints
    return found


@dataclass(frozen=True)
class Items:
    """What is known of the N items of a source.

    Attributes
    ----------
    prints : (N,) uint64 array
        Fingerprints; 0 where an item was not read yet.
    useless : (N,) bool array
        Items that cannot be read or used; they are not tried again.
    verified : (N,) bool array
        Items that were read again after their round, and were the same.
    keys : (N,) uint64 array or None
        Digests of the source's own keys; None: items are known by their places.
    """

    prints: NDArray[np.uint64]
    useless: NDArray[np.bool_]
    verified: NDArray[np.bool_]
    keys: NDArray[np.uint64] | None = None

    @classmethod
    def none(cls, length: int, keys: NDArray[np.uint64] | None = None) -> "Items":
        """Return what is known of items that nobody has read."""
        flags = np.zeros((2, length), np.bool_)
        return cls(np.zeros(length, np.uint64), flags[0], flags[1], keys)

    def __len__(self) -> int:
        return len(self.prints)

    def of(self, length: int, keys: NDArray[np.uint64] | None) -> "Items":
        """Return what is known of the items that a source has now, by key or else by place."""
        found = Items.none(length, keys)
        if (keys is None) != (self.keys is None) or not len(self):
            return found
        if keys is None or self.keys is None:
            here = there = np.arange(min(length, len(self)))
        else:
            order = np.argsort(self.keys)
            near = np.searchsorted(self.keys, keys, sorter=order).clip(max=len(self) - 1)
            here = np.flatnonzero(self.keys[order[near]] == keys)
            there = order[near][here]
        for name in ("prints", "useless", "verified"):
            getattr(found, name)[here] = getattr(self, name)[there]
        return found

    def to_entries(self) -> dict[str, bytes | int]:
        """Return eight bytes and three bits for an item that was read, one bit for others."""
        known = self.prints != 0
        return {
            "items": len(self),
            "by-key": int(self.keys is not None),
            "keys": b"" if self.keys is None else self.keys.tobytes(),
            "known": pack_flags(known),
            "prints": self.prints[known].tobytes(),
            "useless": pack_flags(self.useless),
            "verified": pack_flags(self.verified),
        }

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any]) -> "Items":
        """Read what `to_entries` wrote."""
        length = int(entries["items"])
        prints = np.zeros(length, np.uint64)
        prints[unpack_flags(entries["known"], length)] = _numbers(entries["prints"])
        return cls(
            prints,
            unpack_flags(entries["useless"], length),
            unpack_flags(entries["verified"], length),
            _numbers(entries["keys"]) if entries["by-key"] else None,
        )


@dataclass(frozen=True)
class Memory:
    """What a device has sent to one bank.

    Attributes
    ----------
    delivered : (D,) uint64 array, ascending
        Fingerprints of samples that the bank has.
    pending : (P,) uint64 array
        Those of the last reply, until a request says whether it arrived.
    receipt : bytes
        What that reply is known by; empty before the first.
    skipped : mapping of str to int
        Samples of no use, by reason, as that reply counts them.
    refused : (R,) uint64 array
        Fingerprints of samples that were read but cannot be sent.
    items : Items
        Of the source, as it was last.
    scope : bytes
        Digest of what turns an item into a sample; with another one `items` say nothing.
    salt : bytes
        Not empty: each reading of an item gives another version, and items are known by their
        keys or places, with this salt.
    length : int
        Items that the source had last; -1 before the first round.
    told : int
        Copies of other samples that replies have counted.
    changed : bool
        Whether the source has changed since the first round.
    sequence : int
        Number of replies; the higher one is what happened later.
    choices : mapping of str to str
        What codec ``auto`` is, by the options that were asked for: both as they travel, in hex.
    """

    delivered: NDArray[np.uint64] = field(default_factory=no_prints)
    pending: NDArray[np.uint64] = field(default_factory=no_prints)
    receipt: bytes = b""
    skipped: Mapping[str, int] = field(default_factory=dict)
    refused: NDArray[np.uint64] = field(default_factory=no_prints)
    items: Items = field(default_factory=lambda: Items.none(0))
    scope: bytes = b""
    salt: bytes = b""
    length: int = -1
    told: int = 0
    changed: bool = False
    sequence: int = 0
    choices: Mapping[str, str] = field(default_factory=dict)

    def choice(self, asked: CodecOptions) -> Choice | None:
        """Return what codec ``auto`` was found to be where these options were asked for."""
        known = self.choices.get(asked.to_bytes().hex())
        return None if known is None else Choice.from_bytes(bytes.fromhex(known))

    def with_choice(self, asked: CodecOptions, choice: Choice) -> "Memory":
        """Return the memory with a choice of codec."""
        known = {asked.to_bytes().hex(): choice.to_bytes().hex()}
        return replace(self, choices={**self.choices, **known})

    @property
    def unsettled(self) -> bytes:
        """Receipt of the last reply, if it is not known whether its samples arrived."""
        return self.receipt if len(self.pending) else b""

    def settle(self, acknowledged: bytes | None) -> "Memory":
        """Count the pending samples as delivered, or as never sent.

        Parameters
        ----------
        acknowledged : bytes or None
            Receipt of the client's last reply that the server could use, empty for none. A server
            that acknowledges nothing (None) is taken to have received everything.
        """
        if acknowledged is not None and acknowledged != self.receipt:
            return replace(self, pending=no_prints())
        delivered = np.union1d(self.delivered, self.pending)
        return replace(self, delivered=delivered, pending=no_prints(), skipped={})

    def joined(self, other: "Memory") -> "Memory":
        """Return what two copies of one memory know: all that was delivered, and the later rest."""
        later = other if other.sequence > self.sequence else self
        return replace(later, delivered=np.union1d(self.delivered, other.delivered))

    def to_entries(self) -> dict[str, bytes | int | str]:
        """Return the memory as entries of a config record."""
        known = self.items.prints[self.items.prints != 0]
        return self.to_columns() | {
            "delivered": pack_flags(among(known, self.delivered)),
            "delivered-others": self.delivered[~among(self.delivered, np.sort(known))].tobytes(),
        }

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any]) -> "Memory":
        """Read what `to_entries` wrote."""
        memory = cls.from_columns(entries)
        known = memory.items.prints[memory.items.prints != 0]
        here = known[unpack_flags(entries["delivered"], len(known))]
        delivered = np.union1d(here, _numbers(entries["delivered-others"]))
        return replace(memory, delivered=delivered)

    def to_columns(self) -> dict[str, bytes | int | str]:
        """Return all but what was delivered, which a file keeps in a table of its own."""
        return {
            **self.items.to_entries(),
            "pending": self.pending.tobytes(),
            "receipt": self.receipt,
            "refused": self.refused.tobytes(),
            "scope": self.scope,
            "salt": self.salt,
            "notes": json.dumps({name: getattr(self, name) for name in _NOTES}),
        }

    @classmethod
    def from_columns(cls, entries: Mapping[str, Any]) -> "Memory":
        """Read what `to_columns` wrote."""
        return cls(
            no_prints(),
            _numbers(entries["pending"]),
            entries["receipt"],
            refused=_numbers(entries["refused"]),
            items=Items.from_entries(entries),
            scope=entries["scope"],
            salt=entries["salt"],
            **json.loads(entries["notes"]),
        )


def _numbers(data: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(data, np.uint64)


def pack_flags(flags: NDArray[np.bool_]) -> bytes:
    """Return flags, (N,), as one bit each."""
    return np.packbits(flags).tobytes()


def unpack_flags(data: bytes, length: int) -> NDArray[np.bool_]:
    """Return what `pack_flags` packed as `length` flags; those it did not know are not set."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).astype(np.bool_)
    flags = np.zeros(length, np.bool_)
    known = min(length, len(bits))
    flags[:known] = bits[:known]
    return flags
