"""Model, data, training and evaluation."""

from functools import cache

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from flwr_datasets.partitioner import DirichletPartitioner
from PIL import Image as PillowImage
from PIL import ImageDraw
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Normalize, ToTensor

SHAPES = ["bar", "cross", "disc", "pillar", "ring", "square", "star", "triangle"]

TRANSFORMS = Compose([ToTensor(), Normalize((0.2860,), (0.3530,))])


class Net(nn.Module):
    """A small network for grey images, with batch normalization."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(24 * 7 * 7, 48), nn.ReLU(), nn.Linear(48, len(SHAPES))
        )

    def forward(self, x):
        return self.classifier(self.features(x))


def draw(shape, rng):
    """Draw a shape somewhere in 28 pixels, with noise."""
    image = PillowImage.new("L", (28, 28), int(rng.integers(0, 60)))
    pen, ink = ImageDraw.Draw(image), int(rng.integers(120, 255))
    x, y, r = rng.integers(9, 19), rng.integers(9, 19), rng.integers(5, 9)
    box, third = (x - r, y - r, x + r, y + r), r // 3
    upright, flat = (x - third, y - r, x + third, y + r), (x - r, y - third, x + r, y + third)
    if shape in ("disc", "ring"):
        pen.ellipse(box, fill=ink if shape == "disc" else None, outline=ink, width=2)
    elif shape in ("star", "triangle"):
        corners, jump = (5, 2) if shape == "star" else (3, 1)
        turn = rng.uniform(0, 2 * np.pi)
        angles = turn + 2 * np.pi * jump * np.arange(corners) / corners
        points = np.stack([x + r * np.cos(angles), y + r * np.sin(angles)], axis=1)
        pen.polygon([tuple(point) for point in points.tolist()], fill=ink)
    elif shape == "square":
        pen.rectangle(box, fill=ink)
    if shape in ("bar", "cross"):
        pen.rectangle(flat, fill=ink)
    if shape in ("pillar", "cross"):
        pen.rectangle(upright, fill=ink)
    pixels = np.asarray(image) + rng.normal(0, 20, (28, 28))
    return PillowImage.fromarray(pixels.clip(0, 255).astype(np.uint8))


@cache
def load_images(split):
    """Draw as many images of each shape."""
    rng = np.random.default_rng(3 if split == "test" else 4)
    labels = rng.permutation(np.arange(800 if split == "test" else 2400) % len(SHAPES)).tolist()
    images = [draw(SHAPES[label], rng) for label in labels]
    features = Features({"image": Image(), "label": ClassLabel(names=SHAPES)})
    return Dataset.from_dict({"image": images, "label": labels}, features)


def apply_transforms(batch):
    """Turn the images of a batch into normalized tensors."""
    batch["image"] = [TRANSFORMS(image) for image in batch["image"]]
    return batch


def load_data(partition_id, num_partitions, batch_size):
    """Return a client's own training and validation data; classes are uneven among clients."""
    partitioner = DirichletPartitioner(
        num_partitions=num_partitions,
        partition_by="label",
        alpha=1.0,
        min_partition_size=10,
        seed=42,
    )
    partitioner.dataset = load_images("train")
    partition = partitioner.load_partition(partition_id)
    halves = partition.train_test_split(test_size=0.2, seed=42).with_transform(apply_transforms)
    trainloader = DataLoader(halves["train"], batch_size=batch_size, shuffle=True)
    return trainloader, DataLoader(halves["test"], batch_size=batch_size)


def load_test_data():
    """Return the server's test data."""
    return DataLoader(load_images("test").with_transform(apply_transforms), batch_size=64)


def train(net, trainloader, epochs, lr, device):
    """Train a model; return its mean loss."""
    net.to(device)
    criterion = nn.CrossEntropyLoss().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for batch in trainloader:
            images, labels = batch["image"].to(device), batch["label"].to(device)
            if len(images) == 1:  # batch normalization has no statistics of one
                continue
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
            images, labels = batch["image"].to(device), batch["label"].to(device)
            outputs = net(images)
            loss += F.cross_entropy(outputs, labels, reduction="sum").item()
            correct += (outputs.argmax(dim=1) == labels).sum().item()
    return loss / len(testloader.dataset), correct / len(testloader.dataset)
