"""What a client has sent, and what it has sent without knowing whether it arrived."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.client_round import Contribution
from codec.identity import receipt

_FLAGS = ("sent", "pending", "useless")


@dataclass(frozen=True)
class SentSamples:
    """Flags over the client's N samples, kept between rounds.

    Attributes
    ----------
    delivered : (N,) bool array
        Samples that the server has.
    pending : (N,) bool array
        Samples of the last reply, until the server acknowledges it.
    useless : (N,) bool array
        Samples that cannot be read or used; they are not tried again.
    receipt : bytes
        What that reply is known by; empty before the first.
    skipped : mapping of str to int
        Samples of no use, by reason, as that reply counts them.
    """

    delivered: NDArray[np.bool_]
    pending: NDArray[np.bool_]
    useless: NDArray[np.bool_]
    receipt: bytes = b""
    skipped: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def none(cls, length: int) -> "SentSamples":
        """Return the state of a client of `length` samples that has sent nothing."""
        flags = [np.zeros(length, np.bool_) for _ in _FLAGS]
        return cls(flags[0], flags[1], flags[2])

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any], length: int) -> "SentSamples":
        """Read what `to_entries` wrote; a source that has grown since has more unsent samples."""
        flags = [unpack_flags(entries[key], length) for key in _FLAGS]
        skipped = json.loads(entries["skipped"])
        return cls(flags[0], flags[1], flags[2], entries["receipt"], skipped)

    def to_entries(self) -> dict[str, bytes | int | str]:
        """Return one bit a sample and kind of flag, as entries of a config record."""
        return {
            "sent": pack_flags(self.delivered),
            "pending": pack_flags(self.pending),
            "useless": pack_flags(self.useless),
            "receipt": self.receipt,
            "skipped": json.dumps(self.skipped),
        }

    def settle(self, acknowledged: bytes | None) -> "SentSamples":
        """Count the pending samples as delivered, or as never sent.

        Parameters
        ----------
        acknowledged : bytes or None
            Receipt of the client's last reply that the server could use, empty for none. A server
            that acknowledges nothing (None) is taken to have received everything.
        """
        arrived = acknowledged is None or acknowledged == self.receipt
        nothing = np.zeros_like(self.pending)
        if not arrived:
            return replace(self, pending=nothing)
        return replace(self, delivered=self.delivered | self.pending, pending=nothing, skipped={})

    def send(self, contribution: Contribution) -> "SentSamples":
        """Add the samples of this round's reply, as pending, and those found to be of no use."""
        pending, useless = np.zeros_like(self.delivered), self.useless.copy()
        pending[contribution.sent] = True
        useless[list(contribution.useless)] = True
        return SentSamples(
            self.delivered,
            pending,
            useless,
            receipt(contribution.payloads or (b"",)),
            dict(contribution.skipped),
        )

    @property
    def usable(self) -> int:
        """Number of samples that are not known to be of no use."""
        return int((~self.useless).sum())

    def remaining(self, quota: int) -> int:
        """Return how many of `quota` samples are left to send once the pending ones arrive."""
        return max(0, quota - int((self.delivered | self.pending).sum()))


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
