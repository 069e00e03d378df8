"""Byte accounting of a run: by round, node, direction and section.

The headline figure is the *content* of a message: what Flower's objects (the ``RecordDict`` and
everything nested in it) deflate to, which is what both the SuperLink stores and a device uploads.
The *framed* estimate adds the ``Message`` object and the request head that Flower's transport
sends with every object.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    no_object_id_recompute,
)

UPLINK = "uplink"
DOWNLINK = "downlink"
# Flower posts every object by itself; the head of one such request, measured with flwr 1.41.
REQUEST_HEAD_BYTES = 850


@dataclass(frozen=True)
class LedgerEntry:
    """One message.

    Attributes
    ----------
    server_round : int
        Round of the message, from 1.
    node_id : int
        Flower's id of the client node.
    direction : str
        ``"uplink"`` or ``"downlink"``.
    sections : Mapping[str, int]
        Bytes by section; they sum to the message's content.
    framed_bytes : int
        Estimate with the ``Message`` object and one request head per object.
    """

    server_round: int
    node_id: int
    direction: str
    sections: Mapping[str, int]
    framed_bytes: int

    @property
    def content_bytes(self) -> int:
        """Bytes of the message's content."""
        return sum(self.sections.values())


class Ledger:
    """What was sent, in both directions.

    Attributes
    ----------
    entries : list[LedgerEntry]
        One entry a message, in the order of their recording.
    entropy_bits : dict[str, float]
        Empirical entropy of the accepted payloads, in bits by section: the least that an ideal
        coder would have spent.
    """

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []
        self.entropy_bits: dict[str, float] = {}
        self._totals: dict[str, Counter[str]] = {UPLINK: Counter(), DOWNLINK: Counter()}
        self._framed: Counter[str] = Counter()
        self._rounds: dict[int, Counter[str]] = {}

    def record_downlink(self, server_round: int, messages: Sequence[Message]) -> None:
        """Record the instructions of a round; records shared between them are deflated once.

        Parameters
        ----------
        server_round : int
            Round of the messages.
        messages : Sequence[Message]
            Instructions, each with content.
        """
        sizes: dict[int, tuple[int, int]] = {}
        with no_object_id_recompute():
            for message in messages:
                content, objects = _content_size(message, sizes)
                arrays = sum(
                    sizes[id(record)][0]
                    for record in message.content.values()
                    if isinstance(record, ArrayRecord)
                )
                sections = {"arrays": arrays, "message": content - arrays}
                framed = content + len(message.deflate()) + objects * REQUEST_HEAD_BYTES
                node_id = message.metadata.dst_node_id
                self._add(LedgerEntry(server_round, node_id, DOWNLINK, sections, framed))
        for message in messages:
            _drop_chunks(message)

    def record_uplink(
        self,
        server_round: int,
        message: Message,
        sections: Mapping[str, int] | None = None,
        entropy_bits: Mapping[str, float] | None = None,
    ) -> None:
        """Record a reply.

        Parameters
        ----------
        server_round : int
            Round in which the reply arrived.
        message : Message
            The reply; an ``Error`` reply has no content and counts zero content bytes.
        sections : Mapping[str, int], optional
            Bytes of the reply's parts; what the content has beyond their sum is booked as
            ``"message"``. ``None`` for a reply that was not accepted: all is ``"rejected"``.
        entropy_bits : Mapping[str, float], optional
            Empirical entropy of the payload by section, in bits.
        """
        with no_object_id_recompute():
            content, objects = _content_size(message, {})
            framed = content + len(message.deflate()) + objects * REQUEST_HEAD_BYTES
        if sections is None:
            booked = {"rejected": content}
        else:
            booked = {**sections, "message": content - sum(sections.values())}
        node_id = message.metadata.src_node_id
        self._add(LedgerEntry(server_round, node_id, UPLINK, booked, framed))
        for section, bits in (entropy_bits or {}).items():
            self.entropy_bits[section] = self.entropy_bits.get(section, 0.0) + bits

    def _add(self, entry: LedgerEntry) -> None:
        self.entries.append(entry)
        self._totals[entry.direction].update(entry.sections)
        self._framed[entry.direction] += entry.framed_bytes
        in_round = self._rounds.setdefault(entry.server_round, Counter())
        in_round[entry.direction] += entry.content_bytes

    @property
    def uplink_bytes(self) -> int:
        """Content bytes from the clients to the server."""
        return self._totals[UPLINK].total()

    @property
    def downlink_bytes(self) -> int:
        """Content bytes from the server to the clients."""
        return self._totals[DOWNLINK].total()

    @property
    def entropy_bytes(self) -> float:
        """Empirical entropy of all accepted payloads, in bytes."""
        return sum(self.entropy_bits.values()) / 8

    def framed_bytes(self, direction: str) -> int:
        """Estimate of what the transport carries in a direction, request heads included."""
        return self._framed[direction]

    def sections(self, direction: str = UPLINK) -> dict[str, int]:
        """Content bytes by section in a direction."""
        return dict(self._totals[direction])

    def round_bytes(self, server_round: int) -> tuple[int, int]:
        """Content bytes of one round, ``(uplink, downlink)``."""
        in_round = self._rounds.get(server_round, Counter())
        return in_round[UPLINK], in_round[DOWNLINK]

    def node_bytes(self, direction: str = UPLINK) -> dict[int, int]:
        """Content bytes by node in a direction."""
        nodes: Counter[int] = Counter()
        for entry in self.entries:
            if entry.direction == direction:
                nodes[entry.node_id] += entry.content_bytes
        return dict(nodes)

    def to_dict(self) -> dict[str, Any]:
        """Totals and rounds as plain types for JSON; the full detail is in ``entries``."""
        return {
            "uplink_bytes": self.uplink_bytes,
            "downlink_bytes": self.downlink_bytes,
            "framed_uplink_bytes": self.framed_bytes(UPLINK),
            "framed_downlink_bytes": self.framed_bytes(DOWNLINK),
            "sections": self.sections(UPLINK),
            "downlink_sections": self.sections(DOWNLINK),
            "entropy_bytes": self.entropy_bytes,
            "entropy_sections": {name: bits / 8 for name, bits in self.entropy_bits.items()},
            "rounds": [
                {
                    "round": number,
                    "uplink_bytes": in_round[UPLINK],
                    "downlink_bytes": in_round[DOWNLINK],
                }
                for number, in_round in sorted(self._rounds.items())
            ],
        }


def _content_size(message: Message, sizes: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Bytes of a message's content and the number of its objects, the ``Message`` included.

    ``sizes`` keeps ``(bytes, objects)`` of each record by identity, since a strategy puts one
    ``ArrayRecord`` in the instructions of all nodes.
    """
    if not message.has_content():
        return 0, 1
    content, objects = len(message.content.deflate()), 2
    for record in message.content.values():
        if id(record) not in sizes:
            sizes[id(record)] = _deflated_size(record)
        size, count = sizes[id(record)]
        content += size
        objects += count
    return content, objects


def _drop_chunks(message: Message) -> None:
    """Drop the copy of its data that an array keeps once deflated, and that Ray would send too."""
    for record in message.content.values():
        if isinstance(record, ArrayRecord):
            for array in record.values():
                array.data = array.data


def _deflated_size(record: InflatableObject) -> tuple[int, int]:
    """Bytes and number of the distinct objects in a record: equal ones are sent once."""
    nested = get_all_nested_objects(record)
    return sum(len(obj.deflate()) for obj in nested.values()), len(nested)
