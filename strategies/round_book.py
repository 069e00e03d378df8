"""The books of a run: bytes in both directions, time by stage, replies that could not be used."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import TypeVar

from flwr.app import Message, MetricRecord
from flwr.common import log

from codec.messages import SampleReply
from strategies.ledger import DOWNLINK, MESSAGE, UPLINK, Ledger
from strategies.received import BadReply, Received, client_of

ReceivedT = TypeVar("ReceivedT", bound=Received)
AnswerT = TypeVar("AnswerT")

WARN_BELOW = 0.7  # share of the variance kept
_SHOWN = 3  # words, and reasons, of as many as this
_WORDS = 160  # characters of a client's words in the summary


@dataclass(frozen=True)
class RoundResult:
    """One round in numbers; what is counted is this round's alone.

    Attributes
    ----------
    round : int
        Number of the round, from 1; those of a second ``start`` go on from those of the first.
    asked, answered : int
        Nodes that were asked to train, and those whose reply could be used.
    steps_taken : int
        Optimizer steps.
    samples_sent : int
        Samples in accepted payloads.
    uplink_bytes, downlink_bytes : int
        Content bytes in each direction, those of rejected replies included; evaluation on clients
        comes later, and is in the ledger only.
    train_loss : float
        Mean training loss; NaN when no step was taken, or where only the clients know it.
    seconds : Mapping[str, float]
        Time by stage: ``round_trip`` (from the requests' leaving to the last reply), ``decode``
        and ``train`` on the server; ``client_*`` summed over the clients.
    failures : Mapping[str, int]
        Replies that could not be used, by cause.
    """

    round: int
    asked: int
    answered: int
    steps_taken: int
    samples_sent: int
    uplink_bytes: int
    downlink_bytes: int
    train_loss: float
    seconds: Mapping[str, float]
    failures: Mapping[str, int]

    def __str__(self) -> str:
        """Return the round as a line of a log."""
        loss = "" if math.isnan(self.train_loss) else f", loss {self.train_loss:.4f}"
        server = sum(s for stage, s in self.seconds.items() if not stage.startswith("client_"))
        return (
            f"round {self.round}: {self.answered} of {self.asked} nodes, "
            f"{self.steps_taken} steps{loss}, {self.samples_sent} samples, "
            f"{self.uplink_bytes} bytes up, {self.downlink_bytes} down, "
            f"{sum(self.failures.values())} failures, {server:.1f} s"
        )


class RoundBook:
    """Keeps the books of a strategy: `begin` a round, `collect` its replies, `finish` it.

    A strategy may be started again. Its rounds then count from 1 anew, but the books go on: what
    the first run booked under a round stays as it is.

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
    accepted : int
        Replies that could be used, empty ones included.
    useful : int
        Replies that brought something to learn from.
    node_steps : int
        Sum over the rounds of their steps times the nodes that were asked: the gradients that
        data-parallel training would have sent.
    any_missing : bool
        Whether some node was silent the last time that nodes were asked.
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
        self.useful = 0
        self.node_steps = 0
        self.any_missing = False
        self._on_round = on_round
        # Of all rounds.
        self._senders: set[int] = set()
        self._kept_sum = 0.0
        self._classes: tuple[int, str] | None = None  # node and digest of the first names
        self._told: set[str] = set()
        self._last_words: dict[int, str] = {}
        self._first_words: dict[str, str] = {}
        # Of the run, and of the round.
        self._rounds_before = self._last_round = 0
        self._messages: list[Message] = []
        self._missing: set[int] = set()
        self._num_asked = 0
        self._asked_at = 0.0
        self._round_seconds: defaultdict[str, float] = defaultdict(float)
        self._failures_before: Counter[str] = Counter()

    @property
    def variance_kept(self) -> float:
        """Share of the samples' variance that survived their coding, mean over all that were sent.

        1 before any was.
        """
        return self._kept_sum / self.samples_sent if self.samples_sent else 1.0

    @property
    def round_failures(self) -> Counter[str]:
        """Replies of this round that could not be used, by cause."""
        return self.failures - self._failures_before

    # A round

    def begin(self, server_round: int, messages: Sequence[Message], answered: int = 0) -> None:
        """Book the requests of a round, which are about to leave.

        Parameters
        ----------
        server_round : int
        messages : sequence of Message
        answered : int
            Nodes whose replies are there already.
        """
        if server_round <= self._last_round:
            self._rounds_before += self._last_round
        self._last_round = server_round
        self._round_seconds = defaultdict(float)
        self._failures_before = self.failures.copy()
        self._num_asked = len(messages) + answered
        self._expect(server_round, messages)
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
        if self._num_asked:
            self._round_seconds["round_trip"] += time.perf_counter() - self._asked_at
        accepted = []
        with self.stage("decode"):
            for message, node_id in self._by_client(replies):
                received = self._read(server_round, message, node_id, read)
                if not isinstance(received, BadReply):
                    self._accept(server_round, message, node_id, received)
                    accepted.append(received)
            self._miss_replies()
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
            The round's metrics: "train_loss", "samples_sent" and "uplink_bytes".
        """
        sent = sum(received.num_sent for received in accepted)
        self.node_steps += steps * self._num_asked
        number = self._number(server_round)
        uplink, downlink = self.ledger.round_bytes(number)
        result = RoundResult(
            round=number,
            asked=self._num_asked,
            answered=len(accepted),
            steps_taken=steps,
            samples_sent=sent,
            uplink_bytes=uplink,
            downlink_bytes=downlink,
            train_loss=loss,
            seconds=dict(self._round_seconds),
            failures=dict(self.round_failures),
        )
        for name, seconds in result.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        log(INFO, "aggregate_train: %s", result)
        if self._on_round is not None:
            self._on_round(result)
        return MetricRecord({"train_loss": loss, "samples_sent": sent, "uplink_bytes": uplink})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Book the time of a block under a stage of this round."""
        start = time.perf_counter()
        yield
        self._round_seconds[name] += time.perf_counter() - start

    # Other questions: what samples are, how good the model is

    def ask(self, server_round: int, messages: Sequence[Message]) -> None:
        """Book questions that are no requests to train."""
        self._expect(server_round, messages)

    def answers(
        self,
        server_round: int,
        replies: Iterable[Message],
        read: Callable[[Message], AnswerT],
        *,
        what: str,
        kept: Collection[Message] = (),
    ) -> list[tuple[int, AnswerT | BadReply]]:
        """Return the answers to `ask` by node; count and log those that cannot be used.

        Parameters
        ----------
        server_round : int
        replies : iterable of Message
        read : callable
            `BadReply` if an answer cannot be used.
        what : str
            Section under which the bytes of the answers are booked.
        kept : collection of Message
            Replies that are kept for `collect`: they are answers, too.
        """
        found: list[tuple[int, AnswerT | BadReply]] = []
        self._by_client(kept)
        for message, node_id in self._by_client(replies):
            answer = self._read(server_round, message, node_id, read)
            if not isinstance(answer, BadReply):
                self._book_uplink(server_round, message, node_id, {}, rest=what)
            found.append((node_id, answer))
        self._miss_replies()
        return found

    # Replies that could not be used

    def reject(self, node_id: int, bad: BadReply) -> None:
        """Count and log a reply that cannot be used."""
        self.failures[bad.cause] += 1
        self._first_words.setdefault(bad.cause, bad.detail)
        if bad.cause != "no-reply":
            self._last_words[node_id] = str(bad)
        log(WARNING, "reply of node %d skipped, %s", node_id, bad)

    def why(self) -> str:
        """Return what was said of replies that could not be used, each once."""
        said = list(dict.fromkeys(self._last_words.values()))
        more = [f"and {len(said) - _SHOWN} other causes"] if len(said) > _SHOWN else []
        causes = ", ".join(f"{number} {cause}" for cause, number in self.failures.items())
        return "; ".join([*said[:_SHOWN], *more]) or causes or self._nothing_sent()

    def summary(self, seconds: float) -> None:
        """Log the run in five lines: samples, what survived, bytes, failures, seconds.

        Parameters
        ----------
        seconds : float
            The run's.
        """
        ledger = self.ledger
        up, down = ledger.uplink_bytes, ledger.downlink_bytes
        all_up = up + ledger.envelope_bytes(UPLINK)
        all_down = down + ledger.envelope_bytes(DOWNLINK)
        skipped = _listed(self.skipped)
        causes = (
            f"{number} {cause} ({self._first_words.get(cause, '')[:_WORDS]})"
            for cause, number in self.failures.items()
        )
        stages = (f"{name} {spent:.1f}" for name, spent in self.seconds.items())
        lines = [
            f"samples: {self.samples_sent:,} of {len(self._senders)} nodes; skipped: {skipped}",
            f"coding: {self.variance_kept:.1%} of the variance, {self.clipped:,} values clipped",
            f"bytes: {up:,} up, {down:,} down; with envelope {all_up:,} up, {all_down:,} down",
            f"failures: {'; '.join(causes) or 'none'}",
            f"seconds: {seconds:.1f} in all; {', '.join(stages) or 'no round'}",
        ]
        for line in lines:
            log(INFO, line)

    # Details

    def _number(self, server_round: int) -> int:
        return self._rounds_before + server_round

    def _expect(self, server_round: int, messages: Sequence[Message]) -> None:
        self.ledger.record_downlink(self._number(server_round), messages)
        # The grid numbers messages later, when it sends them.
        self._messages = list(messages)
        self._missing = {message.metadata.dst_node_id for message in messages}

    def _by_client(self, replies: Iterable[Message]) -> list[tuple[Message, int]]:
        """Return replies and their nodes in the order of the clients, whoever was faster."""
        asked = {m.metadata.message_id: m.metadata.dst_node_id for m in self._messages}
        asked.pop("", None)  # not numbered
        found = []
        for message in sorted(replies, key=client_of):
            # Of a node that died, Flower makes the reply itself, in another node's name.
            metadata = message.metadata
            node_id = asked.get(metadata.reply_to_message_id, metadata.src_node_id)
            self._missing.discard(node_id)
            found.append((message, node_id))
        return found

    def _read(
        self, server_round: int, message: Message, node_id: int, read: Callable[[Message], AnswerT]
    ) -> AnswerT | BadReply:
        try:
            return read(message)
        except BadReply as bad:
            self.reject(node_id, bad)
            self._book_uplink(server_round, message, node_id, None)
            return bad

    def _accept(
        self, server_round: int, message: Message, node_id: int, received: Received
    ) -> None:
        sections, reply = received.sections, received.reply
        self._book_uplink(server_round, message, node_id, sections, received.entropy_bits)
        self.accepted += 1
        self.useful += received.is_useful
        self.client_memory_bytes = max(self.client_memory_bytes, reply.memory_bytes)
        for name, seconds in reply.seconds.items():
            self._round_seconds[f"client_{name}"] += seconds
        if isinstance(reply, SampleReply):
            self._note(node_id, reply)

    def _book_uplink(
        self,
        server_round: int,
        message: Message,
        node_id: int,
        sections: Mapping[str, int] | None,
        entropy_bits: Mapping[str, float] | None = None,
        rest: str = MESSAGE,
    ) -> None:
        number = self._number(server_round)
        self.ledger.record_uplink(
            number, message, sections, entropy_bits, node_id=node_id, rest=rest
        )

    def _miss_replies(self) -> None:
        self.any_missing = bool(self._missing)
        for node_id in sorted(self._missing):
            self.reject(node_id, BadReply("no-reply", "none before the timeout"))
        self._missing = set()

    def _note(self, node_id: int, reply: SampleReply) -> None:
        """Count what the client did to its samples, and tell what its user should know."""
        if reply.num_sent:
            self._senders.add(node_id)
            self._kept_sum += reply.variance_kept * reply.num_sent
            self.samples_sent += reply.num_sent
        skipped = reply.skipped_counts()
        self.skipped.update(skipped)
        self.clipped += reply.clipped
        for reason, number in skipped.items():
            log(WARNING, "node %d skipped %d samples: %s", node_id, number, reason)
        if reply.class_digest and self._classes is None:
            self._classes = node_id, reply.class_digest
        elif reply.class_digest and self._classes and self._classes[1] != reply.class_digest:
            text = (
                "nodes %d and %d have classes of different names: a label does not mean the same. "
                "Pass class_names= to the strategy"
            )
            self.tell("classes", text, self._classes[0], node_id)
        for note in reply.notes:
            self.tell(note, "node %d: %s", node_id, note)
        if reply.clipped:
            text = "values outside the declared range are clipped to it, as by node %d"
            self.tell("clipped", text, node_id)
        if reply.num_sent and reply.variance_kept < WARN_BELOW:
            text = (
                "only %.0f %% of the samples' variance survives their coding, as of node %d: lower "
                "the codec's step, or take another codec"
            )
            self.tell("variance", text, 100 * reply.variance_kept, node_id)

    def tell(self, kind: str, text: str, *values: object) -> None:
        """Log a warning, once for all clients that give cause for it."""
        if kind not in self._told:
            self._told.add(kind)
            log(WARNING, text, *values)

    def _nothing_sent(self) -> str:
        return f"skipped: {_listed(self.skipped)}" if self.skipped else "nobody sent anything"


def _listed(counts: Counter[str]) -> str:
    """Return counts in words, the largest first."""
    shown = [f"{number:,} {what}" for what, number in counts.most_common(_SHOWN)]
    rest = counts.total() - sum(number for _, number in counts.most_common(_SHOWN))
    return ", ".join([*shown, *([f"{rest:,} for other reasons"] if rest else [])]) or "none"
