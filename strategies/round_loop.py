"""The rounds of a run: what Flower's own loop does, from any round on, and until it is enough."""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from logging import INFO
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.common import log
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy.strategy_utils import log_strategy_start_info

from strategies.post import Post

if TYPE_CHECKING:
    from strategies.server_strategy import ServerStrategy

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
ShouldStop = Callable[[int, Result], bool]


@dataclass
class RoundLoop:
    """A run of a strategy, as ``flwr.serverapp.strategy.Strategy.start`` makes it.

    Attributes
    ----------
    num_rounds : int
        Number of the last round.
    timeout : float
        Seconds that a round waits for replies.
    train_config, evaluate_config : ConfigRecord
    evaluate_fn : callable, optional
        Called with round and arrays, before the first round and after each.
    should_stop : callable, optional
        Called with round and `Result` after each round; true ends the run.
    after_round : callable, optional
        Called with round, arrays, `Result` and whether it is the last when a round is over, and
        for round 0 before the first.
    """

    num_rounds: int
    timeout: float
    train_config: ConfigRecord = field(default_factory=ConfigRecord)
    evaluate_config: ConfigRecord = field(default_factory=ConfigRecord)
    evaluate_fn: EvaluateFn | None = None
    should_stop: ShouldStop | None = None
    after_round: Callable[[int, ArrayRecord, Result, bool], None] | None = None

    def run(
        self,
        strategy: "ServerStrategy",
        post: Post,
        arrays: ArrayRecord,
        result: Result,
        first_round: int = 0,
    ) -> Result:
        """Run the rounds.

        Parameters
        ----------
        strategy : ServerStrategy
        post : Post
        arrays : ArrayRecord
            State of the model.
        result : Result
            Of the rounds before the first; those that follow are added.
        first_round : int
            With which a run goes on; 0: it is new, and the model is evaluated before round 1.
        """
        self._announce(strategy, arrays, first_round)
        started = time.perf_counter()
        if not first_round:
            self._before_first(arrays, result)
        for server_round in range(max(1, first_round), self.num_rounds + 1):
            log(INFO, "")
            log(INFO, "[ROUND %s/%s]", server_round, self.num_rounds)
            arrays = self._train(strategy, post, server_round, arrays, result)
            self._evaluate(strategy, post, server_round, arrays, result)
            stops = self.should_stop is not None and self.should_stop(server_round, result)
            if self.after_round is not None:
                is_last = stops or server_round == self.num_rounds
                self.after_round(server_round, arrays, result, is_last)
            if stops:
                log(INFO, "stopped after round %d of %d", server_round, self.num_rounds)
                break
        _conclude(result, time.perf_counter() - started)
        return result

    def _announce(self, strategy: "ServerStrategy", arrays: ArrayRecord, first_round: int) -> None:
        log(INFO, "Starting %s strategy:", type(strategy).__name__)
        log_strategy_start_info(self.num_rounds, arrays, self.train_config, self.evaluate_config)
        if first_round:
            log(INFO, "\t├── Goes on with round %d", first_round)
        strategy.summary()
        log(INFO, "")

    def _before_first(self, arrays: ArrayRecord, result: Result) -> None:
        if self.evaluate_fn:
            metrics = self.evaluate_fn(0, arrays)
            log(INFO, "Initial global evaluation results: %s", metrics)
            if metrics is not None:
                result.evaluate_metrics_serverapp[0] = metrics
        if self.after_round is not None:
            self.after_round(0, arrays, result, False)

    def _train(
        self,
        strategy: "ServerStrategy",
        post: Post,
        server_round: int,
        arrays: ArrayRecord,
        result: Result,
    ) -> ArrayRecord:
        strategy.before_round(server_round, post)
        messages = strategy.configure_train(server_round, arrays, self.train_config, post)
        read = strategy.read_early
        replies = list(post.send_and_receive(messages, timeout=self.timeout, on_reply=read))
        late = strategy.late_replies(server_round, post)
        trained, metrics = strategy.aggregate_train(server_round, [*replies, *late])
        if trained is not None:
            result.arrays = arrays = trained
        if metrics is not None:
            log(INFO, "\t└──> Aggregated MetricRecord: %s", metrics)
            result.train_metrics_clientapp[server_round] = metrics
        return arrays

    def _evaluate(
        self,
        strategy: "ServerStrategy",
        post: Post,
        server_round: int,
        arrays: ArrayRecord,
        result: Result,
    ) -> None:
        messages = strategy.configure_evaluate(server_round, arrays, self.evaluate_config, post)
        replies = post.send_and_receive(messages, timeout=self.timeout)
        metrics = strategy.aggregate_evaluate(server_round, replies)
        if metrics is not None:
            log(INFO, "\t└──> Aggregated MetricRecord: %s", metrics)
            result.evaluate_metrics_clientapp[server_round] = metrics
        if self.evaluate_fn:
            log(INFO, "Global evaluation")
            metrics = self.evaluate_fn(server_round, arrays)
            log(INFO, "\t└──> MetricRecord: %s", metrics)
            if metrics is not None:
                result.evaluate_metrics_serverapp[server_round] = metrics


def _conclude(result: Result, seconds: float) -> None:
    log(INFO, "")
    log(INFO, "Strategy execution finished in %.2fs", seconds)
    log(INFO, "")
    log(INFO, "Final results:")
    log(INFO, "")
    for line in io.StringIO(str(result)):
        log(INFO, "\t%s", line.strip("\n"))
    log(INFO, "")
