"""Batch normalization calibrated with what some nodes see of their original samples.

What the server trains on is coarse: its statistics are those of smoother images than the ones that
the model will meet. Some nodes run the trained model over original samples instead and send the
statistics, 4 bytes a channel. ResNet-9 on 5,600 images of CIFAR-10 at 50 bytes gains 0.7 to 1.2
points over averaged statistics, 0.5 to 0.7 over those of the samples in the bank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray
from torch import Tensor

from codec.learning.batch_norm import pooled_statistics
from codec.messages import Calibration
from strategies.received import BadReply, decoded_statistics, read_reply

_MESSAGE_BYTES = 500  # of a reply beside the statistics, about


@dataclass(frozen=True)
class ReceivedCalibration:
    """Statistics of a node.

    Attributes
    ----------
    num_examples : int
        Samples that they are of.
    buffers : list of float32 arrays
        See `codec.learning.batch_norm.statistics`.
    """

    num_examples: int
    buffers: list[NDArray[np.float32]]


def read_calibration(message: Message, expected: Sequence[Tensor]) -> ReceivedCalibration:
    """Read a reply.

    Parameters
    ----------
    message : Message
    expected : sequence of Tensor
        The model's own statistics.

    Raises
    ------
    BadReply
        If it cannot be used.
    """
    reply = read_reply(message, Calibration)
    if reply.num_examples < 2:
        raise BadReply("buffers", f"statistics of {reply.num_examples} samples; legal: 2 or more")
    return ReceivedCalibration(reply.num_examples, decoded_statistics(reply.buffers, expected))


def pooled(received: Sequence[ReceivedCalibration]) -> list[NDArray[np.float32]]:
    """Return the statistics of all nodes' samples together."""
    return pooled_statistics([r.buffers for r in received], [r.num_examples for r in received])


def calibration_bytes(expected: Sequence[Tensor]) -> int:
    """Return the bytes of a reply, about."""
    return 2 * sum(tensor.numel() for tensor in expected) + _MESSAGE_BYTES
