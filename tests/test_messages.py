"""The contract of server and clients: requests, replies, what contradicts itself, and names."""

import inspect
import math
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from types import UnionType
from typing import Any, get_args, get_origin

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from wire import through_flower

import strategies.baselines
from clients.importance import SCORES
from clients.selection import make_selector
from codec import (
    CodecError,
    CodecOptions,
    Compression,
    DecodeLimits,
    OptionError,
    PayloadError,
    Refinement,
)
from codec.gradients import COMPRESSORS
from codec.gradients.compression import UNCOMPRESSED
from codec.gradients.joined import joined
from codec.gradients.majority_vote import Ballot
from codec.messages import (
    CALIBRATE,
    DESCRIBE,
    FEDAVG,
    GRADIENT,
    IMPORTANCES,
    PROBABILITY,
    REPLAY,
    REQUESTS,
    SCORED,
    SELECTIONS,
    STREAMING,
    TOP,
    BankTraining,
    DescribeRequest,
    Description,
    FilterOptions,
    GradientReply,
    GradientRequest,
    LocalOptions,
    LocalReply,
    LocalRequest,
    Participation,
    ReplayOptions,
    ReplayRequest,
    Reply,
    Request,
    SampleReply,
    StreamingRequest,
    Terms,
    TrainingRequest,
)
from codec.options import (
    OneOf,
    Options,
    PackedOptions,
    Range,
    flat_fields,
    key_of,
    own_fields,
    pick,
)
from fl_app.config import RunConfig
from fl_app.registry import STRATEGIES

REPLIES: list[type[Reply]] = [SampleReply, GradientReply, LocalReply, Description]
MESSAGES: list[type[Options]] = [*REQUESTS.values(), *REPLIES]
LARGEST = 2**63 - 1

STREAM = {"server-round": 2, "mode": "streaming"}
GRAD = {"server-round": 2, "mode": "gradient", "compressor": "top-k"}
LOCAL = {"server-round": 2, "mode": "fedavg", "learning-rate": 0.1}


# Any message, made from its declaration

_VALUES: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-LARGEST, LARGEST),
    bytes: st.binary(max_size=30),
    str: st.text(max_size=10),
}


def values_of_field(declared: Field[Any]) -> st.SearchStrategy[Any]:
    """Values that a field's declaration calls legal; its default is likely."""
    kind: Any = declared.type
    if isinstance(kind, type) and issubclass(kind, Options):
        return messages(kind)
    if get_origin(kind) is tuple:
        return st.lists(_VALUES[get_args(kind)[0]], max_size=3).map(tuple)
    optional = isinstance(kind, UnionType)
    kind = get_args(kind)[0] if optional else kind
    legal = declared.metadata["legal"]
    found: st.SearchStrategy[Any]
    if isinstance(legal, OneOf):
        found = st.sampled_from(legal)
    elif kind is int:
        low, high = (legal.low, min(legal.high, LARGEST)) if legal else (-LARGEST, LARGEST)
        found = st.integers(int(low), int(high))
    elif kind is float:
        bounds = legal if isinstance(legal, Range) else Range(-1e300, 1e300)
        found = st.floats(bounds.low, min(bounds.high, 1e300), exclude_min=bounds.open_low)
    else:
        found = _VALUES[kind]
    return found | st.none() if optional else found


@st.composite
def messages(draw: st.DrawFn, cls: type[Options]) -> Options:
    """Messages or options of a class that do not contradict themselves."""
    for _ in range(50):
        values = {
            name: draw(values_of_field(declared))
            for name, declared in own_fields(cls).items()
            if is_required(declared) or draw(st.booleans())
        }
        try:
            made = cls(**values)
        except OptionError:
            continue
        # Options that the codec does not use stay behind.
        return CodecOptions.from_bytes(made.to_bytes()) if isinstance(made, CodecOptions) else made
    return reject()


def is_required(declared: Field[Any]) -> bool:
    return declared.default is MISSING and declared.default_factory is MISSING


@pytest.mark.parametrize("cls", MESSAGES)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_message_comes_back(cls: type[Options], data: st.DataObject) -> None:
    message = data.draw(messages(cls))
    entries = message.to_entries()
    assert cls.from_entries(entries) == message
    assert cls.from_entries(through_flower(entries)) == message


def entry_keys(cls: type[Options]) -> Iterator[str]:
    """Keys of the entries of a message."""
    for declared in fields(cls):
        kind = declared.type
        nested = isinstance(kind, type) and issubclass(kind, Options)
        if nested and not issubclass(kind, PackedOptions):  # type: ignore[arg-type]  # a class
            yield from entry_keys(kind)  # type: ignore[arg-type]  # a class of options
        else:
            yield key_of(declared)


@pytest.mark.parametrize("cls", MESSAGES)
def test_keys_are_in_kebab_case_and_none_stands_twice(cls: type[Options]) -> None:
    keys = list(entry_keys(cls))
    assert len(set(keys)) == len(keys)
    assert all(key == key.lower() and "_" not in key for key in keys)


@pytest.mark.parametrize("cls", MESSAGES)
def test_every_field_says_what_it_means(cls: type[Options]) -> None:
    assert cls.__doc__
    for declared in fields(cls):
        kind = declared.type
        if isinstance(kind, type) and issubclass(kind, Options):
            assert kind.__doc__
            continue
        doc = declared.metadata["doc"]
        assert doc and not doc.endswith(".")


# What the server's model and data take


def test_terms_travel_as_what_differs_from_the_defaults() -> None:
    assert Terms().to_bytes() == b"{}"
    terms = Terms((3, 32, 32), 10, ("cat", "dög"), samples=500)
    assert Terms.from_bytes(terms.to_bytes()) == terms
    assert b"values" not in terms.to_bytes() and "dög".encode() in terms.to_bytes()
    request = StreamingRequest(server_round=1, terms=terms)
    assert StreamingRequest.from_entries(through_flower(request.to_entries())) == request
    limits = DecodeLimits()
    assert (Terms().samples, Terms().values) == (limits.samples, limits.values)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "terms of 0 bytes"),
        (b"\xff\xfe", "terms of 2 bytes"),
        (b"[1]", "terms of 3 bytes"),
        (b"3", "terms of 1 bytes"),
        (b"null", "terms of 4 bytes"),
        (b'{"shape": 5}', "shape = 5 must be a list"),
        (b'{"outputs": -1}', "outputs = -1 must be >= 0"),
        (b'{"samples": 0}', "samples = 0 must be >= 1"),
        (b'{"class_names": ["a", 1]}', "class_names"),
        (b"[" * 100_000, "terms of 100000 bytes"),
    ],
)
def test_malformed_terms_are_a_payload_error(data: bytes, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        Terms.from_bytes(data)


def test_unknown_terms_are_left_alone() -> None:
    assert Terms.from_bytes(b'{"later": 1, "outputs": 4}') == Terms(outputs=4)


# Requests


def test_a_request_to_describe_is_read() -> None:
    request = DescribeRequest.from_entries({"server-round": 0, "mode": "describe", "later": 1})
    assert request == DescribeRequest(server_round=0)
    assert (request.scale, request.client_key, request.terms) == ("auto", "node", Terms())


@pytest.mark.parametrize("cls", REQUESTS.values())
def test_all_requests_say_what_the_model_sees_and_whose_numbers(cls: type[Request]) -> None:
    names = own_fields(cls)
    assert names["scale"].metadata["legal"] == ("auto", "unit", "none")
    assert names["client_key"].metadata["legal"] == ("node", "partition")
    assert "terms" in names


def test_a_streaming_request_is_read() -> None:
    codec = CodecOptions(quantizer="dithered", step=0.25)
    record = {
        **STREAM, "seed": 7, "codec": codec.to_bytes(), "batch-size": 8, "keep-rate": 0.5,
        "importance": "loss", "refinement": "qsgd", "compressor-bits": 7, "later": "x",
    }  # fmt: skip
    assert StreamingRequest.from_entries(record) == StreamingRequest(
        server_round=2, seed=7, codec=codec, batch_size=8, keep_rate=0.5, importance="loss",
        refinement=Refinement("qsgd", bits=7),
    )  # fmt: skip


def test_a_replay_request_is_read() -> None:
    request = ReplayRequest.from_entries({"server-round": 0, "mode": "replay", "pool-factor": 2})
    assert request == ReplayRequest(server_round=0, pool_factor=2.0)
    assert request.acknowledged is None
    assert "acknowledged" not in request.to_entries()
    said = ReplayRequest(server_round=3, acknowledged=b"")
    assert ReplayRequest.from_entries(said.to_entries()).acknowledged == b""
    assert said.to_entries()["acknowledged"] == b"\0"  # Flower's mods take no empty entry


def test_a_request_to_train_is_read() -> None:
    base = {"server-round": 2, "seed": 7, "batch-size": 8}
    record = {**base, "compressor": "qsgd", "compressor-bits": 7, "buffers": 3, "later": "x"}
    gradient = GradientRequest.from_entries(record)
    local = LocalRequest.from_entries({**record, "learning-rate": 1})
    for request in (gradient, local):
        assert isinstance(request, TrainingRequest)
        assert request.compression == Compression("qsgd", bits=7)
        assert (request.server_round, request.batch_size, request.buffers) == (2, 8, 3)
        assert request.seed == 7
    assert local.learning_rate == 1.0
    assert not LocalRequest.from_entries({**base, "learning-rate": 0.1}).compression


@pytest.mark.parametrize(
    ("cls", "record", "message"),
    [
        (StreamingRequest, {**STREAM, "server-round": -1}, "server-round = -1 must be >= 0"),
        (StreamingRequest, {**STREAM, "server-round": True}, "whole number, not bool"),
        (StreamingRequest, {**STREAM, "seed": -1}, "seed = -1 must be in"),
        (StreamingRequest, {**STREAM, "seed": 2**32}, f"seed = {2**32} must be in"),
        (StreamingRequest, {**STREAM, "mode": "replay"}, "mode = 'replay' must be one of stream"),
        (StreamingRequest, {**STREAM, "batch-size": 0}, "batch-size = 0 must be >= 1"),
        (StreamingRequest, {**STREAM, "batch-size": 2.5}, "batch-size = 2.5 must be a whole"),
        (StreamingRequest, {**STREAM, "importance": "luck"}, "importance = 'luck' must be one"),
        (StreamingRequest, {**STREAM, "selection": "budget"}, "selection = 'budget' must be one"),
        (StreamingRequest, {**STREAM, "keep-rate": 0.0}, r"keep-rate = 0.0 must be in \(0, 1\]"),
        (StreamingRequest, {**STREAM, "keep-rate": 1.5}, r"keep-rate = 1.5 must be in \(0, 1\]"),
        (StreamingRequest, {**STREAM, "uniform-share": -0.1}, r"must be in \[0, 1\]"),
        (StreamingRequest, {**STREAM, "uplink-budget": -1}, "uplink-budget = -1 must be >= 0"),
        (StreamingRequest, {**STREAM, "refinement": "zip"}, "refinement = 'zip' must be one of"),
        (StreamingRequest, {**STREAM, "refinement-tolerance": 0.0}, "refinement-tolerance = 0.0"),
        (StreamingRequest, {**STREAM, "codec": "dct"}, "codec = 'dct' must be bytes, not str"),
        (StreamingRequest, {}, "message lacks server-round"),
        (ReplayRequest, {"server-round": 0, "acknowledged": -2}, "acknowledged = -2 must be bytes"),
        (ReplayRequest, {"server-round": 0, "pool-factor": 0.5}, "pool-factor = 0.5 must be >="),
        (ReplayRequest, {"server-round": 0, "samples-per-round": -1}, "samples-per-round = -1"),
        (GradientRequest, {**GRAD, "server-round": 0}, "server-round = 0 must be >= 1"),
        (GradientRequest, {**GRAD, "seed": -1}, "seed = -1"),
        (GradientRequest, {**GRAD, "batch-size": 0}, "batch-size = 0"),
        (GradientRequest, {**GRAD, "buffers": -1}, "buffers = -1"),
        (GradientRequest, {**GRAD, "compressor": "zip"}, "compressor = 'zip' must be one of none"),
        (GradientRequest, {**GRAD, "compressor-density": 0.0}, "compressor-density = 0.0"),
        (GradientRequest, {**GRAD, "compressor": "none"}, "'fp32' sends it losslessly"),
        (GradientRequest, {"server-round": 2}, "'fp32' sends it losslessly"),
        (GradientRequest, {**GRAD, "momentum-correction": 1.0}, "momentum-correction = 1.0"),
        (GradientRequest, {**GRAD, "majority-vote": True}, "majority-vote needs compressor sign"),
        (GradientRequest, {**GRAD, "majority-vote": 1}, "majority-vote = 1 must be true or false"),
        (
            GradientRequest,
            {**GRAD, "compressor": "sign", "momentum-correction": 0.9},
            "momentum-correction = 0.9 needs compressor top-k or majority-vote, not 'sign'",
        ),
        (LocalRequest, {**LOCAL, "server-round": 0}, "server-round = 0 must be >= 1"),
        (LocalRequest, {**LOCAL, "local-steps": 0}, "local-steps = 0"),
        (LocalRequest, {**LOCAL, "learning-rate": math.nan}, "learning-rate = nan"),
        (LocalRequest, {**LOCAL, "momentum": 1.0}, r"momentum = 1.0 must be in \[0, 0.999\]"),
        (LocalRequest, {**LOCAL, "weight-decay": -0.1}, "weight-decay = -0.1"),
        (LocalRequest, {}, "message lacks learning-rate, server-round"),
    ],
)
def test_illegal_requests_are_named(
    cls: type[Request], record: dict[str, Any], message: str
) -> None:
    with pytest.raises(CodecError, match=message):
        cls.from_entries(record)


def test_malformed_options_of_the_codec_are_a_payload_error() -> None:
    with pytest.raises(PayloadError, match="truncated codec"):
        StreamingRequest.from_entries({**STREAM, "codec": b""})
    with pytest.raises(PayloadError, match="unknown codec 255"):
        StreamingRequest.from_entries({**STREAM, "codec": b"\xff"})


def test_everything_is_kept_where_every_sample_counts() -> None:
    with pytest.raises(OptionError, match=r"^keep_rate = 0.5 contradicts importance") as caught:
        StreamingRequest(server_round=1, keep_rate=0.5)
    assert "legal is 1.0, or importance random, loss" in str(caught.value)
    with pytest.raises(OptionError, match=r"^keep-rate = 0.5 contradicts importance all"):
        StreamingRequest.from_entries({**STREAM, "keep-rate": 0.5})
    StreamingRequest(server_round=1, keep_rate=0.5, importance="random")
    ReplayRequest(server_round=1, keep_rate=0.5)  # there, the share of all that is ever sent


@pytest.mark.parametrize(
    ("values", "legal"),
    [
        ({"compression": "top-k", "momentum_correction": 0.9}, True),
        ({"compression": "sign", "majority_vote": True, "momentum_correction": 0.9}, True),
        ({"compression": "sign", "majority_vote": True}, True),
        ({"compression": "sign", "momentum_correction": 0.9}, False),
        ({"compression": "eden", "momentum_correction": 0.9}, False),
        ({"compression": "fp32", "majority_vote": True}, False),
        ({"compression": "none"}, False),
        ({}, False),
    ],
)
def test_what_a_gradient_request_may_combine(values: dict[str, Any], legal: bool) -> None:
    if legal:
        assert GradientRequest(server_round=1, **values).server_round == 1
        return
    with pytest.raises(OptionError):
        GradientRequest(server_round=1, **values)


def test_compressors_of_requests() -> None:
    gradient = GradientRequest(server_round=1, compression=Compression("top-k", density=0.2))
    top_k = Compression("top-k", density=0.2).compressor()
    assert top_k is not None
    assert gradient.compressor() == joined(top_k)
    vote = GradientRequest(server_round=1, compression=Compression("sign"), majority_vote=True)
    assert isinstance(vote.compressor(), Ballot)
    local = LocalRequest(server_round=1, learning_rate=0.1, compression=Compression("eden"))
    eden = Compression("eden").compressor()
    assert eden is not None and local.compressor() == joined(eden)
    assert LocalRequest(server_round=1, learning_rate=0.1).compressor() is None


def test_what_needs_a_model() -> None:
    def streaming(**values: Any) -> StreamingRequest:
        return StreamingRequest(server_round=1, **values)

    for importance in IMPORTANCES:
        scored = importance in SCORED
        assert FilterOptions(importance=importance).needs_scores == scored
        assert streaming(importance=importance).needs_model == scored
        assert streaming(importance=importance, refinement="auto").needs_model
        assert ReplayRequest(server_round=1, importance=importance).needs_model == scored


def test_the_rule_that_auto_means() -> None:
    def rules(selection: str) -> tuple[str, str]:
        streaming = StreamingRequest(server_round=1, selection=selection)
        return streaming.rule, ReplayRequest(server_round=1, selection=selection).rule

    assert rules("auto") == (PROBABILITY, TOP)
    assert all(rules(selection) == (selection, selection) for selection in SELECTIONS)


# Replies


@pytest.mark.parametrize(
    ("cls", "required"),
    [
        (SampleReply, {"samples": b"", "num-sent": 0, "remaining": 0}),
        (GradientReply, {"gradient": b"x"}),
        (LocalReply, {}),
        (Description, {}),
    ],
)
def test_what_a_reply_must_hold(cls: type[Reply], required: dict[str, Any]) -> None:
    entries = {"client": 3, "num-examples": 12, **required}
    reply = cls.from_entries(entries)
    assert (reply.client, reply.num_examples, reply.memory_bytes) == (3, 12, 0)
    for key in entries:
        rest = {k: v for k, v in entries.items() if k != key}
        with pytest.raises(CodecError, match=f"^message lacks {key}$"):
            cls.from_entries(rest)
        wrong = "text" if isinstance(entries[key], bytes) else -1
        with pytest.raises(CodecError, match=f"^{key} = {wrong!r} must be"):
            cls.from_entries({**entries, key: wrong})
    with pytest.raises(CodecError, match="message lacks client, "):
        cls.from_entries({})


@pytest.mark.parametrize(
    ("cls", "stages"),
    [
        (SampleReply, ["importance", "encode", "refinement"]),
        (GradientReply, ["gradient", "compress"]),
        (LocalReply, ["train", "compress"]),
        (Description, []),
    ],
)
def test_times_of_a_reply(cls: type[Reply], stages: list[str]) -> None:
    assert cls.stages() == stages
    entries: dict[str, Any] = {
        "client": 3, "num-examples": 12, "samples": b"", "num-sent": 0, "remaining": 0,
        "gradient": b"",
    }  # fmt: skip
    times = {f"seconds-{stage}": 0.5 + place for place, stage in enumerate(stages)}
    reply = cls.from_entries(entries | times)
    assert reply.seconds == {stage: 0.5 + place for place, stage in enumerate(stages)}
    # Odd telemetry costs nobody a reply.
    for odd in (-1.0, math.nan, math.inf, "soon", True, b"x"):
        reply = cls.from_entries(entries | dict.fromkeys(times, odd) | {"memory-bytes": odd})
        assert reply.seconds == dict.fromkeys(stages, 0.0)
        assert reply.memory_bytes == 0


@pytest.mark.parametrize(
    ("cls", "key"),
    [(SampleReply, "refinement"), (GradientReply, "buffers"), (LocalReply, "buffers"),
     (LocalReply, "delta")],
)  # fmt: skip
def test_parts_that_a_reply_may_lack(cls: type[Reply], key: str) -> None:
    entries: dict[str, Any] = {
        "client": 3, "num-examples": 12, "samples": b"", "num-sent": 0, "remaining": 0,
        "gradient": b"",
    }  # fmt: skip
    assert getattr(cls.from_entries(entries), key) is None
    assert key not in cls.from_entries(entries).to_entries()
    assert getattr(cls.from_entries({**entries, key: b""}), key) == b""
    with pytest.raises(CodecError, match=f"^{key} = 5 must be bytes, not int"):
        cls.from_entries({**entries, key: 5})


def sample_reply(**values: Any) -> SampleReply:
    return SampleReply(client=3, num_examples=12, samples=b"", num_sent=0, remaining=0, **values)


@pytest.mark.parametrize(
    ("skipped", "counts"),
    [
        ("", {}),
        ('{"unreadable": 2, "NaN": 1}', {"unreadable": 2, "NaN": 1}),
        ('{"unreadable": 2, "odd": -1, "none": 0, "half": 0.5, "yes": true, "s": "3"}',
         {"unreadable": 2}),
        ("[1, 2]", {}),
        ("3", {}),
        ("{", {}),
        ("[" * 100_000, {}),
    ],
)  # fmt: skip
def test_samples_of_no_use_are_counted_as_far_as_they_are_legible(
    skipped: str, counts: dict[str, int]
) -> None:
    assert sample_reply(skipped=skipped).skipped_counts() == counts


def test_what_a_reply_tells_costs_nobody_a_reply() -> None:
    entries = sample_reply().to_entries()
    for key, odd in (
        ("variance-kept", 2.0), ("variance-kept", math.nan), ("clipped", -1), ("skipped", 5),
        ("notes", "one"), ("notes", [1]), ("class-digest", b"x"),
    ):  # fmt: skip
        assert SampleReply.from_entries({**entries, key: odd}) == sample_reply()
    told = sample_reply(variance_kept=0.5, clipped=3, notes=("a",), class_digest="0f", more=(b"y",))
    assert SampleReply.from_entries(through_flower(told.to_entries())) == told


def test_numbers_that_flower_may_aggregate() -> None:
    assert "num-examples" in Reply.metric_keys()
    keys = SampleReply.metric_keys()
    assert keys >= {"num-examples", "num-sent", "variance-kept", "clipped", "seconds-encode"}
    assert not keys & {"samples", "more", "notes", "client", "remaining", "skipped"}
    for cls in REPLIES:
        numbers = {key for key, f in flat_fields(cls) if f.type in (int, float)}
        assert cls.metric_keys() <= numbers


# Names


def test_every_mode_has_its_request() -> None:
    assert list(REQUESTS) == [DESCRIBE, CALIBRATE, STREAMING, REPLAY, GRADIENT, FEDAVG]
    for mode, request in REQUESTS.items():
        declared = own_fields(request)["mode"]
        assert declared.default == mode
        assert declared.metadata["legal"] == (mode,)
    # The others are questions that a strategy asks beside its own.
    assert set(STRATEGIES) == set(REQUESTS) - {DESCRIBE, CALIBRATE}


def test_every_score_has_its_function() -> None:
    assert set(SCORES) == set(SCORED)
    assert set(IMPORTANCES) == {"all", "random", *SCORED}


def test_every_selection_has_its_function() -> None:
    for selection in SELECTIONS:
        select = make_selector(selection, np.ones(8), 0.2, np.random.default_rng(0))
        assert len(select(4.0)) <= 8


def test_every_compressor_may_be_asked_for() -> None:
    legal = own_fields(Compression)["kind"].metadata["legal"]
    assert legal == (UNCOMPRESSED, *COMPRESSORS)
    assert set(own_fields(Refinement)["kind"].metadata["legal"]) == {"auto", *legal}


def test_defaults_that_strategies_and_run_config_share() -> None:
    assert ReplayOptions().samples_per_round == 0  # everything; the app's default is another
    assert RunConfig().samples_per_round == 100
    assert (BankTraining().server_steps, BankTraining().server_batch_size) == (100, 64)
    local = LocalOptions()
    assert (local.momentum, local.weight_decay, local.local_steps) == (0.9, 5e-4, 10)
    assert (local.batch_size, Participation().fraction_train, Participation().seed) == (32, 1.0, 0)
    assert not local.compression and local.compression.kind == UNCOMPRESSED


def test_a_round_s_request_is_picked_from_what_was_asked_of_the_strategy() -> None:
    asked = ReplayOptions(samples_per_round=7, importance="margin", codec=CodecOptions("columns"))
    request = pick(ReplayRequest, asked, server_round=4, seed=9)
    assert request == ReplayRequest(
        server_round=4, seed=9, samples_per_round=7, importance="margin",
        codec=CodecOptions("columns"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "request_class"),
    [
        (strategies.QuantizedDataStreaming, StreamingRequest),
        (strategies.QuantizedDataReplay, ReplayRequest),
        (strategies.baselines.GradientCompression, GradientRequest),
        (strategies.baselines.CompressedFedAvg, LocalRequest),
    ],
)
def test_every_option_of_a_request_is_a_keyword_argument_of_its_strategy(
    strategy: type, request_class: type[Request]
) -> None:
    shown = inspect.signature(strategy).parameters
    a_round_s_own = {
        *("server_round", "mode", "terms", "bank", "acknowledged", "scout", "finest"),
        *("buffers", "learning_rate", "versions", "updates"),
    }
    for name, declared in own_fields(request_class).items():
        if name not in a_round_s_own:
            assert shown[name].annotation == declared.type
            assert name in (strategy.__doc__ or "")


@pytest.mark.parametrize("bank", [b"", b"8 bytes."])
def test_a_bank_s_id_is_of_eight_bytes_or_not_there(bank: bytes) -> None:
    for kind in (DescribeRequest, ReplayRequest):
        entries = kind(server_round=1, bank=bank).to_entries()
        assert ("bank" in entries) is bool(bank)
        assert kind.from_entries(entries).bank == bank
        with pytest.raises(OptionError, match="bank has 3 bytes; legal: 0 or 8"):
            kind(server_round=1, bank=b"abc")
