"""Strategies in which the server takes the optimizer's steps: who is asked, and what is asked."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid

from codec import CodecOptions, generator
from strategies.accounted_strategy import AccountedStrategy, ReplyT, RoundResult
from strategies.options import check_range
from strategies.participation import choose_nodes, wait_for_nodes
from strategies.server_model import ServerModel

# Key of the server's random streams, beside the clients' (seed, round, partition-id).
SERVER_STREAM = 2**32 - 1
_SELECT_NODES = 0

Entries = Mapping[str, int | float | str | bytes]


class ServerStrategy(AccountedStrategy[ReplyT]):
    """Base of the strategies in which clients never step a model, the server does.

    A subclass says what a reply must be like, in :meth:`parse`, and what to learn from a round's
    accepted replies, in :meth:`learn`.

    Parameters
    ----------
    server_model : ServerModel
        What is trained.
    instruction : Mapping
        Entries of the instruction's ``ConfigRecord``, beside round and seed.
    sends_model : bool
        Whether instructions carry the model.
    fraction_train : float
        Share of the connected nodes asked in a round, in (0, 1]; at least one node.
    min_available_nodes : int
        Nodes to wait for before a round.
    seed : int
        Seed of everything random on both ends, >= 0.
    on_round : callable, optional
        See :class:`AccountedStrategy`, whose attributes these strategies have.
    """

    def __init__(
        self,
        server_model: ServerModel,
        instruction: Entries,
        *,
        sends_model: bool,
        fraction_train: float,
        min_available_nodes: int,
        seed: int,
        on_round: Callable[[RoundResult], None] | None,
    ) -> None:
        check_range("fraction_train", fraction_train, 0.0, 1.0, open_low=True)
        check_range("min_available_nodes", min_available_nodes, 1)
        check_range("seed", seed, 0)
        super().__init__(server_model, on_round)
        self.seed = seed
        self.fraction_train = fraction_train
        self.min_available_nodes = min_available_nodes
        self._instruction = dict(instruction)
        self._sends_model = sends_model

    @abstractmethod
    def learn(self, server_round: int, replies: list[ReplyT]) -> float:
        """Train the model on a round's replies, in the order of their clients; mean loss."""

    def finished_nodes(self) -> set[int]:
        """Nodes that are asked no more."""
        return set()

    def round_instruction(self, server_round: int) -> Entries:
        """Entries of the instruction that are this round's own."""
        return {}

    def node_instruction(self, node_id: int) -> Entries:
        """Entries of the instruction that are this node's own."""
        return {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the round's instructions; none when no node has anything left to send."""
        finished = self.finished_nodes()
        connected = wait_for_nodes(grid, self.min_available_nodes, finished)
        stream = generator(self.seed, server_round, SERVER_STREAM, _SELECT_NODES)
        node_ids = choose_nodes(connected, finished, self.fraction_train, stream)
        log(INFO, "configure_train: asking %d of %d nodes", len(node_ids), len(connected))
        common = {**config, **self._instruction, "server-round": server_round, "seed": self.seed}
        common |= self.round_instruction(server_round)
        messages = []
        for node_id in node_ids:
            record = ConfigRecord({**common, **self.node_instruction(node_id)})
            content = RecordDict({"config": record})
            if self._sends_model:
                content["arrays"] = arrays
            messages.append(Message(content, node_id, MessageType.TRAIN))
        self.begin_round(server_round, messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Train on what the round brought; returns the new arrays and the round's metrics."""
        accepted = self.accept(server_round, replies)
        with self.stage("train"):
            loss = self.learn(server_round, accepted)
        metrics = self.finish_round(server_round, accepted, loss)
        return self.server_model.state_arrays(), metrics

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
