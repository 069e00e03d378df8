"""Flower's side of a client: a request comes in, quantized samples go out.

The clock is read here and in the baselines' handlers only. Of Flower, `clients.replay` and
`clients.streaming` know the client's state, and what they do in a round is pure.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients.arrays import load_model
from clients.client_round import ClientRound, Contribution
from clients.dataset import IndexedDataset
from clients.replay import answer_replay
from clients.source import SampleSource, as_source
from clients.stopwatch import Stopwatch
from clients.streaming import answer_streaming
from codec import CodecError, Criterion
from codec.messages import (
    ARRAYS,
    CONFIG,
    PAYLOAD,
    REPLAY,
    STREAMING,
    ReplayRequest,
    Reply,
    Request,
    SampleReply,
    StreamingRequest,
)
from codec.options import OneOf, check, own_fields

if TYPE_CHECKING:
    from torch import nn

RequestT = TypeVar("RequestT", bound=Request)
Answer = Callable[[ClientRound[Any], RecordDict], tuple[Contribution, int]]

_ANSWERS: Mapping[str, Answer] = {STREAMING: answer_streaming, REPLAY: answer_replay}


def train(
    msg: Message,
    context: Context,
    source: SampleSource | IndexedDataset,
    model: "Callable[[], nn.Module] | None" = None,
    criterion: Criterion | None = None,
) -> Message:
    """Answer one round's request with quantized samples.

    Parameters
    ----------
    msg : Message
        ``content["config"]``: a `codec.messages.StreamingRequest` or `ReplayRequest`.
        ``content["arrays"]``: the model's state, when it is scored or refined with.
    context : Context
        ``node_config["partition-id"]`` (default 0) keys the client's random numbers;
        ``state`` remembers what was sent and the refinement's error memory.
    source : SampleSource or map-style data set
        The client's samples; see `clients.source.as_source`.
    model : callable, optional
        Factory of the model whose state the server sends. Without scores and refinement it
        is never called, and torch is not imported.
    criterion : callable, optional
        Loss for the refinement; must be the server's. Default: cross-entropy, or mean
        squared error for float targets.

    Returns
    -------
    Message
        ``content["payload"]``: a `codec.messages.SampleReply`.

    Raises
    ------
    CodecError
        On an illegal request, sample or model; names the value and what is legal.
    """
    request = read_request(msg, StreamingRequest, ReplayRequest)
    assert isinstance(request, StreamingRequest | ReplayRequest)
    number, watch = client_number(context), Stopwatch()
    work: ClientRound[Any] = ClientRound(request, number, as_source(source), stage=watch.stage)
    if request.needs_model:
        if model is None:
            raise CodecError("the request scores or refines with a model: pass model=<factory>")
        loaded = load_model(model, msg.content.get(ARRAYS))
        work = replace(work, model=loaded, criterion=criterion)
    contribution, remaining = _ANSWERS[request.mode](work, context.state)
    reply = SampleReply(
        client=work.client,
        samples=contribution.data,
        num_examples=contribution.considered,
        num_sent=len(contribution.sent),
        remaining=remaining,
        refinement=contribution.refinement,
        memory_bytes=sum(part.nbytes for part in contribution.memory or ()),
        **watch.entries(),
    )
    return reply_message(msg, reply)


def read_request(msg: Message, *kinds: type[RequestT]) -> RequestT:
    """Return the request in a message, which must be one of some kinds.

    Raises
    ------
    CodecError
        If there is none, or it is of another kind or not legal.
    """
    record = msg.content.get(CONFIG)
    if not isinstance(record, ConfigRecord):
        raise CodecError(f"content['{CONFIG}'] must be a ConfigRecord, got {type(record).__name__}")
    by_mode = {str(own_fields(kind)["mode"].default): kind for kind in kinds}
    mode = cast(Any, record.get("mode"))
    check("mode", mode, OneOf(by_mode))
    return by_mode[mode].from_entries(record)


def client_number(context: Context) -> int:
    """Return the number that keys a client's random numbers."""
    return int(context.node_config.get("partition-id", 0))


def reply_message(msg: Message, reply: Reply) -> Message:
    """Return the message that carries a reply and nothing else."""
    return Message(RecordDict({PAYLOAD: ConfigRecord(dict(reply.to_entries()))}), reply_to=msg)
