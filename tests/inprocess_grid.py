"""A Flower grid without processes, for tests: real messages, really deflated and inflated."""

from collections.abc import Callable, Iterable
from copy import deepcopy

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run

Client = Callable[[Message, Context], Message]
_CLIENT_RAISED = 2


def over_the_wire(message: Message) -> Message:
    """Return the message as the other side gets it: every object deflated and inflated."""
    contents = {key: obj.deflate() for key, obj in get_all_nested_objects(message).items()}
    received = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(received, Message)
    received.metadata.__dict__["_message_id"] = message.metadata.message_id
    return received


class InProcessGrid(Grid):
    """Calls one client function for each node, as Flower's simulation does.

    A client that raises gives an ``Error`` reply and its state changes are lost; one that returns
    ``None`` gives no reply. ``instructions`` and ``replies`` keep what was sent.
    """

    def __init__(self, clients: list[Client], first_node_id: int = 1000) -> None:
        self.clients = {first_node_id + k: client for k, client in enumerate(clients)}
        self.contexts = {
            node_id: Context(
                run_id=1,
                node_id=node_id,
                node_config={"partition-id": k, "num-partitions": len(clients)},
                state=RecordDict(),
                run_config={},
            )
            for k, node_id in enumerate(self.clients)
        }
        self.instructions: list[list[Message]] = []
        self.replies: list[list[Message]] = []

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes."""
        return list(self.clients)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the clients one after the other."""
        sent, replies = list(messages), []
        for message in sent:
            message.metadata.__dict__["_message_id"] = f"{len(self.instructions)}"
            reply = self._call(over_the_wire(message))
            if reply is not None:
                replies.append(over_the_wire(reply))
        self.instructions.append(sent)
        self.replies.append(replies)
        return replies

    def _call(self, message: Message) -> Message | None:
        node_id = message.metadata.dst_node_id
        context = deepcopy(self.contexts[node_id])
        try:
            reply = self.clients[node_id](message, context)
        except Exception as error:
            return Message(Error(_CLIENT_RAISED, str(error)), reply_to=message)
        self.contexts[node_id] = context
        return reply

    def set_run(self, run: Run) -> None:
        """Not used."""

    @property
    def run(self) -> Run:
        """Not used."""
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make an instruction."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not used."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not used."""
        raise NotImplementedError
