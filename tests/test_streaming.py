"""One round of quantized data is one step of minibatch SGD."""

from typing import Any

import pytest
import torch
from central_sgd import (
    COARSE,
    LOSSLESS,
    central_states,
    make_grid,
    make_sources,
    make_strategy,
    sgd,
)
from small_task import (
    BATCH,
    CLIENTS,
    batch_norm_model,
    largest_difference,
    make_model,
    states_after_rounds,
)
from torch import nn

from codec import CodecOptions, Refinement
from strategies import QuantizedDataStreaming

pytestmark = pytest.mark.usefixtures("one_thread")


def test_lossless_samples_are_central_sgd_step_for_step() -> None:
    strategy, sources = make_strategy(codec=LOSSLESS), make_sources()
    states = states_after_rounds(strategy, make_grid(sources), 20)
    for ours, central in zip(states, central_states(sources, 20), strict=True):
        assert largest_difference(ours, central) < 1e-5
    assert strategy.steps_taken == 20
    assert strategy.book.samples_sent == 20 * CLIENTS * BATCH
    assert not strategy.failures
    assert strategy.ledger.sections("downlink")["arrays"] == 0


def test_augmentation_is_applied_to_the_decoded_samples() -> None:
    strategy = make_strategy(codec=LOSSLESS, augment=lambda samples, _: samples.flip(-1))
    sources = make_sources()
    states = states_after_rounds(strategy, make_grid(sources), 5)
    expected = central_states(sources, 5, lambda samples: samples.flip(-1))
    assert largest_difference(states[-1], expected[-1]) < 1e-5
    assert largest_difference(states[-1], central_states(sources, 5)[-1]) > 1e-3


def test_augmentation_draws_from_a_generator_of_its_round_and_client() -> None:
    draws: list[float] = []

    def noisy(samples: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
        draws.append(float(torch.rand(1, generator=stream)))
        return samples

    for _ in range(2):
        states_after_rounds(make_strategy(augment=noisy), make_grid(make_sources()), 2)
    first, again = draws[: 2 * CLIENTS], draws[2 * CLIENTS :]
    assert first == again and len(set(first)) == 2 * CLIENTS


def test_augmentation_excludes_a_refinement() -> None:
    """The client takes the residual at plain samples."""
    with pytest.raises(ValueError, match="augment must be None with refinement fp32"):
        make_strategy(refinement="fp32", augment=lambda samples, _: samples)


@pytest.mark.parametrize("importance", ["random", "loss", "grad-norm"])
def test_lossless_refinement_is_central_sgd(importance: str) -> None:
    strategy = make_strategy(
        codec=COARSE, importance=importance, keep_rate=0.4, refinement="fp32", uniform_share=0.3
    )
    sources = make_sources()
    states = states_after_rounds(strategy, make_grid(sources), 20)
    assert largest_difference(states[-1], central_states(sources, 20)[-1]) < 2e-5
    assert 0.2 < strategy.book.samples_sent / (20 * CLIENTS * BATCH) < 0.6
    assert strategy.ledger.sections()["refinement"] > 0
    assert strategy.ledger.sections("downlink")["arrays"] > 0


def test_without_refinement_a_coarse_codec_differs() -> None:
    """The control of the test above: there is an error for the refinement to repair."""
    strategy = make_strategy(codec=COARSE, importance="loss", keep_rate=0.4)
    sources = make_sources()
    states = states_after_rounds(strategy, make_grid(sources), 20)
    assert largest_difference(states[-1], central_states(sources, 20)[-1]) > 1e-2


def test_clients_with_fewer_samples_weigh_less() -> None:
    strategy, sources = make_strategy(codec=LOSSLESS), make_sources((40, 3, 7))
    states = states_after_rounds(strategy, make_grid(sources), 5)
    assert largest_difference(states[-1], central_states(sources, 5)[-1]) < 1e-5


def test_gradients_are_taken_payload_by_payload() -> None:
    """With BatchNorm, a lossless refinement must still give each client's own gradient."""
    model = batch_norm_model()
    options: dict[str, Any] = {"batch_size": BATCH, "device": "cpu", "seed": 5}
    strategy = QuantizedDataStreaming(
        model,
        sgd,
        codec=COARSE,
        importance="random",
        keep_rate=0.5,
        refinement="fp32",
        min_available_nodes=CLIENTS,
        **options,
    )
    reference, sources = batch_norm_model(), make_sources()
    states_after_rounds(strategy, make_grid(sources, batch_norm_model), 1)
    optimizer = sgd(reference.parameters())
    for samples, targets in (source.drawn[0] for source in sources):
        outputs = reference(torch.from_numpy(samples).float() / 255)
        loss = nn.functional.cross_entropy(outputs, torch.from_numpy(targets)) / CLIENTS
        loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for ours, central in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, central, atol=1e-5, rtol=1e-4)


def _dropout_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4)
    )


def test_dropout_masks_are_the_clients() -> None:
    """With every sample kept and sent losslessly the residual is zero only under the same masks."""
    models = []
    for refinement in ("none", "fp32"):
        model = _dropout_model()
        strategy = QuantizedDataStreaming(
            model, sgd, codec=LOSSLESS, batch_size=BATCH, refinement=refinement, device="cpu"
        )
        states_after_rounds(strategy, make_grid(make_sources(), _dropout_model), 3)
        models.append(model.state_dict())
    assert largest_difference(*models) < 1e-6


def test_refinement_alone_is_a_legal_reply() -> None:
    """A client that keeps nothing sends its whole gradient as the residual."""
    strategy = make_strategy(
        codec=COARSE,
        importance="random",
        keep_rate=0.01,
        uniform_share=1.0,
        refinement="fp32",
        batch_size=2,
    )
    sources = make_sources()
    states = states_after_rounds(strategy, make_grid(sources), 10)
    assert largest_difference(states[-1], central_states(sources, 10)[-1]) < 1e-5
    assert strategy.book.samples_sent < CLIENTS * 2 * 10
    assert strategy.steps_taken == 10 and not strategy.failures


def test_top_k_memory_stays_with_the_client() -> None:
    strategy = make_strategy(codec=COARSE, refinement=Refinement("top-k", density=0.05))
    grid = make_grid(make_sources())
    states_after_rounds(strategy, grid, 2)
    assert all("refinement-memory" in context.state for context in grid.contexts.values())
    assert not strategy.failures
    parameters = sum(parameter.numel() for parameter in make_model().parameters())
    assert strategy.book.client_memory_bytes == 4 * parameters


def test_auto_refinement_is_sent_where_it_is_needed() -> None:
    sections = {}
    for name, codec in (("exact", CodecOptions("lossless")), ("coarse", COARSE)):
        strategy = make_strategy(codec=codec, refinement="auto")
        states_after_rounds(strategy, make_grid(make_sources()), 2)
        assert not strategy.failures
        sections[name] = strategy.ledger.sections()
    assert "refinement" not in sections["exact"]
    assert sections["coarse"]["refinement"] > 0
