"""What all strategies here are to Flower: they hold the model, and keep books."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from torch import nn

from codec import OptionError
from codec.messages import Request
from codec.options import COUNT, SHARE, Options, option
from strategies.errors import RunFailed
from strategies.ledger import Ledger
from strategies.received import Received
from strategies.round_book import RoundBook
from strategies.server_model import ServerModel

Aggregate = Callable[[list[RecordDict], str], MetricRecord]

LEARNING_RATE_KEYS = ("lr", "learning-rate", "learning_rate")
_FRUITLESS = 3  # rounds in a row in which no reply can be used, and all say why


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(Options):
    """Evaluation on clients, as in Flower's FedAvg; it costs a broadcast of the model."""

    fraction_evaluate: float = option(0.0, "share of the nodes that evaluate (0: none)", SHARE)
    min_evaluate_nodes: int = option(1, "least number of nodes that evaluate", COUNT)
    weighted_by_key: str = option("num-examples", "metric that weighs a client's metrics")
    arrayrecord_key: str = option("arrays", "record of the model in messages to evaluate")
    configrecord_key: str = option("config", "record of the config in messages to evaluate")
    train_metrics_aggr_fn: Aggregate | None = option(None, "as in FedAvg")  # noqa: RUF009
    evaluate_metrics_aggr_fn: Aggregate | None = option(None, "as in FedAvg")  # noqa: RUF009


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
        What the summary tells; one may be the :class:`EvaluationOptions`.

    Attributes
    ----------
    num_rounds : int
        Rounds of the run; 0 before it.
    timeout : float
        Seconds that a round waits for nodes and replies.
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
        self.timeout = 3600.0
        found = [part for part in options if isinstance(part, EvaluationOptions)]
        self._evaluation = found[0] if found else EvaluationOptions()
        self._own_arrays: ArrayRecord | None = None
        self._ignored: set[str] = set()
        self._fruitless = 0

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

    def client_key(self, received: Received) -> int:
        """Return what keys a client's random numbers, see `codec.messages.ClientOptions`."""
        by_node = self.request.client_key == "node"
        return received.node_id if by_node else received.client

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
            As in ``flwr.serverapp.strategy.Strategy.start``. A learning rate in `train_config`
            ("lr", "learning-rate" or "learning_rate") becomes that of the server's optimizer.

        Returns
        -------
        Result
            Final arrays, and metrics by round.

        Raises
        ------
        RunFailed
            If no reply of the whole run could be used, or it is plain that none will.
        """
        self.num_rounds, self.timeout = num_rounds, timeout
        if initial_arrays is None:
            initial_arrays = self.server_model.state_arrays()
        accepted, failed = self.book.accepted, self.book.failures.total()
        result = super().start(
            grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )
        if self.book.accepted == accepted and self.book.failures.total() > failed:
            raise RunFailed("no reply could be used: " + self.book.why())
        return result

    def prepare(self, arrays: ArrayRecord, config: ConfigRecord) -> ConfigRecord:
        """Take over what the caller of a round says of model and optimizer.

        Parameters
        ----------
        arrays : ArrayRecord
            State of the model: loaded, unless it is what this strategy returned last.
        config : ConfigRecord
            A learning rate in it is applied to the server's optimizer.

        Returns
        -------
        ConfigRecord
            What is left of the config, for the clients.
        """
        _refuse_privacy_wrappers()
        if arrays is not self._own_arrays and len(arrays):
            self.server_model.load_arrays(arrays)
            self._own_arrays = arrays
        for key in LEARNING_RATE_KEYS:
            if key in config:
                self._set_learning_rate(key, config[key])
        own = self.request.to_entries().keys()
        for key in config.keys() - {"server-round", *LEARNING_RATE_KEYS} - self._ignored:
            self._ignored.add(key)
            what = "is set by the strategy itself" if key in own else "has no effect here"
            log(WARNING, "train_config: %r %s", key, what)
        return ConfigRecord({key: value for key, value in config.items() if key not in own})

    def current_arrays(self) -> ArrayRecord:
        """Return the model's state, for the next round."""
        self._own_arrays = self.server_model.state_arrays()
        return self._own_arrays

    def check_progress(self, accepted: Sequence[Received], asked: int) -> None:
        """Raise `RunFailed` when, for some rounds, all replies have said why they are of no use."""
        said_why = not accepted and asked and not self.book.any_missing
        self._fruitless = self._fruitless + 1 if said_why else 0
        if self._fruitless >= _FRUITLESS:
            raise RunFailed(
                f"no reply could be used in {_FRUITLESS} rounds in a row: {self.book.why()}"
            )

    def train_metrics(self, replies: Iterable[Message], own: MetricRecord) -> MetricRecord:
        """Return a round's metrics: the host's, if it aggregates some, with this strategy's own."""
        aggregate = self._evaluation.train_metrics_aggr_fn
        contents = [message.content for message in replies if message.has_content()]
        if aggregate is None or not contents:
            return own
        return MetricRecord({**own, **aggregate(contents, self._evaluation.weighted_by_key)})

    def _set_learning_rate(self, key: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise OptionError(f"train_config: {key}", f"= {value!r} must be a number >= 0")
        if self.server_model.scheduler is not None:
            if key not in self._ignored:
                self._ignored.add(key)
                log(WARNING, "train_config: %r has no effect: the strategy has a scheduler", key)
            return
        for group in self.server_model.optimizer.param_groups:
            group["lr"] = float(value)

    def is_due(self, server_round: int, every: int) -> bool:
        """Whether a round is one of every so many, or the last."""
        return is_due(server_round, every, self.num_rounds)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the share of nodes that ``fraction_evaluate`` says, as FedAvg does, and book it."""
        if not self._evaluation.fraction_evaluate:
            return []
        asked = self._evaluator().configure_evaluate(server_round, arrays, config, grid)
        messages = list(asked)
        self.book.ask(server_round, messages)
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the clients' metrics as FedAvg does; None if nobody was asked."""
        if not self._evaluation.fraction_evaluate:
            return None
        received = list(replies)
        self.book.evaluated(server_round, received)
        return self._evaluator().aggregate_evaluate(server_round, received)

    def _evaluator(self) -> FedAvg:
        options = self._evaluation
        return FedAvg(
            fraction_evaluate=options.fraction_evaluate,
            min_train_nodes=1,
            min_evaluate_nodes=options.min_evaluate_nodes,
            min_available_nodes=options.min_evaluate_nodes,
            weighted_by_key=options.weighted_by_key,
            arrayrecord_key=options.arrayrecord_key,
            configrecord_key=options.configrecord_key,
            evaluate_metrics_aggr_fn=options.evaluate_metrics_aggr_fn,
        )

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


def _refuse_privacy_wrappers() -> None:
    """Raise `RunFailed` if one of Flower's differential-privacy strategies wraps the caller."""
    frame = sys._getframe(2)
    for _ in range(6):
        if frame is None:
            return
        wrapper = type(frame.f_locals.get("self")).__name__
        if wrapper.startswith("DifferentialPrivacy"):
            raise RunFailed(
                f"{wrapper} does not protect this strategy's clients: it clips and noises models, "
                "but here samples leave the devices, unclipped. Use it with FedAvg"
            )
        if frame.f_back is None:
            return
        frame = frame.f_back
