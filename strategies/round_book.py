"""The books of a run: bytes in both directions, time by stage, replies that could not be used."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any, TypeVar

from flwr.app import Message, Metadata, MetricRecord
from flwr.common import log

from codec.messages import SampleReply
from codec.samples.choice import Choice
from strategies.client_words import client_words
from strategies.ledger import DOWNLINK, MESSAGE, UPLINK, Ledger, LedgerEntry
from strategies.received import BadReply, Received, client_of

ReceivedT = TypeVar("ReceivedT", bound=Received)
AnswerT = TypeVar("AnswerT")

WARN_BELOW = 0.7  # share of the variance kept
_SHOWN = 3  # words, and reasons, of as many as this
# What is of the whole run, and not of a round.
_KEPT = (
    *("seconds", "failures", "samples_sent", "client_memory_bytes", "skipped", "clipped"),
    *("accepted", "useful", "late", "duplicates", "node_steps", "_senders", "_kept_sum"),
    *("_classes", "_told", "_last_words", "_first_words", "_rounds_before", "_last_round"),
    *("codecs", "failures_by_node"),
)
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
        Time by stage: ``round_trip`` (from the requests' leaving to the last reply, while the
        server reads those that are here), ``decode`` (what is left of that) and ``train`` on the
        server; ``client_*`` summed over the clients.
    failures : Mapping[str, int]
        Replies that could not be used, by cause.
    late : int
        Replies to earlier rounds' requests that came in this one and could be used.
    duplicates : int
        Samples that the server had already.
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
    late: int = 0
    duplicates: int = 0

    def __str__(self) -> str:
        """Return the round as a line of a log."""
        loss = "" if math.isnan(self.train_loss) else f", loss {self.train_loss:.4f}"
        server = sum(s for stage, s in self.seconds.items() if not stage.startswith("client_"))
        late = f" and {self.late} late" if self.late else ""
        return (
            f"round {self.round}: {self.answered} of {self.asked} nodes{late}, "
            f"{self.steps_taken} steps{loss}, {self.samples_sent} samples, "
            f"{self.uplink_bytes} bytes up, {self.downlink_bytes} down, "
            f"{sum(self.failures.values())} failures, {server:.1f} s"
        )


@dataclass
class _Asked:
    """A request without a reply yet.

    Attributes
    ----------
    metadata : Metadata
        Of the message; the grid numbers it later, when it sends it.
    number : int
        Of the round.
    trains : bool
        Whether it asks to train.
    is_missed : bool
        Whether the missing reply has been counted as a failure.
    """

    metadata: Metadata
    number: int
    trains: bool
    is_missed: bool = False

    @property
    def node_id(self) -> int:
        return self.metadata.dst_node_id


class RoundBook:
    """Keeps the books of a strategy: `begin` a round, `collect` its replies, `finish` it.

    A strategy may be started again. Its rounds then count from 1 anew, but the books go on: what
    the first run booked under a round stays as it is.

    Parameters
    ----------
    on_round : callable, optional
        Called with the `RoundResult` at the end of each round's training.

    Attributes
    ----------
    ledger : Ledger
    seconds : dict[str, float]
        Time by stage, over all rounds.
    failures : Counter[str]
        Replies that could not be used, by cause.
    failures_by_node : dict[int, dict[str, int]]
        The same by the node that was asked.
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
    late : int
        Replies that could be used, and came in a later round than they were asked for.
    duplicates : int
        Samples that were paid for although the server had them, or got them twice.
    codecs : dict[int, str]
        What codec ``auto`` chose, by node: a `codec.samples.choice.Choice` as it travels, in hex.
    node_steps : int
        Sum over the rounds of their steps times the nodes that were asked: the gradients that
        data-parallel training would have sent.
    any_missing : bool
        Whether some node that was asked in this round was silent.
    """

    def __init__(self, on_round: Callable[[RoundResult], None] | None = None) -> None:
        self.ledger = Ledger()
        self.seconds: dict[str, float] = {}
        self.failures: Counter[str] = Counter()
        self.failures_by_node: dict[int, dict[str, int]] = {}
        self.samples_sent = 0
        self.client_memory_bytes = 0
        self.skipped: Counter[str] = Counter()
        self.clipped = 0
        self.accepted = 0
        self.useful = 0
        self.late = 0
        self.duplicates = 0
        self.codecs: dict[int, str] = {}
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
        self._asked: list[_Asked] = []
        self._missing: set[int] = set()
        self._num_asked = 0
        self._asked_at = 0.0
        self._round_seconds: defaultdict[str, float] = defaultdict(float)
        self._failures_before: Counter[str] = Counter()
        self._late_before = self._duplicates_before = 0
        self._sizes: dict[int, LedgerEntry] = {}
        self._is_open = False

    @property
    def variance_kept(self) -> float:
        """Share of the samples' variance that survived their coding, mean over all that were sent.

        1 before any was.
        """
        return self._kept_sum / self.samples_sent if self.samples_sent else 1.0

    @property
    def codec_choices(self) -> dict[int, Choice]:
        """How codec ``auto`` chose, by node, as far as nodes have told."""
        return {node: Choice.from_bytes(bytes.fromhex(told)) for node, told in self.codecs.items()}

    def chosen_codecs(self) -> Counter[str]:
        """Return how many nodes have chosen which codec."""
        return Counter(choice.best.name for choice in self.codec_choices.values())

    @property
    def current_round(self) -> int:
        """Number of the round that is open, or was last, as `RoundResult` has it."""
        return self._number(self._last_round)

    @property
    def round_failures(self) -> Counter[str]:
        """Replies of this round that could not be used, by cause."""
        return self.failures - self._failures_before

    # A round

    def turn_to(self, server_round: int) -> None:
        """Open the books of a new round."""
        if server_round <= self._last_round:
            self._rounds_before += self._last_round
            self._asked = []
        self._last_round = server_round
        self._is_open = True
        self.any_missing = False
        self._round_seconds = defaultdict(float)
        self._failures_before = self.failures.copy()
        self._late_before, self._duplicates_before = self.late, self.duplicates
        self._sizes = {}

    def open(self, server_round: int) -> None:
        """Open the books of a round, if they are not open."""
        if not self._is_open:
            self.turn_to(server_round)

    def begin(self, server_round: int, messages: Sequence[Message], answered: int = 0) -> None:
        """Book the requests of a round, which are about to leave.

        Parameters
        ----------
        server_round : int
        messages : sequence of Message
        answered : int
            Nodes whose replies are there already.
        """
        self.open(server_round)
        self._is_open = False
        self._num_asked = len(messages) + answered
        self._expect(server_round, messages, trains=True)
        self._asked_at = time.perf_counter()

    def collect(
        self,
        server_round: int,
        replies: Iterable[Message],
        read: Callable[[Message], ReceivedT],
        unhurried: Collection[int] = (),
    ) -> list[ReceivedT]:
        """Read a round's replies; count and log those that cannot be used.

        Parameters
        ----------
        server_round : int
        replies : iterable of Message
            As they came from the grid.
        read : callable
            Decodes and checks a reply, which may be an error; `BadReply` if it cannot be used.
        unhurried : collection of int
            Nodes that need not have answered yet.

        Returns
        -------
        list
            What `read` returned, in the order of the clients.
        """
        if self._num_asked:
            self._round_seconds["round_trip"] += time.perf_counter() - self._asked_at
        accepted = []
        self._missing -= set(unhurried)
        with self.stage("decode"):
            for message, asked in self._by_client(replies):
                node_id = _node_of(message, asked)
                received = self._read(server_round, message, asked, read)
                if not isinstance(received, BadReply):
                    self.late += self._is_late(server_round, asked)
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
            answered=len(accepted) - (self.late - self._late_before),
            steps_taken=steps,
            samples_sent=sent,
            uplink_bytes=uplink,
            downlink_bytes=downlink,
            train_loss=loss,
            seconds=dict(self._round_seconds),
            failures=dict(self.round_failures),
            late=self.late - self._late_before,
            duplicates=self.duplicates - self._duplicates_before,
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

    # What a bank knows of a reply

    def size_of(self, node_id: int) -> tuple[int, int]:
        """Content and envelope bytes of the reply that a node's was booked with in this round."""
        entry = self._sizes.get(node_id)
        return (0, 0) if entry is None else (entry.content_bytes, entry.envelope_bytes)

    def recover(
        self, server_round: int, node_id: int, num_sent: int, content_bytes: int, envelope: int
    ) -> None:
        """Book a reply that the process received that this one goes on for."""
        self.ledger.record_known(self._number(server_round), node_id, content_bytes, envelope)
        self.accepted += 1
        self.useful += 1
        self._kept_sum += self.variance_kept * num_sent
        self.samples_sent += num_sent
        self._senders.add(node_id)

    def drop_duplicates(self, node_id: int, number: int) -> None:
        """Count samples that the server had already, and tell of the first ones."""
        self.duplicates += number
        text = (
            "node %d has sent %d samples that were here already; they are dropped. Equal samples "
            "are sent once by one device, but by each device that has them"
        )
        self.tell("duplicates", text, node_id, number)

    def rename(self, old: int, new: int) -> None:
        """Book what a node did under the id that it has now."""
        self.ledger.rename(old, new)
        if old in self._senders:
            self._senders = self._senders - {old} | {new}
        if old in self.codecs:
            self.codecs[new] = self.codecs.pop(old)
        if old in self.failures_by_node:
            before = Counter(self.failures_by_node.pop(old))
            self.failures_by_node[new] = dict(before + Counter(self.failures_by_node.get(new, {})))

    # A run that goes on in another process

    def state(self) -> dict[str, Any]:
        """Return what is on the books, for a checkpoint."""
        return {name: getattr(self, name) for name in _KEPT} | {"ledger": self.ledger.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.ledger.restore(state["ledger"])
        for name in _KEPT:
            kind = type(getattr(self, name))
            value = state.get(name, getattr(self, name))  # checkpoints of before had fewer
            # The failures' counter is one that others hold, too.
            if name == "failures":
                self.failures.clear()
                self.failures.update(value)
            elif kind in (Counter, dict, set):
                setattr(self, name, kind(value))
            else:
                setattr(self, name, value)

    # Other questions: what samples are, how good the model is

    def ask(self, server_round: int, messages: Sequence[Message]) -> None:
        """Book questions that are no requests to train."""
        self._expect(server_round, messages, trains=False)

    def answers(
        self,
        server_round: int,
        replies: Iterable[Message],
        read: Callable[[Message], AnswerT],
        *,
        what: str,
        kept: Collection[Message] = (),
        unhurried: Collection[int] = (),
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
        unhurried : collection of int
            Nodes that need not have answered yet.
        """
        found: list[tuple[int, AnswerT | BadReply]] = []
        self._missing -= {*unhurried, *(message.metadata.src_node_id for message in kept)}
        for message, asked in self._by_client(replies):
            node_id = _node_of(message, asked)
            answer = self._read(server_round, message, asked, read)
            if not isinstance(answer, BadReply):
                self._book_uplink(server_round, message, node_id, {}, rest=what)
            found.append((node_id, answer))
        self._miss_replies()
        return found

    # What comes late, or never

    def late_among(self, server_round: int, replies: Iterable[Message]) -> list[Message]:
        """Return the replies to earlier rounds' requests."""
        requests = self._requests()
        return [
            message
            for message in replies
            if self._is_late(server_round, requests.get(message.metadata.reply_to_message_id))
        ]

    def training_among(self, replies: Iterable[Message]) -> list[Message]:
        """Return the replies to requests to train, as far as these are on the books."""
        requests = self._requests()
        asked = (
            (message, requests.get(message.metadata.reply_to_message_id)) for message in replies
        )
        return [message for message, request in asked if request is None or request.trains]

    def drop_late(self, server_round: int, replies: Iterable[Message]) -> None:
        """Book late replies of which no use can be made: bytes, and a failure each."""

        def refuse(message: Message) -> None:
            raise too_late(message)

        for message, asked in self._by_client(replies):
            self._read(server_round, message, asked, refuse)

    def give_up(self, nodes: Iterable[int]) -> None:
        """Count replies that were waited for in vain, unless they were missed before."""
        gone = set(nodes)
        for asked in self._asked:
            if asked.node_id in gone and not asked.is_missed:
                self.reject(asked.node_id, BadReply("no-reply", "none by the end of all patience"))
        self._asked = [asked for asked in self._asked if asked.node_id not in gone]

    # Replies that could not be used

    def reject(self, node_id: int, bad: BadReply) -> None:
        """Count and log a reply that cannot be used."""
        self.failures[bad.cause] += 1
        of_node = self.failures_by_node.setdefault(node_id, {})
        of_node[bad.cause] = of_node.get(bad.cause, 0) + 1
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
        chosen = f"; codec auto: {_listed(self.chosen_codecs())}" if self.codecs else ""
        twice = f", {self.duplicates:,} of them known already" if self.duplicates else ""
        causes = (
            f"{number} {cause} ({self._first_words.get(cause, '')[:_WORDS]})"
            for cause, number in self.failures.items()
        )
        stages = (f"{name} {spent:.1f}" for name, spent in self.seconds.items())
        lines = [
            f"samples: {self.samples_sent:,} of {len(self._senders)} nodes{twice}; "
            f"skipped: {skipped}",
            f"coding: {self.variance_kept:.1%} of the variance, {self.clipped:,} values clipped"
            f"{chosen}",
            f"bytes: {up:,} up, {down:,} down; with envelope {all_up:,} up, {all_down:,} down",
            f"failures: {'; '.join(causes) or 'none'}",
            f"seconds: {seconds:.1f} in all; {', '.join(stages) or 'no round'}",
        ]
        for line in lines:
            log(INFO, line)

    # Details

    def _number(self, server_round: int) -> int:
        return self._rounds_before + server_round

    def _expect(self, server_round: int, messages: Sequence[Message], *, trains: bool) -> None:
        number = self._number(server_round)
        self.ledger.record_downlink(number, messages)
        self._missing = {message.metadata.dst_node_id for message in messages}
        # Who is asked anew owes nothing any more.
        self._asked = [asked for asked in self._asked if asked.node_id not in self._missing]
        self._asked += [_Asked(message.metadata, number, trains) for message in messages]

    def _requests(self) -> dict[str, _Asked]:
        """Return the open requests by the ids that the grid has given them."""
        found = {asked.metadata.message_id: asked for asked in self._asked}
        found.pop("", None)  # not numbered
        return found

    def _is_late(self, server_round: int, asked: _Asked | None) -> bool:
        return asked is not None and asked.number < self._number(server_round)

    def _by_client(self, replies: Iterable[Message]) -> list[tuple[Message, _Asked | None]]:
        """Return replies and their requests in the order of the clients, whoever was faster."""
        requests, found = self._requests(), []
        for message in sorted(replies, key=client_of):
            asked = requests.get(message.metadata.reply_to_message_id)
            self._missing.discard(_node_of(message, asked))
            found.append((message, asked))
        answered = {id(asked) for _, asked in found}
        self._asked = [asked for asked in self._asked if id(asked) not in answered]
        return found

    def _read(
        self,
        server_round: int,
        message: Message,
        asked: _Asked | None,
        read: Callable[[Message], AnswerT],
    ) -> AnswerT | BadReply:
        node_id = _node_of(message, asked)
        try:
            return read(message)
        except BadReply as bad:
            if asked is not None and asked.is_missed and message.has_error():
                log(INFO, "node %d, which did not answer: %s", node_id, bad)
            else:
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
        self._sizes[node_id] = self.ledger.record_uplink(
            number, message, sections, entropy_bits, node_id=node_id, rest=rest
        )

    def _miss_replies(self) -> None:
        self.any_missing |= bool(self._missing)
        for node_id in sorted(self._missing):
            self.reject(node_id, BadReply("no-reply", "none before the timeout"))
        for asked in self._asked:
            asked.is_missed |= asked.node_id in self._missing
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
        choice = reply.choice()
        if choice is not None:
            if node_id not in self.codecs:
                log(INFO, "node %d: codec auto is %s", node_id, choice)
            self.codecs[node_id] = choice.to_bytes().hex()
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


def too_late(message: Message) -> BadReply:
    """Return why a late reply is of no use: what it says of itself if it is an error."""
    if message.has_error():
        error = message.error
        return BadReply("error", f"code {error.code}, {client_words(error.reason)}")
    return BadReply("late", "the reply came after its round, in which alone it was of use")


def _node_of(message: Message, asked: _Asked | None) -> int:
    """Return a reply's node: of one that died, Flower makes the reply, in another's name."""
    return message.metadata.src_node_id if asked is None else asked.node_id


def _listed(counts: Counter[str]) -> str:
    """Return counts in words, the largest first."""
    shown = [f"{number:,} {what}" for what, number in counts.most_common(_SHOWN)]
    rest = counts.total() - sum(number for _, number in counts.most_common(_SHOWN))
    return ", ".join([*shown, *([f"{rest:,} for other reasons"] if rest else [])]) or "none"
