"""Convolutions that give one pixel, as matrix products.

With the ImageNet stem, images of 32 pixels are 2x2 and 1x1 pixels in a ResNet's last stages, where
most taps of a 3x3 kernel meet padding alone, and oneDNN's gradients of the weights are slow. Where
one pixel comes out, a product with the taps that are used is the same function.
"""

from codec.packages import needed_packages

with needed_packages():
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn


class SmallMapConv2d(nn.Conv2d):
    """A convolution of 3x3, padding 1, without bias, that is sooner done where one pixel comes out.

    Parameters, state and results are those of `torch.nn.Conv2d`, results within rounding.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as Conv2d has it
        """Map (N, C_in, H, W) to (N, C, ceil(H / stride), ceil(W / stride))."""
        height, width = input.shape[-2:]
        if max(height, width) > self.stride[0]:
            return super().forward(input)
        used = self.weight[:, :, 1 : 1 + height, 1 : 1 + width]
        return F.linear(input.flatten(1), used.flatten(1))[..., None, None]


def with_small_maps(network: nn.Module) -> nn.Module:
    """Replace the convolutions of a network that `SmallMapConv2d` can stand for; return it.

    Weights stay the very same tensors.
    """
    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Conv2d and _fits(layer):
                setattr(module, name, _replaced(layer))
    return network


def _fits(layer: nn.Conv2d) -> bool:
    return (
        (layer.kernel_size, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1))
        and layer.stride in ((1, 1), (2, 2))
        and layer.groups == 1
        and layer.bias is None
        and layer.padding_mode == "zeros"
    )


def _replaced(layer: nn.Conv2d) -> SmallMapConv2d:
    with torch.device("meta"):  # no weights are drawn
        new = SmallMapConv2d(
            layer.in_channels, layer.out_channels, 3, layer.stride[0], padding=1, bias=False
        )
    new.weight = layer.weight
    return new
