"""A server as README.md's diff finds it: the smallest that trains and saves a model."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

app = ServerApp()


class Net(nn.Sequential):
    """A small network for grey images of 28 pixels."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 7 * 7, 10),
        )


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(fraction_train=0.5)
    result = strategy.start(grid, ArrayRecord(Net().state_dict()), num_rounds=8)
    torch.save(result.arrays.to_torch_state_dict(), context.run_config["model"])
