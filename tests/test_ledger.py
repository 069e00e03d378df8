"""The ledger counts what Flower's own objects deflate to."""

import json
import pickle

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from strategies.ledger import DOWNLINK, REQUEST_HEAD_BYTES, UPLINK, Ledger


def _instruction(node_id: int, arrays: ArrayRecord | None = None) -> Message:
    content = RecordDict({"config": ConfigRecord({"server-round": 1, "node": node_id})})
    if arrays is not None:
        content["arrays"] = arrays
    return Message(content, node_id, "train")


def _reply(node_id: int, data: bytes) -> Message:
    content = RecordDict({"payload": ConfigRecord({"samples": data, "num-examples": 3})})
    return Message(content, reply_to=_instruction(node_id))


def _flower_sizes(message: Message) -> tuple[int, int, int]:
    """Content bytes, bytes of the message object and number of objects, by Flower's helpers."""
    objects = get_all_nested_objects(message)
    total = sum(len(obj.deflate()) for obj in objects.values())
    own = len(message.deflate())
    return total - own, own, len(objects)


def test_content_is_what_flower_deflates() -> None:
    reply = _reply(7, bytes(1000))
    ledger = Ledger()
    ledger.record_uplink(1, reply, {"coefficients": 900, "targets": 100})
    content, own, objects = _flower_sizes(reply)
    assert ledger.uplink_bytes == content
    assert ledger.framed_bytes(UPLINK) == content + own + objects * REQUEST_HEAD_BYTES
    assert ledger.sections() == {"coefficients": 900, "targets": 100, "message": content - 1000}


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
        ledger.record_downlink(1, [_instruction(node, arrays) for node in range(nodes)])
        deflated.append(CountedArray.deflated)
        CountedArray.deflated = 0
    assert deflated[0] == deflated[1]
    assert ten.downlink_bytes == 10 * one.downlink_bytes
    assert ten.sections(DOWNLINK)["arrays"] == 10 * one.sections(DOWNLINK)["arrays"]
    assert one.sections(DOWNLINK)["arrays"] > 200_000
    assert ten.uplink_bytes == 0


def test_accounting_leaves_nothing_in_a_message_that_is_yet_to_be_pickled() -> None:
    message = _instruction(4, ArrayRecord([np.arange(50_000, dtype=np.float32)]))
    before = len(pickle.dumps(message))
    ledger = Ledger()
    ledger.record_downlink(1, [message])
    assert len(pickle.dumps(message)) < before + 1000  # ids of objects stay


def test_downlink_content_matches_flower() -> None:
    arrays = ArrayRecord([np.ones((20, 30), np.float32), np.zeros(3, np.float32)])
    message = _instruction(4, arrays)
    ledger = Ledger()
    ledger.record_downlink(2, [message])
    assert ledger.downlink_bytes == _flower_sizes(message)[0]
    assert ledger.round_bytes(2) == (0, ledger.downlink_bytes)
    assert ledger.round_bytes(1) == (0, 0)


def test_equal_arrays_are_sent_once() -> None:
    same = np.ones(5000, np.float32)
    ledger = Ledger()
    ledger.record_downlink(1, [_instruction(1, ArrayRecord([same, same.copy()]))])
    assert ledger.downlink_bytes < 1.5 * same.nbytes


def test_rejected_and_error_replies_are_counted() -> None:
    rejected = _reply(1, b"garbage")
    error = Message(Error(2, "out of memory"), reply_to=_instruction(2))
    ledger = Ledger()
    ledger.record_uplink(1, rejected)
    ledger.record_uplink(1, error)
    assert ledger.sections() == {"rejected": _flower_sizes(rejected)[0]}
    assert ledger.node_bytes() == {1: _flower_sizes(rejected)[0], 2: 0}
    assert ledger.framed_bytes(UPLINK) > ledger.uplink_bytes + REQUEST_HEAD_BYTES


def test_totals_by_round_node_and_section_agree() -> None:
    ledger = Ledger()
    for server_round in (1, 2):
        for node_id in (5, 6):
            data = bytes(100 * node_id)
            sections = {"coefficients": len(data)}
            ledger.record_uplink(
                server_round, _reply(node_id, data), sections, {"coefficients": 8.0}
            )
    assert sum(ledger.node_bytes().values()) == ledger.uplink_bytes
    assert sum(ledger.sections().values()) == ledger.uplink_bytes
    assert sum(ledger.round_bytes(r)[0] for r in (1, 2)) == ledger.uplink_bytes
    assert sum(entry.content_bytes for entry in ledger.entries) == ledger.uplink_bytes
    assert ledger.entropy_bytes == 4.0
    assert [(e.server_round, e.node_id) for e in ledger.entries] == [(1, 5), (1, 6), (2, 5), (2, 6)]


def test_to_dict_is_json() -> None:
    ledger = Ledger()
    ledger.record_downlink(1, [_instruction(3)])
    ledger.record_uplink(1, _reply(3, b"abc"), {"targets": 3}, {"targets": 20.0})
    summary = json.loads(json.dumps(ledger.to_dict()))
    assert summary["uplink_bytes"] == ledger.uplink_bytes
    assert summary["sections"]["targets"] == 3
    assert summary["entropy_sections"] == {"targets": 2.5}
    assert summary["rounds"][0]["downlink_bytes"] == ledger.downlink_bytes
