"""Model, data, training and evaluation."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

COLUMNS = ["age", "income", "savings", "debt ratio", "years employed", "late payments", "rate"]


class LoanClassifier(nn.Module):
    """Two hidden layers; takes the columns as they are and standardizes them itself."""

    def __init__(self):
        super().__init__()
        self.standardize = nn.BatchNorm1d(len(COLUMNS), affine=False)
        self.layers = nn.Sequential(
            nn.Linear(len(COLUMNS), 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1)
        )

    def forward(self, x):
        return self.layers(self.standardize(x))


def loans(rows, rng):
    """Make up a table of loans and whether they were paid back."""
    age = rng.uniform(18, 80, rows)
    income = np.exp(rng.normal(10.4, 0.6, rows))
    savings = np.where(rng.random(rows) < 0.4, 0, np.exp(rng.normal(9, 1.3, rows)))
    debt_ratio = rng.beta(2, 4, rows)
    years = np.minimum(rng.exponential(7, rows), age - 16).round()
    late = rng.poisson(0.7, rows)
    rate = rng.normal(0.07, 0.02, rows)
    table = np.stack([age, income, savings, debt_ratio, years, late, rate], axis=1)
    score = 1.6 * np.log(income / 33000) + 0.25 * np.log1p(savings) + 0.1 * years + 2.2
    score -= 5 * debt_ratio + 1.1 * late + 25 * (rate - 0.07) + ((age - 47) / 20) ** 2
    paid = rng.random(rows) < 1 / (1 + np.exp(-4 * score))
    return table.astype(np.float32), paid.astype(np.float32)


def load_data(partition_id, num_partitions):
    """Return a client's own training and validation data."""
    table, paid = loans(3000, np.random.default_rng(5))
    table, paid = table[partition_id::num_partitions], paid[partition_id::num_partitions]
    dataset = TensorDataset(torch.from_numpy(table), torch.from_numpy(paid)[:, None])
    lengths = [0.8, 0.2]
    trainset, valset = torch.utils.data.random_split(
        dataset, lengths, torch.Generator().manual_seed(partition_id)
    )
    return DataLoader(trainset, batch_size=64, shuffle=True), DataLoader(valset, batch_size=64)


def train(net, trainloader, lr):
    """Train a model for one epoch."""
    criterion = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    net.train()
    for columns, paid in trainloader:
        optimizer.zero_grad()
        criterion(net(columns), paid).backward()
        optimizer.step()


def evaluate(net, testloader):
    """Return a model's mean loss and accuracy."""
    criterion = nn.BCEWithLogitsLoss(reduction="sum")
    net.eval()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for columns, paid in testloader:
            outputs = net(columns)
            loss += criterion(outputs, paid).item()
            correct += ((outputs > 0) == paid.bool()).sum().item()
    return loss / len(testloader.dataset), correct / len(testloader.dataset)
