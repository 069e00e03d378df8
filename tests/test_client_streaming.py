"""In streaming, a client filters, quantizes and refines a fresh minibatch in every round."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from requested_client import (
    COARSE,
    answer,
    context,
    decoded,
    digits,
    message,
    network,
    sent_indices,
)
from torch import nn

from clients import ArraySource, draw_minibatch, train
from clients.importance import model_outputs, score
from codec import CodecError, SamplePayload, SampleSpec, batch_gradient, decode_samples
from codec.gradients import make_compressor
from codec.messages import SCORED
from codec.random import client_generator


def test_the_minibatch_is_that_of_the_keyed_generator() -> None:
    source = digits()
    reply = answer(message(), context(), source)
    expected = draw_minibatch(50, 12, client_generator(7, 1, 2))
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
def test_selection_by_probability_is_unbiased_over_rounds(importance: str) -> None:
    """Mean over rounds of sum w_i x_i - sum x_i, within 4.5 standard errors."""
    source, errors = digits(), []
    for server_round in range(100):
        msg = message(arrays=True, server_round=server_round, importance=importance, keep_rate=0.6)
        part = decoded(answer(msg, context(), source, model=network))
        batch = source.samples[draw_minibatch(50, 12, client_generator(7, server_round, 2))]
        estimate = np.tensordot(part.weights.astype(float), part.samples, 1)
        errors.append((estimate - batch.astype(float).sum(axis=0))[0, 1:].ravel())
    deviation = np.std(errors, axis=0) / np.sqrt(len(errors))
    assert (np.abs(np.mean(errors, axis=0)) < 4.5 * deviation).all()


@pytest.mark.parametrize("importance", SCORED)
def test_top_keeps_the_highest_scores(importance: str) -> None:
    source = digits()
    msg = message(arrays=True, importance=importance, selection="top", keep_rate=0.25)
    reply = answer(msg, context(), source, model=network)
    batch = draw_minibatch(50, 12, client_generator(7, 1, 2))
    outputs = model_outputs(network(), source.samples[batch], SampleSpec((1, 8, 8)))
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
    batch = draw_minibatch(50, 12, client_generator(7, 1, 2))
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
