"""Reading a reply of quantized samples: everything that may be wrong with it is found here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
from codec.messages import SampleReply
from strategies.received import BadReply, Received, decompressed, read_reply
from strategies.server_model import ServerModel


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
    def num_sent(self) -> int:
        """Number of samples in the reply."""
        return sum(payload.count for payload, _ in self.payloads)

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


class SampleReader:
    """Reads replies of samples; the first usable payload sets the spec of all.

    Parameters
    ----------
    server_model : ServerModel
        What the samples must fit.
    expected : Expectation
        What a reply must be like.
    """

    def __init__(self, server_model: ServerModel, expected: Expectation) -> None:
        self._server_model, self._expected = server_model, expected

    def read(self, message: Message) -> ReceivedSamples:
        """Decode and check a reply; `BadReply` if it cannot be used."""
        received = read_samples(message, self._expected)
        if self._expected.spec is None and received.payloads:
            spec = received.payloads[0][0].spec
            self._check_model(spec)
            self._expected = replace(self._expected, spec=spec)
        return received

    def _check_model(self, spec: SampleSpec) -> None:
        """Check the first payload's spec against the model, before it sets the standard."""
        try:
            outputs = self._server_model.probe(spec.shape)
        except Exception as error:  # a module may raise anything on a shape it was not made for
            raise BadReply("shape", f"the model takes no {spec.shape} samples: {error}") from error
        needed = spec.classes or spec.target_size
        if len(outputs) == 1 and outputs[0] < needed:
            raise BadReply("target", f"the model has {outputs[0]} outputs for {needed} targets")


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
    spec, first = payload.spec, expected.spec
    if expected.shape is not None and spec.shape != expected.shape:
        raise BadReply("shape", f"samples are {spec.shape}, expected {expected.shape}")
    if first is not None and spec.shape != first.shape:
        raise BadReply("shape", f"samples are {spec.shape}, the first reply's {first.shape}")
    if first is not None and spec.target_kind != first.target_kind:
        found = f"{spec.target_kind}, the first reply's {first.target_kind}"
        raise BadReply("target", f"targets are {found}")
    return payload


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
