"""What the quantized-data strategies share: who is asked, what is asked, and what came back."""

import time
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from codec import CodecOptions, SampleSpec, generator
from strategies.ledger import Ledger
from strategies.options import check_range
from strategies.participation import choose_nodes, wait_for_nodes
from strategies.reply import BadReply, Expectation, Reply, parse_reply
from strategies.server_model import ServerModel

# Key of the server's random streams, beside the clients' (seed, round, partition-id).
SERVER_STREAM = 2**32 - 1
_SELECT_NODES = 0
TRAIN_STREAM = 1


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
        Mean training loss; NaN when no step was taken.
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


class QuantizedDataStrategy(Strategy):
    """Base of the strategies that learn from coded samples.

    A subclass says what to learn from a round's accepted replies, in :meth:`learn`.

    Parameters
    ----------
    server_model : ServerModel
        What is trained.
    instruction : Mapping
        Entries of the instruction's ``ConfigRecord``, beside round and seed.
    sends_model : bool
        Whether instructions carry the model.
    expected : Expectation
        What a reply must be like.
    fraction_train : float
        Share of the connected nodes asked in a round, in (0, 1]; at least one node.
    min_available_nodes : int
        Nodes to wait for before a round.
    seed : int
        Seed of everything random on both ends, >= 0.
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
        Largest error memory that any client keeps for its refinement.
    """

    def __init__(
        self,
        server_model: ServerModel,
        instruction: Mapping[str, int | float | str | bytes],
        *,
        sends_model: bool,
        expected: Expectation,
        fraction_train: float,
        min_available_nodes: int,
        seed: int,
        on_round: Callable[[RoundResult], None] | None,
    ) -> None:
        check_range("fraction_train", fraction_train, 0.0, 1.0, open_low=True)
        check_range("min_available_nodes", min_available_nodes, 1)
        check_range("seed", seed, 0)
        self.server_model = server_model
        self.ledger = Ledger()
        self.seconds: dict[str, float] = {}
        self.failures: Counter[str] = Counter()
        self.samples_sent = 0
        self.client_memory_bytes = 0
        self.seed = seed
        self.fraction_train = fraction_train
        self.min_available_nodes = min_available_nodes
        self._instruction = dict(instruction)
        self._sends_model = sends_model
        self._expected = expected
        self._on_round = on_round
        self._asked: set[int] = set()
        self._asked_at = 0.0
        self._round_seconds: defaultdict[str, float] = defaultdict(float)

    @property
    def model(self) -> nn.Module:
        """The module that is trained."""
        return self.server_model.model

    @property
    def steps_taken(self) -> int:
        """Optimizer steps so far."""
        return self.server_model.steps_taken

    @abstractmethod
    def learn(self, server_round: int, replies: list[Reply]) -> float:
        """Train the model on a round's replies, in the order of their clients; mean loss."""

    def finished_nodes(self) -> set[int]:
        """Nodes that are asked no more."""
        return set()

    def node_instruction(self, node_id: int) -> dict[str, int]:
        """Entries of the instruction that are this node's own."""
        return {}

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
        if initial_arrays is None:
            initial_arrays = self.server_model.state_arrays()
        else:
            self.server_model.load_arrays(initial_arrays)
        return super().start(
            grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the round's instructions; none when no node has anything left to send."""
        self._round_seconds = defaultdict(float)
        finished = self.finished_nodes()
        connected = wait_for_nodes(grid, self.min_available_nodes, finished)
        stream = generator(self.seed, server_round, SERVER_STREAM, _SELECT_NODES)
        node_ids = choose_nodes(connected, finished, self.fraction_train, stream)
        log(INFO, "configure_train: asking %d of %d nodes", len(node_ids), len(connected))
        common = {**config, **self._instruction, "server-round": server_round, "seed": self.seed}
        messages = []
        for node_id in node_ids:
            record = ConfigRecord({**common, **self.node_instruction(node_id)})
            content = RecordDict({"config": record})
            if self._sends_model:
                content["arrays"] = arrays
            messages.append(Message(content, node_id, MessageType.TRAIN))
        self.ledger.record_downlink(server_round, messages)
        self._asked, self._asked_at = set(node_ids), time.perf_counter()
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Train on what the round brought; returns the new arrays and the round's metrics."""
        if self._asked:
            self._round_seconds["round_trip"] += time.perf_counter() - self._asked_at
        failures_before, steps_before = self.failures.copy(), self.steps_taken
        with self.stage("decode"):
            accepted = self._accept(server_round, replies)
        with self.stage("train"):
            loss = self.learn(server_round, accepted)
        sent = sum(reply.num_sent for reply in accepted)
        self.samples_sent += sent
        uplink, downlink = self.ledger.round_bytes(server_round)
        self._finish_round(
            RoundResult(
                round=server_round,
                steps_taken=self.steps_taken - steps_before,
                samples_sent=sent,
                uplink_bytes=uplink,
                downlink_bytes=downlink,
                train_loss=loss,
                seconds=dict(self._round_seconds),
                failures=dict(self.failures - failures_before),
            )
        )
        metrics = MetricRecord({"train-loss": loss, "samples-sent": sent, "uplink-bytes": uplink})
        return self.server_model.state_arrays(), metrics

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

    def summary(self) -> None:
        """Log the configuration as a tree."""
        server = self.server_model
        count = sum(parameter.numel() for parameter in self.model.parameters())
        log(INFO, "\t├──> Server model:")
        log(INFO, "\t│\t├── %s, %d parameters", type(self.model).__name__, count)
        log(INFO, "\t│\t├── Optimizer: %s", type(server.optimizer).__name__)
        precision = "bf16 autocast" if server.amp else "fp32"
        log(INFO, "\t│\t└── Device: %s, %s", server.device, precision)
        log(INFO, "\t├──> Instruction (model sent: %s):", "yes" if self._sends_model else "no")
        for key, value in self._instruction.items():
            shown = CodecOptions.from_bytes(value) if isinstance(value, bytes) else value
            log(INFO, "\t│\t├── %s: %s", key, shown)
        log(INFO, "\t│\t└── seed: %d", self.seed)
        log(INFO, "\t└──> Sampling:")
        log(INFO, "\t\t├── Fraction: train (%.2f)", self.fraction_train)
        log(INFO, "\t\t└── Minimum available nodes: %d", self.min_available_nodes)

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

    def _accept(self, server_round: int, replies: Iterable[Message]) -> list[Reply]:
        """Return the usable replies in the order of their clients; count and log the others."""
        accepted = []
        missing = set(self._asked)
        # Sorted, so that the payload which sets the spec does not depend on who was faster.
        for message in sorted(replies, key=_client_of):
            node_id = message.metadata.src_node_id
            missing.discard(node_id)
            try:
                reply = self._parse(message)
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

    def _parse(self, message: Message) -> Reply:
        reply = parse_reply(message, self._expected)
        if self._expected.spec is None and reply.payload is not None:
            self._check_model(reply.payload.spec)
            self._expected = replace(self._expected, spec=reply.payload.spec)
        return reply

    def _check_model(self, spec: SampleSpec) -> None:
        """Check the first payload's spec against the model, before it sets the standard."""
        try:
            outputs = self.server_model.probe(spec.shape)
        except Exception as error:  # a module may raise anything on a shape it was not made for
            raise BadReply("shape", f"the model takes no {spec.shape} samples: {error}") from error
        needed = spec.classes or spec.target_size
        if len(outputs) == 1 and outputs[0] < needed:
            raise BadReply("target", f"the model has {outputs[0]} outputs for {needed} targets")

    def _finish_round(self, result: RoundResult) -> None:
        for name, seconds in result.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        log(
            INFO,
            "aggregate_train: %d steps, loss %.4f, %d samples, %d bytes up, %d down, %d failures",
            result.steps_taken,
            result.train_loss,
            result.samples_sent,
            result.uplink_bytes,
            result.downlink_bytes,
            sum(result.failures.values()),
        )
        if self._on_round is not None:
            self._on_round(result)


def _client_of(message: Message) -> tuple[int, int]:
    record = message.content.get("payload") if message.has_content() else None
    client = record.get("client") if isinstance(record, ConfigRecord) else None
    return client if isinstance(client, int) else -1, message.metadata.src_node_id
