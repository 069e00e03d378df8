"""The books of a run: bytes in both directions, time by stage, replies that could not be used."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import TypeVar

from flwr.app import Message, MetricRecord
from flwr.common import log

from codec.messages import SampleReply
from strategies.client_words import client_words
from strategies.ledger import Ledger
from strategies.received import BadReply, Received, client_of

ReceivedT = TypeVar("ReceivedT", bound=Received)
ReplyT = TypeVar("ReplyT")

WARN_BELOW = 0.7  # share of the variance kept


@dataclass(frozen=True)
class RoundResult:
    """One round in numbers; what is counted is this round's alone.

    Attributes
    ----------
    round : int
        Number of the round, from 1.
    steps_taken : int
        Optimizer steps.
    samples_sent : int
        Samples in accepted payloads.
    uplink_bytes, downlink_bytes : int
        Content bytes in each direction, those of rejected replies included.
    train_loss : float
        Mean training loss; NaN when no step was taken, or where only the clients know it.
    seconds : Mapping[str, float]
        Time by stage: ``round_trip`` (from the requests' leaving to the last reply), ``decode``
        and ``train`` on the server; ``client_*`` summed over the clients.
    failures : Mapping[str, int]
        Replies that could not be used, by cause.
    """

    round: int
    steps_taken: int
    samples_sent: int
    uplink_bytes: int
    downlink_bytes: int
    train_loss: float
    seconds: Mapping[str, float]
    failures: Mapping[str, int]


class RoundBook:
    """Keeps the books of a strategy: `begin` a round, `collect` its replies, `finish` it.

    Parameters
    ----------
    on_round : callable, optional
        Called with the :class:`RoundResult` at the end of each round's training.

    Attributes
    ----------
    ledger : Ledger
    seconds : dict[str, float]
        Time by stage, over all rounds.
    failures : Counter[str]
        Replies that could not be used, by cause.
    samples_sent : int
        Samples in accepted payloads.
    client_memory_bytes : int
        Largest error memory that any client keeps for its compressor.
    skipped : Counter[str]
        Samples of no use, by reason.
    clipped : int
        Values that clients clipped to the range of their data.
    variance_kept : float
        Share of the samples' variance that survived their coding, mean over all that were sent;
        1 before any was.
    accepted : int
        Replies that could be used.
    node_steps : int
        Sum over the rounds of their steps times the nodes that were asked: the gradients that
        data-parallel training would have sent.
    """

    def __init__(self, on_round: Callable[[RoundResult], None] | None = None) -> None:
        self.ledger = Ledger()
        self.seconds: dict[str, float] = {}
        self.failures: Counter[str] = Counter()
        self.samples_sent = 0
        self.client_memory_bytes = 0
        self.skipped: Counter[str] = Counter()
        self.clipped = 0
        self.accepted = 0
        self.node_steps = 0
        self._kept_sum = 0.0
        self._kept_count = 0
        self._told: set[str] = set()
        self._words: dict[int, str] = {}
        self._on_round = on_round
        self._messages: list[Message] = []
        self._missing: set[int] = set()
        self._asked = 0
        self.any_missing = False
        self._asked_at = 0.0
        self._round_seconds: defaultdict[str, float] = defaultdict(float)
        self._failures_before: Counter[str] = Counter()

    @property
    def variance_kept(self) -> float:
        """Share of the samples' variance that survived their coding."""
        return self._kept_sum / self._kept_count if self._kept_count else 1.0

    def ask(self, server_round: int, messages: Sequence[Message]) -> None:
        """Book questions that go ahead of a round's requests."""
        self.ledger.record_downlink(server_round, messages)
        self._messages = list(messages)
        self._missing = {message.metadata.dst_node_id for message in messages}

    def answers(
        self, server_round: int, replies: Iterable[Message], read: Callable[[Message], ReplyT]
    ) -> list[ReplyT]:
        """Return what the answers to `ask` hold; count and log those that cannot be used."""
        found = []
        for message, node_id in self._by_client(replies):
            try:
                answer = read(message)
            except BadReply as bad:
                self.reject(node_id, bad)
                self.ledger.record_uplink(server_round, message)
                continue
            self.ledger.record_uplink(server_round, message, {})
            found.append(answer)
        self._miss_replies()
        return found

    def last_words(self, node_id: int) -> list[str]:
        """Return what a node's last bad reply said; nothing if it has sent none."""
        return [f"node {node_id}: {self._words[node_id]}"] if node_id in self._words else []

    def why(self) -> str:
        """Return what was said of replies that could not be used, each once."""
        said = list(dict.fromkeys(self._words.values()))
        causes = ", ".join(f"{number} {cause}" for cause, number in self.failures.items())
        return "; ".join(said[:3]) or causes or "nobody answered"

    def evaluated(self, server_round: int, replies: Iterable[Message]) -> None:
        """Book replies to requests to evaluate."""
        for message, node_id in self._by_client(replies):
            if message.has_error():
                self.reject(node_id, BadReply("evaluate", client_words(message.error.reason)))
            self.ledger.record_uplink(server_round, message, {})
        self._miss_replies()

    def begin(self, server_round: int, messages: Sequence[Message]) -> None:
        """Book the requests of a round, which are about to leave."""
        self._round_seconds = defaultdict(float)
        self._failures_before = self.failures.copy()
        self.ledger.record_downlink(server_round, messages)
        self._messages = list(messages)
        self._missing = {message.metadata.dst_node_id for message in messages}
        self._asked = len(self._missing)
        self._asked_at = time.perf_counter()

    def collect(
        self,
        server_round: int,
        replies: Iterable[Message],
        read: Callable[[Message], ReceivedT],
    ) -> list[ReceivedT]:
        """Read a round's replies; count and log those that cannot be used.

        Parameters
        ----------
        server_round : int
        replies : iterable of Message
            As they came from the grid.
        read : callable
            Decodes and checks a reply, which may be an error; `BadReply` if it cannot be used.

        Returns
        -------
        list
            What `read` returned, in the order of the clients.
        """
        if self._messages:
            self._round_seconds["round_trip"] += time.perf_counter() - self._asked_at
        accepted = []
        with self.stage("decode"):
            for message, node_id in self._by_client(replies):
                try:
                    received = read(message)
                except BadReply as bad:
                    self.reject(node_id, bad)
                    self.ledger.record_uplink(server_round, message)
                    continue
                self._accept(server_round, message, received)
                accepted.append(received)
            self._miss_replies()
        self.accepted += len(accepted)
        return accepted

    def _by_client(self, replies: Iterable[Message]) -> list[tuple[Message, int]]:
        """Return replies and their nodes in the order of the clients, whoever was faster."""
        asked = {m.metadata.message_id: m.metadata.dst_node_id for m in self._messages}
        found = []
        for message in sorted(replies, key=client_of):
            # Of a node that died, Flower makes the reply itself, in another node's name.
            metadata = message.metadata
            node_id = asked.get(metadata.reply_to_message_id, metadata.src_node_id)
            self._missing.discard(node_id)
            found.append((message, node_id))
        return found

    def _miss_replies(self) -> None:
        self.any_missing = bool(self._missing)
        for node_id in sorted(self._missing):
            self.reject(node_id, BadReply("no-reply", "none before the timeout"))
        self._missing = set()

    def finish(
        self, server_round: int, accepted: Sequence[Received], steps: int, loss: float
    ) -> MetricRecord:
        """Close the books of a round.

        Parameters
        ----------
        server_round : int
        accepted : sequence of Received
            What `collect` returned.
        steps : int
            Optimizer steps of the round.
        loss : float
            Mean training loss; NaN when no step was taken, or where only the clients know it.

        Returns
        -------
        MetricRecord
            The round's metrics.
        """
        sent = sum(received.num_sent for received in accepted)
        self.samples_sent += sent
        self.node_steps += steps * self._asked
        uplink, downlink = self.ledger.round_bytes(server_round)
        result = RoundResult(
            round=server_round,
            steps_taken=steps,
            samples_sent=sent,
            uplink_bytes=uplink,
            downlink_bytes=downlink,
            train_loss=loss,
            seconds=dict(self._round_seconds),
            failures=dict(self.failures - self._failures_before),
        )
        for name, seconds in result.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        log(
            INFO,
            "aggregate_train: %d steps%s, %d samples, %d bytes up, %d down, %d failures",
            result.steps_taken,
            "" if math.isnan(loss) else f", loss {loss:.4f}",
            result.samples_sent,
            result.uplink_bytes,
            result.downlink_bytes,
            sum(result.failures.values()),
        )
        if self._on_round is not None:
            self._on_round(result)
        return MetricRecord({"train-loss": loss, "samples-sent": sent, "uplink-bytes": uplink})

    def reject(self, node_id: int, bad: BadReply) -> None:
        """Count and log a reply that cannot be used."""
        self.failures[bad.cause] += 1
        if bad.cause != "no-reply":
            self._words[node_id] = str(bad)
        log(WARNING, "reply of node %d skipped, %s", node_id, bad)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Book the time of a block under a stage of this round."""
        start = time.perf_counter()
        yield
        self._round_seconds[name] += time.perf_counter() - start

    def _accept(self, server_round: int, message: Message, received: Received) -> None:
        sections, reply = received.sections, received.reply
        self.ledger.record_uplink(server_round, message, sections, received.entropy_bits)
        self.client_memory_bytes = max(self.client_memory_bytes, reply.memory_bytes)
        for name, seconds in reply.seconds.items():
            self._round_seconds[f"client_{name}"] += seconds
        if isinstance(reply, SampleReply):
            self._note(received.node_id, reply)

    def _note(self, node_id: int, reply: SampleReply) -> None:
        """Count what the client did to its samples, and tell what its user should know."""
        skipped = reply.skipped_counts()
        self.skipped.update(skipped)
        self.clipped += reply.clipped
        self._kept_sum += reply.variance_kept * reply.num_sent
        self._kept_count += reply.num_sent
        for reason, number in skipped.items():
            log(WARNING, "node %d skipped %d samples: %s", node_id, number, reason)
        for note in reply.notes:
            self._tell(note, note)
        if reply.clipped:
            text = "values outside the declared range are clipped to it, as by node %d"
            self._tell("clipped", text, node_id)
        if reply.num_sent and reply.variance_kept < WARN_BELOW:
            text = (
                "only %.0f %% of the samples' variance survives their coding, as of node %d: lower "
                "the codec's step, or take another codec"
            )
            self._tell("variance", text, 100 * reply.variance_kept, node_id)

    def _tell(self, kind: str, text: str, *values: object) -> None:
        """Log a warning, once for all clients that give cause for it."""
        if kind not in self._told:
            self._told.add(kind)
            log(WARNING, text, *values)
