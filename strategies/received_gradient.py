"""Reading a reply that is a compressed gradient."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray
from torch import Tensor

from codec import CodecError
from codec.gradients import COMPRESSORS, GradientCompressor, make_compressor
from codec.gradients.frame import identifier_of
from codec.gradients.joined import joined
from codec.messages import GradientReply
from strategies.received import BadReply, Received, decoded_statistics, decompressed, read_reply

Arrays = list[NDArray[np.float32]]


@dataclass(frozen=True)
class ReceivedGradient(Received):
    """A gradient that passed every check.

    Attributes
    ----------
    gradient : list of float32 arrays
        Decompressed, of the mean loss; signs for majority vote. Empty from a client without
        samples.
    buffers : list of float32 arrays, optional
        Statistics of batch normalization, if the client sent them.
    """

    gradient: Arrays
    buffers: Arrays | None

    @property
    def is_useful(self) -> bool:
        """Whether there is a gradient."""
        return bool(self.gradient)


def read_gradient(
    message: Message,
    compressor: GradientCompressor | None,
    shapes: Sequence[tuple[int, ...]],
    statistics: Sequence[Tensor],
    max_examples: int,
) -> ReceivedGradient:
    """Decompress and check a gradient.

    Parameters
    ----------
    message : Message
    compressor : GradientCompressor, optional
        The one that was asked for. None: the bytes say which it is.
    shapes : sequence of tuple of int
        Of the model's trainable parameters.
    statistics : sequence of Tensor
        The model's statistics of batch normalization.
    max_examples : int
        Most samples that the gradient may be the mean of.

    Raises
    ------
    BadReply
        If it cannot be used.
    """
    reply = read_reply(message, GradientReply)
    if not reply.num_examples and not reply.gradient:  # a client without samples
        return ReceivedGradient(message.metadata.src_node_id, reply, {}, [], None)
    if not 1 <= reply.num_examples <= max_examples:
        raise BadReply("count", f"num-examples is {reply.num_examples}, not 1 to {max_examples}")
    decoder = compressor or _compressor_of(reply.gradient)
    sections = {"gradient": len(reply.gradient)}
    gradient = decompressed(reply.gradient, "gradient", decoder, shapes)
    buffers = None
    if reply.buffers is not None:
        sections["buffers"] = len(reply.buffers)
        buffers = decoded_statistics(reply.buffers, statistics)
    return ReceivedGradient(message.metadata.src_node_id, reply, sections, gradient, buffers)


def _compressor_of(data: bytes) -> GradientCompressor:
    """Return the decoder of compressed bytes, by the identifier in them."""
    try:
        identifier = identifier_of(data)
    except CodecError as error:
        raise BadReply("gradient", f"{error!s:.200}") from error
    for name in COMPRESSORS:
        compressor = make_compressor(name)
        if compressor.identifier == identifier:
            return joined(compressor)
    raise BadReply("gradient", f"there is no compressor of identifier {identifier}")
