"""What a bank knows of the replies that its samples came with."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A reply, as it is known to a bank.

    Attributes
    ----------
    receipt : bytes
        What its payloads are known by, see `codec.identity.receipt`.
    node_id : int
        Flower's, unsigned and of 64 bits.
    client : int
        The client's own number.
    server_round : int
        In which it was asked for.
    strategy : str
        Name of the strategy that asked.
    fingerprints : bytes
        Tags of the samples in the order of the payloads, see `codec.identity`; empty: none.
    variance_kept : float
        See `codec.messages.SampleReply`.
    remaining : int
        Samples that the client had left to send.
    content_bytes, envelope_bytes : int
        Of the message, as the ledger books them.
    """

    receipt: bytes
    node_id: int = 0
    client: int = 0
    server_round: int = 0
    strategy: str = ""
    fingerprints: bytes = b""
    variance_kept: float = 1.0
    remaining: int = 0
    content_bytes: int = 0
    envelope_bytes: int = 0


@dataclass(frozen=True)
class Added:
    """What came of a reply.

    Attributes
    ----------
    samples : int
        Samples that are new in the bank.
    duplicates : int
        Samples that it held already, and dropped.
    known : bool
        Whether the very reply was there already, so that nothing of it was added.
    """

    samples: int
    duplicates: int
    known: bool


@dataclass(frozen=True)
class StoredReply:
    """A reply in a bank's file that waits to become part of the bank.

    Attributes
    ----------
    client, node_id, server_round, receipt, remaining, content_bytes, envelope_bytes
        See `Origin`.
    count : int
        Samples in its payloads, duplicates among them.
    """

    client: int
    node_id: int
    server_round: int
    receipt: bytes
    count: int
    remaining: int
    content_bytes: int
    envelope_bytes: int
