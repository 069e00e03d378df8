"""Reading a reply that is a whole model, by the host's own code or by `clients.baselines`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from codec.messages import ARRAYS, METRICS, PAYLOAD, LocalReply
from strategies.received import BadReply, Received, read_reply
from strategies.received_arrays import read_arrays

WEIGHT = "num-examples"


@dataclass(frozen=True)
class ReceivedModel(Received):
    """A locally trained model that passed every check.

    Attributes
    ----------
    arrays : ArrayRecord
        The model's state; empty from a client without samples.
    """

    arrays: ArrayRecord

    @property
    def is_useful(self) -> bool:
        """Whether there is a model."""
        return bool(self.arrays)


def weighted(arrays: ArrayRecord, num_examples: int) -> RecordDict:
    """Return a model and its weight as Flower averages them."""
    return RecordDict({ARRAYS: arrays, METRICS: MetricRecord({WEIGHT: num_examples})})


def averaged(models: Sequence[tuple[ArrayRecord, int]]) -> ArrayRecord:
    """Return the mean of models, weighted by examples, as Flower's FedAvg takes it."""
    return aggregate_arrayrecords([weighted(*pair) for pair in models], WEIGHT)


def read_host_model(
    message: Message, sent: Mapping[str, Array], max_examples: int, weighted_by_key: str = WEIGHT
) -> ReceivedModel:
    """Read a model as any client of Flower's FedAvg replies with it.

    Parameters
    ----------
    message : Message
        With one ``ArrayRecord``, and the number of examples in a ``MetricRecord``.
    sent : mapping of str to Array
        State that the client was sent.
    max_examples : int
        Most that it may count for.
    weighted_by_key : str
        Name of that number.

    Raises
    ------
    BadReply
        If it cannot be used.
    """
    records = list(message.content.array_records.values())
    if not records and (empty := read_empty(message)):
        return empty
    if len(records) != 1:
        raise BadReply("record", f"the reply has {len(records)} ArrayRecords, not one")
    examples = _examples(message, weighted_by_key)
    if isinstance(message.content.get(PAYLOAD), ConfigRecord):
        reply = read_reply(message, LocalReply)
    else:
        reply = LocalReply(client=0, num_examples=examples)
    check_examples(max(examples, reply.num_examples), max_examples)
    size = read_arrays(records[0], sent)
    return ReceivedModel(message.metadata.src_node_id, reply, {ARRAYS: size}, records[0])


def read_empty(message: Message) -> ReceivedModel | None:
    """Return the reply of a client that has no samples to train on; None if it is another."""
    if not isinstance(message.content.get(PAYLOAD), ConfigRecord) or ARRAYS in message.content:
        return None
    reply = read_reply(message, LocalReply)
    if reply.num_examples or reply.delta is not None:
        return None
    return ReceivedModel(message.metadata.src_node_id, reply, {}, ArrayRecord())


def check_examples(examples: int, most: int) -> None:
    """Raise `BadReply` unless a client may count for so many samples in an average."""
    if not 1 <= examples <= most:
        raise BadReply("count", f"num-examples is {examples}, not 1 to max_examples = {most}")


def _examples(message: Message, key: str) -> int:
    found = [record[key] for record in message.content.metric_records.values() if key in record]
    if not found:
        raise BadReply("count", f"no MetricRecord has {key!r}, the number of examples")
    value = found[0]
    if not isinstance(value, int | float) or not 1 <= value < 2**63 or value != int(value):
        raise BadReply("count", f"{key!r} is {value!r}, not a whole number >= 1")
    return int(value)
