"""Whatever arrives, a reply is either usable as it stands or refused with its cause."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from codec import CodecOptions, DecodeLimits, SamplePayload, SampleSpec, encode_samples
from codec.coding.columns import code_columns
from codec.coding.floats import encode_words
from codec.coding.range_coder import BitEncoder
from codec.gradients import Float32, make_compressor
from codec.gradients.frame import Frame
from strategies.expectation import Expectation
from strategies.received import BadReply
from strategies.received_samples import ReceivedSamples, read_samples

SPEC = SampleSpec((1, 4, 4), "uint8", 0, 255, classes=10)
GRADIENT = [np.ones((3, 2), np.float32), np.zeros(3, np.float32)]
FP32 = make_compressor("fp32")


def _payload(spec: SampleSpec = SPEC, count: int = 5) -> SamplePayload:
    rng = np.random.default_rng(0)
    targets: Any = rng.integers(0, max(spec.classes, 1), count)
    if not spec.classes:
        targets = rng.random((count, spec.target_size)).astype(np.float32)
    samples = rng.integers(0, 2, (count, *spec.shape)).astype(spec.dtype)
    return encode_samples(samples, targets, spec)


def _refinement(gradient: list[Any] = GRADIENT) -> bytes:
    return FP32.compress(gradient, None, np.random.default_rng(0))[0]


def _record(**changes: Any) -> ConfigRecord:
    """Record of a good reply; ``None`` removes a key, underscores stand for hyphens."""
    values: dict[str, Any] = {
        "samples": _payload().to_bytes(),
        "num-examples": 8,
        "num-sent": 5,
        "remaining": 12,
        "client": 3,
        "seconds-importance": 0.5,
        "seconds-encode": 0.25,
        "seconds-refinement": 0.0,
    }
    values |= {key.replace("_", "-"): value for key, value in changes.items()}
    return ConfigRecord({key: value for key, value in values.items() if value is not None})


def _message(content: RecordDict | Error) -> Message:
    request = Message(RecordDict(), 42, "train")
    if isinstance(content, Error):
        return Message(content, reply_to=request)
    return Message(content, reply_to=request)


def _read(expected: Expectation | None = None, **changes: Any) -> ReceivedSamples:
    message = _message(RecordDict({"payload": _record(**changes)}))
    return read_samples(message, expected or Expectation())


def test_a_good_reply_is_read() -> None:
    reply = _read()
    assert (reply.node_id, reply.client, reply.num_examples, reply.remaining) == (42, 3, 8, 12)
    ((payload, _),) = reply.payloads
    assert payload.spec == SPEC
    assert reply.decoded is not None and reply.decoded.samples.shape == (5, 1, 4, 4)
    assert reply.num_sent == 5
    assert sum(reply.sections.values()) == len(_payload().to_bytes())
    assert reply.reply.seconds == {"importance": 0.5, "encode": 0.25, "refinement": 0.0}
    assert reply.refinement is None


def test_fingerprints_are_counted_as_a_section_of_their_own() -> None:
    reply = _read(Expectation(identity_bytes=2), fingerprints=bytes(10))
    assert reply.sections["fingerprints"] == 10
    assert sum(reply.sections.values()) == len(_payload().to_bytes()) + 10


@pytest.mark.parametrize("size", [1, 5, 9, 11, 45])
def test_fingerprints_of_other_sizes_than_was_asked_are_refused(size: int) -> None:
    with pytest.raises(BadReply, match=f"{size} bytes of fingerprints of 5") as caught:
        _read(Expectation(identity_bytes=2), fingerprints=bytes(size))
    assert caught.value.cause == "count"


def test_a_refinement_without_samples_is_legal() -> None:
    expected = Expectation(compressor=FP32, gradient_shapes=[g.shape for g in GRADIENT])
    reply = _read(expected, samples=b"", num_sent=0, refinement=_refinement())
    assert not reply.payloads and reply.decoded is None and reply.num_sent == 0
    assert reply.is_useful
    assert reply.refinement is not None
    for found, original in zip(reply.refinement, GRADIENT, strict=True):
        assert np.array_equal(found, original)
    assert reply.sections == {"refinement": len(_refinement())}


def test_nothing_at_all_is_legal() -> None:
    reply = _read(samples=b"", num_sent=0, num_examples=0, remaining=0)
    assert reply.num_sent == 0 and reply.sections == {}
    assert not reply.is_useful


def test_a_payload_of_no_samples_is_no_payload() -> None:
    reply = _read(samples=_payload(count=0).to_bytes(), num_sent=0)
    assert not reply.payloads
    assert sum(reply.sections.values()) == len(_payload(count=0).to_bytes())


def test_telemetry_is_forgiven() -> None:
    reply = _read(seconds_encode=None, seconds_importance=float("nan"), seconds_refinement="x")
    assert reply.reply.seconds == {"importance": 0.0, "encode": 0.0, "refinement": 0.0}


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"payload": MetricRecord({"num-examples": 3})}),
        RecordDict({"payload": ArrayRecord([np.zeros(3)])}),
        RecordDict({"samples": _record()}),
        RecordDict({"payload": ConfigRecord()}),
    ],
    ids=["nothing", "metrics", "arrays", "other key", "empty record"],
)
def test_missing_or_mistyped_records(content: RecordDict) -> None:
    with pytest.raises(BadReply) as bad:
        read_samples(_message(content), Expectation())
    assert bad.value.cause == "record"


def test_error_replies() -> None:
    with pytest.raises(BadReply, match="code 2, out of memory") as bad:
        read_samples(_message(Error(2, "out of memory")), Expectation())
    assert bad.value.cause == "error"


@pytest.mark.parametrize("key", ["samples", "num_examples", "num_sent", "remaining", "client"])
@pytest.mark.parametrize("value", [None, "text", -1, True, 1.5, [1, 2]])
def test_missing_or_mistyped_keys(key: str, value: Any) -> None:
    with pytest.raises(BadReply, match=key.replace("_", "-")) as bad:
        _read(**{key: value})
    assert bad.value.cause == "record"


def _other_version(data: bytes) -> bytes:
    body = data[:2] + bytes([data[2] + 1]) + data[3:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"\0",
        lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
        lambda data: b"\0",
        _other_version,
    ],
    ids=["one byte short", "half", "one byte long", "flipped bit", "one byte", "other version"],
)
def test_spoiled_payloads(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BadReply) as bad:
        _read(samples=spoil(_payload().to_bytes()))
    assert bad.value.cause == "payload"


def test_payload_beyond_the_limits() -> None:
    with pytest.raises(BadReply) as bad:
        _read(Expectation(limits=DecodeLimits(samples=4)))
    assert bad.value.cause == "payload"


@pytest.mark.parametrize(
    ("expected", "cause", "found"),
    [
        (Expectation(shape=(1, 4, 5)), "shape", r"\(1, 4, 4\), expected \(1, 4, 5\)"),
        (Expectation(outputs=9), "target", "10 classes, the model has 9 outputs"),
        (Expectation(like=replace(SPEC, dtype="int32")), "shape", "uint8, those agreed on int32"),
        (Expectation(like=replace(SPEC, classes=0, target_size=2)), "target", "10 classes, not"),
        (Expectation(like=replace(SPEC, classes=0)), "target", "10 classes, not"),
    ],
    ids=["shape", "classes", "tokens", "regression", "single floats"],
)
def test_payloads_unlike_what_was_agreed_on(expected: Expectation, cause: str, found: str) -> None:
    with pytest.raises(BadReply, match=found) as bad:
        _read(expected)
    assert bad.value.cause == cause


@pytest.mark.parametrize(
    "like",
    [
        SPEC,
        replace(SPEC, codec=replace(SPEC.codec, step=0.5)),
        replace(SPEC, dtype="float32", high=1),
        replace(SPEC, classes=12),
    ],
    ids=["the same", "codec", "range", "fewer classes"],
)
def test_codec_and_range_are_a_clients_own(like: SampleSpec) -> None:
    assert _read(Expectation(like=like, outputs=12)).num_sent == 5


def test_samples_may_come_in_several_payloads() -> None:
    more = [_payload(count=3).to_bytes(), _payload(count=2).to_bytes()]
    reply = _read(more=more, num_sent=10, num_examples=10)
    assert [payload.count for payload, _ in reply.payloads] == [5, 3, 2]
    assert reply.num_sent == 10 and reply.decoded is not None
    assert reply.decoded.samples.shape == (10, 1, 4, 4)
    assert sum(reply.sections.values()) == len(_payload().to_bytes()) + sum(map(len, more))
    with pytest.raises(BadReply, match="num-sent is 8, the reply holds 10"):
        _read(more=more, num_sent=8, num_examples=10)


def test_configured_shape() -> None:
    assert _read(Expectation(shape=(1, 4, 4))).num_sent == 5
    with pytest.raises(BadReply, match=r"\(1, 4, 4\), expected \(3, 4, 4\)") as bad:
        _read(Expectation(shape=(3, 4, 4)))
    assert bad.value.cause == "shape"


@pytest.mark.parametrize(
    "changes", [{"num_sent": 4}, {"num_sent": 6}, {"num_examples": 4}, {"num_examples": 33}]
)
def test_counts_that_contradict(changes: dict[str, int]) -> None:
    with pytest.raises(BadReply) as bad:
        _read(Expectation(max_examples=32), **changes)
    assert bad.value.cause == "count"


def _float_payload(section: str, value: float) -> bytes:
    """Lossless payload of two float samples with a float target each; one section is ``value``."""
    codec = CodecOptions("lossless")
    spec = SampleSpec((3,), "float32", 0, 1, classes=0, target_size=1, codec=codec)
    payload = encode_samples(np.zeros((2, 3), np.float32), np.zeros((2, 1), np.float32), spec)
    width = 3 if section == "values" else 1
    planes = np.full((2, width), value, "<f4").view(np.uint8).astype(np.int64)
    coder = BitEncoder()
    code_columns(coder, 8, *planes.shape, planes)
    sections = {**payload.sections, section: coder.finish()}
    sections.pop("vocabulary", None)  # floats as they are
    return SamplePayload(spec, 2, sections).to_bytes()


@pytest.mark.parametrize("section", ["values", "targets"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_or_targets_that_are_not_finite(section: str, value: float) -> None:
    assert _read(samples=_float_payload(section, 0.5), num_sent=2).num_sent == 2
    told = {"values": r"outside \[0.0, 1.0\]", "targets": "not finite"}[section]
    with pytest.raises(BadReply, match=told) as bad:
        _read(samples=_float_payload(section, value), num_sent=2)
    assert bad.value.cause == "payload"


def test_label_beyond_the_classes() -> None:
    honest = _payload(replace(SPEC, classes=16))
    lying = replace(honest, spec=SPEC).to_bytes()
    with pytest.raises(BadReply, match="label") as bad:
        _read(samples=lying)
    assert bad.value.cause == "payload"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refinement_that_is_not_finite(value: float) -> None:
    shapes = tuple(g.shape for g in GRADIENT)
    words = np.full(sum(g.size for g in GRADIENT), value, np.float32).view(np.uint32)
    data = Frame(Float32.identifier, shapes, (), (encode_words(words),)).to_bytes()
    with pytest.raises(BadReply, match="finite") as bad:
        _read(Expectation(compressor=FP32, gradient_shapes=shapes), refinement=data)
    assert bad.value.cause == "refinement"


@pytest.mark.parametrize(
    "data",
    [
        _refinement([np.ones((2, 3), np.float32), np.zeros(3, np.float32)]),
        _refinement(GRADIENT[:1]),
        _refinement()[:-1],
        b"",
        make_compressor("qsgd").compress(GRADIENT, None, np.random.default_rng(0))[0],
    ],
    ids=["other shape", "too few", "truncated", "empty", "other compressor"],
)
def test_bad_refinements(data: bytes) -> None:
    expected = Expectation(compressor=FP32, gradient_shapes=[g.shape for g in GRADIENT])
    with pytest.raises(BadReply) as bad:
        _read(expected, refinement=data)
    assert bad.value.cause == "refinement"


def test_an_unasked_refinement_is_not_read() -> None:
    assert _read(refinement=b"anything").refinement is None
