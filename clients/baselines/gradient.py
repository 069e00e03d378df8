"""A client that sends the compressed gradient of its minibatch, where ours sends the samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from numpy.typing import NDArray

from clients.arrays import array_record, load_model, stored_arrays
from clients.baselines.minibatches import Minibatches
from clients.handler import partition_id, reply_message, training_request
from clients.stopwatch import Stopwatch
from codec import Augmentation, Compression, Criterion, losses_gradient
from codec.messages import ARRAYS, GradientReply, GradientRequest
from codec.packages import needed_packages
from codec.random import Stream, client_generator

if TYPE_CHECKING:
    from torch import nn

Arrays = list[NDArray[np.float32]]

RESIDUAL_KEY, VELOCITY_KEY = "gradient-residual", "gradient-velocity"


@dataclass(frozen=True)
class GradientMemory:
    """What a client keeps between rounds.

    Attributes
    ----------
    residual : list of float32 arrays or None
        Memory of the compressor's error feedback.
    velocity : list of float32 arrays or None
        Momentum correction.
    """

    residual: Arrays | None = None
    velocity: Arrays | None = None

    @classmethod
    def from_state(cls, state: RecordDict) -> "GradientMemory":
        """Read what `to_state` wrote; empty at first."""
        return cls(*(stored_arrays(state.get(key)) for key in (RESIDUAL_KEY, VELOCITY_KEY)))

    def to_state(self, state: RecordDict) -> None:
        """Keep the memory in a client's state."""
        for key, arrays in ((RESIDUAL_KEY, self.residual), (VELOCITY_KEY, self.velocity)):
            if arrays is not None:
                state[key] = array_record(arrays)

    @property
    def nbytes(self) -> int:
        """Size of all its arrays in bytes."""
        return sum(
            part.nbytes for arrays in (self.residual, self.velocity) for part in arrays or ()
        )


@needed_packages()
def train_gradient(
    msg: Message,
    context: Context,
    source: Any,
    model: "Callable[[], nn.Module]",
    criterion: Criterion | None = None,
    augment: Augmentation | None = None,
    *,
    compression: Compression | str = "fp32",
) -> Message:
    """Answer one round's request with the compressed gradient of a minibatch.

    Parameters
    ----------
    msg : Message
        ``content["config"]``: a `codec.messages.GradientRequest`, or the request of a mixed
        federation. ``content["arrays"]``: the model.
    context : Context
        ``node_config["partition-id"]`` (default 0) keys the client's random numbers;
        ``state`` keeps error feedback and velocity.
    source : SampleSource or map-style data set
        The client's samples; see `clients.source.as_source`.
    model : callable
        Factory of the model whose state the server sends.
    criterion : callable, optional
        Default: cross-entropy, or mean squared error for float targets.
    augment : callable, optional
        ``(samples, torch.Generator) -> samples`` on the minibatch, as the model sees it.
    compression : Compression or str
        Compressor in a mixed federation, where each device chooses its own; else the request says.

    Returns
    -------
    Message
        ``content["payload"]``: a `codec.messages.GradientReply`, with no gradient if there are no
        samples.

    Raises
    ------
    CodecError
        On an illegal request, sample or model, or a gradient that is not finite.
    """
    chosen = Compression.coerce(compression)
    request = training_request(msg, GradientRequest, compression=chosen)
    client = partition_id(context)
    batches = Minibatches.of(request, client, source, criterion, augment)
    if not len(batches.source):
        return reply_message(msg, GradientReply(client=client, gradient=b"", num_examples=0))
    watch = Stopwatch()
    network = load_model(model, msg.content.get(ARRAYS))
    with watch.stage("gradient"):
        losses = batches.batch_losses(network, request.server_round - 1)
        parts = losses_gradient(network, losses, np.ones(len(losses), np.float32), len(losses))
        gradient = [part.float().cpu().numpy() for part in parts]
    with watch.stage("compress"):
        rng = client_generator(request.seed, request.server_round, client, Stream.COMPRESSOR)
        before = GradientMemory.from_state(context.state)
        data, memory = compress_gradient(gradient, request, before, rng)
    with watch.stage("gradient"):
        buffers = batches.buffers(network, request)
    memory.to_state(context.state)
    reply = GradientReply(
        client=client,
        gradient=data,
        num_examples=len(losses),
        buffers=buffers,
        memory_bytes=memory.nbytes,
        **watch.entries(),
    )
    return reply_message(msg, reply)


def compress_gradient(
    gradient: Sequence[NDArray[np.float32]],
    request: GradientRequest,
    memory: GradientMemory,
    rng: np.random.Generator,
) -> tuple[bytes, GradientMemory]:
    """Return a gradient as bytes, and the memory for the next one.

    With momentum correction m, the velocity ``u = m * u + gradient`` takes the gradient's place.
    For "top-k" that is deep gradient compression (Lin et al., ICLR 2018, section 3.2): the error
    feedback sums velocities, and where a coordinate was sent its velocity starts anew (momentum
    factor masking). For majority vote it is Signum (Bernstein et al., ICLR 2019, algorithm 1).

    Parameters
    ----------
    gradient : sequence of float32 arrays
    request : GradientRequest
    memory : GradientMemory
        Not modified.
    rng : numpy.random.Generator
        Randomness of the compressor.

    Raises
    ------
    CodecError
        If a value is not finite, or the memory does not fit.
    """
    update, velocity = list(gradient), None
    if request.momentum_correction:
        velocity = memory.velocity or [np.zeros_like(part) for part in gradient]
        pairs = zip(velocity, gradient, strict=True)
        update = velocity = [request.momentum_correction * v + g for v, g in pairs]
    compressor = request.compressor()
    data, residual = compressor.compress(update, memory.residual, rng)
    if velocity is not None and not request.majority_vote:
        sent = compressor.decompress(data, [part.shape for part in gradient])
        velocity = [np.where(s != 0, np.float32(0), v) for s, v in zip(sent, velocity, strict=True)]
    return data, GradientMemory(residual, velocity)
