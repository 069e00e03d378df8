"""Flower grids without SuperLink: what the nodes would do is done on this machine."""

from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

Client = Callable[[Message, Context], Message]
RUN_ID = 0xD1CE_0000_0000_0001  # as long as Flower's, of which the bytes of a message depend


def node_ids(count: int, seed: int = 0) -> list[int]:
    """Return ids as Flower gives them: random, of 64 bits, so that every other exceeds 2**63."""
    stream = np.random.default_rng(seed)
    return [int(node_id) for node_id in stream.integers(2**64 - 1, size=count, dtype=np.uint64)]


class LocalGrid(Grid):
    """What all grids of this machine have in common; how messages travel is up to the subclass.

    Flower makes messages only inside a task: `flwr.supercore.task_identity.TaskIdentity` must be
    set.
    """

    def set_run(self, run: Run) -> None:
        """Not used."""

    @property
    def run(self) -> Run:
        """The run, of which nothing is known but its id."""
        return Run.create_empty(RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a request, as old code does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


class DirectGrid(LocalGrid):
    """Calls one client function for each node, one after the other, in this process.

    Messages are handed over as they are, and what a client raises is raised.

    Parameters
    ----------
    clients : list of callable
        ``(message, context) -> reply``, one for each node; they may be one and the same.
    run_config : dict, optional
        Of every node's context.
    seed : int
        Seed of the node ids.

    Attributes
    ----------
    clients : dict of int to callable
        By node id.
    contexts : dict of int to Context
        By node id; they keep the clients' states between rounds.
    """

    def __init__(
        self,
        clients: list[Client],
        run_config: dict[str, bool | float | int | str] | None = None,
        seed: int = 0,
    ) -> None:
        self.clients = dict(zip(node_ids(len(clients), seed), clients, strict=True))
        self.contexts = {
            node_id: Context(
                run_id=1,
                node_id=node_id,
                node_config={"partition-id": k, "num-partitions": len(clients)},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for k, node_id in enumerate(self.clients)
        }
        self._sent = 0

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes."""
        return list(self.clients)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the clients one after the other; who returns ``None`` gives no reply."""
        replies = []
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = str(self._sent)
            reply = self.answer(message)
            if reply is not None:
                replies.append(reply)
        return replies

    def answer(self, message: Message) -> Message | None:
        """Return one node's reply to a request."""
        node_id = message.metadata.dst_node_id
        return self.clients[node_id](message, self.contexts[node_id])

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not used."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not used."""
        raise NotImplementedError
