"""In streaming, a client filters, quantizes and refines a fresh minibatch in every round."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
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
from torch import nn

from clients import ArraySource, draw_minibatch, train
from clients.importance import model_outputs, score
from codec import CodecError, CodecOptions, SamplePayload, batch_gradient, decode_samples
from codec.gradients import make_compressor
from codec.messages import SCORED
from codec.random import client_generator


def test_the_minibatch_is_that_of_the_keyed_generator() -> None:
    source = digits()
    reply = answer(message(), context(), source)
    expected = draw_minibatch(50, 12, client_generator(7, 1, NODE + 2))
    assert sent_indices(reply) == expected.tolist()
    assert (decoded(reply).samples == source.samples[expected]).all()
    assert (decoded(reply).targets == source.targets[expected]).all()
    assert (reply["num-examples"], reply["num-sent"], reply["client"]) == (12, 12, 2)
    assert reply["seconds-encode"] > 0 and "seconds-importance" not in reply
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
def test_selection_by_probability_is_unbiased_over_rounds(importance: str) -> None:
    """Mean over rounds of sum w_i x_i - sum x_i, within 4.5 standard errors."""
    source, errors = digits(), []
    for server_round in range(100):
        msg = message(arrays=True, server_round=server_round, importance=importance, keep_rate=0.6)
        part = decoded(answer(msg, context(), source, model=network))
        batch = source.samples[draw_minibatch(50, 12, client_generator(7, server_round, NODE + 2))]
        estimate = np.tensordot(part.weights.astype(float), part.samples, 1)
        errors.append((estimate - batch.astype(float).sum(axis=0))[0, 1:].ravel())
    deviation = np.std(errors, axis=0) / np.sqrt(len(errors))
    assert (np.abs(np.mean(errors, axis=0)) < 4.5 * deviation).all()


@pytest.mark.parametrize("importance", SCORED)
def test_top_keeps_the_highest_scores(importance: str) -> None:
    source = digits()
    msg = message(arrays=True, importance=importance, selection="top", keep_rate=0.25)
    reply = answer(msg, context(), source, model=network)
    batch = draw_minibatch(50, 12, client_generator(7, 1, NODE + 2))
    outputs = model_outputs(network(), source.samples[batch], SPEC)
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
    batch = draw_minibatch(50, 12, client_generator(7, 1, NODE + 2))
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


def test_uncertainty_of_float_targets_is_refused() -> None:
    pixels = digits().samples
    source = ArraySource(pixels, np.zeros((50, 4), np.float32), 0, 0.0, 255.0)
    with pytest.raises(CodecError, match="'margin' needs class labels"):
        train(message(arrays=True, importance="margin"), context(), source, model=network)


class Broken:
    """Twelve digits, some of which cannot be read."""

    def __init__(self, *broken: int) -> None:
        self.source, self.broken, self.asked = digits(12), broken, Counter[int]()

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        self.asked[index] += 1
        if index in self.broken:
            raise OSError("image file is truncated")
        return self.source.samples[index], int(self.source.targets[index])


def test_a_minibatch_is_whole_without_the_samples_of_no_use() -> None:
    ctx, data = context(), Broken(4, 9)
    replies = [
        answer(message(server_round=r, batch_size=10), ctx, data, classes=4) for r in range(3)
    ]
    assert [reply["num-sent"] for reply in replies] == [10, 10, 10]
    assert {index for reply in replies for index in sent_indices(reply)} == {*range(12)} - {4, 9}
    assert [skipped(reply) for reply in replies] == [{"unreadable (OSError)": 2}, {}, {}]


def test_samples_of_no_use_are_not_drawn_again() -> None:
    ctx, data = context(), Broken(9)
    for server_round in range(5):
        answer(message(server_round=server_round), ctx, data, classes=4)
    assert data.asked[9] == 1 and data.asked[8] >= 5


def test_a_client_with_nothing_of_use_says_why() -> None:
    """Its first samples are fine, and yet none can be used."""
    source = digits()
    broken = ArraySource(source.samples, source.targets + 9, 4, 0.0, 255.0)
    told = "no sample can be used: 50 label outside 0 to 3; sample [0-9]+: label outside 0 to 3"
    with pytest.raises(CodecError, match=told):
        train(message(), context(), broken)


def test_what_a_source_left_out_is_told_once() -> None:
    ctx, source = context(), replace(digits(), skipped={"damaged": 3})
    replies = [answer(message(server_round=r), ctx, source) for r in range(2)]
    assert [skipped(reply) for reply in replies] == [{"damaged": 3}, {}]


def test_a_budget_below_one_sample_is_named() -> None:
    told = "uplink-budget = 30 bytes is less than one sample takes: the smallest of 12 takes [0-9]+"
    with pytest.raises(CodecError, match=told):
        train(message(uplink_budget=30), context(), digits())


def test_the_dither_travels_with_ids_of_64_bits() -> None:
    dithered = CodecOptions(quantizer="dithered")
    payload = SamplePayload.from_bytes(
        answer(message(codec=dithered.to_bytes()), context(), digits())["samples"]
    )
    assert payload.key == (7, NODE + 2, 1) and NODE > 2**63
    assert np.isfinite(decode_samples(payload).samples).all()


def test_devices_of_one_partition_draw_their_own_minibatches() -> None:
    first, second = (
        sent_indices(answer(message(), context(node_id=node), digits())) for node in (NODE, 3)
    )
    by_partition = [
        sent_indices(answer(message(client_key="partition"), context(node_id=node), digits()))
        for node in (NODE, 3)
    ]
    assert first != second and by_partition[0] == by_partition[1]
