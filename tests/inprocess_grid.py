"""A Flower grid without processes, for tests: real messages, really deflated and inflated."""

from collections.abc import Iterable
from copy import deepcopy

from flwr.app import ConfigRecord, Error, Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from sim.direct_grid import Client, DirectGrid

__all__ = ["Client", "InProcessGrid", "over_the_wire"]

_CLIENT_RAISED = 2


def over_the_wire(message: Message) -> Message:
    """Return the message as the other side gets it: every object deflated and inflated."""
    contents = {key: obj.deflate() for key, obj in get_all_nested_objects(message).items()}
    received = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(received, Message)
    received.metadata.__dict__["_message_id"] = message.metadata.message_id
    return received


class InProcessGrid(DirectGrid):
    """Calls one client function for each node, as Flower's simulation does.

    A client that raises gives an ``Error`` reply and its state changes are lost; one that returns
    ``None`` gives no reply. ``requests`` and ``replies`` keep what was sent in a round to train;
    questions of what samples are like, and evaluation, are not among them.
    """

    def __init__(self, clients: list[Client], seed: int = 0) -> None:
        super().__init__(clients, seed=seed)
        self.requests: list[list[Message]] = []
        self.replies: list[list[Message]] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the clients one after the other."""
        sent = list(messages)
        replies = list(super().send_and_receive(sent))
        if not any(map(is_question, sent)):
            self.requests.append(sent)
            self.replies.append(replies)
        return replies

    def answer(self, message: Message) -> Message | None:
        """Return one node's reply, as it arrives."""
        node_id, received = message.metadata.dst_node_id, over_the_wire(message)
        context = deepcopy(self.contexts[node_id])
        try:
            reply = self.clients[node_id](received, context)
        except Exception as error:
            return over_the_wire(Message(Error(_CLIENT_RAISED, str(error)), reply_to=received))
        self.contexts[node_id] = context
        return None if reply is None else over_the_wire(reply)


def is_question(message: Message) -> bool:
    """Whether a message asks for no training."""
    config = message.content.get("config")
    asked = config.get("mode") if isinstance(config, ConfigRecord) else None
    return asked in ("describe", "calibrate") or message.metadata.message_type == "evaluate"
