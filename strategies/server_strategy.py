"""What all strategies here are to Flower: they hold the model, and keep books."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from codec.messages import Request
from codec.options import Options
from strategies.ledger import Ledger
from strategies.round_book import RoundBook
from strategies.server_model import ServerModel


class ServerStrategy(Strategy):
    """A strategy with a model of its own; what a round does is up to the subclass.

    Parameters
    ----------
    server_model : ServerModel
        What is trained.
    book : RoundBook
        Bytes, seconds and failures.
    request : Request
        What clients are asked, but for what is a round's or a node's own.
    options : sequence of Options
        What the summary tells.

    Attributes
    ----------
    num_rounds : int
        Rounds of the run; 0 before it.
    """

    def __init__(
        self,
        server_model: ServerModel,
        book: RoundBook,
        request: Request,
        options: Sequence[Options],
    ) -> None:
        self.server_model = server_model
        self.book = book
        self.request = request
        self._options = options
        self.num_rounds = 0

    @property
    def model(self) -> nn.Module:
        """The module that is trained."""
        return self.server_model.model

    @property
    def steps_taken(self) -> int:
        """Optimizer steps so far."""
        return self.server_model.steps_taken

    @property
    def ledger(self) -> Ledger:
        """Bytes in both directions."""
        return self.book.ledger

    @property
    def failures(self) -> Counter[str]:
        """Replies that could not be used, by cause."""
        return self.book.failures

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

    def is_due(self, server_round: int, every: int) -> bool:
        """Whether a round is one of every so many, or the last."""
        return is_due(server_round, every, self.num_rounds)

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
        log(INFO, "\t└──> Options:")
        values = {key: value for group in self._options for key, value in group.to_flat().items()}
        for key, value in values.items():
            log(INFO, "\t\t%s %s: %s", "└──" if key == [*values][-1] else "├──", key, value)


def is_due(server_round: int, every: int, num_rounds: int) -> bool:
    """Whether a round is one of every so many, or the last."""
    return server_round % every == 0 or server_round == num_rounds
