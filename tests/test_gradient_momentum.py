"""Majority votes of the clients, and momentum that the clients keep."""

import numpy as np
import pytest
import torch
from gradient_baselines import gradient_of, make_grid, make_strategy, plain_sgd, take_step
from small_task import (
    BATCH,
    CLIENTS,
    largest_difference,
    make_model,
    minibatch,
    random_sources,
    smooth_model,
    states_after_rounds,
)

from codec import Compression

pytestmark = pytest.mark.usefixtures("one_thread")


def test_majority_vote_is_the_sign_of_the_sum_of_signs() -> None:
    strategy = make_strategy(
        smooth_model,
        optimizer=plain_sgd,
        compression="sign",
        majority_vote=True,
        batch_size=BATCH,
    )
    (state,) = states_after_rounds(strategy, make_grid(smooth_model, sizes=(50, 40, 7)), 1)
    model = smooth_model()
    votes = [
        [part.sign() for part in gradient_of(model, *minibatch(source, client, 0))]
        for client, source in enumerate(random_sources((50, 40, 7)))
    ]
    winners = [torch.stack(parts).sum(dim=0).sign() for parts in zip(*votes, strict=True)]
    take_step(model, plain_sgd(model.parameters()), winners)
    assert largest_difference(state, dict(model.state_dict())) < 1e-6
    assert strategy.book.client_memory_bytes == 0
    n = sum(p.numel() for p in model.parameters())
    assert strategy.ledger.sections()["gradient"] <= CLIENTS * (n / 8 + 35)


def test_momentum_of_majority_vote_is_the_clients() -> None:
    """Signum: the sign of ``m * velocity + gradient``."""
    strategy = make_strategy(
        smooth_model,
        optimizer=plain_sgd,
        compression="sign",
        majority_vote=True,
        momentum_correction=0.9,
    )
    states = states_after_rounds(strategy, make_grid(smooth_model, sizes=(50, 40, 30)), 5)
    model = smooth_model()
    optimizer = plain_sgd(model.parameters())
    velocities = [[torch.zeros_like(p) for p in model.parameters()] for _ in range(CLIENTS)]
    for step, state in enumerate(states):
        for client, source in enumerate(random_sources()):
            gradient = gradient_of(model, *minibatch(source, client, step))
            for v, g in zip(velocities[client], gradient, strict=True):
                v.mul_(0.9).add_(g)
        take_step(
            model,
            optimizer,
            [sum(v.sign() for v in vs).sign() for vs in zip(*velocities, strict=True)],
        )
        differing = sum(
            int((state[name] != value).sum()) for name, value in model.state_dict().items()
        )
        assert differing <= 3  # a velocity within rounding of zero may vote either way
        model.load_state_dict(state)
    assert strategy.book.client_memory_bytes == 4 * sum(p.numel() for p in model.parameters())


def test_momentum_correction_is_deep_gradient_compression() -> None:
    """Lin et al. 2018, algorithm 4 without clipping: u = m u + g, v = v + u, both masked."""
    density, m = 0.05, 0.9
    strategy = make_strategy(
        optimizer=plain_sgd,
        compression=Compression("top-k", density=density),
        momentum_correction=m,
    )
    states = states_after_rounds(strategy, make_grid(), 8)
    model = make_model()
    optimizer = plain_sgd(model.parameters())
    n = sum(p.numel() for p in model.parameters())
    count = int(np.ceil(density * n))
    u, v = torch.zeros(CLIENTS, n), torch.zeros(CLIENTS, n)
    for step, state in enumerate(states):
        total = torch.zeros(n)
        for client, source in enumerate(random_sources()):
            gradient = gradient_of(model, *minibatch(source, client, step))
            u[client] = m * u[client] + torch.cat([g.flatten() for g in gradient])
            v[client] += u[client]
            largest = v[client].abs().topk(count).indices
            total[largest] += v[client][largest] / CLIENTS
            u[client][largest] = v[client][largest] = 0
        parts = total.split([p.numel() for p in model.parameters()])
        shaped = [part.view_as(p) for part, p in zip(parts, model.parameters(), strict=True)]
        take_step(model, optimizer, shaped)
        assert largest_difference(state, dict(model.state_dict())) < 1e-5
    assert strategy.book.client_memory_bytes == 8 * n
