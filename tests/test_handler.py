import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import nn

from clients import ArraySource, Instruction, draw_minibatch, train
from clients.importance import IMPORTANCES, SCORED, model_outputs, score
from clients.sent import SentSamples
from codec import (
    CodecError,
    CodecOptions,
    DecodedSamples,
    SamplePayload,
    batch_gradient,
    decode_samples,
    generator,
)
from codec.compressors import make_compressor

LOSSLESS = CodecOptions(quantizer="identity")
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


def context(partition: int = 2) -> Context:
    return Context(1, 5, {"partition-id": partition, "num-partitions": 4}, RecordDict(), {})


def message(arrays: bool = False, **overrides: Any) -> Message:
    values: dict[str, Any] = {
        "server-round": 1,
        "seed": 7,
        "mode": "sgd",
        "codec": LOSSLESS.to_bytes(),
        "batch-size": 12,
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
    reply = train(msg, ctx, source, **options)
    assert reply.metadata.dst_node_id == msg.metadata.src_node_id
    record = reply.content["payload"]
    assert isinstance(record, ConfigRecord)
    return dict(record)


def decoded(reply: dict[str, Any]) -> DecodedSamples:
    return decode_samples(SamplePayload.from_bytes(reply["samples"]))


def sent_indices(reply: dict[str, Any]) -> list[int]:
    pixels = decoded(reply).samples.astype(int)
    return [int(i) for i in pixels[:, 0, 0, 0] * 256 + pixels[:, 0, 0, 1]]


def test_sgd_sends_the_minibatch_of_the_keyed_generator() -> None:
    source = digits()
    reply = answer(message(), context(), source)
    expected = draw_minibatch(50, 12, generator(7, 1, 2))
    assert sent_indices(reply) == expected.tolist()
    assert (decoded(reply).samples == source.samples[expected]).all()
    assert (decoded(reply).targets == source.targets[expected]).all()
    assert (reply["num-examples"], reply["num-sent"], reply["client"]) == (12, 12, 2)
    assert reply["seconds-encode"] > 0 and reply["seconds-importance"] == 0
    assert "refinement" not in reply and not context().state


def test_minibatches_differ_by_round_and_client_and_repeat_by_key() -> None:
    draws = [
        sent_indices(answer(message(server_round=r), context(c), digits()))
        for r, c in ((1, 2), (2, 2), (1, 3), (1, 2))
    ]
    assert draws[0] == draws[3] and draws[0] != draws[1] and draws[0] != draws[2]
    assert all(len(set(draw)) == 12 for draw in draws)


def test_a_minibatch_larger_than_the_data_is_all_of_them() -> None:
    reply = answer(message(batch_size=99), context(), digits())
    assert sorted(sent_indices(reply)) == list(range(50)) and reply["num-examples"] == 50


@pytest.mark.parametrize("importance", ["grad-norm", "margin", "entropy"])
def test_sgd_by_probability_is_unbiased_over_rounds(importance: str) -> None:
    """Mean over rounds of sum w_i x_i - sum x_i, within 4.5 standard errors."""
    source, errors = digits(), []
    for server_round in range(100):
        msg = message(arrays=True, server_round=server_round, importance=importance, keep_rate=0.6)
        part = decoded(answer(msg, context(), source, model=network))
        batch = source.samples[draw_minibatch(50, 12, generator(7, server_round, 2))]
        estimate = np.tensordot(part.weights.astype(float), part.samples, 1)
        errors.append((estimate - batch.astype(float).sum(axis=0))[0, 1:].ravel())
    deviation = np.std(errors, axis=0) / np.sqrt(len(errors))
    assert (np.abs(np.mean(errors, axis=0)) < 4.5 * deviation).all()


@pytest.mark.parametrize("importance", SCORED)
def test_sgd_threshold_keeps_the_highest_scores(importance: str) -> None:
    source = digits()
    msg = message(arrays=True, importance=importance, selection="threshold", keep_rate=0.25)
    reply = answer(msg, context(), source, model=network)
    batch = draw_minibatch(50, 12, generator(7, 1, 2))
    outputs = model_outputs(network(), source.samples[batch], low=0, high=255)
    scores = score(importance, outputs, source.targets[batch])
    assert set(sent_indices(reply)) == set(batch[np.argsort(-scores)[:3]])
    assert reply["num-examples"] == 12 and reply["seconds-importance"] > 0


@pytest.mark.parametrize("importance", ["random", "grad-norm", "margin", "entropy"])
def test_lossless_refinement_gives_the_minibatch_gradient(importance: str) -> None:
    msg = message(
        arrays=True,
        codec=COARSE.to_bytes(),
        importance=importance,
        keep_rate=0.5,
        refinement="fp32",
    )
    source = digits()
    reply = answer(msg, context(), source, model=network, criterion=nn.CrossEntropyLoss())
    payload = SamplePayload.from_bytes(reply["samples"])
    part = decode_samples(payload)
    criterion = nn.CrossEntropyLoss(reduction="none")
    mine = batch_gradient(
        network(),
        criterion,
        part.samples,
        part.targets,
        part.weights,
        spec=payload.spec,
        batch_size=reply["num-examples"],
    )
    correction = make_compressor("fp32").decompress(reply["refinement"])
    batch = draw_minibatch(50, 12, generator(7, 1, 2))
    model = network()
    inputs = torch.from_numpy(source.samples[batch]).float() / 255
    loss = criterion(model(inputs), torch.from_numpy(source.targets[batch])).mean()
    truth = torch.autograd.grad(loss, list(model.parameters()))
    assert 1 < reply["num-sent"] < 12
    for got, fix, want in zip(mine, correction, truth, strict=True):
        np.testing.assert_allclose(got.numpy() + fix, want.numpy(), rtol=1e-4, atol=1e-6)


def test_error_memory_is_carried_over_in_the_state() -> None:
    ctx = context()
    replies = []
    for _ in range(2):
        msg = message(arrays=True, codec=COARSE.to_bytes(), refinement="top-k")
        replies.append(answer(msg, ctx, digits(), model=network))
    memory = ctx.state["refinement-memory"]
    assert isinstance(memory, ArrayRecord)
    shapes = [tuple(p.shape) for p in network().parameters()]
    assert [array.shape for array in memory.to_numpy_ndarrays()] == shapes
    assert replies[0]["refinement"] != replies[1]["refinement"]


def replay(**overrides: Any) -> Message:
    return message(**{"mode": "replay", "selection": "budget"} | overrides)


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


def test_replay_state_holds_one_bit_a_sample() -> None:
    ctx, source = context(), digits()
    indices = sent_indices(answer(replay(), ctx, source))
    record = ctx.state["quantized-data"]
    assert isinstance(record, ConfigRecord)
    assert len(record["sent"]) == len(record["pending"]) == 7  # type: ignore[arg-type]
    state = SentSamples.from_entries(record, 50)
    assert np.flatnonzero(state.pending).tolist() == sorted(indices)
    assert not state.delivered.any() and state.pending_round == 1


def test_replay_marks_only_what_fits_the_budget() -> None:
    source = digits(800)
    replies = run_replay(source, 3, batch_size=0, uplink_budget=900, codec=COARSE.to_bytes())
    counts = []
    for reply in replies:
        assert 855 <= len(reply["samples"]) <= 900
        counts.append(reply["num-sent"])
        assert reply["remaining"] == 800 - sum(counts)
        assert decoded(reply).targets.shape == (reply["num-sent"],)


def test_replay_scores_a_pool_and_takes_its_best() -> None:
    source = digits()
    msg = replay(arrays=True, importance="loss", batch_size=5, pool_factor=3.0)
    reply = answer(msg, context(), source, model=network)
    outputs = model_outputs(network(), source.samples, low=0, high=255)
    losses = score("loss", outputs, source.targets)
    pool = generator(7, 1, 2).permutation(np.arange(50))[:15]
    assert reply["num-examples"] == 15
    assert set(sent_indices(reply)) == set(pool[np.argsort(-losses[pool])[:5]])


@pytest.mark.parametrize("selection", ["probability", "threshold", "budget"])
@pytest.mark.parametrize("importance", SCORED)
def test_replay_with_scores_fills_its_budget(importance: str, selection: str) -> None:
    source = digits(800)
    replies = run_replay(
        source,
        2,
        arrays=True,
        importance=importance,
        selection=selection,
        batch_size=0,
        uplink_budget=900,
        codec=COARSE.to_bytes(),
    )
    for reply in replies:
        assert 855 <= len(reply["samples"]) <= 900
        assert reply["num-sent"] < reply["num-examples"] < 800


@pytest.mark.parametrize("importance", ["all", "loss"])
def test_replay_meets_its_budget_in_each_client_and_round(importance: str) -> None:
    """Within 5% for as long as there are samples left to fill it with."""
    source, full = digits(800), 0
    for budget in (700, 2500):
        for partition in range(3):
            ctx, remaining, server_round = context(partition), 800, 0
            while remaining and server_round < 6:
                msg = replay(
                    arrays=True,
                    server_round=server_round,
                    importance=importance,
                    batch_size=0,
                    uplink_budget=budget,
                    codec=COARSE.to_bytes(),
                )
                reply = answer(msg, ctx, source, model=network)
                remaining, server_round = reply["remaining"], server_round + 1
                assert len(reply["samples"]) <= budget
                if remaining:
                    assert len(reply["samples"]) >= 0.95 * budget
                    full += 1
    assert full >= 30


def test_uncertainty_of_float_targets_is_refused() -> None:
    pixels = digits().samples
    source = ArraySource(pixels, np.zeros((50, 4), np.float32), 0, 0.0, 255.0)
    with pytest.raises(CodecError, match="'margin' needs class labels"):
        train(message(arrays=True, importance="margin"), context(), source, model=network)


@pytest.mark.parametrize("budget", [0, 900])
def test_replay_sends_calibration_samples_once_within_the_budget(budget: int) -> None:
    options = {
        "codec": COARSE.to_bytes(),
        "calibration-samples": 6,
        "calibration-step": 0.02,
        "uplink-budget": budget,
    }
    replies = run_replay(digits(), 3, **options)
    first = replies[0]
    fine = decode_samples(SamplePayload.from_bytes(first["calibration"]))
    coarse = decoded(first)
    assert 1 <= len(fine.targets) <= 6
    assert first["num-sent"] == len(fine.targets) + len(coarse.targets)
    if budget:
        assert len(first["calibration"]) + len(first["samples"]) <= budget
    else:
        assert len(fine.targets) == 6
    assert not any("calibration" in reply for reply in replies[1:])


def test_replay_keep_rate_is_the_share_ever_sent() -> None:
    replies = run_replay(digits(), 4, importance="random", keep_rate=0.4)
    assert [reply["num-sent"] for reply in replies] == [12, 8, 0, 0]
    assert [reply["remaining"] for reply in replies] == [8, 0, 0, 0]


def test_replay_batch_size_zero_sends_everything_at_once() -> None:
    reply = answer(replay(batch_size=0), context(), digits())
    assert sorted(sent_indices(reply)) == list(range(50)) and reply["remaining"] == 0


@pytest.mark.parametrize("mode", ["sgd", "replay"])
def test_a_client_without_data_sends_nothing(mode: str) -> None:
    reply = answer(message(mode=mode), context(), digits(0))
    assert reply["samples"] == b""
    assert (reply["num-examples"], reply["num-sent"], reply["remaining"]) == (0, 0, 0)


def test_a_source_that_changed_its_length_is_refused() -> None:
    ctx = context()
    answer(replay(), ctx, digits(50))
    with pytest.raises(CodecError, match="7 bytes of sent flags, but 80 samples take 10"):
        train(replay(), ctx, digits(80))


def test_a_failed_round_leaves_the_state_alone() -> None:
    ctx, source = context(), digits()
    targets = source.targets.copy()
    targets[:] = 9
    broken = ArraySource(source.samples, targets, 4, 0.0, 255.0)
    with pytest.raises(CodecError, match=r"value 9 outside \[0, 3\]"):
        train(replay(), ctx, broken)
    assert not ctx.state


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            {"importance": "best"},
            "'best' is not one of all, random, loss, grad-norm, margin, entropy",
        ),
        ({"mode": "avg"}, "'avg' is not one of sgd, replay"),
        ({"selection": "top"}, "'top' is not one of probability, threshold, budget"),
        ({"batch_size": 0}, r"batch-size = 0 outside \[1, inf\]"),
        ({"keep_rate": 0.0}, r"keep-rate = 0.0 outside \(0, 1\]"),
        ({"keep_rate": float("nan"), "importance": "random"}, r"outside \(0, 1\]"),
        ({"keep_rate": 0.5}, "contradicts importance all"),
        ({"uniform_share": 1.5}, r"uniform-share = 1.5 outside \[0, 1\]"),
        ({"batch_size": "12"}, "batch-size = '12' must be of type int"),
        ({"uplink_budget": -1}, r"uplink-budget = -1 outside \[0, inf\]"),
        ({"mode": "replay", "refinement": "fp32"}, "in replay: none"),
        ({"refinement": "fp32"}, "pass model="),
        ({"codec": b"?"}, "truncated"),
    ],
)
def test_illegal_instructions_are_named(overrides: dict[str, Any], told: str) -> None:
    with pytest.raises(CodecError, match=told):
        train(message(**overrides), context(), digits())


def test_missing_parts_of_an_instruction_are_named() -> None:
    with pytest.raises(CodecError, match="lacks batch-size, codec, mode, seed"):
        Instruction.from_record({"server-round": 1})
    with pytest.raises(CodecError, match=r"content\['config'\]"):
        train(Message(RecordDict(), 5, "train"), context(), digits())
    with pytest.raises(CodecError, match=r"content\['arrays'\]"):
        train(message(importance="loss"), context(), digits(), model=network)


@pytest.mark.parametrize("length", [0, 1, 8, 9, 1000])
def test_sent_flags_survive_packing(length: int) -> None:
    rng = np.random.default_rng(0)
    state = SentSamples(rng.random(length) < 0.3, rng.random(length) < 0.1, 4)
    entries = state.to_entries()
    again = SentSamples.from_entries(entries, length)
    assert (again.delivered == state.delivered).all() and (again.pending == state.pending).all()
    assert again.pending_round == 4


def test_lost_replies_are_sent_again() -> None:
    """Round 1 arrives, round 2 is lost, round 3 arrives: what round 2 held comes later."""
    ctx, source, sent = context(), digits(), []
    for server_round, acknowledged in ((1, -1), (2, 1), (3, 1), (5, 3), (6, 5), (7, 6)):
        msg = replay(server_round=server_round, acknowledged=acknowledged)
        reply = answer(msg, ctx, source)
        sent.append(sent_indices(reply))
        arrived = sum(map(len, sent)) - (12 if server_round > 2 else 0)
        assert reply["remaining"] == 50 - arrived
    delivered = [index for reply in sent[:1] + sent[2:] for index in reply]
    assert sorted(delivered) == list(range(50))
    assert len(sent[5]) == 2


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
            for mode in ("sgd", "replay"):
                for importance, keep in (("all", 1.0), ("random", 0.5)):
                    config = ConfigRecord({
                        "server-round": 1, "seed": 3, "mode": mode, "batch-size": 8,
                        "codec": CodecOptions().to_bytes(), "importance": importance,
                        "keep-rate": keep, "refinement": "none",
                    })
                    context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})
                    message = Message(RecordDict({"config": config}), 1, "train")
                    reply = train(message, context, source).content["payload"]
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
