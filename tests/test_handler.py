"""What a client makes of a message: the request is read and checked, or refused by name."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from requested_client import LOSSLESS, NODE, answer, context, digits, message, network

from clients import train
from clients.handler import client_key, partition_id, read_request, reply_message
from codec import CodecError, CodecOptions, SamplePayload, decode_samples
from codec.messages import (
    DescribeRequest,
    GradientReply,
    GradientRequest,
    LocalRequest,
    ReplayRequest,
    StreamingRequest,
    Terms,
)


def request_message(**entries: Any) -> Message:
    return Message(RecordDict({"config": ConfigRecord(entries)}), 7, "train")


def test_a_request_is_read_by_its_mode() -> None:
    streaming = read_request(message(), StreamingRequest, ReplayRequest)
    assert isinstance(streaming, StreamingRequest)
    assert (streaming.server_round, streaming.seed, streaming.batch_size) == (1, 7, 12)
    assert streaming.codec == LOSSLESS and streaming.refinement.bits == 4
    replay = read_request(message(mode="replay"), StreamingRequest, ReplayRequest)
    assert isinstance(replay, ReplayRequest)
    assert (replay.samples_per_round, replay.acknowledged) == (12, None)


@pytest.mark.parametrize(
    "request_sent",
    [
        StreamingRequest(server_round=3, importance="loss", keep_rate=0.5, codec=LOSSLESS),
        ReplayRequest(server_round=3, acknowledged=b"", uplink_budget=900),
        GradientRequest(server_round=3, compression="sign", majority_vote=True),  # type: ignore[arg-type]
        LocalRequest(server_round=3, learning_rate=0.25, buffers=2),
    ],
    ids=lambda sent: sent.mode,
)
def test_requests_arrive_as_they_were_sent(request_sent: Any) -> None:
    msg = request_message(**request_sent.to_entries())
    assert read_request(msg, type(request_sent)) == request_sent


def test_a_message_without_config_is_refused() -> None:
    told = r"content\['config'\] must be a ConfigRecord, got NoneType"
    with pytest.raises(CodecError, match=told):
        read_request(Message(RecordDict(), 7, "train"), StreamingRequest)


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ({"mode": "avg"}, "mode = 'avg' must be one of streaming, replay$"),
        ({"mode": "gradient"}, "mode = 'gradient' must be one of streaming, replay$"),
        ({"mode": 3}, "mode = 3 must be one of streaming, replay$"),
        ({}, "mode = None must be one of streaming, replay$"),
    ],
)
def test_requests_of_another_kind_are_refused(mode: dict[str, Any], told: str) -> None:
    with pytest.raises(CodecError, match=told):
        read_request(request_message(**mode), StreamingRequest, ReplayRequest)


def test_the_number_of_a_client_is_its_partition() -> None:
    assert partition_id(context(3)) == 3
    alone = context()
    alone.node_config = {}
    assert partition_id(alone) == 0


def test_a_reply_is_one_record_and_its_metrics() -> None:
    msg = message()
    reply = reply_message(msg, GradientReply(client=2, num_examples=5, gradient=b"g"))
    assert reply.metadata.reply_to_message_id == msg.metadata.message_id
    assert set(reply.content) == {"payload", "metrics"}
    record, metrics = reply.content["payload"], reply.content["metrics"]
    assert isinstance(record, ConfigRecord) and isinstance(metrics, MetricRecord)
    assert (record["client"], record["gradient"]) == (2, b"g")
    assert "buffers" not in record and metrics["num-examples"] == 5


@pytest.mark.parametrize("mode", ["streaming", "replay"])
def test_a_client_without_data_sends_nothing(mode: str) -> None:
    reply = answer(message(mode=mode), context(), digits(0))
    assert reply["samples"] == b""
    assert (reply["num-examples"], reply["num-sent"], reply["remaining"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            {"importance": "best"},
            "importance = 'best' must be one of all, random, loss, grad-norm, margin, entropy",
        ),
        ({"mode": "avg"}, "mode = 'avg' must be one of streaming, replay"),
        (
            {"selection": "threshold"},
            "selection = 'threshold' must be one of auto, probability, top",
        ),
        ({"batch_size": 0}, "batch-size = 0 must be >= 1"),
        ({"keep_rate": 0.0}, r"keep-rate = 0.0 must be in \(0, 1\]"),
        (
            {"keep_rate": float("nan"), "importance": "random"},
            r"keep-rate = nan must be in \(0, 1\]",
        ),
        ({"keep_rate": 0.5}, "keep-rate = 0.5 contradicts importance all"),
        ({"uniform_share": 1.5}, r"uniform-share = 1.5 must be in \[0, 1\]"),
        ({"batch_size": "12"}, "batch-size = '12' must be a whole number, not str"),
        ({"uplink_budget": -1}, "uplink-budget = -1 must be >= 0"),
        ({"mode": "replay", "samples_per_round": -1}, "samples-per-round = -1 must be >= 0"),
        ({"mode": "replay", "pool_factor": 0.5}, "pool-factor = 0.5 must be >= 1"),
        ({"mode": "replay", "acknowledged": -2}, "acknowledged = -2 must be bytes, not int"),
        ({"refinement": "best"}, "refinement = 'best' must be one of none, auto, fp32"),
        ({"refinement": "fp32"}, "pass model="),
        ({"codec": b"?"}, "unknown codec 63"),
        ({"codec": CodecOptions("dct").to_bytes()[:-1]}, "truncated"),
        ({"codec": "dct"}, "codec = 'dct' must be bytes, not str"),
    ],
)
def test_illegal_requests_are_named(overrides: dict[str, Any], told: str) -> None:
    with pytest.raises(CodecError, match=told):
        train(message(**overrides), context(), digits())


@pytest.mark.parametrize("mode", ["streaming", "replay"])
def test_missing_parts_of_a_request_are_named(mode: str) -> None:
    with pytest.raises(CodecError, match="lacks server-round"):
        train(request_message(mode=mode), context(), digits())
    with pytest.raises(CodecError, match=r"content\['config'\]"):
        train(Message(RecordDict(), 5, "train"), context(), digits())
    with pytest.raises(CodecError, match=r"content\['arrays'\]"):
        train(message(mode=mode, importance="loss"), context(), digits(), model=network)


def test_what_the_samples_are_is_told_to_train_itself() -> None:
    pixels = digits().samples
    rows = [
        {"photo": sample + 5.0, "who": "cat" if k % 2 else "dog"} for k, sample in enumerate(pixels)
    ]
    reply = answer(
        message(codec=LOSSLESS.to_bytes()),
        context(),
        rows,
        class_names=["dog", "cat", "bird"],
        value_range=(0, 200),
        keys=("photo", "who"),
    )
    payload = SamplePayload.from_bytes(reply["samples"])
    assert (payload.spec.classes, payload.spec.low, payload.spec.high) == (3, 0, 200)
    assert set(decode_samples(payload).targets.tolist()) == {0, 1}
    assert reply["clipped"] > 0 and len(reply["class-digest"]) == 12


def test_classes_are_mapped_to_those_of_the_server() -> None:
    rows = [(sample, "cat") for sample in digits().samples]
    terms = Terms(shape=(1, 8, 8), outputs=5, class_names=("ant", "dog", "cat"))
    reply = answer(message(terms=terms.to_bytes()), context(), rows, class_names=["cat", "dog"])
    payload = SamplePayload.from_bytes(reply["samples"])
    assert payload.spec.classes == 3 and "class-digest" not in reply
    assert set(decode_samples(payload).targets.tolist()) == {2}


def test_payloads_beyond_the_limits_of_the_server_are_several() -> None:
    terms = Terms(samples=5)
    reply = answer(message(terms=terms.to_bytes()), context(), digits())
    parts = [SamplePayload.from_bytes(part) for part in (reply["samples"], *reply["more"])]
    assert [part.count for part in parts] == [5, 5, 2] and reply["num-sent"] == 12


def test_a_client_describes_its_samples_and_sends_none() -> None:
    request = DescribeRequest(server_round=0)
    reply = answer(request_message(**request.to_entries()), context(), digits())
    assert (reply["client"], reply["num-examples"]) == (2, 50)
    assert (list(reply["shape"]), reply["dtype"], reply["classes"]) == ([1, 8, 8], "uint8", 4)
    assert not reply.get("samples")
    message = train(request_message(**request.to_entries()), context(), digits())
    assert set(message.content) == {"payload"}  # a record of metrics would be two fifths more


def test_random_numbers_are_keyed_by_the_node_unless_the_server_says_otherwise() -> None:
    for key, expected in (("node", NODE + 3), ("partition", 3)):
        request = StreamingRequest(server_round=1, client_key=key)
        assert client_key(context(3), request) == expected


def test_clients_run_where_torch_cannot_be_imported() -> None:
    script = """
        import sys
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "torchvision"):
                    raise ImportError(f"{name} is blocked")
        sys.meta_path.insert(0, Blocker())
        import numpy as np
        from flwr.app import ConfigRecord, Context, Message, RecordDict
        from flwr.supercore.task_identity import TaskIdentity
        from clients import ArraySource, as_source, train
        from codec import CodecOptions
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        pixels = np.arange(40 * 48).reshape(40, 3, 4, 4).astype(np.uint8)
        arrays = ArraySource(pixels, np.arange(40) % 5, 5, 0.0, 255.0)
        pairs = as_source(list(zip(pixels, np.arange(40) % 5)), classes=5)
        for source in (arrays, pairs):
            for mode in ("streaming", "replay"):
                for importance, keep in (("all", 1.0), ("random", 0.5)):
                    config = ConfigRecord({
                        "server-round": 1, "seed": 3, "mode": mode, "batch-size": 8,
                        "codec": CodecOptions().to_bytes(), "importance": importance,
                        "keep-rate": keep, "refinement": "none",
                    })
                    context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})
                    message = Message(RecordDict({"config": config}), 1, "train")
                    reply = train(message, context, source).content["metrics"]
                    assert reply["num-sent"] > 0, (mode, importance)
        assert "torch" not in sys.modules
        print("done")
    """
    root = Path(__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "done\n", result.stderr
