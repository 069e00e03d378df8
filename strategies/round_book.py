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

from strategies.ledger import Ledger
from strategies.received import BadReply, Received, client_of

ReceivedT = TypeVar("ReceivedT", bound=Received)


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
    """

    def __init__(self, on_round: Callable[[RoundResult], None] | None = None) -> None:
        self.ledger = Ledger()
        self.seconds: dict[str, float] = {}
        self.failures: Counter[str] = Counter()
        self.samples_sent = 0
        self.client_memory_bytes = 0
        self._on_round = on_round
        self._asked: set[int] = set()
        self._asked_at = 0.0
        self._round_seconds: defaultdict[str, float] = defaultdict(float)
        self._failures_before: Counter[str] = Counter()

    def begin(self, server_round: int, messages: Sequence[Message]) -> None:
        """Book the requests of a round, which are about to leave."""
        self._round_seconds = defaultdict(float)
        self._failures_before = self.failures.copy()
        self.ledger.record_downlink(server_round, messages)
        self._asked = {message.metadata.dst_node_id for message in messages}
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
        if self._asked:
            self._round_seconds["round_trip"] += time.perf_counter() - self._asked_at
        accepted = []
        with self.stage("decode"):
            missing = set(self._asked)
            # Sorted, so that nothing depends on who was faster.
            for message in sorted(replies, key=client_of):
                missing.discard(message.metadata.src_node_id)
                try:
                    received = read(message)
                except BadReply as bad:
                    self.reject(message.metadata.src_node_id, bad)
                    self.ledger.record_uplink(server_round, message)
                    continue
                self._accept(server_round, message, received)
                accepted.append(received)
            for node_id in sorted(missing):
                self.reject(node_id, BadReply("no-reply", "none before the timeout"))
        return accepted

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
