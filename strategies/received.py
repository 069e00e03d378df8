"""What every kind of reply has in common once it has passed its checks, and how it is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord
from numpy.typing import NDArray
from torch import Tensor

from codec import CodecError
from codec.gradients import GradientCompressor
from codec.learning.batch_norm import decode_statistics
from codec.messages import METRICS, PAYLOAD, Reply
from strategies.client_words import client_words

LARGEST = 1e12  # of gradients, changes, parameters and statistics
LARGEST_INTEGER = 2**53

ReplyT = TypeVar("ReplyT", bound=Reply)


class BadReply(ValueError):
    """A reply that cannot be used.

    Parameters
    ----------
    cause : str
        Short name under which it is counted: ``"error"`` (an ``Error`` reply), ``"record"``
        (missing or mistyped records or keys), ``"payload"`` (bytes that do not decode to finite
        samples), ``"codec"``, ``"range"``, ``"budget"``, ``"weights"`` and ``"count"`` (not what
        was instructed, or agreed on), ``"duplicate"``, ``"shape"``, ``"target"``,
        ``"refinement"``, ``"gradient"``, ``"delta"`` and ``"buffers"`` (bytes that do not decode
        to arrays of the model's shapes), ``"not-finite"``, ``"too-large"`` (numbers that no
        training gets to), ``"fit"`` (samples that the model cannot learn from),
        ``"evaluate"``, ``"no-reply"``.
    detail : str
        What was found and what was expected.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause, self.detail = cause, detail


@dataclass(frozen=True)
class Received:
    """A reply that passed every check.

    Attributes
    ----------
    node_id : int
        Flower's node id.
    reply : codec.messages.Reply
        As the client sent it.
    sections : Mapping[str, int]
        Bytes by part of the reply.
    """

    node_id: int
    reply: Reply
    sections: Mapping[str, int]

    @property
    def client(self) -> int:
        """The client's own number (its partition)."""
        return self.reply.client

    @property
    def num_examples(self) -> int:
        """Samples that the client considered; its weight in averages."""
        return self.reply.num_examples

    @property
    def num_sent(self) -> int:
        """Number of samples in the reply."""
        return 0

    @property
    def is_useful(self) -> bool:
        """Whether there is something to learn from in it."""
        return True

    @property
    def entropy_bits(self) -> dict[str, float]:
        """Empirical entropy by section, as far as it is known."""
        return {}


def read_reply(message: Message, kind: type[ReplyT]) -> ReplyT:
    """Return the fields of a reply.

    Parameters
    ----------
    message : Message
        As it came from the grid; an ``Error`` reply is legal input.
    kind : type
        Class of the reply in `codec.messages`.

    Raises
    ------
    BadReply
        If it is an error, or holds no record of this kind.
    """
    if message.has_error():
        error = message.error
        raise BadReply("error", f"code {error.code}, {client_words(error.reason)}")
    record = message.content.get(PAYLOAD) if message.has_content() else None
    if not isinstance(record, ConfigRecord):
        found = "nothing" if record is None else type(record).__name__
        raise BadReply("record", f"'{PAYLOAD}' must be a ConfigRecord, found {found}")
    metrics = message.content.get(METRICS)
    numbers = metrics if isinstance(metrics, MetricRecord) else {}
    try:
        return kind.from_entries({**numbers, **record})
    except CodecError as error:
        raise BadReply("record", str(error)) from error


def require_moderate(cause: str, array: NDArray[Any], what: str) -> None:
    """Raise `BadReply` of a cause if a number is larger than training ever makes one.

    So that sums of finite parts are finite.
    """
    most = LARGEST_INTEGER if array.dtype.kind in "iu" else LARGEST
    if array.size and not (float(array.min()) >= -most and float(array.max()) <= most):
        largest = max(abs(float(array.min())), abs(float(array.max())))
        raise BadReply(cause, f"{what} holds {largest:g}; legal: up to {most:g} in magnitude")


def decompressed(
    data: bytes, cause: str, compressor: GradientCompressor, shapes: Sequence[tuple[int, ...]]
) -> list[NDArray[np.float32]]:
    """Return the arrays that compressed bytes hold; `BadReply` of a cause if they hold others."""
    try:
        arrays = compressor.decompress(data, shapes)
    except CodecError as error:
        raise BadReply(cause, f"{error!s:.200}") from error
    for array in arrays:
        require_moderate(cause, array, f"the {cause}")
    return arrays


def decoded_statistics(data: bytes, expected: Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """Return the statistics of batch normalization in the entry ``buffers``.

    Parameters
    ----------
    data : bytes
        See `codec.learning.batch_norm.encode_statistics`.
    expected : Sequence[Tensor]
        Those of the server's model, for their shapes.

    Raises
    ------
    BadReply
        If the bytes hold other arrays.
    """
    try:
        arrays = decode_statistics(data, [tuple(tensor.shape) for tensor in expected])
    except CodecError as error:
        raise BadReply("buffers", f"{error!s:.200}") from error
    for array in arrays:
        require_moderate("buffers", array, "a statistic")
    return arrays


def client_of(message: Message) -> tuple[int, int]:
    """Return the client's own number, -1 if the reply does not say, and its node: a sort key."""
    record = message.content.get(PAYLOAD) if message.has_content() else None
    client = record.get("client") if isinstance(record, ConfigRecord) else None
    return client if isinstance(client, int) else -1, message.metadata.src_node_id
