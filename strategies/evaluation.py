"""Evaluation on clients, as in Flower's FedAvg; a bad reply costs no round."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from logging import WARNING

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from codec.options import COUNT, POSITIVE, SHARE, Options, option
from strategies.client_words import client_words
from strategies.errors import RunFailed
from strategies.participation import choose_nodes, wait_for_nodes
from strategies.received import BadReply

Aggregate = Callable[[list[RecordDict], str], MetricRecord]

_EVALUATE = "evaluate"


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(Options):
    """Evaluation on clients, as in Flower's FedAvg; it costs a broadcast of the model."""

    fraction_evaluate: float = option(
        0.0, "share of the connected nodes that evaluate after a round (0: none)", SHARE
    )
    min_evaluate_nodes: int = option(1, "least number of nodes that evaluate", COUNT)
    weighted_by_key: str = option("num-examples", "metric that weighs a client's metrics")
    arrayrecord_key: str = option("arrays", "record of the model in messages to evaluate")
    configrecord_key: str = option("config", "record of the config in messages to evaluate")
    train_metrics_aggr_fn: Aggregate | None = option(  # noqa: RUF009 - declared, not called
        None, "from the clients' replies to the metrics of a round (none: ours alone)"
    )
    evaluate_metrics_aggr_fn: Aggregate | None = option(  # noqa: RUF009
        None, "from the clients' replies to the metrics of an evaluation (none: weighted means)"
    )


def evaluation_messages(
    options: EvaluationOptions,
    nodes: Sequence[int],
    server_round: int,
    arrays: ArrayRecord,
    config: ConfigRecord,
) -> list[Message]:
    """Return the messages that ask nodes to evaluate a model, as FedAvg writes them."""
    content = RecordDict(
        {
            options.arrayrecord_key: arrays,
            options.configrecord_key: ConfigRecord({**config, "server-round": server_round}),
        }
    )
    return [Message(content, node_id, MessageType.EVALUATE) for node_id in nodes]


def evaluating_nodes(
    options: EvaluationOptions,
    grid: Grid,
    stream: np.random.Generator,
    timeout: float,
    busy: set[int],
) -> list[int]:
    """Return the nodes that evaluate; none, and a warning, if there are not enough in time.

    Those that are busy with an earlier request are not among them.
    """
    try:
        connected = wait_for_nodes(grid, options.min_evaluate_nodes, set(), timeout)
    except RunFailed as error:
        log(WARNING, "no evaluation on clients: %s", error)
        return []
    share = options.fraction_evaluate
    return choose_nodes(connected, busy, share, stream, options.min_evaluate_nodes)


def read_metrics(message: Message, weighted_by_key: str) -> MetricRecord:
    """Return the metrics in a reply; `BadReply` if it is an error or they have no weight."""
    if message.has_error():
        raise BadReply(_EVALUATE, client_words(message.error.reason))
    records = list(message.content.metric_records.values())
    if len(records) != 1:
        raise BadReply(_EVALUATE, f"the reply has {len(records)} MetricRecords, not one")
    weight = records[0].get(weighted_by_key)
    if not isinstance(weight, int | float) or weight not in POSITIVE:
        raise BadReply(_EVALUATE, f"{weighted_by_key!r} is {weight!r}, not a number > 0")
    return records[0]


def unlike_the_others(found: Sequence[tuple[int, MetricRecord]]) -> list[tuple[int, BadReply]]:
    """Return the nodes whose metrics have other names than most have: they have no mean."""
    if not found:
        return []
    usual, _ = Counter(frozenset(metrics) for _, metrics in found).most_common(1)[0]
    named = ", ".join(sorted(usual))
    return [
        (node_id, BadReply(_EVALUATE, f"metrics are {', '.join(sorted(metrics))}, most: {named}"))
        for node_id, metrics in found
        if frozenset(metrics) != usual
    ]


def aggregated(
    aggregate: Aggregate | None, contents: Iterable[RecordDict], weighted_by_key: str
) -> MetricRecord | None:
    """Return what a host's function, or Flower's weighted mean, makes of replies; None of none."""
    records = list(contents)
    return (aggregate or aggregate_metricrecords)(records, weighted_by_key) if records else None
