"""Models of the app. All take images in [0, 1], as ``ToTensor`` gives them."""

import itertools
import math
from typing import cast

from codec.packages import needed_packages
from fl_app.small_maps import with_small_maps

with needed_packages():
    import torch
    from torch import Tensor, nn

_SMALL_SIDE = 28
SMALL_WIDTH, RESNET9_WIDTH = 16, 32
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """Shift and scale each channel; the statistics are saved with the model.

    Parameters
    ----------
    mean, std : tuple of float
        One per channel, for images in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) images in [0, 1] to normalized ones."""
        return (images - self.mean) / self.std


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, arXiv:1512.03385, fig. 2)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C, H / stride, W / stride)."""
        return torch.relu(self.body(features) + self.shortcut(features))


class SmallResNet(nn.Sequential):
    """ResNet of three blocks for images of 28x28 or 32x32.

    Parameters
    ----------
    channels : int
        Of the images.
    classes : int
    width : int
        Channels of the first block; doubled in each that follows.
    """

    def __init__(self, channels: int, classes: int, width: int = SMALL_WIDTH) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, classes),
        )


class ResNet20(nn.Sequential):
    """ResNet of 20 layers for images of 32x32 (He et al., 2016, section 4.2): 0.27 M parameters.

    Parameters
    ----------
    channels : int
        Of the images.
    classes : int
    """

    def __init__(self, channels: int, classes: int) -> None:
        widths = [16] * 4 + [32] * 3 + [64] * 3
        blocks = [
            ResidualBlock(before, width, width // before)
            for before, width in itertools.pairwise(widths)
        ]
        super().__init__(
            nn.Conv2d(channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, classes),
        )


class _ConvolutionBlock(nn.Sequential):
    """Convolution of 3x3, pooling by 2 if wanted, batch normalization."""

    def __init__(self, channels_in: int, channels: int, *, pool: bool = False) -> None:
        # Pooled before it is normalized and rectified, which gives the same for a quarter of work.
        super().__init__(
            nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
            *([nn.MaxPool2d(2)] if pool else []),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )


class _Residual(nn.Sequential):
    """Adds what its layers make of their input to it."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        change = super().forward(features)  # type: ignore[no-untyped-call]  # torch's has no types
        return features + cast(Tensor, change)


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs * self.factor


class ResNet9(nn.Sequential):
    """ResNet of nine layers that learns small images in few epochs (Page 2018, for DAWNBench).

    1.65 M parameters at a width of 32, 6.57 M at 64, as it was published.

    Parameters
    ----------
    channels : int
        Of the images, whose sides are at least 8 pixels.
    classes : int
    width : int
        Channels of the first layer; eight times as many in the last.
    """

    def __init__(self, channels: int, classes: int, width: int = RESNET9_WIDTH) -> None:
        super().__init__(
            _ConvolutionBlock(channels, width),
            _ConvolutionBlock(width, 2 * width, pool=True),
            _Residual(
                _ConvolutionBlock(2 * width, 2 * width), _ConvolutionBlock(2 * width, 2 * width)
            ),
            _ConvolutionBlock(2 * width, 4 * width, pool=True),
            _ConvolutionBlock(4 * width, 8 * width, pool=True),
            _Residual(
                _ConvolutionBlock(8 * width, 8 * width), _ConvolutionBlock(8 * width, 8 * width)
            ),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(8 * width, classes, bias=False),
            _Scale(0.125),
        )


def build_model(
    name: str,
    sample_shape: tuple[int, ...],
    classes: int,
    *,
    stem: str = "imagenet",
    width: int = 0,
    seed: int = 0,
) -> nn.Sequential:
    """Build a freshly initialised classifier.

    Parameters
    ----------
    name : str
        "resnet18", "resnet34" or "resnet50" (torchvision's), "resnet9", "resnet20",
        "small-resnet", "logistic", or "auto": "small-resnet" for images of up to 28x28, else
        "resnet18".
    sample_shape : tuple of int
        (C, H, W) of one image.
    classes : int
        Number of logits.
    stem : str
        First layer of the torchvision models: "imagenet" (7x7, stride 2, max pooling, as they
        come) or "3x3" (stride 1, no pooling: more accurate on small images, at 16 times the
        work).
    width : int
        Channels of the first layer of "resnet9" and "small-resnet"; 0: 32, and 16.
    seed : int
        Of the initial weights; torch's own generator is left as it was.

    Returns
    -------
    nn.Sequential
        A `Normalize` layer and the network; (N, C, H, W) float in [0, 1] to (N, classes)
        logits.
    """
    channels, side = sample_shape[0], max(sample_shape[1:])
    if name == "auto":
        name = "small-resnet" if side <= _SMALL_SIDE else "resnet18"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "logistic":
            network: nn.Module = nn.Sequential(
                nn.Flatten(), nn.Linear(math.prod(sample_shape), classes)
            )
        elif name == "small-resnet":
            network = SmallResNet(channels, classes, width or SMALL_WIDTH)
        elif name == "resnet9":
            network = ResNet9(channels, classes, width or RESNET9_WIDTH)
        elif name == "resnet20":
            network = ResNet20(channels, classes)
        else:
            network = _torchvision_resnet(name, stem, channels, classes)
    return nn.Sequential(_normalize(channels), network)


def _normalize(channels: int) -> Normalize:
    if channels == 3:
        return Normalize(_IMAGENET_MEAN, _IMAGENET_STD)
    return Normalize((0.5,) * channels, (0.25,) * channels)


def _torchvision_resnet(name: str, stem: str, channels: int, classes: int) -> nn.Module:
    with needed_packages():
        import torchvision  # here, as the small models do without and it takes a second

    network = cast(nn.Module, torchvision.models.get_model(name, num_classes=classes))
    if stem == "3x3":
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return with_small_maps(network)
