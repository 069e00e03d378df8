"""What every kind of reply has in common, and how its fields are read and checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Message
from numpy.typing import NDArray
from torch import Tensor

from codec import CodecError
from codec.gradients import GradientCompressor
from codec.learning.batch_norm import decode_statistics

PAYLOAD_KEY = "payload"


class BadReply(ValueError):
    """A reply that cannot be used.

    Parameters
    ----------
    cause : str
        Short name under which it is counted: ``"error"`` (an ``Error`` reply), ``"record"``
        (missing or mistyped records or keys), ``"payload"`` (bytes that do not decode to finite
        samples), ``"count"``, ``"shape"``, ``"target"``, ``"refinement"``, ``"gradient"``,
        ``"delta"`` and ``"buffers"`` (bytes that do not decode to finite arrays of the model's
        shapes), ``"not-finite"``, ``"no-reply"``.
    detail : str
        What was found and what was expected.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


@dataclass(frozen=True)
class ClientReply:
    """A reply that passed every check.

    Attributes
    ----------
    node_id, client : int
        Flower's node id, and the client's own number (its partition).
    num_examples : int
        Samples that the client considered; its weight in averages.
    sections : Mapping[str, int]
        Bytes by part of the reply.
    seconds : Mapping[str, float]
        Client's own time by stage.
    memory_bytes : int
        Error memory that the client keeps for its compressor.
    """

    node_id: int
    client: int
    num_examples: int
    sections: Mapping[str, int]
    seconds: Mapping[str, float]
    memory_bytes: int

    @property
    def num_sent(self) -> int:
        """Number of samples in the reply."""
        return 0

    @property
    def entropy_bits(self) -> dict[str, float]:
        """Empirical entropy by section, as far as it is known."""
        return {}


def payload_record(message: Message) -> ConfigRecord:
    """Return the record of a reply; `BadReply` if it is an error or holds none."""
    if message.has_error():
        error = message.error
        raise BadReply("error", f"code {error.code}, {error.reason}")
    record = message.content.get(PAYLOAD_KEY) if message.has_content() else None
    if not isinstance(record, ConfigRecord):
        found = "nothing" if record is None else type(record).__name__
        raise BadReply("record", f"'{PAYLOAD_KEY}' must be a ConfigRecord, found {found}")
    return record


def read_integer(record: ConfigRecord, key: str) -> int:
    """Return an entry that must be an integer >= 0."""
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadReply("record", f"'{key}' must be an integer >= 0, found {value!r:.80}")
    return value


def read_bytes(record: ConfigRecord, key: str) -> bytes:
    """Return an entry that must be bytes."""
    value = record.get(key)
    if not isinstance(value, bytes):
        raise BadReply("record", f"'{key}' must be bytes, found {type(value).__name__}")
    return value


def decompressed(
    data: bytes, key: str, compressor: GradientCompressor, shapes: Sequence[tuple[int, ...]]
) -> list[NDArray[np.float32]]:
    """Return the arrays that an entry's bytes hold; its key is the cause of a `BadReply`."""
    try:
        return compressor.decompress(data, shapes)
    except CodecError as error:
        raise BadReply(key, f"{error!s:.200}") from error


def decoded_statistics(data: bytes, expected: Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """Return the statistics of batch normalization in the entry ``buffers``.

    Parameters
    ----------
    data : bytes
        See `codec.learning.batch_norm.encode_statistics`.
    expected : Sequence[Tensor]
        Those of the server's model, for their shapes.
    """
    try:
        return decode_statistics(data, [tuple(tensor.shape) for tensor in expected])
    except CodecError as error:
        raise BadReply("buffers", f"{error!s:.200}") from error


def read_seconds(record: ConfigRecord, stage: str) -> float:
    """Telemetry: a missing or odd value is zero, it does not cost the client its reply."""
    value = record.get(f"seconds-{stage}")
    usable = isinstance(value, float) and math.isfinite(value) and value > 0
    return float(value) if usable else 0.0  # type: ignore[arg-type]  # not narrowed by `usable`


def read_memory_bytes(record: ConfigRecord) -> int:
    """Telemetry too: zero when it is missing or odd."""
    value = record.get("memory-bytes")
    return value if type(value) is int and value > 0 else 0


def client_of(message: Message) -> tuple[int, int]:
    """Return the client's own number, -1 if the reply does not say, and its node: a sort key."""
    record = message.content.get(PAYLOAD_KEY) if message.has_content() else None
    client = record.get("client") if isinstance(record, ConfigRecord) else None
    return client if isinstance(client, int) else -1, message.metadata.src_node_id
