"""Small models; each brings its inputs to a usual scale itself, as they come in their own units."""

from torch import Tensor, nn


class ChannelsFirst(nn.Module):
    """Moves the last axis of images before the others."""

    def forward(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) of (N, H, W, C)."""
        return images.movedim(-1, 1)


class MeanWord(nn.Module):
    """Mean of the words' embeddings."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)

    def forward(self, words: Tensor) -> Tensor:
        """Return (N, width) of word numbers (N, T)."""
        mean: Tensor = self.table(words).mean(dim=1)
        return mean


def image_network(channels: int, outputs: int, *first: nn.Module) -> nn.Module:
    """Return two convolutions and a linear layer, for (N, C, H, W) after the first modules."""
    return nn.Sequential(
        *first,
        nn.BatchNorm2d(channels),
        nn.Conv2d(channels, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d((4, 4)),
        nn.Flatten(),
        nn.Linear(512, outputs),
    )


def series_network(channels: int, outputs: int, *first: nn.Module) -> nn.Module:
    """Return the same for series (N, C, T)."""
    return nn.Sequential(
        *first,
        nn.BatchNorm1d(channels),
        nn.Conv1d(channels, 16, 7, 2, 3),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Conv1d(16, 32, 7, 2, 3),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(8),
        nn.Flatten(),
        nn.Linear(256, outputs),
    )


def row_network(columns: int, outputs: int) -> nn.Module:
    """Return a hidden layer, for rows of a table."""
    return nn.Sequential(
        nn.BatchNorm1d(columns), nn.Linear(columns, 32), nn.ReLU(), nn.Linear(32, outputs)
    )


def word_network(words: int, outputs: int) -> nn.Module:
    """Return a linear layer over the mean of the words, for sentences."""
    return nn.Sequential(MeanWord(words, 16), nn.Linear(16, outputs))
