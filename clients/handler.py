"""Flower's side of a client: a request comes in, quantized samples go out.

The clock is read here and in the baselines' handlers only. Of Flower, `clients.replay` and
`clients.streaming` know the client's state, and what they do in a round is pure.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from clients.arrays import load_model
from clients.calibration import answer_calibration
from clients.client_round import ClientRound
from clients.device_file import Device
from clients.rate import rate_curve
from clients.reading import Reader
from clients.replay import answer_replay, recall
from clients.scout import receive_scout
from clients.source import as_source
from clients.stopwatch import Stopwatch
from clients.streaming import answer_streaming
from codec import CodecError, CodecOptions, Criterion
from codec.identity import tags
from codec.messages import (
    ARRAYS,
    CONFIG,
    METRICS,
    PAYLOAD,
    BankRequest,
    CalibrationRequest,
    DescribeRequest,
    Description,
    ReplayRequest,
    Reply,
    Request,
    SampleReply,
    StreamingRequest,
)
from codec.options import OneOf, Options, check, own_fields
from codec.packages import needed_packages

if TYPE_CHECKING:
    from torch import nn

RequestT = TypeVar("RequestT", bound=Request)


@needed_packages()
def train(
    msg: Message,
    context: Context,
    dataset: Any,
    model: "Callable[[], nn.Module] | None" = None,
    criterion: Criterion | None = None,
    *,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
    keys: Sequence[str] = (),
    state_dir: str | Path | None = None,
) -> Message:
    """Answer one round's request with quantized samples.

    Parameters
    ----------
    msg : Message
        ``content["config"]``: a `codec.messages.StreamingRequest`, `ReplayRequest`,
        `DescribeRequest` or `CalibrationRequest`. ``content["arrays"]``: the model's state, when
        it is scored, refined or calibrated with.
    context : Context
        Its ``node_id`` keys the client's random numbers (or ``node_config["partition-id"]``, as
        the request says); ``state`` remembers what was sent and the refinement's error memory.
    dataset : SampleSource, or a map-style data set
        The client's samples: a torch ``Dataset`` or ``DataLoader``, a Hugging Face ``Dataset``, a
        list of pairs, two arrays; see `clients.as_source`.
    model : callable, optional
        Factory of the model whose state the server sends. Without scores, refinement and
        calibration it is never called, and torch is not imported.
    criterion : callable, optional
        Loss for scores and refinement; must be the server's. Default: cross-entropy, or mean
        squared error for float targets.
    classes : int, optional
        Number of classes, 0 for float targets; by default what the data set says, or the number
        of the server's outputs.
    class_names : sequence of str, optional
        Names of the classes, by default those of the data set.
    value_range : (float, float), optional
        Lowest and highest value of a sample; what lies beyond is clipped, and counted. Default:
        0 to 255 for 8-bit images, measured for others.
    keys : (str, str), optional
        Of sample and target, where the items are mappings.
    state_dir : str or Path, optional
        Folder in which the device remembers what it has sent to banks that outlive a run.
        Default: ``$XDG_STATE_HOME/flwr-quantized-data`` (``~/.local/state``).

    Returns
    -------
    Message
        ``content["payload"]`` and ``content["metrics"]``: a `codec.messages.SampleReply`.

    Raises
    ------
    CodecError
        On an illegal request, data set or model; names the value, what is legal and what to do.
    """
    request = read_request(
        msg, StreamingRequest, ReplayRequest, DescribeRequest, CalibrationRequest
    )
    source = as_source(
        dataset, classes=classes, class_names=class_names, value_range=value_range, keys=keys
    )
    bank = request.bank if isinstance(request, BankRequest) else b""
    device = Device.of(context.node_id, context.node_config, state_dir) if bank else None
    if isinstance(request, DescribeRequest):
        memory, _ = recall(context.state, bank, device)
        if len(source) or not memory.unsettled:
            description = Reader(source).describe(partition_id(context))
            if request.curve_of:
                codec = CodecOptions.from_bytes(request.curve_of)
                curve = rate_curve(Reader(source, request.terms), codec)
                description = replace(description, curve=curve.to_bytes() if curve else b"")
        else:  # everything was taken away since
            description = Description(client=partition_id(context), num_examples=0)
        return reply_message(msg, replace(description, pending=memory.unsettled))
    key = client_key(context, request)
    if isinstance(request, CalibrationRequest):
        network = _model_of(model, msg)
        reader = Reader(source, request.terms)
        client = partition_id(context)
        told = answer_calibration(request, network, reader, key=key, client=client)
        return reply_message(msg, told)
    assert isinstance(request, StreamingRequest | ReplayRequest)
    watch = Stopwatch()
    work: ClientRound[Any] = ClientRound(
        request, key, source, criterion=criterion, stage=watch.stage
    )
    if request.needs_model:
        work = replace(work, model=_model_of(model, msg))
    lacks_scout = False
    if isinstance(request, ReplayRequest):
        scout, lacks_scout = receive_scout(request.scout, context.state)
        contribution = answer_replay(replace(work, scout=scout), context.state, device)
    else:
        contribution = answer_streaming(work, context.state)
    first, *more = contribution.payloads or (b"",)
    choice = contribution.choice if contribution.tells_choice else None
    reply = SampleReply(
        client=partition_id(context),
        samples=first,
        more=tuple(more),
        num_examples=contribution.considered,
        num_sent=len(contribution.sent),
        remaining=contribution.remaining,
        fingerprints=tags(contribution.fingerprints, getattr(request, "identity_bytes", 0)),
        growing=contribution.growing,
        lacks_scout=lacks_scout,
        refinement=contribution.refinement,
        memory_bytes=sum(part.nbytes for part in contribution.memory or ()),
        variance_kept=contribution.variance_kept,
        clipped=contribution.clipped,
        skipped=json.dumps(contribution.skipped) if contribution.skipped else "",
        notes=contribution.notes,
        class_digest=work.reader.class_digest if len(source) else "",
        codec_choice=choice.to_bytes() if choice else b"",
        **watch.entries(),
    )
    return reply_message(msg, reply)


def _model_of(factory: "Callable[[], nn.Module] | None", msg: Message) -> "nn.Module":
    if factory is None:
        raise CodecError(
            "the request scores, refines or calibrates with a model: pass model=<factory>"
        )
    return load_model(factory, msg.content.get(ARRAYS))


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


def training_request(msg: Message, kind: type[RequestT], **own: Options) -> RequestT:
    """Return a request to train, also where the server asked for samples in a mixed federation.

    Parameters
    ----------
    msg : Message
    kind : type
        Class of the request.
    **own
        Options that are the client's choice in a mixed federation.

    Raises
    ------
    CodecError
        See `read_request`.
    """
    record = msg.content.get(CONFIG)
    if not isinstance(record, ConfigRecord) or record.get("mixed") is not True:
        return read_request(msg, kind)
    entries = {k: v for option in own.values() for k, v in option.to_entries().items()}
    return kind.from_entries({**record, **entries, "mode": own_fields(kind)["mode"].default})


def partition_id(context: Context) -> int:
    """Return the number of a client's partition, 0 if it has none."""
    return int(context.node_config.get("partition-id", 0))


def client_key(context: Context, request: Request) -> int:
    """Return what keys a client's random numbers, see `codec.messages.ClientOptions`."""
    return context.node_id if request.client_key == "node" else partition_id(context)


def reply_message(msg: Message, reply: Reply) -> Message:
    """Return the message that carries a reply: numbers that Flower may aggregate as metrics."""
    entries: dict[str, Any] = dict(reply.to_entries())
    numbers = {key: entries.pop(key) for key in reply.metric_keys() & entries.keys()}
    content = RecordDict({PAYLOAD: ConfigRecord(entries)})
    if numbers:  # a record more takes 190 bytes
        content[METRICS] = MetricRecord(numbers)
    return Message(content, reply_to=msg)
