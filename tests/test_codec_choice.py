"""A client chooses its codec once, tells of it, and the server takes what was chosen."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from images import digits, fields
from inprocess_grid import InProcessGrid
from PIL import Image
from requested_client import answer, context, message
from torch import nn

from clients import ArraySource, train
from clients.memory import Memory
from codec import CodecOptions, SamplePayload, SampleSpec, encode_samples
from codec.identity import receipt
from codec.messages import ReplayRequest, StreamingRequest, Terms
from codec.samples.choice import Candidate, Choice, codecs_at_hand
from strategies import QuantizedDataReplay
from strategies.expectation import Expectation
from strategies.received import BadReply
from strategies.received_samples import _read_payload

AUTO = CodecOptions(step=0.2, avif_speed=6)  # faster than the default
BANK = b"the bank"
SHAPE = (1, 28, 28)


def sparse(count: int = 48) -> ArraySource:
    samples, labels = digits(count)
    return ArraySource(samples, labels, 10, 0.0, 255.0)


def dense(count: int = 48) -> ArraySource:
    labels = np.random.default_rng(2).integers(0, 10, count)
    return ArraySource(fields(count, SHAPE), labels, 10, 0.0, 255.0)


def replay(codec: CodecOptions = AUTO, **overrides: Any) -> Message:
    values: dict[str, Any] = {"mode": "replay", "selection": "top", "samples_per_round": 24}
    return message(**values | overrides | {"codec": codec.to_bytes()})


def coding(reply: dict[str, Any]) -> CodecOptions:
    return SamplePayload.from_bytes(reply["samples"]).spec.codec


def told(reply: dict[str, Any]) -> Choice | None:
    return Choice.from_bytes(reply["codec-choice"]) if reply.get("codec-choice") else None


@pytest.fixture
def no_more_choices(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what makes any further measurement fail."""

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    return lambda: monkeypatch.setattr("clients.codec_choice.choose", refuse)


# The client


def test_the_choice_codes_the_samples_and_is_told() -> None:
    reply = answer(replay(), context(), sparse())
    choice = told(reply)
    assert choice is not None and choice.codec == "avif"
    assert [c.codec for c in choice.candidates] == ["dct", "webp", "avif"]
    assert coding(reply) == replace(
        CodecOptions("avif"), quality=choice.options(AUTO).quality, avif_speed=AUTO.avif_speed
    )
    per_sample = len(reply["samples"]) / reply["num-sent"]
    assert per_sample == pytest.approx(choice.rate, rel=0.25)  # of other samples


def test_dense_pictures_keep_the_block_transform() -> None:
    reply = answer(replay(), context(), dense())
    choice = told(reply)
    assert choice is not None and choice.codec == "dct"
    assert coding(reply) == CodecOptions("dct", step=0.2)


def test_it_is_made_once_and_told_until_it_has_arrived(no_more_choices: Any) -> None:
    ctx, source = context(), sparse(96)
    first = answer(replay(acknowledged=b"\0"), ctx, source)
    no_more_choices()
    second = answer(replay(server_round=2, acknowledged=b"\0"), ctx, source)  # the first was lost
    arrived = receipt((second["samples"],))
    third = answer(replay(server_round=3, acknowledged=arrived), ctx, source)
    assert told(first) == told(second) is not None
    assert told(third) is None and third["num-sent"] == 24
    assert coding(first) == coding(second) == coding(third)


def test_a_device_that_comes_back_remembers_and_tells_the_new_run(
    no_more_choices: Any, tmp_path: Path
) -> None:
    source = sparse()
    first = answer(replay(bank=BANK, acknowledged=b"\0"), context(), source, state_dir=tmp_path)
    no_more_choices()
    arrived = receipt((first["samples"],))
    again = replay(bank=BANK, acknowledged=arrived, server_round=2)
    second = answer(again, context(), source, state_dir=tmp_path)
    assert told(second) == told(first) is not None
    assert coding(second) == coding(first)


def test_a_device_that_has_forgotten_chooses_the_same_in_any_round() -> None:
    replies = [answer(replay(server_round=r), context(), sparse()) for r in (1, 9)]
    assert told(replies[0]) == told(replies[1])


def test_other_options_are_another_choice() -> None:
    ctx, source = context(), sparse()
    first = answer(replay(), ctx, source)
    coarse = answer(replay(replace(AUTO, step=4.0), server_round=2), ctx, source)
    assert coding(first).codec == "avif"
    assert coding(coarse) == CodecOptions("dct", step=4.0)


def test_a_budget_of_few_samples_counts_the_container_of_a_file() -> None:
    reply = answer(replay(samples_per_round=0, uplink_budget=200), context(), sparse())
    choice = told(reply)
    assert choice is not None and choice.codec != "avif"
    assert choice.candidates[2].bytes_per_sample > 1.5 * choice.rate


@pytest.mark.parametrize(
    "codec",
    [CodecOptions("dct"), CodecOptions(quantizer="dithered"), CodecOptions(quantizer="stochastic")],
)
def test_nothing_is_measured_unless_it_is_left_open(
    codec: CodecOptions, no_more_choices: Any
) -> None:
    no_more_choices()
    reply = answer(replay(codec), context(), sparse())
    assert coding(reply) == replace(codec, codec="dct")
    assert "codec-choice" not in reply


def test_streaming_keeps_the_block_transform(no_more_choices: Any) -> None:
    no_more_choices()
    request = message(mode="streaming", codec=AUTO.to_bytes(), samples_per_round=0)
    assert coding(answer(request, context(), sparse())).codec == "dct"


def test_a_client_without_avif_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(Image.SAVE, "AVIF")
    reply = answer(replay(), context(), sparse())
    assert coding(reply).codec in ("dct", "webp")
    (note,) = reply["notes"]
    assert "codec auto goes without avif: this Pillow was built without AVIF" in note


def test_a_server_without_avif_is_not_sent_any() -> None:
    terms = Terms(codecs=("webp",)).to_bytes()
    reply = answer(replay(terms=terms), context(), sparse())
    choice = told(reply)
    assert choice is not None and [c.codec for c in choice.candidates] == ["dct", "webp"]
    assert Terms.from_bytes(terms).codecs == ("webp",)
    assert Terms().to_bytes() == b"{}"


def test_memories_of_before_know_no_choice() -> None:
    choice = Choice(0, (Candidate("dct", 0, 40.0, 100.0),))
    memory = Memory().with_choice(AUTO, choice)
    entries = memory.to_entries()
    assert Memory.from_entries(entries).choice(AUTO) == choice
    assert Memory.from_entries(entries).choice(CodecOptions(step=0.3)) is None
    before = {**entries, "notes": str(entries["notes"]).split(', "choices"')[0] + "}"}
    assert Memory.from_entries(before).choice(AUTO) is None


# The server


def payload(codec: CodecOptions) -> bytes:
    samples, labels = digits(4)
    return encode_samples(samples, labels, SampleSpec(SHAPE, classes=10, codec=codec)).to_bytes()


def replaying(codec: CodecOptions) -> ReplayRequest:
    return ReplayRequest(codec=codec, server_round=1)


ANY_AVIF = CodecOptions("avif", quality=17, avif_speed=6)


@pytest.mark.parametrize(
    ("request_", "sent", "is_taken"),
    [
        (replaying(AUTO), ANY_AVIF, True),
        (replaying(AUTO), CodecOptions("webp", quality=80), True),
        (replaying(AUTO), CodecOptions("dct", step=0.2), True),
        (replaying(AUTO), CodecOptions("dct", step=0.1), False),
        (replaying(AUTO), CodecOptions("avif", quality=17, avif_speed=3), False),
        (replaying(replace(AUTO, avif_speed=2)), ANY_AVIF, True),
        (replaying(replace(AUTO, avif_speed=2)), replace(ANY_AVIF, avif_speed=5), False),
        (replaying(AUTO), CodecOptions("jpeg"), False),
        (replaying(AUTO), CodecOptions("png"), False),
        (replaying(CodecOptions("dct")), ANY_AVIF, False),
        (replaying(CodecOptions("avif", avif_speed=6)), ANY_AVIF, False),
        (replaying(CodecOptions(quantizer="dithered")), ANY_AVIF, False),
        (StreamingRequest(codec=AUTO, server_round=1), ANY_AVIF, False),
    ],
)
def test_another_codec_is_taken_only_where_auto_leaves_it_open(
    request_: Any, sent: CodecOptions, is_taken: bool
) -> None:
    expected = Expectation.of(request_)
    if is_taken:
        assert _read_payload(payload(sent), expected).count == 4
    else:
        with pytest.raises(BadReply, match="codec: samples are coded by"):
            _read_payload(payload(sent), expected)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def mixed_run(**options: Any) -> QuantizedDataReplay:
    """Two rounds of two clients, whose pictures are not alike."""

    def client(source: ArraySource) -> Any:
        return lambda msg, ctx: train(msg, ctx, source, classifier)

    options = {"codec": AUTO, **options}
    strategy = QuantizedDataReplay(
        classifier(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        samples_per_round=24,
        server_steps=3,
        server_batch_size=16,
        device="cpu",
        **options,
    )
    grid = InProcessGrid([client(sparse()), client(dense())])
    strategy.start(grid, num_rounds=2)
    return strategy


def test_one_bank_of_two_codecs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="flwr"):
        strategy = mixed_run()
    book = strategy.book
    assert not strategy.failures and len(strategy.bank) == 96
    assert book.chosen_codecs() == {"avif (speed 6)": 1, "dct": 1}
    lines = [record.getMessage() for record in caplog.records]
    assert sum("codec auto is avif (speed 6) at" in line for line in lines) == 1
    assert sum("codec auto is dct at" in line for line in lines) == 1
    told_bytes = sum(len(choice.to_bytes()) for choice in book.codec_choices.values())
    sections = strategy.ledger.sections()
    assert sections["codec choice"] == told_bytes < 60
    assert sum(sections.values()) == strategy.ledger.uplink_bytes
    images, _, _ = next(strategy.bank.minibatches(96, 1, np.random.default_rng(0)))
    assert images.shape == (96, *SHAPE)


def test_choices_outlive_the_servers_process() -> None:
    book = mixed_run().book
    again = mixed_run(codec=CodecOptions("dct")).book
    assert not again.codecs
    again.restore(book.state())
    assert again.codec_choices == book.codec_choices
    (node, *_) = book.codecs
    again.rename(node, 7)
    assert again.codec_choices[7] == book.codec_choices[node]
    before = {key: value for key, value in book.state().items() if key != "codecs"}
    again.restore(before)  # of a checkpoint that knew no choices


def test_terms_say_what_the_server_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.agreement.codecs_at_hand", lambda: ("webp",))
    book = mixed_run().book
    assert {c.codec for choice in book.codec_choices.values() for c in choice.candidates} == {
        "dct",
        "webp",
    }
    assert codecs_at_hand() != ("webp",)


def test_an_illegible_choice_costs_nobody_a_reply() -> None:
    from codec.messages import SampleReply

    entries = {"client": 1, "num-examples": 3, "samples": b"", "num-sent": 0, "remaining": 0}
    reply = SampleReply.from_entries({**entries, "codec-choice": b"\x07\x01\x02"})
    assert reply.choice() is None
