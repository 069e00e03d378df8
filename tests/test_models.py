"""Tests of fl_app.models."""

import pytest
import torch
from torch import nn

from fl_app.models import Normalize, build_model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("small-resnet", (1, 28, 28)),
        ("small-resnet", (3, 32, 32)),
        ("resnet9", (1, 28, 28)),
        ("resnet9", (3, 64, 64)),
        ("resnet20", (3, 32, 32)),
        ("logistic", (1, 28, 28)),
        ("resnet18", (3, 32, 32)),
        ("resnet18", (1, 28, 28)),
        ("resnet34", (3, 65, 70)),
        ("resnet50", (3, 32, 32)),
    ],
)
@pytest.mark.parametrize("stem", ["imagenet", "3x3"])
def test_model_maps_unit_images_to_logits(name: str, shape: tuple[int, ...], stem: str) -> None:
    model = build_model(name, shape, 7, stem=stem).eval()
    with torch.no_grad():
        assert model(torch.rand(2, *shape)).shape == (2, 7)


def test_small_resnet_is_small() -> None:
    assert 70_000 < parameters(build_model("small-resnet", (1, 28, 28), 10)) < 300_000
    assert parameters(build_model("resnet20", (3, 32, 32), 10)) == 272_474


def test_width_scales_the_models_that_have_one() -> None:
    sizes = [
        parameters(build_model("resnet9", (3, 32, 32), 10, width=width)) for width in (0, 32, 64)
    ]
    assert sizes == [1_646_112, 1_646_112, 6_573_120]
    narrow, usual = (build_model("small-resnet", (1, 28, 28), 10, width=w) for w in (8, 0))
    assert 3.5 < parameters(usual) / parameters(narrow) < 4.5


def test_auto_follows_the_size_of_the_images() -> None:
    digits, photographs, large = (
        build_model("auto", shape, 10) for shape in [(1, 28, 28), (3, 32, 32), (3, 128, 128)]
    )
    assert parameters(digits) == parameters(build_model("small-resnet", (1, 28, 28), 10))
    assert 11e6 < parameters(photographs) < 12e6
    assert photographs.state_dict()["1.conv1.weight"].shape == (64, 3, 7, 7)
    assert large.state_dict()["1.conv1.weight"].shape == (64, 3, 7, 7)


def test_seed_fixes_the_weights_and_leaves_torch_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (build_model("logistic", (1, 4, 4), 3, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    key = "1.1.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


def test_normalize_shifts_and_scales_each_channel_and_is_saved() -> None:
    layer = Normalize((0.5, 0.25), (0.5, 0.125))
    assert layer(torch.full((1, 2, 1, 1), 0.5)).flatten().tolist() == [0.0, 2.0]
    assert set(layer.state_dict()) == {"mean", "std"}
