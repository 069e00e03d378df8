"""Reading a reply of quantized samples: everything that may be wrong with it is found here."""

from collections import Counter
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
from codec.identity import read_tags, receipt
from codec.learning.inputs import sees_floats
from codec.messages import SampleReply
from strategies.received import BadReply, Received, decompressed, read_reply


@dataclass(frozen=True)
class Expectation:
    """What the server can use.

    Attributes
    ----------
    shape : tuple[int, ...], optional
        Shape of one sample; ``None`` accepts any.
    like : SampleSpec, optional
        What was agreed on: kind of values and of targets must be the same.
    outputs : int
        Outputs of the model: classes or floats of a target beyond it are refused; 0: unknown.
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
    like: SampleSpec | None = None
    outputs: int = 0
    max_examples: int = 0
    compressor: GradientCompressor | None = None
    gradient_shapes: Sequence[tuple[int, ...]] = ()
    limits: DecodeLimits = field(default_factory=DecodeLimits)


@dataclass(frozen=True)
class ReceivedSamples(Received):
    """A reply of quantized samples that passed every check.

    Attributes
    ----------
    payloads : list of (SamplePayload, DecodedSamples)
        The samples, payload by payload; none when the client sent none.
    refinement : list of float32 arrays, optional
        Decompressed residual of the gradient, scaled by ``1 / num_examples``.
    """

    reply: SampleReply
    payloads: list[tuple[SamplePayload, DecodedSamples]]
    refinement: list[NDArray[np.float32]] | None

    @property
    def remaining(self) -> int:
        """Samples that the client has not sent yet (replay)."""
        return self.reply.remaining

    @property
    def growing(self) -> bool:
        """Whether the client's data may grow."""
        return self.reply.growing

    @property
    def receipt(self) -> bytes:
        """What the client knows this reply by, see `codec.identity`."""
        return receipt((self.reply.samples, *self.reply.more))

    @property
    def num_sent(self) -> int:
        """Number of samples in the reply."""
        return sum(payload.count for payload, _ in self.payloads)

    @property
    def is_useful(self) -> bool:
        """Whether samples, or what they miss of a gradient, came at all."""
        return bool(self.payloads) or self.refinement is not None

    @property
    def entropy_bits(self) -> dict[str, float]:
        """Empirical entropy by section, see `codec.DecodedSamples`."""
        bits: Counter[str] = Counter()
        for _, decoded in self.payloads:
            bits.update(decoded.entropy_bits)
        return dict(bits)

    @property
    def decoded(self) -> DecodedSamples | None:
        """All samples together, as a minibatch; None if there are none."""
        if not self.payloads:
            return None
        parts = [decoded for _, decoded in self.payloads]
        return DecodedSamples(
            np.concatenate([part.samples for part in parts]),
            np.concatenate([part.targets for part in parts]),
            np.concatenate([part.weights for part in parts]),
            self.entropy_bits,
        )


def read_samples(message: Message, expected: Expectation) -> ReceivedSamples:
    """Decode and check a reply.

    Parameters
    ----------
    message : Message
        As it came from the grid; an ``Error`` reply is legal input.
    expected : Expectation
        What the server can use.

    Raises
    ------
    BadReply
        On anything that the server cannot use, with its cause.
    """
    reply = read_reply(message, SampleReply)
    read = [_read_payload(data, expected) for data in (reply.samples, *reply.more) if data]
    sections: Counter[str] = Counter()
    for payload in read:
        sections.update(payload.section_bytes())
    payloads = [(payload, _decode(payload)) for payload in read if payload.count]
    count = sum(payload.count for payload, _ in payloads)
    _check_counts(reply.num_examples, reply.num_sent, count, expected.max_examples)
    if reply.fingerprints:
        _check_fingerprints(reply.fingerprints, count)
        sections["fingerprints"] = len(reply.fingerprints)
    refinement = None
    if expected.compressor is not None and reply.refinement is not None:
        refinement = decompressed(
            reply.refinement, "refinement", expected.compressor, expected.gradient_shapes
        )
        sections["refinement"] = len(reply.refinement)
    return ReceivedSamples(
        message.metadata.src_node_id, reply, dict(sections), payloads, refinement
    )


def _read_payload(data: bytes, expected: Expectation) -> SamplePayload:
    try:
        payload = SamplePayload.from_bytes(data, expected.limits)
    except CodecError as error:
        raise BadReply("payload", str(error)) from error
    spec = payload.spec
    if expected.shape is not None and spec.shape != expected.shape:
        raise BadReply("shape", f"samples are {spec.shape}, expected {expected.shape}")
    if expected.like is not None:
        _check_kind(spec, expected.like)
    if expected.outputs and max(spec.classes, spec.target_size) > expected.outputs:
        found = f"{spec.target_kind}, the model has {expected.outputs} outputs"
        raise BadReply("target", f"targets are {found}")
    return payload


def _check_kind(spec: SampleSpec, like: SampleSpec) -> None:
    """Refuse what the model takes for something else than what was agreed on."""
    if sees_floats(spec) != sees_floats(like):
        raise BadReply("shape", f"samples are {spec.dtype}, those agreed on {like.dtype}")
    sizes = [0 if one.target_size == 1 else one.target_size for one in (spec, like)]
    if bool(spec.classes) != bool(like.classes) or sizes[0] != sizes[1]:
        raise BadReply("target", f"targets are {spec.target_kind}, not {like.target_kind}")


def _decode(payload: SamplePayload) -> DecodedSamples:
    """Decode; the codec refuses numbers that are not finite, and labels out of range."""
    try:
        return decode_samples(payload)
    except CodecError as error:
        raise BadReply("payload", str(error)) from error


def _check_fingerprints(data: bytes, count: int) -> None:
    try:
        read_tags(data, count)
    except CodecError as error:
        raise BadReply("record", str(error)) from error


def _check_counts(num_examples: int, num_sent: int, count: int, max_examples: int) -> None:
    if num_sent != count:
        raise BadReply("count", f"num-sent is {num_sent}, the reply holds {count}")
    if num_examples < count:
        raise BadReply("count", f"num-examples is {num_examples}, less than the {count} sent")
    if max_examples and num_examples > max_examples:
        raise BadReply("count", f"num-examples is {num_examples}, more than {max_examples}")
