"""Train on a small bank, alone or as one of several processes; the first one saves the model."""

import sys
from pathlib import Path

import torch
from bank_files import add, payload
from torch import nn

from strategies import SampleBank
from strategies.processes import Processes, together
from strategies.replay import train_on_bank
from strategies.server_model import ServerModel


class Net(nn.Module):
    """A model without batch normalization, with a layer that nothing goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Sequential(
            nn.Flatten(), nn.Linear(16, 32), nn.GroupNorm(4, 32), nn.Linear(32, 10)
        )
        self.unused = nn.Linear(2, 2)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 10) of samples (B, 1, 4, 4)."""
        logits: torch.Tensor = self.used(samples)
        return logits


def train(processes: Processes, place: Path) -> None:
    """Take 12 steps of 7 samples, which two processes cannot share equally."""
    bank = SampleBank()
    add(bank, [payload(seed) for seed in range(4)])
    torch.manual_seed(0)
    server = ServerModel(
        Net,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        nn.CrossEntropyLoss(weight=torch.arange(1.0, 11.0), label_smoothing=0.1),
        device="cpu",
        ema_decay=0.9,
    )
    server.share_steps(processes)
    loss = train_on_bank(server, bank, steps=12, batch_size=7, seed=3, server_round=1)
    if processes.is_first:
        saved = {"loss": torch.tensor(loss), **server.model.state_dict()}
        averaged = {f"average {k}": v for k, v in server.inference_model.state_dict().items()}
        torch.save({**saved, **averaged}, place)


if __name__ == "__main__":
    together(lambda processes: train(processes, Path(sys.argv[1])))
