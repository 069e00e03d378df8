"""A client that trains a model on its own samples: federated averaging."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from numpy.typing import NDArray

from clients.arrays import array_record, stored_arrays
from clients.baselines.kept_model import receive_model
from clients.baselines.minibatches import Minibatches
from clients.handler import partition_id, reply_message, training_request
from clients.stopwatch import Stopwatch
from codec import Augmentation, Criterion
from codec.learning.state import model_state
from codec.messages import ADAMW, ARRAYS, LocalReply, LocalRequest
from codec.packages import needed_packages
from codec.random import Stream, client_generator

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

RESIDUAL_KEY = "delta-residual"


@needed_packages()
def train_local(
    msg: Message,
    context: Context,
    source: Any,
    model: "Callable[[], nn.Module]",
    criterion: Criterion | None = None,
    augment: Augmentation | None = None,
) -> Message:
    """Answer one round's request with a locally trained model, or its compressed change.

    Parameters
    ----------
    msg : Message
        ``content["config"]``: a `codec.messages.LocalRequest`, or the request of a mixed
        federation. ``content["arrays"]``: the model, unless the request brings its changes.
    context : Context
        ``node_config["partition-id"]`` (default 0) keys the client's random numbers;
        ``state`` keeps the compressor's error feedback, and the model where changes travel.
    source, model, criterion, augment
        See `clients.baselines.train_gradient`.

    Returns
    -------
    Message
        ``content["payload"]``: a `codec.messages.LocalReply`; uncompressed, ``content["arrays"]``
        is the model's state. Neither model nor change if there are no samples, or if the client
        lacks the model that the request changes.

    Raises
    ------
    CodecError
        On an illegal request, sample or model, or a change that is not finite.
    """
    request, client = training_request(msg, LocalRequest), partition_id(context)
    batches = Minibatches.of(request, client, source, criterion, augment)
    if not len(batches.source):
        return reply_message(msg, LocalReply(client=client, num_examples=0))
    watch = Stopwatch()
    network = receive_model(model, msg.content.get(ARRAYS), request, context.state)
    if network is None:
        return reply_message(msg, LocalReply(client=client, num_examples=0, lacks_model=True))
    before = [parameter.clone() for parameter in _trained(network)]
    with watch.stage("train"):
        local_steps(network, batches, request)
    reply = LocalReply(client=client, num_examples=len(batches.source))
    if not request.compression:
        reply = replace(reply, **watch.entries())
        message = reply_message(msg, reply)
        message.content[ARRAYS] = ArrayRecord(model_state(network))
        return message
    with watch.stage("compress"):
        pairs = zip(_trained(network), before, strict=True)
        delta = [(after - old).float().cpu().numpy() for after, old in pairs]
        data, memory_bytes = _compressed(delta, request, client, context.state)
    with watch.stage("train"):
        buffers = batches.buffers(network, request)
    reply = replace(
        reply, delta=data, buffers=buffers, memory_bytes=memory_bytes, **watch.entries()
    )
    return reply_message(msg, reply)


def local_steps(model: "nn.Module", batches: Minibatches, request: LocalRequest) -> None:
    """Take a round's steps on a model, in place; momentum starts anew."""
    optimizer = _optimizer([p for p in model.parameters() if p.requires_grad], request)
    first = (request.server_round - 1) * request.local_steps
    for step in range(first, first + request.local_steps):
        loss = batches.batch_losses(model, step).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
        optimizer.step()


def _optimizer(parameters: "list[nn.Parameter]", request: LocalRequest) -> "Optimizer":
    from torch.optim import SGD, AdamW

    rate, momentum, decay = request.learning_rate, request.momentum, request.weight_decay
    if request.local_optimizer == ADAMW:
        return AdamW(parameters, rate, betas=(momentum, 0.999), weight_decay=decay)
    return SGD(parameters, rate, momentum, weight_decay=decay, nesterov=momentum > 0)


def _trained(model: "nn.Module") -> "list[Tensor]":
    return [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]


def _compressed(
    delta: list[NDArray[np.float32]], request: LocalRequest, client: int, state: RecordDict
) -> tuple[bytes, int]:
    """Return the model's change as bytes, and how many bytes the client keeps of the rest."""
    compressor = request.compressor()
    assert compressor is not None
    before = stored_arrays(state.get(RESIDUAL_KEY))
    if before is not None and request.feedback < 1:
        before = [part * np.float32(request.feedback) for part in before]
    rng = client_generator(request.seed, request.server_round, client, Stream.COMPRESSOR)
    data, residual = compressor.compress(delta, before, rng)
    if residual is not None:
        state[RESIDUAL_KEY] = array_record(residual)
    return data, sum(part.nbytes for part in residual or ())
