"""Our PowerSGD beside the hook of torch.distributed, which its authors' code became."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from codec.gradients import make_compressor

ROWS, COLUMNS, RANK, STEPS = 24, 40, 2, 6
PLAIN = 2  # steps that the hook takes uncompressed before it starts


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def hook_gradients(
    gradients: NDArray[np.float32],
) -> tuple[list[NDArray[np.float32]], torch.Tensor]:
    """Gradients that come out of the hook, and the right factor that it began with."""
    model = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    wrapped = DistributedDataParallel(model)
    state = powerSGD_hook.PowerSGDState(
        None, RANK, start_powerSGD_iter=PLAIN, min_compression_rate=1, random_seed=7
    )
    # As the hook draws it.
    seed = np.random.RandomState(7).randint(1_000_000_000)
    start = torch.randn(COLUMNS, RANK, generator=torch.Generator().manual_seed(seed))
    wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    results = []
    for gradient in [np.zeros_like(gradients[0])] * PLAIN + list(gradients):
        model.zero_grad()
        # The gradient of sum(C * (x W^T)) is C^T x: with x the identity, C^T.
        (wrapped(torch.eye(COLUMNS)) * torch.from_numpy(gradient.T)).sum().backward()
        assert model.weight.grad is not None
        results.append(model.weight.grad.numpy().copy())
    return results[PLAIN:], start


def test_same_gradients_as_the_hook_step_for_step(one_process: None) -> None:
    rng = np.random.default_rng(0)
    spectrum = 2.0 ** -np.arange(ROWS)
    left, right = rng.standard_normal((ROWS, ROWS)), rng.standard_normal((ROWS, COLUMNS))
    drift = 0.1 * rng.standard_normal((STEPS, ROWS, COLUMNS))
    gradients = ((left * spectrum) @ right + drift).astype(np.float32)
    expected, start = hook_gradients(gradients)

    compressor = make_compressor("powersgd", rank=RANK)
    memory = [np.zeros((ROWS, COLUMNS), np.float32), start.numpy()]
    for step, gradient in enumerate(gradients):
        data, memory = compressor.compress([gradient], memory, rng)
        (decoded,) = compressor.decompress(data)
        assert np.allclose(decoded, expected[step], atol=1e-4 * np.abs(gradient).max()), step
