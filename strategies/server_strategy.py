"""What all strategies here are to Flower: they hold the model, and keep books."""

import inspect
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from codec import OptionError
from codec.messages import METRICS, Participation, Reply, Request
from codec.options import COUNT, COUNT_OR_NONE, Options, check, flat_fields
from codec.random import Stream, server_generator
from strategies.checkpoint import NAME, Checkpoint, read_checkpoint
from strategies.early_reading import EarlyReader
from strategies.errors import CheckpointError, RunFailed
from strategies.evaluation import (
    EvaluationOptions,
    aggregated,
    evaluating_nodes,
    evaluation_messages,
    read_metrics,
    unlike_the_others,
)
from strategies.ledger import Ledger
from strategies.post import Post
from strategies.privacy import refuse_privacy_wrappers
from strategies.received import BadReply, Received
from strategies.round_book import RoundBook, too_late
from strategies.round_loop import EvaluateFn, RoundLoop, ShouldStop
from strategies.server_model import ServerModel

ReceivedT = TypeVar("ReceivedT", bound=Received)
StartT = TypeVar("StartT", bound=Callable[..., Result])

LEARNING_RATE_KEYS = ("lr", "learning-rate", "learning_rate")
_RETURN_SECONDS, _RETURN_POLL = 120.0, 0.5  # for nodes to connect to a run that goes on
# Records of a `Result` by round.
_RESULTS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")
# Options with other values of which a run can go on.
_MAY_CHANGE = (
    *("quorum", "request-window"),
    *("min-available-nodes", "min-train-nodes", "min-evaluate-nodes"),
)
_FRUITLESS = 3  # rounds in a row in which no reply can be used, and all say why


def _a_run(start: StartT) -> StartT:
    """Wrap a ``start`` so that the strategy knows what it runs, and closes its books.

    A host's own ``start`` is wrapped like ours, which it may call or not.
    """

    @wraps(start)
    def run(self: "ServerStrategy", *args: Any, **given: Any) -> Result:
        self._take_note(_arguments(start, self, *args, **given))
        if self._running:
            return start(self, *args, **given)
        self._running = True
        try:
            before = self._progress()
            began = time.perf_counter()
            result = start(self, *args, **given)
            self.book.summary(time.perf_counter() - began)
            self._check_progress_since(before)
            return result
        finally:
            self._running = False

    return cast(StartT, run)


def _arguments(start: Callable[..., Result], *args: Any, **given: Any) -> dict[str, Any]:
    """Return the arguments of a ``start`` by name, as far as it names them."""
    try:
        bound = inspect.signature(start).bind(*args, **given)
    except TypeError:  # which the call itself will say
        return given
    bound.apply_defaults()
    return bound.arguments | given


class ServerStrategy(Strategy):
    """A strategy with a model of its own; what a round does is up to the subclass.

    A subclass may override ``start``, with a loop of its own or a call of Flower's. Only in our
    own loop does a round end with a quorum, are late replies taken, and replies read as they come.

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
    evaluation : EvaluationOptions
        Evaluation on clients.
    participation : Participation
        Who is asked, how many at once, and whose replies end a round.

    Attributes
    ----------
    num_rounds : int
        Rounds of the run; 0 where that is not known.
    timeout : float
        Seconds that a round waits for nodes and replies.
    """

    takes_late = False  # whether a reply is of use after its round

    def __init__(
        self,
        server_model: ServerModel,
        book: RoundBook,
        request: Request,
        options: Sequence[Options],
        evaluation: EvaluationOptions,
        participation: Participation,
    ) -> None:
        self.server_model = server_model
        self.book = book
        self.request = request
        self.evaluation = evaluation
        self.num_rounds = 0
        self.timeout = 3600.0
        self.participation = participation
        self._post: Post | None = None
        self._reader: EarlyReader | None = None
        self._options = options
        self._running = False
        self._own_arrays: Mapping[str, Array] = {}
        self._warned: set[str] = set()
        self._fruitless = 0
        self._node_of_client: dict[int, int] = {}
        self._former: dict[int, int] = {}  # likewise, in the process that this one goes on for
        self._metrics: dict[int, dict[str, Any]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "start" in cls.__dict__:
            cls.start = _a_run(cls.start)  # type: ignore[method-assign]  # of the same arguments

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

    def is_due(self, server_round: int, every: int) -> bool:
        """Whether a round is one of every so many, or the last."""
        return is_due(server_round, every, self.num_rounds)

    # A run

    @_a_run
    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        should_stop: ShouldStop | None = None,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 1,
        resume: str | Path | None = None,
    ) -> Result:
        """Run the strategy, as Flower's own ``start``; a summary of five lines ends it.

        It may be called again, to train on: the books go on, and so do what the strategy has
        received and the optimizer's state.

        A round ends when the quorum's replies are there, or after `timeout`. Nodes that have not
        answered by then are not asked, nor waited for, until their reply has come or is given up.

        Parameters
        ----------
        grid : Grid
            Flower's connection to the nodes.
        initial_arrays : ArrayRecord, optional
            State that the model starts from; by default its own.
        num_rounds, timeout, train_config, evaluate_config, evaluate_fn
            As in ``flwr.serverapp.strategy.Strategy.start``. A learning rate in `train_config`
            ("lr", "learning-rate" or "learning_rate") becomes that of the server's optimizer.
        should_stop : callable, optional
            Called with the round and the `Result` so far when a round is over, as by Flower from
            1.43 on; true ends the run.
        checkpoint : str or Path, optional
            Folder in which the state of the run is kept, before the first round and after each.
        checkpoint_every : int
            Rounds between two checkpoints; after the last there is always one.
        resume : str or Path, optional
            Folder with the checkpoint of a run that ended early, by whatever: this run goes on
            with the next round, where `num_rounds` counts all. Strategy, model, optimizer and
            options must be the same, and the clients' data; more rounds are allowed. It may be
            the folder of `checkpoint`, too. On the CPU the model comes out as if nothing had
            happened, bit for bit, if the same clients are asked and none keeps an error memory.

        Returns
        -------
        Result
            Final arrays, and metrics by round.

        Raises
        ------
        RunFailed
            If nothing that was received could be learned from, or it is plain that nothing will
            be; with the first words of the clients.
        CheckpointError
            If `resume` holds no checkpoint of such a run, or this strategy cannot be kept.
        """
        saved = None if resume is None else self._resumed(Path(resume))
        if initial_arrays is None or saved is not None:
            initial_arrays = self.current_arrays()
        keeper = None
        if checkpoint is not None:
            self.check_keepable()
            check("checkpoint_every", checkpoint_every, COUNT)
            keeper = _Keeper(self, Path(checkpoint), checkpoint_every)
        if evaluate_fn is None and not self.evaluation.fraction_evaluate:
            log(
                INFO,
                "nobody evaluates the model: neither evaluate_fn nor fraction_evaluate is given",
            )
        loop = RoundLoop(
            num_rounds,
            timeout,
            train_config if train_config is not None else ConfigRecord(),
            evaluate_config if evaluate_config is not None else ConfigRecord(),
            evaluate_fn,
            should_stop,
            keeper,
        )
        asking = self.participation
        self._post = post = Post(grid, asking.quorum, asking.request_window)
        self._reader = EarlyReader()
        try:
            result, first_round = Result(), 0
            if saved is not None:
                result, first_round = _result_of(saved.state["result"]), saved.server_round + 1
                result.arrays = initial_arrays
                self._await_return(post, saved.state["nodes"])
            result = loop.run(self, post, initial_arrays, result, first_round)
            self._close(post)
            return result
        finally:
            self._reader.close()
            self._post = self._reader = None

    def close(self) -> None:
        """Let go of files; the strategy is of no use after that."""

    # A run that goes on in another process

    def check_keepable(self) -> None:
        """Raise `CheckpointError` if a checkpoint could not bring back what matters."""

    def own_state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside model, books and random numbers."""
        return {}

    def restore_own(self, state: Mapping[str, Any]) -> None:
        """Take over what `own_state` returned."""

    def state(self, result: Result) -> dict[str, Any]:
        """Return all of a run that a process must know to go on with it.

        Parameters
        ----------
        result : Result
            Of the rounds so far.
        """
        return {
            "strategy": type(self).__name__,
            "options": self._told_options(),
            "num_rounds": self.num_rounds,
            "nodes": 0 if self._post is None else len(list(self._post.get_node_ids())),
            "result": {name: _metrics_of(getattr(result, name)) for name in _RESULTS},
            "model": self.server_model.state(),
            "book": self.book.state(),
            "clients": {**self._former, **self._node_of_client},
            "random": random_state(),
            "own": self.own_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned, of a run of the same strategy.

        Raises
        ------
        CheckpointError
            If it is of another one; says what differs.
        """
        if state["strategy"] != type(self).__name__:
            raise CheckpointError(
                f"the checkpoint is of a {state['strategy']}, this is a {type(self).__name__}"
            )
        then, now = state["options"], self._told_options()
        differing = [
            f"{key} was {then.get(key)!r}, is {now.get(key)!r}"
            for key in sorted(then.keys() | now.keys())
            if then.get(key) != now.get(key) and key not in _MAY_CHANGE
        ]
        if differing:
            raise CheckpointError(f"the checkpoint is of other options: {'; '.join(differing)}")
        longer = state["num_rounds"] != self.num_rounds
        self.server_model.restore(state["model"], reschedule=longer)
        self.book.restore(state["book"])
        self._former, self._node_of_client = dict(state["clients"]), {}
        self.restore_own(state["own"])
        restore_random_state(state["random"])

    def _told_options(self) -> dict[str, Any]:
        flat = (group.to_flat().items() for group in self._options)
        return {key: value for group in flat for key, value in group if not callable(value)}

    def _resumed(self, folder: Path) -> Checkpoint:
        saved = read_checkpoint(folder)
        self.restore(saved.state)
        log(INFO, "goes on from %s, after round %d", folder / NAME, saved.server_round)
        return saved

    def _await_return(self, post: Post, nodes: int) -> None:
        """Give the nodes that took part some time to connect again."""
        until = time.monotonic() + min(self.timeout, _RETURN_SECONDS)
        while len(found := list(post.get_node_ids())) < nodes and time.monotonic() < until:
            time.sleep(_RETURN_POLL)
        if len(found) < nodes:
            log(WARNING, "goes on with %d nodes; before there were %d", len(found), nodes)

    def _take_note(self, given: Mapping[str, Any]) -> None:
        self.num_rounds = int(given.get("num_rounds", self.num_rounds))
        self.timeout = float(given.get("timeout", self.timeout))

    def _progress(self) -> tuple[int, int, int]:
        self._fruitless = 0
        return self.book.useful, self.steps_taken, self.failures.total()

    def _check_progress_since(self, before: tuple[int, int, int]) -> None:
        """Raise `RunFailed` if a run has learned nothing, and was to."""
        useful, steps, failures = before
        learned = self.book.useful > useful or self.steps_taken > steps
        failed = self.failures.total() > failures or not self.book.useful
        if self.num_rounds and failed and not learned:
            raise RunFailed(f"no reply could be used: {self.book.why()}")

    # Nodes and their replies

    def finished(self) -> Collection[int]:
        """Return nodes that have nothing left to send."""
        return ()

    def busy(self) -> set[int]:
        """Return nodes whose reply to an earlier request is out: they are not to be asked."""
        return set() if self._post is None else self._post.busy()

    def needs_nodes(self) -> bool:
        """Whether a round is of no use unless somebody answers."""
        return True

    def before_round(self, server_round: int, post: Post) -> None:
        """Take in what has come since; wait for it if nobody else is there to be asked."""
        self.book.turn_to(server_round)
        post.next_round()
        if not self._free(post):
            post.wait_for_late(self.timeout)
        if not self._free(post) and not post.owes() and self.needs_nodes():
            post.wake_all()
        self.book.give_up(post.take_given_up())
        if not self.takes_late:  # so that these nodes can be asked
            self.book.drop_late(server_round, post.take_late())

    def _free(self, post: Post) -> set[int]:
        return set(post.get_node_ids()) - post.busy() - set(self.finished())

    def late_replies(self, server_round: int, post: Post) -> list[Message]:
        """Return replies to earlier requests to train; others are of no use any more."""
        late = post.take_late()
        training = self.book.training_among(late)
        kept = set(map(id, training))
        self.book.drop_late(server_round, [message for message in late if id(message) not in kept])
        return training

    def _close(self, post: Post) -> None:
        """Take in at the end what has come, and tell what has not."""
        post.look()
        self.book.give_up(post.take_given_up())
        self.take_leftovers(self.num_rounds, self.late_replies(self.num_rounds, post))
        out = post.busy()
        if out:
            nodes = ", ".join(map(str, sorted(out)))
            log(WARNING, "%d replies were still out at the end, of nodes %s", len(out), nodes)

    def take_leftovers(self, server_round: int, replies: Sequence[Message]) -> None:
        """Book replies that came after the last round; they are of no use."""
        self.book.drop_late(server_round, replies)

    # A round

    def prepare(
        self, arrays: ArrayRecord | None, config: ConfigRecord | None, *, private: bool = False
    ) -> tuple[ArrayRecord, ConfigRecord]:
        """Take over what the caller of a round says of model and optimizer.

        Parameters
        ----------
        arrays : ArrayRecord, optional
            State of the model: loaded, unless it is what this strategy returned last.
        config : ConfigRecord, optional
            A learning rate in it is applied to the server's optimizer. Not modified.
        private : bool
            Whether Flower's differential privacy is of use to the clients.

        Returns
        -------
        ArrayRecord, ConfigRecord
            The model's state, and what is left of the config for the clients.
        """
        if not private:
            refuse_privacy_wrappers(self)
        if not arrays:
            arrays = self.current_arrays()
        else:
            self.take_over(arrays)
        return arrays, self._for_clients(config or ConfigRecord())

    def take_over(self, arrays: ArrayRecord) -> None:
        """Load a state of the model, unless it is what this strategy returned last."""
        if not self._are_own(arrays):
            self.server_model.load_arrays(arrays)
            self._own_arrays = dict(arrays)

    def current_arrays(self) -> ArrayRecord:
        """Return the model's state, for the next round."""
        arrays = self.server_model.state_arrays()
        self._own_arrays = dict(arrays)
        return arrays

    @abstractmethod
    def read(self, message: Message) -> Received:
        """Decode and check a reply to a request to train; `BadReply` if it cannot be used.

        It may be called as soon as the reply is here, in another thread, and must not depend on
        other replies to the round.
        """

    def read_early(self, message: Message) -> None:
        """Begin to read a reply while others are out; `collect` returns what it holds."""
        if self._reader is not None:
            self._reader.begin(message, self.read)

    def collect(
        self, server_round: int, replies: Iterable[Message], read: Callable[[Message], ReceivedT]
    ) -> list[ReceivedT]:
        """Return the replies that can be used, see `RoundBook.collect`."""
        messages = list(replies)
        late = set(map(id, self.book.late_among(server_round, messages)))

        def read_in_time(message: Message) -> ReceivedT:
            if id(message) in late and not self.takes_late:
                raise too_late(message)
            return read(message) if self._reader is None else self._reader.take(message, read)

        unhurried = self._post.unhurried if self._post is not None else ()
        self._metrics = {
            message.metadata.src_node_id: dict(record)
            for message in messages
            if message.has_content()
            for record in message.content.metric_records.values()
        }
        accepted = self.book.collect(server_round, messages, read_in_time, unhurried)
        if self._reader is not None:
            self._reader.forget()
        if self.request.client_key == "partition":
            self._find_again(accepted)
            self._warn_of_twins(accepted)
        return accepted

    def finish(
        self, server_round: int, accepted: Sequence[Received], steps: int, loss: float
    ) -> MetricRecord:
        """Close the books of a round; return its metrics, with those that the host aggregates.

        Raises
        ------
        RunFailed
            If no reply ever could be used, and for some rounds all have said why.
        """
        own = self.book.finish(server_round, accepted, steps, loss)
        all_said_why = self.book.round_failures and not self.book.any_missing
        self._fruitless = self._fruitless + 1 if all_said_why and not self.book.accepted else 0
        if self._fruitless >= _FRUITLESS:
            raise RunFailed(
                f"no reply could be used in {_FRUITLESS} rounds in a row: {self.book.why()}"
            )
        return MetricRecord({**own, **self._host_metrics(accepted)})

    def _are_own(self, arrays: ArrayRecord) -> bool:
        own = self._own_arrays
        return arrays.keys() == own.keys() and all(arrays[name] is own[name] for name in own)

    def _for_clients(self, config: ConfigRecord) -> ConfigRecord:
        """Apply a config's learning rate; return the entries that are the clients'."""
        own = self.request.to_entries().keys()
        for key, value in config.items():
            if key in LEARNING_RATE_KEYS:
                self._set_learning_rate(key, value)
            elif key in own and key != "server-round":
                self._warn(key, "is set by the strategy itself; pass it as an option of that")
            elif key not in own:
                self._warn(key, "is passed on to the clients; this strategy makes no use of it")
        return ConfigRecord({key: value for key, value in config.items() if key not in own})

    def _set_learning_rate(self, key: str, value: object) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or cast(float, value) not in COUNT_OR_NONE:
            raise OptionError(f"train_config: {key}", f"= {value!r} must be a number >= 0")
        if self.server_model.scheduler is not None:
            self._warn(key, "has no effect: the strategy has a scheduler")
            return
        for group in self.server_model.optimizer.param_groups:
            group["lr"] = float(cast(float, value))

    def _warn(self, key: str, what: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            log(WARNING, "train_config: %r %s", key, what)

    def _find_again(self, accepted: Sequence[Received]) -> None:
        """Book what clients did in the process before this one under their nodes' new ids."""
        for received in accepted:
            former = self._former.pop(received.client, received.node_id)
            if former != received.node_id:
                self.book.rename(former, received.node_id)

    def _warn_of_twins(self, accepted: Sequence[Received]) -> None:
        """Warn of nodes that answer with one number, by which random numbers are keyed."""
        for received in accepted:
            first = self._node_of_client.setdefault(received.client, received.node_id)
            if first != received.node_id:
                self.book.tell(
                    f"client {received.client}",
                    "nodes %d and %d both have partition-id %d, and so the same random numbers: "
                    "give each its own, or take client_key='node'",
                    first,
                    received.node_id,
                    received.client,
                )

    def _host_metrics(self, accepted: Sequence[Received]) -> Mapping[str, Any]:
        """Return what the host's function makes of the clients' metrics."""
        aggregate, key = self.evaluation.train_metrics_aggr_fn, self.evaluation.weighted_by_key
        if aggregate is None:
            return {}
        contents = []
        for received in accepted:
            if received.num_examples:
                sent = self._metrics.get(received.node_id, {})
                record = MetricRecord({**_all_metrics(received.reply), **sent})
                contents.append(RecordDict({METRICS: record}))
        return aggregated(aggregate, contents, key) or {}

    # Evaluation on clients

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the share of nodes that ``fraction_evaluate`` says, as FedAvg does, and book it."""
        options = self.evaluation
        if not options.fraction_evaluate:
            return []
        stream = server_generator(self.request.seed, server_round, Stream.SERVER_EVALUATION)
        nodes = evaluating_nodes(options, grid, stream, self.timeout, self.busy())
        model = arrays or self.current_arrays()
        messages = evaluation_messages(
            options, nodes, server_round, model, config or ConfigRecord()
        )
        self.book.ask(server_round, messages)
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the clients' metrics as FedAvg does; None without any."""
        options = self.evaluation
        if not options.fraction_evaluate:
            return None
        key = options.weighted_by_key

        def read(message: Message) -> MetricRecord:
            return read_metrics(message, key)

        unhurried = self._post.unhurried if self._post is not None else ()
        answers = self.book.answers(
            server_round, replies, read, what="evaluation", unhurried=unhurried
        )
        found = [(n, answer) for n, answer in answers if not isinstance(answer, BadReply)]
        odd = unlike_the_others(found)
        for node_id, bad in odd:
            self.book.reject(node_id, bad)
        left_out = {node_id for node_id, _ in odd}
        contents = [RecordDict({METRICS: m}) for node_id, m in found if node_id not in left_out]
        return aggregated(options.evaluate_metrics_aggr_fn, contents, key)

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


@dataclass(frozen=True)
class _Keeper:
    """Writes checkpoints.

    Attributes
    ----------
    strategy : ServerStrategy
    folder : Path
    every : int
        Rounds between two of them.
    """

    strategy: ServerStrategy
    folder: Path
    every: int

    def __call__(
        self, server_round: int, arrays: ArrayRecord, result: Result, is_last: bool
    ) -> None:
        """Keep the state after a round; a disk that does not take it costs no round."""
        if server_round % self.every and not is_last:
            return
        self.strategy.take_over(arrays)  # of a host's subclass that returns others
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            Checkpoint(server_round, self.strategy.state(result)).write(self.folder)
        except OSError as error:
            text = "no checkpoint of round %d in %s: %s. What came since would be repeated"
            log(ERROR, text, server_round, self.folder, error.strerror or error)


def random_state() -> dict[str, Any]:
    """Return the state of torch's own random numbers, which models draw from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Take over what `random_state` returned, as far as there are as many devices."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _metrics_of(rounds: Mapping[int, MetricRecord]) -> dict[int, dict[str, Any]]:
    return {number: dict(metrics) for number, metrics in rounds.items()}


def _result_of(state: Mapping[str, Any]) -> Result:
    result = Result()
    for name in _RESULTS:
        rounds = state[name].items()
        setattr(result, name, {number: MetricRecord(dict(found)) for number, found in rounds})
    return result


def is_due(server_round: int, every: int, num_rounds: int) -> bool:
    """Whether a round is one of every so many, or the last."""
    return server_round % every == 0 or server_round == num_rounds


def _all_metrics(reply: Reply) -> dict[str, Any]:
    """Return all the numbers of a reply: defaults are not sent, but a mean needs them, too."""
    return {
        key: getattr(reply, declared.name)
        for key, declared in flat_fields(type(reply))
        if declared.metadata.get("metric")
    }
