"""What every strategy here records: bytes in both directions, time by stage, skipped replies."""

import math
import time
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Generic, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from strategies.client_reply import BadReply, ClientReply, client_of
from strategies.ledger import Ledger
from strategies.server_model import ServerModel

ReplyT = TypeVar("ReplyT", bound=ClientReply)


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
        Time by stage: ``round_trip`` (from the instructions' leaving to the last reply), ``decode``
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


class AccountedStrategy(Strategy, Generic[ReplyT]):
    """Base of all strategies here: parses replies, skips those it cannot use, keeps the books.

    A round is `begin_round`, once its instructions are made, `accept`, and `finish_round`.

    Parameters
    ----------
    server_model : ServerModel
        What is trained.
    on_round : callable, optional
        Called with the :class:`RoundResult` at the end of each round's training.

    Attributes
    ----------
    server_model : ServerModel
    ledger : Ledger
    seconds : dict[str, float]
        Time by stage, over all rounds.
    failures : Counter[str]
        Replies that could not be used, by cause.
    samples_sent : int
        Samples in accepted payloads.
    client_memory_bytes : int
        Largest error memory that any client keeps for its compressor.
    num_rounds : int
        Rounds of the run; 0 before it.
    """

    def __init__(
        self, server_model: ServerModel, on_round: Callable[[RoundResult], None] | None
    ) -> None:
        self.server_model = server_model
        self.ledger = Ledger()
        self.seconds: dict[str, float] = {}
        self.failures: Counter[str] = Counter()
        self.samples_sent = 0
        self.client_memory_bytes = 0
        self.num_rounds = 0
        self._on_round = on_round
        self._asked: set[int] = set()
        self._asked_at = 0.0
        self._round_seconds: defaultdict[str, float] = defaultdict(float)
        self._failures_before: Counter[str] = Counter()
        self._steps_before = 0

    @property
    def model(self) -> nn.Module:
        """The module that is trained."""
        return self.server_model.model

    @property
    def steps_taken(self) -> int:
        """Optimizer steps so far."""
        return self.server_model.steps_taken

    @abstractmethod
    def parse(self, message: Message) -> ReplyT:
        """Read and check a reply, which may be an error; `BadReply` if it cannot be used."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the strategy, as Flower's own ``start``.

        Parameters
        ----------
        grid : Grid
            Flower's connection to the nodes.
        initial_arrays : ArrayRecord, optional
            State that the model starts from; by default its own.
        num_rounds, timeout, train_config, evaluate_config, evaluate_fn
            As in ``flwr.serverapp.strategy.Strategy.start``.

        Returns
        -------
        Result
            Final arrays, and metrics by round.
        """
        self.num_rounds = num_rounds
        if initial_arrays is None:
            initial_arrays = self.server_model.state_arrays()
        else:
            self.server_model.load_arrays(initial_arrays)
        return super().start(
            grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody: the model is evaluated on the server, by ``evaluate_fn``."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return no metrics, as nobody was asked."""
        return None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Book the time of a block under a stage of this round."""
        start = time.perf_counter()
        yield
        self._round_seconds[name] += time.perf_counter() - start

    def reject(self, node_id: int, bad: BadReply) -> None:
        """Count and log a reply that cannot be used."""
        self.failures[bad.cause] += 1
        log(WARNING, "reply of node %d skipped, %s", node_id, bad)

    def begin_round(self, server_round: int, messages: Sequence[Message]) -> None:
        """Book the instructions of a round, which are about to leave."""
        self._round_seconds = defaultdict(float)
        self._failures_before, self._steps_before = self.failures.copy(), self.steps_taken
        self.ledger.record_downlink(server_round, messages)
        self._asked = {message.metadata.dst_node_id for message in messages}
        self._asked_at = time.perf_counter()

    def accept(self, server_round: int, replies: Iterable[Message]) -> list[ReplyT]:
        """Return the usable replies in the order of their clients; count and log the others."""
        if self._asked:
            self._round_seconds["round_trip"] += time.perf_counter() - self._asked_at
        with self.stage("decode"):
            return self._accept(server_round, replies)

    def _accept(self, server_round: int, replies: Iterable[Message]) -> list[ReplyT]:
        accepted = []
        missing = set(self._asked)
        # Sorted, so that nothing depends on who was faster.
        for message in sorted(replies, key=client_of):
            node_id = message.metadata.src_node_id
            missing.discard(node_id)
            try:
                reply = self.parse(message)
            except BadReply as bad:
                self.reject(node_id, bad)
                self.ledger.record_uplink(server_round, message)
                continue
            self.ledger.record_uplink(server_round, message, reply.sections, reply.entropy_bits)
            self.client_memory_bytes = max(self.client_memory_bytes, reply.memory_bytes)
            for name, seconds in reply.seconds.items():
                self._round_seconds[f"client_{name}"] += seconds
            accepted.append(reply)
        for node_id in sorted(missing):
            self.reject(node_id, BadReply("no-reply", "none before the timeout"))
        return accepted

    def finish_round(
        self, server_round: int, replies: Sequence[ReplyT], loss: float
    ) -> MetricRecord:
        """Close the books of a round; returns its metrics."""
        sent = sum(reply.num_sent for reply in replies)
        self.samples_sent += sent
        uplink, downlink = self.ledger.round_bytes(server_round)
        result = RoundResult(
            round=server_round,
            steps_taken=self.steps_taken - self._steps_before,
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
