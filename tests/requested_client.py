"""A client of the message handler, for tests: its data, its model, requests and answers."""

import json
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import nn

from clients import ArraySource, train
from codec import CodecOptions, DecodedSamples, SamplePayload, SampleSpec, decode_samples

SPEC = SampleSpec((1, 8, 8), classes=4)  # of `digits`
LOSSLESS = CodecOptions("lossless")
COARSE = CodecOptions(step=0.1)


def digits(count: int = 50) -> ArraySource:
    """Smooth 8x8 images; the first two pixels hold the sample's own index."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, (count, 1, 1, 1)) + rng.integers(0, 50, (count, 1, 8, 8))
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = np.divmod(np.arange(count), 256)
    return ArraySource(pixels.astype(np.uint8), rng.integers(0, 4, count), 4, 0.0, 255.0)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)
    )


NODE = 2**64 - 59  # ids are of 64 bits, every other above 2**63


def context(partition: int = 2, node_id: int | None = None) -> Context:
    """Return the context of a client; its node id follows from its partition unless given."""
    node = {"partition-id": partition, "num-partitions": 4}
    return Context(1, NODE + partition if node_id is None else node_id, node, RecordDict(), {})


def message(arrays: bool = False, **overrides: Any) -> Message:
    values: dict[str, Any] = {
        "server-round": 1,
        "seed": 7,
        "mode": "streaming",
        "codec": LOSSLESS.to_bytes(),
        "batch-size": 12,
        "samples-per-round": 12,
        "importance": "all",
        "selection": "probability",
        "keep-rate": 1.0,
        "uniform-share": 0.2,
        "uplink-budget": 0,
        "refinement": "none",
        "compressor-bits": 4,
        "compressor-density": 0.1,
    }
    values |= {key.replace("_", "-"): value for key, value in overrides.items()}
    content = RecordDict({"config": ConfigRecord(values)})
    if arrays:
        content["arrays"] = ArrayRecord(network().state_dict())
    return Message(content, 5, "train")


def answer(msg: Message, ctx: Context, source: Any, **options: Any) -> dict[str, Any]:
    """Return all entries of a reply, whichever record they travel in."""
    reply = train(msg, ctx, source, **options)
    assert reply.metadata.dst_node_id == msg.metadata.src_node_id
    record = reply.content["payload"]
    metrics = reply.content.get("metrics", MetricRecord())
    assert isinstance(record, ConfigRecord) and isinstance(metrics, MetricRecord)
    assert not set(record) & set(metrics)
    return {**record, **metrics}


def skipped(reply: dict[str, Any]) -> dict[str, int]:
    counts: dict[str, int] = json.loads(reply.get("skipped") or "{}")
    return counts


def decoded(reply: dict[str, Any]) -> DecodedSamples:
    return decode_samples(SamplePayload.from_bytes(reply["samples"]))


def sent_indices(reply: dict[str, Any]) -> list[int]:
    pixels = decoded(reply).samples.astype(int)
    return [int(i) for i in pixels[:, 0, 0, 0] * 256 + pixels[:, 0, 0, 1]]
