"""Convolutions that give one pixel are the same function as a product."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from fl_app.models import build_model
from fl_app.small_maps import SmallMapConv2d, with_small_maps


def both(stride: int) -> tuple[nn.Conv2d, SmallMapConv2d]:
    torch.manual_seed(stride)
    plain = nn.Conv2d(5, 7, 3, stride, padding=1, bias=False)
    small = with_small_maps(nn.Sequential(copy.deepcopy(plain)))[0]  # type: ignore[index]
    assert isinstance(small, SmallMapConv2d)
    return plain, small


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (1, 2), (2, 1), (3, 3), (2, 5), (8, 8)])
def test_outputs_and_gradients_are_those_of_a_convolution(
    sides: tuple[int, int], stride: int, layout: torch.memory_format
) -> None:
    layers = both(stride)
    maps = torch.randn(4, 5, *sides).to(memory_format=layout)
    found = []
    for layer in layers:
        given = maps.clone().requires_grad_()
        outputs = layer(given)
        (outputs.sin().sum()).backward()
        assert given.grad is not None and layer.weight.grad is not None
        found.append((outputs.detach(), given.grad, layer.weight.grad))
    for expected, got in zip(*found, strict=True):
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected)


def test_gradients_of_single_samples_are_taken() -> None:
    _, layer = both(1)
    weights = dict(layer.named_parameters())

    def loss(parameters: dict[str, torch.Tensor], one: torch.Tensor) -> torch.Tensor:
        called = torch.func.functional_call(layer, parameters, (one[None],))
        return torch.as_tensor(called.sin().sum())

    maps = torch.randn(3, 5, 1, 1)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, maps)["weight"]
    for number in range(3):
        layer.zero_grad()
        loss(weights, maps[number]).backward()
        assert layer.weight.grad is not None
        torch.testing.assert_close(each[number], layer.weight.grad)


def test_others_stay_as_they_are() -> None:
    layers = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.Conv2d(4, 4, 1, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(4, 4, 3, 3, padding=1, bias=False),
    )
    with_small_maps(layers)
    assert not any(isinstance(layer, SmallMapConv2d) for layer in layers)


@pytest.mark.parametrize("side", [32, 64])
def test_a_resnet18_has_the_names_weights_and_outputs_of_torchvision(side: int) -> None:
    torch.manual_seed(3)
    expected = torchvision.models.resnet18(num_classes=10)
    network = build_model("resnet18", (3, side, side), 10, seed=3)[1]
    state = network.state_dict()
    assert list(state) == list(expected.state_dict())
    assert all(torch.equal(state[name], value) for name, value in expected.state_dict().items())
    assert sum(isinstance(layer, SmallMapConv2d) for layer in network.modules()) == 16
    images = torch.randn(4, 3, side, side)
    torch.testing.assert_close(network(images), expected(images), rtol=1e-4, atol=1e-5)
