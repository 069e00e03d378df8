"""What a client has sent, and what it has sent without knowing whether it arrived."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec import CodecError

_NO_ROUND = -1


@dataclass(frozen=True)
class SentSamples:
    """Flags over the client's N samples, kept between rounds.

    Attributes
    ----------
    delivered : (N,) bool array
        Samples that the server has.
    pending : (N,) bool array
        Samples of the last reply, until the server acknowledges it.
    pending_round : int
        Round of that reply; -1 before the first.
    """

    delivered: NDArray[np.bool_]
    pending: NDArray[np.bool_]
    pending_round: int = _NO_ROUND

    @classmethod
    def none(cls, length: int) -> "SentSamples":
        """Return the state of a client of `length` samples that has sent nothing."""
        return cls(np.zeros(length, np.bool_), np.zeros(length, np.bool_))

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any], length: int) -> "SentSamples":
        """Read what `to_entries` wrote.

        Raises
        ------
        CodecError
            If the entries are not about `length` samples.
        """
        flags = [_unpack(entries[key], length) for key in ("sent", "pending")]
        return cls(flags[0], flags[1], int(entries["pending-round"]))

    def to_entries(self) -> dict[str, bytes | int]:
        """Return one bit a sample and kind of flag, as entries of a config record."""
        return {
            "sent": np.packbits(self.delivered).tobytes(),
            "pending": np.packbits(self.pending).tobytes(),
            "pending-round": self.pending_round,
        }

    def settle(self, acknowledged: int | None) -> "SentSamples":
        """Count the pending samples as delivered, or as never sent.

        Parameters
        ----------
        acknowledged : int or None
            Round of the client's last reply that the server could use, -1 for none. A server
            that acknowledges nothing (None) is taken to have received everything.
        """
        arrived = acknowledged is None or acknowledged == self.pending_round
        delivered = self.delivered | self.pending if arrived else self.delivered
        return SentSamples(delivered, np.zeros_like(delivered))

    def send(self, indices: NDArray[np.int64], server_round: int) -> "SentSamples":
        """Add the samples of this round's reply, as pending."""
        pending = np.zeros_like(self.delivered)
        pending[indices] = True
        return SentSamples(self.delivered, pending, server_round)

    def remaining(self, quota: int) -> int:
        """Return how many of `quota` samples are left to send once the pending ones arrive."""
        return max(0, quota - int((self.delivered | self.pending).sum()))


def _unpack(data: bytes, length: int) -> NDArray[np.bool_]:
    if len(data) != -(-length // 8):
        raise CodecError(
            f"state remembers {len(data)} bytes of sent flags, but {length} samples take "
            f"{-(-length // 8)}: the source changed within the run"
        )
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=length)
    return bits.astype(np.bool_)
