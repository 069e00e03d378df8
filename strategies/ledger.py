"""Byte accounting of a run: by round, node, direction and section.

The headline figure is the *content* of a message: what Flower's objects (the ``RecordDict`` and
everything nested in it) deflate to, which is what both the SuperLink stores and a device uploads.

The *envelope* is what a SuperLink's own counter (``network-traffic`` of ``flwr ls``) counts beyond
it: the ``Message`` object, and the pull or push that announces the message with its metadata and
the ids of its objects. The ids are counted by their length, and Flower counts neither HTTP heads,
nor heartbeats, nor pulls that find no message. Objects that the SuperLink has already, as when two
clients send equal records at the same time, are announced but not sent again; here they count for
each message. In simulation there is no such traffic: there the envelope is what a SuperLink would
count.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    Reconnect,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)

from codec.messages import CONFIG, SCOUT

UPLINK = "uplink"
DOWNLINK = "downlink"
MESSAGE = "message"  # section of what no other section has
UPDATES = "updates"  # section of changes of the model, and entry of the requests that bring them
RECOVERED = "recovered"  # section of replies of which only the size is known
# Stand-ins for what is known only later, all of one length: SHA-256 in hex, and a UUID.
_OBJECT_ID = "0" * 64
_SESSION_ID = "0" * 36


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
    envelope_bytes : int
        Bytes beyond the content in the same direction; 0 for an error reply of the SuperLink's
        own, which no node sends.
    opposite_bytes : int
        Envelope bytes of the same exchange in the other direction: a node's pull, or the
        SuperLink's answer to a reply.
    """

    server_round: int
    node_id: int
    direction: str
    sections: Mapping[str, int]
    envelope_bytes: int
    opposite_bytes: int

    @property
    def content_bytes(self) -> int:
        """Bytes of the message's content."""
        return sum(self.sections.values())


class Ledger:
    """What was sent, in both directions.

    Attributes
    ----------
    entries : list[LedgerEntry]
        One entry a message, in the order of their recording; after `restore` the later ones alone.
    entropy_bits : dict[str, float]
        Empirical entropy of the accepted payloads, in bits by section: the least that an ideal
        coder would have spent.
    """

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []
        self.entropy_bits: dict[str, float] = {}
        self._totals: dict[str, Counter[str]] = {UPLINK: Counter(), DOWNLINK: Counter()}
        self._envelope: Counter[str] = Counter()
        self._rounds: dict[int, Counter[str]] = {}
        self._nodes: dict[str, Counter[int]] = {UPLINK: Counter(), DOWNLINK: Counter()}

    def record_downlink(self, server_round: int, messages: Sequence[Message]) -> None:
        """Record the requests of a round; records shared between them are deflated once.

        Parameters
        ----------
        server_round : int
            Round of the messages.
        messages : Sequence[Message]
            Requests, each with content.
        """
        records: dict[int, _Record] = {}
        with no_object_id_recompute():
            for message in messages:
                content, _, tree = _measure(message, records)
                arrays = sum(
                    records[id(record)].size
                    for record in message.content.values()
                    if isinstance(record, ArrayRecord)
                )
                brought = _brought(message)
                rest = content - arrays - sum(brought.values())
                sections = {"arrays": arrays, MESSAGE: rest, **brought}
                node_id = message.metadata.dst_node_id
                envelope = _request_envelope(message, tree)
                self._add(LedgerEntry(server_round, node_id, DOWNLINK, sections, *envelope))
        for message in messages:
            _drop_chunks(message)

    def record_uplink(
        self,
        server_round: int,
        message: Message,
        sections: Mapping[str, int] | None = None,
        entropy_bits: Mapping[str, float] | None = None,
        *,
        node_id: int | None = None,
        rest: str = MESSAGE,
    ) -> LedgerEntry:
        """Record a reply, and return its entry.

        Parameters
        ----------
        server_round : int
            Round in which the reply arrived.
        message : Message
            The reply; an ``Error`` reply has no content and counts zero content bytes.
        sections : Mapping[str, int], optional
            Bytes of the reply's parts; what the content has beyond their sum is booked as `rest`.
            ``None`` for a reply that was not accepted: all is ``"rejected"``.
        entropy_bits : Mapping[str, float], optional
            Empirical entropy of the payload by section, in bits.
        node_id : int, optional
            Node that was asked; by default the sender. They differ in error replies of the
            SuperLink's own.
        rest : str
            Section of what is in no other section.
        """
        with no_object_id_recompute():
            content, objects, tree = _measure(message, {})
            envelope = _reply_envelope(message, objects, tree)
        if sections is None:
            booked = {"rejected": content}
        else:
            booked = {**sections, rest: content - sum(sections.values())}
        if node_id is None:
            node_id = message.metadata.src_node_id
        entry = LedgerEntry(server_round, node_id, UPLINK, booked, *envelope)
        self._add(entry)
        for section, bits in (entropy_bits or {}).items():
            self.entropy_bits[section] = self.entropy_bits.get(section, 0.0) + bits
        return entry

    def record_known(
        self, server_round: int, node_id: int, content_bytes: int, envelope_bytes: int
    ) -> None:
        """Record a reply that an earlier process received, of which only the size is known."""
        sections = {RECOVERED: content_bytes}
        self._add(LedgerEntry(server_round, node_id, UPLINK, sections, envelope_bytes, 0))

    def rename(self, old: int, new: int) -> None:
        """Book what a node has sent and received under the id that it has now."""
        for nodes in self._nodes.values():
            if old in nodes:
                nodes[new] += nodes.pop(old)

    def state(self) -> dict[str, Any]:
        """Return the totals, for a checkpoint."""
        return {
            "entropy_bits": self.entropy_bits,
            "totals": self._totals,
            "envelope": self._envelope,
            "rounds": self._rounds,
            "nodes": self._nodes,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.entries = []
        self.entropy_bits = dict(state["entropy_bits"])
        self._totals = {key: Counter(value) for key, value in state["totals"].items()}
        self._envelope = Counter(state["envelope"])
        self._rounds = {key: Counter(value) for key, value in state["rounds"].items()}
        self._nodes = {key: Counter(value) for key, value in state["nodes"].items()}

    def _add(self, entry: LedgerEntry) -> None:
        self.entries.append(entry)
        self._totals[entry.direction].update(entry.sections)
        opposite = DOWNLINK if entry.direction == UPLINK else UPLINK
        self._envelope[entry.direction] += entry.envelope_bytes
        self._envelope[opposite] += entry.opposite_bytes
        self._nodes[entry.direction][entry.node_id] += entry.content_bytes
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

    def envelope_bytes(self, direction: str) -> int:
        """Bytes that a SuperLink counts in a direction beyond the content."""
        return self._envelope[direction]

    def sections(self, direction: str = UPLINK) -> dict[str, int]:
        """Content bytes by section in a direction."""
        return dict(self._totals[direction])

    def round_bytes(self, server_round: int) -> tuple[int, int]:
        """Content bytes of one round, ``(uplink, downlink)``."""
        in_round = self._rounds.get(server_round, Counter())
        return in_round[UPLINK], in_round[DOWNLINK]

    def node_bytes(self, direction: str = UPLINK) -> dict[int, int]:
        """Content bytes by node in a direction."""
        return dict(self._nodes[direction])


@dataclass(frozen=True)
class _Record:
    """A record of a message: bytes and number of its objects, and the tree of their ids."""

    size: int
    objects: int
    tree: ObjectTree


def _brought(message: Message) -> dict[str, int]:
    """Bytes of the scout, or the changes of the model, that a request brings."""
    config = message.content.get(CONFIG) if message.has_content() else None
    if not isinstance(config, ConfigRecord):
        return {}
    scout, updates = config.get(SCOUT), config.get(UPDATES)
    found = {
        SCOUT: len(scout) if isinstance(scout, bytes) else 0,
        UPDATES: sum(len(part) for part in updates if isinstance(part, bytes))
        if isinstance(updates, list)
        else 0,
    }
    return {name: size for name, size in found.items() if size}


def _measure(message: Message, records: dict[int, _Record]) -> tuple[int, int, ObjectTree]:
    """Bytes of a message's content, number of its objects (the ``Message`` included), their tree.

    ``records`` keeps each record by identity, since a strategy puts one ``ArrayRecord`` in the
    requests to all nodes.
    """
    if not message.has_content():
        return 0, 1, ObjectTree(object_id=_OBJECT_ID)
    for record in message.content.values():
        if id(record) not in records:
            records[id(record)] = _measure_record(record)
    measured = [records[id(record)] for record in message.content.values()]
    size = len(message.content.deflate()) + sum(record.size for record in measured)
    objects = 2 + sum(record.objects for record in measured)
    content = ObjectTree(object_id=_OBJECT_ID, children=[record.tree for record in measured])
    return size, objects, ObjectTree(object_id=_OBJECT_ID, children=[content])


def _measure_record(record: InflatableObject) -> _Record:
    # Equal objects have one id and are sent once.
    nested = get_all_nested_objects(record)
    size = sum(len(obj.deflate()) for obj in nested.values())
    return _Record(size, len(nested), get_object_tree(record))


def _request_envelope(message: Message, tree: ObjectTree) -> tuple[int, int]:
    """Envelope bytes ``(down, up)`` of a request, which a node pulls."""
    pull = PullMessagesRequest(node=Node(node_id=message.metadata.dst_node_id))
    answer = PullMessagesResponse(messages_list=[_announced(message)], message_object_trees=[tree])
    return answer.ByteSize() + len(message.deflate()), pull.ByteSize()


def _reply_envelope(message: Message, objects: int, tree: ObjectTree) -> tuple[int, int]:
    """Envelope bytes ``(up, down)`` of a reply, which the SuperLink answers."""
    if message.metadata.src_node_id == SUPERLINK_NODE_ID:
        return 0, 0
    push = PushMessagesRequest(
        node=Node(node_id=message.metadata.src_node_id),
        messages_list=[_announced(message)],
        message_object_trees=[tree],
        clientapp_runtime_list=[0.0],
    )
    answer = PushMessagesResponse(
        reconnect=Reconnect(reconnect=1),
        results={_OBJECT_ID: 0},
        objects_to_push=[_OBJECT_ID] * objects,
        session_id=_SESSION_ID,
    )
    return push.ByteSize() + len(message.deflate()), answer.ByteSize()


def _announced(message: Message) -> ProtoMessage:
    """Return what announces a message: all but its content, which goes object by object."""
    proto = message_to_proto(remove_content_from_message(message))
    proto.metadata.message_id = _OBJECT_ID
    return proto


def _drop_chunks(message: Message) -> None:
    """Drop the copy of its data that an array keeps once deflated, and that Ray would send too."""
    for record in message.content.values():
        if isinstance(record, ArrayRecord):
            for array in record.values():
                array.data = array.data
