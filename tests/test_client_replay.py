"""In replay, a client sends every sample once, within its budget, and again what got lost."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from numpy.typing import NDArray
from requested_client import (
    COARSE,
    NODE,
    SPEC,
    answer,
    context,
    decoded,
    digits,
    message,
    network,
    sent_indices,
    skipped,
)

from clients import ArraySource, train
from clients.importance import model_outputs, score
from clients.memory import Memory
from clients.selection import FIRST_TRIED
from codec import CodecError, SamplePayload, decode_samples
from codec.identity import fingerprints, receipt, tags
from codec.messages import IMPORTANCES, SCORED, Terms
from codec.random import client_generator


def replay(**overrides: Any) -> Message:
    return message(**{"mode": "replay", "selection": "top"} | overrides)


def run_replay(source: ArraySource, rounds: int, **overrides: Any) -> list[dict[str, Any]]:
    ctx = context()
    options = {"model": network} if overrides.get("arrays") else {}
    return [
        answer(replay(server_round=r, **overrides), ctx, source, **options) for r in range(rounds)
    ]


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_replay_sends_every_sample_exactly_once(importance: str) -> None:
    source = digits()
    replies = run_replay(source, 6, importance=importance, arrays=importance in SCORED)
    sent = [index for reply in replies[:5] for index in sent_indices(reply)]
    assert sorted(sent) == list(range(50))
    assert [reply["remaining"] for reply in replies] == [38, 26, 14, 2, 0, 0]
    assert replies[5]["samples"] == b"" and replies[5]["num-sent"] == 0


def test_replay_sends_in_random_order_sorted_by_label_within_a_payload() -> None:
    source = digits()
    reply = answer(replay(), context(), source)
    indices = sent_indices(reply)
    assert set(indices) != set(range(12))
    assert (np.diff(source.targets[indices]) >= 0).all()
    assert (decoded(reply).targets == source.targets[indices]).all()


def remembered(ctx: Context) -> Memory:
    return Memory.from_entries(ctx.state.config_records["quantized-data"])


def test_the_state_holds_what_was_sent_until_it_is_known_to_have_arrived() -> None:
    ctx, source = context(), digits()
    reply = answer(replay(acknowledged=b""), ctx, source)
    state, indices = remembered(ctx), sent_indices(reply)
    assert sorted(state.pending) == sorted(fingerprints(source.samples, source.targets)[indices])
    assert not len(state.delivered) and state.unsettled == receipt_of(reply)
    answer(replay(server_round=2, acknowledged=receipt_of(reply)), ctx, source)
    assert sorted(remembered(ctx).delivered) == sorted(state.pending)


def test_the_state_takes_nine_bytes_a_sample() -> None:
    ctx, source = context(), digits(2000)
    answer(replay(samples_per_round=0), ctx, source)
    answer(replay(server_round=2), ctx, source)
    record = ctx.state.config_records["quantized-data"]
    size = sum(len(value) for value in record.values() if isinstance(value, bytes | str))
    assert size < 9 * 2000


def test_replay_marks_only_what_fits_the_budget() -> None:
    source = digits(800)
    replies = run_replay(source, 3, samples_per_round=0, uplink_budget=900, codec=COARSE.to_bytes())
    counts = []
    for reply in replies:
        assert 873 <= len(reply["samples"]) <= 900
        counts.append(reply["num-sent"])
        assert reply["remaining"] == 800 - sum(counts)
        assert decoded(reply).targets.shape == (reply["num-sent"],)


def test_replay_scores_a_pool_and_takes_its_best() -> None:
    source = digits()
    msg = replay(arrays=True, importance="loss", samples_per_round=5, pool_factor=3.0)
    reply = answer(msg, context(), source, model=network)
    outputs = model_outputs(network(), source.samples, SPEC)
    losses = score("loss", outputs, source.targets)
    pool = client_generator(7, 1, NODE + 2).permutation(np.arange(50))[:15]
    assert reply["num-examples"] == 15
    assert set(sent_indices(reply)) == set(pool[np.argsort(-losses[pool])[:5]])


@pytest.mark.parametrize("selection", ["auto", "probability", "top"])
@pytest.mark.parametrize("importance", SCORED)
@pytest.mark.parametrize("relative_to", ["range", "spread"])
def test_replay_with_scores_fills_its_budget(
    importance: str, selection: str, relative_to: Any
) -> None:
    source = digits(800)
    replies = run_replay(
        source,
        2,
        arrays=True,
        importance=importance,
        selection=selection,
        samples_per_round=0,
        uplink_budget=900,
        codec=replace(COARSE, relative_to=relative_to).to_bytes(),
    )
    for reply in replies:
        assert 855 <= len(reply["samples"]) <= 900
        assert reply["num-sent"] < reply["num-examples"] < 800


@pytest.mark.parametrize("importance", ["all", "loss"])
@pytest.mark.parametrize("relative_to", ["range", "spread"])
def test_replay_meets_its_budget_in_each_client_and_round(
    importance: str, relative_to: Any
) -> None:
    """Within 5% for as long as there are samples left to fill it with."""
    source, full = digits(1000), 0
    for budget in (700, 1500):
        for partition in range(3):
            ctx, remaining, server_round = context(partition), 1000, 0
            while remaining and server_round < 6:
                msg = replay(
                    arrays=True,
                    server_round=server_round,
                    importance=importance,
                    samples_per_round=0,
                    uplink_budget=budget,
                    codec=replace(COARSE, relative_to=relative_to).to_bytes(),
                )
                reply = answer(msg, ctx, source, model=network)
                remaining, server_round = reply["remaining"], server_round + 1
                assert len(reply["samples"]) <= budget
                if remaining:
                    assert len(reply["samples"]) >= 0.95 * budget
                    full += 1
    assert full >= 30


def test_replay_keep_rate_is_the_share_ever_sent() -> None:
    replies = run_replay(digits(), 4, importance="random", keep_rate=0.4)
    assert [reply["num-sent"] for reply in replies] == [12, 8, 0, 0]
    assert [reply["remaining"] for reply in replies] == [8, 0, 0, 0]


def test_replay_without_a_limit_sends_everything_at_once() -> None:
    reply = answer(replay(samples_per_round=0), context(), digits())
    assert sorted(sent_indices(reply)) == list(range(50)) and reply["remaining"] == 0


def test_a_source_may_grow() -> None:
    """A device takes more photographs between two rounds: what is new was never sent."""
    ctx, sent = context(), []
    for server_round, length in ((1, 30), (2, 80), (3, 80)):
        msg = replay(server_round=server_round, samples_per_round=0)
        reply = answer(msg, ctx, digits(80) if length == 80 else _first(digits(80), length))
        sent.append(sorted(sent_indices(reply)) if reply["samples"] else [])
    assert sent == [[*range(30)], [*range(30, 80)], []]


def test_a_source_may_shrink() -> None:
    ctx = context()
    sent = sent_indices(answer(replay(), ctx, digits(80)))
    reply = answer(replay(server_round=2, samples_per_round=0), ctx, _first(digits(80), 20))
    assert sorted(sent_indices(reply)) == sorted({*range(20)} - {*sent})
    assert reply["remaining"] == 0


def _first(source: ArraySource, count: int) -> ArraySource:
    return replace(source, samples=source.samples[:count], targets=source.targets[:count])


def test_a_failed_round_leaves_the_state_alone() -> None:
    ctx, source = context(), digits()
    targets = source.targets.copy()
    targets[:] = 9
    broken = ArraySource(source.samples, targets, 4, 0.0, 255.0)
    with pytest.raises(CodecError, match="no sample can be used: 50 label outside 0 to 3"):
        train(replay(), ctx, broken)
    assert not ctx.state


@pytest.mark.parametrize("size", [0, 2, 8])
def test_fingerprints_travel_in_the_order_of_the_payloads(size: int) -> None:
    source, ctx = digits(), context()
    terms = Terms(samples=5)
    msg = replay(identity_bytes=size, bank=b"8 bytes.", terms=terms.to_bytes())
    reply = answer(msg, ctx, source)
    parts = [SamplePayload.from_bytes(part) for part in (reply["samples"], *reply["more"])]
    assert len(parts) == 3
    samples = np.concatenate([decode_samples(part).samples for part in parts]).astype(np.uint8)
    targets = np.concatenate([decode_samples(part).targets for part in parts]).astype(np.int64)
    expected = tags(fingerprints(samples, targets, b"8 bytes."), size)
    assert reply.get("fingerprints", b"") == expected


def receipt_of(reply: dict[str, Any]) -> bytes:
    return receipt((reply["samples"], *reply.get("more", ())))


def test_lost_replies_are_sent_again() -> None:
    """Replies 0 and 2 to 4 arrive, reply 1 is lost: what it held comes later."""
    ctx, source, sent, arrived = context(), digits(), [], b""
    for number in range(6):
        msg = replay(server_round=number + 1, acknowledged=arrived)
        reply = answer(msg, ctx, source)
        sent.append(sent_indices(reply))
        assert reply["remaining"] == max(0, 50 - 12 * (number + (number < 2)))
        if number != 1:
            arrived = receipt_of(reply)
    delivered = [index for reply in sent[:1] + sent[2:] for index in reply]
    assert sorted(delivered) == list(range(50))
    assert len(sent[5]) == 2


class Photographs:
    """Digits, some of which cannot be read; counts the readings."""

    def __init__(self, *broken: int, count: int = 50) -> None:
        self.source, self.broken, self.asked = digits(count), broken, Counter[int]()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        self.asked[index] += 1
        if index in self.broken:
            raise OSError("image file is truncated")
        return self.source.samples[index], int(self.source.targets[index])


@pytest.mark.parametrize("per_round", [0, 12])
def test_an_unreadable_sample_costs_no_other(per_round: int) -> None:
    ctx, data, replies = context(), Photographs(7, 31), []
    for server_round in range(6):
        msg = replay(server_round=server_round, samples_per_round=per_round)
        replies.append(answer(msg, ctx, data, classes=4))
    sent = [index for reply in replies if reply["num-sent"] for index in sent_indices(reply)]
    assert sorted(sent) == sorted({*range(50)} - {7, 31})
    assert sum(reply["remaining"] for reply in replies[-2:]) == 0
    told = sum((Counter(skipped(reply)) for reply in replies), Counter[str]())
    assert told == {"unreadable (OSError)": 2}
    assert data.asked[31] == 1


@pytest.mark.parametrize("importance", ["all", "loss"])
def test_no_more_is_read_than_the_budget_allows_to_send(importance: str) -> None:
    data = Photographs(count=500)
    msg = replay(
        arrays=True,
        importance=importance,
        samples_per_round=0,
        uplink_budget=300,
        pool_factor=2.0,
        codec=COARSE.to_bytes(),
    )
    reply = answer(msg, context(), data, classes=4, model=network)
    assert 0 < reply["num-sent"] < 20 and data.asked.total() <= FIRST_TRIED + 4 + 6
    assert max(data.asked.values()) <= 3


def test_a_reply_that_was_lost_counts_again_what_it_skipped() -> None:
    ctx, data, told, arrived = context(), Photographs(7), [], b""
    for number in range(3):
        msg = replay(server_round=number + 1, acknowledged=arrived, samples_per_round=49)
        reply = answer(msg, ctx, data, classes=4)
        told.append(skipped(reply))
        arrived = receipt_of(reply) if number else b""
    assert told == [{"unreadable (OSError)": 1}, {"unreadable (OSError)": 1}, {}]


def test_a_sample_too_large_for_the_budget_is_left_out_for_good() -> None:
    source, ctx, told = digits(), context(), Counter[str]()
    samples = np.repeat(np.arange(60, 110, dtype=np.uint8), 64).reshape(50, 1, 8, 8)
    samples[[3, 20]] = np.random.default_rng(5).integers(0, 256, (2, 1, 8, 8))
    mostly_flat = replace(source, samples=samples)
    for server_round in range(25):
        msg = replay(
            server_round=server_round,
            samples_per_round=0,
            uplink_budget=60,
            codec=COARSE.to_bytes(),
        )
        reply = answer(msg, ctx, mostly_flat)
        told.update(skipped(reply))
        assert len(reply["samples"]) <= 60
    refused = fingerprints(samples[[3, 20]], source.targets[[3, 20]])
    assert sorted(remembered(ctx).refused) == sorted(refused)
    assert told == {"larger than uplink-budget": 2} and reply["remaining"] == 0


def test_a_budget_below_one_sample_is_named() -> None:
    ctx = context()
    with pytest.raises(CodecError, match="uplink-budget = 30 bytes is less than one sample takes"):
        train(replay(uplink_budget=30), ctx, digits())
    assert not ctx.state


class Flipped(Photographs):
    """Flips a photograph half of the time."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        sample, target = super().__getitem__(index)
        return (sample[..., ::-1] if self.rng.random() < 0.5 else sample), target


def test_a_random_transform_is_told_once() -> None:
    ctx, data = context(), Flipped()
    replies = [answer(replay(server_round=r), ctx, data, classes=4) for r in range(3)]
    assert "random transform" in replies[0]["notes"][0]
    assert [("notes" in reply) for reply in replies] == [True, False, False]
    assert data.asked.total() <= 36 + 3 * 4 + 6
    assert "notes" not in answer(replay(), context(), Photographs(), classes=4)
