"""Several processes that torchrun starts take the steps that one takes."""

from pathlib import Path

import pytest
import torch
from torchrun import torchrun
from torchrun_steps import train

from codec import OptionError
from strategies.processes import Processes, together

STEPS = Path(__file__).with_name("torchrun_steps.py")


def test_a_process_that_torchrun_did_not_start_is_alone() -> None:
    seen: list[Processes] = []
    together(seen.append)
    assert seen == [Processes(0, 1)]
    assert seen[0].is_first and seen[0].agreed("mine") == "mine"


def test_parts_are_disjoint_and_all_of_a_minibatch() -> None:
    batch = (torch.arange(7.0)[:, None], torch.arange(7), torch.ones(7))
    parts = [Processes(rank, 3).part_of(batch) for rank in range(3)]
    assert sorted(torch.cat([targets for _, targets, _ in parts]).tolist()) == list(range(7))
    with pytest.raises(OptionError, match="7 samples cannot be shared by 8 processes"):
        Processes(0, 8).part_of(batch)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_together_they_train_as_one(tmp_path: Path, processes: int) -> None:
    train(Processes(), tmp_path / "alone.pt")
    torchrun(processes, STEPS, tmp_path / "together.pt")
    alone, together = (torch.load(tmp_path / f"{name}.pt") for name in ("alone", "together"))
    assert alone.keys() == together.keys()
    for name, expected in alone.items():
        assert torch.allclose(together[name], expected, rtol=1e-5, atol=1e-6), name
