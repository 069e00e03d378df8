"""What a small message can cost the server: a second or two, and the memory of a few arrays."""

import time
import tracemalloc
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice

import numpy as np
import pytest
import torch
from dear_payloads import LIMITS, MOST_BYTES, SPECS, dear_gradients, dear_payloads, most_samples
from flwr.app import ConfigRecord, Context, Message, RecordDict
from inprocess_grid import InProcessGrid
from torch import nn

from clients import ArraySource, train
from codec import CodecError, CodecOptions, SamplePayload, SampleSpec, decode_samples
from codec.messages import ReplayRequest
from strategies import QuantizedDataReplay
from strategies.expectation import Expectation
from strategies.received import BadReply
from strategies.received_samples import read_samples

SECONDS, BYTES = 2.0, 200 << 20

pytestmark = pytest.mark.usefixtures("one_thread")

# As in a default run, and the dearest that the search below has found.
DIGITS = SampleSpec((1, 28, 28), classes=10, codec=CodecOptions("dct"))
ROWS = SampleSpec((16,), "float32", 0, 1, 0, 100, CodecOptions("columns"))


def seconds_of(work: Callable[[], object]) -> float:
    started = time.process_time()
    with suppress(CodecError, BadReply):
        work()
    return time.process_time() - started


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        seconds_of(work)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def reader_of(payload: SamplePayload) -> Callable[[], object]:
    data = payload.to_bytes()
    return lambda: decode_samples(SamplePayload.from_bytes(data, LIMITS))


def dearest(payloads: Iterable[SamplePayload]) -> tuple[float, SamplePayload]:
    costs = [(seconds_of(reader_of(payload)), payload) for payload in payloads]
    return max(costs, key=lambda cost: cost[0])


def check(spec: SampleSpec) -> None:
    seconds, payload = dearest(dear_payloads(spec))
    peak = peak_of(reader_of(payload))
    print(f"{seconds:.2f} s, {peak >> 20} MB: {payload.count} samples, {named(spec)}")
    assert seconds < SECONDS and peak < BYTES


def named(spec: SampleSpec) -> str:
    return f"{spec.shape} {spec.codec.codec} {spec.target_kind}"


def test_the_dearest_payload_of_a_default_run() -> None:
    check(DIGITS)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_the_dearest_payload_of_every_codec(spec: SampleSpec) -> None:
    check(spec)


@pytest.mark.parametrize(
    "shapes",
    [
        [(64, 3, 3, 3), (64, 64, 3, 3), (10, 64)],
        pytest.param([(512, 512, 3, 3)] * 5, marks=pytest.mark.slow),
    ],
)
def test_gradients_of_a_model(shapes: list[tuple[int, ...]]) -> None:
    # In proportion to the server's own model, of a small one as of 12 million parameters.
    for compressor, data in dear_gradients(shapes):
        work = lambda c=compressor, d=data: c.decompress(d, shapes)  # noqa: E731
        cut = lambda c=compressor, d=data: c.decompress(d[:MOST_BYTES], shapes)  # noqa: E731
        assert max(seconds_of(work), seconds_of(cut)) < SECONDS, compressor.name


def reply_of(payloads: list[bytes], count: int) -> Message:
    entries = {
        "samples": payloads[0],
        "num-sent": count,
        "num-examples": count,
        "remaining": 0,
        "client": 0,
    }
    if payloads[1:]:
        entries["more"] = payloads[1:]
    record = ConfigRecord(entries)
    return Message(RecordDict({"payload": record}), reply_to=Message(RecordDict(), 42, "train"))


def test_many_payloads_cost_no_more_than_one() -> None:
    parts = [
        SamplePayload(DIGITS, 1, {"values": bytes([0, place])}).to_bytes() for place in range(255)
    ]
    size = len(parts[0])
    number, count = MOST_BYTES // size, most_samples(DIGITS, size)
    parts = [
        SamplePayload(DIGITS, count, {"values": bytes([0, place + 1])}).to_bytes()
        for place in range(number)
    ]
    message = reply_of(parts, number * count)
    expected = Expectation.of(ReplayRequest(server_round=1, codec=DIGITS.codec))
    assert sum(map(len, parts)) <= MOST_BYTES
    assert seconds_of(lambda: read_samples(message, expected)) < SECONDS


@pytest.mark.slow
def test_ten_of_them_do_not_delay_a_round() -> None:
    """All that a node may send without a limit on its samples, ten times in a round."""
    _, payload = dearest(islice(dear_payloads(ROWS), 12))
    reply = {
        "samples": payload.to_bytes(),
        "num-sent": payload.count,
        "num-examples": payload.count,
        "remaining": 0,
        "client": 1,
    }

    def hostile(message: Message, context: Context) -> Message:
        return Message(RecordDict({"payload": ConfigRecord(reply)}), reply_to=message)

    rng = np.random.default_rng(0)
    targets = rng.random((20, 100)).astype(np.float32)
    own = ArraySource(rng.random((20, 16)).astype(np.float32), targets, 0, 0.0, 1.0)
    strategy = QuantizedDataReplay(
        nn.Linear(16, 100),
        lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        nn.MSELoss(),
        codec=ROWS.codec,
        samples=ROWS,
        server_steps=2,
        device="cpu",
    )
    timeout = 30.0
    clients = [lambda message, context: train(message, context, own), *[hostile] * 10]
    started = time.process_time()
    strategy.start(InProcessGrid(clients), num_rounds=1, timeout=timeout)
    assert time.process_time() - started < timeout
    assert strategy.failures == {"payload": 10} and len(strategy.bank) == 20
