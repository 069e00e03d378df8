"""Reading a reply of quantized samples: everything that may be wrong with it is found here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from codec.identity import receipt
from codec.learning.inputs import seen_range, sees_floats
from codec.messages import SampleReply
from strategies.expectation import Expectation
from strategies.received import BadReply, Received, decompressed, read_reply

# Ranges of measured floats may differ so much, in widths of the one agreed on, since a few samples
# are looked at to describe all. What is of another type must look alike to the model.
_WIDTHS, _WIDTHS_OF_OTHER_TYPE = 1 << 20, 4
_LARGEST_BYTE = 255
_MOST_VALUES = 1 << 20  # of a payload that an encoder would not cut in two
_ROUNDED = 1 + 1e-6  # weights are float32
_PAYLOADS_WORTH = 4  # numbers in a reply, in multiples of the most in a payload
_NOTES, _NOTE = 8, 300  # most notes that are listened to, and characters of each


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
    reply = _quiet(read_reply(message, SampleReply))
    data = [part for part in (reply.samples, *reply.more) if part]
    _check_bytes(data, expected)
    read = [_read_payload(part, expected) for part in data]
    # Before anything is decoded.
    _check_counts(reply, read, expected)
    _check_repeated(data, read, expected.limits)
    sections: Counter[str] = Counter()
    for payload in read:
        sections.update(payload.section_bytes())
    if reply.fingerprints:
        sections["fingerprints"] = len(reply.fingerprints)
    if reply.codec_choice:
        sections["codec choice"] = len(reply.codec_choice)
    payloads = [(payload, _decode(payload, expected)) for payload in read if payload.count]
    refinement = None
    if expected.compressor is not None and reply.refinement is not None:
        refinement = decompressed(
            reply.refinement, "refinement", expected.compressor, expected.gradient_shapes
        )
        sections["refinement"] = len(reply.refinement)
    return ReceivedSamples(
        message.metadata.src_node_id, reply, dict(sections), payloads, refinement
    )


def _quiet(reply: SampleReply) -> SampleReply:
    """Return a reply without what would only fill the log."""
    return replace(reply, notes=tuple(note[:_NOTE] for note in reply.notes[:_NOTES]))


def _check_bytes(data: Sequence[bytes], expected: Expectation) -> None:
    size = sum(map(len, data))
    if expected.max_bytes and size > expected.max_bytes:
        raise BadReply("budget", f"{size} bytes of samples, asked for up to {expected.max_bytes}")


def _read_payload(data: bytes, expected: Expectation) -> SamplePayload:
    try:
        payload = SamplePayload.from_bytes(data, expected.limits)
    except CodecError as error:
        raise BadReply("payload", str(error)) from error
    spec = payload.spec
    if expected.shape is not None and spec.shape != expected.shape:
        raise BadReply("shape", f"samples are {spec.shape}, expected {expected.shape}")
    legal = expected.legal_codecs(spec)
    if spec.codec.to_bytes() not in [codec.to_bytes() for codec in legal]:
        raise BadReply("codec", f"samples are coded by {spec.codec}, not {legal[0]}")
    if expected.like is not None:
        _check_kind(spec, expected.like)
        check_range(spec, expected.like, expected.scale)
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


def check_range(spec: SampleSpec, like: SampleSpec, scale: str) -> None:
    """Refuse values of quite another size than those agreed on, as the model sees them.

    A range that is measured is each payload's own, so that those of floats need not be the same.
    """
    if not sees_floats(spec):
        return
    low, high = seen_range(spec, scale)
    if spec.dtype == "uint8" and not (spec.low >= 0 and spec.high <= _LARGEST_BYTE):
        raise BadReply("range", f"8-bit values in [{spec.low:g}, {spec.high:g}]")
    lowest, highest = seen_range(like, scale)
    reach = (_WIDTHS if spec.dtype == like.dtype else _WIDTHS_OF_OTHER_TYPE) * (highest - lowest)
    if low < lowest - reach or high > highest + reach:
        raise BadReply(
            "range",
            f"samples are {spec.dtype} that the model sees in [{low:g}, {high:g}]; those agreed "
            f"on are {like.dtype} in [{lowest:g}, {highest:g}]. Give the clients' data sets one "
            "type and scale",
        )


def _decode(payload: SamplePayload, expected: Expectation) -> DecodedSamples:
    """Decode; the codec refuses numbers that are not finite, and labels out of range."""
    try:
        decoded = decode_samples(payload)
    except CodecError as error:
        raise BadReply("payload", str(error)) from error
    heaviest = float(decoded.weights.max())
    if heaviest > expected.max_weight * _ROUNDED:
        raise BadReply("weights", f"a weight is {heaviest:g}, at most {expected.max_weight:g}")
    return decoded


def _check_counts(reply: SampleReply, read: Sequence[SamplePayload], expected: Expectation) -> None:
    count, most = sum(payload.count for payload in read), expected.max_samples
    if reply.num_sent != count:
        raise BadReply("count", f"num-sent is {reply.num_sent}, the reply holds {count}")
    if most and count > most:
        raise BadReply("count", f"the reply holds {count} samples, asked for up to {most}")
    if reply.num_examples < count:
        raise BadReply("count", f"num-examples is {reply.num_examples}, less than the {count} sent")
    if expected.max_examples and reply.num_examples > expected.max_examples:
        raise BadReply(
            "count", f"num-examples is {reply.num_examples}, more than {expected.max_examples}"
        )
    numbers, worth = sum(map(_values, read)), _PAYLOADS_WORTH * expected.limits.values
    if numbers > worth:
        raise BadReply("count", f"the reply holds {numbers} values, the limit is {worth}")
    size = len(reply.fingerprints)
    if size and size != count * expected.identity_bytes:
        told = f"{size} bytes of fingerprints of {count} samples"
        raise BadReply("count", f"{told}, each of {expected.identity_bytes}")


def _values(payload: SamplePayload) -> int:
    return payload.count * payload.spec.sample_codec.decoded_values(payload.spec)


def _check_repeated(
    data: Sequence[bytes], read: Sequence[SamplePayload], limits: DecodeLimits
) -> None:
    """Refuse a payload that comes twice.

    Encoders make such of samples that are all equal, such as black images, but only where one
    payload of both is beyond the limits.
    """
    seen: set[bytes] = set()
    for part, payload in zip(data, read, strict=True):
        twice = 2 * payload.count
        fits = twice <= limits.samples and 2 * _values(payload) <= _MOST_VALUES
        if part in seen and fits and not limits.too_dense(payload.spec, twice, len(part)):
            raise BadReply("duplicate", f"a payload of {payload.count} samples comes twice")
        seen.add(part)
