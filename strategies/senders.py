"""What a server with a bank knows of the nodes that send to it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from codec.messages import SampleReply
from strategies.received import Received
from strategies.sample_bank import StoredReply

_LONGEST_WAIT = 8  # rounds between two questions to a device that has nothing new


@dataclass(frozen=True)
class RecoveredSamples(Received):
    """A reply that an earlier process has banked, and did not live to train on.

    Attributes
    ----------
    receipt : bytes
    content_bytes, envelope_bytes : int
        Of its message.
    """

    reply: SampleReply
    receipt: bytes
    content_bytes: int
    envelope_bytes: int

    @property
    def num_sent(self) -> int:
        """Number of samples in the reply."""
        return self.reply.num_sent

    @property
    def remaining(self) -> int:
        """Samples that the client had left to send."""
        return self.reply.remaining


@dataclass(frozen=True)
class Sender:
    """A node, as its last accepted reply left it.

    Attributes
    ----------
    client : int
        Its own number.
    receipt : bytes
        Of that reply.
    remaining : int
        Samples left to send.
    growing : bool
        Whether there may be more some day.
    wait : int
        Rounds from its last reply to the next question, if nothing remains.
    due : int
        Round of that question.
    """

    client: int
    receipt: bytes
    remaining: int
    growing: bool
    wait: int = 0
    due: int = 0

    def is_finished(self, server_round: int) -> bool:
        """Whether the node is not to be asked in a round."""
        return not self.remaining and not (self.growing and server_round >= self.due)


class Senders:
    """The nodes that have sent samples, by their ids.

    Ids change: a SuperNode that restarts without a key has a new one, and so have all nodes of
    another simulation. Who a node is, its description tells: by the receipt of the last reply that
    nobody has acknowledged yet, or by its number where numbers are unique.

    Attributes
    ----------
    waiting : list of StoredReply
        Replies to the round to come, which an earlier process has received.
    """

    def __init__(self) -> None:
        self.waiting: list[StoredReply] = []
        self._senders: dict[int, Sender] = {}
        self._known: set[int] = set()
        self._here: set[int] = set()  # whose reply to the round to come is among those waiting

    def knows(self, node_id: int) -> bool:
        """Whether it is known what has arrived of a node."""
        return node_id in self._known

    def acknowledged(self, node_id: int) -> bytes:
        """Return the receipt of a node's last accepted reply, empty for none."""
        sender = self._senders.get(node_id)
        return b"" if sender is None else sender.receipt

    def may_grow(self, node_id: int) -> bool:
        """Whether a node's data may grow, as far as its last reply but one tells."""
        sender = self._senders.get(node_id)
        return sender is None or sender.growing

    def finished(self, server_round: int) -> Collection[int]:
        """Return the nodes that are not to be asked in a round."""
        done = {n for n, sender in self._senders.items() if sender.is_finished(server_round)}
        return done | self._here

    def strangers(self) -> set[int]:
        """Return nodes of the process before this one that have not shown up under their ids."""
        return self._senders.keys() - self._known

    def note(self, node_id: int, sender: Sender, server_round: int, *, is_new: bool) -> None:
        """Remember a node as its reply leaves it.

        Parameters
        ----------
        node_id : int
        sender : Sender
        server_round : int
            Of the reply.
        is_new : bool
            Whether it brought anything new.
        """
        before = self._senders.get(node_id)
        wait = 1 if is_new or before is None or not before.wait else 2 * before.wait
        if sender.remaining:
            wait = 0
        wait = min(wait, _LONGEST_WAIT)
        self._senders[node_id] = replace(sender, wait=wait, due=server_round + wait)
        self._known.add(node_id)

    def meet(self, node_id: int, client: int, arrived: bytes, *, by_client: bool) -> int | None:
        """Find out who a node is.

        Parameters
        ----------
        node_id : int
        client : int
            Its own number.
        arrived : bytes
            Receipt of its last reply, if that has arrived and the node does not know it.
        by_client : bool
            Whether a client's number is its own.

        Returns
        -------
        int or None
            Its former id, if that was another.
        """
        self._known.add(node_id)
        former = self._former(node_id, client, arrived, by_client=by_client)
        sender = self._senders.pop(former, None) if former is not None else None
        for place, stored in enumerate(self.waiting):
            if arrived and stored.receipt == arrived:
                self.waiting[place] = replace(stored, node_id=node_id)
                self._here.add(node_id)
        if sender is None and arrived:
            sender = Sender(client, arrived, remaining=1, growing=False)
        if sender is not None:
            self._senders[node_id] = replace(sender, receipt=arrived or sender.receipt)
        return former if former != node_id else None

    def _former(self, node_id: int, client: int, arrived: bytes, *, by_client: bool) -> int | None:
        senders = self._senders.items()
        by_receipt = [n for n, sender in senders if arrived and sender.receipt == arrived]
        if by_receipt or node_id in self._senders:
            return (by_receipt or [node_id])[0]
        strangers = [n for n, s in senders if s.client == client and n not in self._known]
        return strangers[0] if by_client and len(strangers) == 1 else None

    def take_waiting(self) -> list[StoredReply]:
        """Return the replies that wait, once."""
        waiting, self.waiting, self._here = self.waiting, [], set()
        return waiting

    def state(self) -> dict[int, tuple[Any, ...]]:
        """Return what is known, for a checkpoint."""
        return {node_id: astuple(sender) for node_id, sender in self._senders.items()}

    def restore(self, state: Mapping[int, Sequence[Any]], waiting: Sequence[StoredReply]) -> None:
        """Take over what `state` returned, and replies that arrived since; nobody was met yet."""
        self._senders = {node_id: Sender(*values) for node_id, values in state.items()}
        self.waiting, self._known, self._here = list(waiting), set(), set()


def recovered_samples(stored: StoredReply) -> RecoveredSamples:
    """Return a stored reply as one that has just been received."""
    reply = SampleReply(
        client=stored.client,
        num_examples=stored.count,
        samples=b"",
        num_sent=stored.count,
        remaining=stored.remaining,
    )
    return RecoveredSamples(
        stored.node_id, reply, {}, stored.receipt, stored.content_bytes, stored.envelope_bytes
    )
