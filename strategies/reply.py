"""Reading a reply of quantized samples: everything that may be wrong with it is found here."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from codec import (
    CodecError,
    DecodedSamples,
    DecodeLimits,
    SamplePayload,
    SampleSpec,
    decode_samples,
)
from codec.gradients import GradientCompressor
from strategies.client_reply import (
    BadReply,
    ClientReply,
    decompressed,
    payload_record,
    read_bytes,
    read_integer,
    read_memory_bytes,
    read_seconds,
)

_STAGES = ("importance", "encode", "refinement")


@dataclass(frozen=True)
class Expectation:
    """What the server can use.

    Attributes
    ----------
    shape : tuple[int, ...], optional
        Shape of one sample; ``None`` accepts any.
    spec : SampleSpec, optional
        Spec of the first accepted payload. Later ones must have its shape, value range and
        targets; their codecs may differ.
    max_examples : int
        Most that a client may claim as ``num-examples``; 0: unlimited.
    compressor : GradientCompressor, optional
        Decoder of the refinement; ``None``: none was asked for and none is read.
    gradient_shapes : Sequence[tuple[int, ...]]
        Shapes of the refinement's arrays.
    limits : DecodeLimits
        What a payload may make the server allocate.
    """

    shape: tuple[int, ...] | None = None
    spec: SampleSpec | None = None
    max_examples: int = 0
    compressor: GradientCompressor | None = None
    gradient_shapes: Sequence[tuple[int, ...]] = ()
    limits: DecodeLimits = field(default_factory=DecodeLimits)


@dataclass(frozen=True)
class Reply(ClientReply):
    """A reply of quantized samples that passed every check.

    Attributes
    ----------
    num_examples : int
        Size of the minibatch or pool that the client considered.
    remaining : int
        Samples that the client has not sent yet (replay).
    payload, decoded : SamplePayload and DecodedSamples, optional
        The samples; ``None`` when the client sent none.
    refinement : list of float32 arrays, optional
        Decompressed residual of the gradient, scaled by ``1 / num_examples``.
    """

    remaining: int
    payload: SamplePayload | None
    decoded: DecodedSamples | None
    refinement: list[NDArray[np.float32]] | None

    @property
    def num_sent(self) -> int:
        """Number of samples in the reply."""
        return 0 if self.payload is None else self.payload.count

    @property
    def entropy_bits(self) -> dict[str, float]:
        """Empirical entropy by section, see `codec.DecodedSamples`."""
        return {} if self.decoded is None else dict(self.decoded.entropy_bits)


def parse_reply(message: Message, expected: Expectation) -> Reply:
    """Decode and check a reply.

    Parameters
    ----------
    message : Message
        As it came from the grid; an ``Error`` reply is legal input.
    expected : Expectation
        What the server can use.

    Returns
    -------
    Reply
        Decoded content.

    Raises
    ------
    BadReply
        On anything that the server cannot use, with its cause.
    """
    record = payload_record(message)
    num_examples = read_integer(record, "num-examples")
    data = read_bytes(record, "samples")
    payload = _read_payload(data, expected) if data else None
    sections = {} if payload is None else payload.section_bytes()
    if payload is not None and payload.count == 0:
        payload = None
    decoded = None if payload is None else _decode(payload)
    count = 0 if payload is None else payload.count
    _check_counts(num_examples, read_integer(record, "num-sent"), count, expected.max_examples)
    refinement = None
    if expected.compressor is not None and "refinement" in record:
        packed = read_bytes(record, "refinement")
        refinement = decompressed(
            packed, "refinement", expected.compressor, expected.gradient_shapes
        )
        sections = {**sections, "refinement": len(packed)}
    return Reply(
        node_id=message.metadata.src_node_id,
        client=read_integer(record, "client"),
        num_examples=num_examples,
        remaining=read_integer(record, "remaining"),
        payload=payload,
        decoded=decoded,
        refinement=refinement,
        sections=sections,
        seconds={stage: read_seconds(record, stage) for stage in _STAGES},
        memory_bytes=read_memory_bytes(record),
    )


def _read_payload(data: bytes, expected: Expectation) -> SamplePayload:
    try:
        payload = SamplePayload.from_bytes(data, expected.limits)
    except CodecError as error:
        raise BadReply("payload", str(error)) from error
    spec, first = payload.spec, expected.spec
    if expected.shape is not None and spec.shape != expected.shape:
        raise BadReply("shape", f"samples are {spec.shape}, expected {expected.shape}")
    if first is not None and spec.shape != first.shape:
        raise BadReply("shape", f"samples are {spec.shape}, the first reply's {first.shape}")
    if first is not None and (spec.low, spec.high) != (first.low, first.high):
        found = f"[{spec.low}, {spec.high}], the first reply's [{first.low}, {first.high}]"
        raise BadReply("shape", f"value range is {found}")
    if first is not None and _target_kind(spec) != _target_kind(first):
        found = f"{_target_kind(spec)}, the first reply's {_target_kind(first)}"
        raise BadReply("target", f"targets are {found}")
    return payload


def _target_kind(spec: SampleSpec) -> str:
    return f"{spec.classes} classes" if spec.classes else f"vectors of {spec.target_size}"


def _decode(payload: SamplePayload) -> DecodedSamples:
    """Decode; the codec refuses numbers that are not finite, and labels out of range."""
    try:
        return decode_samples(payload)
    except CodecError as error:
        raise BadReply("payload", str(error)) from error


def _check_counts(num_examples: int, num_sent: int, count: int, max_examples: int) -> None:
    if num_sent != count:
        raise BadReply("count", f"num-sent is {num_sent}, the reply holds {count}")
    if num_examples < count:
        raise BadReply("count", f"num-examples is {num_examples}, less than the {count} sent")
    if max_examples and num_examples > max_examples:
        raise BadReply("count", f"num-examples is {num_examples}, more than {max_examples}")
