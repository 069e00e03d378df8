"""A grid that sends and receives apart, on a clock of its own: replies come late, or never."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
from flwr.app import Error, Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from inprocess_grid import Client, InProcessGrid, is_question

from strategies import server_strategy
from strategies.post import Post

NEVER = float("inf")
HEARTBEAT = 60.0


@dataclass(frozen=True)
class _OnTheWay:
    message: Message
    reply: Message | None
    at: float
    due: float


class LateGrid(InProcessGrid):
    """As a SuperLink: a message is answered after a while, by a node that may die meanwhile.

    Attributes
    ----------
    now : float
        Seconds; they pass while somebody sleeps.
    delay : callable
        From the index of a node, from 0, and how often it was asked, from 1, to the seconds that
        its reply takes.
    dead : set of int
        Nodes that answer no more; after a heartbeat they are not listed, and Flower makes an
        error of their replies.
    """

    def __init__(
        self, clients: list[Client], delay: Callable[[int, int], float], seed: int = 0
    ) -> None:
        super().__init__(clients, seed)
        self.now, self.delay = 0.0, delay
        self.dead: dict[int, float] = {}
        self.asked: list[int] = []
        self.pulls = 0
        self._index = {node_id: k for k, node_id in enumerate(self.clients)}
        self._on_the_way: dict[str, _OnTheWay] = {}

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def die(self, index: int) -> None:
        """Let a node die, now."""
        self.dead[list(self.clients)[index]] = self.now

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are not known to be dead."""
        return [node_id for node_id in self.clients if not self._is_gone(node_id)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let nodes answer, one after the other; their replies are on the way."""
        sent, replies = list(messages), []
        for message in sent:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = number = str(self._sent)
            node_id = message.metadata.dst_node_id
            self.asked.append(node_id)
            delay = self.delay(self._index[node_id], self.asked.count(node_id))
            reply = None if node_id in self.dead or delay == NEVER else self.answer(message)
            if reply is not None:
                replies.append(reply)
            self._on_the_way[number] = _OnTheWay(message, reply, self.now, self.now + delay)
        if not any(map(is_question, sent)):
            self.requests.append(sent)
            self.replies.append(replies)
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return what has come."""
        found = []
        self.pulls += 1
        for number in message_ids:
            sent = self._on_the_way[number]
            reply = sent.reply
            if self._is_gone(sent.message.metadata.dst_node_id):
                reply = _own_reply(sent.message, ErrorCode.NODE_UNAVAILABLE)
            elif self.now >= sent.at + sent.message.metadata.ttl:
                reply = _own_reply(sent.message, ErrorCode.MESSAGE_UNAVAILABLE)
            elif reply is None or sent.due > self.now:
                continue
            del self._on_the_way[number]
            found.append(reply)
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send and receive as Flower's own grids do."""
        return Post(self, clock=self.clock, sleep=self.sleep).send_and_receive(
            messages, timeout=timeout
        )

    def _is_gone(self, node_id: int) -> bool:
        return node_id in self.dead and self.now >= self.dead[node_id] + HEARTBEAT


def _own_reply(message: Message, code: int) -> Message:
    """Return the reply that a SuperLink makes itself, in its own name."""
    reply = Message(Error(code, "Message Unavailable"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
    return reply


@contextmanager
def clock_of(grid: LateGrid) -> Iterator[None]:
    """Let strategies wait by the grid's clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_strategy, "Post", partial(Post, clock=grid.clock, sleep=grid.sleep))
        yield
