"""The ledger counts what Flower's own objects deflate to."""

import pickle
from uuid import uuid4

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from strategies.ledger import DOWNLINK, UPLINK, Ledger

SUPERLINK, NODE = 1, 2**63 + 7  # node ids; real ones have 64 bits


def _request(node_id: int, arrays: ArrayRecord | None = None) -> Message:
    content = RecordDict({"config": ConfigRecord({"server-round": 1, "node": node_id})})
    if arrays is not None:
        content["arrays"] = arrays
    return Message(content, node_id, "train")


def _reply(node_id: int, data: bytes) -> Message:
    content = RecordDict({"payload": ConfigRecord({"samples": data, "num-examples": 3})})
    return Message(content, reply_to=_request(node_id))


def _flower_content(message: Message) -> int:
    """Bytes of all objects but the message's own."""
    objects = get_all_nested_objects(message)
    return sum(len(obj.deflate()) for obj in objects.values()) - len(message.deflate())


def _pull(message: Message) -> tuple[int, int]:
    """Bytes ``(down, up)`` that a SuperLink counts when a node pulls a message, as Flower does."""
    message.metadata.__dict__["_message_id"] = message.object_id
    request = fleet_pb2.PullMessagesRequest(node=Node(node_id=message.metadata.dst_node_id))
    response = fleet_pb2.PullMessagesResponse(
        messages_list=[message_to_proto(remove_content_from_message(message))],
        message_object_trees=[get_object_tree(message)],
    )
    objects = get_all_nested_objects(message).values()
    return response.ByteSize() + sum(len(obj.deflate()) for obj in objects), request.ByteSize()


def _push(message: Message) -> tuple[int, int]:
    """Bytes ``(up, down)`` that a SuperLink counts when a node pushes a message."""
    message.metadata.__dict__["_message_id"] = message.object_id
    objects = get_all_nested_objects(message)
    request = fleet_pb2.PushMessagesRequest(
        node=Node(node_id=message.metadata.src_node_id),
        messages_list=[message_to_proto(remove_content_from_message(message))],
        message_object_trees=[get_object_tree(message)],
        clientapp_runtime_list=[0.25],
    )
    response = fleet_pb2.PushMessagesResponse(
        reconnect=fleet_pb2.Reconnect(reconnect=5),
        results={message.metadata.message_id: 0},
        objects_to_push=list(objects),
        session_id=str(uuid4()),
    )
    sent = sum(len(obj.deflate()) for obj in objects.values())
    return request.ByteSize() + sent, response.ByteSize()


def test_content_is_what_flower_deflates() -> None:
    reply = _reply(7, bytes(1000))
    ledger = Ledger()
    ledger.record_uplink(1, reply, {"values": 900, "targets": 100})
    content = _flower_content(reply)
    assert ledger.uplink_bytes == content
    assert ledger.sections() == {"values": 900, "targets": 100, "message": content - 1000}


def test_shared_arrays_count_for_every_node_but_deflate_once() -> None:
    class CountedArray(Array):
        deflated = 0

        def deflate(self) -> bytes:
            CountedArray.deflated += 1
            return super().deflate()

    # Flower takes an object's type from its class name.
    CountedArray.__qualname__ = "Array"
    one, ten = Ledger(), Ledger()
    deflated = []
    for ledger, nodes in ((one, 1), (ten, 10)):
        arrays = ArrayRecord()
        arrays["weight"] = CountedArray(np.arange(50_000, dtype=np.float32))
        ledger.record_downlink(1, [_request(node, arrays) for node in range(nodes)])
        deflated.append(CountedArray.deflated)
        CountedArray.deflated = 0
    assert deflated[0] == deflated[1]
    assert ten.downlink_bytes == 10 * one.downlink_bytes
    assert ten.sections(DOWNLINK)["arrays"] == 10 * one.sections(DOWNLINK)["arrays"]
    assert one.sections(DOWNLINK)["arrays"] > 200_000
    assert ten.uplink_bytes == 0


def test_accounting_leaves_nothing_in_a_message_that_is_yet_to_be_pickled() -> None:
    message = _request(4, ArrayRecord([np.arange(50_000, dtype=np.float32)]))
    before = len(pickle.dumps(message))
    ledger = Ledger()
    ledger.record_downlink(1, [message])
    assert len(pickle.dumps(message)) < before + 1000  # ids of objects stay


def test_downlink_content_matches_flower() -> None:
    arrays = ArrayRecord([np.ones((20, 30), np.float32), np.zeros(3, np.float32)])
    message = _request(4, arrays)
    ledger = Ledger()
    ledger.record_downlink(2, [message])
    assert ledger.downlink_bytes == _flower_content(message)
    assert ledger.round_bytes(2) == (0, ledger.downlink_bytes)
    assert ledger.round_bytes(1) == (0, 0)


def test_equal_arrays_are_sent_once() -> None:
    same = np.ones(5000, np.float32)
    ledger = Ledger()
    ledger.record_downlink(1, [_request(1, ArrayRecord([same, same.copy()]))])
    assert ledger.downlink_bytes < 1.5 * same.nbytes


def test_content_and_envelope_of_requests_are_what_a_superlink_counts() -> None:
    arrays = ArrayRecord([np.arange(k + 3, dtype=np.float32) for k in range(20)])
    messages = [_request(NODE + k, arrays) for k in range(2)] + [_request(NODE)]
    ledger = Ledger()
    ledger.record_downlink(1, messages)
    for entry, message in zip(ledger.entries, messages, strict=True):
        down = entry.content_bytes + entry.envelope_bytes
        assert (down, entry.opposite_bytes) == _pull(message)


def test_content_and_envelope_of_a_reply_are_what_a_superlink_counts() -> None:
    request = _request(NODE)
    request.metadata.__dict__["_message_id"] = request.object_id
    content = RecordDict({"a": ConfigRecord({"samples": bytes(1000)}), "b": ConfigRecord()})
    replies = [
        Message(content, reply_to=request),
        Message(Error(2, "out of memory"), reply_to=request),
    ]
    ledger = Ledger()
    for reply in replies:
        ledger.record_uplink(1, reply)
    for entry, reply in zip(ledger.entries, replies, strict=True):
        assert (entry.content_bytes + entry.envelope_bytes, entry.opposite_bytes) == _push(reply)


def test_the_answer_to_a_reply_is_in_the_downlink_envelope() -> None:
    ledger = Ledger()
    ledger.record_downlink(1, [_request(NODE)])
    ledger.record_uplink(1, _reply(NODE, b"abc"))
    down, up = ledger.entries
    assert ledger.envelope_bytes(UPLINK) == up.envelope_bytes + down.opposite_bytes
    assert ledger.envelope_bytes(DOWNLINK) == down.envelope_bytes + up.opposite_bytes
    assert min(down.opposite_bytes, up.opposite_bytes) > 0


def test_an_error_that_no_node_sent_has_no_envelope() -> None:
    ledger = Ledger()
    ledger.record_uplink(1, Message(Error(3, "no heartbeat"), reply_to=_request(SUPERLINK)))
    assert ledger.envelope_bytes(UPLINK) == ledger.envelope_bytes(DOWNLINK) == 0


def test_rejected_and_error_replies_are_counted() -> None:
    rejected = _reply(3, b"garbage")
    error = Message(Error(2, "out of memory"), reply_to=_request(2))
    ledger = Ledger()
    ledger.record_uplink(1, rejected)
    ledger.record_uplink(1, error)
    assert ledger.sections() == {"rejected": _flower_content(rejected)}
    assert ledger.node_bytes() == {3: _flower_content(rejected), 2: 0}


def test_totals_by_round_node_and_section_agree() -> None:
    ledger = Ledger()
    for server_round in (1, 2):
        for node_id in (5, 6):
            data = bytes(100 * node_id)
            sections = {"values": len(data)}
            ledger.record_uplink(server_round, _reply(node_id, data), sections, {"values": 8.0})
    assert sum(ledger.node_bytes().values()) == ledger.uplink_bytes
    assert sum(ledger.sections().values()) == ledger.uplink_bytes
    assert sum(ledger.round_bytes(r)[0] for r in (1, 2)) == ledger.uplink_bytes
    assert sum(entry.content_bytes for entry in ledger.entries) == ledger.uplink_bytes
    assert ledger.entropy_bytes == 4.0
    assert [(e.server_round, e.node_id) for e in ledger.entries] == [(1, 5), (1, 6), (2, 5), (2, 6)]


def test_a_reply_is_booked_under_the_node_that_was_asked() -> None:
    ledger = Ledger()
    ledger.record_uplink(
        1, Message(Error(3, "no heartbeat"), reply_to=_request(SUPERLINK)), node_id=77
    )
    ledger.record_uplink(1, _reply(NODE, b"abc"), {}, rest="evaluation")
    assert set(ledger.node_bytes()) == {77, NODE}
    assert ledger.node_bytes()[77] == 0
    assert ledger.sections() == {"rejected": 0, "evaluation": ledger.uplink_bytes}
